//! `--delete`: tags that the source no longer has, and nothing else.

use super::command::{Finished, copy, directory};
use super::content::{assert_same, fallback, put_index, small, status, tags};
use crate::support::eventually;
use crate::support::images::{Image, OCI_MANIFEST, descriptor};
use crate::support::process::Spliceway;
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::relay::{Fault, Passed, Relay, Reply};

/// A source with a repository of two tags, and a target with more of them.
struct Stale {
    from: Registry,
    theirs: Repository,
    kept: Image,
}

impl Stale {
    fn new() -> Self {
        let from = Registry::plain();
        let theirs = Repository::new(from.addr(), "team/app");
        let kept = Image::new(901, "amd64", &[100]);
        theirs.push_image("kept", &kept);
        theirs.push_image("also", &kept);
        Self { from, theirs, kept }
    }

    /// Pushes tags that the source does not have; of an image that the source does not have.
    fn spoil(&self, addr: std::net::SocketAddr, names: &[&str]) {
        let old = Image::new(911, "amd64", &[200]);
        let ours = self.theirs.at(addr);
        ours.push_blobs(&old);
        for name in names {
            ours.put(name, OCI_MANIFEST, &old.manifest).expect(201);
        }
    }

    fn run(&self, to: &str, flags: &[&str]) -> Finished {
        copy(&self.from.url(), to, flags)
    }
}

#[test]
fn only_if_asked_for() {
    let stale = Stale::new();
    let to = Spliceway::start(|_| ());
    stale.spoil(to.addr(), &["old"]);
    let url = format!("http://{}", to.addr());
    stale.run(&url, &[]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept", "old"]);
    stale.run(&url, &["--delete"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept"]);
    stale.theirs.at(to.addr()).assert_holds("kept", &stale.kept);
}

#[test]
fn in_a_directory() {
    let stale = Stale::new();
    let to = Spliceway::start(|_| ());
    let root = to.data().join("local");
    stale.spoil(to.addr(), &["old", "older"]);
    // The server knows them.
    assert_eq!(status(&stale.theirs.at(to.addr()), "old"), 200);
    stale.run(&directory(&root), &["--delete"]).succeeded();
    for gone in ["old", "older"] {
        // It remembers for a moment what it was asked.
        eventually(gone, || (status(&stale.theirs.at(to.addr()), gone) == 404).then_some(()));
    }
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept"]);
}

/// docker-registry deletes no tag: by its digest then, if no other tag is at it.
#[test]
fn where_tags_cannot_be_deleted() {
    let stale = Stale::new();
    let to = Registry::plain();
    stale.spoil(to.addr(), &["old"]);
    stale.run(&to.url(), &["--delete"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept"]);

    // Of an image that a tag needs which stays: it may not go, and is reported.
    let ours = stale.theirs.at(to.addr());
    ours.push_image("extra", &stale.kept);
    stale.run(&to.url(), &["--delete"]).failed(&["team/app:extra"]);
    assert_eq!(tags(to.addr(), "team/app"), ["also", "extra", "kept"]);
    ours.assert_holds("kept", &stale.kept);
    ours.assert_holds("also", &stale.kept);
}

/// Two of one image that go both: neither keeps the other.
#[test]
fn tags_that_go_together_where_tags_cannot_be_deleted() {
    let stale = Stale::new();
    let to = Registry::plain();
    stale.spoil(to.addr(), &["old", "old-alias"]);
    stale.run(&to.url(), &["--delete"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept"]);
}

/// A child that has a tag of its own goes after the index that names it, whatever their names.
#[test]
fn an_index_goes_before_its_children_where_tags_cannot_be_deleted() {
    let stale = Stale::new();
    let to = Registry::plain();
    let ours = stale.theirs.at(to.addr());
    let child = Image::new(913, "amd64", &[200]);
    ours.push_image("amd64-1", &child);
    put_index(&ours, "old", &[descriptor(OCI_MANIFEST, &child.manifest)]);
    let target = Relay::before(to.addr());
    stale.run(&target.url(), &["--delete"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept"]);
    let deleted = target.seen("DELETE", &format!("/manifests/{}", child.digest()));
    assert_eq!(deleted.len(), 1, "{}", target.lines());
    let before = target.seen("DELETE", "/manifests/sha256:");
    assert_eq!(before.last().map(Passed::path), deleted.last().map(Passed::path), "{}", target.lines());
}

/// One that has nothing at all beside one that has something has lost it.
#[test]
fn not_while_a_source_lists_nothing() {
    let stale = Stale::new();
    let empty = Registry::plain();
    let to = Spliceway::start(|_| ());
    stale.spoil(to.addr(), &["old"]);
    let url = format!("http://{}", to.addr());
    stale.run(&url, &["--delete", "--from", &empty.url()]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept", "old"]);
}

/// A target that says of a tag that it is not there to be deleted, and has it.
#[test]
fn where_there_is_no_request_to_delete_tags() {
    let stale = Stale::new();
    let registry = Registry::plain();
    stale.spoil(registry.addr(), &["old"]);
    let to = Relay::before(registry.addr());
    to.always("DELETE", "/manifests/old", Fault::Answer(Reply::new(404, "404 page not found")));
    stale.run(&to.url(), &["--delete"]).succeeded();
    assert_eq!(tags(registry.addr(), "team/app"), ["also", "kept"]);
}

/// A source that knows the repository and has none of its tags, beside one that has some, may have lost them.
#[test]
fn not_while_a_source_has_no_tags() {
    let stale = Stale::new();
    let empty = Registry::plain();
    stale.theirs.at(empty.addr()).push(b"a layer of nothing");
    let to = Spliceway::start(|_| ());
    stale.spoil(to.addr(), &["old"]);
    let url = format!("http://{}", to.addr());
    stale.run(&url, &["--delete", "--from", &empty.url()]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept", "old"]);
    stale.run(&url, &["--delete"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept"]);
}

/// More than may be: none, since the source is hardly what it should be.
#[test]
fn at_most_so_many() {
    let stale = Stale::new();
    let to = Spliceway::start(|_| ());
    stale.spoil(to.addr(), &["old-1", "old-2", "old-3"]);
    let url = format!("http://{}", to.addr());
    stale.run(&url, &["--delete", "--delete-max", "2"]).failed(&["3", "2"]);
    assert_eq!(tags(to.addr(), "team/app").len(), 5, "none is deleted");
    stale.run(&url, &["--delete", "--delete-max", "3"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept"]);
    // There is a limit without one being said.
    let many: Vec<String> = (0..200).map(|number| format!("old-{number}")).collect();
    stale.spoil(to.addr(), &many.iter().map(String::as_str).collect::<Vec<_>>());
    stale.run(&url, &["--delete"]).failed(&["200"]);
    assert_eq!(tags(to.addr(), "team/app").len(), 202);
}

/// What is not chosen is not deleted either; nor are repositories that the source does not have.
#[test]
fn only_what_is_chosen() {
    let stale = Stale::new();
    small(stale.from.addr(), "other/app", "1", 921);
    let to = Spliceway::start(|_| ());
    stale.spoil(to.addr(), &["old", "own-1", "v2.0.0"]);
    small(to.addr(), "other/app", "own", 922);
    small(to.addr(), "own/app", "1", 923);
    let url = format!("http://{}", to.addr());
    let flags = ["--delete", "--include", "team/*", "--exclude", "*:own-*", "--exclude", "*:v2*"];
    stale.run(&url, &flags).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept", "own-1", "v2.0.0"]);
    assert_eq!(tags(to.addr(), "other/app"), ["own"]);
    assert_eq!(tags(to.addr(), "own/app"), ["1"]);
}

/// An older version that `--newest` no longer takes is no tag that the source has lost.
#[test]
fn what_the_source_has_stays() {
    let stale = Stale::new();
    for tag in ["1.0.0", "1.1.0"] {
        stale.theirs.push_image(tag, &stale.kept);
    }
    let to = Spliceway::start(|_| ());
    let url = format!("http://{}", to.addr());
    stale.run(&url, &["--semver", "^1", "--newest", "1"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["1.1.0"]);
    stale.theirs.push_image("1.2.0", &stale.kept);
    stale.run(&url, &["--delete", "--semver", "^1", "--newest", "1"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["1.1.0", "1.2.0"]);
}

/// A source that is broken, or says that it has nothing, is no reason to delete anything.
#[test]
fn not_when_the_source_is_in_doubt() {
    let stale = Stale::new();
    let to = Spliceway::start(|_| ());
    let url = format!("http://{}", to.addr());
    stale.spoil(to.addr(), &["old"]);
    let doubts = [
        Reply::new(500, "{}"),
        Reply::new(404, "{}"),
        Reply::new(200, "no JSON"),
        Reply::new(200, r#"{"name":"team/app","tags":null}"#),
        Reply::new(200, r#"{"name":"team/app","tags":[]}"#),
        Reply::new(200, r#"{"name":"team/app"}"#),
    ];
    for reply in doubts {
        let source = Relay::before(stale.from.addr());
        source.always("GET", "/tags/list", Fault::Answer(reply));
        copy(&source.url(), &url, &["--delete"]);
        assert_eq!(tags(to.addr(), "team/app"), ["old"], "nothing is deleted");
    }
    // The first source has lost it; the second has it.
    let with = Registry::plain();
    small(with.addr(), "team/app", "old", 931);
    let (one, two) = (stale.from.url(), with.url());
    super::command::replicate(["--from", &one, "--from", &two, "--to", &url, "--delete"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept", "old"]);
    // One of two cannot be asked.
    let mut with = with;
    with.stop();
    super::command::replicate(["--from", &one, "--from", &two, "--to", &url, "--delete"]).failed(&[]);
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept", "old"]);
}

/// Lists of referrers under fallback tags belong to an image that stays.
#[test]
fn fallback_tags_stay_with_their_image() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let image = small(from.addr(), "team/app", "1", 941);
    let subject = descriptor(OCI_MANIFEST, &image.manifest);
    let signature = super::content::artifact(&theirs, "", Some(&subject), b"a signature");
    let to = Registry::plain();
    let url = format!("http://{}", from.addr());
    for _ in 0..2 {
        copy(&url, &to.url(), &["--delete"]).succeeded();
        let ours = theirs.at(to.addr());
        assert_eq!(status(&ours, &fallback(&image.digest())), 200);
        assert_same(&theirs, &ours, &crate::support::sha256(&signature));
    }
}

/// Somebody who was not found may have what nobody else has; whoever counts the runs learns of it.
#[test]
fn not_when_a_source_was_not_found() {
    let stale = Stale::new();
    let to = Spliceway::start(|_| ());
    stale.spoil(to.addr(), &["old"]);
    let url = format!("http://{}", to.addr());
    let arguments = ["--from", "script:/nonexistent/masters", "--from", &stale.from.url(), "--to", &url];
    super::command::replicate(arguments.into_iter().chain(["--delete"])).failed(&["/nonexistent/masters"]);
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept", "old"]);
    let run = super::command::replicate(arguments.into_iter().chain(["--json"])).failed(&[]);
    let done = run.events().pop().expect("the end of the run");
    assert_eq!(done["failures_total"], 1, "{done}");
}

/// What is to go may be all that there is in place of what did not come.
#[test]
fn not_when_something_could_not_be_copied() {
    let stale = Stale::new();
    let to = Spliceway::start(|_| ());
    stale.spoil(to.addr(), &["old"]);
    let url = format!("http://{}", to.addr());
    let source = Relay::before(stale.from.addr());
    source.always("GET", "/blobs/", Fault::Answer(Reply::new(404, "{}")));
    copy(&source.url(), &url, &["--delete"]).failed(&["removing tags"]);
    assert_eq!(tags(to.addr(), "team/app"), ["old"]);
    source.heal();
    copy(&source.url(), &url, &["--delete"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["also", "kept"]);
}

/// Of what is chosen the source has none any more: the last tag stays.
#[test]
fn no_repository_is_emptied() {
    let stale = Stale::new();
    let to = Spliceway::start(|_| ());
    stale.spoil(to.addr(), &["x-1"]);
    let url = format!("http://{}", to.addr());
    stale.run(&url, &["--delete", "--include", "team/app:x*"]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), ["x-1"]);
}
