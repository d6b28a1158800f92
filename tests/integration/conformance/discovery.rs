//! Content discovery: tags in pages, and what refers to a manifest.

use serde_json::{Value, json};

use super::registry;
use crate::support::client::{Answer, Request};
use crate::support::images::{Image, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, descriptor, index};
use crate::support::origin::Origin;
use crate::support::process::Spliceway;
use crate::support::push::{Repository, strings};
use crate::support::registry::Registry;
use crate::support::{sha256, sha512};

/// Where the answer's Link leads.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let (target, rel) = link.split_once('>').expect("a target in <>");
    assert_eq!(rel.replace(' ', ""), ";rel=\"next\"", "{link}");
    let target = target.strip_prefix('<').expect("a target in <>");
    let path = target.find("/v2/").expect("a path of the API");
    Some(target[path..].to_owned())
}

/// Follows the links from the first page of `n` on; each page.
fn pages(repository: &Repository, n: usize) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut answer = repository.tags(&format!("?n={n}")).expect(200);
    loop {
        pages.push(strings(&answer.json()["tags"]));
        assert!(pages.len() < 1000, "the pages do not end");
        let Some(target) = next(&answer) else { return pages };
        answer = Request::get(target).send(repository.addr()).expect(200);
    }
}

#[test]
fn tags_are_listed_in_order_and_in_pages() {
    let (_spliceway, repository) = registry();
    assert!(matches!(repository.tags("").status(), 200 | 404));
    let image = Image::new(1, "amd64", &[100]);
    repository.push_blobs(&image);
    let mut names: Vec<String> = (0..25).map(|number| format!("test{number}")).collect();
    names.extend(["1.0", "1.0-rc_1", "latest", "_x", "a.b", "a-b", "a_b", "10", "2"].map(str::to_owned));
    // Not in the order of the list.
    for name in names.iter().rev() {
        repository.put(name, OCI_MANIFEST, &image.manifest).expect(201);
    }
    names.sort();
    let whole = repository.tags("").expect(200);
    assert_eq!(whole.json(), json!({"name": "team/app", "tags": names}));
    assert_eq!(whole.header("link"), None);
    assert!(whole.header("content-type").is_some_and(|kind| kind.starts_with("application/json")));

    for n in [1, 2, 7, names.len() - 1, names.len(), names.len() + 1, 100_000] {
        let pages = pages(&repository, n);
        assert!(pages.iter().rev().skip(1).all(|page| page.len() == n), "pages of {n}: {pages:?}");
        assert_eq!(pages.concat(), names, "pages of {n}");
    }
    // `last` alone, with `n`, and of a tag that does not exist.
    for (at, name) in names.iter().enumerate() {
        assert_eq!(repository.tag_names(&format!("?last={name}")), names[at + 1..]);
        let end = names.len().min(at + 4);
        assert_eq!(repository.tag_names(&format!("?n=3&last={name}")), names[at + 1..end]);
    }
    let after: Vec<_> = names.iter().filter(|name| name.as_str() > "test1z").cloned().collect();
    assert_eq!(repository.tag_names("?last=test1z"), after);
    assert!(repository.tag_names("?last=zzz").is_empty());

    let none = repository.tags("?n=0").expect(200);
    assert!(strings(&none.json()["tags"]).is_empty());
    assert_eq!(none.header("link"), None);
    for n in ["-1", "x", "", "1.5", "99999999999999999999999999"] {
        repository.tags(&format!("?n={n}")).expect_error(400, "PAGINATION_NUMBER_INVALID");
    }
    repository.named("no/such").tags("").expect_error(404, "NAME_UNKNOWN");
}

#[test]
fn upper_case_tags_are_listed_too() {
    let (_spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    repository.push_blobs(&image);
    let names = ["b", "A", "a", "B", "Release-1", "release-1"];
    for name in names {
        repository.put(name, OCI_MANIFEST, &image.manifest).expect(201);
    }
    let mut ascii = names.map(str::to_owned);
    ascii.sort();
    let mut lexical = ascii.clone();
    lexical.sort_by_key(|name| name.to_lowercase());
    let listed = repository.tag_names("");
    assert!(listed == ascii || listed == lexical, "{listed:?}");
    for n in 1..7 {
        assert_eq!(pages(&repository, n).concat(), listed, "pages of {n}");
    }
}

/// A manifest that refers to `subject`; with a type of its own, or else that of its config.
fn referrer(repository: &Repository, subject: &Value, kind: Option<&str>, note: &str) -> Vec<u8> {
    let config = format!("{{\"note\":\"{note}\"}}").into_bytes();
    repository.push(&config);
    let config_type =
        if kind.is_some() { "application/vnd.oci.empty.v1+json" } else { "application/vnd.example.config" };
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(config_type, &config),
        "layers": [], "subject": subject, "annotations": {"org.example.note": note},
    });
    if let Some(kind) = kind {
        manifest["artifactType"] = kind.into();
    }
    manifest.to_string().into_bytes()
}

/// The entry that stands for a manifest in the list of referrers.
fn entry(media_type: &str, manifest: &[u8], artifact_type: Option<&str>, note: &str) -> Value {
    let mut entry = descriptor(media_type, manifest);
    if let Some(artifact_type) = artifact_type {
        entry["artifactType"] = artifact_type.into();
    }
    entry["annotations"] = json!({"org.example.note": note});
    entry
}

/// The answer is an index with exactly these entries, in whatever order.
#[track_caller]
fn assert_referrers(answer: Answer, expected: &[Value]) {
    let answer = answer.expect(200);
    assert_eq!(answer.header("content-type"), Some(OCI_INDEX), "{answer}");
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(OCI_INDEX)), "{answer}");
    let by_digest = |entries: &[Value]| {
        let mut entries = entries.to_vec();
        entries.sort_by_key(|entry| entry["digest"].to_string());
        entries
    };
    let listed = index["manifests"].as_array().unwrap_or_else(|| panic!("a list, even if empty: {answer}"));
    assert_eq!(by_digest(listed), by_digest(expected));
}

const SBOM: &str = "application/vnd.example.sbom.v1";
const SIGNATURE: &str = "application/vnd.example.signature.v1";

#[test]
fn referrers_are_listed_whatever_came_first() {
    let (mut spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    let subject = descriptor(OCI_MANIFEST, &image.manifest);
    let digest = image.digest();
    assert_referrers(repository.referrers(&digest, ""), &[]);

    let put = |bytes: &[u8], media_type: &str| {
        let answer = repository.put(&sha256(bytes), media_type, bytes).expect(201);
        assert_eq!(answer.header("oci-subject"), Some(digest.as_str()), "{answer}");
    };
    // Two before the subject is there, one of them by its config's type alone.
    let sbom = referrer(&repository, &subject, Some(SBOM), "sbom");
    put(&sbom, OCI_MANIFEST);
    let config = referrer(&repository, &subject, None, "config");
    put(&config, OCI_MANIFEST);
    repository.push_image("v1", &image);
    // And after; an index with a type, one without.
    let signature = referrer(&repository, &subject, Some(SIGNATURE), "signature");
    put(&signature, OCI_MANIFEST);
    let index_of = |kind: Option<&str>, note: &str| {
        let mut index = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_MANIFEST, &sbom)],
            "subject": subject, "annotations": {"org.example.note": note},
        });
        if let Some(kind) = kind {
            index["artifactType"] = kind.into();
        }
        index.to_string().into_bytes()
    };
    let typed = index_of(Some(SBOM), "typed");
    put(&typed, OCI_INDEX);
    let untyped = index_of(None, "untyped");
    put(&untyped, OCI_INDEX);

    let all = [
        entry(OCI_MANIFEST, &sbom, Some(SBOM), "sbom"),
        entry(OCI_MANIFEST, &config, Some("application/vnd.example.config"), "config"),
        entry(OCI_MANIFEST, &signature, Some(SIGNATURE), "signature"),
        entry(OCI_INDEX, &typed, Some(SBOM), "typed"),
        entry(OCI_INDEX, &untyped, None, "untyped"),
    ];
    let check = |repository: &Repository| {
        assert_referrers(repository.referrers(&digest, ""), &all);
        let filtered = |kind: &str| {
            let kind = kind.replace('/', "%2F").replace('+', "%2B");
            let answer = repository.referrers(&digest, &format!("?artifactType={kind}")).expect(200);
            assert_eq!(answer.header_values("oci-filters-applied"), ["artifactType"], "{answer}");
            answer
        };
        assert_referrers(filtered(SBOM), &[all[0].clone(), all[3].clone()]);
        assert_referrers(filtered("application/vnd.example.config"), &all[1..2]);
        assert_referrers(filtered("application/vnd.example.nothing"), &[]);
        let unfiltered = repository.referrers(&digest, "").expect(200);
        assert_eq!(unfiltered.header("oci-filters-applied"), None);
    };
    check(&repository);
    // The same again changes nothing; the list is not in memory alone.
    put(&sbom, OCI_MANIFEST);
    check(&repository);
    spliceway.stop();
    spliceway.restart(|_| ());
    let repository = repository.at(spliceway.addr());
    check(&repository);
    // Another repository's referrers are its own.
    assert_referrers(repository.named("other/app").referrers(&digest, ""), &[]);
    // What is deleted refers to nothing; deleting the subject leaves what refers to it.
    repository.delete_manifest(&sha256(&signature)).expect(202);
    repository.delete_manifest(&digest).expect(202);
    let left: Vec<Value> =
        all.iter().filter(|entry| entry["digest"] != sha256(&signature)).cloned().collect();
    assert_referrers(repository.referrers(&digest, ""), &left);
}

#[test]
fn a_subject_that_never_comes_is_accepted() {
    let (_spliceway, repository) = registry();
    let missing = json!({"mediaType": OCI_MANIFEST, "digest": sha256(b"missing"), "size": 123});
    let manifest = referrer(&repository, &missing, Some(SBOM), "early");
    let answer = repository.put("tagged", OCI_MANIFEST, &manifest).expect(201);
    assert_eq!(answer.header("oci-subject"), Some(sha256(b"missing").as_str()));
    let expected = entry(OCI_MANIFEST, &manifest, Some(SBOM), "early");
    assert_referrers(repository.referrers(&sha256(b"missing"), ""), &[expected]);
    repository.manifest("tagged").expect(200).expect_body(&manifest);
    // No subject, no header.
    let image = Image::new(1, "amd64", &[100]);
    repository.push_blobs(&image);
    let answer = repository.put("v1", OCI_MANIFEST, &image.manifest).expect(201);
    assert_eq!(answer.header("oci-subject"), None);
}

#[test]
fn referrers_of_what_is_no_digest_are_refused() {
    let (_spliceway, repository) = registry();
    for digest in ["sha256:xyz", "latest", "sha256:"] {
        repository.referrers(digest, "").expect_error(400, "DIGEST_INVALID");
    }
    assert_referrers(repository.named("no/such").referrers(&sha256(b"x"), ""), &[]);
}

#[test]
fn referrers_under_the_fallback_tag_are_listed_too() {
    let (_spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[100]);
    repository.push_image("v1", &image);
    for digest in [sha256 as fn(&[u8]) -> String, sha512] {
        let digest = digest(&image.manifest);
        let mut subject = descriptor(OCI_MANIFEST, &image.manifest);
        subject["digest"] = digest.as_str().into();
        // As a client does it at a registry without the API: its own list under a tag. One entry of it refers to the
        // subject, one is a bystander.
        let manifest = referrer(&repository, &subject, Some(SBOM), "old");
        repository.put(&sha256(&manifest), OCI_MANIFEST, &manifest).expect(201);
        let listed = entry(OCI_MANIFEST, &manifest, Some(SBOM), "old");
        let bystander = descriptor(OCI_MANIFEST, &image.manifest);
        let list = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed, bystander]});
        let list = list.to_string().into_bytes();
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        let tag = format!("{algorithm}-{}", &hex[..64]);
        repository.put(&tag, OCI_INDEX, &list).expect(201);
        // In both ways, and once.
        assert_referrers(repository.referrers(&digest, ""), std::slice::from_ref(&listed));
        assert_referrers(repository.referrers(&digest, "?artifactType=application%2Fother"), &[]);
        // The tag remains a tag.
        repository.manifest(&tag).expect(200).expect_body(&list);
    }
}

#[test]
fn referrers_that_another_registry_kept_under_the_fallback_tag_are_listed() {
    let (mut spliceway, repository) = registry();
    let root = spliceway.data().join("local");
    spliceway.stop();
    // Pushed where nothing remembers who refers to what.
    let central = Registry::on(&root, "of these tests");
    let theirs = repository.at(central.addr());
    let image = Image::new(1, "amd64", &[100]);
    theirs.push_image("v1", &image);
    for (digest, note) in [(sha256 as fn(&[u8]) -> String, "short"), (sha512, "long")] {
        let digest = digest(&image.manifest);
        let mut subject = descriptor(OCI_MANIFEST, &image.manifest);
        subject["digest"] = digest.as_str().into();
        let manifest = referrer(&theirs, &subject, Some(SBOM), note);
        theirs.put(&sha256(&manifest), OCI_MANIFEST, &manifest).expect(201);
        let list = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX,
            "manifests": [entry(OCI_MANIFEST, &manifest, Some(SBOM), note)],
        });
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        let tag = format!("{algorithm}-{}", &hex[..64]);
        theirs.put(&tag, OCI_INDEX, list.to_string().as_bytes()).expect(201);
    }
    drop(central);
    spliceway.restart(|_| ());
    let repository = repository.at(spliceway.addr());
    for digest in [sha256(&image.manifest), sha512(&image.manifest)] {
        let list = repository.referrers(&digest, "").expect(200).json();
        assert_eq!(list["manifests"].as_array().map(Vec::len), Some(1), "{digest}: {list}");
        assert_eq!(list["manifests"][0]["artifactType"], SBOM);
    }
}

#[test]
fn many_referrers_come_whole() {
    let (_spliceway, repository) = registry();
    let image = Image::new(1, "amd64", &[]);
    let subject = descriptor(OCI_MANIFEST, &image.manifest);
    // With annotations, so that one index of them all would be larger than a manifest may be.
    let padding = "A".repeat(30_000);
    repository.push(b"{}");
    let mut expected: Vec<String> = (0..200)
        .map(|number| {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": SBOM, "layers": [],
                "config": descriptor(OCI_CONFIG, b"{}"), "subject": subject,
                "annotations": {"org.example.padding": padding, "org.example.number": number.to_string()},
            });
            let manifest = manifest.to_string().into_bytes();
            repository.put(&sha256(&manifest), OCI_MANIFEST, &manifest).expect(201);
            sha256(&manifest)
        })
        .collect();
    expected.sort();
    for query in ["", "?artifactType=application%2Fvnd.example.sbom.v1"] {
        let mut listed = Vec::new();
        let mut answer = repository.referrers(&image.digest(), query).expect(200);
        loop {
            for entry in answer.json()["manifests"].as_array().expect("a list") {
                listed.push(entry["digest"].as_str().expect("a digest").to_owned());
                assert_eq!(entry["annotations"]["org.example.padding"], padding.as_str());
            }
            assert!(listed.len() <= expected.len(), "the pages do not end");
            let Some(target) = next(&answer) else { break };
            answer = Request::get(target).send(repository.addr()).expect(200);
            assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
        }
        listed.sort();
        assert_eq!(listed, expected, "{query:?}");
    }
}

#[test]
fn tags_pushed_and_tags_of_upstream_are_one_list() {
    let origin = Origin::start();
    for (seed, tag) in [(1, "b"), (2, "d")] {
        Image::new(seed, "amd64", &[100]).hold(&origin, "team/app", tag);
    }
    origin.always(
        "GET",
        "/v2/team/app/tags/list",
        crate::support::plan::Plan::instead(br#"{"name":"team/app","tags":["d","b"]}"#.to_vec()),
    );
    let spliceway = Spliceway::before(&origin);
    let repository = Repository::new(spliceway.addr(), "team/app");
    let image = Image::new(3, "amd64", &[100]);
    for tag in ["c", "a", "b"] {
        repository.push_image(tag, &image);
    }
    assert_eq!(repository.tag_names(""), ["a", "b", "c", "d"]);
    assert_eq!(pages(&repository, 3), [vec!["a", "b", "c"], vec!["d"]]);
    repository.manifest("b").expect(200).expect_body(&image.manifest);
}

#[test]
fn an_index_and_its_children_are_listed_apart() {
    let (_spliceway, repository) = registry();
    let images = [Image::new(1, "amd64", &[100]), Image::new(2, "arm64", &[200])];
    for image in &images {
        repository.push_blobs(image);
        repository.put(&image.digest(), OCI_MANIFEST, &image.manifest).expect(201);
    }
    // What was pushed by digest has no tag.
    assert!(repository.tag_names("").is_empty());
    repository.put("v1", OCI_INDEX, &index(&images)).expect(201);
    assert_eq!(repository.tag_names(""), ["v1"]);
}
