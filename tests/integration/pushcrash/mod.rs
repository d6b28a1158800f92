//! A push that is killed, cut from power, or meets a disk that fails: the old state or the new one, never a tag to
//! nothing, never a wrong blob; and what was answered with 201 is there.

mod disks;
mod kills;
mod links;
mod states;
mod steps;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::client::{Answer, End};
use crate::support::images::Image;
use crate::support::process::{Spliceway, entries};
use crate::support::push::{Repository, Session, assert_tree_is_right, received};
use crate::support::sha256;

fn start() -> (Spliceway, Repository) {
    let spliceway = Spliceway::start(|_| ());
    let repository = Repository::new(spliceway.addr(), "team/app");
    (spliceway, repository)
}

fn local(spliceway: &Spliceway) -> PathBuf {
    spliceway.data().join("local")
}

/// Starts it again after a kill; the repository at its new address.
fn again(spliceway: &mut Spliceway, repository: &Repository) -> Repository {
    assert_tree_is_right(&local(spliceway));
    spliceway.restart(|_| ());
    repository.at(spliceway.addr())
}

/// What a client got that may have been cut off: a whole answer or nothing.
fn whole(answer: Option<Answer>) -> Option<Answer> {
    answer.filter(|answer| answer.end == End::Complete)
}

/// After a restart: the blob is there and right, or the session is and can be finished.
#[track_caller]
fn assert_old_or_new(repository: &Repository, session: &Session, bytes: &[u8], acknowledged: bool) -> bool {
    let digest = sha256(bytes);
    let published = repository.head_blob(&digest).status() == 200;
    if acknowledged {
        assert!(published, "201 was answered, and it is gone");
    }
    if published {
        repository.blob(&digest).expect(200).expect_body(bytes);
        return true;
    }
    let mut session = session.at(repository.addr());
    assert_eq!(received(&session.status().expect(204)), bytes.len(), "what was acknowledged is gone");
    session.resume(bytes).expect(201);
    repository.blob(&digest).expect(200).expect_body(bytes);
    false
}

/// The tag is one of these, or absent if `fresh`, and if it is there, it is whole.
#[track_caller]
fn assert_tag(repository: &Repository, tag: &str, allowed: &[&Image], fresh: bool) {
    let answer = repository.manifest(tag);
    if answer.status() == 404 && fresh {
        return;
    }
    let answer = answer.expect(200);
    let image = allowed.iter().find(|image| image.manifest == answer.body);
    repository.assert_holds(tag, image.unwrap_or_else(|| panic!("neither the old nor the new: {answer}")));
    assert!(repository.tag_names("").contains(&tag.to_owned()));
}

/// A failure that the client is told of in OCI's form.
#[track_caller]
fn assert_failed(answer: &Answer) {
    assert!(matches!(answer.status(), 500 | 507), "wanted 500 or 507, got {answer}");
    assert!(!answer.error_code().is_empty(), "{answer}");
}

/// The states of a session, by the offset that each stands for.
fn hash_states(directory: &Path) -> Vec<(u64, PathBuf)> {
    let states = entries(&directory.join("hashstates/sha256")).into_iter();
    let offset = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    let mut states: Vec<(u64, PathBuf)> =
        states.filter_map(|path| Some((offset(&path)?, path.clone()))).collect();
    states.sort();
    states
}

/// As if the session's states had been written before the machine was last started: they may be right, and the pages
/// below them lost. The data's own age is left alone: an old session is over.
fn age(directory: &Path) {
    let stat = fs::read_to_string("/proc/stat").expect("the kernel's own figures");
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")).expect("the time of the start");
    let booted = Duration::from_secs(booted.parse().expect("seconds"));
    for (_, path) in hash_states(directory) {
        let file = File::options().write(true).open(path).expect("our own directory");
        let before = SystemTime::UNIX_EPOCH + booted - Duration::from_mins(1);
        file.set_modified(before).expect("a time is set");
    }
}
