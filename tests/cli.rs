//! The command line as a person meets it: exit codes, what is said, and where.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program in `directory` with nothing of this process's environment.
fn spliceway(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spliceway"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .expect("the program was built for this test")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}

/// A directory with a configuration file of this text.
fn with_config(config: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("spliceway.toml"), config).unwrap();
    directory
}

#[test]
fn check_config_prints_a_usable_file_without_its_password() {
    let directory = with_config(
        "[[registry]]\n[[registry.upstream]]\nname = \"docker.io\"\nurl = \"https://registry-1.docker.io\"\n\
         username = \"robot\"\npassword_file = \"secret\"\n",
    );
    std::fs::write(directory.path().join("secret"), "hunter2\n").unwrap();
    let output = spliceway(directory.path(), &["check-config", "spliceway.toml"], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    let printed = text(&output.stdout);
    for part in ["listen = [\"127.0.0.1:5000\"]", "name = \"docker.io\"", "robot", "tag_ttl = \"1m\""] {
        assert!(printed.contains(part), "{part} in {printed}");
    }
    assert!(!printed.contains("hunter2"), "{printed}");

    std::fs::write(directory.path().join("again.toml"), printed).unwrap();
    let again = spliceway(directory.path(), &["check-config", "again.toml"], &[]);
    assert_eq!(again.status.code(), Some(0), "what is printed is a configuration: {again:?}");
}

#[test]
fn check_config_warns_on_standard_error() {
    let directory = with_config(
        "[[registry]]\n[[registry.upstream]]\nname = \"r\"\nurl = \"http://r.example\"\nusername = \"u\"\n\
         password = \"p\"\n",
    );
    let output = spliceway(directory.path(), &["check-config", "spliceway.toml"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("warning: upstream \"r\""), "{output:?}");
}

#[test]
fn check_config_refuses_a_bad_file_with_its_line_and_exit_code_2() {
    let directory = with_config("[server]\n\nlisten = \"5000\"\n");
    let output = spliceway(directory.path(), &["check-config", "spliceway.toml"], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    assert!(
        text(&output.stderr).starts_with("spliceway: spliceway.toml:3: listen = \"5000\" in [server]"),
        "{output:?}"
    );
    let output = spliceway(directory.path(), &["check-config", "missing.toml"], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("missing.toml: cannot read"), "{output:?}");
}

#[test]
fn check_config_is_about_the_file_alone() {
    let directory = with_config("[server]\nworkers = 3\n");
    let variables = [("SPLICEWAY_WORKERS", "none"), ("SPLICEWAY_LISTEN", "nowhere")];
    let output = spliceway(directory.path(), &["check-config", "spliceway.toml"], &variables);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("workers = 3"), "{output:?}");
}

#[test]
fn serve_refuses_what_it_cannot_use_before_it_does_anything() {
    let directory = with_config("[server]\nlisten = \"5000\"\n");
    let file = "spliceway.toml";
    for (arguments, variables, part) in [
        (&["serve", "--config", file][..], &[][..], "spliceway: spliceway.toml:2: listen"),
        (&["serve", "--config", "missing.toml"], &[], "spliceway: missing.toml: cannot read"),
        (&["serve", "--listen", "x"], &[], "spliceway: --listen: listen = \"x\""),
        (&["serve", "--upstream", "docker.io"], &[], "write \"https://docker.io\""),
        (&["serve", "--workers", "0"], &[], "spliceway: --workers: workers = \"0\""),
        (&["serve"], &[("SPLICEWAY_CONFIG", file)], "spliceway: spliceway.toml:2: listen"),
        (&["serve"], &[("SPLICEWAY_ADMIN", "x")], "spliceway: SPLICEWAY_ADMIN: admin = \"x\""),
        (&["serve"], &[("SPLICEWAY_IO_URING", "yes")], "spliceway: SPLICEWAY_IO_URING: io_uring = \"yes\""),
    ] {
        let output = spliceway(directory.path(), arguments, variables);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {output:?}");
        assert!(text(&output.stderr).contains(part), "{part} in {output:?}");
        assert!(!directory.path().join("spliceway-data").exists(), "{arguments:?} made a directory");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_help_is_0() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [
        &[][..],
        &["nonsense"],
        &["serve", "--nonsense"],
        &["replicate", "--once", "--interval", "1s"],
        &["check-config"],
        &["serve", "--io-uring", "yes"],
    ] {
        let output = spliceway(directory.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        assert!(text(&output.stderr).contains("--help"), "{arguments:?} {output:?}");
    }
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["replicate", "--help"],
        &["help", "check-config"],
        &["--version"],
    ] {
        let output = spliceway(directory.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn help_names_every_flag_and_its_variable() {
    let directory = tempfile::tempdir().unwrap();
    let output = spliceway(directory.path(), &["serve", "--help"], &[]);
    // Long lines are wrapped: only the words count.
    let help = text(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    for flag in [
        "config",
        "listen",
        "data",
        "upstream",
        "admin",
        "workers",
        "io-uring",
        "verbose",
        "quiet",
        "log-format",
        "color",
    ] {
        let variable = format!("SPLICEWAY_{}", flag.to_uppercase().replace('-', "_"));
        assert!(help.contains(&format!("--{flag}")), "{flag} in {help}");
        assert!(help.contains(&format!("[env: {variable}")), "{variable} in {help}");
    }
}

#[test]
fn the_example_configuration_is_usable_and_its_comments_show_the_defaults() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/spliceway.toml");
    let directory = tempfile::tempdir().unwrap();
    let check = |path: &Path| {
        let output = spliceway(directory.path(), &["check-config", path.to_str().unwrap()], &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        text(&output.stdout).to_owned()
    };
    let as_it_is = check(&example);

    let given = std::fs::read_to_string(&example).unwrap();
    let uncommented: String = given
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let path = directory.path().join("uncommented.toml");
    std::fs::write(&path, &uncommented).unwrap();
    assert_eq!(check(&path), as_it_is);
    std::fs::write(&path, format!("[[registry]]\n{WITH_A_REPLICATION}{WITH_A_FRONT}")).unwrap();
    for line in as_it_is.lines().chain(check(&path).lines()) {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        assert!(given.contains(&format!("{key} = ")) || key == "local", "{key} is not in the example");
    }

    let commented = given.lines().filter_map(|line| line.strip_prefix("#   "));
    let front: Vec<_> = commented
        .skip_while(|line| *line != "[[accel]]")
        .map(|line| line.split("      (").next().unwrap_or(line))
        .filter(|line| !line.starts_with("ca_file"))
        .map(|line| line.split("  (").next().unwrap_or(line))
        .collect();
    std::fs::write(&path, front.join("\n")).unwrap();
    assert!(check(&path).contains("blobs = \"main\""), "what is said about fronts is a configuration");

    let commented = given.lines().filter_map(|line| line.strip_prefix("#   "));
    let replication: Vec<_> = commented
        .skip_while(|line| *line != "[[registry.replicate]]")
        .take_while(|line| *line != "[[accel]]")
        .map(|line| line.split("  (").next().unwrap_or(line))
        .filter(|line| !["ca_file", "username", "password_file"].iter().any(|key| line.starts_with(key)))
        .collect();
    std::fs::write(&path, format!("[[registry]]\n{}", replication.join("\n"))).unwrap();
    let printed = check(&path);
    std::fs::write(&path, "[[registry]]\n[[registry.replicate]]\nfrom = \"https://master.example\"\n")
        .unwrap();
    let defaults = check(&path);
    for key in ["name", "interval", "include", "exclude", "referrers", "concurrency", "registry_port"] {
        let line = |text: &str| {
            let replication = text.split("[[registry.replicate]]").nth(1).unwrap_or_default();
            replication.lines().find(|line| line.starts_with(&format!("{key} = "))).map(str::to_owned)
        };
        assert!(line(&printed).is_some() && line(&printed) == line(&defaults), "{key} is not the default's");
    }
}

/// Every key of a replication.
const WITH_A_REPLICATION: &str = "[[registry.replicate]]\nfrom = \"https://r\"\nsemver = \"1\"\nnewest = 1\n\
     delete = true\nscheme = \"https\"\n";

/// Every table of a front.
const WITH_A_FRONT: &str = "[[accel]]\nhosts = [\"h\"]\nbackend = \"http://127.0.0.1:8000\"\n\
     [[accel.location]]\nprefix = \"/p/\"\nroot = \"/srv\"\n";

#[test]
fn the_readme_names_every_key() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let registry = "[[registry]]\n[[registry.upstream]]\nname = \"r\"\nurl = \"https://r\"\n";
    let directory = with_config(&format!("{registry}{WITH_A_REPLICATION}{WITH_A_FRONT}"));
    let output = spliceway(directory.path(), &["check-config", "spliceway.toml"], &[]);
    // Keys that are shown only if they are given.
    let mut keys =
        vec!["admin", "max_size", "username", "password", "password_file", "docker_config", "ca_file"];
    keys.extend(["anonymous_repositories", "htpasswd", "users", "repositories", "actions"]);
    keys.extend(["source", "source_index", "tags_cache_ttl", "storage_redirect"]);
    keys.push("blobs");
    keys.extend(["realm", "service", "issuer", "keys", "jwks"]);
    keys.extend(text(&output.stdout).lines().filter_map(|line| line.split_once(" = ").map(|(key, _)| key)));
    for key in keys {
        assert!(readme.contains(&format!("| `{key}` |")), "{key} is not in a table of the README");
    }
}

#[test]
fn replicate_refuses_what_it_cannot_use_before_it_asks_anybody() {
    let directory = with_config("");
    let file = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    file("unknown.json", "{\"addrs\": \"a\", \"adress\": \"b\"}");
    file("wrong.json", "{\"addrs\": \"a\", \"registry-port\": \"many\"}");
    file("no.json", "addrs = a");
    let both = ["replicate", "--from", "a", "--to", "b"];
    let with = |more: &[&'static str]| [&both[..], more].concat();
    for (arguments, variables, part) in [
        (vec!["replicate"], &[][..], "give --from"),
        (vec!["replicate", "--from", "a"], &[], "give --to"),
        (
            vec!["replicate", "--to", "b"],
            &[("SPLICEWAY_REPLICATE_FROM", "a b")],
            "SPLICEWAY_REPLICATE_FROM: ",
        ),
        (with(&["--semver", "soon"]), &[], "--semver: \"soon\""),
        (with(&["--newest", "0"]), &[], "--newest = \"0\""),
        (with(&["--interval", "soon"]), &[], "--interval = \"soon\""),
        (with(&["--from-username", "u"]), &[], "--from-password-file"),
        (with(&["--to-ca-file", "missing"]), &[], "missing"),
        (vec!["replicate", "--config", "unknown.json"], &[], "unknown.json: the key \"adress\" is unknown"),
        (vec!["replicate", "--config", "wrong.json"], &[], "wrong.json: registry-port = \"many\""),
        (vec!["replicate", "--config", "no.json"], &[], "no.json: "),
        (vec!["replicate", "--config", "missing.json"], &[], "missing.json: cannot read"),
    ] {
        let output = spliceway(directory.path(), &arguments, variables);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {output:?}");
        assert!(text(&output.stderr).contains(part), "{part} in {output:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}
