//! What is copied, byte for byte: schema 1, artifacts, foreign layers, attestations; moved tags.

use std::fs;
use std::path::Path;
use std::process::Command;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::command::{copy, directory};
use super::content::{
    DOCKER_CONFIG, DOCKER_LAYER, SCHEMA1, artifact, assert_same, attested, manifest, put_index, small,
    status, tags, temporary,
};
use crate::support::images::{DOCKER_MANIFEST, Image, OCI_INDEX, OCI_MANIFEST, descriptor};
use crate::support::process::Spliceway;
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::relay::Relay;
use crate::support::{noise, sha256, tools};

/// An image with its attestations: all of the index, children that nobody tagged included.
#[test]
fn an_index_comes_with_all_its_children() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let children = attested(&theirs, "1", 101);
    let registry = Registry::plain();
    let spliceway = Spliceway::start(|_| ());
    for to in [registry.addr(), spliceway.addr()] {
        let target = Relay::before(to);
        copy(&from.url(), &target.url(), &[]).succeeded();
        assert_same(&theirs, &theirs.at(to), "1");
        // Children first, and by digest: whoever pulls meanwhile never sees an index without them.
        let puts: Vec<String> = target
            .passed()
            .iter()
            .filter(|one| one.method() == "PUT" && one.path().contains("/manifests/"))
            .map(|one| one.path().rsplit('/').next().expect("a reference").replace("%3A", ":"))
            .collect();
        let (last, first) = puts.split_last().expect("manifests are pushed");
        assert_eq!(last, "1", "the list is last: {puts:?}");
        for child in &children {
            assert!(first.contains(child), "{child} comes before the index: {puts:?}");
        }
        assert_eq!(tags(to, "team/app"), ["1"], "children get no tags");
    }
}

#[test]
fn a_moved_tag_is_moved() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let (old, new) = (Image::new(111, "amd64", &[1000]), Image::new(112, "amd64", &[2000]));
    theirs.push_image("latest", &old);
    theirs.push_image("1.0", &old);
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    let registry = Registry::plain();
    let targets = [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())];
    for (to, _) in &targets {
        copy(&from.url(), to, &[]).succeeded();
    }
    theirs.push_image("latest", &new);
    for (to, addr) in &targets {
        copy(&from.url(), to, &[]).succeeded();
        let ours = theirs.at(*addr);
        ours.assert_holds("latest", &new);
        ours.assert_holds("1.0", &old);
    }
    // And back: what was there before is not sent again.
    theirs.push_image("latest", &old);
    let target = Relay::before(registry.addr());
    copy(&from.url(), &target.url(), &[]).succeeded();
    theirs.at(registry.addr()).assert_holds("latest", &old);
    assert_eq!(target.passed().iter().filter(|one| one.is_upload()).count(), 0, "{}", target.lines());
}

/// A tag that moved at the target alone is put right, and what the target has beside stays.
#[test]
fn what_the_target_has_of_its_own() {
    let from = Registry::plain();
    let image = small(from.addr(), "team/app", "1", 121);
    let to = Registry::plain();
    let ours = Repository::new(to.addr(), "team/app");
    let (other, own) = (Image::new(122, "amd64", &[10]), Image::new(123, "amd64", &[10]));
    ours.push_image("1", &other);
    ours.push_image("own", &own);
    small(to.addr(), "own/repository", "1", 124);
    copy(&from.url(), &to.url(), &[]).succeeded();
    ours.assert_holds("1", &image);
    ours.assert_holds("own", &own);
    assert_eq!(tags(to.addr(), "own/repository"), ["1"]);
}

/// An artifact's manifest and an index with fields that nobody knows here.
#[test]
fn artifacts_and_unknown_fields() {
    let from = Registry::plain();
    let to = Registry::plain();
    let theirs = Repository::new(from.addr(), "artifacts");
    artifact(&theirs, "plain", None, b"content of an artifact");
    let image = Image::new(131, "amd64", &[10]);
    theirs.push_blobs(&image);
    theirs.put(&image.digest(), OCI_MANIFEST, &image.manifest).expect(201);
    let mut entry = descriptor(OCI_MANIFEST, &image.manifest);
    entry["annotations"] = json!({"org.example.note": "ü"});
    entry["x-unknown"] = json!([1, {"deep": null}]);
    put_index(&theirs, "index", &[entry]);
    copy(&from.url(), &to.url(), &[]).succeeded();
    for tag in ["plain", "index"] {
        assert_same(&theirs, &theirs.at(to.addr()), tag);
    }
}

/// A manifest whose media type stands in the header alone, as the OCI specification allows.
#[test]
fn a_manifest_without_media_type() {
    let from = Spliceway::start(|_| ());
    let to = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let image = Image::new(141, "amd64", &[10]);
    theirs.push_blobs(&image);
    let mut value: Value = serde_json::from_slice(&image.manifest).expect("our own");
    value.as_object_mut().expect("an object").remove("mediaType");
    theirs.put("1", OCI_MANIFEST, value.to_string().as_bytes()).expect(201);
    let index =
        json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST, value.to_string().as_bytes())]});
    theirs.put("index", OCI_INDEX, index.to_string().as_bytes()).expect(201);
    copy(&format!("http://{}", from.addr()), &to.url(), &[]).succeeded();
    for tag in ["1", "index"] {
        assert_same(&theirs, &theirs.at(to.addr()), tag);
    }
}

/// Layers that are to be fetched elsewhere are neither asked for nor missed.
#[test]
fn foreign_layers_are_left_out() {
    let allowing = || {
        Registry::configured(|config| {
            config["validation"] = json!({"manifests": {"urls": {"allow": ["^https://example\\.com/"]}}});
        })
    };
    let from = allowing();
    let registry = allowing();
    let spliceway = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "windows/app");
    let config = br#"{"architecture":"amd64","os":"windows"}"#;
    let own = noise(151, 3000);
    theirs.push(config);
    theirs.push(&own);
    let foreign = sha256(b"a base layer of Windows");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": descriptor(DOCKER_CONFIG, config),
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "size": 23,
                "digest": foreign,
                "urls": ["https://example.com/base.tar.gz"],
            },
            descriptor(DOCKER_LAYER, &own),
        ],
    });
    theirs.put("1", DOCKER_MANIFEST, manifest.to_string().as_bytes()).expect(201);
    let source = Relay::before(from.addr());
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        copy(&source.url(), &to, &[]).succeeded();
        assert_same(&theirs, &theirs.at(addr), "1");
    }
    assert!(!source.lines().contains(&foreign), "{}", source.lines());
}

/// Schema 1 as docker pushed it once: with signatures around it, and a digest of what they sign.
#[test]
fn schema_1() {
    let from = with_schema_1();
    let registry = with_schema_1();
    let spliceway = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "old/app");
    let layers = [noise(161, 4000), noise(162, 300)];
    for layer in &layers {
        theirs.push(layer);
    }
    let signed = signed_schema_1("old/app", "1", &layers);
    theirs.put("1", SCHEMA1, &signed).expect(201);
    let original = manifest(&theirs, "1").expect(200);
    assert_eq!(original.header("content-type"), Some(SCHEMA1));
    let root = spliceway.data().join("local");
    for (to, addr) in [(registry.url(), registry.addr()), (directory(&root), spliceway.addr())] {
        copy(&from.url(), &to, &[]).succeeded();
        let ours = theirs.at(addr);
        let copied = manifest(&ours, "1").expect(200);
        // docker-registry signs anew whenever it is asked: what is signed is what must be the same.
        assert_eq!(signed_part(&copied.body), signed_part(&original.body));
        for layer in &layers {
            ours.blob(&sha256(layer)).expect(200).expect_body(layer);
        }
        // And a second time, when it is there.
        copy(&from.url(), &to, &[]).succeeded();
        assert_eq!(signed_part(&manifest(&ours, "1").expect(200).body), signed_part(&original.body));
    }
}

/// A registry that takes no schema 1 is a failure of that image, said so, and of no other.
#[test]
fn schema_1_that_is_refused() {
    let from = with_schema_1();
    let to = Registry::plain();
    let theirs = Repository::new(from.addr(), "old/app");
    let layers = [noise(171, 4000)];
    theirs.push(&layers[0]);
    theirs.put("1", SCHEMA1, &signed_schema_1("old/app", "1", &layers)).expect(201);
    let image = small(from.addr(), "old/app", "new", 172);
    copy(&from.url(), &to.url(), &[]).failed(&["old/app:1"]);
    theirs.at(to.addr()).assert_holds("new", &image);
    assert_eq!(status(&theirs.at(to.addr()), "1"), 404);
}

fn with_schema_1() -> Registry {
    Registry::configured(|config| config["compatibility"] = json!({"schema1": {"enabled": true}}))
}

/// What the signatures of a schema 1 manifest are about.
fn signed_part(bytes: &[u8]) -> Vec<u8> {
    let value: Value = serde_json::from_slice(bytes).expect("a manifest");
    let protected = value["signatures"][0]["protected"].as_str().expect("a signature");
    let protected = BASE64URL_NOPAD.decode(protected.as_bytes()).expect("base64url");
    let protected: Value = serde_json::from_slice(&protected).expect("a header");
    let length = protected["formatLength"].as_u64().and_then(|length| usize::try_from(length).ok());
    let mut payload = bytes[..length.expect("a length")].to_vec();
    let tail = protected["formatTail"].as_str().expect("a tail");
    payload.extend(BASE64URL_NOPAD.decode(tail.as_bytes()).expect("base64url"));
    payload
}

/// A manifest of schema 1 with these layers, signed as libtrust does (a JSON web signature within the JSON).
fn signed_schema_1(name: &str, tag: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let home = temporary();
    let history: Vec<Value> = layers
        .iter()
        .map(|layer| json!({"v1Compatibility": json!({"id": sha256(layer)[7..]}).to_string()}))
        .collect();
    let layers: Vec<Value> = layers.iter().map(|layer| json!({"blobSum": sha256(layer)})).collect();
    let payload = json!({
        "schemaVersion": 1,
        "name": name,
        "tag": tag,
        "architecture": "amd64",
        "fsLayers": layers,
        "history": history,
    });
    let payload = serde_json::to_string_pretty(&payload).expect("plain values");
    let unclosed = payload.strip_suffix("\n}").expect("an indented object");
    let protected = json!({
        "formatLength": unclosed.len(),
        "formatTail": BASE64URL_NOPAD.encode(b"\n}"),
        "time": "2015-06-01T00:00:00Z",
    });
    let protected = BASE64URL_NOPAD.encode(protected.to_string().as_bytes());
    let signing = format!("{protected}.{}", BASE64URL_NOPAD.encode(payload.as_bytes()));
    let (modulus, signature) = rsa(home.path(), signing.as_bytes());
    let signatures = json!([{
        "header": {
            "jwk": {"kty": "RSA", "n": BASE64URL_NOPAD.encode(&modulus), "e": "AQAB"},
            "alg": "RS256",
        },
        "signature": BASE64URL_NOPAD.encode(&signature),
        "protected": protected,
    }]);
    format!("{unclosed},\n   \"signatures\": {signatures}\n}}").into_bytes()
}

/// A new key's modulus, and its RS256 signature of `message`.
fn rsa(home: &Path, message: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (key, input, output) = (home.join("key.pem"), home.join("message"), home.join("signature"));
    tools::succeed(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"));
    let modulus =
        tools::succeed(Command::new("openssl").args(["rsa", "-noout", "-modulus", "-in"]).arg(&key));
    let modulus = modulus.trim().strip_prefix("Modulus=").expect("a modulus");
    fs::write(&input, message).expect("our own directory");
    tools::succeed(
        Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&key)
            .arg("-out")
            .arg(&output)
            .arg(&input),
    );
    let modulus = data_encoding::HEXUPPER.decode(modulus.as_bytes()).expect("hexadecimal");
    (modulus, fs::read(&output).expect("openssl wrote it"))
}
