//! What is to be done, from what was said to what can be used.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::login::Login;
use super::settings::Settings;
use crate::replicate::replication::{CONCURRENCY_MAX, DELETE_MAX, PORT};
use crate::replicate::{
    Address, Defaults, Finder, Locals, Options, PlatformPattern, Range, Scheme, Selection, pattern,
};

/// The pause between runs of those who come with the keys of the replicator that this replaces.
const INTERVAL_FORMERLY: Duration = Duration::from_secs(30);
/// Pauses that are no typing errors; the longest is a year.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(8766);

/// The sources' keys of that replicator, in the order in which they count.
const FORMER: [&str; 4] = ["service", "script", "file", "addrs"];

/// Every key, as flags and as a JSON file have them.
pub(super) const KEYS: [&str; 34] = [
    "addrs",
    "concurrency",
    "delete",
    "delete-max",
    "dry-run",
    "exclude",
    "file",
    "from",
    "from-auth-host",
    "from-ca-file",
    "from-docker-config",
    "from-password-file",
    "from-username",
    "include",
    "interval",
    "json",
    "local-addr",
    "log-file",
    "log-level",
    "newest",
    "no-referrers",
    "once",
    "platform",
    "registry-port",
    "scheme",
    "script",
    "semver",
    "service",
    "to",
    "to-auth-host",
    "to-ca-file",
    "to-docker-config",
    "to-password-file",
    "to-username",
];

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) finders: Vec<Finder>,
    pub(super) defaults: Defaults,
    pub(super) locals: Locals,
    pub(super) target: Place,
    pub(super) selection: Selection,
    pub(super) options: Options,
    /// `None`: one run.
    pub(super) interval: Option<Duration>,
    pub(super) from: Login,
    pub(super) to: Login,
    pub(super) output: Output,
    /// What can be used but is hardly meant.
    pub(super) warnings: Vec<String>,
}

/// Where images go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Registry(Address),
    /// The root of a tree, which holds `docker/registry/v2`.
    Directory(PathBuf),
}

/// What is said, and where.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) json: bool,
    pub(super) log_file: Option<PathBuf>,
    /// As many `-v`, or if negative `-q`.
    pub(super) verbosity: Option<i16>,
}

/// The sources as they were given.
struct From {
    finders: Vec<Finder>,
    /// By the keys of the replicator that this replaces.
    is_former: bool,
}

impl Plan {
    /// Checks everything that can be checked without asking anybody.
    pub(super) fn of(mut given: Settings) -> Result<Self, String> {
        let mut warnings = Vec::new();
        let output = Output::of(&mut given)?;
        let port = given.number("registry-port", 1..=u32::from(u16::MAX))?;
        let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
        let is_former = !given.has("from") && FORMER.iter().any(|key| given.has(key));
        let scheme = given.parsed::<Scheme>("scheme")?.or(is_former.then_some(Scheme::Http));
        let defaults = Defaults { scheme, port };
        let From { finders, is_former } = From::of(&mut given, defaults, &mut warnings)?;
        let local_addrs = given.all_parsed("local-addr", |text| Address::parse(text, defaults))?;
        let target = Place::of(&mut given, defaults, is_former, &local_addrs)?;
        let known_local = match &target {
            Place::Registry(address) => local_addrs.into_iter().chain([address.clone()]).collect(),
            Place::Directory(_) => local_addrs,
        };
        let plan = Self {
            finders,
            defaults,
            locals: Locals::new(known_local),
            target,
            selection: selection(&mut given)?,
            interval: interval(&mut given, is_former)?,
            options: options(&mut given)?,
            from: login(&mut given, "from")?,
            to: login(&mut given, "to")?,
            output,
            warnings,
        };
        given.finish(&KEYS)?;
        Ok(plan)
    }
}

impl From {
    fn of(given: &mut Settings, defaults: Defaults, warnings: &mut Vec<String>) -> Result<Self, String> {
        let parse = |text: &str| Finder::parse(text, defaults);
        if given.has("from") {
            // A flag wins over what a file says in the former words.
            for key in FORMER {
                if given.is_by_flag("from") {
                    given.drop_from_file(key);
                }
                if given.has(key) {
                    return Err(given.refused(key, "stands beside `from`; give one or the other"));
                }
            }
            let finders = given.all_parsed("from", parse)?;
            if finders.is_empty() {
                return Err("--from names no source; give at least one".to_owned());
            }
            return Ok(Self { finders, is_former: false });
        }
        let named: Vec<_> = FORMER.into_iter().filter(|key| given.has(key)).collect();
        let mut chosen: Option<(&str, Vec<Finder>)> = None;
        for key in FORMER {
            let finders = given.all_parsed(key, |text| match key {
                "addrs" => parse(text),
                kind => Finder::parse(&format!("{kind}:{text}"), defaults),
            })?;
            match &chosen {
                _ if finders.is_empty() => {}
                None => chosen = Some((key, finders)),
                Some((first, _)) => warnings.push(format!("`{key}` is not used, as there is `{first}`")),
            }
        }
        match chosen {
            Some((_, finders)) => Ok(Self { finders, is_former: true }),
            None if !named.is_empty() => Err(format!("`{}` names no source; name one", named.join("`, `"))),
            None => Err("no source is named; give --from, or --config with a file that names one".to_owned()),
        }
    }
}

impl Place {
    fn of(
        given: &mut Settings,
        defaults: Defaults,
        is_former: bool,
        local: &[Address],
    ) -> Result<Self, String> {
        let Some(text) = given.text("to")? else {
            if !is_former {
                return Err("no target is named; give --to URL or --to dir:PATH".to_owned());
            }
            // The registry beside which the replicator ran.
            let beside = Address::parse("127.0.0.1", defaults);
            return local.first().cloned().map_or(beside, Ok).map(Self::Registry);
        };
        match text.strip_prefix("dir:") {
            Some(path) => {
                directory(path).map(Self::Directory).map_err(|why| format!("--to dir:{path}: {why}"))
            }
            None => Address::parse(&text, defaults).map(Self::Registry).map_err(|why| format!("--to: {why}")),
        }
    }
}

/// The root of the tree that is meant by a path.
fn directory(text: &str) -> Result<PathBuf, String> {
    const TREE: &str = "docker/registry/v2";
    if text.is_empty() {
        return Err("it names no directory; write dir:PATH".to_owned());
    }
    let path = Path::new(text);
    // What REGISTRY_DATA_DIR would name; its locks are those of the root.
    if path.ends_with(TREE) {
        let root = path.ancestors().nth(3).filter(|root| !root.as_os_str().is_empty());
        return Ok(root.unwrap_or(Path::new(".")).to_owned());
    }
    if !path.join(TREE).is_dir() && ["local", "cache"].iter().any(|tree| path.join(tree).join(TREE).is_dir())
    {
        return Err(format!("that is a data directory; write dir:{}", path.join("local").display()));
    }
    Ok(path.to_owned())
}

fn selection(given: &mut Settings) -> Result<Selection, String> {
    let pattern = |text: &str| pattern(text).map_err(|why| format!("{text:?}: {why}"));
    let newest = given.number("newest", 1..=1_000_000)?;
    Ok(Selection {
        include: given.all_parsed("include", pattern)?,
        exclude: given.all_parsed("exclude", pattern)?,
        versions: given.parsed::<Range>("semver")?,
        newest: newest.and_then(|count| NonZeroUsize::new(count as usize)),
        platforms: given.all_parsed("platform", str::parse::<PlatformPattern>)?,
    })
}

fn interval(given: &mut Settings, is_former: bool) -> Result<Option<Duration>, String> {
    let interval = given.duration("interval", INTERVALS)?;
    let once = given.switch("once")?;
    let formerly = is_former.then_some(INTERVAL_FORMERLY);
    Ok(if once { None } else { interval.or(formerly) })
}

fn options(given: &mut Settings) -> Result<Options, String> {
    let delete = given.switch("delete")?;
    let delete_max = given.number("delete-max", 1..=u32::MAX)?;
    if delete_max.is_some() && !delete {
        return Err("--delete-max says how many tags may be removed, but nothing is; add --delete".to_owned());
    }
    let defaults = Options::default();
    let concurrency = given.number("concurrency", 1..=CONCURRENCY_MAX)?;
    Ok(Options {
        dry_run: given.switch("dry-run")?,
        referrers: !given.switch("no-referrers")?,
        delete_max: delete.then(|| delete_max.unwrap_or(DELETE_MAX) as usize),
        blobs_at_once: concurrency.map_or(defaults.blobs_at_once, |count| count as usize),
        ..defaults
    })
}

fn login(given: &mut Settings, side: &str) -> Result<Login, String> {
    let key = |name: &str| format!("{side}-{name}");
    Ok(Login {
        username: given.text(&key("username"))?,
        password_file: given.path(&key("password-file"))?,
        docker_config: given.path(&key("docker-config"))?,
        auth_hosts: given.texts(&key("auth-host"))?,
        ca_file: given.path(&key("ca-file"))?,
    })
}

impl Output {
    fn of(given: &mut Settings) -> Result<Self, String> {
        Ok(Self {
            json: given.switch("json")?,
            log_file: given.path("log-file")?,
            verbosity: given.parsed::<Level>("log-level")?.map(|Level(verbosity)| verbosity),
        })
    }
}

/// A level of the log in the words of Python, and ours.
struct Level(i16);

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "trace" => Ok(Self(2)),
            "debug" => Ok(Self(1)),
            "info" | "notset" => Ok(Self(0)),
            "warning" | "warn" => Ok(Self(-1)),
            "error" | "critical" | "fatal" => Ok(Self(-2)),
            _ => Err(format!(
                "{:?} is no level; write \"debug\", \"info\", \"warning\" or \"error\"",
                text.chars().take(20).collect::<String>()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(value: &Value) -> Result<Plan, String> {
        let mut settings = Settings::default();
        for (key, value) in value.as_object().unwrap() {
            settings.set(key, None, value.clone());
        }
        Plan::of(settings)
    }

    fn sources(plan: &Plan) -> Vec<String> {
        plan.finders.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_keys_of_old_mean_what_they_meant() {
        let given =
            json!({"addrs": ["10.0.0.1", "10.0.0.2:81"], "local-addr": "10.0.0.9", "registry-port": 82});
        let plan = plan(&given).unwrap();
        assert_eq!(sources(&plan), ["10.0.0.1:82", "10.0.0.2:81"]);
        let Place::Registry(target) = &plan.target else { panic!("{:?}", plan.target) };
        assert_eq!(target.url().as_str(), "http://10.0.0.9:82/");
        assert_eq!(plan.interval, Some(INTERVAL_FORMERLY));
        assert!(plan.warnings.is_empty() && plan.options.delete_max.is_none());
    }

    #[test]
    fn a_service_comes_before_a_script_before_a_file_before_addresses() {
        let all = json!({"service": "s.example", "script": ["/a", "/b"], "file": "/f", "addrs": "h"});
        let mut given = all.as_object().unwrap().clone();
        for (key, expected) in [
            ("service", "service:s.example"),
            ("script", "script:/a script:/b"),
            ("file", "file:/f"),
            ("addrs", "h:5000"),
        ] {
            let plan = plan(&Value::Object(given.clone())).unwrap();
            assert_eq!(sources(&plan).join(" "), expected);
            assert_eq!(plan.warnings.len(), given.len() - 1, "{:?}", plan.warnings);
            assert!(
                matches!(plan.target, Place::Registry(address) if address.to_string() == "127.0.0.1:5000")
            );
            given.remove(key);
        }
        assert!(plan(&Value::Object(given)).is_err());
    }

    #[test]
    fn new_keys() {
        let given = json!({
            "from": ["https://m.example", "file:/f"], "to": "r.example", "include": "a/*", "exclude": ["b", "c:d"],
            "semver": ">=1 <2", "newest": "3", "platform": "linux/amd64", "no-referrers": true, "delete": true,
            "concurrency": 7, "dry-run": true, "json": true, "log-level": "WARNING", "log-file": "/l", "interval": "5m",
        });
        let plan = plan(&given).unwrap();
        assert_eq!(sources(&plan), ["m.example:443", "file:/f"]);
        assert!(
            matches!(&plan.target, Place::Registry(address) if address.url().as_str() == "https://r.example:5000/")
        );
        assert_eq!((plan.selection.include.len(), plan.selection.exclude.len()), (1, 2));
        assert_eq!(plan.selection.newest, NonZeroUsize::new(3));
        assert!(plan.options.dry_run && !plan.options.referrers);
        assert_eq!((plan.options.delete_max, plan.options.blobs_at_once), (Some(10), 7));
        assert_eq!((plan.output.json, plan.output.verbosity), (true, Some(-1)));
        assert_eq!(plan.interval, Some(Duration::from_mins(5)));
    }

    #[test]
    fn once_is_once() {
        let interval = |more: Value| {
            let mut given = json!({"from": "a", "to": "b"});
            given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            plan(&given).unwrap().interval
        };
        assert_eq!(interval(json!({})), None);
        assert_eq!(interval(json!({"interval": 7})), Some(Duration::from_secs(7)));
        assert_eq!(interval(json!({"interval": 7, "once": true})), None);
        assert_eq!(plan(&json!({"addrs": "a", "once": true})).unwrap().interval, None);
    }

    #[test]
    fn a_directory_is_a_tree() {
        let directory = tempfile::tempdir().unwrap();
        let to = |path: &Path| {
            plan(&json!({"from": "a", "to": format!("dir:{}", path.display())})).map(|plan| plan.target)
        };
        let root = directory.path().join("new");
        assert_eq!(to(&root).unwrap(), Place::Directory(root.clone()));
        assert_eq!(to(&root.join("docker/registry/v2")).unwrap(), Place::Directory(root));
        std::fs::create_dir_all(directory.path().join("local/docker/registry/v2")).unwrap();
        assert!(to(directory.path()).unwrap_err().contains("local"));
        assert!(to(Path::new("")).is_err());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (given, part) in [
            (json!({}), "--from"),
            (json!({"from": "a"}), "--to"),
            (json!({"from": [], "to": "b"}), "--from names no source"),
            (json!({"from": "a b", "to": "b"}), "--from: "),
            (json!({"from": "a", "to": "b c"}), "--to: "),
            (json!({"from": "a", "to": "b", "addrs": "c"}), "`from`"),
            (json!({"from": "a", "to": "b", "semver": "soon"}), "--semver: "),
            (json!({"from": "a", "to": "b", "platform": "x"}), "--platform: "),
            (json!({"from": "a", "to": "b", "newest": 0}), "--newest = 0"),
            (json!({"from": "a", "to": "b", "include": ""}), "--include: "),
            (json!({"from": "a", "to": "b", "scheme": "ftp"}), "--scheme: "),
            (json!({"from": "a", "to": "b", "delete-max": 3}), "--delete"),
            (json!({"from": "a", "to": "b", "interval": "0s"}), "--interval = "),
            (json!({"from": "a", "to": "b", "log-level": "loud"}), "--log-level: "),
            (json!({"from": "a", "to": "b", "registry-port": 0}), "--registry-port = 0"),
        ] {
            let error = plan(&given).unwrap_err();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
