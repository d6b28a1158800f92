use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::oci::Algorithm;

fn digest(n: u8) -> Digest {
    Digest::of(Algorithm::Sha256, &[n])
}

fn descriptor(n: u8, media_type: &str) -> Value {
    json!({ "mediaType": media_type, "digest": digest(n), "size": n })
}

fn parse(value: &Value, content_type: Option<&str>) -> Result<Manifest, InvalidManifest> {
    Manifest::parse(value.to_string().as_bytes(), content_type)
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "config": descriptor(1, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(2, "application/vnd.oci.image.layer.v1.tar+gzip")],
    })
}

#[test]
fn an_image() {
    let mut value = image();
    value["mediaType"] = json!(DOCKER_MANIFEST);
    value["subject"] = descriptor(3, OCI_MANIFEST);
    value["annotations"] = json!({ "a": "b" });
    value["blobs"] = json!([descriptor(4, "a/b")]);
    let manifest = parse(&value, Some(OCI_INDEX)).unwrap();
    assert_eq!((manifest.kind, manifest.media_type.as_str()), (Kind::Image, DOCKER_MANIFEST));
    assert_eq!(manifest.blobs().map(|blob| blob.digest).collect::<Vec<_>>(), [digest(1), digest(2)]);
    assert_eq!(manifest.layers[0].size, Some(2));
    assert_eq!(manifest.subject.as_ref().unwrap().digest, digest(3));
    assert_eq!(manifest.annotations["a"], "b");
    assert_eq!(manifest.referrer_type(), Some("application/vnd.oci.image.config.v1+json"));
    value["artifactType"] = json!("x/y");
    assert_eq!(parse(&value, None).unwrap().referrer_type(), Some("x/y"));
}

#[test]
fn an_index() {
    let mut child = descriptor(1, OCI_MANIFEST);
    child["platform"] = json!({ "os": "linux", "architecture": "arm", "variant": "v7", "features": null });
    let value = json!({ "schemaVersion": 2, "manifests": [child, descriptor(2, OCI_MANIFEST)] });
    let manifest = parse(&value, None).unwrap();
    assert_eq!((manifest.kind, manifest.media_type.as_str()), (Kind::Index, OCI_INDEX));
    assert_eq!(manifest.blobs().count(), 0);
    assert_eq!(manifest.manifests.len(), 2);
    let platform = manifest.manifests[0].platform.as_ref().unwrap();
    assert_eq!((platform.os.as_str(), platform.variant.as_deref()), ("linux", Some("v7")));
    assert_eq!(serde_json::to_value(&manifest.manifests[1]).unwrap(), value["manifests"][1]);
    let list = parse(&value, Some(DOCKER_LIST)).unwrap();
    assert_eq!((list.kind, list.media_type.as_str()), (Kind::Index, DOCKER_LIST));
}

#[test]
fn schema_1() {
    let mut value = json!({
        "schemaVersion": 1, "name": "a", "tag": "b", "architecture": "amd64", "history": [{ "v1Compatibility": "{}" }],
        "fsLayers": [{ "blobSum": digest(1) }, { "blobSum": digest(1) }],
    });
    for content_type in [None, Some("application/json"), Some(DOCKER_MANIFEST)] {
        let manifest = parse(&value, content_type).unwrap();
        assert_eq!((manifest.kind, manifest.media_type.as_str()), (Kind::Schema1, DOCKER_SCHEMA1));
        assert_eq!(manifest.blobs().map(|blob| blob.digest).collect::<Vec<_>>(), [digest(1), digest(1)]);
    }
    value["signatures"] = json!([{ "header": {} }]);
    assert_eq!(parse(&value, None).unwrap().media_type, DOCKER_SCHEMA1_SIGNED);
}

#[test]
fn the_media_type_is_found_in_order() {
    for (field, content_type, expected) in [
        (Some(OCI_MANIFEST), Some(DOCKER_MANIFEST), OCI_MANIFEST),
        (None, Some(DOCKER_MANIFEST), DOCKER_MANIFEST),
        (
            Some(""),
            Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
            DOCKER_MANIFEST,
        ),
        (None, Some("application/json"), OCI_MANIFEST),
        (None, Some(DOCKER_SCHEMA1_SIGNED), OCI_MANIFEST),
        (None, Some(""), OCI_MANIFEST),
        (None, None, OCI_MANIFEST),
    ] {
        let mut value = image();
        value["mediaType"] = json!(field);
        assert_eq!(parse(&value, content_type).unwrap().media_type, expected, "{field:?} {content_type:?}");
    }
    assert_eq!(parse(&json!({}), Some("text/x; y")).unwrap().media_type, "text/x");
    assert_eq!(parse(&json!({}), None).unwrap().media_type, OCTET_STREAM);
}

#[test]
fn an_unknown_type_keeps_what_it_needs() {
    let value = json!({
        "mediaType": "application/vnd.oci.artifact.manifest.v1+json",
        "blobs": [descriptor(1, "a/b")], "subject": descriptor(2, OCI_MANIFEST), "manifests": [descriptor(3, "c/d")],
    });
    let manifest = parse(&value, None).unwrap();
    assert_eq!(manifest.kind, Kind::Other);
    assert_eq!(manifest.blobs().next().unwrap().digest, digest(1));
    assert_eq!((manifest.manifests.len(), manifest.subject.is_some()), (1, true));
}

#[test]
fn foreign_layers_are_no_blobs() {
    let mut value = image();
    let with_urls = |n, media_type: &str, urls: Value| {
        let mut layer = descriptor(n, media_type);
        layer["urls"] = urls;
        layer
    };
    value["layers"] = json!([
        with_urls(2, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", json!(["https://x"])),
        with_urls(3, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", json!(["https://x"])),
        with_urls(4, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", json!(null)),
        with_urls(5, "application/vnd.oci.image.layer.v1.tar+gzip", json!(["https://x"])),
    ]);
    let manifest = parse(&value, None).unwrap();
    assert_eq!(manifest.layers.len(), 4);
    assert_eq!(
        manifest.blobs().map(|blob| blob.digest).collect::<Vec<_>>(),
        [digest(1), digest(4), digest(5)]
    );
}

#[test]
fn refuses_what_is_ambiguous_or_broken() {
    let mut cases = Vec::new();
    let mut case = |edit: &[(&str, Value)], message: &'static str| {
        let mut value = image();
        for (field, content) in edit {
            value[*field] = content.clone();
        }
        cases.push((value.to_string(), message));
    };
    let children = || json!([descriptor(3, OCI_MANIFEST)]);
    case(&[("manifests", children()), ("mediaType", json!(OCI_MANIFEST))], "must not have manifests");
    case(&[("manifests", children())], "must not have config");
    case(&[("mediaType", json!(OCI_INDEX)), ("config", json!(null))], "must not have layers");
    case(&[("fsLayers", json!([]))], "must not have fsLayers");
    case(&[("config", json!(null))], "has no config");
    case(&[("schemaVersion", json!(1))], "must not have config");
    case(&[("schemaVersion", json!(1)), ("mediaType", json!(OCI_MANIFEST))], "schemaVersion is 1, not 2");
    case(&[("schemaVersion", json!("2"))], "invalid type");
    case(&[("config", json!({ "digest": "sha256:0" }))], "64 lower-case");
    case(&[("config", json!({ "mediaType": "a/b" }))], "missing field `digest`");
    case(&[("layers", json!({}))], "a list of at most 10000 descriptors");
    cases.push((r#"{"schemaVersion":1}"#.to_owned(), "has no fsLayers"));
    cases.push((r#"{"layers":[],"layers":[]}"#.to_owned(), "duplicate field"));
    cases.push((format!("[2{}]", ",null".repeat(9) + ",{}"), "no JSON object"));
    cases.push((String::new(), "no JSON object"));
    cases.push(("{".to_owned(), "EOF"));
    cases.push(("{} {}".to_owned(), "trailing"));
    cases.push((format!(r#"{{"config":{}"#, r#"{"platform":"#.repeat(100_000)), "invalid"));
    cases.push((format!(r#"{{"x":{}"#, "[".repeat(100_000)), "invalid"));
    for (text, message) in cases {
        let error = Manifest::parse(text.as_bytes(), None).expect_err(message).to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn the_number_of_descriptors_is_bounded() {
    let with_layers = |count: usize| {
        let mut value = image();
        value["layers"] = json!(vec![descriptor(2, "a/b"); count]);
        parse(&value, None).map(|manifest| manifest.layers.len())
    };
    assert_eq!(with_layers(DESCRIPTORS_MAX - 1).unwrap(), DESCRIPTORS_MAX - 1);
    assert!(matches!(with_layers(DESCRIPTORS_MAX), Err(InvalidManifest::TooManyDescriptors)));
    assert!(matches!(with_layers(DESCRIPTORS_MAX + 1), Err(InvalidManifest::Json(_))));
}

proptest! {
    /// Any mixture of fields: whatever is accepted keeps the rules of its kind.
    #[test]
    fn survives_any_mixture(fields in proptest::sample::subsequence(vec![
        ("schemaVersion", json!(2)), ("schemaVersion", json!(1)), ("mediaType", json!(OCI_MANIFEST)),
        ("mediaType", json!(DOCKER_LIST)), ("config", descriptor(1, "a/b")), ("layers", json!([descriptor(2, "a/b")])),
        ("layers", json!(null)), ("manifests", json!([])), ("fsLayers", json!([])), ("blobs", json!([])),
        ("signatures", json!([])), ("subject", descriptor(3, "a/b")), ("x", json!([1, {}])),
    ], 0..13)) {
        let body: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        fuzz_entry(format!("{{{}}}", body.join(",")).as_bytes());
    }

    #[test]
    fn survives_anything(data: Vec<u8>) {
        fuzz_entry(&data);
    }
}
