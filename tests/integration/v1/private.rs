//! Private images are not handed to others.

use std::process::Command;

use crate::support::client::{Answer, Request, get};
use crate::support::origin::{Document, Origin};
use crate::support::plan::Plan;
use crate::support::process::Spliceway;
use crate::support::{KIB, MIB, tools};

use super::{Image, asked, mirror, mirror_with, source_of};

const OWNER: &str = "Token signature=0123,repository=\"a/b\",access=read";
const OTHER: &str = "Token signature=4567,repository=\"a/b\",access=read";

/// A source that gives an image to its owner only.
fn source_of_private(image: &Image) -> Origin {
    let source = Origin::start();
    image.put(&source, |document| document.requires("authorization", OWNER));
    source
}

fn ask(spliceway: &Spliceway, path: &str, authorization: &str) -> Answer {
    Request::get(path).header("Authorization", authorization).send(spliceway.addr())
}

#[test]
fn a_private_image_is_served_to_its_owner_and_to_nobody_else() {
    let image = Image::new(1, MIB);
    let mut source = source_of_private(&image);
    let spliceway = mirror(&source);
    ask(&spliceway, &image.layer_path(), OWNER).expect(200).expect_body(&image.layer);
    image.wait_stored(&spliceway);
    assert!(!image.kept(&spliceway, "_public").exists());
    let questions = asked(&source, &image.path("json"));
    for part in ["layer", "json", "ancestry"] {
        let answer = ask(&spliceway, &image.path(part), OWNER).expect(200);
        assert_eq!(answer.header("cache-control"), Some("private, max-age=31536000"));
        for refused in [
            ask(&spliceway, &image.path(part), OTHER),
            get(spliceway.addr(), &image.path(part)),
            Request::get(image.path(part)).header("Cookie", "session=1").send(spliceway.addr()),
            // Access comes before 304, and before ranges.
            Request::get(image.path(part))
                .header("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT")
                .send(spliceway.addr()),
            Request::get(image.path(part)).range("0-0").send(spliceway.addr()),
            Request::head(image.path(part)).send(spliceway.addr()),
        ] {
            let refused = refused.expect(401);
            assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"documents\""));
        }
        let since = Request::get(image.path(part))
            .header("Authorization", OWNER)
            .header("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT");
        since.send(spliceway.addr()).expect(304);
    }
    let of_owner = source.seen("GET", &image.path("json"));
    let of_owner = of_owner.iter().filter(|seen| seen.header("authorization") == Some(OWNER)).count();
    assert_eq!(of_owner, 1, "the owner was admitted once, of {questions} questions at first");
    source.stop();
    // The source's yes is believed for a moment; nobody else can be asked about.
    ask(&spliceway, &image.layer_path(), OWNER).expect(200).expect_body(&image.layer);
    ask(&spliceway, &image.layer_path(), OTHER).expect(502);
    assert!(!spliceway.log().contains("signature"), "credentials are not logged");
}

#[test]
fn who_may_not_have_an_image_cannot_join_its_fill() {
    let image = Image::new(2, MIB);
    let source = source_of_private(&image);
    let spliceway = mirror(&source);
    let gate = crate::support::plan::Gate::new();
    source.script("GET", &image.layer_path(), [Plan::stall(512 * KIB as u64, &gate)]);
    let of_owner = Request::get(image.layer_path()).header("Authorization", OWNER).open(spliceway.addr());
    gate.wait_reached();
    ask(&spliceway, &image.layer_path(), OTHER).expect(401);
    gate.open();
    of_owner.collect().expect(200).expect_body(&image.layer);
}

#[test]
fn a_range_of_a_private_layer_fills_the_cache_with_the_whole() {
    let image = Image::new(13, MIB);
    let source = source_of_private(&image);
    let spliceway = mirror(&source);
    let request = Request::get(image.layer_path()).header("Authorization", OWNER).range("5-9");
    let answer = request.header("If-Range", "\"x\"").send(spliceway.addr());
    answer.expect(200).expect_body(&image.layer);
    let request = Request::get(image.layer_path()).header("Authorization", OWNER).range("5-9");
    request.send(spliceway.addr()).expect(206).expect_body(&image.layer[5..10]);
    image.wait_stored(&spliceway);
    for seen in source.all_seen() {
        assert_eq!((seen.header("range"), seen.header("if-range")), (None, None));
    }
}

#[test]
fn what_nobody_is_refused_is_public_though_a_client_with_credentials_brought_it() {
    let image = Image::new(3, MIB);
    let mut source = source_of(&image);
    let spliceway = mirror(&source);
    ask(&spliceway, &image.layer_path(), OWNER).expect(200).expect_body(&image.layer);
    image.wait_stored(&spliceway);
    source.stop();
    for answer in [get(spliceway.addr(), &image.layer_path()), ask(&spliceway, &image.layer_path(), OTHER)] {
        let answer = answer.expect(200).expect_body(&image.layer);
        assert_eq!(answer.header("cache-control"), Some("public, max-age=31536000"));
    }
}

#[test]
fn an_image_that_becomes_public_is_served_to_everybody() {
    let image = Image::new(4, MIB);
    let source = source_of_private(&image);
    let spliceway = mirror(&source);
    ask(&spliceway, &image.layer_path(), OWNER).expect(200);
    image.wait_stored(&spliceway);
    get(spliceway.addr(), &image.layer_path()).expect(401);
    image.put(&source, |document| document);
    get(spliceway.addr(), &image.layer_path()).expect(200).expect_body(&image.layer);
    assert_eq!(asked(&source, &image.layer_path()), 1, "it was held");
}

#[test]
fn a_source_that_will_not_speak_to_nobody_is_asked_as_the_client() {
    const TAGS: &str = "/v1/repositories/a/b/tags";
    let silences = [Plan::status(429), Plan::instead(b"<html>log in</html>".to_vec())];
    for (number, silence) in silences.into_iter().enumerate() {
        let image = Image::new(20 + number as u64, MIB);
        let source = source_of_private(&image);
        source.document(TAGS, Document::new("{}").requires("authorization", OWNER));
        let spliceway = mirror(&source);
        for (path, expected) in [(image.path("json"), image.json.as_str()), (TAGS.into(), "{}")] {
            source.script("GET", &path, [silence.clone()]);
            ask(&spliceway, &path, OWNER).expect(200).expect_body(expected.as_bytes());
            let askers = source.seen("GET", &path);
            let askers: Vec<_> = askers.iter().map(|seen| seen.header("authorization")).collect();
            assert_eq!(askers, [None, Some(OWNER)], "{path}");
            ask(&spliceway, &path, OTHER).expect(401);
            get(spliceway.addr(), &path).expect(401);
        }
        assert!(!image.kept(&spliceway, "_public").exists());
    }
}

#[test]
fn a_cookie_is_a_credential_and_a_refusal_may_be_403() {
    let image = Image::new(5, MIB);
    let source = Origin::start();
    image.put(&source, |document| document.requires("cookie", "session=right"));
    let spliceway = mirror(&source);
    let with_cookie =
        |cookie| Request::get(image.layer_path()).header("Cookie", cookie).send(spliceway.addr());
    with_cookie("session=right").expect(200).expect_body(&image.layer);
    with_cookie("session=wrong").expect(401);
    source.always("GET", &image.path("json"), Plan::status(403));
    with_cookie("session=wrong").expect(403);
    source.always("GET", &image.path("json"), Plan::status(404));
    with_cookie("session=wrong").expect(404);
}

#[test]
fn the_rules_of_the_registry_come_first_and_images_need_all_of_it() {
    let image = Image::new(6, MIB);
    let source = source_of(&image);
    let spliceway = mirror_with(&source, |setup, _| {
        let mut access = toml::Table::new();
        access.insert("anonymous".into(), vec!["pull"].into());
        access.insert("anonymous_repositories".into(), vec!["library/*"].into());
        setup.registry("access", access);
    });
    source.document("/v1/repositories/library/foo/tags", Document::new("{}"));
    get(spliceway.addr(), "/v1/repositories/foo/tags").expect(200);
    for path in [image.layer_path(), "/v1/repositories/team/foo/tags".into(), "/v1/search?q=foo".into()] {
        let answer = get(spliceway.addr(), &path).expect(403);
        assert!(answer.json()["error"].is_string(), "{answer}");
    }
    get(spliceway.addr(), "/v1/_ping").expect(200);
    assert_eq!(asked(&source, &image.path("json")), 0);
}

#[test]
fn whatever_may_be_a_credential_is_one() {
    for (number, (name, value)) in
        [("x-api-key", "right"), ("x-forwarded-for", "10.0.0.1")].into_iter().enumerate()
    {
        let image = Image::new(7 + number as u64, MIB);
        let source = Origin::start();
        image.put(&source, |document| document.requires(name, value));
        let spliceway = mirror(&source);
        let request = Request::get(image.layer_path()).header(name, value);
        request.send(spliceway.addr()).expect(200).expect_body(&image.layer);
        image.wait_stored(&spliceway);
        get(spliceway.addr(), &image.layer_path()).expect(401);
        request.send(spliceway.addr()).expect(200).expect_body(&image.layer);
    }
}

#[test]
fn a_signature_in_the_query_is_shown_to_the_source_and_to_nobody_else() {
    let image = Image::new(9, MIB);
    let source = source_of(&image);
    let spliceway = mirror(&source);
    source.always("GET", &image.path("json"), Plan::status(403));
    get(spliceway.addr(), &format!("{}?signature=secret", image.path("json"))).expect(403);
    let queries: Vec<_> =
        source.seen("GET", &image.path("json")).into_iter().map(|seen| seen.head.query).collect();
    assert_eq!(queries, ["", "signature=secret"], "as nobody first");
    assert!(!spliceway.log().contains("secret"));
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let image = Image::new(10, MIB);
    let source = source_of_private(&image);
    let cdn = Origin::start();
    image.put(&cdn, |document| document);
    let elsewhere = format!("{}{}", cdn.url(), image.layer_path());
    source.always("GET", &image.layer_path(), Plan::redirect(&elsewhere));
    let spliceway = mirror(&source);
    let request = Request::get(image.layer_path())
        .header("Authorization", OWNER)
        .header("Cookie", "a=b")
        .header("X-Docker-Token", "signature=1")
        .header("X-Api-Key", "1");
    request.send(spliceway.addr()).expect(200).expect_body(&image.layer);
    let at_source = &source.seen("GET", &image.layer_path())[0];
    assert_eq!(at_source.header("cookie"), Some("a=b"));
    let at_cdn = &cdn.seen("GET", &image.layer_path())[0];
    for name in ["authorization", "cookie", "x-docker-token", "x-api-key"] {
        assert_eq!(at_cdn.header(name), None, "{name}");
    }
}

#[test]
fn logins_of_this_registry_are_not_shown_to_the_source() {
    let image = Image::new(11, MIB);
    let source = source_of(&image);
    let other = Image::new(12, MIB);
    other.put(&source, |document| document.requires("authorization", OWNER));
    let password = tools::succeed(Command::new("htpasswd").args(["-Bbn", "alice", "sesame"]));
    let users = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(users.path(), password.trim_end()).expect("our own file");
    let spliceway = mirror_with(&source, |setup, _| {
        let mut access = toml::Table::new();
        access.insert("htpasswd".into(), users.path().to_string_lossy().into_owned().into());
        setup.registry("access", access);
    });
    get(spliceway.addr(), &image.layer_path()).expect(401);
    let login = format!("Basic {}", data_encoding::BASE64.encode(b"alice:sesame"));
    let answer = ask(&spliceway, &image.layer_path(), &login).expect(200).expect_body(&image.layer);
    assert_eq!(
        answer.header("cache-control"),
        Some("private, max-age=31536000"),
        "not everybody may have it"
    );
    // A right login is not asked for again.
    ask(&spliceway, &other.layer_path(), &login).expect(403);
    for seen in source.all_seen() {
        assert_eq!(seen.header("authorization"), None);
    }
}
