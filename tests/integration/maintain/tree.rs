//! A tree that docker-registry, skopeo and raw requests have made, with everything in it that a removal or a collection
//! could get wrong. It is made once for all tests that are under way, and each works on a copy.
//!
//! | repository | holds |
//! |---|---|
//! | `a` | `v1`, and `latest`, which moved from it to another image; layers in common with `a/b` |
//! | `a/b` | `v1`; `moved`, which came from `v1`'s image by one that nothing else has; an untagged image with a signature |
//! | `a/b/c` | `multi`, an index of two platforms with attestations; `amd64`, one of its children |
//! | `list` | `list` and `other`, Docker lists of schema 2 manifests with a child in common |
//! | `signed` | `v1` with a signature by fallback tag, a signature of that, and one by digest alone |
//! | `one`, `two/of/it` | the same image under different tags |
//! | `long` | sha512: a layer as docker-registry stores it, a layer and a manifest as Spliceway does |
//! | `old` | schema 1 |
//! | `parts` | blobs without a manifest, a manifest that was deleted, and unfinished uploads |
//! | `sparse` | an index of which one child is absent |
//! | `build` | a `BuildKit` cache: an index that names layers |

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::reference::Tree;
use super::temporary;
use crate::support::images::{
    DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, descriptor,
    write_layout,
};
use crate::support::process::{Spliceway, entries};
use crate::support::push::{Repository, push_layout};
use crate::support::registry::Registry;
use crate::support::{hex, noise, sha256, sha512, tools};

const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// How long ago everything in the tree was written, at least: nothing of it is protected by its youth.
const AGE: Duration = Duration::from_hours(3 * 24);

/// What tests must know of what was pushed; the rest they read.
pub(super) struct Made {
    home: TempDir,
    pub(super) names: Names,
}

/// Digests of things in the tree.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// `a:v1`.
    pub(super) first: String,
    /// What `a/b:moved` pointed at in between: no tag points at it now.
    pub(super) between: String,
    /// In `a/b`: never tagged.
    pub(super) untagged: String,
    /// `a/b/c:multi`, its children: amd64, which has a tag of its own, arm64, and their attestations.
    pub(super) multi: String,
    pub(super) children: Vec<String>,
    /// `signed:v1`.
    pub(super) subject: String,
    /// In `parts`: garbage that is a blob of its own.
    pub(super) garbage: String,
    /// In `long`: the layers by sha512, as docker-registry and as Spliceway keep them.
    pub(super) long_layers: [String; 2],
    /// In `old`.
    pub(super) schema1: String,
}

/// A copy for one test.
pub(super) struct Copy {
    home: TempDir,
    made: Arc<Made>,
}

static SHARED: Mutex<Weak<Made>> = Mutex::new(Weak::new());

/// A copy of the tree: a plain directory as docker-registry keeps it, without anything of Spliceway's own beside it.
pub(super) fn copy() -> Copy {
    let made = {
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let made = shared.upgrade().unwrap_or_else(|| Arc::new(Made::new()));
        *shared = Arc::downgrade(&made);
        made
    };
    let home = temporary();
    duplicate(&made.home.path().join("data"), &home.path().join("data"));
    Copy { home, made }
}

impl Copy {
    /// What holds `docker/registry/v2`.
    pub(super) fn root(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// For the test's own files.
    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(super) fn names(&self) -> &Names {
        &self.made.names
    }

    pub(super) fn tree(&self) -> Tree {
        Tree::read(&self.root())
    }

    /// Another copy of what it is now.
    pub(super) fn again(&self) -> Self {
        let home = temporary();
        duplicate(&self.root(), &home.path().join("data"));
        Self { home, made: self.made.clone() }
    }

    pub(super) fn registry_path(&self) -> PathBuf {
        self.root().join("docker/registry/v2")
    }

    pub(super) fn repository_path(&self, name: &str) -> PathBuf {
        self.registry_path().join("repositories").join(name)
    }

    pub(super) fn blob_path(&self, digest: &str) -> PathBuf {
        crate::support::push::blob_path(&self.root(), digest)
    }

    pub(super) fn revision_path(&self, name: &str, digest: &str) -> PathBuf {
        self.repository_path(name).join("_manifests/revisions").join(digest.replace(':', "/")).join("link")
    }
}

/// With all times and rights; nothing in it was read since it was written.
fn duplicate(from: &Path, to: &Path) {
    tools::succeed(Command::new("cp").arg("-a").arg(from).arg(to));
    // Copying is reading: who copied before would be seen.
    age(to, Duration::ZERO);
}

impl Made {
    fn new() -> Self {
        let home = TempDir::with_prefix("maintain-tree-").expect("a temporary directory");
        let root = home.path().join("data");
        let mut names = Names::default();
        let registry = Registry::on(&root, "of these tests");
        images(registry.addr(), &mut names);
        multi_platform(registry.addr(), &home.path().join("layout"), &mut names);
        lists(registry.addr());
        signatures(registry.addr(), &mut names);
        parts(registry.addr(), &mut names);
        long_layer(registry.addr(), &mut names);
        drop(registry);
        let spliceway = Spliceway::start(|setup| {
            setup.registry("local", root.to_str().expect("UTF-8").to_owned());
        });
        other_forms(spliceway.addr(), &mut names);
        drop(spliceway);
        by_hand(&root);
        for own in ["locks", "fills"] {
            let _ = fs::remove_dir_all(root.join(own));
        }
        age(&root, AGE);
        Self { home, names }
    }
}

/// Images with layers in common, under tags that moved.
fn images(addr: SocketAddr, names: &mut Names) {
    let a = Repository::new(addr, "a");
    let first = Image::new(1, "amd64", &[700, 900]);
    // The second layer is the first image's first, and so on.
    let second = sharing(&first, 11);
    a.push_image("v1", &first);
    a.push_image("latest", &first);
    a.push_image("latest", &second);
    let b = a.named("a/b");
    let (third, between, last) = (sharing(&second, 21), sharing(&first, 31), Image::new(41, "amd64", &[500]));
    b.push_image("v1", &third);
    b.push_image("moved", &third);
    b.push_image("moved", &between);
    b.push_image("moved", &last);
    let untagged = sharing(&third, 51);
    b.push_image(&untagged.digest(), &untagged);
    let signature = signature(&b, &untagged.manifest, 55);
    b.put(&sha256(&signature), OCI_MANIFEST, &signature).expect(201);
    let same = sharing(&first, 61);
    a.named("one").push_image("v1", &same);
    a.named("one").push_image("stable", &same);
    a.named("two/of/it").push_image("v2", &same);
    names.first = first.digest();
    names.between = between.digest();
    names.untagged = untagged.digest();
}

/// An image of one layer of its own and the first layer of another.
fn sharing(other: &Image, seed: u64) -> Image {
    let mut image = Image::new(seed, "amd64", &[600]);
    let mut manifest: Value = serde_json::from_slice(&image.manifest).expect("our own");
    let layers = manifest["layers"].as_array_mut().expect("our own");
    layers.push(descriptor(OCI_LAYER, other.layer(0)));
    image.blobs.push(other.layer(0).to_vec());
    // Its configuration speaks of one layer; nobody here runs it, but skopeo counts.
    let mut config: Value = serde_json::from_slice(&image.blobs[0]).expect("our own");
    let ids = config["rootfs"]["diff_ids"].as_array_mut().expect("our own");
    ids.push(sha256(other.layer(0)).into());
    config["history"].as_array_mut().expect("our own").push(json!({"created_by": "a test"}));
    image.blobs[0] = config.to_string().into_bytes();
    manifest["config"] = descriptor(OCI_CONFIG, &image.blobs[0]);
    image.manifest = manifest.to_string().into_bytes();
    image
}

/// Two platforms with attestations as `BuildKit` makes them, by skopeo.
fn multi_platform(addr: SocketAddr, layout: &Path, names: &mut Names) {
    let platforms = [sharing(&Image::new(1, "amd64", &[700, 900]), 101), Image::new(111, "arm64", &[800])];
    write_layout(layout, &platforms);
    let put = |bytes: &[u8]| {
        fs::write(layout.join("blobs/sha256").join(hex(&sha256(bytes))), bytes).expect("our own directory");
    };
    let mut manifests = Vec::new();
    for (platform, architecture) in platforms.iter().zip(["amd64", "arm64"]) {
        let mut entry = descriptor(OCI_MANIFEST, &platform.manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        manifests.push(entry);
    }
    for platform in &platforms {
        let statement =
            json!({"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"digest": platform.digest()}]});
        let statement = statement.to_string().into_bytes();
        let config = json!({"architecture": "unknown", "os": "unknown", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(&statement)]}});
        let config = config.to_string().into_bytes();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &config),
            "layers": [descriptor("application/vnd.in-toto+json", &statement)]});
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor(OCI_MANIFEST, &manifest);
        entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": platform.digest()});
        manifests.push(entry);
        for bytes in [&statement, &config, &manifest] {
            put(bytes);
        }
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string().into_bytes();
    put(&index);
    let top = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_INDEX, &index)]});
    fs::write(layout.join("index.json"), top.to_string()).expect("our own directory");
    push_layout(layout, addr, "a/b/c:multi");
    let c = Repository::new(addr, "a/b/c");
    c.manifest("multi").expect(200).expect_body(&index);
    c.put("amd64", OCI_MANIFEST, &platforms[0].manifest).expect(201);
    names.multi = sha256(&index);
    names.children =
        manifests.iter().map(|entry| entry["digest"].as_str().expect("our own").to_owned()).collect();
}

/// Docker lists of schema 2 manifests, one of which is in both.
fn lists(addr: SocketAddr) {
    let repository = Repository::new(addr, "list");
    let mut entries = Vec::new();
    for (seed, architecture) in [(201, "amd64"), (202, "arm64"), (203, "s390x")] {
        let layer = noise(seed, 600);
        let config = json!({"architecture": architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]}});
        let config = config.to_string().into_bytes();
        let manifest = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": descriptor(DOCKER_CONFIG, &config), "layers": [descriptor(DOCKER_LAYER, &layer)]});
        let manifest = manifest.to_string().into_bytes();
        repository.push(&layer);
        repository.push(&config);
        repository.put(&sha256(&manifest), DOCKER_MANIFEST, &manifest).expect(201);
        let mut entry = descriptor(DOCKER_MANIFEST, &manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    for (tag, members) in [("list", &entries[..2]), ("other", &entries[1..])] {
        let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": members}).to_string();
        repository.put(tag, DOCKER_LIST, list.as_bytes()).expect(201);
    }
}

/// A manifest with that subject, whose blobs are pushed.
fn signature(repository: &Repository, subject: &[u8], seed: u64) -> Vec<u8> {
    let (config, layer) = (b"{}".to_vec(), noise(seed, 300));
    repository.push(&config);
    repository.push(&layer);
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": descriptor("application/vnd.oci.empty.v1+json", &config),
        "layers": [descriptor("application/vnd.example.signature.v1", &layer)],
        "subject": descriptor(OCI_MANIFEST, subject)});
    manifest.to_string().into_bytes()
}

/// A signed image, a signed signature; the first by the fallback tag of clients that meet no referrers API.
fn signatures(addr: SocketAddr, names: &mut Names) {
    let repository = Repository::new(addr, "signed");
    let image = Image::new(301, "amd64", &[400]);
    repository.push_image("v1", &image);
    let first = signature(&repository, &image.manifest, 311);
    repository.put(&sha256(&first), OCI_MANIFEST, &first).expect(201);
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_MANIFEST, &first)]});
    let fallback = image.digest().replace(':', "-");
    repository.put(&fallback, OCI_INDEX, index.to_string().as_bytes()).expect(201);
    let second = signature(&repository, &first, 321);
    repository.put(&sha256(&second), OCI_MANIFEST, &second).expect(201);
    // An image beside it that has nothing to do with all that.
    repository.push_image("plain", &sharing(&image, 331));
    names.subject = image.digest();
}

/// What no manifest names: blobs, an image that was deleted, uploads that were never finished.
fn parts(addr: SocketAddr, names: &mut Names) {
    let repository = Repository::new(addr, "parts");
    names.garbage = repository.push(&noise(401, 5000));
    repository.push(&noise(402, 50));
    // Known to another repository, and to no manifest of either.
    repository.named("a").post(&format!("?mount={}&from=parts", names.garbage)).expect(201);
    let deleted = Image::new(411, "amd64", &[300]);
    repository.push_image("deleted", &deleted);
    repository.delete_manifest(&deleted.digest()).expect(202);
    repository.push_image("v1", &sharing(&deleted, 421));
    for seed in [431, 432] {
        repository.begin().patch(&noise(seed, 2000)).expect(202);
    }
}

/// The configuration of images whose layers are named by sha512.
const LONG_CONFIG: &[u8] = b"{\"os\":\"linux\"}";

fn long_manifest(layer: &[u8]) -> Vec<u8> {
    let layer = json!({"mediaType": OCI_LAYER, "digest": sha512(layer), "size": layer.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, LONG_CONFIG), "layers": [layer]});
    manifest.to_string().into_bytes()
}

/// docker-registry keeps it under its sha256, and a link of the one name leads to the other.
fn long_layer(addr: SocketAddr, names: &mut Names) {
    let repository = Repository::new(addr, "long");
    let layer = noise(901, 4000);
    repository.push(LONG_CONFIG);
    repository.push_as(&layer, &sha512(&layer));
    repository.put("registry", OCI_MANIFEST, &long_manifest(&layer)).expect(201);
    names.long_layers[0] = sha512(&layer);
}

/// What docker-registry does not take: schema 1, and sha512 under its own name; and referrers that are known as such.
fn other_forms(addr: SocketAddr, names: &mut Names) {
    let old = Repository::new(addr, "old");
    let layers = [old.push(&noise(501, 300)), old.push(&noise(502, 400))];
    let history = json!([{"v1Compatibility": "{\"id\":\"x\"}"}, {"v1Compatibility": "{\"id\":\"y\"}"}]);
    let manifest = json!({"schemaVersion": 1, "name": "old", "tag": "v1", "architecture": "amd64",
        "fsLayers": layers.iter().map(|layer| json!({"blobSum": layer})).collect::<Vec<_>>(), "history": history});
    let manifest = manifest.to_string();
    old.put("v1", SCHEMA1, manifest.as_bytes()).expect(201);
    names.schema1 = sha256(manifest.as_bytes());

    let repository = old.named("long");
    let own = noise(511, 3000);
    repository.push_as(&own, &sha512(&own));
    let manifest = long_manifest(&own);
    repository.put("spliceway", OCI_MANIFEST, &manifest).expect(201);
    let mut under_sha512: Value = serde_json::from_slice(&manifest).expect("our own");
    under_sha512["annotations"] = json!({"digest": "sha512"});
    let under_sha512 = under_sha512.to_string();
    repository.put(&sha512(under_sha512.as_bytes()), OCI_MANIFEST, under_sha512.as_bytes()).expect(201);
    names.long_layers[1] = sha512(&own);

    // A second signature, of which the registry's own index of referrers knows.
    let signed = old.named("signed");
    let image = signed.manifest(&names.subject).expect(200).body;
    let third = signature(&signed, &image, 521);
    signed.put(&sha256(&third), OCI_MANIFEST, &third).expect(201);
}

/// What registries refuse and copying programs leave.
fn by_hand(root: &Path) {
    let repository = Plain { root, name: "sparse" };
    let present = Image::new(601, "amd64", &[200]);
    let absent = Image::new(611, "arm64", &[200]);
    for blob in &present.blobs {
        repository.layer(blob);
    }
    repository.revision(&present.manifest);
    let index = crate::support::images::index(&[present, absent]);
    repository.tag("v1", &index);

    let repository = Plain { root, name: "build" };
    let (layer, config) = (noise(621, 500), b"{\"layers\":[{\"blob\":\"x\"}]}".to_vec());
    repository.layer(&layer);
    repository.layer(&config);
    let manifests =
        [descriptor(OCI_LAYER, &layer), descriptor("application/vnd.buildkit.cacheconfig.v0", &config)];
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    repository.tag("cache", index.to_string().as_bytes());
}

/// A repository written file by file.
struct Plain<'a> {
    root: &'a Path,
    name: &'a str,
}

impl Plain<'_> {
    fn link(&self, path: &str, digest: &str) {
        let path = self.root.join("docker/registry/v2/repositories").join(self.name).join(path).join("link");
        write(&path, digest.as_bytes());
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        write(&crate::support::push::blob_path(self.root, &digest), bytes);
        digest
    }

    fn layer(&self, bytes: &[u8]) {
        let digest = self.blob(bytes);
        self.link(&format!("_layers/{}", digest.replace(':', "/")), &digest);
    }

    fn revision(&self, bytes: &[u8]) -> String {
        let digest = self.blob(bytes);
        self.link(&format!("_manifests/revisions/{}", digest.replace(':', "/")), &digest);
        digest
    }

    fn tag(&self, tag: &str, bytes: &[u8]) {
        let digest = self.revision(bytes);
        self.link(&format!("_manifests/tags/{tag}/current"), &digest);
        self.link(&format!("_manifests/tags/{tag}/index/{}", digest.replace(':', "/")), &digest);
    }
}

pub(super) fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("inside the tree")).expect("our own directory");
    fs::write(path, bytes).expect("our own directory");
}

/// Makes everything so much older than it is; what was later stays later.
pub(super) fn age(path: &Path, by: Duration) {
    if path.is_dir() {
        for entry in entries(path) {
            age(&entry, by);
        }
    }
    let file = File::open(path).expect("our own directory");
    let modified = file.metadata().and_then(|meta| meta.modified()).expect("a time");
    let times = fs::FileTimes::new().set_modified(modified - by).set_accessed(modified - by);
    file.set_times(times).expect("our own directory");
}

/// Makes a file as young as can be.
pub(super) fn renew(path: &Path) {
    File::open(path).and_then(|file| file.set_modified(SystemTime::now())).expect("our own directory");
}
