//! Who may do what: the program's answers, and what real clients make of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE32_NOPAD, BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use toml::Table;

use crate::support::client::{Answer, Request, get};
use crate::support::eventually;
use crate::support::images::{Image, write_layout};
use crate::support::origin::Origin;
use crate::support::process::{Setup, Spliceway};
use crate::support::registry::{PASSWORD, Registry, USERNAME, skopeo_copy};
use crate::support::sha256;
use crate::support::token::TokenServer;
use crate::support::tools::{self, Authority};

const REPOSITORY: &str = "team/app";
const TAGGED: &str = "/v2/team/app/manifests/v1";

/// An origin with an image, and a directory for what a test writes.
struct Scene {
    origin: Origin,
    image: Image,
    /// One that only the test has.
    own: Image,
    home: TempDir,
}

impl Scene {
    fn new() -> Self {
        let (origin, image) = (Origin::start(), Image::new(1, "amd64", &[2000]));
        image.hold(&origin, REPOSITORY, "v1");
        let home = TempDir::with_prefix("access-test-").expect("a temporary directory");
        // The logins that clients store.
        fs::write(home.path().join("auth.json"), "{}").expect("our own directory");
        Self { origin, image, own: Image::new(2, "amd64", &[3000]), home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A file of users; each password is `<user>'s`, but for the one that other tests know.
    fn htpasswd(&self, users: &[&str]) -> PathBuf {
        let path = self.path("htpasswd");
        write_users(&path, &users.iter().map(|user| (*user, password(user))).collect::<Vec<_>>());
        path
    }

    /// In front of the origin, with this `[registry.access]`.
    fn start(&self, access: &str) -> Spliceway {
        Spliceway::start(|setup| self.configure(setup, access))
    }

    fn configure(&self, setup: &mut Setup, access: &str) {
        setup.origin(&self.origin);
        setup.registry("access", access.parse::<Table>().expect("TOML"));
    }

    fn skopeo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("skopeo");
        command.args(arguments).arg("--authfile").arg(self.path("auth.json"));
        command
    }

    /// Pulls the image with skopeo, with the login that it stored if it has one.
    fn pull(&self, spliceway: &Spliceway) -> Result<(), String> {
        let to = tempfile::tempdir_in(self.home.path()).expect("our own directory");
        let mut command = skopeo_copy();
        command.arg("--src-tls-verify=false").arg("--src-authfile").arg(self.path("auth.json"));
        command.arg(format!("docker://{}/{REPOSITORY}:v1", spliceway.addr()));
        command.arg(format!("dir:{}", to.path().display()));
        let finished = tools::run(&mut command);
        if !finished.status.success() {
            return Err(finished.stderr);
        }
        let manifest = fs::read(to.path().join("manifest.json")).expect("skopeo wrote it");
        assert_eq!(sha256(&manifest), self.image.digest());
        Ok(())
    }

    /// Pushes the test's own image with skopeo, with the login that it stored if it has one.
    fn push(&self, spliceway: &Spliceway, repository: &str) -> Result<(), String> {
        write_layout(&self.path("layout"), std::slice::from_ref(&self.own));
        let mut command = skopeo_copy();
        command.arg("--dest-tls-verify=false").arg("--dest-authfile").arg(self.path("auth.json"));
        command.arg(format!("oci:{}", self.path("layout").display()));
        command.arg(format!("docker://{}/{repository}:v1", spliceway.addr()));
        let finished = tools::run(&mut command);
        if finished.status.success() { Ok(()) } else { Err(finished.stderr) }
    }

    fn login(&self, spliceway: &Spliceway, user: &str, password: &str) -> bool {
        let address = spliceway.addr().to_string();
        let arguments = ["login", "--tls-verify=false", "-u", user, "-p", password, &address];
        tools::run(&mut self.skopeo(&arguments)).status.success()
    }
}

fn password(user: &str) -> String {
    if user == USERNAME { PASSWORD.to_owned() } else { format!("{user}'s") }
}

fn write_users(path: &Path, users: &[(&str, String)]) {
    let lines = users.iter().map(|(user, password)| {
        tools::succeed(Command::new("htpasswd").args(["-Bbn", user, password])).trim_end().to_owned() + "\n"
    });
    fs::write(path, lines.collect::<String>()).expect("our own file");
}

fn basic(user: &str) -> String {
    basic_with(user, &password(user))
}

fn basic_with(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
}

fn ask(spliceway: &Spliceway, method: &'static str, target: &str, authorization: Option<&str>) -> Answer {
    let mut request = Request::new(method, target).header("Content-Length", "0");
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    request.send(spliceway.addr())
}

#[test]
fn permission_comes_before_everything_else() {
    let scene = Scene::new();
    let users = scene.htpasswd(&[USERNAME, "bob"]);
    let spliceway = scene.start(&format!(
        "htpasswd = {users:?}\n\
         rules = [{{ users = '{USERNAME}', repositories = 'team/**', actions = ['pull', 'push', 'delete'] }},\n\
                  {{ users = '*', repositories = 'team/*', actions = 'pull' }}]\n"
    ));
    let blob = format!("/v2/team/app/blobs/{}", sha256(&scene.image.blobs[0]));
    let (alice, bob) = (basic(USERNAME), basic("bob"));
    for (method, target, of_bob) in [
        ("GET", "/v2/", 200),
        ("GET", TAGGED, 200),
        ("HEAD", TAGGED, 200),
        ("GET", &blob, 200),
        ("GET", "/v2/team/app/tags/list", 200),
        ("GET", "/v2/other/app/tags/list", 403),
        ("POST", "/v2/team/app/blobs/uploads/", 403),
        ("PATCH", "/v2/team/app/blobs/uploads/6d5b1c1e-2f3a-4b5c-8d7e-9f0a1b2c3d4e", 403),
        ("PUT", TAGGED, 403),
        ("DELETE", TAGGED, 403),
        ("DELETE", &blob, 403),
    ] {
        scene.origin.forget_seen();
        let stranger = ask(&spliceway, method, target, None).expect(401);
        assert_eq!(stranger.header("www-authenticate"), Some("Basic realm=\"main\""), "{method} {target}");
        assert_eq!(stranger.header("docker-distribution-api-version"), Some("registry/2.0"));
        if method != "HEAD" {
            assert_eq!(stranger.error_code(), "UNAUTHORIZED");
        }
        assert!(scene.origin.all_seen().is_empty(), "nothing is looked up for a stranger: {method} {target}");
        let answer = ask(&spliceway, method, target, Some(&bob)).expect(of_bob);
        if of_bob == 403 {
            assert_eq!(answer.error_code(), "DENIED");
            assert!(scene.origin.all_seen().is_empty(), "nor for one who may not: {method} {target}");
        }
        let answer = ask(&spliceway, method, target, Some(&alice));
        let is_alices = answer.status() != 401 && (answer.status() != 403 || target.contains("other"));
        assert!(is_alices, "{method} {target}: {answer}");
    }
}

#[test]
fn where_nothing_is_open_clients_log_in_by_basic() {
    let scene = Scene::new();
    let users = scene.htpasswd(&[USERNAME]);
    let spliceway = scene.start(&format!("htpasswd = {users:?}"));
    let said = scene.pull(&spliceway).expect_err("without a login");
    assert!(said.contains("authentication") || said.contains("unauthorized"), "{said}");
    assert!(!scene.login(&spliceway, USERNAME, "wrong"));
    assert!(!scene.login(&spliceway, "nobody", PASSWORD));
    assert!(scene.login(&spliceway, USERNAME, PASSWORD));
    scene.pull(&spliceway).expect("with a login");

    let log = spliceway.wait_log(&["wrong user name or password", "nobody"]);
    assert!(log.contains("127.0.0.1:"), "the peer is named: {log}");
    let log = spliceway.log();
    for secret in [PASSWORD, &BASE64.encode(format!("{USERNAME}:{PASSWORD}").as_bytes())] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn where_pulling_is_open_clients_pull_without_a_login_and_log_in_for_the_rest() {
    let scene = Scene::new();
    let users = scene.htpasswd(&[USERNAME]);
    let spliceway = scene.start(&format!("htpasswd = {users:?}\nanonymous = 'pull'"));
    get(spliceway.addr(), TAGGED).expect(200);
    let ping = get(spliceway.addr(), "/v2/").expect(401);
    let challenge = ping.header("www-authenticate").expect("a challenge").to_owned();
    let realm = format!("http://{}/v2/token", spliceway.addr());
    assert_eq!(challenge, format!("Bearer realm=\"{realm}\",service=\"spliceway\""));
    let push = ask(&spliceway, "PUT", TAGGED, None).expect(401);
    let scope = format!("{challenge},scope=\"repository:team/app:pull,push\"");
    assert_eq!(push.header("www-authenticate"), Some(&*scope));

    scene.pull(&spliceway).expect("anybody may");
    assert!(!scene.login(&spliceway, USERNAME, "wrong"));
    assert!(scene.login(&spliceway, USERNAME, PASSWORD));
    scene.pull(&spliceway).expect("with a login, too");

    // What a client does that pushes.
    let token = |authorization: Option<&str>| {
        let answer = ask(
            &spliceway,
            "GET",
            "/v2/token?service=spliceway&scope=repository:team/app:push",
            authorization,
        );
        format!("Bearer {}", answer.expect(200).json()["token"].as_str().expect("a token"))
    };
    let (nobody, alice) = (token(None), token(Some(&basic(USERNAME))));
    ask(&spliceway, "PUT", TAGGED, Some(&nobody)).expect(401);
    ask(&spliceway, "GET", TAGGED, Some(&nobody)).expect(200);
    let answer = ask(&spliceway, "PUT", TAGGED, Some(&alice));
    assert!(![401, 403].contains(&answer.status()), "{answer}");
    ask(&spliceway, "POST", "/v2/token", Some(&alice)).expect(405);
    let wrong = ask(&spliceway, "GET", "/v2/token", Some(&basic_with(USERNAME, "wrong"))).expect(401);
    assert_eq!(wrong.header("www-authenticate"), Some("Basic realm=\"main\""));
}

#[test]
fn clients_push_with_a_login_where_it_allows_that() {
    let scene = Scene::new();
    let users = scene.htpasswd(&[USERNAME, "bob"]);
    let rules = "rules = [{ users = 'alice', repositories = 'mine/**', actions = ['pull', 'push'] }]";
    for anonymous in ["", "anonymous = 'pull'"] {
        let spliceway = scene.start(&format!("htpasswd = {users:?}\n{anonymous}\n{rules}"));
        let pushed = "/v2/mine/app/manifests/v1";
        scene.push(&spliceway, "mine/app").expect_err("without a login");
        assert!(scene.login(&spliceway, "bob", &password("bob")));
        scene.push(&spliceway, "mine/app").expect_err("with another one's login");
        ask(&spliceway, "GET", pushed, Some(&basic(USERNAME))).expect(404);
        assert!(scene.login(&spliceway, USERNAME, PASSWORD));
        scene.push(&spliceway, "mine/app").expect("with a login");
        scene.push(&spliceway, "other/app").expect_err("elsewhere");
        ask(&spliceway, "GET", pushed, Some(&basic(USERNAME))).expect(200).expect_body(&scene.own.manifest);
        fs::write(scene.path("auth.json"), "{}").expect("our own directory");
    }
}

#[test]
fn a_token_that_allows_pushing_is_asked_for_and_taken() {
    let scene = Scene::new();
    let tokens = TokenServer::start(Duration::from_mins(5));
    let spliceway = scene.start(&token_access(&tokens));
    scene.push(&spliceway, "mine/app").expect_err("without a login");
    assert!(scene.login(&spliceway, USERNAME, PASSWORD));
    scene.push(&spliceway, "mine/app").expect("with a login");
    let list = |scope: &str| {
        let token = format!("Bearer {}", fetch_token(&tokens, scope));
        ask(&spliceway, "GET", "/v2/_catalog", Some(&token))
    };
    let refused = list("repository:mine/app:pull").expect(401);
    let challenge = refused.header("www-authenticate").expect("a challenge");
    assert!(challenge.contains("scope=\"registry:catalog:*\",error=\"insufficient_scope\""), "{challenge}");
    list("registry:catalog:*").expect(200);
}

#[test]
fn podman_pulls_without_a_login_and_logs_in() {
    let scene = Scene::new();
    let users = scene.htpasswd(&[USERNAME]);
    let spliceway = scene.start(&format!("htpasswd = {users:?}\nanonymous = 'pull'"));
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command.args(["--storage-driver", "vfs"]);
        for (flag, directory) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(scene.path(directory));
        }
        command.args(arguments).env("REGISTRY_AUTH_FILE", scene.path("auth.json"));
        tools::run(&mut command)
    };
    let address = spliceway.addr().to_string();
    let pull = ["pull", "--tls-verify=false", &format!("{address}/{REPOSITORY}:v1")];
    let finished = podman(&pull);
    assert!(finished.status.success(), "without a login: {}", finished.stderr);
    let login = |password| podman(&["login", "--tls-verify=false", "-u", USERNAME, "-p", password, &address]);
    assert!(!login("wrong").status.success());
    assert!(login(PASSWORD).status.success());
    let finished = podman(&pull);
    assert!(finished.status.success(), "with a login: {}", finished.stderr);
}

#[test]
fn users_change_with_their_file_and_a_bad_one_changes_nothing() {
    let scene = Scene::new();
    let users = scene.htpasswd(&[USERNAME]);
    let spliceway = scene.start(&format!("htpasswd = {users:?}"));
    let status = |authorization: &str| ask(&spliceway, "GET", "/v2/", Some(authorization)).status();
    assert_eq!(status(&basic(USERNAME)), 200);

    fs::write(&users, "alice:plain\n").expect("our own file");
    eventually("the bad file to be noticed", || {
        assert_eq!(status(&basic(USERNAME)), 200, "the users stay");
        spliceway.log().contains("line 1").then_some(())
    });
    write_users(&users, &[(USERNAME, "changed".to_owned()), ("bob", password("bob"))]);
    eventually("the new password", || (status(&basic_with(USERNAME, "changed")) == 200).then_some(()));
    assert_eq!(status(&basic(USERNAME)), 401, "what was verified before is forgotten");
    assert_eq!(status(&basic("bob")), 200);
    let log = spliceway.log();
    assert_eq!(log.matches("the users stay as they were").count(), 1, "{log}");
}

#[test]
fn a_reload_changes_who_may_and_an_unusable_one_changes_nothing() {
    let scene = Scene::new();
    let users = scene.htpasswd(&[USERNAME]);
    let mut spliceway = scene.start("");
    get(spliceway.addr(), TAGGED).expect(200);
    spliceway.reload(|setup| scene.configure(setup, &format!("htpasswd = {users:?}")));
    spliceway.wait_log(&["configuration reloaded"]);
    get(spliceway.addr(), TAGGED).expect(401);
    spliceway.reload(|setup| scene.configure(setup, "htpasswd = '/nonexistent/users'"));
    spliceway.wait_log(&["cannot be used: the old one stays", "/nonexistent/users"]);
    get(spliceway.addr(), TAGGED).expect(401);
    ask(&spliceway, "GET", TAGGED, Some(&basic(USERNAME))).expect(200);
}

#[test]
fn a_repository_is_no_more_open_by_its_other_names() {
    let scene = Scene::new();
    scene.image.hold(&scene.origin, "public/app", "v1");
    let users = scene.htpasswd(&[USERNAME]);
    let spliceway = scene
        .start(&format!("htpasswd = {users:?}\nanonymous = 'pull'\nanonymous_repositories = ['public/**']"));
    get(spliceway.addr(), "/v2/public/app/manifests/v1").expect(200);
    for target in [
        TAGGED,
        "/v2/team/app/manifests/v1?ns=origin",
        "/v2/origin/team/app/manifests/v1",
        // Another upstream's repository of that name could be meant.
        "/v2/public/app/manifests/v1?ns=origin",
        "/v2/origin/public/app/manifests/v1",
    ] {
        get(spliceway.addr(), target).expect(401);
        ask(&spliceway, "GET", target, Some(&basic(USERNAME))).expect(200);
    }
    let challenge = get(spliceway.addr(), "/v2/team/app/manifests/v1?ns=origin").expect(401);
    let challenge = challenge.header("www-authenticate").expect("a challenge");
    assert!(challenge.ends_with("scope=\"repository:origin/team/app:pull\""), "{challenge}");
}

fn token_access(tokens: &TokenServer) -> String {
    format!(
        "[token]\nrealm = {:?}\nservice = {:?}\nissuer = {:?}\nkeys = '{}'\n",
        tokens.realm(),
        TokenServer::SERVICE,
        TokenServer::ISSUER,
        tokens.certificate().display(),
    )
}

#[test]
fn a_token_service_decides_as_it_does_for_distribution() {
    let scene = Scene::new();
    scene.image.hold(&scene.origin, "team/other", "v1");
    let tokens = TokenServer::start(Duration::from_mins(5));
    let spliceway = scene.start(&token_access(&tokens));
    scene.pull(&spliceway).expect_err("without a login");
    assert!(!scene.login(&spliceway, USERNAME, "wrong"));
    assert!(scene.login(&spliceway, USERNAME, PASSWORD));
    scene.pull(&spliceway).expect("with a login");

    let challenge = |answer: &Answer| answer.header("www-authenticate").expect("a challenge").to_owned();
    let base = format!("Bearer realm=\"{}\",service=\"{}\"", tokens.realm(), TokenServer::SERVICE);
    assert_eq!(challenge(&get(spliceway.addr(), "/v2/").expect(401)), base);
    let token = format!("Bearer {}", fetch_token(&tokens, "repository:team/app:pull"));
    ask(&spliceway, "GET", TAGGED, Some(&token)).expect(200);
    ask(&spliceway, "GET", "/v2/", Some(&token)).expect(200);
    for (method, target, scope) in [
        ("GET", "/v2/team/other/manifests/v1", "repository:team/other:pull"),
        ("PUT", TAGGED, "repository:team/app:pull,push"),
        ("DELETE", TAGGED, "repository:team/app:delete"),
    ] {
        let refused = ask(&spliceway, method, target, Some(&token)).expect(401);
        let expected = format!("{base},scope=\"{scope}\",error=\"insufficient_scope\"");
        assert_eq!(challenge(&refused), expected, "{method} {target}");
    }
    let forged = ask(&spliceway, "GET", TAGGED, Some(&format!("{token}AA"))).expect(401);
    let expected = format!("{base},scope=\"repository:team/app:pull\",error=\"invalid_token\"");
    assert_eq!(challenge(&forged), expected);
    ask(&spliceway, "GET", TAGGED, Some(&basic(USERNAME))).expect(401);
}

fn fetch_token(tokens: &TokenServer, scope: &str) -> String {
    let (address, path) = tokens
        .realm()
        .split_once("//")
        .and_then(|(_, rest)| {
            rest.split_once('/')
                .map(|(address, path)| (address.parse().expect("an address"), format!("/{path}")))
        })
        .expect("a URL");
    let request = Request::get(format!("{path}?scope={scope}")).header("Authorization", &basic(USERNAME));
    request.send(address).expect(200).json()["token"].as_str().expect("a token").to_owned()
}

/// A token that openssl signs with an RSA key.
fn sign(scene: &Scene, key: &Path, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let message = format!("{}.{}", encode(header), encode(claims));
    let (input, output) = (scene.path("message"), scene.path("signature"));
    fs::write(&input, &message).expect("our own directory");
    let mut command = Command::new("openssl");
    let digest = match header["alg"].as_str() {
        Some("RS384") => "-sha384",
        Some("RS512") => "-sha512",
        _ => "-sha256",
    };
    tools::succeed(command.args(["dgst", digest, "-sign"]).arg(key).arg("-out").arg(&output).arg(&input));
    let signature = fs::read(output).expect("openssl wrote it");
    format!("Bearer {message}.{}", BASE64URL_NOPAD.encode(&signature))
}

fn claims() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    json!({
        "iss": "auth", "aud": ["registry"], "exp": now + 300,
        "access": [{"type": "repository", "name": REPOSITORY, "actions": ["pull"]}],
    })
}

#[test]
fn a_key_is_named_by_a_chain_a_fingerprint_or_a_thumbprint() {
    let scene = Scene::new();
    let authority = Authority::new(scene.home.path());
    let stranger = TempDir::with_prefix("stranger-").expect("a temporary directory");
    let stranger = Authority::new(stranger.path());
    let service = "realm = 'http://127.0.0.1:1/token'\nservice = 'registry'\nissuer = 'auth'\n";
    let der = |certificate: &Path| {
        let pem = fs::read_to_string(certificate).expect("openssl wrote it");
        pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>()
    };

    let by_chain = scene.start(&format!("[token]\n{service}keys = {:?}", authority.ca));
    let header = json!({"alg": "RS256", "x5c": [der(&authority.certificate)]});
    let token = sign(&scene, &authority.key, &header, &claims());
    ask(&by_chain, "GET", TAGGED, Some(&token)).expect(200);
    for (header, key) in [
        (json!({"alg": "RS256", "x5c": [der(&stranger.certificate)]}), &stranger.key),
        (json!({"alg": "RS256", "x5c": [der(&stranger.certificate), der(&authority.ca)]}), &stranger.key),
        (json!({"alg": "RS256", "x5c": [der(&authority.certificate)]}), &stranger.key),
        (json!({"alg": "RS512", "x5c": [der(&authority.certificate)]}), &stranger.key),
        (json!({"alg": "RS256"}), &authority.key),
    ] {
        let token = sign(&scene, key, &header, &claims());
        ask(&by_chain, "GET", TAGGED, Some(&token)).expect(401);
    }

    // By the names of a public key.
    let openssl = |arguments: &[&str], from: &Path, to: &str| {
        tools::succeed(
            Command::new("openssl").args(arguments).arg("-in").arg(from).arg("-out").arg(scene.path(to)),
        );
        fs::read(scene.path(to)).expect("openssl wrote it")
    };
    openssl(&["pkey", "-pubout"], &authority.key, "public.pem");
    let info = openssl(&["pkey", "-pubout", "-outform", "DER"], &authority.key, "public.der");
    let fingerprint = BASE32_NOPAD.encode(&Sha256::digest(&info)[..30]);
    let groups: Vec<_> = fingerprint.as_bytes().chunks(4).map(String::from_utf8_lossy).collect();
    // 2048 bits and the usual exponent: the modulus ends five bytes before the end.
    let modulus = &info[info.len() - 5 - 256..info.len() - 5];
    let members = format!(r#"{{"e":"AQAB","kty":"RSA","n":"{}"}}"#, BASE64URL_NOPAD.encode(modulus));
    let thumbprint = BASE64URL_NOPAD.encode(&Sha256::digest(members));
    let by_name = scene.start(&format!("[token]\n{service}keys = {:?}", scene.path("public.pem")));
    for (algorithm, kid) in
        [("RS256", groups.join(":")), ("RS384", thumbprint.clone()), ("RS512", thumbprint)]
    {
        let token = sign(&scene, &authority.key, &json!({"alg": algorithm, "kid": kid}), &claims());
        ask(&by_name, "GET", TAGGED, Some(&token)).expect(200);
        let forged = sign(&scene, &stranger.key, &json!({"alg": algorithm, "kid": kid}), &claims());
        ask(&by_name, "GET", TAGGED, Some(&forged)).expect(401);
    }
}

/// In front of a registry that wants a login, which is ours and which clients must have as well.
fn before_private(registry: &Registry) -> Spliceway {
    Spliceway::start(|setup| {
        let upstream = setup.upstream("central", &registry.url());
        upstream.set("username", USERNAME).set("password", PASSWORD).set("client_credentials", true);
    })
}

#[test]
fn an_upstream_decides_by_the_clients_login_who_gets_what_is_held() {
    let scene = Scene::new();
    let tokens = TokenServer::start(Duration::from_mins(5));
    for mut registry in [Registry::htpasswd(), Registry::token(&tokens)] {
        let layout = scene.path("layout");
        write_layout(&layout, std::slice::from_ref(&scene.image));
        registry.push(&layout, &format!("{REPOSITORY}:v1"));
        let spliceway = before_private(&registry);
        let blob = sha256(&scene.image.blobs[0]);
        let held = format!("/v2/team/app/blobs/{blob}");
        scene.pull(&spliceway).expect_err("without a login");
        assert!(scene.login(&spliceway, USERNAME, PASSWORD));
        scene.pull(&spliceway).expect("with a login");
        spliceway.wait_published(&blob);

        for target in [TAGGED, &held, "/v2/team/app/tags/list", "/v2/central/team/app/manifests/v1"] {
            let stranger = get(spliceway.addr(), target).expect(401);
            assert!(stranger.header("www-authenticate").is_some(), "{stranger}");
            ask(&spliceway, "GET", target, Some(&basic_with(USERNAME, "wrong"))).expect(401);
            ask(&spliceway, "GET", target, Some(&basic(USERNAME))).expect(200);
        }
        get(spliceway.addr(), "/v2/_catalog").expect(403);
        assert!(!spliceway.log().contains(PASSWORD));

        // What is held does not become anybody's by being mounted.
        let mount = format!("/v2/mine/app/blobs/uploads/?mount={blob}&from={REPOSITORY}");
        ask(&spliceway, "POST", &mount, None).expect(202);

        registry.stop();
        ask(&spliceway, "GET", &held, Some(&basic(USERNAME))).expect(200);
        let answer = get(spliceway.addr(), &held);
        assert!(answer.status() >= 500, "who was not admitted before is not served: {answer}");
        fs::write(scene.path("auth.json"), "{}").expect("our own directory");
    }
}

#[test]
fn what_is_pushed_is_not_the_upstreams_to_refuse() {
    let scene = Scene::new();
    let registry = Registry::htpasswd();
    let spliceway = before_private(&registry);
    scene.push(&spliceway, REPOSITORY).expect("anybody may");
    get(spliceway.addr(), TAGGED).expect(200).expect_body(&scene.own.manifest);
    get(spliceway.addr(), "/v2/team/app/manifests/v2").expect(401);
}
