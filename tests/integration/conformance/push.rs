//! Pushing manifests: by tag and digest, what is refused and why, several tags at once.

use serde_json::{Value, json};

use super::registry;
use crate::support::client::Connection;
use crate::support::images::{
    DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, descriptor, index,
};
use crate::support::push::{Repository, assert_tree_is_right};
use crate::support::{MIB, PATIENCE, noise, sha256, sha512};

/// The limit unless one is configured, and the least that every registry should take.
const MANIFEST_MAX: usize = 4 * MIB;

/// The answer to a PUT that was accepted: what it must say, and that it is so.
#[track_caller]
fn assert_accepted(repository: &Repository, reference: &str, media_type: &str, bytes: &[u8]) {
    let digest = sha256(bytes);
    let answer = repository.put(reference, media_type, bytes).expect(201);
    assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()), "{answer}");
    repository.assert_location(&answer, bytes);
    for reference in [reference, &digest] {
        let got = repository.manifest(reference).expect(200).expect_body(bytes);
        assert_eq!(got.header("content-type"), Some(media_type), "{got}");
        assert_eq!(got.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(got.header("content-length"), Some(bytes.len().to_string().as_str()));
        let head = repository.head_manifest(reference).expect(200);
        assert!(head.body.is_empty());
        for name in ["content-type", "docker-content-digest", "content-length", "etag"] {
            assert_eq!(head.header(name), got.header(name), "{name}");
        }
    }
}

/// A manifest that is refused leaves nothing.
#[track_caller]
fn assert_refused(repository: &Repository, media_type: &str, bytes: &[u8], status: u16, code: &str) {
    let digest = sha256(bytes);
    for reference in ["refused", digest.as_str()] {
        repository.put(reference, media_type, bytes).expect_error(status, code);
        repository.manifest(reference).expect(404);
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[test]
fn manifests_are_put_by_tag_and_by_digest() {
    let (spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100, 70_000]);
    repository.push_blobs(&image);
    for number in 0..4 {
        assert_accepted(&repository, &format!("test{number}"), OCI_MANIFEST, &image.manifest);
    }
    let other = Image::new(5, "arm64", &[100]);
    repository.push_blobs(&other);
    assert_accepted(&repository, &other.digest(), OCI_MANIFEST, &other.manifest);
    // A tag moves; what it pointed at is still there by digest.
    assert_accepted(&repository, "test0", OCI_MANIFEST, &other.manifest);
    repository.assert_holds("test1", &image);
    repository.manifest(&image.digest()).expect(200);
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn every_type_of_manifest_is_stored_as_it_came() {
    let (_spliceway, repository) = registry();
    let images = [Image::new(1, "amd64", &[100]), Image::new(2, "arm64", &[200])];
    for image in &images {
        repository.push_blobs(image);
        assert_accepted(&repository, &image.digest(), OCI_MANIFEST, &image.manifest);
    }
    let top = index(&images);
    assert_accepted(&repository, "index", OCI_INDEX, &top);
    let nested =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_INDEX, &top)]});
    assert_accepted(&repository, "nested", OCI_INDEX, &bytes(&nested));
    let empty = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    assert_accepted(&repository, "empty", OCI_INDEX, &bytes(&empty));

    let config = descriptor("application/vnd.docker.container.image.v1+json", &images[0].blobs[0]);
    let layer = descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", images[0].layer(0));
    let docker = json!({
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": [layer],
    });
    // Indented as Docker writes it, and with a line at the end: no byte may change.
    let docker = format!("{docker:#}\n").into_bytes();
    assert_accepted(&repository, "docker", DOCKER_MANIFEST, &docker);
    let list = json!({
        "schemaVersion": 2, "mediaType": DOCKER_LIST,
        "manifests": [{"mediaType": DOCKER_MANIFEST, "digest": sha256(&docker), "size": docker.len(),
                       "platform": {"os": "linux", "architecture": "amd64"}}],
    });
    assert_accepted(&repository, "list", DOCKER_LIST, &bytes(&list));
    // OCI manifests need not say their type.
    let silent = json!({
        "schemaVersion": 2, "config": descriptor(OCI_CONFIG, &images[0].blobs[0]), "layers": [],
    });
    assert_accepted(&repository, "silent", OCI_MANIFEST, &bytes(&silent));
}

#[test]
fn schema_1_is_stored_as_it_came() {
    const SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let (_spliceway, repository) = registry();
    let layer = repository.push(&noise(1, 1000));
    let manifest = json!({
        "schemaVersion": 1, "name": "team/app", "tag": "old", "architecture": "amd64",
        "fsLayers": [{"blobSum": layer}], "history": [{"v1Compatibility": "{\"id\":\"x\"}"}],
        "signatures": [{"header": {"alg": "ES256"}, "signature": "c2ln", "protected": "cHJv"}],
    });
    let manifest = format!("{manifest:#}").into_bytes();
    repository.put("old", SIGNED, &manifest).expect(201);
    let answer = repository.manifest("old").expect(200).expect_body(&manifest);
    assert_eq!(answer.header("content-type"), Some(SIGNED));
}

#[test]
fn unusual_but_valid_manifests_are_accepted() {
    let (_spliceway, repository) = registry();
    let config = b"{}";
    repository.push(config);
    let layer = noise(1, 5000);
    repository.push(&layer);
    let base = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config), "layers": [descriptor(OCI_LAYER, &layer)],
    });
    let change = |key: &str, value: Value| {
        let mut changed = base.clone();
        changed[key] = value;
        bytes(&changed)
    };
    assert_accepted(&repository, "no-layers", OCI_MANIFEST, &change("layers", json!([])));
    let extra = change("org.example.custom", json!({"deep": [1, 2, {"a": null}]}));
    assert_accepted(&repository, "custom-fields", OCI_MANIFEST, &extra);
    let mut data = descriptor(OCI_CONFIG, config);
    data["data"] = data_encoding::BASE64.encode(config).into();
    assert_accepted(&repository, "data-field", OCI_MANIFEST, &change("config", data));
    // Layers that are not to be distributed need not be there.
    for kind in ["tar", "tar+gzip", "tar+zstd"] {
        let foreign = json!([{
            "mediaType": format!("application/vnd.oci.image.layer.nondistributable.v1.{kind}"),
            "digest": sha256(kind.as_bytes()), "size": 12_345, "urls": ["https://store.example.com/x"],
        }, descriptor(OCI_LAYER, &layer)]);
        assert_accepted(&repository, "foreign", OCI_MANIFEST, &change("layers", foreign));
    }
    let foreign = json!([{
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": sha256(b"windows"), "size": 12_345, "urls": ["https://store.example.com/x"],
    }]);
    let mut docker = base.clone();
    docker["mediaType"] = DOCKER_MANIFEST.into();
    docker["layers"] = foreign;
    assert_accepted(&repository, "windows", DOCKER_MANIFEST, &bytes(&docker));
    // A parameter of Content-Type is ignored.
    let manifest = bytes(&base);
    repository.put("parameter", &format!("{OCI_MANIFEST}; charset=utf-8"), &manifest).expect(201);
    let answer = repository.manifest("parameter").expect(200).expect_body(&manifest);
    assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST));
    // So is its length being left open.
    let request = repository.request("PUT", "manifests/chunked").header("Content-Type", OCI_MANIFEST);
    repository.send(&request.chunked(&manifest[..], 100)).expect(201);
    repository.manifest("chunked").expect(200).expect_body(&manifest);
}

#[test]
fn a_manifest_that_names_what_is_not_there_is_refused() {
    let (spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100, 200]);
    for missing in 0..image.blobs.len() {
        let repository = repository.named(&format!("missing/{missing}"));
        for (number, blob) in image.blobs.iter().enumerate() {
            if number != missing {
                repository.push(blob);
            }
        }
        assert_refused(&repository, OCI_MANIFEST, &image.manifest, 400, "MANIFEST_BLOB_UNKNOWN");
        // Once it is there, all is well.
        repository.push(&image.blobs[missing]);
        assert_accepted(&repository, "v1", OCI_MANIFEST, &image.manifest);
    }
    // That another repository has it does not count, and is not told.
    assert_refused(&repository, OCI_MANIFEST, &image.manifest, 400, "MANIFEST_BLOB_UNKNOWN");
    let top = index(&[image]);
    assert_refused(&repository, OCI_INDEX, &top, 400, "MANIFEST_BLOB_UNKNOWN");
    assert_refused(&repository.named("fresh/app"), OCI_INDEX, &top, 400, "MANIFEST_BLOB_UNKNOWN");
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn a_manifest_under_another_digest_is_refused() {
    let (_spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    repository.push_blobs(&image);
    let longer = [&image.manifest[..], b"  "].concat();
    for digest in [sha256(b"something else"), image.digest(), sha512(&image.manifest)] {
        repository.put(&digest, OCI_MANIFEST, &longer).expect_error(400, "DIGEST_INVALID");
        repository.manifest(&digest).expect(404);
    }
    repository.manifest(&sha256(&longer)).expect(404);
}

#[test]
fn a_manifest_that_is_none_is_refused() {
    let (_spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    repository.push_blobs(&image);
    let whole = String::from_utf8(image.manifest.clone()).expect("JSON");
    let broken: [&[u8]; 9] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\"text\"",
        b"\xff\xfe{}",
        &image.manifest[..image.manifest.len() - 1],
        &[&image.manifest[..], b"{}"].concat(),
        &b"[".repeat(100_000),
    ];
    for text in broken {
        let quoted = String::from_utf8_lossy(&text[..text.len().min(20)]).into_owned();
        eprintln!("trying {quoted}");
        assert_refused(&repository, OCI_MANIFEST, text, 400, "MANIFEST_INVALID");
    }
    let wrong = [
        whole.replace("\"config\":{", "\"config\":[{").replace("},\"layers\"", "}],\"layers\""),
        whole.replace("sha256:", "sha256-"),
        whole.replace("\"size\":", "\"size\":-"),
        whole.replace("\"layers\":[", "\"layers\":[3,"),
    ];
    for text in wrong {
        assert_ne!(text, whole);
        let answer = repository.put("refused", OCI_MANIFEST, text.as_bytes()).expect(400);
        let code = answer.error_code();
        assert!(matches!(code.as_str(), "MANIFEST_INVALID" | "DIGEST_INVALID"), "{text}: {answer}");
        repository.manifest("refused").expect(404);
    }
}

/// A manifest of exactly `len` bytes.
fn padded(image: &Image, len: usize) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).expect("JSON");
    manifest["annotations"] = json!({"padding": ""});
    let padding = len - manifest.to_string().len();
    manifest["annotations"] = json!({"padding": "A".repeat(padding)});
    bytes(&manifest)
}

#[test]
fn large_manifests_are_accepted_up_to_the_limit() {
    let (_spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    repository.push_blobs(&image);
    for len in [100_000, 3_900_000, MANIFEST_MAX] {
        let manifest = padded(&image, len);
        assert_eq!(manifest.len(), len);
        assert_accepted(&repository, "large", OCI_MANIFEST, &manifest);
    }
    let last = repository.manifest("large").expect(200).body;
    for len in [MANIFEST_MAX + 1, 3 * MANIFEST_MAX] {
        let manifest = padded(&image, len);
        for reference in ["large", sha256(&manifest).as_str()] {
            let request = repository.put_request(reference, OCI_MANIFEST, &manifest);
            let chunked = request.clone().chunked(&manifest[..], 60_000);
            for request in [request, chunked] {
                let answer = repository.send(&request);
                assert_eq!(answer.status(), 413, "{answer}");
                assert!(matches!(answer.error_code().as_str(), "SIZE_INVALID" | "MANIFEST_INVALID"));
            }
        }
    }
    repository.manifest("large").expect(200).expect_body(&last);
    // One that only claims to be large is refused without waiting for it.
    let claim = repository.request("PUT", "manifests/large").header("Content-Type", OCI_MANIFEST);
    let mut connection = Connection::open(repository.addr());
    let head = claim.header("Content-Length", "9000000000000000000").bytes(repository.addr());
    connection.write(&head).expect("the head is written");
    assert!(connection.is_answered_within(PATIENCE));
    assert_eq!(connection.exchange("PUT").expect("an answer").status(), 413);
}

#[test]
fn several_tags_are_put_at_once() {
    let (spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    repository.push_blobs(&image);
    let names: Vec<String> = (0..10).map(|number| format!("1.{number}")).collect();
    let query: Vec<String> = names.iter().map(|name| format!("tag={name}")).collect();
    let reference = format!("{}?{}", image.digest(), query.join("&"));
    let answer = repository.put(&reference, OCI_MANIFEST, &image.manifest).expect(201);
    assert_eq!(answer.header("docker-content-digest"), Some(image.digest().as_str()));
    let mut accepted = answer.header_values("oci-tag");
    accepted.sort_unstable();
    assert_eq!(accepted, names);
    assert_eq!(repository.tag_names(""), names);
    for name in &names {
        repository.manifest(name).expect(200).expect_body(&image.manifest);
    }
    // One bad name refuses all, before anything is written.
    let reference = format!("{}?tag=good&tag=.bad", image.digest());
    repository.put(&reference, OCI_MANIFEST, &image.manifest).expect_error(400, "TAG_INVALID");
    repository.manifest("good").expect(404);
    // No tag, no header.
    let answer = repository.put(&image.digest(), OCI_MANIFEST, &image.manifest).expect(201);
    assert!(answer.header_values("oci-tag").is_empty(), "{answer}");
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn manifests_are_put_by_sha512() {
    let (_spliceway, repository) = registry();
    let config = b"{}".to_vec();
    let layer = noise(1, 5000);
    for blob in [&config, &layer] {
        repository.push_as(blob, &sha512(blob));
    }
    let described =
        |kind: &str, blob: &[u8]| json!({"mediaType": kind, "digest": sha512(blob), "size": blob.len()});
    let manifest = bytes(&json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": described(OCI_CONFIG, &config), "layers": [described(OCI_LAYER, &layer)],
    }));
    let top = bytes(&json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described(OCI_MANIFEST, &manifest)],
    }));
    for (kind, manifest) in [(OCI_MANIFEST, &manifest), (OCI_INDEX, &top)] {
        let digest = sha512(manifest);
        let reference = format!("{digest}?tag=long");
        let answer = repository.put(&reference, kind, manifest).expect(201);
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()), "{answer}");
        repository.assert_location(&answer, manifest);
        for reference in [digest.as_str(), "long"] {
            let got = repository.manifest(reference).expect(200).expect_body(manifest);
            assert_eq!(got.header("docker-content-digest"), Some(digest.as_str()), "{reference}");
            assert_eq!(got.header("content-type"), Some(kind));
        }
    }
    repository.delete_manifest(&sha512(&top)).expect(202);
    repository.manifest("long").expect(404);
}

#[test]
fn names_that_are_none_are_refused() {
    let (_spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[]);
    let long = format!("a/{}", "b".repeat(254));
    for name in ["Team/app", "team//app", "team/-app", "team/app-", "te..am", long.as_str()] {
        let repository = repository.named(name);
        repository.post("").expect_error(400, "NAME_INVALID");
        repository.put("v1", OCI_MANIFEST, &image.manifest).expect_error(400, "NAME_INVALID");
    }
    for tag in [".tag", "-tag", "t%20g", "t+g", "x".repeat(129).as_str()] {
        repository.put(tag, OCI_MANIFEST, &image.manifest).expect_error(400, "TAG_INVALID");
    }
    // The longest that are names.
    let name = format!("a/{}", "b".repeat(253));
    let repository = repository.named(&name);
    repository.push_image(&"x".repeat(128), &image);
    repository.assert_holds(&"x".repeat(128), &image);
}
