//! What refers to an image: by the API where there is one, by fallback tags where there is none.

use serde_json::{Value, json};

use super::command::{copy, directory};
use super::content::{artifact, assert_same, attested, fallback, manifest, put_index, status, tags};
use crate::support::images::{Image, OCI_INDEX, OCI_MANIFEST, descriptor};
use crate::support::process::Spliceway;
use crate::support::push::Repository;
use crate::support::registry::Registry;
use crate::support::relay::{Fault, Relay, Reply};
use crate::support::sha256;

/// An image with a signature, which has a signature itself, and an SBOM of one child; what a source is to hold.
struct Signed {
    image: Value,
    index: String,
    child: String,
    signature: Vec<u8>,
    countersignature: Vec<u8>,
    bill: Vec<u8>,
}

impl Signed {
    fn push(repository: &Repository) -> Self {
        let children = attested(repository, "1", 201);
        let index = manifest(repository, "1").expect(200).body;
        let image = descriptor(OCI_INDEX, &index);
        let signature = artifact(repository, "", Some(&image), b"a signature");
        let countersignature =
            artifact(repository, "", Some(&descriptor(OCI_MANIFEST, &signature)), b"a countersignature");
        let child = manifest(repository, &children[0]).expect(200).body;
        let bill = artifact(repository, "", Some(&descriptor(OCI_MANIFEST, &child)), b"a bill of materials");
        let child = children[0].clone();
        Self { index: sha256(&index), image, child, signature, countersignature, bill }
    }

    /// Subject and referrer of each pair.
    fn pairs(&self) -> [(String, &[u8]); 3] {
        [
            (self.index.clone(), &self.signature),
            (sha256(&self.signature), &self.countersignature),
            (self.child.clone(), &self.bill),
        ]
    }

    /// Lists the referrers under fallback tags, as a client of a registry without the API has to.
    fn write_fallback_tags(&self, repository: &Repository) {
        for (subject, referrer) in self.pairs() {
            put_index(repository, &fallback(&subject), &[entry(referrer)]);
        }
    }
}

fn entry(referrer: &[u8]) -> Value {
    let mut entry = descriptor(OCI_MANIFEST, referrer);
    entry["artifactType"] = json!("application/vnd.example.thing");
    entry["annotations"] = json!({"made by": "a test"});
    entry
}

/// The digests that the API lists.
#[track_caller]
fn listed(repository: &Repository, subject: &str) -> Vec<String> {
    digests(&repository.referrers(subject, "").expect(200).json())
}

/// The digests in the index under a fallback tag.
#[track_caller]
fn tagged(repository: &Repository, subject: &str) -> Vec<String> {
    digests(&manifest(repository, &fallback(subject)).expect(200).json())
}

fn digests(index: &Value) -> Vec<String> {
    let entries = index["manifests"].as_array().expect("an index");
    entries.iter().map(|entry| entry["digest"].as_str().expect("a digest").to_owned()).collect()
}

#[test]
fn by_the_api_on_both_sides() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    let to = Spliceway::start(|_| ());
    let root = to.data().join("local");
    let url = format!("http://{}", from.addr());
    copy(&url, &directory(&root), &[]).succeeded();
    let other = Spliceway::start(|_| ());
    copy(&url, &format!("http://{}", other.addr()), &[]).succeeded();
    for addr in [to.addr(), other.addr()] {
        let ours = theirs.at(addr);
        for (subject, referrer) in signed.pairs() {
            assert_eq!(listed(&ours, &subject), [sha256(referrer)]);
            assert_same(&theirs, &ours, &sha256(referrer));
        }
        assert_eq!(tags(addr, "team/app"), ["1"], "who has the API needs no tags");
    }
}

#[test]
fn to_a_registry_without_the_api() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    let to = Registry::plain();
    let url = format!("http://{}", from.addr());
    copy(&url, &to.url(), &[]).succeeded();
    let ours = theirs.at(to.addr());
    for (subject, referrer) in signed.pairs() {
        assert_eq!(tagged(&ours, &subject), [sha256(referrer)]);
        let index = manifest(&ours, &fallback(&subject)).expect(200);
        assert_eq!(index.header("content-type"), Some(OCI_INDEX));
        let entry = &index.json()["manifests"][0];
        assert_eq!(entry["artifactType"], json!("application/vnd.example.thing"));
        assert_eq!(entry["annotations"], json!({"made by": "a test"}));
        assert_same(&theirs, &ours, &sha256(referrer));
    }
    // One more, of an image that is there already: it joins the list.
    let second = artifact(&theirs, "", Some(&signed.image), b"a second signature");
    copy(&url, &to.url(), &[]).succeeded();
    let mut expected = vec![sha256(&signed.signature), sha256(&second)];
    let mut found = tagged(&ours, &signed.index);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

/// What somebody else attached at the target is no reason to lose it from the list.
#[test]
fn a_list_of_the_targets_own_is_kept() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    let to = Registry::plain();
    let ours = theirs.at(to.addr());
    let own = artifact(&ours, "", Some(&signed.image), b"attached at the target");
    put_index(&ours, &fallback(&signed.index), &[entry(&own)]);
    copy(&format!("http://{}", from.addr()), &to.url(), &[]).succeeded();
    let mut expected = vec![sha256(&signed.signature), sha256(&own)];
    let mut found = tagged(&ours, &signed.index);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

/// The same where both keep lists under fallback tags, and the source's grows.
#[test]
fn a_list_of_the_targets_own_is_kept_beside_the_sources() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    signed.write_fallback_tags(&theirs);
    let to = Registry::plain();
    let ours = theirs.at(to.addr());
    let own = artifact(&ours, "", Some(&signed.image), b"attached at the target");
    put_index(&ours, &fallback(&signed.index), &[entry(&own)]);
    let holds = |digests: &[String]| {
        let mut found = tagged(&ours, &signed.index);
        found.sort();
        let mut expected = digests.to_vec();
        expected.sort();
        assert_eq!(found, expected);
    };
    copy(&from.url(), &to.url(), &[]).succeeded();
    holds(&[sha256(&signed.signature), sha256(&own)]);
    let second = artifact(&theirs, "", Some(&signed.image), b"a second signature");
    put_index(&theirs, &fallback(&signed.index), &[entry(&signed.signature), entry(&second)]);
    copy(&from.url(), &to.url(), &[]).succeeded();
    holds(&[sha256(&signed.signature), sha256(&second), sha256(&own)]);
    // And now there is nothing to do; nor when the source's list is empty.
    for _ in 0..2 {
        let target = Relay::before(to.addr());
        copy(&from.url(), &target.url(), &[]).succeeded();
        assert!(target.seen("PUT", "").is_empty(), "{}", target.lines());
        put_index(&theirs, &fallback(&signed.index), &[]);
    }
    holds(&[sha256(&signed.signature), sha256(&second), sha256(&own)]);
}

/// What is under the fallback tag and is no list is nobody's to write over.
#[test]
fn what_is_no_list_is_kept() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    let to = Registry::plain();
    let ours = theirs.at(to.addr());
    let image = Image::new(241, "amd64", &[10]);
    ours.push_image(&fallback(&signed.index), &image);
    copy(&format!("http://{}", from.addr()), &to.url(), &[]).failed(&["no index"]);
    ours.assert_holds(&fallback(&signed.index), &image);
}

#[test]
fn from_a_registry_without_the_api() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    signed.write_fallback_tags(&theirs);
    let registry = Registry::plain();
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    copy(&from.url(), &registry.url(), &[]).succeeded();
    copy(&from.url(), &directory(&root), &[]).succeeded();
    for (subject, referrer) in signed.pairs() {
        assert_eq!(tagged(&theirs.at(registry.addr()), &subject), [sha256(referrer)]);
        let ours = theirs.at(spliceway.addr());
        assert_eq!(listed(&ours, &subject), [sha256(referrer)]);
        for addr in [registry.addr(), spliceway.addr()] {
            assert_same(&theirs, &theirs.at(addr), &sha256(referrer));
        }
    }
}

/// Fallback tags belong to their image: where only some tags are chosen, they come with those.
#[test]
fn fallback_tags_follow_their_image() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    signed.write_fallback_tags(&theirs);
    let other = Image::new(221, "amd64", &[10]);
    theirs.push_image("2", &other);
    let of_other =
        artifact(&theirs, "", Some(&descriptor(OCI_MANIFEST, &other.manifest)), b"another signature");
    put_index(&theirs, &fallback(&other.digest()), &[entry(&of_other)]);
    let to = Registry::plain();
    copy(&from.url(), &to.url(), &["--include", "team/*:1"]).succeeded();
    let ours = theirs.at(to.addr());
    for (subject, referrer) in signed.pairs() {
        assert_eq!(tagged(&ours, &subject), [sha256(referrer)]);
    }
    for absent in ["2", &fallback(&other.digest()), &other.digest(), &sha256(&of_other)] {
        assert_eq!(status(&ours, absent), 404, "{absent} was not asked for");
    }
}

#[test]
fn none_if_none_are_wanted() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    let to = Registry::plain();
    copy(&format!("http://{}", from.addr()), &to.url(), &["--no-referrers"]).succeeded();
    let ours = theirs.at(to.addr());
    assert_same(&theirs, &ours, "1");
    for (subject, referrer) in signed.pairs() {
        assert_eq!(status(&ours, &sha256(referrer)), 404);
        assert_eq!(status(&ours, &fallback(&subject)), 404);
    }
}

/// Two artifacts that refer to each other's subjects in a long chain are followed for a while, and the run ends.
#[test]
fn a_long_chain_ends() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let image = Image::new(231, "amd64", &[10]);
    theirs.push_image("1", &image);
    let mut subject = image.manifest.clone();
    for number in 0..40 {
        subject = artifact(
            &theirs,
            "",
            Some(&descriptor(OCI_MANIFEST, &subject)),
            format!("link {number}").as_bytes(),
        );
    }
    let to = Spliceway::start(|_| ());
    let finished = copy(&format!("http://{}", from.addr()), &format!("http://{}", to.addr()), &[]);
    theirs.at(to.addr()).assert_holds("1", &image);
    // Whether so long a chain counts as a failure is not what is asked here, but that it is not left out silently.
    if status(&theirs.at(to.addr()), &sha256(&subject)) == 404 {
        finished.failed(&["team/app"]);
    } else {
        finished.succeeded();
    }
}

/// An image that was promoted by a second name is signed under that name too: what refers to it belongs to the repository.
#[test]
fn the_same_image_in_two_repositories() {
    let from = Spliceway::start(|_| ());
    let image = Image::new(291, "amd64", &[100]);
    let subject = descriptor(OCI_MANIFEST, &image.manifest);
    let repositories = ["dev/app", "prod/app"].map(|name| Repository::new(from.addr(), name));
    let mut signature = Vec::new();
    for theirs in &repositories {
        theirs.push_image("1", &image);
        signature = artifact(theirs, "", Some(&subject), b"a signature");
    }
    let to = Spliceway::start(|_| ());
    copy(&format!("http://{}", from.addr()), &directory(&to.data().join("local")), &[]).succeeded();
    for theirs in &repositories {
        assert_eq!(listed(&theirs.at(to.addr()), &image.digest()), [sha256(&signature)]);
    }
}

/// What is said later of an image that does not change, of its children and of its signatures, comes with a later run; so
/// does what failed before.
#[test]
fn what_is_said_later() {
    let from = Spliceway::start(|_| ());
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    let (tree, registry, plain) = (Spliceway::start(|_| ()), Spliceway::start(|_| ()), Registry::plain());
    let places = [
        (directory(&tree.data().join("local")), tree.addr()),
        (format!("http://{}", registry.addr()), registry.addr()),
        (plain.url(), plain.addr()),
    ];
    let source = Relay::before(from.addr());
    source.always("GET", &sha256(&signed.bill), Fault::Answer(Reply::new(404, "{}")));
    for (to, _) in &places {
        copy(&source.url(), to, &[]).failed(&[&sha256(&signed.bill)]);
    }
    source.heal();
    let later =
        artifact(&theirs, "", Some(&descriptor(OCI_MANIFEST, &signed.signature)), b"another signature");
    for (to, addr) in &places {
        copy(&source.url(), to, &[]).succeeded();
        let ours = theirs.at(*addr);
        assert_same(&theirs, &ours, &sha256(&signed.bill));
        assert_same(&theirs, &ours, &sha256(&later));
    }
}

/// The same by tags, where only some tags are chosen.
#[test]
fn a_signature_of_a_child_that_comes_later() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    let to = Registry::plain();
    copy(&from.url(), &to.url(), &["--include", "team/app:1"]).succeeded();
    let tag = format!("{}.sig", fallback(&signed.child));
    artifact(&theirs, &tag, None, b"a signature");
    copy(&from.url(), &to.url(), &["--include", "team/app:1"]).succeeded();
    assert_eq!(status(&theirs.at(to.addr()), &tag), 200);
}

/// Who has no list of referrers may say so in other ways than by 404.
#[test]
fn a_registry_that_does_not_know_the_question() {
    let from = Registry::plain();
    let theirs = Repository::new(from.addr(), "team/app");
    let signed = Signed::push(&theirs);
    signed.write_fallback_tags(&theirs);
    for refused in [400, 405, 501] {
        let to = Registry::plain();
        let (source, target) = (Relay::before(from.addr()), Relay::before(to.addr()));
        for relay in [&source, &target] {
            relay.always("GET", "/referrers/", Fault::Answer(Reply::new(refused, "{}")));
        }
        copy(&source.url(), &target.url(), &[]).succeeded();
        for (subject, referrer) in signed.pairs() {
            assert_eq!(tagged(&theirs.at(to.addr()), &subject), [sha256(referrer)]);
        }
    }
}
