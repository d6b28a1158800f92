//! Lists of repositories and tags: long, in pages, empty, broken.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::command::{copy, directory};
use super::content::{catalog, small, tags};
use crate::support::images::Image;
use crate::support::listener::RequestHead;
use crate::support::process::Spliceway;
use crate::support::push::{Repository, strings};
use crate::support::registry::Registry;
use crate::support::relay::{Fault, Passed, Relay, Reply};
use crate::support::sha256;

/// More than any page has.
const MANY: usize = 1003;

/// A page of `entries` as `head` asks for it, with a Link to the next one.
fn page(head: &RequestHead, key: &str, entries: &[String], size: usize, absolute: Option<&str>) -> Fault {
    let last = head.query_value("last");
    let from = last.map_or(0, |last| entries.iter().position(|entry| *entry == last).map_or(0, |at| at + 1));
    let to = (from + size).min(entries.len());
    let mut reply = Reply::new(200, json!({"name": "any", key: entries[from..to]}).to_string());
    if to < entries.len() {
        let before = absolute.unwrap_or_default();
        let link = format!("<{before}{}?n={size}&last={}>; rel=\"next\"", head.path, entries[to - 1]);
        reply = reply.header("Link", &link);
    }
    Fault::Answer(reply)
}

/// An image under many tags, written into the directory: requests for so many would take their time.
fn many_tags(root: &Path, repository: &Repository) -> (Image, Vec<String>) {
    let image = Image::new(301, "amd64", &[100]);
    repository.push_image("nightly-0", &image);
    let directory = root.join("docker/registry/v2/repositories/team/app/_manifests/tags");
    let mut names: Vec<String> = (0..MANY).map(|number| format!("nightly-{number}")).collect();
    for name in &names {
        let current = directory.join(name).join("current");
        fs::create_dir_all(&current)
            .and_then(|()| fs::write(current.join("link"), image.digest()))
            .expect("our own");
    }
    names.sort();
    (image, names)
}

#[test]
fn a_thousand_tags() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let (image, names) = many_tags(&from.data().join("local"), &theirs);
    let source = Relay::before(from.addr());
    let to = Spliceway::start(|_| ());
    let root = to.data().join("local");
    copy(&source.url(), &directory(&root), &[]).succeeded();
    assert_eq!(tags(to.addr(), "team/app"), names);
    theirs.at(to.addr()).assert_holds("nightly-1000", &image);
    let pages = source.seen("GET", "/tags/list").len();
    assert!(pages > 1, "so many tags come in pages: {pages}");
    // The image is one: its content comes once, whatever it is called.
    let bytes: u64 = source.passed().iter().filter(|one| one.is_download()).map(Passed::down).sum();
    let whole: usize = image.blobs.iter().map(Vec::len).sum();
    assert_eq!(bytes, whole as u64);
}

#[test]
fn pages_by_link() {
    let from = Registry::plain();
    let mut repositories = Vec::new();
    for number in 0..7 {
        repositories.push(format!("r{number}/app"));
        for tag in ["a", "b", "c", "d", "e"] {
            small(from.addr(), &format!("r{number}/app"), tag, 310 + number);
        }
    }
    for absolute in [false, true] {
        let source = Relay::before(from.addr());
        let (addr, url) = (from.addr(), source.url());
        let repositories = repositories.clone();
        source.rule(move |head| {
            let absolute = absolute.then_some(url.as_str());
            if head.path == "/v2/_catalog" {
                return Some(page(head, "repositories", &repositories, 3, absolute));
            }
            let name = head.path.strip_prefix("/v2/")?.strip_suffix("/tags/list")?;
            Some(page(head, "tags", &tags(addr, name), 2, absolute))
        });
        let to = Registry::plain();
        copy(&source.url(), &to.url(), &[]).succeeded();
        assert_eq!(catalog(to.addr()), catalog(from.addr()));
        for name in catalog(from.addr()) {
            assert_eq!(tags(to.addr(), &name), ["a", "b", "c", "d", "e"]);
        }
    }
}

/// A list whose end cannot be had is no list: what was in it may be copied, and the run has failed.
#[test]
fn a_page_that_fails() {
    let from = Registry::plain();
    for tag in ["a", "b", "c"] {
        small(from.addr(), "broken/app", tag, 321);
    }
    let image = small(from.addr(), "whole/app", "1", 322);
    let source = Relay::before(from.addr());
    source.rule(move |head| {
        if head.path != "/v2/broken/app/tags/list" {
            return None;
        }
        if head.query_value("last").is_some() {
            return Some(Fault::Answer(Reply::new(500, "{}")));
        }
        Some(page(head, "tags", &["a".into(), "b".into(), "c".into()], 2, None))
    });
    let to = Registry::plain();
    let ours = Repository::new(to.addr(), "broken/app");
    ours.push_image("own", &image);
    copy(&source.url(), &to.url(), &["--delete"]).failed(&["broken/app"]);
    Repository::new(to.addr(), "whole/app").assert_holds("1", &image);
    ours.assert_holds("own", &image);
}

/// `"tags": null`: docker-registry's answer when the last one was deleted.
#[test]
fn tags_that_are_null() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "empty/app");
    let gone = small(from.addr(), "empty/app", "1", 331);
    theirs.delete_manifest(&gone.digest()).expect(202);
    assert_eq!(theirs.tags("").expect(200).json()["tags"], json!(null));
    let image = small(from.addr(), "whole/app", "1", 332);
    let to = Registry::plain();
    copy(&from.url(), &to.url(), &[]).succeeded();
    Repository::new(to.addr(), "whole/app").assert_holds("1", &image);
    assert_eq!(tags(to.addr(), "empty/app"), [""; 0]);
}

/// Repositories of whose tags the registry knows nothing, though it lists them.
#[test]
fn a_catalog_that_names_what_is_not_there() {
    let from = Registry::plain();
    let image = small(from.addr(), "whole/app", "1", 341);
    // Blobs alone make a repository here.
    Repository::new(from.addr(), "blobs/only").push(b"a blob");
    let source = Relay::before(from.addr());
    let names = ["blobs/only", "never/was", "whole/app"];
    let reply = Reply::new(200, json!({"repositories": names}).to_string());
    source.always("GET", "/v2/_catalog", Fault::Answer(reply));
    let to = Registry::plain();
    copy(&source.url(), &to.url(), &[]).succeeded();
    Repository::new(to.addr(), "whole/app").assert_holds("1", &image);
}

/// Names that no registry may have are left out, not written to a path of the directory.
#[test]
fn names_that_are_none() {
    let from = Registry::plain();
    let image = small(from.addr(), "whole/app", "1", 351);
    let source = Relay::before(from.addr());
    let names = json!({"repositories": ["../../escape", "UPPER/case", "a//b", "", "whole/app"]});
    source.always("GET", "/v2/_catalog", Fault::Answer(Reply::new(200, names.to_string())));
    let list = json!({"name": "whole/app", "tags": ["../../../x", "-bad", "", "1"]});
    source.always("GET", "/v2/whole/app/tags/list", Fault::Answer(Reply::new(200, list.to_string())));
    let home = super::content::temporary();
    let root = home.path().join("a/b/c");
    let finished = copy(&source.url(), &directory(&root), &[]);
    assert!(finished.status.code().is_some_and(|code| code < 2), "{}", finished.said());
    let beside: Vec<_> = crate::support::process::entries(home.path());
    assert_eq!(beside, [home.path().join("a")], "nothing is written beside the directory");
    let reader = Registry::on(&root, "of a reader");
    Repository::new(reader.addr(), "whole/app").assert_holds("1", &image);
    assert_eq!(catalog(reader.addr()), ["whole/app"]);
}

/// A registry that lists no repositories (as Docker Hub): those that are named are copied none the less.
#[test]
fn without_a_catalog() {
    let from = Registry::plain();
    let image = small(from.addr(), "library/alpine", "3", 361);
    small(from.addr(), "library/alpine", "2", 362);
    let source = Relay::before(from.addr());
    for refused in [401, 404] {
        source.heal();
        source.always("GET", "/v2/_catalog", Fault::Answer(Reply::new(refused, "{}")));
        let to = Registry::plain();
        copy(&source.url(), &to.url(), &["--include", "library/alpine:3"]).succeeded();
        Repository::new(to.addr(), "library/alpine").assert_holds("3", &image);
        assert_eq!(tags(to.addr(), "library/alpine"), ["3"]);
        // Without a name there is nothing to go by, which is not the same as nothing to do.
        copy(&source.url(), &to.url(), &[]).failed(&[&source.addr().to_string()]);
    }
}

/// An index that has so many tags that one of each is fetched once.
#[test]
fn a_digest_under_many_names_is_looked_at_once() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let image = Image::new(371, "amd64", &[1000]);
    for tag in ["1", "1.2", "1.2.3", "latest"] {
        theirs.push_image(tag, &image);
    }
    let source = Relay::before(from.addr());
    let to = Registry::plain();
    copy(&source.url(), &to.url(), &[]).succeeded();
    assert_eq!(strings(&theirs.at(to.addr()).tags("").json()["tags"]).len(), 4);
    for blob in &image.blobs {
        assert_eq!(source.seen("GET", &format!("/blobs/{}", sha256(blob))).len(), 1);
    }
}

/// A list of a part of what there is (by the rights of who asks) is no list of what is named, and is not asked for.
#[test]
fn what_is_named_need_not_be_listed() {
    let from = Registry::plain();
    let image = small(from.addr(), "hidden/app", "1", 381);
    small(from.addr(), "listed/app", "1", 382);
    let source = Relay::before(from.addr());
    let partial = Reply::new(200, r#"{"repositories":["listed/app"]}"#);
    source.always("GET", "/v2/_catalog", Fault::Answer(partial));
    let to = Registry::plain();
    copy(&source.url(), &to.url(), &["--include", "hidden/app"]).succeeded();
    Repository::new(to.addr(), "hidden/app").assert_holds("1", &image);
    assert_eq!(source.seen("GET", "/v2/_catalog").len(), 0, "{}", source.lines());
    let to = Registry::plain();
    copy(&source.url(), &to.url(), &["--include", "hidden/app", "--include", "listed/*"]).succeeded();
    assert_eq!(catalog(to.addr()), ["hidden/app", "listed/app"]);
    // What nobody has is no success.
    copy(&source.url(), &to.url(), &["--include", "nosuch/app"]).failed(&["nosuch/app"]);
}
