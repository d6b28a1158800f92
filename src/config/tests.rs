use std::io::Write;

use super::*;
use crate::maintain::gc::ExpireFrom;

fn no_variables(_: &str) -> Option<OsString> {
    None
}

/// What a file of this text gives, with these flags and variables besides.
fn load_with(text: &str, flags: Flags, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let flags = Flags { config: Some(file.path().to_owned()), ..flags };
    Config::load(&flags, &|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
    })
}

fn load(text: &str) -> Result<Config, ConfigError> {
    load_with(text, Flags::default(), &[])
}

fn listen_of(config: &Config) -> Vec<String> {
    config.server.listen.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_at_all_is_a_working_registry() {
    let config = Config::load(&Flags::default(), &no_variables).unwrap();
    assert_eq!(listen_of(&config), ["127.0.0.1:5000"]);
    assert_eq!(config.server.admin, None);
    assert_eq!(config.server.io_uring, Mode::Auto);
    assert!(config.server.access_log);
    assert_eq!(config.server.header_bytes, 32 << 10);
    assert_eq!(config.server.idle_timeout, Duration::from_secs(75));
    let [registry] = &config.registries[..] else { panic!("{config:?}") };
    assert_eq!(registry.name, "main");
    assert_eq!(registry.local, PathBuf::from("./spliceway-data/local"));
    assert_eq!(registry.cache, PathBuf::from("./spliceway-data/cache"));
    assert_eq!(registry.min_free, 1 << 30);
    assert_eq!(registry.manifest_bytes_max, 4 << 20);
    assert!(registry.upstreams.is_empty());
    assert!(config.warnings.is_empty());
}

#[test]
fn every_key_is_read() {
    let config = load(
        r#"
        [server]
        listen = ["127.0.0.1:5001", "[::1]:5001"]
        admin = "127.0.0.1:9000"
        workers = 3
        io_uring = "off"
        data = "/srv/s"
        access_log = false
        connections = 7000
        header_bytes = "16KiB"
        header_fields = 50
        header_timeout = "1s"
        idle_timeout = "2s"
        stall_timeout = "3s"
        drain_timeout = "1m 4s"

        [maintenance]
        gc = "1d"
        gc_grace = "2h"
        gc_untagged = true
        expire_manifests = "90d"
        expire_from = "pull"
        uploads = "off"
        scrub = "30d"
        scrub_rate = "1MiB"
        scrub_repair = "off"

        [[registry]]
        name = "first"
        hosts = ["a.example", "a.example:5000"]
        max_size = "500GB"
        min_free = 0
        pin = ["library/*", "registry.example:5000/a"]
        far_range = "1MiB"
        ranges_max = 5
        manifest_bytes_max = "16MiB"
        handles_max = 99

        [registry.v1]
        source = "https://v1.example/hub/v1"
        source_index = "http://index.example:5000"
        tags_cache_ttl = "3s"
        storage_redirect = "https://cdn.example/store"
        connect_timeout = "4s"
        header_timeout = "5s"
        stall_timeout = "6s"

        [[registry.upstream]]
        name = "docker.io"
        aliases = ["hub.example:443"]
        url = "https://registry-1.docker.io/"
        mirrors = ["http://mirror.example:5000/hub"]
        default = true
        username = "user"
        password = "hunter2"
        auth_hosts = ["auth.example"]
        tag_ttl = "0s"
        negative_ttl = "5s"
        connect_timeout = "6s"
        header_timeout = "7s"
        stall_timeout = "8s"
        retries = 9

        [[registry.upstream]]
        name = "ghcr.io:443"
        url = "https://ghcr.io"

        [[registry]]
        name = "second"
        hosts = "b.example"
        cache = "/srv/elsewhere"
        "#,
    )
    .unwrap();

    let server = &config.server;
    assert_eq!(listen_of(&config), ["127.0.0.1:5001", "[::1]:5001"]);
    assert_eq!(server.admin.unwrap().port(), 9000);
    assert_eq!((server.workers.get(), server.io_uring, server.access_log), (3, Mode::Off, false));
    assert_eq!(server.connections_max(10), 7000);
    assert_eq!((server.header_bytes, server.header_fields), (16 << 10, 50));
    let timeouts = [server.header_timeout, server.idle_timeout, server.stall_timeout, server.drain_timeout];
    assert_eq!(timeouts.map(|timeout| timeout.as_secs()), [1, 2, 3, 64]);

    let hours = |hours| Duration::from_hours(hours);
    let maintenance = MaintenanceConfig {
        gc: Some(hours(24)),
        gc_grace: hours(2),
        gc_untagged: true,
        expire_manifests: Some(hours(90 * 24)),
        expire_from: ExpireFrom::Pull,
        uploads: None,
        scrub: Some(hours(30 * 24)),
        scrub_rate: 1 << 20,
        scrub_repair: false,
    };
    assert_eq!(config.maintenance, maintenance);

    let [first, second] = &config.registries[..] else { panic!("{config:?}") };
    assert_eq!(first.pin, ["library/*", "registry.example:5000/a"]);
    assert_eq!(first.hosts, ["a.example", "a.example:5000"]);
    assert_eq!((first.max_size, first.min_free, first.far_range), (Some(500_000_000_000), 0, 1 << 20));
    assert_eq!((first.ranges_max, first.manifest_bytes_max, first.handles(1, 1)), (5, 16 << 20, 99));
    assert_eq!((&first.local, &first.cache), (&"/srv/s/local".into(), &"/srv/s/cache".into()));
    assert_eq!((&second.local, &second.cache), (&"/srv/s/second/local".into(), &"/srv/elsewhere".into()));

    let v1 = first.v1.as_ref().unwrap();
    assert_eq!(v1.source.as_str(), "https://v1.example/hub");
    assert_eq!(v1.source_index.as_str(), "http://index.example:5000/");
    assert_eq!(v1.storage_redirect.as_ref().unwrap().as_str(), "https://cdn.example/store/");
    let times = [v1.tags_cache_ttl, v1.connect_timeout, v1.header_timeout, v1.stall_timeout];
    assert_eq!(times.map(|time| time.as_secs()), [3, 4, 5, 6]);
    assert_eq!(second.v1, None);

    let [hub, ghcr] = &first.upstreams[..] else { panic!("{first:?}") };
    assert_eq!(hub.aliases, ["hub.example:443", "registry-1.docker.io"]);
    assert_eq!(hub.url.as_str(), "https://registry-1.docker.io/");
    assert_eq!(hub.mirrors[0].as_str(), "http://mirror.example:5000/hub");
    assert!(hub.default && hub.docker_hub && !ghcr.default && !ghcr.docker_hub);
    let Credentials::Basic { username, password } = &hub.credentials else { panic!("{hub:?}") };
    assert_eq!((username.as_str(), password.expose()), ("user", "hunter2"));
    assert_eq!(ghcr.credentials, Credentials::None);
    assert_eq!(hub.auth_hosts, ["auth.example"]);
    let times = [hub.tag_ttl, hub.negative_ttl, hub.connect_timeout, hub.header_timeout, hub.stall_timeout];
    assert_eq!(times.map(|time| time.as_secs()), [0, 5, 6, 7, 8]);
    assert_eq!(hub.retries, 9);
    assert_eq!((ghcr.name.as_str(), ghcr.directory.as_str()), ("ghcr.io:443", "ghcr.io_443"));
    assert_eq!(first.default_upstream().unwrap().name, "docker.io");
    assert!(second.default_upstream().is_none());
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\nworkers = 1\ndata = \"/f\"\n\
                io_uring = \"on\"\n[[registry]]\n[[registry.upstream]]\nname = \"f\"\nurl = \"https://f\"\n";
    let variables = [
        ("SPLICEWAY_LISTEN", "127.0.0.1:11, [::1]:11"),
        ("SPLICEWAY_ADMIN", "127.0.0.1:12"),
        ("SPLICEWAY_WORKERS", "11"),
        ("SPLICEWAY_DATA", "/v"),
        ("SPLICEWAY_IO_URING", "off"),
        ("SPLICEWAY_UPSTREAM", "https://v"),
    ];
    let flags = Flags {
        config: None,
        listen: vec!["127.0.0.1:21".into()],
        data: Some("/c".into()),
        upstream: Some("https://c:444".into()),
        admin: Some("127.0.0.1:22".into()),
        workers: Some("21".into()),
        io_uring: Some("auto".into()),
    };
    let seen = |config: Config| {
        let registry = &config.registries[0];
        let upstream = registry.default_upstream().unwrap();
        format!(
            "{} {} {} {} {:?} {}={}",
            listen_of(&config).join(","),
            config.server.admin.unwrap(),
            config.server.workers,
            registry.local.display(),
            config.server.io_uring,
            upstream.name,
            upstream.url,
        )
    };
    let load_with = |flags: &Flags, variables| seen(load_with(file, flags.clone(), variables).unwrap());
    assert_eq!(load_with(&Flags::default(), &[]), "127.0.0.1:1 127.0.0.1:2 1 /f/local On f=https://f/");
    assert_eq!(
        load_with(&Flags::default(), &variables),
        "127.0.0.1:11,[::1]:11 127.0.0.1:12 11 /v/local Off v=https://v/"
    );
    assert_eq!(
        load_with(&flags, &variables),
        "127.0.0.1:21 127.0.0.1:22 21 /c/local Auto c:444=https://c:444/"
    );
    let empty = variables.map(|(name, _)| (name, ""));
    assert_eq!(load_with(&Flags::default(), &empty), load_with(&Flags::default(), &[]), "empty is unset");
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[server]\nworkers = 5\n").unwrap();
    let path = file.path().as_os_str().to_owned();
    let variable = |name: &str| (name == "SPLICEWAY_CONFIG").then(|| path.clone());
    assert_eq!(Config::load(&Flags::default(), &variable).unwrap().server.workers.get(), 5);
}

/// Text of a file, and what must stand in the message that refuses it.
type Refused<'a> = (&'a str, &'a [&'a str]);

/// Each message is one line, begins with the file, and repeats no password.
fn assert_refused(cases: &[Refused<'_>]) {
    for (text, parts) in cases {
        let message = match load(text) {
            Ok(config) => panic!("accepted:\n{text}\n{config:?}"),
            Err(error) => error.to_string(),
        };
        for part in *parts {
            assert!(message.contains(part), "{part:?} is not in {message:?} for\n{text}");
        }
        assert!(message.starts_with('/'), "no file in {message:?}");
        assert!(!message.contains('\n'), "more than a line: {message:?}");
        for secret in ["hunter2", "77777"] {
            assert!(!message.contains(secret), "{message:?}");
        }
    }
}

fn upstream(rest: &str) -> String {
    format!("[[registry]]\n[[registry.upstream]]\nname = \"r\"\n{rest}\n")
}

fn two(first: &str, second: &str) -> String {
    format!(
        "[[registry]]\n[[registry.upstream]]\nurl = \"https://r\"\n{first}\n[[registry.upstream]]\n\
         url = \"https://s\"\n{second}\n"
    )
}

#[test]
fn a_refused_server_names_place_key_value_and_remedy() {
    assert_refused(&[
        ("nonsense", &[":1:"]),
        ("[server]\nlisten = [\"127.0.0.1:1\"", &[":2:"]),
        ("[server]\nlisen = 1\n", &[":2:", "unknown field `lisen`", "`listen`"]),
        ("\n[servers]\n", &[":2:", "unknown field `servers`", "`server`"]),
        ("[[registry]]\n[[registry.upstreams]]\n", &[":2:", "`upstreams`", "`upstream`"]),
        ("[server]\nworkers = 1.5\n", &[":2:", "floating point `1.5`", "a string, an integer or a boolean"]),
        ("[server]\nlisten = 5000\n", &[":2:", "a string or a list of strings"]),
        ("[server]\n\nlisten = \":5000\"\n", &[":3: listen = \":5000\" in [server]", "write \"[::]:5000\""]),
        ("[server]\nlisten = []\n", &[":2: listen", "names no address"]),
        ("[server]\nlisten = [\"[::]:1\", \"[::]:1\"]\n", &[":2: listen", "listed twice"]),
        (
            "[server]\nlisten = \"[::]:1\"\nadmin = \"[::]:1\"\n",
            &[":3: admin", "also an address", "another port"],
        ),
        ("[server]\nadmin = \"9000\"\n", &[":2: admin = \"9000\" in [server]", "ADDR:PORT"]),
        ("[server]\nworkers = 0\n", &[":2: workers = \"0\" in [server]", "from 1 to 1024"]),
        ("[server]\nio_uring = \"yes\"\n", &[":2: io_uring", "\"auto\" or \"on\" or \"off\""]),
        ("[server]\nworkers = true\n", &[":2: workers = \"true\" in [server]", "from 1 to 1024"]),
        ("[server]\naccess_log = \"\"\n", &[":2: access_log", "\"on\" or \"off\""]),
        ("[server]\nheader_bytes = \"1KiB\"\n", &[":2: header_bytes", "from 4KiB to 60KiB"]),
        ("[server]\nheader_timeout = 10\n", &[":2: header_timeout", "\"10\"", "no unit", "\"10s\""]),
        (
            "[server]\nidle_timeout = \"0s\"\n",
            &[":2: idle_timeout", "\"0s\"", "out of bounds", "from 10ms to 1day"],
        ),
        ("[server]\nidle_timeout = \"soon\"\n", &[":2: idle_timeout", "not a duration"]),
        ("[server]\ndata = \"\"\n", &[":2: data", "is empty"]),
    ]);
}

#[test]
fn a_refused_registry_names_place_key_value_and_remedy() {
    assert_refused(&[
        ("[[registry]]\nname = \"a/b\"\n", &[":2: name = \"a/b\" in [[registry]]", "\"/\""]),
        ("[[registry]]\nname = \"Main\"\n", &[":2: name", "upper-case", "write \"main\""]),
        (
            "[[registry]]\nmax_size = \"lots\"\n",
            &[":2: max_size = \"lots\" in registry \"main\"", "\"500GB\""],
        ),
        ("[[registry]]\nmax_size = -1\n", &[":2: max_size", "\"-1\"", "not a size"]),
        ("[[registry]]\nmanifest_bytes_max = \"17MiB\"\n", &[":2: manifest_bytes_max", "to 16MiB"]),
        ("[[registry]]\nlocal = \"/d\"\ncache = \"/d\"\n", &[":3: cache", "\"/d\"", "directory of its own"]),
        ("[[registry]]\nlocal = \"/d/x\"\ncache = \"/d\"\n", &[":3: cache", "in, or around, /d/x"]),
        ("[[registry]]\n[[registry]]\nhosts = \"h\"\n", &[":2: name in [[registry]] is missing"]),
        (
            "[[registry]]\n[[registry]]\nname = \"main\"\nhosts = \"h\"\n",
            &[":3: name", "\"main\"", "already"],
        ),
        ("[[registry]]\n[[registry]]\nname = \"b\"\n", &[":2: hosts in registry \"b\" is missing"]),
        (
            "[[registry]]\nhosts = \"h\"\n[[registry]]\nname = \"b\"\nhosts = \"h\"\n",
            &[":5: hosts", "already selects"],
        ),
        ("[[registry]]\nhosts = \"https://h\"\n", &[":2: hosts", "\"https://h\"", "registry.example:5000"]),
        (
            "[[registry]]\n[[registry]]\nname = \"local\"\nhosts = \"h\"\n",
            &["in registry \"local\" lies", "in, or around"],
        ),
    ]);
}

#[test]
fn refused_maintenance_names_place_key_value_and_remedy() {
    assert_refused(&[
        (
            "[maintenance]\ngc = \"never\"\n",
            &[":2: gc = \"never\" in [maintenance]", "not a duration", "\"off\""],
        ),
        ("[maintenance]\nscrub = true\n", &[":2: scrub = \"true\"", "no unit", "\"off\""]),
        ("[maintenance]\ngc = \"10ms\"\n", &[":2: gc", "out of bounds", "from 1s to 365d"]),
        ("[maintenance]\ngc_grace = \"off\"\n", &[":2: gc_grace", "not a duration"]),
        ("[maintenance]\nexpire_from = \"tag\"\n", &[":2: expire_from", "\"push\" or \"pull\""]),
        ("[maintenance]\nscrub_rate = \"1kB\"\n", &[":2: scrub_rate", "from 1MiB"]),
        ("[maintenance]\ngrace = \"1h\"\n", &[":2:", "unknown field `grace`", "`gc_grace`"]),
        ("[[registry]]\npin = \"\"\n", &[":2: pin", "is empty"]),
        ("[[registry]]\npin = [\"a\", \"A/*\"]\n", &[":2: pin = \"A/*\"", "matches no repository"]),
        ("[[registry]]\npin = \"library/alpine:3\"\n", &[":2: pin", "a tag or a digest", "alone"]),
    ]);
}

#[test]
fn maintenance_that_is_hardly_meant_is_warned_about() {
    for (text, warning) in [
        ("gc_grace = \"1m\"", Some("gc_grace = \"1m\"")),
        ("gc_grace = \"1m\"\ngc = \"off\"", None),
        ("gc = false\nexpire_manifests = \"30d\"", Some("expire_manifests is part of gc, which is off")),
        ("expire_manifests = \"30d\"", None),
    ] {
        let warnings = load(&format!("[maintenance]\n{text}\n")).unwrap().warnings;
        assert_eq!(warnings.len(), usize::from(warning.is_some()), "{text}: {warnings:?}");
        assert!(warning.is_none_or(|part| warnings[0].contains(part)), "{text}: {warnings:?}");
    }
}

#[test]
fn a_refused_upstream_names_place_key_value_and_remedy() {
    assert_refused(&[
        ("[[registry]]\n\n[[registry.upstream]]\n", &[":3: name in an upstream", "is missing"]),
        (&upstream(""), &[":2: url in upstream \"r\" is missing", "url = "]),
        (&upstream("url = \"r.example\""), &[":4: url", "write \"https://r.example\""]),
        (&upstream("url = \"ftp://r\""), &[":4: url", "\"ftp://r\"", "http or https"]),
        (&upstream("url = \"https://r/p/v2/\""), &[":4: url", "leave out \"/v2\""]),
        (&upstream("url = \"https://r?a=b\""), &[":4: url", "query"]),
        (&upstream("url = \"https://u:hunter2@r\""), &[":4: url", "@r", "`password_file`"]),
        (&upstream("url = \"https://u:hunter2@r:x\""), &[":4: url", "@r"]),
        (&upstream("url = \"https://r\"\nmirrors = [\"x\"]"), &[":5: mirrors = \"x\" in upstream \"r\""]),
        (&upstream("url = \"https://r\"\naliases = [\"R\"]"), &[":5: aliases", "write \"r\""]),
        (&upstream("url = \"https://r\"\nauth_hosts = [\"a/b\"]"), &[":5: auth_hosts", "\"a/b\""]),
        (&upstream("url = \"https://r\"\nretries = 101"), &[":5: retries", "from 0 to 100"]),
        (&upstream("url = \"https://r\"\nconnect_timeout = \"0s\""), &[":5: connect_timeout", "10ms"]),
        (&two("name = \"r\"", "name = \"r\""), &[":7: name", "\"r\"", "already means another upstream"]),
        (&two("name = \"r\"", "name = \"s\"\naliases = \"r\""), &["\"r\"", "already means another upstream"]),
        (&two("name = \"r:1\"", "name = \"r_1\""), &[":7: name", "share its directory"]),
        (
            &two("name = \"r\"\ndefault = true", "name = \"s\"\ndefault = true"),
            &[":9: default = \"true\" in upstream \"s\"", "let one be the default"],
        ),
        (&two("name = \"a b\"", "name = \"s\""), &[":4: name", "\"a b\""]),
    ]);
}

#[test]
fn refused_credentials_name_place_key_and_remedy_but_no_password() {
    assert_refused(&[
        (&upstream("url = \"https://r\"\npassword = \"hunter2\""), &["username", "is missing"]),
        (
            &upstream("url = \"https://r\"\nusername = \"u\""),
            &[":5: username", "no password", "`password_file`"],
        ),
        (&upstream("url = \"https://r\"\npassword = 77777"), &[":5:", "a password is a string"]),
        (&upstream("url = \"https://r\"\nusername = \"u\"\npassword = \"\""), &[":6: password", "is empty"]),
        (&upstream("url = \"https://r\"\nusername = \"u:\"\npassword = \"p\""), &[":5: username", "colon"]),
        (
            &upstream("url = \"https://r\"\npassword = \"hunter2\"\npassword_file = \"/f\""),
            &[":6: password_file", "\"/f\"", "beside `password`", "one or the other"],
        ),
        (
            &upstream("url = \"https://r\"\nusername = \"u\"\npassword_file = \"/nonexistent/f\""),
            &[":6: password_file", "cannot be read", "No such file"],
        ),
        (&upstream("url = \"https://r\"\nca_file = \"/dev/null\""), &[":5: ca_file", "no PEM certificate"]),
        (
            &upstream("url = \"https://r\"\ndocker_config = \"/nonexistent/c\""),
            &[":5: docker_config", "cannot be read", "skopeo login --authfile /nonexistent/c r"],
        ),
        (
            &upstream("url = \"https://r\"\nusername = \"u\"\ndocker_config = \"/c\""),
            &[":6: docker_config", "one or the other"],
        ),
    ]);
}

#[test]
fn a_refused_flag_or_variable_is_named_as_such() {
    let flags = Flags { listen: vec!["x".into()], ..Flags::default() };
    let message = Config::load(&flags, &no_variables).unwrap_err().to_string();
    assert!(message.starts_with("--listen: listen = \"x\" in [server]"), "{message}");
    let variable = |name: &str| (name == "SPLICEWAY_UPSTREAM").then(|| "docker.io".into());
    let message = Config::load(&Flags::default(), &variable).unwrap_err().to_string();
    assert!(message.starts_with("SPLICEWAY_UPSTREAM: url"), "{message}");
    assert!(message.contains("https://docker.io"), "{message}");
    let flags = Flags { config: Some("/nonexistent/c.toml".into()), ..Flags::default() };
    let message = Config::load(&flags, &no_variables).unwrap_err().to_string();
    assert!(message.starts_with("/nonexistent/c.toml: cannot read"), "{message}");
}

#[test]
fn a_password_over_plain_http_is_warned_about_unless_it_stays_here() {
    for (url, warned) in
        [("http://r.example", true), ("https://r.example", false), ("http://127.0.0.1:5001", false)]
    {
        let text = format!(
            "[[registry]]\n[[registry.upstream]]\nname = \"r\"\nurl = \"{url}\"\nusername = \"u\"\npassword = \"p\"\n"
        );
        assert_eq!(load(&text).unwrap().warnings.len(), usize::from(warned), "{url}");
    }
}

#[test]
fn the_summary_can_be_loaded_again_and_shows_no_password() {
    let config = load(
        "[server]\nadmin = \"127.0.0.1:1\"\ndata = \"/a \\\"b\\\\c\"\n[[registry]]\nmax_size = 1048577\n\
         v1 = { source = \"http://v1\", storage_redirect = \"https://cdn\", tags_cache_ttl = \"90s\" }\n\
         [[registry.upstream]]\nname = \"docker.io\"\nurl = \"https://docker.io\"\nusername = \"u\"\n\
         password = \"hunter2\"\ntag_ttl = \"90s\"\n[[registry.upstream]]\nname = \"r:5\"\nurl = \"http://r:5/p\"\n\
         [[registry]]\nname = \"b\"\nhosts = [\"h\"]\n",
    )
    .unwrap();
    let summary = config.summary();
    assert!(!summary.contains("hunter2"), "{summary}");
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(summary.contains("tag_ttl = \"1m 30s\""), "{summary}");
    let mut again = load(&summary).unwrap();
    again.registries[0].upstreams[0].credentials = config.registries[0].upstreams[0].credentials.clone();
    assert_eq!(format!("{again:?}"), format!("{config:?}"));
}

#[test]
fn a_v1_mirror_needs_a_source() {
    for (v1, key) in [
        ("{}", "source"),
        ("{ source = \"registry.example\" }", "source"),
        ("{ source = \"https://a:b@registry.example\" }", "source"),
        ("{ source = \"https://r\", source_index = \"ftp://r\" }", "source_index"),
        ("{ source = \"https://r\", storage_redirect = \"/srv\" }", "storage_redirect"),
        ("{ source = \"https://r\", tags_cache_ttl = 5 }", "tags_cache_ttl"),
        ("{ source = \"https://r\", ca_file = \"/nowhere/ca.pem\" }", "ca_file"),
    ] {
        let error = load(&format!("[[registry]]\nv1 = {v1}\n")).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("`v1` of registry \"main\""), "{v1}: {error}");
    }
}

#[test]
fn bounds_follow_the_number_of_files_that_may_be_open() {
    let config = Config::load(&Flags::default(), &no_variables).unwrap();
    assert_eq!(config.server.connections_max(1024), 512);
    assert_eq!(config.server.connections_max(0), 1);
    let registry = &config.registries[0];
    assert_eq!([registry.handles(1024, 1), registry.handles(1 << 20, 1)], [256, 16_384]);
    assert_eq!(registry.handles(1024, 2), 128);
    assert_eq!(registry.handles(0, 3), 1);
}
