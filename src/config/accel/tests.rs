use std::io::Write;

use super::super::{Config, Flags};
use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Config::load(&Flags { config: Some(file.path().to_owned()), ..Flags::default() }, &|_| None)
}

const LEAST: &str = "[[accel]]\nhosts = [\"h\"]\nbackend = \"http://127.0.0.1:8000\"\n";

#[test]
fn what_is_not_said_has_its_default() {
    let config = load(LEAST).unwrap();
    assert!(config.warnings.is_empty());
    let [front] = &config.accel[..] else { panic!("{config:?}") };
    let options = &front.options;
    assert_eq!(options.name, "accel");
    assert_eq!(options.honour, Honour::ACCEL);
    assert_eq!((options.headers, options.status), (HeaderRule::Keep, StatusRule::File));
    assert_eq!((options.symlinks, options.keep_alive), (Symlinks::Beneath, 32));
    assert_eq!((options.body_bytes_max, options.connect_timeout), (None, 5 * SECOND));
    assert_eq!((options.header_timeout, options.stall_timeout), (60 * SECOND, 60 * SECOND));
    assert!(load("").unwrap().accel.is_empty());
}

#[test]
fn every_key_is_read_and_written_back() {
    let text = r#"
        [[accel]]
        name = "app"
        listen = "127.0.0.1:8080"
        hosts = ["files.example", "files.example:81"]
        backend = "unix:/run/app.sock"
        ca_file = "/etc/ca.pem"
        connect_timeout = "1s"
        header_timeout = "2s"
        stall_timeout = "3s"
        body_bytes_max = "1MiB"
        keep_alive = 0
        honour = ["redirect", "charset"]
        headers = "nginx"
        status = "backend"
        symlinks = "deny"
        sendfile_roots = ["/srv//files/", "/"]
        sendfile_type = true
        [[accel.location]]
        prefix = "/protected/"
        root = "/srv/files"
        [[accel.location]]
        prefix = "/layers/"
        blobs = "main"
        [[accel]]
        name = "other"
        listen = ["127.0.0.1:8081"]
        backend = "https://app.example/path"
    "#;
    let config = load(text).unwrap();
    let [front, other] = &config.accel[..] else { panic!("{config:?}") };
    let options = &front.options;
    assert_eq!(options.backend, BackendAddress::Unix("/run/app.sock".into()));
    assert_eq!(options.honour.words().collect::<Vec<_>>(), ["redirect", "charset", "sendfile"]);
    assert_eq!(options.sendfile_roots, [PathBuf::from("/srv/files"), PathBuf::from("/")]);
    assert_eq!((options.body_bytes_max, options.keep_alive), (Some(1 << 20), 0));
    assert_eq!(options.locations[1].content, LocationContent::Blobs("main".into()));
    assert_eq!((front.hosts.len(), other.listen.len()), (2, 1));

    let again = load(&config.summary()).unwrap();
    assert_eq!(again.summary(), config.summary());
    assert_eq!(format!("{:?}", again.accel), format!("{:?}", config.accel));
}

#[test]
fn a_refused_front_names_place_key_value_and_remedy() {
    let with = |more: &str| format!("{LEAST}{more}\n");
    let location = |more: &str| format!("{LEAST}[[accel.location]]\n{more}\n");
    for (text, parts) in [
        ("[[accel]]\nhosts = [\"h\"]\n".to_owned(), &[":1: backend", "is missing", "unix:"][..]),
        ("[[accel]]\nbackend = \"http://b\"\n".to_owned(), &["hosts", "would select this front"]),
        (LEAST.replace("http:", "ftp:"), &[":3: backend", "neither"]),
        (LEAST.replace("http://127.0.0.1:8000", "unix:run/x"), &[":3: backend", "socket"]),
        (LEAST.replace("127", "u:hunter2@127"), &["credentials", "leave them out"]),
        (LEAST.replace("8000", "8000/?q"), &["query"]),
        (format!("{LEAST}{LEAST}"), &["name = \"accel\"", "already"]),
        (format!("{LEAST}{}", LEAST.replace("hosts", "name = \"b\"\nhosts")), &["already selects a front"]),
        (with("listen = \"127.0.0.1:5000\""), &["already listened on"]),
        (with("honour = [\"etag\"]"), &["honour = \"etag\"", "redirect, expires"]),
        (with("headers = \"all\""), &["headers", "\"keep\" or \"nginx\""]),
        (with("symlinks = \"follow\""), &["symlinks", "\"beneath\" or \"deny\""]),
        (with("sendfile_roots = [\"srv\"]"), &["sendfile_roots = \"srv\"", "absolute"]),
        (with("sendfile_roots = [\"/srv/../etc\"]"), &["sendfile_roots", "without \"..\""]),
        (with("unknown = 1"), &["unknown field `unknown`"]),
        (location("root = \"/srv\""), &["prefix", "is missing"]),
        (location("prefix = \"/p\"\nroot = \"/srv\""), &["prefix = \"/p\"", "write \"/p/\""]),
        (location("prefix = \"/p/../\"\nroot = \"/srv\""), &["prefix"]),
        (location("prefix = \"/p/\""), &["root", "is missing", "`blobs`"]),
        (location("prefix = \"/p/\"\nroot = \"/srv\"\nblobs = \"main\""), &["beside `blobs`"]),
        (location("prefix = \"/p/\"\nblobs = \"other\""), &["blobs = \"other\"", "one: main"]),
        (
            location("prefix = \"/p/\"\nroot = \"/a\"\n[[accel.location]]\nprefix = \"/p/\"\nroot = \"/b\""),
            &["given twice"],
        ),
    ] {
        let message = load(&text).expect_err(&text).to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?} for\n{text}");
        }
        assert!(!message.contains("hunter2"), "{message:?}");
    }
}

#[test]
fn what_is_hardly_meant_is_warned_about() {
    for more in ["honour = [\"sendfile\"]", "sendfile_type = true"] {
        let config = load(&format!("{LEAST}{more}\n")).unwrap();
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    }
}
