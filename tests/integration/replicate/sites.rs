//! Every kind of registry as source and as target.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::command::{copy, directory};
use super::content::{assert_all_same, catalog, fill, plain_view, small, tags, temporary};
use crate::support::process::Spliceway;
use crate::support::push::{Repository, assert_tree_is_right};
use crate::support::registry::{PASSWORD, Registry, USERNAME};
use crate::support::relay::Relay;
use crate::support::sha256;
use crate::support::token::TokenServer;
use crate::support::tools::Authority;

/// A registry on a directory, and what a client has to say to be let in.
struct Site {
    url: String,
    /// Where anybody may look at what it holds.
    view: SocketAddr,
    /// Flags without `--from-` or `--to-`, and their values.
    flags: Vec<(&'static str, String)>,
    _keep: Vec<Box<dyn std::any::Any>>,
}

impl Site {
    fn plain() -> Self {
        let registry = Registry::plain();
        Self {
            url: registry.url(),
            view: registry.addr(),
            flags: Vec::new(),
            _keep: vec![Box::new(registry)],
        }
    }

    fn spliceway() -> Self {
        let spliceway = Spliceway::start(|_| ());
        let (url, view) = (format!("http://{}", spliceway.addr()), spliceway.addr());
        Self { url, view, flags: Vec::new(), _keep: vec![Box::new(spliceway)] }
    }

    fn htpasswd() -> Self {
        Self::guarded(Registry::htpasswd(), Vec::new())
    }

    fn token() -> Self {
        let tokens = TokenServer::start(Duration::from_mins(5));
        Self::guarded(Registry::token(&tokens), vec![Box::new(tokens)])
    }

    fn guarded(registry: Registry, mut keep: Vec<Box<dyn std::any::Any>>) -> Self {
        let home = temporary();
        let flags = vec![("username", USERNAME.to_owned()), ("password-file", password_file(&home))];
        let view = plain_view(&registry);
        let (url, addr) = (registry.url(), view.addr());
        keep.extend([Box::new(registry) as Box<dyn std::any::Any>, Box::new(view), Box::new(home)]);
        Self { url, view: addr, flags, _keep: keep }
    }

    fn tls() -> Self {
        let home = temporary();
        let authority = Authority::new(home.path());
        let registry = Registry::tls(&authority);
        let view = plain_view(&registry);
        let flags = vec![("ca-file", authority.ca.to_str().expect("UTF-8").to_owned())];
        let (url, addr) = (registry.url(), view.addr());
        Self { url, view: addr, flags, _keep: vec![Box::new(registry), Box::new(view), Box::new(home)] }
    }

    /// Its flags as those of one side.
    fn side(&self, side: &str) -> Vec<String> {
        self.flags.iter().flat_map(|(flag, value)| [format!("--{side}-{flag}"), value.clone()]).collect()
    }
}

fn password_file(home: &TempDir) -> String {
    let path = home.path().join("password");
    fs::write(&path, format!("{PASSWORD}\n")).expect("our own directory");
    path.to_str().expect("UTF-8").to_owned()
}

/// Fills `from` with everything, copies it, compares, and copies it again.
fn copies_everything(from: &Site, to: &Site) {
    let images = fill(from.view);
    let flags = [from.side("from"), to.side("to")].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    copy(&from.url, &to.url, &flags).succeeded();
    assert_all_same(from.view, to.view, &images);
    assert_eq!(catalog(from.view), catalog(to.view));
    copy(&from.url, &to.url, &flags).succeeded();
    assert_all_same(from.view, to.view, &images);
}

#[test]
fn from_docker_registry_to_docker_registry() {
    copies_everything(&Site::plain(), &Site::plain());
}

#[test]
fn from_docker_registry_to_spliceway() {
    copies_everything(&Site::plain(), &Site::spliceway());
}

#[test]
fn from_spliceway_to_docker_registry() {
    copies_everything(&Site::spliceway(), &Site::plain());
}

#[test]
fn from_spliceway_to_spliceway() {
    copies_everything(&Site::spliceway(), &Site::spliceway());
}

#[test]
fn with_basic_authentication_on_both_sides() {
    copies_everything(&Site::htpasswd(), &Site::htpasswd());
}

#[test]
fn with_tokens_on_both_sides() {
    copies_everything(&Site::token(), &Site::token());
}

#[test]
fn with_tls_on_both_sides() {
    copies_everything(&Site::tls(), &Site::tls());
}

#[test]
fn with_different_guards() {
    copies_everything(&Site::tls(), &Site::token());
    copies_everything(&Site::htpasswd(), &Site::tls());
    copies_everything(&Site::token(), &Site::spliceway());
}

/// A directory that a server runs on: what was copied is served at once, what was there stays.
#[test]
fn into_the_directory_of_a_running_server() {
    for site in [Site::plain(), Site::spliceway(), Site::token(), Site::tls()] {
        let images = fill(site.view);
        let spliceway = Spliceway::start(|_| ());
        let before = small(spliceway.addr(), "here/before", "1", 900);
        let root = spliceway.data().join("local");
        let flags = site.side("from");
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        // The server has been asked for what is not there yet.
        for (repository, tag) in &images {
            Repository::new(spliceway.addr(), repository).manifest(tag).expect(404);
        }
        copy(&site.url, &directory(&root), &flags).succeeded();
        assert_all_same(site.view, spliceway.addr(), &images);
        Repository::new(spliceway.addr(), "here/before").assert_holds("1", &before);
        copy(&site.url, &directory(&root), &flags).succeeded();
        assert_tree_is_right(&root);
    }
}

/// A directory that nobody has made yet, served by docker-registry afterwards.
#[test]
fn into_a_new_directory() {
    let site = Site::plain();
    let images = fill(site.view);
    let home = temporary();
    let root = home.path().join("not/yet/there");
    copy(&site.url, &directory(&root), &[]).succeeded();
    assert_tree_is_right(&root);
    let theirs = Registry::on(&root, "of a reader");
    assert_all_same(site.view, theirs.addr(), &images);
    assert_eq!(catalog(site.view), catalog(theirs.addr()));
}

/// While pushes go on into the same directory through a server.
#[test]
fn into_a_directory_that_is_pushed_to_meanwhile() {
    let site = Site::plain();
    let images = fill(site.view);
    let spliceway = Spliceway::start(|_| ());
    let root = spliceway.data().join("local");
    let addr = spliceway.addr();
    let pushing = std::thread::spawn(move || {
        (0..40)
            .map(|seed| small(addr, "team/app", &format!("pushed-{seed}"), 1000 + seed))
            .collect::<Vec<_>>()
    });
    copy(&site.url, &directory(&root), &[]).succeeded();
    let pushed = pushing.join().expect("pushes succeed");
    for (number, image) in pushed.iter().enumerate() {
        Repository::new(addr, "team/app").assert_holds(&format!("pushed-{number}"), image);
    }
    assert_all_same(site.view, addr, &images);
    assert_tree_is_right(&root);
}

/// A layer that two repositories share is sent once, also where a mount takes a token of two scopes.
#[test]
fn a_shared_layer_is_mounted() {
    for (from, to) in [
        (Site::plain(), Site::plain()),
        (Site::plain(), Site::spliceway()),
        (Site::spliceway(), Site::token()),
        (Site::spliceway(), Site::htpasswd()),
    ] {
        let image = small(from.view, "first/app", "1", 70);
        for name in ["second/app", "third/app/x"] {
            Repository::new(from.view, name).push_image("1", &image);
        }
        let source = Relay::before(from.view);
        let flags = to.side("to");
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        copy(&source.url(), &to.url, &flags).succeeded();
        assert_all_same(from.view, to.view, &[("first/app", "1"), ("second/app", "1"), ("third/app/x", "1")]);
        for blob in &image.blobs {
            let digest = sha256(blob);
            let fetched: Vec<_> = source
                .passed()
                .into_iter()
                .filter(|one| one.is_download() && one.path().contains(&digest))
                .collect();
            assert_eq!(fetched.len(), 1, "{digest} is fetched once");
        }
    }
}

/// Logins that `docker login` left, for both sides in one file.
#[test]
fn with_logins_of_docker() {
    let (from, to) = (Site::htpasswd(), Site::htpasswd());
    let image = small(from.view, "team/app", "1", 71);
    let home = temporary();
    let auth = data_encoding::BASE64.encode(format!("{USERNAME}:{PASSWORD}").as_bytes());
    let host = |site: &Site| site.url.trim_start_matches("http://").to_owned();
    let config = json!({"auths": {host(&from): {"auth": auth}, host(&to): {"auth": auth}}});
    let path: PathBuf = home.path().join("config.json");
    fs::write(&path, config.to_string()).expect("our own directory");
    let path = path.to_str().expect("UTF-8");
    copy(&from.url, &to.url, &["--from-docker-config", path, "--to-docker-config", path]).succeeded();
    Repository::new(to.view, "team/app").assert_holds("1", &image);
}

/// Who is not let in says so, does not try for long, and tells no password.
#[test]
fn a_wrong_login_fails() {
    let home = temporary();
    let wrong = home.path().join("wrong");
    fs::write(&wrong, "not the password\n").expect("our own directory");
    let wrong = wrong.to_str().expect("UTF-8");
    let guarded = Site::htpasswd();
    let open = Site::plain();
    for site in [&guarded, &open] {
        small(site.view, "team/app", "1", 72);
    }
    let to_empty = Site::plain();
    let source = Relay::before(guarded.url.trim_start_matches("http://").parse().expect("an address"));
    let flags = ["--from-username", USERNAME, "--from-password-file", wrong];
    let finished = copy(&source.url(), &to_empty.url, &flags).failed(&[&source.addr().to_string()]);
    assert!(!finished.said().contains("not the password"), "{}", finished.said());
    assert!(source.passed().len() < 20, "a login is not tried again and again:\n{}", source.lines());
    assert_eq!(catalog(to_empty.view), [""; 0]);

    let target = Relay::before(guarded.url.trim_start_matches("http://").parse().expect("an address"));
    let flags = ["--to-username", USERNAME, "--to-password-file", wrong];
    copy(&open.url, &target.url(), &flags).failed(&["team/app"]);
    assert!(target.passed().len() < 40, "a login is not tried again and again:\n{}", target.lines());
    assert_eq!(tags(guarded.view, "team/app"), ["1"]);
}

/// Credentials are for the side that they are said for.
#[test]
fn each_login_goes_to_its_own_side() {
    let from = Registry::htpasswd();
    let view = plain_view(&from);
    small(view.addr(), "team/app", "1", 73);
    let home = temporary();
    let to = Registry::plain();
    let target = Relay::before(to.addr());
    let password = password_file(&home);
    copy(&from.url(), &target.url(), &["--from-username", USERNAME, "--from-password-file", &password])
        .succeeded();
    for one in target.passed() {
        assert_eq!(one.head.header("authorization"), None, "{}", one.line());
    }
}

/// A certificate that nobody trusts is no registry.
#[test]
fn an_unknown_authority_fails() {
    let (tls, plain) = (Site::tls(), Site::plain());
    for site in [&tls, &plain] {
        small(site.view, "team/app", "1", 74);
    }
    let empty = Site::plain();
    copy(&tls.url, &empty.url, &[]).failed(&[tls.url.trim_start_matches("https://")]);
    assert_eq!(catalog(empty.view), [""; 0]);
    copy(&plain.url, &tls.url, &[]).failed(&[]);
    let missing = Path::new("/nowhere/ca.pem").to_str().expect("UTF-8");
    let finished = copy(&tls.url, &empty.url, &["--from-ca-file", missing]);
    assert!(!finished.status.success() && finished.said().contains(missing), "{}", finished.said());
}
