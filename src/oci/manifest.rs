//! What a manifest refers to: Docker image manifests and lists, OCI image manifests and indexes, and legacy schema 1
//! (OCI image specification 1.1, "manifest.md" and "image-index.md"; distribution's manifest-v2-1, manifest-v2-2).
//!
//! A manifest is stored and served byte for byte; what is parsed here decides only which content it needs, never what
//! is sent. So the parser is strict where two readers could see two different sets of content in the same bytes (a key
//! given twice, an image that also lists child manifests), and indifferent to everything else.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::descriptor::{Descriptor, or_default};
use super::digest::Digest;
use super::media_type::{
    DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED, OCI_INDEX, OCI_MANIFEST,
    OCTET_STREAM, essence,
};
use super::quoted;
use super::spelling::misspelt;

/// The most descriptors a manifest may hold, all lists together.
pub const DESCRIPTORS_MAX: usize = 10_000;

/// The shapes of manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Config and layers: Docker schema 2 or OCI.
    Image,
    /// A list of manifests: a Docker manifest list or an OCI index.
    Index,
    /// Docker schema 1: layers only.
    Schema1,
    /// A media type that is not known here. What stands under the usual names is still found, so that content it needs
    /// is not taken for garbage.
    Other,
}

/// What a manifest says about the content it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its shape.
    pub kind: Kind,
    /// Its media type, without parameters.
    pub media_type: String,
    /// The image's configuration. Always there in an [`Kind::Image`].
    pub config: Option<Descriptor>,
    /// The layers as listed, foreign ones included; schema 1's newest first, and with repetitions. Of an OCI artifact
    /// manifest, its blobs.
    pub layers: Vec<Descriptor>,
    /// The children of an index.
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one refers to, which need not exist.
    pub subject: Option<Descriptor>,
    /// As stated; see [`Manifest::referrer_type`] for the type that the referrers API shows.
    pub artifact_type: Option<String>,
    /// Free key-value pairs.
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest that came with `content_type` (parameters are ignored).
    ///
    /// The media type is, in this order: the `mediaType` field; `content_type` if it names a kind of manifest; what the
    /// fields look like (`schemaVersion` 1 → schema 1, signed if there are signatures; `manifests` → OCI index; `config`
    /// or `layers` → OCI manifest); `content_type` whatever it is; octet-stream. A `schemaVersion` of 1 beats a
    /// `content_type`, since registries serve schema 1 as plain JSON, and a `content_type` of schema 1 is believed only
    /// with it.
    ///
    /// Time and memory are linear in `bytes`, and JSON nested deeper than 128 is refused; how long `bytes` may be is the
    /// caller's to bound.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, InvalidManifest> {
        // A derived reader would also take the fields in order from a list.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(InvalidManifest::NoObject);
        }
        let raw: Raw = serde_json::from_slice(bytes)?;
        let content_type = content_type.map(essence).filter(|text| !text.is_empty());
        let media_type = raw.media_type(content_type);
        let kind = kind_of(&media_type);
        raw.check(kind, &media_type)?;

        let fs_layers =
            raw.fs_layers.unwrap_or_default().0.into_iter().map(|layer| Descriptor::new(layer.blob_sum));
        // An OCI artifact manifest's list; in any other kind it is a stray key that no client reads.
        let blobs = raw.blobs.filter(|_| kind == Kind::Other);
        let lists = [raw.layers, blobs].into_iter().flatten().flat_map(|list| list.0);
        let manifest = Manifest {
            kind,
            media_type,
            config: raw.config,
            layers: fs_layers.chain(lists).collect(),
            manifests: raw.manifests.unwrap_or_default().0,
            subject: raw.subject,
            artifact_type: raw.artifact_type.filter(|text| !text.is_empty()),
            annotations: raw.annotations,
        };
        let single = usize::from(manifest.config.is_some()) + usize::from(manifest.subject.is_some());
        if manifest.layers.len() + manifest.manifests.len() + single > DESCRIPTORS_MAX {
            return Err(InvalidManifest::TooManyDescriptors);
        }
        Ok(manifest)
    }

    /// Reads a manifest that is to be kept whole, or collected around: one with keys that other readers take for those that
    /// are meant here is refused, since they would see more content in it. Otherwise as [`Manifest::parse`].
    pub fn parse_strict(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, InvalidManifest> {
        let manifest = Self::parse(bytes, content_type)?;
        match misspelt(bytes)? {
            Some((key, known)) => Err(InvalidManifest::Spelling { key: quoted(&key), known }),
            None => Ok(manifest),
        }
    }

    /// The blobs that a registry must hold for this manifest to be whole: config and layers, without foreign layers. A
    /// blob that is listed twice comes twice.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(self.layers.iter().filter(|layer| !layer.is_foreign()))
    }

    /// The artifact type that a list of referrers shows: the one stated, else the config's media type (OCI distribution
    /// specification 1.1, "Listing Referrers"). An index has only a stated one.
    pub fn referrer_type(&self) -> Option<&str> {
        let of_config = || self.config.as_ref()?.media_type.as_deref();
        self.artifact_type.as_deref().or_else(of_config)
    }
}

/// Bytes that are no manifest, or one that two readers could understand in two ways. The sender's fault:
/// `MANIFEST_INVALID` when a client sent it.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// It is something other than a JSON object.
    #[error("manifest is invalid: it is no JSON object")]
    NoObject,
    /// It is no JSON, a field has the wrong type, a digest is malformed, or a key is given twice; the message
    /// says where. More than [`DESCRIPTORS_MAX`] entries in one list end here, too.
    #[error("manifest is invalid: {0}")]
    Json(#[from] serde_json::Error),
    /// All lists together are too long.
    #[error("manifest is invalid: it has more than {DESCRIPTORS_MAX} descriptors")]
    TooManyDescriptors,
    /// A field that this kind of manifest must have is missing.
    #[error("manifest of type {media_type} is invalid: it has no {field}")]
    Missing {
        /// The manifest's media type, quoted.
        media_type: String,
        /// The missing field.
        field: &'static str,
    },
    /// A field that this kind of manifest cannot have, and that another kind is known by (CVE-2021-41190).
    #[error("manifest of type {media_type} is invalid: it must not have {field}")]
    Ambiguous {
        /// The manifest's media type, quoted.
        media_type: String,
        /// The field that does not belong.
        field: &'static str,
    },
    /// A key that some readers take for another one, which is spelled differently.
    #[error("manifest is invalid: some readers take its {key} for {known}")]
    Spelling {
        /// As it stands there, quoted.
        key: String,
        /// What it is taken for.
        known: &'static str,
    },
    /// The schema version is not the one that goes with the media type.
    #[error("manifest of type {media_type} is invalid: schemaVersion is {found}, not {expected}")]
    SchemaVersion {
        /// The manifest's media type, quoted.
        media_type: String,
        /// What it says.
        found: i64,
        /// What it must be.
        expected: i64,
    },
}

/// The fields of all kinds together, as they stand in the JSON; others are skipped. `null` counts as absent, since Go
/// writes empty lists so.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<i64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Bounded<Descriptor>>,
    blobs: Option<Bounded<Descriptor>>,
    manifests: Option<Bounded<Descriptor>>,
    fs_layers: Option<Bounded<FsLayer>>,
    signatures: Option<serde::de::IgnoredAny>,
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FsLayer {
    blob_sum: Digest,
}

impl Raw {
    fn media_type(&self, content_type: Option<&str>) -> String {
        let stated = self.media_type.as_deref().map(essence).filter(|text| !text.is_empty());
        let sent = content_type.filter(|text| matches!(kind_of(text), Kind::Image | Kind::Index));
        let inferred = || {
            if self.manifests.is_some() {
                Some(OCI_INDEX)
            } else {
                (self.config.is_some() || self.layers.is_some()).then_some(OCI_MANIFEST)
            }
        };
        let schema1 = match (self.schema_version, &self.signatures) {
            (Some(1), Some(_)) => Some(DOCKER_SCHEMA1_SIGNED),
            (Some(1), None) => Some(DOCKER_SCHEMA1),
            _ => None,
        };
        stated.or(schema1).or(sent).or_else(inferred).or(content_type).unwrap_or(OCTET_STREAM).to_owned()
    }

    /// Whether the fields go with the kind, so that no reader can take it for another.
    fn check(&self, kind: Kind, media_type: &str) -> Result<(), InvalidManifest> {
        let media_type = || quoted(media_type);
        let expected = match kind {
            Kind::Image | Kind::Index => 2,
            Kind::Schema1 => 1,
            Kind::Other => return Ok(()),
        };
        match self.schema_version {
            Some(found) if found != expected => {
                return Err(InvalidManifest::SchemaVersion { media_type: media_type(), found, expected });
            }
            _ => {}
        }
        let fields = [
            ("config", self.config.is_some(), Kind::Image),
            ("layers", self.layers.is_some(), Kind::Image),
            ("manifests", self.manifests.is_some(), Kind::Index),
            ("fsLayers", self.fs_layers.is_some(), Kind::Schema1),
        ];
        if let Some((field, ..)) = fields.into_iter().find(|(_, present, of)| *present && *of != kind) {
            return Err(InvalidManifest::Ambiguous { media_type: media_type(), field });
        }
        let missing = match kind {
            Kind::Image if self.config.is_none() => "config",
            Kind::Schema1 if self.fs_layers.is_none() => "fsLayers",
            _ => return Ok(()),
        };
        Err(InvalidManifest::Missing { media_type: media_type(), field: missing })
    }
}

fn kind_of(media_type: &str) -> Kind {
    let is = |known: &[&str]| known.iter().any(|known| known.eq_ignore_ascii_case(media_type));
    if is(&[DOCKER_MANIFEST, OCI_MANIFEST]) {
        Kind::Image
    } else if is(&[DOCKER_LIST, OCI_INDEX]) {
        Kind::Index
    } else if is(&[DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED]) {
        Kind::Schema1
    } else {
        Kind::Other
    }
}

/// A list of at most [`DESCRIPTORS_MAX`]; a longer one is refused while it is read, not after.
struct Bounded<T>(Vec<T>);

impl<T> Default for Bounded<T> {
    fn default() -> Bounded<T> {
        Bounded(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bounded<T>, D::Error> {
        struct List<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Bounded<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {DESCRIPTORS_MAX} descriptors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bounded<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if list.len() == DESCRIPTORS_MAX {
                        return Err(serde::de::Error::invalid_length(DESCRIPTORS_MAX + 1, &self));
                    }
                    list.push(item);
                }
                Ok(Bounded(list))
            }
        }

        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// What a fuzzer calls.
///
/// # Panics
/// If an accepted manifest breaks the bounds or the rules of its kind.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    for content_type in [None, Some(OCI_INDEX), Some("text/plain; charset=utf-8")] {
        let Ok(manifest) = Manifest::parse(data, content_type) else { continue };
        assert!(manifest.layers.len() + manifest.manifests.len() <= DESCRIPTORS_MAX);
        assert!(!manifest.media_type.is_empty());
        assert!(manifest.blobs().all(|blob| !blob.is_foreign() || Some(blob) == manifest.config.as_ref()));
        match manifest.kind {
            Kind::Image => assert!(manifest.config.is_some() && manifest.manifests.is_empty()),
            Kind::Index => assert!(manifest.config.is_none()),
            Kind::Schema1 => assert!(manifest.config.is_none() && manifest.manifests.is_empty()),
            Kind::Other => {}
        }
    }
}

#[cfg(test)]
mod tests;
