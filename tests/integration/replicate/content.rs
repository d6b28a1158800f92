//! What is copied: images of every kind, pushed by hand, and compared by hand.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Answer, Request};
use crate::support::images::{
    DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, descriptor,
};
use crate::support::process::entries;
use crate::support::push::{Repository, strings};
use crate::support::registry::Registry;
use crate::support::{hex, noise, sha256};

pub(super) const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(super) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub(super) const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const ACCEPT: [&str; 5] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, SCHEMA1];

pub(super) fn temporary() -> TempDir {
    TempDir::with_prefix("replicate-").expect("a temporary directory")
}

/// What asks for nothing but to be there: a small image with a tag.
pub(super) fn small(addr: SocketAddr, repository: &str, tag: &str, seed: u64) -> Image {
    let image = Image::new(seed, "amd64", &[1000]);
    Repository::new(addr, repository).push_image(tag, &image);
    image
}

/// Images of every kind that any registry takes, in several repositories; what they are called.
pub(super) fn fill(addr: SocketAddr) -> Vec<(&'static str, &'static str)> {
    let at = |name: &str| Repository::new(addr, name);
    // Two tags that share a layer, and a third that is the first again.
    let app = at("team/app");
    let (first, second) = (Image::new(1, "amd64", &[100, 70_000]), Image::new(2, "amd64", &[70_000, 0]));
    app.push_image("v1", &first);
    app.push_image("v2", &second);
    app.push_image("latest", &first);
    // The same layer in another repository, under a name that goes deeper than another's.
    at("team/app/deeper/still").push_image("V1.0_rc-2", &second);
    let docker = docker_image(at("docker").addr(), "docker", 11);
    at("docker").put("1", DOCKER_MANIFEST, &docker).expect(201);
    docker_list(&at("list"), "1");
    attested(&at("attested"), "1", 31);
    nested(&at("nested"), "1");
    artifact(&at("artifacts/chart"), "0.1.0", None, b"a chart");
    vec![
        ("team/app", "v1"),
        ("team/app", "v2"),
        ("team/app", "latest"),
        ("team/app/deeper/still", "V1.0_rc-2"),
        ("docker", "1"),
        ("list", "1"),
        ("attested", "1"),
        ("nested", "1"),
        ("artifacts/chart", "0.1.0"),
    ]
}

/// Pushes the blobs of a Docker image of schema 2, one of them empty; its manifest.
pub(super) fn docker_image(addr: SocketAddr, name: &str, seed: u64) -> Vec<u8> {
    let repository = Repository::new(addr, name);
    let config = json!({"architecture": "amd64", "os": "linux", "seed": seed}).to_string().into_bytes();
    let layers = [noise(seed, 5000), Vec::new()];
    repository.push(&config);
    for layer in &layers {
        repository.push(layer);
    }
    // Indented as docker writes it: whoever writes it anew is seen.
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": descriptor(DOCKER_CONFIG, &config),
        "layers": layers.iter().map(|layer| descriptor(DOCKER_LAYER, layer)).collect::<Vec<_>>(),
    });
    serde_json::to_vec_pretty(&manifest).expect("plain values")
}

/// A Docker manifest list with two children.
fn docker_list(repository: &Repository, tag: &str) {
    let children: Vec<Value> = [(21, "amd64"), (22, "s390x")]
        .into_iter()
        .map(|(seed, architecture)| {
            let manifest = docker_image(repository.addr(), "list", seed);
            repository.put(&sha256(&manifest), DOCKER_MANIFEST, &manifest).expect(201);
            let mut entry = descriptor(DOCKER_MANIFEST, &manifest);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        })
        .collect();
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": children});
    repository.put(tag, DOCKER_LIST, list.to_string().as_bytes()).expect(201);
}

/// An index of two platforms, each with an attestation as buildkit makes it; the digests of the index's children.
pub(super) fn attested(repository: &Repository, tag: &str, seed: u64) -> Vec<String> {
    let mut entries = Vec::new();
    for (number, architecture, variant) in [(0, "amd64", None), (1, "arm", Some("v7"))] {
        let image = Image::new(seed + number, architecture, &[3000]);
        repository.push_blobs(&image);
        repository.put(&image.digest(), OCI_MANIFEST, &image.manifest).expect(201);
        let mut entry = descriptor(OCI_MANIFEST, &image.manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = json!(variant);
        }
        entries.push(entry);
        let statement = format!("{{\"a statement\": {}}}", seed + number).into_bytes();
        let config = json!({"architecture": "unknown", "os": "unknown", "of": seed + number}).to_string();
        repository.push(&statement);
        repository.push(config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, config.as_bytes()),
            "layers": [descriptor("application/vnd.in-toto+json", &statement)],
        });
        let manifest = manifest.to_string().into_bytes();
        repository.put(&sha256(&manifest), OCI_MANIFEST, &manifest).expect(201);
        let mut entry = descriptor(OCI_MANIFEST, &manifest);
        entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        entry["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.digest(),
        });
        entries.push(entry);
    }
    let digests =
        entries.iter().map(|entry| entry["digest"].as_str().expect("a digest").to_owned()).collect();
    put_index(repository, tag, &entries);
    digests
}

/// An index that names an index and an image.
fn nested(repository: &Repository, tag: &str) {
    let (inner, outer) = (Image::new(41, "amd64", &[100]), Image::new(42, "arm64", &[100]));
    for image in [&inner, &outer] {
        repository.push_blobs(image);
        repository.put(&image.digest(), OCI_MANIFEST, &image.manifest).expect(201);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(OCI_MANIFEST, &inner.manifest)],
    });
    let index = index.to_string().into_bytes();
    repository.put(&sha256(&index), OCI_INDEX, &index).expect(201);
    put_index(repository, tag, &[descriptor(OCI_INDEX, &index), descriptor(OCI_MANIFEST, &outer.manifest)]);
}

/// PUT of the index that names these; its bytes.
pub(super) fn put_index(repository: &Repository, reference: &str, entries: &[Value]) -> Vec<u8> {
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let index = index.to_string().into_bytes();
    repository.put(reference, OCI_INDEX, &index).expect(201);
    index
}

/// An artifact with one blob, of a subject or of none; its manifest. `reference` may be empty: by digest.
pub(super) fn artifact(
    repository: &Repository,
    reference: &str,
    subject: Option<&Value>,
    content: &[u8],
) -> Vec<u8> {
    repository.push(b"{}");
    repository.push(content);
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.thing",
        "config": descriptor(EMPTY, b"{}"),
        "layers": [descriptor("application/vnd.example.part", content)],
        "annotations": {"made by": "a test"},
    });
    if let Some(subject) = subject {
        manifest["subject"] = subject.clone();
    }
    let manifest = manifest.to_string().into_bytes();
    let digest = sha256(&manifest);
    let reference = if reference.is_empty() { &digest } else { reference };
    repository.put(reference, OCI_MANIFEST, &manifest).expect(201);
    manifest
}

/// The tag under which registries without a referrers API keep the list of them.
pub(super) fn fallback(subject: &str) -> String {
    format!("sha256-{}", hex(subject))
}

/// GET of a manifest by somebody who knows every kind.
#[track_caller]
pub(super) fn manifest(repository: &Repository, reference: &str) -> Answer {
    let request = repository.request("GET", &format!("manifests/{reference}"));
    let request = ACCEPT.iter().fold(request, |request, kind| request.header("Accept", kind));
    repository.send(&request)
}

/// HEAD of the same; the status.
#[track_caller]
pub(super) fn status(repository: &Repository, reference: &str) -> u16 {
    repository.head_manifest(reference).status()
}

/// Everything that `reference` leads to is at `to` as it is at `from`: bytes, media types, children, blobs.
#[track_caller]
pub(super) fn assert_same(from: &Repository, to: &Repository, reference: &str) {
    let theirs = manifest(from, reference).expect(200);
    let ours = manifest(to, reference).expect(200).expect_body(&theirs.body);
    assert_eq!(ours.header("content-type"), theirs.header("content-type"), "{reference}");
    assert_eq!(ours.header("docker-content-digest"), theirs.header("docker-content-digest"), "{reference}");
    let parsed = theirs.json();
    for child in parsed["manifests"].as_array().into_iter().flatten() {
        assert_same(from, to, child["digest"].as_str().expect("a digest"));
    }
    for blob in parsed["layers"].as_array().into_iter().flatten().chain(parsed.get("config")) {
        if blob.get("urls").is_some() {
            continue;
        }
        let digest = blob["digest"].as_str().expect("a digest");
        let bytes = from.blob(digest).expect(200).body;
        assert_eq!(sha256(&bytes), digest, "the source is right");
        to.blob(digest).expect(200).expect_body(&bytes);
    }
}

/// All of `images` are at `to` as they are at `from`.
#[track_caller]
pub(super) fn assert_all_same(from: SocketAddr, to: SocketAddr, images: &[(&str, &str)]) {
    for (repository, tag) in images {
        assert_same(&Repository::new(from, repository), &Repository::new(to, repository), tag);
    }
}

/// A docker-registry without authentication over the directory of another one.
pub(super) fn plain_view(registry: &Registry) -> Registry {
    Registry::on(&registry.data(), "of a second one")
}

/// The tags of a repository, in their order; none if there is no such repository.
#[track_caller]
pub(super) fn tags(addr: SocketAddr, repository: &str) -> Vec<String> {
    let answer = Repository::new(addr, repository).tags("");
    if answer.status() == 404 {
        return Vec::new();
    }
    let mut tags = strings(&answer.expect(200).json()["tags"]);
    tags.sort();
    tags
}

/// The repositories of a registry, in their order.
#[track_caller]
pub(super) fn catalog(addr: SocketAddr) -> Vec<String> {
    let mut names =
        strings(&Request::get("/v2/_catalog?n=1000").send(addr).expect(200).json()["repositories"]);
    names.sort();
    names
}

/// Every file below `root` with its content, locks left out: to see whether anything changed.
pub(super) fn snapshot(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in entries(&directory) {
            if entry.is_dir() {
                directories.push(entry);
            } else {
                let name = entry.strip_prefix(root).expect("below").display().to_string();
                if !name.contains("locks/") {
                    found.push((name, fs::read(&entry).expect("our own file")));
                }
            }
        }
    }
    found.sort();
    found
}

/// Writes a docker-registry's directory by hand: one image whose layer has `len` zeros that take no space. Its layer's
/// digest.
pub(super) fn write_sparse(root: &Path, repository: &str, tag: &str, len: u64) -> String {
    use sha2::{Digest as _, Sha256};

    let registry = root.join("docker/registry/v2");
    let mut hasher = Sha256::new();
    let zeros = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let piece = left.min(zeros.len() as u64);
        hasher.update(&zeros[..usize::try_from(piece).expect("small")]);
        left -= piece;
    }
    let layer = format!("sha256:{}", data_encoding::HEXLOWER.encode(&hasher.finalize()));
    let config = json!({"architecture": "amd64", "os": "linux"}).to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, &config),
        "layers": [{"mediaType": OCI_LAYER, "digest": layer, "size": len}],
    });
    let manifest = manifest.to_string().into_bytes();
    let data =
        |digest: &str| registry.join("blobs/sha256").join(&hex(digest)[..2]).join(hex(digest)).join("data");
    let write = |path: &Path, bytes: &[u8]| {
        fs::create_dir_all(path.parent().expect("not the root")).expect("our own directory");
        fs::write(path, bytes).expect("our own directory");
    };
    let (config_digest, digest) = (sha256(&config), sha256(&manifest));
    write(&data(&config_digest), &config);
    write(&data(&digest), &manifest);
    write(&data(&layer), b"");
    fs::File::options()
        .write(true)
        .open(data(&layer))
        .and_then(|file| file.set_len(len))
        .expect("our own file");
    let repository = registry.join("repositories").join(repository);
    for blob in [&config_digest, &layer] {
        write(&repository.join("_layers/sha256").join(hex(blob)).join("link"), blob.as_bytes());
    }
    let manifests = repository.join("_manifests");
    write(&manifests.join("revisions/sha256").join(hex(&digest)).join("link"), digest.as_bytes());
    let tag = manifests.join("tags").join(tag);
    write(&tag.join("current/link"), digest.as_bytes());
    write(&tag.join("index/sha256").join(hex(&digest)).join("link"), digest.as_bytes());
    layer
}
