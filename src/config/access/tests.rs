use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::config::{Config, Flags};

const HASH: &str = "$2y$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe";
/// RFC 8037 appendix A.2.
const KEY_SET: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// A directory with the files that the tests name.
fn home() -> TempDir {
    let home = TempDir::new().expect("a temporary directory");
    let write = |name: &str, text: &str| fs::write(home.path().join(name), text).expect("our own directory");
    write("users", &format!("alice:{HASH}\n"));
    write("jwks", KEY_SET);
    write("plain", &format!("alice:{HASH}\nbob:hunter2\n"));
    home
}

fn load_with(
    home: &Path,
    listen: &str,
    access: &str,
    variables: &[(&str, &str)],
) -> Result<Config, ConfigError> {
    let text = format!("[server]\nlisten = {listen}\n[[registry]]\n[registry.access]\n{access}\n");
    let path = home.join("spliceway.toml");
    fs::write(&path, text.replace("HOME", &home.display().to_string())).expect("our own directory");
    let flags = Flags { config: Some(path), ..Flags::default() };
    Config::load(&flags, &|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
    })
}

fn load(home: &Path, access: &str) -> Result<Config, ConfigError> {
    load_with(home, "\"127.0.0.1:1\"", access, &[])
}

fn anonymous(config: &Config) -> String {
    config.registries[0].access.anonymous.rights.words().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_open_follows_from_who_can_connect() {
    let home = home();
    for (listen, variables, open) in [
        ("[\"127.0.0.1:1\", \"[::1]:1\", \"127.1.2.3:1\"]", &[][..], "pull push delete"),
        ("[\"127.0.0.1:1\", \"192.0.2.1:1\"]", &[], "pull"),
        ("\"[::]:1\"", &[], "pull"),
        ("\"0.0.0.0:1\"", &[], "pull"),
        ("\"[::ffff:127.0.0.1]:1\"", &[], "pull push delete"),
        ("\"127.0.0.1:1\"", &[("LISTEN_FDS", "1")], "pull"),
        ("\"127.0.0.1:1\"", &[("SPLICEWAY_LISTEN", "[::]:1")], "pull"),
    ] {
        let config = load_with(home.path(), listen, "", variables).expect("usable");
        assert_eq!(anonymous(&config), open, "{listen} {variables:?}");
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let closed = load_with(home.path(), listen, "htpasswd = 'HOME/users'", variables).expect("usable");
        assert_eq!(anonymous(&closed), "", "who names users means them to be needed");
    }
    let flags = Flags::default();
    assert_eq!(anonymous(&Config::load(&flags, &|_| None).expect("usable")), "pull push delete");
    let flags = Flags { listen: vec!["[::]:1".into()], ..flags };
    assert_eq!(anonymous(&Config::load(&flags, &|_| None).expect("usable")), "pull");
}

#[test]
fn what_is_opened_to_others_is_warned_about() {
    let home = home();
    let open = "anonymous = ['pull', 'push', 'delete']";
    let config = load_with(home.path(), "\"0.0.0.0:1\"", open, &[]).expect("usable");
    assert_eq!(anonymous(&config), "pull push delete");
    let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    for part in ["\"main\"", "0.0.0.0:1", "push and delete", "`anonymous`"] {
        assert!(warning.contains(part), "{part} in {warning}");
    }
    assert!(load(home.path(), open).expect("usable").warnings.is_empty(), "only this machine can connect");
    let config = load_with(home.path(), "\"0.0.0.0:1\"", "anonymous = 'pull'", &[]).expect("usable");
    assert!(config.warnings.is_empty());
    let config = load(home.path(), "anonymous = []").expect("usable");
    assert!(config.warnings[0].contains("nobody"), "{:?}", config.warnings);
}

#[test]
fn every_key_is_read_and_written_again() {
    let home = home();
    let config = load(
        home.path(),
        "anonymous = ['pull']\nanonymous_repositories = ['public/**', 'x']\nhtpasswd = 'HOME/users'\n\
         rules = [{ users = ['alice', '*'], repositories = 'team/*', actions = ['delete', 'pull'] }]\n\
         [registry.access.token]\nrealm = 'https://auth.example/token?a=b'\nservice = 'r'\nissuer = 'a b'\n\
         jwks = 'HOME/jwks'\n",
    )
    .expect("usable");
    let access = &config.registries[0].access;
    assert_eq!(access.realm, "main");
    let patterns: Vec<_> = access.anonymous.repositories.iter().map(ToString::to_string).collect();
    assert_eq!(patterns, ["public/**", "x"]);
    assert_eq!(access.htpasswd, Some(home.path().join("users")));
    let [rule] = &access.rules[..] else { panic!("{access:?}") };
    assert_eq!(rule.users, ["alice", "*"]);
    assert_eq!(rule.grant.rights, Rights { push: false, ..Rights::ALL });
    let token = access.token.as_ref().expect("given");
    assert_eq!((&*token.realm, &*token.issuer), ("https://auth.example/token?a=b", "a b"));

    let path = home.path().join("again.toml");
    fs::write(&path, config.summary()).expect("our own directory");
    let flags = Flags { config: Some(path), ..Flags::default() };
    let again = Config::load(&flags, &|_| None).expect("what is printed is a configuration");
    assert_eq!(&again.registries[0].access, access);
}

#[test]
fn logins_are_an_upstreams_or_ours() {
    let home = home();
    let upstream = "[[registry.upstream]]\nname = 'r'\nurl = 'https://r'\nclient_credentials = true";
    let config = load(home.path(), upstream).expect("usable");
    let registry = &config.registries[0];
    assert!(registry.access.passes_logins && registry.upstreams[0].client_credentials);
    assert!(!load(home.path(), "").expect("usable").registries[0].access.passes_logins);
    let both =
        load(home.path(), &format!("htpasswd = 'HOME/users'\n{upstream}")).expect_err("refused").to_string();
    for part in [":4: htpasswd", "`client_credentials` of upstream \"r\"", "one login"] {
        assert!(both.contains(part), "{part} in {both}");
    }
}

#[test]
fn what_cannot_be_used_is_named_with_place_value_and_remedy() {
    let home = home();
    let rule = |rest: &str| format!("htpasswd = 'HOME/users'\nrules = [{{ {rest} }}]");
    let token = |rest: &str| format!("[registry.access.token]\n{rest}");
    let service = "realm = 'https://a/t'\nservice = 's'\nissuer = 'i'\n";
    for (access, parts) in [
        ("anonymous = 'read'".to_owned(), &[":5: anonymous = \"read\"", "\"pull\", \"push\" and"][..]),
        (
            "anonymous = 'pull'\nanonymous_repositories = 'Team'".into(),
            &[":6: anonymous_repositories = \"Team\""],
        ),
        ("anonymous = 'pull'\nanonymous_repositories = []".into(), &[":6:", "names no repository"]),
        ("anonymous = []\nanonymous_repositories = 'x'".into(), &[":6:", "about nothing"]),
        ("htpasswd = 'HOME/none'".into(), &[":5: htpasswd", "/none\"", "No such file", "htpasswd -B"]),
        ("htpasswd = 'HOME/plain'".into(), &[":5: htpasswd", "bcrypt hash in line 2", "htpasswd -B"]),
        ("rules = [{}]".into(), &[":5: rules", "of whom there are none", "`htpasswd`"]),
        (rule(""), &[":6: users", "is missing", "\"alice\""]),
        (rule("users = 'a', actions = 'pull'"), &[":6: repositories", "is missing"]),
        (rule("users = 'a', repositories = '**'"), &[":6: actions", "is missing"]),
        (rule("users = 'a:b', repositories = '**', actions = 'pull'"), &["\"a:b\"", "no colon"]),
        (
            rule("users = 'a', repositories = 'a b', actions = 'pull'"),
            &["repositories = \"a b\"", "matches no"],
        ),
        (rule("users = 'a', repositories = '**', actions = '*'"), &["actions = \"*\"", "not an action"]),
        (rule("user = 'a'"), &[":6:", "unknown field `user`"]),
        (token(""), &["realm", "is missing", "https://auth.example/token"]),
        (token("realm = 'auth'\nservice = 's'\nissuer = 'i'"), &["realm = \"auth\"", "http or https"]),
        (token("realm = 'https://a/t'\nservice = \"s\\n\""), &["service", "printable ASCII"]),
        (token(service), &["keys", "is missing", "`jwks`"]),
        (token(&format!("{service}keys = 'HOME/users'")), &[":9: keys", "no PEM certificate or public key"]),
        (token(&format!("{service}keys = ['HOME/none']")), &[":9: keys", "cannot be read"]),
        (token(&format!("{service}jwks = 'HOME/users'")), &[":9: jwks", "not a JSON Web Key Set"]),
    ] {
        let message = match load(home.path(), &access) {
            Ok(_) => panic!("{access} is taken"),
            Err(error) => error.to_string(),
        };
        for part in parts {
            assert!(message.contains(part), "{part} in {message}, for {access}");
        }
        assert!(!message.contains("hunter2") && !message.contains('\n'), "{message}");
    }
}
