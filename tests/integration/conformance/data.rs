//! The suite's kinds of content, each through its whole life: pushed in every way, listed, asked for by HEAD and GET,
//! referred to, deleted.

use serde_json::{Map, Value, json};

use super::uploads::upload;
use super::{WAYS, registry};
use crate::support::images::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::support::push::Repository;
use crate::support::{noise, sha256, sha512};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const EXAMPLE: &str = "application/vnd.example.oci.conformance";
const OTHER_EXAMPLE: &str = "application/vnd.example.oci.conformance.v2";

type Digest = fn(&[u8]) -> String;

/// Content to be pushed, in an order in which nothing names what is not there.
struct Content {
    digest: Digest,
    seed: u64,
    blobs: Vec<Vec<u8>>,
    manifests: Vec<(&'static str, Vec<u8>)>,
    tags: Vec<(String, String)>,
    /// Subject, and the entry that its list of referrers must have.
    referrers: Vec<(String, Value)>,
}

impl Content {
    fn new(digest: Digest) -> Self {
        let (blobs, manifests, tags, referrers) = Default::default();
        Self { digest, seed: fastrand::u64(..), blobs, manifests, tags, referrers }
    }

    fn describe(&self, media_type: &str, bytes: &[u8]) -> Value {
        json!({"mediaType": media_type, "digest": (self.digest)(bytes), "size": bytes.len()})
    }

    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let described = self.describe(media_type, &bytes);
        self.blobs.push(bytes);
        described
    }

    fn noise(&mut self) -> Vec<u8> {
        self.seed = self.seed.wrapping_add(1);
        noise(self.seed, 2048)
    }

    fn config(&mut self) -> Value {
        let id = data_encoding::HEXLOWER.encode(&self.noise()[..16]);
        let config = json!({"architecture": "amd64", "os": "linux", "id": id, "rootfs": {"type": "layers"}});
        self.blob(OCI_CONFIG, config.to_string().into_bytes())
    }

    /// An image of `layers` layers with further fields; its descriptor.
    fn image(&mut self, layers: usize, more: Value) -> Value {
        let config = self.config();
        let layers: Vec<Value> = (0..layers)
            .map(|_| {
                let bytes = self.noise();
                self.blob(OCI_LAYER, bytes)
            })
            .collect();
        self.manifest(OCI_MANIFEST, json!({"config": config, "layers": layers}), more)
    }

    fn artifact(&mut self, artifact_type: &str, more: Value) -> Value {
        let config = self.blob(EMPTY, b"{}".to_vec());
        let bytes = self.noise();
        let layer = self.blob(EXAMPLE, bytes);
        let body = json!({"config": config, "layers": [layer], "artifactType": artifact_type});
        self.manifest(OCI_MANIFEST, body, more)
    }

    fn index(&mut self, children: &[Value], more: Value) -> Value {
        self.manifest(OCI_INDEX, json!({"manifests": children}), more)
    }

    fn manifest(&mut self, media_type: &'static str, body: Value, more: Value) -> Value {
        let mut manifest = Map::from_iter([
            ("schemaVersion".to_owned(), json!(2)),
            ("mediaType".to_owned(), json!(media_type)),
        ]);
        for part in [body, more] {
            manifest.extend(part.as_object().cloned().unwrap_or_default());
        }
        let bytes = Value::Object(manifest.clone()).to_string().into_bytes();
        let mut described = self.describe(media_type, &bytes);
        let digest = described["digest"].clone();
        self.manifests.push((media_type, bytes));
        if let Some(subject) = manifest.get("subject") {
            let mut entry = described.clone();
            let kind = manifest.get("artifactType").or_else(|| manifest.get("config")?.get("mediaType"));
            for (key, value) in [("artifactType", kind), ("annotations", manifest.get("annotations"))] {
                if let Some(value) = value {
                    entry[key] = value.clone();
                }
            }
            self.referrers.push((text(&subject["digest"]), entry));
        }
        if media_type == OCI_MANIFEST {
            described["platform"] = json!({"os": "linux", "architecture": "amd64"});
        }
        assert_eq!(described["digest"], digest);
        described
    }

    fn tag(&mut self, name: &str, manifest: &Value) {
        self.tags.push((name.to_owned(), text(&manifest["digest"])));
    }

    /// From the first push to the last deletion.
    fn lives(&self) {
        let (_spliceway, repository) = registry();
        self.push(&repository);
        self.check_tags(&repository);
        self.check_content(&repository);
        self.check_referrers(&repository);
        self.delete(&repository);
    }

    fn push(&self, repository: &Repository) {
        let ways = WAYS.iter().cycle();
        for (bytes, way) in self.blobs.iter().zip(ways) {
            let digest = (self.digest)(bytes);
            let answer = upload(repository, *way, "", &digest, bytes).0.expect(201);
            repository.assert_location(&answer, bytes);
        }
        for (media_type, bytes) in &self.manifests {
            let digest = (self.digest)(bytes);
            let answer = repository.put(&digest, media_type, bytes).expect(201);
            assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
            repository.assert_location(&answer, bytes);
            let subject = self.referrers.iter().find(|(_, entry)| entry["digest"] == digest);
            assert_eq!(answer.header("oci-subject"), subject.map(|(subject, _)| subject.as_str()));
        }
        for (tag, digest) in &self.tags {
            let (media_type, bytes) = self.named(digest);
            // A digest of another algorithm than the usual one has to be said.
            let answer = if digest.starts_with("sha256:") {
                repository.put(tag, media_type, bytes)
            } else {
                repository.put(&format!("{digest}?tag={tag}"), media_type, bytes)
            };
            let answer = answer.expect(201);
            repository.assert_location(&answer, bytes);
        }
    }

    fn named(&self, digest: &str) -> (&'static str, &[u8]) {
        let found = self.manifests.iter().find(|(_, bytes)| (self.digest)(bytes) == digest);
        let (media_type, bytes) = found.expect("one of these");
        (media_type, bytes)
    }

    fn check_tags(&self, repository: &Repository) {
        let mut names: Vec<_> = self.tags.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        assert_eq!(repository.tag_names(""), names);
        for (at, name) in names.iter().enumerate() {
            assert_eq!(repository.tag_names(&format!("?last={name}")), names[at + 1..]);
        }
    }

    fn check_content(&self, repository: &Repository) {
        let by_digest = self.manifests.iter().map(|(_, bytes)| (self.digest)(bytes));
        let references = by_digest.clone().zip(by_digest).chain(self.tags.iter().cloned());
        for (reference, digest) in references {
            let (media_type, bytes) = self.named(&digest);
            let got = repository.manifest(&reference).expect(200).expect_body(bytes);
            let head = repository.head_manifest(&reference).expect(200);
            for answer in [got, head] {
                assert_eq!(answer.header("content-type"), Some(media_type));
                assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
                assert_eq!(answer.header("content-length"), Some(bytes.len().to_string().as_str()));
            }
        }
        for bytes in &self.blobs {
            let digest = (self.digest)(bytes);
            repository.blob(&digest).expect(200).expect_body(bytes);
            let head = repository.head_blob(&digest).expect(200);
            assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
            assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()));
        }
    }

    fn check_referrers(&self, repository: &Repository) {
        for (subject, wanted) in &self.referrers {
            let list = repository.referrers(subject, "").expect(200).json();
            let listed = list["manifests"].as_array().expect("a list");
            let of_subject = self.referrers.iter().filter(|(other, _)| other == subject).count();
            assert_eq!(listed.len(), of_subject, "{list}");
            assert!(listed.contains(wanted), "{wanted} is not in {list}");
            let Some(kind) = wanted["artifactType"].as_str() else { continue };
            let query = format!("?artifactType={}", kind.replace('/', "%2F").replace('+', "%2B"));
            let filtered = repository.referrers(subject, &query).expect(200);
            assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
            let list = filtered.json();
            let listed = list["manifests"].as_array().expect("a list");
            assert!(listed.contains(wanted), "{wanted} is not in {list}");
            assert!(listed.iter().all(|entry| entry["artifactType"] == kind), "{list}");
        }
    }

    fn delete(&self, repository: &Repository) {
        for (tag, digest) in &self.tags {
            repository.delete_manifest(tag).expect(202);
            repository.head_manifest(tag).expect(404);
            repository.head_manifest(digest).expect(200);
        }
        for (_, bytes) in self.manifests.iter().rev() {
            let digest = (self.digest)(bytes);
            repository.delete_manifest(&digest).expect(202);
            repository.head_manifest(&digest).expect(404);
        }
        for (subject, _) in &self.referrers {
            let list = repository.referrers(subject, "").expect(200).json();
            assert_eq!(list["manifests"], json!([]));
        }
        let mut digests: Vec<String> = self.blobs.iter().map(|bytes| (self.digest)(bytes)).collect();
        digests.sort();
        digests.dedup();
        for digest in digests {
            repository.delete_blob(&digest).expect(202);
            repository.head_blob(&digest).expect(404);
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn annotated(note: &str, subject: &Value) -> Value {
    let mut subject = subject.clone();
    subject.as_object_mut().expect("a descriptor").remove("platform");
    json!({"annotations": {"org.opencontainers.conformance": note}, "subject": subject})
}

#[test]
fn image() {
    let mut content = Content::new(sha256);
    let image = content.image(5, json!({}));
    content.tag("image", &image);
    let bare = content.image(0, json!({}));
    content.tag("no-layers", &bare);
    content.lives();
}

#[test]
fn image_with_a_large_manifest() {
    let mut content = Content::new(sha256);
    let annotations: Map<String, Value> =
        (0..390).map(|number| (format!("large-{number}"), "A".repeat(10_000).into())).collect();
    let image = content.image(2, json!({"annotations": annotations}));
    content.tag("large-manifest", &image);
    content.lives();
}

#[test]
fn indexes() {
    let mut content = Content::new(sha256);
    let mut tops = Vec::new();
    for number in 0..2 {
        let children = [content.image(2, json!({})), content.image(1, json!({}))];
        let top = content.index(&children, json!({}));
        content.tag(&format!("index-{number}"), &top);
        tops.push(top);
    }
    let nested = content.index(&tops, json!({}));
    content.tag("index-of-index", &nested);
    let empty = content.index(&[], json!({}));
    content.tag("empty-index", &empty);
    content.lives();
}

#[test]
fn artifacts() {
    let mut content = Content::new(sha256);
    let artifact = content.artifact(EXAMPLE, json!({}));
    content.tag("artifact", &artifact);
    let config = content.blob(EMPTY, b"{}".to_vec());
    let body = json!({"config": config, "layers": [config], "artifactType": EXAMPLE});
    let bare = content.manifest(OCI_MANIFEST, body, json!({}));
    content.tag("artifact-without-layers", &bare);
    let top = content.index(&[artifact, bare], json!({"artifactType": EXAMPLE}));
    content.tag("artifact-index", &top);
    content.lives();
}

#[test]
fn artifacts_with_a_subject() {
    let mut content = Content::new(sha256);
    let image = content.image(1, json!({}));
    content.tag("image", &image);
    content.image(1, annotated("an image about an image", &image));
    let first = content.artifact(EXAMPLE, annotated("first", &image));
    content.tag("tagged-artifact1", &first);
    let second = content.artifact(OTHER_EXAMPLE, annotated("second", &image));
    content.tag("tagged-artifact2", &second);
    // An artifact about an artifact.
    content.artifact(EXAMPLE, annotated("of the first", &first));
    content.lives();
}

#[test]
fn indexes_with_a_subject() {
    let mut content = Content::new(sha256);
    let child = content.image(1, json!({}));
    let top = content.index(&[child], json!({}));
    content.tag("index", &top);
    let artifact = content.artifact(EXAMPLE, json!({}));
    let mut about = annotated("an index about an index", &top);
    content.index(std::slice::from_ref(&artifact), about.clone());
    about["artifactType"] = EXAMPLE.into();
    let about = content.index(&[artifact], about);
    content.tag("tagged-artifact", &about);
    content.lives();
}

#[test]
fn artifact_whose_subject_is_missing() {
    let mut content = Content::new(sha256);
    let missing = content.describe(OCI_MANIFEST, b"missing content");
    let artifact = content.artifact(EXAMPLE, annotated("early", &missing));
    content.tag("tagged-artifact", &artifact);
    content.lives();
}

#[test]
fn fields_that_nobody_knows_and_data_within_descriptors() {
    let mut content = Content::new(sha256);
    let custom = json!({"org.opencontainers.conformance.custom": {"a": [1, "two", null]}});
    let child = content.image(1, custom.clone());
    let top = content.index(&[child], custom);
    content.tag("custom-fields", &top);
    let mut config = content.config();
    let bytes = content.blobs.last().expect("just made");
    config["data"] = data_encoding::BASE64.encode(bytes).into();
    let image = content.manifest(OCI_MANIFEST, json!({"config": config, "layers": []}), json!({}));
    content.tag("data-field", &image);
    content.lives();
}

#[test]
fn layers_that_are_not_distributed() {
    let mut content = Content::new(sha256);
    let config = content.config();
    let bytes = content.noise();
    let layer = content.blob(OCI_LAYER, bytes);
    let absent = |content: &mut Content, kind: &str| {
        let bytes = content.noise();
        let mut layer =
            content.describe(&format!("application/vnd.oci.image.layer.nondistributable.v1.{kind}"), &bytes);
        layer["urls"] = json!(["https://store.example.com/blobs/x"]);
        layer
    };
    let layers = json!([absent(&mut content, "tar+gzip"), absent(&mut content, "tar"), layer]);
    let image = content.manifest(OCI_MANIFEST, json!({"config": config, "layers": layers}), json!({}));
    content.tag("non-distributable-image", &image);
    content.lives();
}

#[test]
fn everything_by_sha512() {
    let mut content = Content::new(sha512);
    let children = [content.image(2, json!({})), content.image(1, json!({}))];
    let top = content.index(&children, json!({}));
    content.tag("sha512", &top);
    content.artifact(EXAMPLE, annotated("about it", &top));
    content.lives();
}
