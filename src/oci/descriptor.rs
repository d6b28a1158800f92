//! Descriptors: how one piece of content refers to another (OCI image specification 1.1, "descriptor.md").

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// A reference to content: by digest, with what is said about it (OCI image specification, "descriptor.md").
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The content's media type. Absent in schema 1, and then unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What the content hashes to.
    pub digest: Digest,
    /// The content's length in bytes, as claimed. Absent in schema 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Where else the content can be had; as claimed, and nothing here ever follows them.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// What machine an index's child is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What kind of artifact a manifest describes; in the descriptors that make up a list of referrers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free key-value pairs.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor that says nothing but the digest.
    pub fn new(digest: Digest) -> Descriptor {
        Descriptor {
            media_type: None,
            digest,
            size: None,
            urls: Vec::new(),
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Whether it names a layer that registries are not given: one of a foreign (Docker) or non-distributable (OCI)
    /// media type that says where else it is. Without such a place even these must be in the registry.
    pub fn is_foreign(&self) -> bool {
        let by_type =
            |media_type: &str| media_type.contains(".foreign.") || media_type.contains(".nondistributable.");
        !self.urls.is_empty() && self.media_type.as_deref().is_some_and(by_type)
    }
}

/// The machine that an image is for, in the words of Go's GOOS and GOARCH; empty where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Platform {
    /// Operating system: `linux`, `windows`, `unknown` for attestations.
    pub os: String,
    /// Processor: `amd64`, `arm64`, …
    pub architecture: String,
    /// Which kind of that processor: `v7`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The least version of the operating system; Windows images have it.
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

/// Reads `null` as the default.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn survives_reading_and_writing() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let value = json!({
            "mediaType": "a/b", "digest": digest, "size": 7, "urls": ["https://x"], "artifactType": "c/d",
            "platform": { "os": "windows", "architecture": "amd64", "os.version": "10.0" },
            "annotations": { "k": "v" },
        });
        let descriptor: Descriptor = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&descriptor).unwrap(), value);
        assert_eq!(serde_json::to_value(Descriptor::new(digest)).unwrap(), json!({ "digest": digest }));
    }

    #[test]
    fn null_is_absent_and_a_bad_field_is_an_error() {
        let digest = Digest::of(Algorithm::Sha512, b"");
        let nulls =
            json!({ "digest": digest, "mediaType": null, "size": null, "urls": null, "annotations": null });
        assert_eq!(serde_json::from_value::<Descriptor>(nulls).unwrap(), Descriptor::new(digest));
        for bad in [json!({}), json!({ "digest": "x" }), json!({ "digest": digest, "size": -1 })] {
            assert!(serde_json::from_value::<Descriptor>(bad.clone()).is_err(), "{bad}");
        }
    }
}
