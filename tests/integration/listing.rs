//! What is held, listed: the catalog and the tags over HTTP, and `spliceway ls`, over directories and registries.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Answer, Request, get};
use crate::support::images::{Image, OCI_MANIFEST, write_layout};
use crate::support::listener::{Listener, RequestHead};
use crate::support::process::{Setup, Spliceway, binary};
use crate::support::registry::{PASSWORD, Registry, USERNAME, skopeo_copy};
use crate::support::token::TokenServer;
use crate::support::tools::{self, Authority, Finished};
use crate::support::{PATIENCE, sha256};

const LINK: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// In the order of their bytes, which no walk over the directories has.
const IMAGES: [&str; 8] = ["a:1", "a-b:1", "a.b/c:1", "a/b:1", "a/b:2", "a/b/c:1", "a0:1", "ab:latest"];
const REPOSITORIES: [&str; 7] = ["a", "a-b", "a.b/c", "a/b", "a/b/c", "a0", "ab"];

/// A docker-registry that was pushed [`IMAGES`].
fn filled(registry: Registry) -> Registry {
    let home = TempDir::with_prefix("content-").expect("a temporary directory");
    write_layout(&home.path().join("image"), &[Image::new(1, "amd64", &[1000])]);
    for name in IMAGES {
        registry.push(&home.path().join("image"), name);
    }
    registry
}

/// Spliceway without an upstream, on a directory that is there.
fn over(local: &Path) -> Spliceway {
    Spliceway::start(|setup: &mut Setup| {
        setup.registry("local", local.to_str().expect("UTF-8"));
    })
}

/// `spliceway ls` with nothing of this process's environment.
fn ls(arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
    let mut command = Command::new(binary());
    command.arg("ls").args(arguments).env_clear().envs(variables.iter().copied());
    tools::run(&mut command)
}

#[track_caller]
fn listed(arguments: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let finished = ls(arguments, variables);
    assert!(finished.status.success() && finished.stderr.is_empty(), "{arguments:?}: {}", finished.stderr);
    finished.stdout.lines().map(str::to_owned).collect()
}

fn at(host: SocketAddr) -> Vec<String> {
    IMAGES.iter().map(|image| format!("{host}/{image}")).collect()
}

fn strings(list: &Value) -> Vec<String> {
    let entries = list.as_array().unwrap_or_else(|| panic!("{list} is a list"));
    entries.iter().map(|entry| entry.as_str().expect("a string").to_owned()).collect()
}

/// What `Link` names as the next page.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let target = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
    Some(target.unwrap_or_else(|| panic!("{link} is no link to a next page")).to_owned())
}

/// All pages from `target` on, each of at most `n` entries; all but the last of exactly so many.
fn walk(addr: SocketAddr, target: &str, key: &str, n: usize) -> Vec<String> {
    let mut entries = Vec::new();
    let mut target = Some(target.to_owned());
    while let Some(page) = target {
        let answer = get(addr, &page).expect(200);
        let list = strings(&answer.json()[key]);
        target = next(&answer);
        assert!(list.len() == n || (list.len() < n && target.is_none()), "{page}: {answer}");
        entries.extend(list);
    }
    entries
}

#[test]
fn directory_that_docker_registry_writes_is_listed() {
    let registry = filled(Registry::plain());
    let data = registry.data();
    let spliceway = over(&data);
    let addr = spliceway.addr();
    let whole = get(addr, "/v2/_catalog").expect(200);
    assert_eq!(whole.header("content-type"), Some("application/json"));
    assert_eq!(whole.header("docker-distribution-api-version"), Some("registry/2.0"));
    assert_eq!(whole.json(), json!({"repositories": REPOSITORIES}));
    assert_eq!(next(&whole), None);
    for n in 1..=REPOSITORIES.len() + 1 {
        assert_eq!(walk(addr, &format!("/v2/_catalog?n={n}"), "repositories", n), REPOSITORIES, "{n} a page");
    }
    assert_eq!(walk(addr, "/v2/a/b/tags/list?n=1", "tags", 1), ["1", "2"]);

    let local = data.to_str().expect("UTF-8");
    let inside = data.join("docker/registry/v2");
    assert_eq!(listed(&["--local", local], &[]), IMAGES);
    assert_eq!(listed(&[], &[("REGISTRY_DATA_DIR", inside.to_str().expect("UTF-8"))]), IMAGES);
    assert_eq!(listed(&["--local", local, "--match", "a/*:1"], &[]), ["a/b:1", "a/b/c:1"]);
    assert_eq!(listed(&[&addr.to_string()], &[]), at(addr), "of Spliceway, by paging");
    assert_eq!(
        listed(&[&registry.url()], &[]),
        at(registry.addr()),
        "of docker-registry, whose order differs"
    );
    let objects = listed(&["--json", "--local", local, "--match", "a"], &[]);
    assert_eq!(objects, [r#"{"reference":"a:1","repository":"a","tag":"1"}"#]);

    // What docker-registry changes is seen at once; what is left of a repository has nothing to pull.
    let manifest =
        Request::get("/v2/ab/manifests/latest").header("Accept", OCI_MANIFEST).send(registry.addr());
    let digest = sha256(&manifest.expect(200).body);
    Request::new("DELETE", format!("/v2/ab/manifests/{digest}")).send(registry.addr()).expect(202);
    assert_eq!(get(addr, "/v2/_catalog").expect(200).json(), json!({"repositories": REPOSITORIES[..6]}));
    assert_eq!(get(addr, "/v2/ab/tags/list").expect(200).json(), json!({"name": "ab", "tags": []}));
    assert_eq!(get(registry.addr(), "/v2/ab/tags/list").expect(200).json()["tags"], Value::Null);
    assert_eq!(listed(&[&addr.to_string()], &[]), at(addr)[..7]);
    assert_eq!(listed(&[&registry.url()], &[]), at(registry.addr())[..7]);
}

#[test]
fn page_sizes() {
    let home = TempDir::with_prefix("listing-").expect("a temporary directory");
    let tree = Tree::new(home.path());
    for tag in ["1", "2"] {
        tree.tag("a", tag);
    }
    tree.tag("b", "1");
    let spliceway = over(home.path());
    let addr = spliceway.addr();
    for path in ["/v2/_catalog", "/v2/a/tags/list"] {
        for bad in ["-1", "x", "", "1e3"] {
            let error = get(addr, &format!("{path}?n={bad}")).expect(400);
            assert_eq!(error.error_code(), "PAGINATION_NUMBER_INVALID");
        }
        let none = get(addr, &format!("{path}?n=0")).expect(200);
        assert_eq!(next(&none), None, "the next page of nothing is nothing for ever");
        let key = if path.ends_with("list") { "tags" } else { "repositories" };
        assert_eq!(none.json()[key], json!([]));
        let page = get(addr, &format!("{path}?n=1")).expect(200);
        assert!(next(&page).is_some());
        let head = Request::head(format!("{path}?n=1")).send(addr).expect(200);
        assert_eq!(head.header("content-length"), Some(page.body.len().to_string().as_str()));
        assert_eq!(head.header("link"), page.header("link"));
        assert!(next(&get(addr, &format!("{path}?n=2")).expect(200)).is_none(), "nothing follows");
        assert_eq!(get(addr, &format!("{path}?last=zzz")).expect(200).json()[key], json!([]));
    }
    Request::new("DELETE", "/v2/_catalog").send(addr).expect(405);
    assert_eq!(get(addr, "/v2/_catalog?ns=unknown").expect(404).error_code(), "NAME_UNKNOWN");
}

#[test]
fn what_was_fetched_is_listed_by_names_that_can_be_pulled() {
    let mut upstream = filled(Registry::plain());
    let other = filled(Registry::plain());
    let home = TempDir::with_prefix("listing-").expect("a temporary directory");
    let data = home.path().join("data");
    let configure = |setup: &mut Setup| {
        setup.data(&data);
        setup.registry("local", other.data().to_str().expect("UTF-8"));
        setup.upstream("central", &upstream.url());
    };
    let mut spliceway = Spliceway::start(configure);
    let pull = |spliceway: &Spliceway, repository: &str, tag: &str| {
        get(spliceway.addr(), &format!("/v2/{repository}/manifests/{tag}")).expect(200);
    };
    // `a` is pushed under this name, so that the upstream's has to be named.
    for repository in ["central/a/b/c", "central/a", "central/a0"] {
        pull(&spliceway, repository, "1");
    }
    upstream.stop();
    let fetched = ["central/a", "central/a/b/c", "central/a0"];
    let expected: Vec<&str> = REPOSITORIES.into_iter().chain(fetched).collect();
    for n in 1..=expected.len() {
        let all = walk(spliceway.addr(), &format!("/v2/_catalog?n={n}"), "repositories", n);
        assert_eq!(all, expected, "{n} a page");
    }
    for repository in &expected {
        let tag = if *repository == "ab" { "latest" } else { "1" };
        pull(&spliceway, repository, tag);
    }
    let own = walk(spliceway.addr(), "/v2/_catalog?ns=central&n=1", "repositories", 1);
    assert_eq!(own, ["a", "a/b/c", "a0"]);
    for repository in own {
        get(spliceway.addr(), &format!("/v2/{repository}/manifests/1?ns=central")).expect(200);
    }
    let lines = listed(&["--data", data.to_str().expect("UTF-8")], &[]);
    assert_eq!(
        lines,
        ["central/a:1", "central/a/b/c:1", "central/a0:1"],
        "what lies there: local is elsewhere"
    );
    spliceway.stop();

    // Of an upstream that is not configured nothing could be pulled.
    let without = Spliceway::start(|setup| {
        setup.data(&data).upstream("another", &other.url());
    });
    assert_eq!(get(without.addr(), "/v2/_catalog").expect(200).json(), json!({"repositories": []}));
}

/// By both processes of a directory, whichever of them it was pushed to.
#[test]
fn what_is_pushed_and_deleted_shows_at_once() {
    let home = TempDir::with_prefix("listing-").expect("a temporary directory");
    write_layout(&home.path().join("image"), &[Image::new(1, "amd64", &[1000])]);
    let spliceway = Spliceway::start(|_| ());
    let sibling = spliceway.sibling(|_| ());
    let push = |to: &Spliceway, name: &str| {
        let mut command = skopeo_copy();
        command.arg("--dest-tls-verify=false").arg(format!("oci:{}", home.path().join("image").display()));
        tools::succeed(command.arg(format!("docker://{}/{name}", to.addr())));
    };
    let both = |target: &str, expected: &Value| {
        for process in [&spliceway, &sibling] {
            assert_eq!(get(process.addr(), target).expect(200).json(), *expected, "{target}");
        }
    };
    both("/v2/_catalog", &json!({"repositories": []}));
    push(&spliceway, "b/app:1");
    both("/v2/_catalog", &json!({"repositories": ["b/app"]}));
    push(&sibling, "b-app:1");
    push(&sibling, "b/app:2");
    both("/v2/_catalog", &json!({"repositories": ["b-app", "b/app"]}));
    both("/v2/b/app/tags/list", &json!({"name": "b/app", "tags": ["1", "2"]}));
    Request::new("DELETE", "/v2/b/app/manifests/1").send(sibling.addr()).expect(202);
    both("/v2/b/app/tags/list", &json!({"name": "b/app", "tags": ["2"]}));
    let digest = get(spliceway.addr(), "/v2/b/app/manifests/2").expect(200);
    let digest = digest.header("docker-content-digest").expect("it is said").to_owned();
    Request::new("DELETE", format!("/v2/b/app/manifests/{digest}")).send(spliceway.addr()).expect(202);
    both("/v2/b/app/tags/list", &json!({"name": "b/app", "tags": []}));
    both("/v2/_catalog", &json!({"repositories": ["b-app"]}));
    let data = spliceway.data();
    assert_eq!(listed(&["--data", data.to_str().expect("UTF-8")], &[]), ["b-app:1"]);
}

#[test]
fn hundred_thousand_tags() {
    const COUNT: usize = 100_000;
    let home = roomy_directory();
    let tree = Tree::new(home.path());
    // In another order than that of their bytes.
    let mut tags: Vec<String> = (0..COUNT).map(|number| format!("v{}", number * 7919 % COUNT)).collect();
    tree.many_tags("many", &tags);
    tags.sort();
    let spliceway = over(home.path());
    let addr = spliceway.addr();
    let whole = get(addr, "/v2/many/tags/list").expect(200);
    assert!(
        strings(&whole.json()["tags"]) == tags && next(&whole).is_none(),
        "without n the whole list is meant"
    );
    // What changed a moment ago is read anew for each page, what rested is kept: both are seen here.
    thread::sleep(Duration::from_millis(1500));
    for start in [0, 1, COUNT / 2, COUNT - 100] {
        let last = start.checked_sub(1).map(|before| format!("&last={}", tags[before])).unwrap_or_default();
        let page = get(addr, &format!("/v2/many/tags/list?n=100{last}")).expect(200);
        assert_eq!(strings(&page.json()["tags"]), tags[start..start + 100]);
        assert_eq!(next(&page).is_some(), start + 100 < COUNT);
    }
    assert!(walk(addr, "/v2/many/tags/list?n=9999", "tags", 9999) == tags, "the pages are the whole");

    // A change shows in the next answer.
    tree.tag("many", "v0.1");
    fs::remove_file(tree.tags("many").join("v1")).expect("it is there");
    let page = get(addr, "/v2/many/tags/list?n=3").expect(200);
    assert_eq!(strings(&page.json()["tags"]), ["v0", "v0.1", "v10"]);
    tree.tag("many", "w");
    let capped = get(addr, "/v2/many/tags/list?n=1000000").expect(200);
    assert_eq!(strings(&capped.json()["tags"]).len(), COUNT);
    let rest = get(addr, &next(&capped).expect("one tag is left")).expect(200);
    assert_eq!(strings(&rest.json()["tags"]), ["w"]);

    // Somebody who has seen enough of more than a pipe holds.
    let mut child = Command::new(binary())
        .args(["ls", "--local"])
        .arg(home.path())
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("a line");
    let status = tools::wait(&mut child, PATIENCE).expect("it ends");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("UTF-8");
    assert_eq!((first.as_str(), status.code(), said.as_str()), ("many:v0\n", Some(0), ""));
}

#[test]
fn ten_thousand_repositories() {
    let home = roomy_directory();
    let tree = Tree::new(home.path());
    let mut names: Vec<String> = (0..10_000)
        .map(|number| match number % 4 {
            0 => format!("team{}/app{number}", number % 97),
            1 => format!("team{}-app{number}", number % 97),
            _ => format!("app{number}"),
        })
        .collect();
    tree.many_repositories(&names, "v1");
    names.sort();
    let spliceway = over(home.path());
    let addr = spliceway.addr();
    let first = get(addr, "/v2/_catalog").expect(200);
    assert_eq!(strings(&first.json()["repositories"]), names[..1000], "a page, without n too");
    assert!(next(&first).expect("there are more").ends_with("&n=1000"));
    assert!(walk(addr, "/v2/_catalog?n=999", "repositories", 999) == names, "the pages are the whole");
    let capped = get(addr, "/v2/_catalog?n=1000000").expect(200);
    assert!(strings(&capped.json()["repositories"]) == names && next(&capped).is_none());
    let lines = listed(&[&addr.to_string(), "--match", "team1*"], &[]);
    let wanted = names.iter().filter(|name| name.starts_with("team1"));
    let expected: Vec<String> = wanted.map(|name| format!("{addr}/{name}:v1")).collect();
    assert!(lines == expected, "its catalog is followed to the end");
}

#[test]
fn ls_logs_in() {
    let home = TempDir::with_prefix("listing-").expect("a temporary directory");
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        fs::write(&path, text).expect("our own directory");
        path.to_str().expect("UTF-8").to_owned()
    };
    let right = write("right", &format!("{PASSWORD}\n"));
    let wrong = write("wrong", "guessed\n");
    let tokens = TokenServer::start(Duration::from_mins(5));
    for registry in [filled(Registry::htpasswd()), filled(Registry::token(&tokens))] {
        let url = registry.url();
        let lines = listed(&[&url, "--username", USERNAME, "--password-file", &right], &[]);
        assert_eq!(lines, at(registry.addr()));
        let auth = data_encoding::BASE64.encode(format!("{USERNAME}:{PASSWORD}").as_bytes());
        let config = json!({"auths": {registry.addr().to_string(): {"auth": auth}}}).to_string();
        write("config.json", &config);
        let directory = home.path().to_str().expect("UTF-8");
        assert_eq!(listed(&[&url], &[("DOCKER_CONFIG", directory)]), lines, "where docker has it");
        for arguments in [&[&*url][..], &[&url, "--username", USERNAME, "--password-file", &wrong]] {
            let finished = ls(arguments, &[]);
            assert_eq!(
                (finished.status.code(), finished.stdout.as_str()),
                (Some(1), ""),
                "{}",
                finished.stderr
            );
            assert!(
                finished.stderr.contains("login") && !finished.stderr.contains("guessed"),
                "{}",
                finished.stderr
            );
        }
    }
    assert!(
        tokens.seen().iter().any(|head| head.query_value("scope").as_deref() == Some("registry:catalog:*"))
    );
}

#[test]
fn ls_trusts_the_certificates_that_it_is_given() {
    let home = TempDir::with_prefix("listing-").expect("a temporary directory");
    let authority = Authority::new(home.path());
    let registry = Registry::tls(&authority);
    let ca = authority.ca.to_str().expect("UTF-8");
    assert_eq!(listed(&[&registry.url(), "--ca-file", ca], &[]), [""; 0]);
    let finished = ls(&[&registry.url()], &[]);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("cannot connect"), "{}", finished.stderr);
}

/// A registry whose catalog comes in two pages, and which fails at one repository.
#[test]
fn ls_reports_what_fails_and_lists_the_rest() {
    let listener = Listener::start(Arc::new(|stream| {
        // A peer that leaves early is not this server's failure.
        let _ = serve_with_a_failure(stream);
    }));
    let addr = listener.addr();
    let finished = ls(&[&addr.to_string()], &[]);
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(finished.stdout, format!("{addr}/a:1\n{addr}/a:2\n{addr}/d:1\n"), "null is no tags");
    let told: Vec<&str> = finished.stderr.lines().collect();
    assert!(told.len() == 1 && told[0].starts_with("spliceway: ") && told[0].contains("tags b"), "{told:?}");
}

fn serve_with_a_failure(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(head) = RequestHead::read(&mut reader)? {
        let (status, link, body) = match (head.path.as_str(), head.query_value("last").as_deref()) {
            ("/v2/_catalog", None) => (
                200,
                "Link: </v2/_catalog?last=c&n=1000>; rel=\"next\"\r\n",
                json!({"repositories": ["d", "c"]}),
            ),
            ("/v2/_catalog", Some("c")) => (200, "", json!({"repositories": ["b", "a"]})),
            ("/v2/a/tags/list", _) => (200, "", json!({"name": "a", "tags": ["2", "1"]})),
            ("/v2/b/tags/list", _) => {
                (500, "", json!({"errors": [{"code": "UNKNOWN", "message": "broken"}]}))
            }
            ("/v2/c/tags/list", _) => (200, "", json!({"name": "c", "tags": null})),
            ("/v2/d/tags/list", _) => (200, "", json!({"name": "d", "tags": ["1"]})),
            _ => (404, "", json!({})),
        };
        let body = body.to_string();
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\n{link}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
    }
    Ok(())
}

#[test]
fn ls_says_what_is_wrong() {
    let home = TempDir::with_prefix("listing-").expect("a temporary directory");
    let path = home.path().to_str().expect("UTF-8");
    let missing = home.path().join("missing");
    let missing = missing.to_str().expect("UTF-8");
    for (arguments, code, part) in [
        (&["--data", missing][..], 1, "is not there"),
        (&["--data", path], 1, "neither local nor cache"),
        (&["--local", path], 1, "no docker/registry/v2"),
        (&["--local", path, "--data", path], 2, "cannot be used with"),
        (&["ftp://registry.example"], 2, "expected http(s)://"),
        (&["localhost:1", "--username", "u"], 2, "--password-file"),
        (&["localhost:1", "--username", "u", "--password-file", missing], 2, "cannot be read"),
        (&["localhost:1", "--docker-config", missing], 2, "missing"),
        // Nobody listens there.
        (&["127.0.0.1:1"], 1, "cannot connect"),
    ] {
        let finished = ls(arguments, &[]);
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(code), ""), "{arguments:?}");
        assert!(finished.stderr.contains(part), "{arguments:?}: {}", finished.stderr);
    }
    Tree::new(home.path()).tag("a", "1");
    let finished = ls(&["--data", path], &[]);
    assert!(finished.stderr.contains("--local"), "{}", finished.stderr);
    assert_eq!(listed(&[], &[("SPLICEWAY_DATA", ""), ("REGISTRY_DATA_DIR", path)]), ["a:1"]);
}

/// In memory where that can be had: a disk that others use too may take a minute to make and remove so many entries.
fn roomy_directory() -> TempDir {
    TempDir::with_prefix_in("listing-", "/dev/shm")
        .or_else(|_| TempDir::with_prefix("listing-"))
        .expect("a temporary directory")
}

/// A tree as distribution lays it out, of links alone.
struct Tree {
    repositories: PathBuf,
}

impl Tree {
    fn new(root: &Path) -> Self {
        Self { repositories: root.join("docker/registry/v2/repositories") }
    }

    fn tags(&self, repository: &str) -> PathBuf {
        self.repositories.join(repository).join("_manifests/tags")
    }

    fn tag(&self, repository: &str, tag: &str) {
        let current = self.tags(repository).join(tag).join("current");
        fs::create_dir_all(&current).expect("our own directory");
        fs::write(current.join("link"), LINK).expect("our own directory");
    }

    /// Tags that share one directory: making so many of them takes half a minute.
    fn many_tags(&self, repository: &str, tags: &[String]) {
        self.tag(repository, &tags[0]);
        for tag in &tags[1..] {
            symlink(&tags[0], self.tags(repository).join(tag)).expect("our own directory");
        }
    }

    /// Repositories that share what is in them.
    fn many_repositories(&self, names: &[String], tag: &str) {
        self.tag(&names[0], tag);
        let manifests = self.repositories.join(&names[0]).join("_manifests");
        for name in &names[1..] {
            let repository = self.repositories.join(name);
            fs::create_dir_all(&repository).expect("our own directory");
            symlink(&manifests, repository.join("_manifests")).expect("our own directory");
        }
    }
}
