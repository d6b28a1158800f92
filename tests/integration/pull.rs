//! Real clients pull real images through Spliceway from a real registry: the same bytes as directly, and again
//! once the registry is gone.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::client::{Request, get};
use crate::support::containerd::Containerd;
use crate::support::images::{
    DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_INDEX, OCI_MANIFEST, docker_list, index, write_layout,
};
use crate::support::origin::Origin;
use crate::support::process::{Setup, Spliceway, Upstream, entries};
use crate::support::registry::{PASSWORD, Registry, USERNAME, skopeo_copy};
use crate::support::token::TokenServer;
use crate::support::tools::{self, Authority};
use crate::support::{MIB, sha256};

/// What every variant of the registry holds: `team/app:v1`, one image of four layers, and `multi:v1`, an index of
/// two platforms.
struct Content {
    home: TempDir,
}

const NAMES: [&str; 2] = ["team/app:v1", "multi:v1"];

impl Content {
    fn new() -> Self {
        let home = TempDir::with_prefix("content-").expect("a temporary directory");
        let one = [Image::new(1, "amd64", &[100, 70_000, MIB, 5 * MIB])];
        let two = [Image::new(11, "amd64", &[300_000, 20]), Image::new(21, "arm64", &[MIB + 1, 4096])];
        write_layout(&home.path().join("0"), &one);
        write_layout(&home.path().join("1"), &two);
        Self { home }
    }

    fn push(&self, registry: &Registry) {
        for (number, name) in NAMES.iter().enumerate() {
            registry.push(&self.home.path().join(number.to_string()), name);
        }
    }
}

/// Pulls both images directly, then through Spliceway cold, warm, and with the registry stopped.
fn pulls_same_as_directly(mut registry: Registry, configure: impl FnOnce(&mut Setup, &Registry)) {
    let content = Content::new();
    content.push(&registry);
    let spliceway = Spliceway::start(|setup| configure(setup, &registry));
    let home = content.home.path();
    for name in NAMES {
        registry.pull(name, &home.join("direct").join(name));
    }
    for name in NAMES {
        pull(&spliceway, name, &home.join("cold").join(name)).expect("a cold pull");
    }
    registry.stop();
    for name in NAMES {
        pull(&spliceway, name, &home.join("alone").join(name)).expect("a pull without the registry");
    }
    for way in ["cold", "alone"] {
        for name in NAMES {
            assert_same_files(&home.join("direct").join(name), &home.join(way).join(name));
        }
    }
    spliceway.assert_store_is_right();
}

/// skopeo's pull of `name` into the directory `to`; what it said if it failed.
fn pull(spliceway: &Spliceway, name: &str, to: &Path) -> Result<(), String> {
    fs::create_dir_all(to).map_err(|error| error.to_string())?;
    fs::create_dir_all(to).expect("our own directory");
    let finished = tools::run(
        skopeo_copy()
            .arg("--src-tls-verify=false")
            .arg(format!("docker://{}/{name}", spliceway.addr()))
            .arg(format!("dir:{}", to.display())),
    );
    if finished.status.success() { Ok(()) } else { Err(finished.stderr) }
}

#[track_caller]
fn assert_same_files(expected: &Path, got: &Path) {
    let names = |directory: &Path| {
        let mut names: Vec<_> =
            entries(directory).iter().filter_map(|path| path.file_name().map(ToOwned::to_owned)).collect();
        names.sort();
        names
    };
    assert!(!names(expected).is_empty(), "{} is empty", expected.display());
    assert_eq!(names(expected), names(got));
    for name in names(expected) {
        let same =
            fs::read(expected.join(&name)).expect("listed") == fs::read(got.join(&name)).expect("listed");
        assert!(same, "{} differs from the direct pull's", name.to_string_lossy());
    }
}

fn account(upstream: &mut Upstream) {
    upstream.set("username", USERNAME).set("password", PASSWORD);
}

#[test]
fn plain_registry() {
    pulls_same_as_directly(Registry::plain(), |setup, registry| {
        setup.upstream("central", &registry.url());
    });
}

#[test]
fn plain_registry_without_io_uring() {
    pulls_same_as_directly(Registry::plain(), |setup, registry| {
        setup.io_uring("off").upstream("central", &registry.url());
    });
}

#[test]
fn registry_with_basic_authentication() {
    pulls_same_as_directly(Registry::htpasswd(), |setup, registry| {
        account(setup.upstream("central", &registry.url()));
    });
}

#[test]
fn registry_with_token_authentication() {
    let tokens = TokenServer::start(Duration::from_mins(5));
    pulls_same_as_directly(Registry::token(&tokens), |setup, registry| {
        account(setup.upstream("central", &registry.url()));
    });
    let pulls = tokens.seen();
    assert!(
        pulls.iter().any(|head| head.query_value("scope").as_deref() == Some("repository:team/app:pull")),
        "the scope is the repository's: {pulls:?}"
    );
}

#[test]
fn registry_over_tls_with_its_own_authority() {
    let home = TempDir::new().expect("a temporary directory");
    let authority = Authority::new(home.path());
    pulls_same_as_directly(Registry::tls(&authority), |setup, registry| {
        let ca = authority.ca.to_str().expect("UTF-8");
        setup.upstream("central", &registry.url()).set("ca_file", ca);
    });
}

#[test]
fn password_comes_from_a_file_or_a_docker_config() {
    let registry = Registry::htpasswd();
    let content = Content::new();
    content.push(&registry);
    let home = content.home.path();
    let password = home.join("password");
    fs::write(&password, format!("{PASSWORD}\n")).expect("our own directory");
    let docker = home.join("config.json");
    let auth = data_encoding::BASE64.encode(format!("{USERNAME}:{PASSWORD}").as_bytes());
    let config = serde_json::json!({"auths": {registry.addr().to_string(): {"auth": auth}}});
    fs::write(&docker, config.to_string()).expect("our own directory");

    let from_file = Spliceway::start(|setup| {
        setup
            .upstream("central", &registry.url())
            .set("username", USERNAME)
            .set("password_file", password.to_str().expect("UTF-8"));
    });
    pull(&from_file, NAMES[0], &home.join("file")).expect("a pull");
    let from_docker = Spliceway::start(|setup| {
        setup.upstream("central", &registry.url()).set("docker_config", docker.to_str().expect("UTF-8"));
    });
    pull(&from_docker, NAMES[0], &home.join("docker")).expect("a pull");
    assert_same_files(&home.join("file"), &home.join("docker"));
}

#[test]
fn wrong_credentials_are_a_clear_error() {
    let tokens = TokenServer::start(Duration::from_mins(5));
    for registry in [Registry::htpasswd(), Registry::token(&tokens)] {
        let content = Content::new();
        content.push(&registry);
        let spliceway = Spliceway::start(|setup| {
            setup.upstream("central", &registry.url()).set("username", USERNAME).set("password", "guessed");
        });
        let answer = get(spliceway.addr(), "/v2/team/app/manifests/v1");
        assert!(answer.status() >= 400, "{answer}");
        assert!(!answer.error_code().is_empty(), "{answer}");
        assert!(answer.header("www-authenticate").is_none(), "a client must not be asked for our password");
        pull(&spliceway, NAMES[0], &content.home.path().join("out"))
            .expect_err("no pull without the password");
        let log = spliceway.log();
        assert!(log.contains("401") || log.to_lowercase().contains("credentials"), "the log says why");
        assert!(!log.contains("guessed"), "the password is not logged");
        assert!(spliceway.published().is_empty());
    }
}

#[test]
fn certificate_of_an_unknown_authority_is_refused() {
    let home = TempDir::new().expect("a temporary directory");
    let registry = Registry::tls(&Authority::new(home.path()));
    let content = Content::new();
    content.push(&registry);
    let spliceway = Spliceway::start(|setup| {
        setup.upstream("central", &registry.url());
    });
    let answer = get(spliceway.addr(), "/v2/team/app/manifests/v1");
    assert!(answer.status() >= 500, "{answer}");
    answer.error_code();
    spliceway.wait_log(&["certificate"]);
}

#[test]
fn upstream_is_chosen_by_ns_then_first_component_then_default() {
    let (first, second) = (Origin::start(), Origin::start());
    let one = Image::new(1, "amd64", &[100]);
    let two = Image::new(2, "amd64", &[200]);
    one.hold(&first, "app", "v1");
    two.hold(&second, "app", "v1");
    let spliceway = Spliceway::start(|setup| {
        setup.upstream("first", &first.url());
        setup
            .upstream("registry.example", &second.url())
            .set("aliases", vec!["registry.example:5000", "other.example"]);
    });
    let manifest = |target: &str| get(spliceway.addr(), target).expect(200).body;
    assert_eq!(manifest("/v2/app/manifests/v1"), one.manifest);
    assert_eq!(manifest("/v2/first/app/manifests/v1"), one.manifest);
    assert_eq!(manifest("/v2/registry.example/app/manifests/v1"), two.manifest);
    assert_eq!(manifest("/v2/app/manifests/v1?ns=registry.example"), two.manifest);
    assert_eq!(manifest("/v2/app/manifests/v1?ns=registry.example%3A5000"), two.manifest);
    assert_eq!(manifest("/v2/app/manifests/v1?ns=other.example"), two.manifest);
    assert_eq!(manifest("/v2/app/manifests/v1?ns=first"), one.manifest);
    // Equal names of two upstreams are two repositories, in the blobs that they link too.
    let layer = |ns: &str, image: &Image| {
        let target = format!("/v2/app/blobs/{}?ns={ns}", sha256(image.layer(0)));
        get(spliceway.addr(), &target)
    };
    layer("first", &one).expect(200).expect_body(one.layer(0));
    layer("registry.example", &two).expect(200).expect_body(two.layer(0));
    layer("registry.example", &one).expect(404);

    let (before_first, before_second) = (first.all_seen().len(), second.all_seen().len());
    let unknown = get(spliceway.addr(), "/v2/app/manifests/v1?ns=unknown.example").expect(404);
    assert_eq!(unknown.error_code(), "NAME_UNKNOWN");
    assert!(unknown.error_message().contains("unknown.example"), "the value is quoted: {unknown}");
    get(spliceway.addr(), &format!("/v2/app/blobs/{}?ns=unknown.example", sha256(b"x"))).expect(404);
    assert_eq!(
        (first.all_seen().len(), second.all_seen().len()),
        (before_first, before_second),
        "nobody is asked about a name that no upstream is configured for"
    );
}

#[test]
fn manifests_are_served_by_tag_and_digest_with_their_headers() {
    let origin = Origin::start();
    let images = [Image::new(1, "amd64", &[100]), Image::new(2, "arm64", &[100])];
    for image in &images {
        image.hold(&origin, "app", "unused");
    }
    let list = index(&images);
    let digest = origin.manifest(OCI_INDEX, &list);
    origin.tag("app", "v1", &digest);
    let spliceway = Spliceway::before(&origin);
    for target in ["/v2/app/manifests/v1".to_owned(), format!("/v2/app/manifests/{digest}")] {
        let answer = get(spliceway.addr(), &target).expect(200).expect_body(&list);
        assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
        assert_eq!(answer.header("etag"), Some(format!("\"{digest}\"").as_str()));
        let head = Request::head(&target).send(spliceway.addr()).expect(200);
        for name in ["content-type", "docker-content-digest", "etag"] {
            assert_eq!(head.header(name), answer.header(name), "{name}");
        }
        assert_eq!(head.header("content-length"), Some(list.len().to_string().as_str()));
        let cached = Request::get(&target)
            .header("If-None-Match", &format!("\"{digest}\""))
            .send(spliceway.addr())
            .expect(304);
        assert_eq!(cached.header("etag"), answer.header("etag"));
    }
    let child = format!("/v2/app/manifests/{}", images[1].digest());
    let answer = get(spliceway.addr(), &child).expect(200).expect_body(&images[1].manifest);
    assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST));
    get(spliceway.addr(), &child).expect(200);
    assert_eq!(origin.seen("GET", &child).len(), 1, "what a digest names is never asked for again");
}

#[test]
fn client_of_schema_2_alone_gets_the_amd64_image_of_a_docker_list() {
    let origin = Origin::start();
    let (list, manifests) = docker_list(&origin, "app", "v1", &["arm64", "amd64"]);
    let spliceway = Spliceway::before(&origin);
    let ask = |accept: &[&str]| {
        let request = accept
            .iter()
            .fold(Request::get("/v2/app/manifests/v1"), |request, value| request.header("Accept", value));
        request.send(spliceway.addr()).expect(200)
    };
    let old = ask(&[DOCKER_MANIFEST]).expect_body(&manifests[1]);
    assert_eq!(old.header("content-type"), Some(DOCKER_MANIFEST));
    assert_eq!(old.header("docker-content-digest"), Some(sha256(&manifests[1]).as_str()));
    for accept in [&[][..], &["*/*"], &[DOCKER_LIST], &[DOCKER_MANIFEST, DOCKER_LIST], &["application/json"]]
    {
        let answer = ask(accept).expect_body(&list);
        assert_eq!(answer.header("content-type"), Some(DOCKER_LIST), "{accept:?}");
    }
    let both = format!("{DOCKER_MANIFEST}, {DOCKER_LIST};q=0.5");
    ask(&[both.as_str()]).expect_body(&list);
}

#[test]
fn tags_are_listed_from_upstream() {
    let registry = Registry::plain();
    let content = Content::new();
    content.push(&registry);
    let spliceway = Spliceway::start(|setup| {
        setup.upstream("central", &registry.url());
    });
    let list = get(spliceway.addr(), "/v2/team/app/tags/list").expect(200).json();
    assert_eq!(list, serde_json::json!({"name": "team/app", "tags": ["v1"]}));
    let unknown = get(spliceway.addr(), "/v2/no/such/tags/list").expect(404);
    assert_eq!(unknown.error_code(), "NAME_UNKNOWN");
}

#[test]
fn podman_pulls() {
    let registry = Registry::plain();
    let content = Content::new();
    content.push(&registry);
    let spliceway = Spliceway::start(|setup| {
        setup.upstream("central", &registry.url());
    });
    let home = content.home.path();
    let podman = || {
        let mut command = Command::new("podman");
        command.args(["--storage-driver", "vfs"]);
        command.arg("--root").arg(home.join("podman/root"));
        command.arg("--runroot").arg(home.join("podman/run"));
        command.arg("--tmpdir").arg(home.join("podman/tmp"));
        command
    };
    let name = format!("{}/{}", spliceway.addr(), NAMES[0]);
    tools::succeed(podman().args(["pull", "--tls-verify=false", &name]));
    let digest = tools::succeed(podman().args(["image", "inspect", "--format", "{{.Digest}}", &name]));
    let manifest = get(registry.addr(), "/v2/team/app/manifests/v1");
    // docker-registry wants the exact type and is asked for it by the pull above alone.
    assert_eq!(manifest.status(), 404);
    let served = get(spliceway.addr(), "/v2/team/app/manifests/v1").expect(200);
    assert_eq!(digest.trim(), sha256(&served.body));
}

#[test]
fn containerd_pulls_by_namespace() {
    let registry = Registry::plain();
    let content = Content::new();
    content.push(&registry);
    let spliceway = Spliceway::start(|setup| {
        setup.upstream("registry.example", &registry.url());
    });
    let hosts = content.home.path().join("hosts/registry.example");
    fs::create_dir_all(&hosts).expect("our own directory");
    let mirror = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", spliceway.addr());
    fs::write(hosts.join("hosts.toml"), mirror).expect("our own directory");
    let containerd = Containerd::start();
    for name in NAMES {
        let reference = format!("registry.example/{name}");
        tools::succeed(
            containerd
                .ctr()
                .args([
                    "images",
                    "pull",
                    "--snapshotter",
                    "native",
                    "--platform",
                    "linux/amd64",
                    "--hosts-dir",
                ])
                .arg(hosts.parent().expect("made above"))
                .arg(&reference),
        );
        let listed = tools::succeed(containerd.ctr().args(["images", "ls", &format!("name=={reference}")]));
        let (repository, tag) = name.split_once(':').expect("a tagged name");
        let target = format!("/v2/{repository}/manifests/{tag}?ns=registry.example");
        let served = get(spliceway.addr(), &target).expect(200);
        assert!(listed.contains(&sha256(&served.body)), "{listed}");
    }
}
