//! `spliceway replicate`: the images of other registries are copied to one.
//!
//! Progress and the log go to standard error (or the log to a file), the result to standard output. What was given is
//! [read](settings) and [checked](plan), then [done](work), and [shown](show) meanwhile.

mod plan;
mod settings;
mod show;
mod terminal;
mod work;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use tracing::warn;

use self::plan::{KEYS, Plan};
use self::settings::Settings;
use self::show::{Json, Lines, Shows};
use self::terminal::Terminal;
use super::{WRONG_USAGE, variable};
use crate::logging::{self, Guard, Rotating};

/// Copy the images of other registries to one, or into its directory
///
/// What the target lacks, and tags that have moved, are copied; what it has already is not sent. Manifests stay the same
/// to the byte; layers go from source to target without touching the disk, and are verified on the way. Run it again after
/// a failure: it goes on where it stopped.
///
/// SOURCE is HOST[:PORT], http://… or https://…, or a finder: service:NAME, every address that the name has;
/// script:PATH, each line that a program writes; file:PATH, each line of a file. Several are taken as replicas of one
/// master: of each tag the first that has it decides. The target itself is never a source, however it is spelled.
///
/// The target may be a directory, as Spliceway or docker-registry have it, also while Spliceway runs on it. Exits with 1
/// if anything could not be copied, and says what and why. SIGTERM and SIGINT let layers under way arrive; a second one
/// ends it at once.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::doc_markdown)] // clap prints these comments as they are: backticks would show
#[allow(clippy::struct_excessive_bools)] // flags
pub(super) struct Replicate {
    /// Registry to copy from, or a finder of such; several by repeating the flag
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    from: Vec<String>,

    /// Registry to copy to: HOST[:PORT], http://… or https://…; or dir:PATH, a directory that holds docker/registry/v2
    #[arg(long, value_name = "URL|dir:PATH")]
    to: Option<String>,

    /// JSON file with these flags' names as keys; also service, script, file, addrs instead of from, and log-level
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Run again and again, so long after the last run's end, e.g. 5m [default: one run]
    #[arg(long, value_name = "DURATION", conflicts_with = "once")]
    interval: Option<String>,

    /// One run, whatever the file says
    #[arg(long)]
    once: bool,

    /// Change nothing; say what would be copied, and how many bytes
    #[arg(long)]
    dry_run: bool,

    /// Print what happens, an object a line
    #[arg(long)]
    json: bool,

    /// Write the log to a file; at 10 MiB it becomes FILE.1, and so on to FILE.5
    #[arg(long, value_name = "FILE")]
    log_file: Option<String>,

    /// Copy only what fits: REPOSITORY or REPOSITORY:TAG, in which * stands for any text and ? for any character
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', help_heading = "What is copied")]
    include: Vec<String>,

    /// Leave out what fits
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', help_heading = "What is copied")]
    exclude: Vec<String>,

    /// Copy only tags that are versions of a range, such as ">=1.2 <2" or "1.4.x || ^2.1". Tags may begin with v, and lack
    /// numbers. -rc1, -beta.2 and the like are pre-releases, which a range takes only if it names one; other suffixes
    /// (-alpine) are taken as the version is
    #[arg(long, value_name = "RANGE", help_heading = "What is copied")]
    semver: Option<String>,

    /// Copy only the N newest tags of each repository: the greatest versions, then other tags, the last in order first
    #[arg(long, value_name = "N", help_heading = "What is copied")]
    newest: Option<String>,

    /// Copy only these platforms of images for several, the list itself unchanged; not every registry takes such a list
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',', help_heading = "What is copied")]
    platform: Vec<String>,

    /// Leave out what refers to an image: signatures, attestations, SBOMs
    #[arg(long, help_heading = "What is copied")]
    no_referrers: bool,

    /// Remove tags that no source has any more, of the repositories that are copied
    #[arg(long, help_heading = "What is copied")]
    delete: bool,

    /// Most tags that a run may remove; if there are more, none is [default: 10]
    #[arg(long, value_name = "N", help_heading = "What is copied")]
    delete_max: Option<String>,

    /// Address of this machine's registry, besides the target, that is no source; several by repeating the flag
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',', help_heading = "Registries")]
    local_addr: Vec<String>,

    /// Port of addresses that name none [default: 5000]
    #[arg(long, value_name = "PORT", help_heading = "Registries")]
    registry_port: Option<String>,

    /// Scheme of addresses that name none, http or https [default: https, but http for localhost]
    #[arg(long, value_name = "SCHEME", help_heading = "Registries")]
    scheme: Option<String>,

    /// Layers under way at once, of small ones (1 MiB) four times as many [default: 4]
    #[arg(long, value_name = "N", help_heading = "Registries")]
    concurrency: Option<String>,

    /// Name to log in with at the sources
    #[arg(long, value_name = "NAME", help_heading = "Logins")]
    from_username: Option<String>,

    /// File that holds its password
    #[arg(long, value_name = "FILE", help_heading = "Logins")]
    from_password_file: Option<String>,

    /// File that `docker login` or `podman login` wrote [default: where they write it]
    #[arg(long, value_name = "FILE", help_heading = "Logins")]
    from_docker_config: Option<String>,

    /// Host outside the sources' own domain whose token service may get the login
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = "Logins")]
    from_auth_host: Vec<String>,

    /// PEM certificates trusted beside the system's
    #[arg(long, value_name = "FILE", help_heading = "Logins")]
    from_ca_file: Option<String>,

    /// The same for the target
    #[arg(long, value_name = "NAME", help_heading = "Logins")]
    to_username: Option<String>,

    /// The same for the target
    #[arg(long, value_name = "FILE", help_heading = "Logins")]
    to_password_file: Option<String>,

    /// The same for the target
    #[arg(long, value_name = "FILE", help_heading = "Logins")]
    to_docker_config: Option<String>,

    /// The same for the target
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = "Logins")]
    to_auth_host: Vec<String>,

    /// The same for the target
    #[arg(long, value_name = "FILE", help_heading = "Logins")]
    to_ca_file: Option<String>,
}

const EXAMPLES: &str = "\
Every flag is also a variable: --from-ca-file is SPLICEWAY_REPLICATE_FROM_CA_FILE; several values stand between commas.

Examples:
  Fill this machine's registry from a master:
      spliceway replicate --from https://master.example --to localhost:5000
  What would that be?
      spliceway replicate --from https://master.example --to localhost:5000 --dry-run
  Straight into the directory, only two teams' images, with a login:
      spliceway replicate --from https://master.example --from-username robot \\
          --from-password-file /run/secrets/master --to dir:/var/lib/spliceway/local --include 'team-a/*,team-b/*'
  The five newest versions below 3 of everything, for one platform, every ten minutes:
      spliceway replicate --from service:registry.internal --to localhost:5000 --semver '<3' --newest 5 \\
          --platform linux/amd64 --interval 10m
  With the configuration file of a replicator that ran here before:
      spliceway replicate --config /etc/replicator.json";

/// In front of a flag's name in capital letters.
const VARIABLES: &str = "SPLICEWAY_REPLICATE_";
/// Flags that have several values.
const LISTS: [&str; 7] =
    ["exclude", "from", "from-auth-host", "include", "local-addr", "platform", "to-auth-host"];

impl Replicate {
    pub(super) fn run(self, logging: logging::Options) -> ExitCode {
        let plan = match self.into_settings(&variable).and_then(Plan::of) {
            Ok(plan) => plan,
            Err(message) => {
                eprintln!("spliceway: {message}");
                return ExitCode::from(WRONG_USAGE);
            }
        };
        let (shows, guard) = match start(&plan, logging) {
            Ok(started) => started,
            Err(message) => {
                eprintln!("spliceway: {message}");
                return ExitCode::FAILURE;
            }
        };
        for warning in &plan.warnings {
            warn!("{warning}");
        }
        let is_one_run = plan.interval.is_none();
        let ended = work::run(plan, &shows);
        // What was logged comes before the result.
        drop(guard);
        match ended {
            Ok(ended) if is_one_run => {
                let is_shown = shows.end(&ended);
                if ended.is_complete() && is_shown { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Ok(_) => ExitCode::SUCCESS,
            Err(work::Error::Usage(message)) => {
                eprintln!("spliceway: {message}");
                ExitCode::from(WRONG_USAGE)
            }
            Err(work::Error::System(message)) => {
                eprintln!("spliceway: {message}");
                ExitCode::FAILURE
            }
        }
    }

    /// File, variables and flags, the latter winning.
    fn into_settings(self, variables: &dyn Fn(&str) -> Option<OsString>) -> Result<Settings, String> {
        let variable = |key: &str| {
            let name = format!("{VARIABLES}{}", key.to_ascii_uppercase().replace('-', "_"));
            let value = variables(&name).filter(|value| !value.is_empty())?;
            Some((name, value))
        };
        let config = self.config.clone().or_else(|| Some(variable("config")?.1.into()));
        let mut settings = config.map_or_else(|| Ok(Settings::default()), |path| Settings::of_file(&path))?;
        for key in KEYS {
            let Some((name, value)) = variable(key) else { continue };
            let text = value.to_string_lossy();
            let value = if LISTS.contains(&key) {
                text.split(',').map(str::trim).filter(|one| !one.is_empty()).collect()
            } else {
                Value::String(text.into_owned())
            };
            settings.set(key, Some(name), value);
        }
        for (key, value) in self.flags() {
            if let Some(value) = value {
                settings.set(key, None, value);
            }
        }
        if settings.is_by_flag("interval") {
            settings.drop_from_file("once");
        }
        Ok(settings)
    }

    fn flags(self) -> impl IntoIterator<Item = (&'static str, Option<Value>)> {
        let one = |text: Option<String>| text.map(Value::String);
        let list = |texts: Vec<String>| (!texts.is_empty()).then(|| texts.into_iter().collect());
        let on = |switch: bool| switch.then_some(Value::Bool(true));
        [
            ("from", list(self.from)),
            ("to", one(self.to)),
            ("interval", one(self.interval)),
            ("once", on(self.once)),
            ("dry-run", on(self.dry_run)),
            ("json", on(self.json)),
            ("log-file", one(self.log_file)),
            ("include", list(self.include)),
            ("exclude", list(self.exclude)),
            ("semver", one(self.semver)),
            ("newest", one(self.newest)),
            ("platform", list(self.platform)),
            ("no-referrers", on(self.no_referrers)),
            ("delete", on(self.delete)),
            ("delete-max", one(self.delete_max)),
            ("local-addr", list(self.local_addr)),
            ("registry-port", one(self.registry_port)),
            ("scheme", one(self.scheme)),
            ("concurrency", one(self.concurrency)),
            ("from-username", one(self.from_username)),
            ("from-password-file", one(self.from_password_file)),
            ("from-docker-config", one(self.from_docker_config)),
            ("from-auth-host", list(self.from_auth_host)),
            ("from-ca-file", one(self.from_ca_file)),
            ("to-username", one(self.to_username)),
            ("to-password-file", one(self.to_password_file)),
            ("to-docker-config", one(self.to_docker_config)),
            ("to-auth-host", list(self.to_auth_host)),
            ("to-ca-file", one(self.to_ca_file)),
        ]
    }
}

/// Starts the log, and decides how the work is shown: by bars to a person at a terminal, by objects to a script, by lines
/// of the log to whoever reads that.
fn start(plan: &Plan, mut logging: logging::Options) -> Result<(Shows, Guard), String> {
    let output = &plan.output;
    if let (0, Some(verbosity)) = (logging.verbosity, output.verbosity) {
        logging.verbosity = verbosity;
    }
    let mut shows = Shows::default();
    if output.json {
        shows.add(Json::default());
    }
    if let Some(path) = &output.log_file {
        let file = Rotating::open(path)
            .map_err(|error| format!("cannot write to the log file {}: {error}", path.display()))?;
        shows.add(Lines::new(true));
        return Ok((shows, logging::start_to(logging, false, file, false)));
    }
    // Whoever wants to know more gets the log's lines, which bars would stand in the way of.
    if output.json || logging.verbosity != 0 || !io::stderr().is_terminal() {
        if !output.json {
            shows.add(Lines::new(plan.interval.is_some()));
        }
        return Ok((shows, logging::start(logging, false)));
    }
    let terminal = Terminal::new();
    let lines = terminal.lines();
    shows.add(terminal);
    Ok((shows, logging::start_to(logging, false, lines, true)))
}
