//! skopeo, podman, containerd and umoci push, and pull back the same.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::support::containerd::Containerd;
use crate::support::images::{DOCKER_MANIFEST, Image, OCI_CONFIG, OCI_MANIFEST, descriptor, write_layout};
use crate::support::process::Spliceway;
use crate::support::push::{
    Repository, assert_same_directory, assert_tree_is_right, copy, pull, push_layout,
};
use crate::support::registry::{Registry, skopeo_copy};
use crate::support::{MIB, hex, noise, sha256, tools};

fn temporary() -> TempDir {
    TempDir::with_prefix("push-").expect("a temporary directory")
}

/// One image, and an index of two platforms, as OCI layouts.
const NAMES: [&str; 2] = ["team/app:v1", "multi:v1"];

/// Where [`write_layouts`] puts what is pushed as `name`: a colon in a path would end it for skopeo.
fn layout(at: &Path, name: &str) -> PathBuf {
    at.join(name.replace(':', "-"))
}

fn write_layouts(at: &Path) {
    let one = [Image::new(1, "amd64", &[100, 70_000, MIB, 5 * MIB])];
    let two = [Image::new(11, "amd64", &[300_000, 20]), Image::new(21, "arm64", &[MIB + 1, 4096])];
    for (name, images) in NAMES.iter().zip([&one[..], &two]) {
        write_layout(&layout(at, name), images);
    }
}

/// A server without upstreams, with the options that a test adds.
fn alone(io_uring: Option<&str>) -> Spliceway {
    Spliceway::start(|setup| {
        if let Some(mode) = io_uring {
            setup.io_uring(mode);
        }
    })
}

fn skopeo_pushes(io_uring: Option<&str>) {
    let home = temporary();
    let at = home.path();
    write_layouts(&at.join("layouts"));
    let mut spliceway = alone(io_uring);
    for name in NAMES {
        push_layout(&layout(&at.join("layouts"), name), spliceway.addr(), name);
        pull(spliceway.addr(), name, &at.join("back").join(name));
        // What skopeo takes from the layout itself.
        let direct = at.join("direct").join(name);
        fs::create_dir_all(&direct).expect("our own directory");
        let mut command = skopeo_copy();
        command.arg(format!("oci:{}", layout(&at.join("layouts"), name).display()));
        tools::succeed(command.arg(format!("dir:{}", direct.display())));
        assert_same_directory(&direct, &at.join("back").join(name));
    }
    assert_tree_is_right(&spliceway.data().join("local"));
    // A second push finds everything there, and changes nothing.
    for name in NAMES {
        push_layout(&layout(&at.join("layouts"), name), spliceway.addr(), name);
    }
    spliceway.stop();
    spliceway.restart(|_| ());
    for name in NAMES {
        pull(spliceway.addr(), name, &at.join("again").join(name));
        assert_same_directory(&at.join("back").join(name), &at.join("again").join(name));
    }
}

#[test]
fn skopeo_pushes_from_layouts() {
    skopeo_pushes(None);
}

#[test]
fn skopeo_pushes_from_layouts_without_io_uring() {
    skopeo_pushes(Some("off"));
}

#[test]
fn skopeo_copies_from_docker_registry() {
    let home = temporary();
    let at = home.path();
    write_layouts(&at.join("layouts"));
    let registry = Registry::plain();
    let spliceway = alone(None);
    for name in NAMES {
        registry.push(&layout(&at.join("layouts"), name), name);
        registry.pull(name, &at.join("direct").join(name));
        copy(registry.addr(), spliceway.addr(), name);
        pull(spliceway.addr(), name, &at.join("back").join(name));
        assert_same_directory(&at.join("direct").join(name), &at.join("back").join(name));
    }
}

#[test]
fn skopeo_pushes_zstd_layers() {
    let home = temporary();
    let at = home.path();
    write_layouts(&at.join("layouts"));
    let spliceway = alone(None);
    let skopeo = || {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy"]);
        command
    };
    // Unpacked first: skopeo compresses again only what is not compressed.
    let unpacked = at.join("unpacked");
    let source = format!("oci:{}", layout(&at.join("layouts"), NAMES[0]).display());
    tools::succeed(skopeo().arg("--dest-decompress").arg(&source).arg(format!("dir:{}", unpacked.display())));
    let to = format!("docker://{}/team/zstd:v1", spliceway.addr());
    tools::succeed(
        skopeo()
            .args(["--dest-tls-verify=false", "--dest-compress-format", "zstd"])
            .arg(format!("dir:{}", unpacked.display()))
            .arg(&to),
    );
    let repository = Repository::new(spliceway.addr(), "team/zstd");
    let manifest = repository.manifest("v1").expect(200).json();
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 4);
    for layer in layers {
        let kind = layer["mediaType"].as_str().unwrap_or_default();
        assert!(kind.ends_with("+zstd"), "{kind}");
        let bytes = repository.blob(layer["digest"].as_str().expect("a digest")).expect(200).body;
        assert_eq!(bytes[..4], [0x28, 0xb5, 0x2f, 0xfd], "the bytes of zstd, as they were pushed");
    }
    pull(spliceway.addr(), "team/zstd:v1", &at.join("zstd"));
}

#[test]
fn skopeo_pushes_schema_2() {
    let home = temporary();
    let at = home.path();
    write_layout(&at.join("layout"), &[Image::new(71, "amd64", &[100, 70_000])]);
    let spliceway = alone(None);
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--dest-tls-verify=false", "--format", "v2s2"]);
    command.arg(format!("oci:{}", at.join("layout").display()));
    tools::succeed(command.arg(format!("docker://{}/team/docker:v1", spliceway.addr())));
    let answer = Repository::new(spliceway.addr(), "team/docker").manifest("v1").expect(200);
    assert_eq!(answer.header("content-type"), Some(DOCKER_MANIFEST));
    pull(spliceway.addr(), "team/docker:v1", &at.join("docker"));
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn skopeo_deletes() {
    let home = temporary();
    write_layouts(home.path());
    let spliceway = alone(None);
    push_layout(&layout(home.path(), NAMES[0]), spliceway.addr(), NAMES[0]);
    let reference = format!("docker://{}/{}", spliceway.addr(), NAMES[0]);
    let skopeo = |words: &[&str]| {
        let mut command = Command::new("skopeo");
        command.args(words).arg("--tls-verify=false").arg(&reference);
        tools::run(&mut command)
    };
    assert!(skopeo(&["inspect"]).status.success());
    assert!(skopeo(&["delete"]).status.success());
    assert!(!skopeo(&["inspect"]).status.success());
    Repository::new(spliceway.addr(), "team/app").manifest("v1").expect(404);
}

/// 500 MiB, in pieces of one: the memory of this process is no measure of the other's, but the machine's is one.
const LARGE_PIECES: u64 = 500;

#[test]
fn a_layer_of_500_mib_is_pushed() {
    let home = temporary();
    let at = home.path();
    let blobs = at.join("layout/blobs/sha256");
    fs::create_dir_all(&blobs).expect("our own directory");
    let mut hasher = Sha256::new();
    let mut file = fs::File::create(blobs.join("layer")).expect("our own directory");
    for seed in 0..LARGE_PIECES {
        let piece = noise(seed, MIB);
        hasher.update(&piece);
        file.write_all(&piece).expect("room for it");
    }
    let layer = data_encoding::HEXLOWER.encode(&hasher.finalize());
    fs::rename(blobs.join("layer"), blobs.join(&layer)).expect("our own directory");
    let config = br#"{"architecture":"amd64","os":"linux"}"#;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, config),
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{layer}"),
                    "size": LARGE_PIECES * MIB as u64}],
    });
    let manifest = manifest.to_string().into_bytes();
    for bytes in [&config[..], &manifest] {
        fs::write(blobs.join(hex(&sha256(bytes))), bytes).expect("our own directory");
    }
    let top = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST, &manifest)]});
    fs::write(at.join("layout/index.json"), top.to_string()).expect("our own directory");
    fs::write(at.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("our own directory");

    let spliceway = alone(None);
    push_layout(&at.join("layout"), spliceway.addr(), "team/large:v1");
    pull(spliceway.addr(), "team/large:v1", &at.join("back"));
    for digest in [&layer, hex(&sha256(config))] {
        tools::succeed(Command::new("cmp").arg(blobs.join(digest)).arg(at.join("back").join(digest)));
    }
    let pushed = fs::read(at.join("back/manifest.json")).expect("skopeo wrote it");
    assert_eq!(sha256(&pushed), sha256(&manifest));
}

#[test]
fn podman_pushes_and_pulls() {
    let home = temporary();
    let at = home.path();
    write_layouts(&at.join("layouts"));
    let spliceway = alone(None);
    let podman = |storage: &str| {
        let mut command = Command::new("podman");
        command.args(["--storage-driver", "vfs"]);
        for (option, directory) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(at.join(storage).join(directory));
        }
        command
    };
    // From another registry: the path of a layout would have to be in lower case.
    let registry = Registry::plain();
    registry.push(&layout(&at.join("layouts"), NAMES[0]), NAMES[0]);
    let name = format!("{}/{}", registry.addr(), NAMES[0]);
    let id = tools::succeed(podman("first").args(["pull", "--quiet", "--tls-verify=false", &name]));
    let id = id.trim();
    let name = format!("{}/podman/app:v1", spliceway.addr());
    tools::succeed(podman("first").args(["push", "--tls-verify=false", id, &name]));
    // Into a storage that has never seen it.
    let pulled = tools::succeed(podman("second").args(["pull", "--quiet", "--tls-verify=false", &name]));
    assert_eq!(pulled.trim(), id, "an image's id is the digest of its config");
    let digest =
        tools::succeed(podman("second").args(["image", "inspect", "--format", "{{.Digest}}", &name]));
    let served = Repository::new(spliceway.addr(), "podman/app").manifest("v1").expect(200);
    assert_eq!(digest.trim(), sha256(&served.body));
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn containerd_pushes() {
    let home = temporary();
    let at = home.path();
    write_layouts(&at.join("layouts"));
    let spliceway = alone(None);
    let containerd = Containerd::start();
    for (number, name) in NAMES.iter().enumerate() {
        let archive = at.join(format!("{number}.tar"));
        let named = format!("{}/{name}", spliceway.addr());
        let mut command = skopeo_copy();
        command.arg(format!("oci:{}", layout(&at.join("layouts"), name).display()));
        tools::succeed(command.arg(format!("oci-archive:{}:{named}", archive.display())));
        // Both platforms, and without a snapshot of either: the layers of these tests are no archives.
        let import = ["images", "import", "--no-unpack", "--all-platforms"];
        tools::succeed(containerd.ctr().args(import).arg(&archive));
        // The second time, everything is there, and some of it is mounted.
        for tag in ["", "-again"] {
            let pushed = format!("{named}{tag}");
            tools::succeed(containerd.ctr().args(["images", "push", "--plain-http", &pushed, &named]));
            let (repository, tag) =
                name.split_once(':').map(|(name, v)| (name, format!("{v}{tag}"))).expect("a tag");
            let served = Repository::new(spliceway.addr(), repository).manifest(&tag).expect(200);
            let listed = tools::succeed(containerd.ctr().args(["images", "ls", &format!("name=={named}")]));
            assert!(listed.contains(&sha256(&served.body)), "{listed}");
        }
        pull(spliceway.addr(), name, &at.join("back").join(name));
    }
    assert_tree_is_right(&spliceway.data().join("local"));
}

#[test]
fn umoci_makes_what_is_pushed() {
    let home = temporary();
    let at = home.path();
    let layout = at.join("layout");
    fs::write(at.join("file"), noise(1, 300_000)).expect("our own directory");
    let image = format!("{}:v1", layout.display());
    tools::succeed(Command::new("umoci").arg("init").arg("--layout").arg(&layout));
    tools::succeed(Command::new("umoci").args(["new", "--image", &image]));
    let mut insert = Command::new("umoci");
    insert.args(["insert", "--rootless", "--image", &image]).arg(at.join("file")).arg("/file");
    tools::succeed(&mut insert);
    let spliceway = alone(None);
    let mut command = skopeo_copy();
    command.arg("--dest-tls-verify=false").arg(format!("oci:{image}"));
    tools::succeed(command.arg(format!("docker://{}/umoci/app:v1", spliceway.addr())));
    let mut command = skopeo_copy();
    command.arg("--src-tls-verify=false").arg(format!("docker://{}/umoci/app:v1", spliceway.addr()));
    tools::succeed(command.arg(format!("oci:{}:back", at.join("other").display())));
    let index = |layout: &Path| {
        let text = fs::read(layout.join("index.json")).expect("an index");
        let index: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        index["manifests"][0]["digest"].clone()
    };
    assert_eq!(index(&layout), index(&at.join("other")));
}

#[test]
fn eight_skopeos_push_images_that_share_their_layers() {
    let home = temporary();
    let at = home.path();
    let shared = Image::new(1, "amd64", &[3 * MIB, 100_000]);
    write_layout(&at.join("layout"), &[shared]);
    let spliceway = alone(None);
    thread::scope(|scope| {
        for number in 0..8 {
            let (layout, addr) = (at.join("layout"), spliceway.addr());
            scope.spawn(move || push_layout(&layout, addr, &format!("team/app{}:v{number}", number % 3)));
        }
    });
    for number in 0..8 {
        let name = format!("team/app{}:v{number}", number % 3);
        pull(spliceway.addr(), &name, &at.join("back").join(number.to_string()));
    }
    for number in 1..8 {
        assert_same_directory(&at.join("back/0"), &at.join("back").join(number.to_string()));
    }
    assert_tree_is_right(&spliceway.data().join("local"));
}
