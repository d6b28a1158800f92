//! Tags, lists of images, searches.

use serde_json::json;

use crate::support::client::{Request, get};
use crate::support::eventually;
use crate::support::origin::{Document, Origin};
use crate::support::plan::Plan;

use super::{Image, asked, mirror, mirror_with};

const TAGS: &str = "/v1/repositories/team/app/tags";
const TAG: &str = "/v1/repositories/team/app/tags/latest";

/// A source with a repository whose tag `latest` is `image`.
fn put_tags(source: &Origin, image: &Image, change: impl Fn(Document) -> Document) {
    source.document(TAGS, change(Document::new(json!({ "latest": image.id }).to_string())));
    source.document(TAG, change(Document::new(json!(image.id).to_string())));
}

#[test]
fn tags_are_kept_and_survive_a_restart_and_the_source() {
    let (old, new) = (Image::new(1, 1), Image::new(2, 1));
    let mut source = Origin::start();
    put_tags(&source, &old, |document| document);
    let mut spliceway = mirror(&source);
    for _ in 0..2 {
        assert_eq!(get(spliceway.addr(), TAGS).expect(200).json(), json!({ "latest": old.id }));
        assert_eq!(get(spliceway.addr(), TAG).expect(200).json(), json!(old.id));
    }
    assert_eq!((asked(&source, TAGS), asked(&source, TAG)), (1, 1));
    put_tags(&source, &new, |document| document);
    assert_eq!(get(spliceway.addr(), TAGS).expect(200).json(), json!({ "latest": old.id }), "for two days");
    spliceway.stop();
    source.stop();
    spliceway.restart(|_| ());
    assert_eq!(get(spliceway.addr(), TAG).expect(200).json(), json!(old.id));
}

#[test]
fn tags_are_asked_for_again_when_their_time_is_over_and_served_while_the_source_fails() {
    let (old, new) = (Image::new(1, 1), Image::new(2, 1));
    let mut source = Origin::start();
    put_tags(&source, &old, |document| document);
    let spliceway = mirror_with(&source, |_, v1| drop(v1.insert("tags_cache_ttl".into(), "1s".into())));
    assert_eq!(get(spliceway.addr(), TAG).expect(200).json(), json!(old.id));
    put_tags(&source, &new, |document| document);
    eventually("the new tag", || {
        (get(spliceway.addr(), TAG).expect(200).json() == json!(new.id)).then_some(())
    });
    source.always("GET", TAG, Plan::status(500));
    eventually("a stale tag", || {
        let answer = get(spliceway.addr(), TAG).expect(200);
        assert_eq!(answer.json(), json!(new.id));
        answer.header("warning").is_some().then_some(())
    });
    source.stop();
    eventually("a stale tag", || {
        let answer = get(spliceway.addr(), TAG).expect(200);
        assert_eq!(answer.json(), json!(new.id));
        answer.header("warning").is_some().then_some(())
    });
    // What was never kept cannot be served.
    get(spliceway.addr(), TAGS).expect(502);
    // A tag that is gone is gone, also when the source fails afterwards.
    source.heal();
    source.restart();
    source.forget_document(TAG);
    eventually("the end of the tag", || (get(spliceway.addr(), TAG).status() == 404).then_some(()));
    source.stop();
    get(spliceway.addr(), TAG).expect(502);
}

#[test]
fn tags_of_a_private_repository_are_for_who_may_have_them() {
    let image = Image::new(1, 1);
    let source = Origin::start();
    put_tags(&source, &image, |document| document.requires("authorization", "Basic b3duZXI6"));
    let spliceway = mirror(&source);
    let ask = |who| Request::get(TAGS).header("Authorization", who).send(spliceway.addr());
    for _ in 0..2 {
        assert_eq!(ask("Basic b3duZXI6").expect(200).json(), json!({ "latest": image.id }));
        ask("Basic b3RoZXI6").expect(401);
        get(spliceway.addr(), TAGS).expect(401);
    }
    let seen = source.seen("GET", TAGS);
    let of_owner = seen.iter().filter(|seen| seen.header("authorization") == Some("Basic b3duZXI6")).count();
    assert_eq!(of_owner, 1, "they are kept for the owner for a moment");
    assert!(!spliceway.data().join("cache/repositories").exists(), "nothing private is on disk");
}

#[test]
fn senseless_tags_are_not_kept() {
    let source = Origin::start();
    source.document(TAGS, Document::new("<html>"));
    source.document(TAG, Document::new("\"no id\""));
    let spliceway = mirror(&source);
    get(spliceway.addr(), TAGS).expect(502);
    get(spliceway.addr(), TAG).expect(502);
    assert!(!spliceway.data().join("cache/repositories").exists());
    let answer = get(spliceway.addr(), "/v1/repositories/team/other/tags").expect(404);
    assert_eq!(answer.json()["error"], "Repository not found");
}

#[test]
fn the_index_is_asked_with_the_clients_own_headers_and_this_host_has_the_images() {
    const IMAGES: &str = "/v1/repositories/library/app/images";
    let (source, index) = (Origin::start(), Origin::start());
    let list = Document::new("[]")
        .header("X-Docker-Endpoints", "registry-1.example.org")
        .header("X-Docker-Token", "signature=1")
        .header("Set-Cookie", "session=1")
        .header("X-Other", "1");
    index.document(IMAGES, list);
    let spliceway = mirror_with(&source, |_, v1| drop(v1.insert("source_index".into(), index.url().into())));
    let answer = Request::get("/v1/repositories/app/images?a=b")
        .host("mirror.example.org")
        .header("X-Docker-Token", "true")
        .header("Authorization", "Basic eA==")
        .header("User-Agent", "docker/1.5.0")
        .header("Location", "elsewhere")
        .header("Connection", "x-hop")
        .header("X-Hop", "1")
        .send(spliceway.addr())
        .expect(200)
        .expect_body(b"[]");
    assert_eq!(answer.header("x-docker-endpoints"), Some("mirror.example.org"));
    assert_eq!(answer.header("x-docker-token"), Some("signature=1"));
    assert_eq!(answer.header("set-cookie"), Some("session=1"));
    assert_eq!(answer.header("x-other"), None);
    let seen = &index.seen("GET", IMAGES)[0];
    assert_eq!(seen.head.query, "a=b");
    for (name, value) in [
        ("x-docker-token", Some("true")),
        ("authorization", Some("Basic eA==")),
        ("user-agent", Some("docker/1.5.0")),
        ("location", None),
        ("x-hop", None),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }
    assert_eq!(seen.header("host"), Some(&*index.addr().to_string()));
    assert!(source.all_seen().is_empty());
}

#[test]
fn search_merges_what_the_source_finds_with_what_is_here() {
    let mut source = Origin::start();
    let found = json!({ "query": "app", "num_results": 2, "page": 1, "results": [
        { "name": "team/app", "description": "theirs" }, { "name": "library/apple", "description": "" } ] });
    source.document("/v1/search", Document::new(found.to_string()));
    let spliceway = mirror(&source);
    for name in ["team/app", "team/app2", "team/other", "library/apple"] {
        let directory = spliceway.data().join("local/repositories").join(name);
        std::fs::create_dir_all(directory).expect("our own directory");
    }
    let names = |path: &str| -> Vec<String> {
        let answer = get(spliceway.addr(), path).expect(200).json();
        let results = answer["results"].as_array().expect("a list");
        assert_eq!(answer["num_results"], results.len());
        results.iter().map(|result| result["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names("/v1/search?q=app"), ["team/app", "library/apple", "team/app2"]);
    let first = get(spliceway.addr(), "/v1/search?q=app").json()["results"][0].clone();
    assert_eq!(first["description"], "theirs");
    assert_eq!(source.seen("GET", "/v1/search")[0].head.query, "q=app");
    source.stop();
    assert_eq!(names("/v1/search?q=app"), ["library/apple", "team/app", "team/app2"]);
    assert!(names("/v1/search?q=nothing").is_empty());
}
