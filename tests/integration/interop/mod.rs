//! One directory, several programs: docker-registry serves what Spliceway wrote and the reverse, an upload begun in one
//! is finished in the other, and two Spliceways behind one address need not know of each other.

mod processes;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::images::{Image, write_layout};
use crate::support::process::{Spliceway, entries};
use crate::support::push::{
    Repository, assert_range, assert_same_directory, assert_tree_is_right, copy, pull, push_layout,
};
use crate::support::registry::Registry;
use crate::support::{MIB, noise, sha256, sha512};

fn temporary() -> TempDir {
    TempDir::with_prefix("interop-").expect("a temporary directory")
}

/// Made when the test runs: what the two programs sign the state of uploads with.
fn secret() -> String {
    let mut bytes = [0; 24];
    fastrand::Rng::new().fill(&mut bytes);
    data_encoding::HEXLOWER.encode(&bytes)
}

fn spliceway_on(root: &Path, secret: &str) -> Spliceway {
    let root = root.to_str().expect("UTF-8").to_owned();
    Spliceway::start(|setup| {
        setup.registry("local", root).registry("http_secret", secret.to_owned());
    })
}

fn local(spliceway: &Spliceway) -> PathBuf {
    spliceway.data().join("local")
}

/// Where [`write_layouts`] puts what is pushed as `name`: a colon in a path would end it for skopeo.
fn layout(at: &Path, name: &str) -> PathBuf {
    at.join(name.replace(':', "-"))
}

/// Writes an image's and an index's layout below `at`; the names that they are pushed as.
fn write_layouts(at: &Path) -> [&'static str; 2] {
    let one = [Image::new(1, "amd64", &[100, 70_000, MIB])];
    let two = [Image::new(11, "amd64", &[300_000, 20]), Image::new(21, "arm64", &[MIB + 1, 4096])];
    write_layout(&layout(at, "team/app:v1"), &one);
    write_layout(&layout(at, "multi:v1"), &two);
    ["team/app:v1", "multi:v1"]
}

#[test]
fn docker_registry_serves_what_spliceway_wrote() {
    let home = temporary();
    let at = home.path();
    let names = write_layouts(&at.join("layouts"));
    let mut spliceway = Spliceway::start(|_| ());
    for name in names {
        push_layout(&layout(&at.join("layouts"), name), spliceway.addr(), name);
        pull(spliceway.addr(), name, &at.join("ours").join(name));
    }
    let ours = Repository::new(spliceway.addr(), "team/app");
    // A tag that moved, one that was deleted, a mounted blob, one by sha512.
    let (first, second) = (Image::new(31, "amd64", &[100]), Image::new(41, "amd64", &[200]));
    ours.push_image("moved", &first);
    ours.push_image("moved", &second);
    ours.push_image("deleted", &first);
    ours.delete_manifest("deleted").expect(202);
    let mounted = sha256(first.layer(0));
    ours.named("mounted/app").post(&format!("?mount={mounted}&from=team/app")).expect(201);
    let long = noise(51, 70_000);
    ours.push_as(&long, &sha512(&long));

    // While Spliceway runs: docker-registry may always read.
    let registry = Registry::on(&local(&spliceway), &secret());
    let theirs = ours.at(registry.addr());
    for name in names {
        registry.pull(name, &at.join("theirs").join(name));
        assert_same_directory(&at.join("ours").join(name), &at.join("theirs").join(name));
    }
    theirs.assert_holds("moved", &second);
    theirs.assert_holds(&first.digest(), &first);
    theirs.manifest("deleted").expect(404);
    theirs.named("mounted/app").blob(&mounted).expect(200).expect_body(first.layer(0));
    theirs.blob(&sha512(&long)).expect(200).expect_body(&long);
    let mut tags = theirs.tag_names("");
    tags.sort();
    assert_eq!(tags, ["moved", "v1"]);

    // And write once it has stopped.
    spliceway.stop();
    let third = Image::new(61, "amd64", &[300_000]);
    theirs.push_image("third", &third);
    theirs.push_image("moved", &third);
    theirs.delete_manifest(&first.digest()).expect(202);
    drop(registry);
    spliceway.restart(|_| ());
    let ours = ours.at(spliceway.addr());
    ours.assert_holds("third", &third);
    ours.assert_holds("moved", &third);
    ours.assert_holds(&second.digest(), &second);
    ours.manifest(&first.digest()).expect(404);
    ours.push_image("moved", &second);
    ours.assert_holds("moved", &second);
    assert_tree_is_right(&local(&spliceway));
}

#[test]
fn spliceway_serves_what_docker_registry_wrote() {
    let home = temporary();
    let at = home.path();
    let root = at.join("data");
    let names = write_layouts(&at.join("layouts"));
    let secret = secret();
    let registry = Registry::on(&root, &secret);
    for name in names {
        registry.push(&layout(&at.join("layouts"), name), name);
        registry.pull(name, &at.join("theirs").join(name));
    }
    let theirs = Repository::new(registry.addr(), "team/app");
    let (first, second) = (Image::new(31, "amd64", &[100]), Image::new(41, "amd64", &[200]));
    theirs.push_image("moved", &first);
    theirs.push_image("moved", &second);
    let deleted = Image::new(51, "amd64", &[300]);
    theirs.push_image("deleted", &deleted);
    theirs.delete_manifest(&deleted.digest()).expect(202);
    let gone = theirs.push(b"a blob that was deleted");
    theirs.delete_blob(&gone).expect(202);
    // Stored there as sha256, under a link that says so: a link's name and content differ.
    let long = noise(61, 70_000);
    theirs.push_as(&long, &sha512(&long));
    let unfinished = theirs.begin();
    unfinished.patch(&noise(71, 100_000)).expect(202);
    drop(registry);

    let spliceway = spliceway_on(&root, &secret);
    let ours = theirs.at(spliceway.addr());
    for name in names {
        pull(spliceway.addr(), name, &at.join("ours").join(name));
        assert_same_directory(&at.join("theirs").join(name), &at.join("ours").join(name));
    }
    ours.assert_holds("moved", &second);
    ours.assert_holds(&first.digest(), &first);
    ours.manifest("deleted").expect(404);
    ours.blob(&gone).expect(404);
    let answer = ours.blob(&sha512(&long)).expect(200).expect_body(&long);
    // The digest under which it is stored may be told instead of the one that was asked for.
    let told = answer.header("docker-content-digest").unwrap_or_default();
    assert!(told == sha512(&long) || told == sha256(&long), "{answer}");
    assert_eq!(ours.tag_names(""), ["moved", "v1"]);
    unfinished.at(ours.addr()).resume(&noise(71, 150_000)).expect(201);
    // It is a registry like any other: pushes, mounts, deletions.
    let third = Image::new(81, "amd64", &[300_000]);
    ours.push_image("third", &third);
    ours.named("new/app").post(&format!("?mount={}&from=multi", manifest_layer(&ours))).expect(201);
    ours.delete_manifest("v1").expect(202);
    assert_tree_is_right(&root);
    let registry = Registry::on(&root, &secret);
    let theirs = ours.at(registry.addr());
    theirs.assert_holds("third", &third);
    theirs.manifest("v1").expect(404);
    copy(spliceway.addr(), registry.addr(), "multi:v1");
}

/// A layer of `multi:v1`.
fn manifest_layer(repository: &Repository) -> String {
    let multi = repository.named("multi");
    let index = multi.manifest("v1").expect(200).json();
    let child = index["manifests"][0]["digest"].as_str().expect("a digest");
    let child = multi.manifest(child).expect(200).json();
    child["layers"][0]["digest"].as_str().expect("a digest").to_owned()
}

/// Chunks around the sizes of a hash's block, a page and a buffer.
const CHUNKS: [usize; 12] = [10, 1, 63, 64, 65, 127, 128, 4096, 65_536, 70_001, MIB + 3, 9];

/// A directory of one Spliceway and one docker-registry that sign alike.
fn side_by_side() -> (TempDir, Registry, Spliceway, Repository, Repository) {
    let home = temporary();
    let secret = secret();
    let registry = Registry::on(&home.path().join("data"), &secret);
    let spliceway = spliceway_on(&home.path().join("data"), &secret);
    let theirs = Repository::new(registry.addr(), "team/app");
    let ours = theirs.at(spliceway.addr());
    (home, registry, spliceway, theirs, ours)
}

/// Sends `bytes` in [`CHUNKS`], each to the server that `turn` gives for its number, and the PUT to `last`.
fn alternate(begin: &Repository, turn: impl Fn(usize) -> Repository, last: &Repository, bytes: &[u8]) {
    let mut session = begin.begin();
    let mut at = 0;
    for (number, len) in CHUNKS.into_iter().enumerate() {
        let there = session.at(turn(number).addr());
        let answer = there.patch_at(at, &bytes[at..at + len]).expect(202);
        at += len;
        assert_range(&answer, at);
        session.follow(&answer);
    }
    assert_range(&session.at(begin.addr()).status().expect(204), at);
    let digest = sha256(bytes);
    session.at(last.addr()).finish(&digest, &bytes[at..]).expect(201);
    for repository in [begin, last] {
        repository.blob(&digest).expect(200).expect_body(bytes);
    }
}

fn chunks_len() -> usize {
    CHUNKS.iter().sum()
}

#[test]
fn an_upload_begun_in_spliceway_is_finished_in_docker_registry() {
    let (home, _registry, _spliceway, theirs, ours) = side_by_side();
    for (seed, rest) in [(1, 0), (2, 77_777)] {
        let bytes = noise(seed, chunks_len() + rest);
        // All chunks here, the end there.
        alternate(&ours, |_| ours.clone(), &theirs, &bytes);
        // The second half of the chunks there.
        let bytes = noise(seed + 10, chunks_len() + rest);
        alternate(&ours, |number| if number < 6 { ours.clone() } else { theirs.clone() }, &theirs, &bytes);
    }
    assert_tree_is_right(&home.path().join("data"));
}

#[test]
fn an_upload_begun_in_docker_registry_is_finished_in_spliceway() {
    let (home, _registry, _spliceway, theirs, ours) = side_by_side();
    for (seed, rest) in [(1, 0), (2, 77_777)] {
        let bytes = noise(seed, chunks_len() + rest);
        alternate(&theirs, |_| theirs.clone(), &ours, &bytes);
        let bytes = noise(seed + 10, chunks_len() + rest);
        alternate(&theirs, |number| if number < 6 { theirs.clone() } else { ours.clone() }, &ours, &bytes);
    }
    assert_tree_is_right(&home.path().join("data"));
}

#[test]
fn chunks_alternate_between_spliceway_and_docker_registry() {
    let (home, _registry, _spliceway, theirs, ours) = side_by_side();
    for (seed, (begin, last)) in
        (1..).zip([(&ours, &theirs), (&theirs, &ours), (&ours, &ours), (&theirs, &theirs)])
    {
        let bytes = noise(seed, chunks_len() + 1);
        alternate(begin, |number| if number % 2 == 0 { ours.clone() } else { theirs.clone() }, last, &bytes);
    }
    assert_tree_is_right(&home.path().join("data"));
}

#[test]
fn what_lies_in_a_session_is_what_docker_registry_expects() {
    let (home, _registry, _spliceway, theirs, ours) = side_by_side();
    let root = home.path().join("data");
    for repository in [&ours, &theirs] {
        let session = repository.begin();
        let directory = session.directory(&root);
        let started = fs::read_to_string(directory.join("startedat")).expect("startedat");
        assert!(started.len() >= 20 && started.as_bytes()[10] == b'T' && started.ends_with('Z'), "{started}");
        let states = || {
            let mut states: Vec<(u64, Vec<u8>)> = entries(&directory.join("hashstates/sha256"))
                .iter()
                .map(|path| {
                    let offset = path.file_name().and_then(|name| name.to_str()).expect("a name");
                    (offset.parse().expect("an offset"), fs::read(path).expect("a state"))
                })
                .collect();
            states.sort();
            states
        };
        let bytes = noise(1, 110);
        let mut session = session;
        for (first, last) in [(0, 10), (10, 110)] {
            session.follow(&session.patch_at(first, &bytes[first..last]).expect(202));
        }
        let states = states();
        let offsets: Vec<u64> = states.iter().map(|(offset, _)| *offset).collect();
        assert!(offsets.contains(&110), "{offsets:?}");
        for (offset, state) in &states {
            assert_eq!(state.len(), 108);
            assert_eq!(state[..4], *b"sha\x03");
            assert_eq!(state[100..], offset.to_be_bytes());
            // What is left of the last block.
            let partial = usize::try_from(offset % 64).expect("small");
            let end = usize::try_from(*offset).expect("small");
            assert_eq!(state[36..36 + partial], bytes[end - partial..end]);
        }
        assert_eq!(fs::read(directory.join("data")).expect("the data"), bytes);
        session.finish(&sha256(&bytes), &[]).expect(201);
        assert!(!directory.exists(), "{} is left", directory.display());
    }
}

#[test]
fn a_secret_that_differs_is_no_way_in() {
    let home = temporary();
    let root = home.path().join("data");
    let registry = Registry::on(&root, &secret());
    let spliceway = spliceway_on(&root, &secret());
    let ours = Repository::new(spliceway.addr(), "team/app");
    let session = ours.begin();
    session.patch(b"hello").expect(202);
    assert_eq!(session.at(registry.addr()).finish(&sha256(b"hello"), &[]).status(), 404);
    // A session is named by its path alone here, whatever its query says.
    let theirs = ours.at(registry.addr()).begin();
    theirs.patch(b"other").expect(202);
    theirs.at(spliceway.addr()).finish(&sha256(b"other"), &[]).expect(201);
    session.finish(&sha256(b"hello"), &[]).expect(201);
    let log = spliceway.log();
    for state in [&session, &theirs].map(|session| session.state().expect("a state").to_owned()) {
        assert!(!log.contains(&state[..40]), "the state is signed with the secret: it is not logged");
    }
}
