//! `spliceway ls`: what a data directory or a registry holds, an image a line.
//!
//! Everything comes in the order of the names' bytes. A repository that cannot be listed is reported, and the others are
//! listed none the less; then the exit code is 1.

mod directory;
mod remote;

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::WRONG_USAGE;
use super::login::Login;
use super::tree::{self, Unusable};
use crate::logging;
use crate::oci::Pattern;

/// List the images of a data directory or of a registry
///
/// Prints one image a line: `repository:tag` of a directory, `host:port/repository:tag` of a registry. What was fetched
/// from an upstream is named as it can be pulled, `upstream/repository:tag`. Repositories without a tag have no line.
///
/// A directory is only read, also while a server uses it. A registry must offer `/v2/_catalog`, as docker-registry and
/// Spliceway do and Docker Hub does not. Exits with 1 if anything could not be listed, and says what.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::doc_markdown)] // clap prints these comments as they are: backticks would show
pub(super) struct Ls {
    /// Registry to list: http://… or https://…, or HOST:PORT, which is https unless it is this machine
    #[arg(value_name = "URL", conflicts_with_all = ["data", "local"])]
    url: Option<String>,

    /// Data directory to list: DIR/local and DIR/cache [env: SPLICEWAY_DATA] [default: ./spliceway-data]
    #[arg(long, value_name = "DIR", conflicts_with = "local")]
    data: Option<PathBuf>,

    /// Plain registry directory to list, which holds docker/registry/v2 [env: REGISTRY_DATA_DIR, which names
    /// docker/registry/v2 itself]
    #[arg(long, value_name = "DIR")]
    local: Option<PathBuf>,

    /// List only what fits: REPOSITORY or REPOSITORY:TAG, in which * stands for any text and ? for any character
    #[arg(long = "match", value_name = "PATTERN")]
    pattern: Option<String>,

    /// Print an object a line, with reference, repository and tag
    #[arg(long)]
    json: bool,

    /// Name to log in with at the registry [env: SPLICEWAY_USERNAME]
    #[arg(long, value_name = "NAME", help_heading = "Registry")]
    username: Option<String>,

    /// File that holds the password [env: SPLICEWAY_PASSWORD_FILE]
    #[arg(long, value_name = "FILE", help_heading = "Registry")]
    password_file: Option<PathBuf>,

    /// File that `docker login` or `podman login` wrote [env: SPLICEWAY_DOCKER_CONFIG] [default: where they write it]
    #[arg(long, value_name = "FILE", help_heading = "Registry")]
    docker_config: Option<PathBuf>,

    /// Host outside the registry's own domain whose token service may get the login, several by repeating the flag
    #[arg(long = "auth-host", value_name = "HOST", help_heading = "Registry")]
    auth_hosts: Vec<String>,

    /// PEM certificates trusted beside the system's [env: SPLICEWAY_CA_FILE]
    #[arg(long, value_name = "FILE", help_heading = "Registry")]
    ca_file: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  What this machine holds:
      spliceway ls --data /var/lib/spliceway
  What a docker-registry's directory holds:
      spliceway ls --local /var/lib/docker-registry
  The nightly images of a registry:
      spliceway ls registry.example:5000 --match 'team/*:nightly-*'
  With a login; the password is the file's only line:
      spliceway ls https://registry.example --username robot --password-file /run/secrets/registry
  How many tags each repository has:
      spliceway ls --json localhost:5000 | jq -r .repository | uniq -c";

impl Ls {
    pub(super) fn run(self, logging: logging::Options) -> ExitCode {
        // Held to the end: dropping it writes what is still queued.
        let _guard = logging::start(logging, false);
        let mut output = Output {
            to: BufWriter::new(io::stdout().lock()),
            host: None,
            json: self.json,
            pattern: self.pattern.as_deref().map(Pattern::new),
            has_failed: false,
        };
        let listed = match self.list(&mut output) {
            Ok(listed) => listed.and_then(|()| output.to.flush()),
            Err(Unusable::Usage(message)) => {
                eprintln!("spliceway: {message}");
                return ExitCode::from(WRONG_USAGE);
            }
            Err(Unusable::Missing(message)) => {
                eprintln!("spliceway: {message}");
                return ExitCode::FAILURE;
            }
        };
        match listed {
            // The reader of a pipe has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("spliceway: cannot write to standard output: {error}");
                ExitCode::FAILURE
            }
            Ok(()) if output.has_failed => ExitCode::FAILURE,
            Ok(()) => ExitCode::SUCCESS,
        }
    }

    /// Lists what was asked for; the inner error is standard output's.
    fn list(self, output: &mut Output<impl Write>) -> Result<io::Result<()>, Unusable> {
        if let Some(url) = self.url {
            let login = Login {
                username: self.username,
                password_file: self.password_file,
                docker_config: self.docker_config,
                auth_hosts: self.auth_hosts,
                ca_file: self.ca_file,
            };
            let login = login.or_variables();
            return remote::list(&url, login, output);
        }
        let trees: Vec<_> = tree::find(self.data, self.local)?.all().cloned().collect();
        Ok(directory::list(&trees, output))
    }
}

/// Where the list goes, and what of it.
struct Output<W> {
    to: W,
    /// In front of what a registry holds.
    host: Option<String>,
    json: bool,
    pattern: Option<Pattern>,
    has_failed: bool,
}

impl<W: Write> Output<W> {
    /// Whether any tag of a repository is to be listed.
    fn wants(&self, repository: &str) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| pattern.fits_repository(repository))
    }

    /// The tags of a repository. They leave at once: listing the next one may take its time.
    fn repository<T: AsRef<str>>(&mut self, repository: &str, tags: &[T]) -> io::Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            reference: &'a str,
            repository: &'a str,
            tag: &'a str,
        }
        for tag in tags.iter().map(AsRef::as_ref) {
            if !self.pattern.as_ref().is_none_or(|pattern| pattern.fits_tag(tag)) {
                continue;
            }
            let reference = match &self.host {
                Some(host) => format!("{host}/{repository}:{tag}"),
                None => format!("{repository}:{tag}"),
            };
            if self.json {
                serde_json::to_writer(&mut self.to, &Line { reference: &reference, repository, tag })?;
            } else {
                self.to.write_all(reference.as_bytes())?;
            }
            self.to.write_all(b"\n")?;
        }
        self.to.flush()
    }

    /// Reports what could not be listed.
    fn failed(&mut self, message: impl Display) {
        eprintln!("spliceway: {message}");
        self.has_failed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_line() {
        let lines = |json, host: Option<&str>| {
            let mut output = Output {
                to: Vec::new(),
                host: host.map(str::to_owned),
                json,
                pattern: Some(Pattern::new("a/b:*1")),
                has_failed: false,
            };
            output.repository("a/b", &["v1", "v2"]).unwrap();
            String::from_utf8(output.to).unwrap()
        };
        assert_eq!(lines(false, None), "a/b:v1\n");
        assert_eq!(lines(false, Some("localhost:5000")), "localhost:5000/a/b:v1\n");
        let object = "{\"reference\":\"h.example/a/b:v1\",\"repository\":\"a/b\",\"tag\":\"v1\"}\n";
        assert_eq!(lines(true, Some("h.example")), object);
    }
}
