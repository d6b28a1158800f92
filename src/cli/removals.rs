//! What `gc` and `rm` say: a line for each thing that went, or would go, and a sum at the end.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use serde::Serialize;

use super::WRONG_USAGE;
use super::tree::Unusable;
use crate::maintain::{Collected, Event, GcError, Removed};

/// How long a command waits for another one that works on the same tree.
const TURN_WAIT_MAX: Duration = Duration::from_mins(10);
/// How long lines wait to be written at most, while there are more.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How often it looks whether that is done.
const TURN_LOOK_EVERY: Duration = Duration::from_millis(200);

/// Where it is said.
pub(super) struct Output {
    to: BufWriter<StdoutLock<'static>>,
    json: bool,
    dry_run: bool,
    /// A person is watching.
    watched: bool,
    flushed: Instant,
    /// Standard output's error, the first one.
    broken: Option<io::Error>,
}

/// What is said of one thing as an object.
#[derive(Default, Serialize)]
struct Line<'a> {
    kind: &'static str,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The sum as an object.
#[derive(Serialize)]
struct Total {
    kind: &'static str,
    dry_run: bool,
    bytes: u64,
    blobs: u64,
    manifests: u64,
    tags: u64,
    links: u64,
    uploads: u64,
    leftovers: u64,
    directories: u64,
    failures: u64,
    referred_to: u64,
}

impl Output {
    pub(super) fn new(json: bool, dry_run: bool) -> Self {
        let (to, watched) = (BufWriter::new(io::stdout().lock()), io::stderr().is_terminal());
        Self { to, json, dry_run, watched, flushed: Instant::now(), broken: None }
    }

    /// Says what happens.
    pub(super) fn event(&mut self, event: &Event) {
        let written = match event {
            Event::Phase(what) => {
                if self.watched {
                    eprintln!("{what} …");
                }
                Ok(())
            }
            Event::Removed(removed) => self.removed(removed),
            Event::Failed { what, error } => self.failed(what, error),
        };
        // Whoever kills it is to know what went until then.
        let written = if self.flushed.elapsed() < FLUSH_EVERY { written } else { written.and(self.flush()) };
        if let Err(error) = written {
            self.broken.get_or_insert(error);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushed = Instant::now();
        self.to.flush()
    }

    fn removed(&mut self, removed: &Removed) -> io::Result<()> {
        if self.json {
            return self.object(&self.line(removed));
        }
        let verb = if self.dry_run { "would remove" } else { "removed" };
        writeln!(self.to, "{verb} {}", shown(removed))
    }

    fn failed(&mut self, what: &Removed, error: &io::Error) -> io::Result<()> {
        eprintln!("spliceway: cannot remove {}: {error}", shown(what));
        if !self.json {
            return Ok(());
        }
        let line = Line { kind: "failure", error: Some(error.to_string()), ..self.line(what) };
        self.object(&line)
    }

    fn line<'a>(&self, removed: &'a Removed) -> Line<'a> {
        let line = Line { dry_run: self.dry_run, ..Line::default() };
        match removed {
            Removed::Tag(repository, tag) => {
                Line { kind: "tag", repository: Some(repository.as_str()), tag: Some(tag.as_str()), ..line }
            }
            Removed::Manifest(repository, digest) => Line {
                kind: "manifest",
                repository: Some(repository.as_str()),
                digest: Some(digest.to_string()),
                ..line
            },
            Removed::Link(repository, digest) => Line {
                kind: "link",
                repository: Some(repository.as_str()),
                digest: Some(digest.to_string()),
                ..line
            },
            Removed::Blob { digest, bytes, shared } => Line {
                kind: "blob",
                digest: Some(digest.to_string()),
                bytes: Some(*bytes),
                shared: Some(*shared),
                ..line
            },
            Removed::Upload(repository, id, bytes) => Line {
                kind: "upload",
                repository: Some(repository.as_str()),
                upload: Some(id.as_str()),
                bytes: Some(*bytes),
                ..line
            },
            Removed::Leftover(path, bytes) => {
                Line { kind: "leftover", path: Some(path), bytes: Some(*bytes), ..line }
            }
            Removed::Directory(path) => Line { kind: "directory", path: Some(path), ..line },
        }
    }

    fn object(&mut self, object: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, object)?;
        self.to.write_all(b"\n")
    }

    /// Says the sum, and how it ended.
    pub(super) fn end<E: Display>(mut self, ended: Result<Collected, E>) -> ExitCode {
        let said = match &ended {
            Ok(total) => self.total(total),
            Err(_) => Ok(()),
        };
        let written = said.and_then(|()| self.to.flush()).err().or(self.broken.take());
        match written {
            // The reader of a pipe has seen enough.
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                eprintln!("spliceway: cannot write to standard output: {error}");
                return ExitCode::FAILURE;
            }
            _ => {}
        }
        match ended {
            Ok(total) if total.failures == 0 => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("spliceway: {error}");
                ExitCode::FAILURE
            }
        }
    }

    fn total(&mut self, total: &Collected) -> io::Result<()> {
        if self.json {
            let Collected { bytes, blobs, manifests, tags, links, uploads, leftovers, .. } = *total;
            let Collected { directories, failures, marked: referred_to, .. } = *total;
            let (kind, dry_run) = ("total", self.dry_run);
            let total = Total {
                kind,
                dry_run,
                bytes,
                blobs,
                manifests,
                tags,
                links,
                uploads,
                leftovers,
                directories,
                failures,
                referred_to,
            };
            return self.object(&total);
        }
        let verb = if self.dry_run { "would free" } else { "freed" };
        write!(self.to, "{verb} {}", ByteSize(total.bytes).display().iec())?;
        let counts = [
            (total.tags, "tag"),
            (total.manifests, "manifest"),
            (total.blobs, "blob"),
            (total.links, "link"),
            (total.uploads, "upload"),
            (total.leftovers, "leftover"),
        ];
        let mut separator = ": ";
        for (count, noun) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(self.to, "{separator}{count} {noun}{}", if count == 1 { "" } else { "s" })?;
            separator = ", ";
        }
        writeln!(self.to)
    }
}

fn shown(removed: &Removed) -> String {
    match removed {
        Removed::Tag(repository, tag) => format!("tag {repository}:{tag}"),
        Removed::Manifest(repository, digest) => format!("manifest {repository}@{digest}"),
        Removed::Link(repository, digest) => format!("link {repository} {digest}"),
        Removed::Blob { digest, bytes, shared: false } => format!("blob {digest} {bytes} bytes"),
        Removed::Blob { digest, bytes, shared: true } => {
            format!("blob {digest} {bytes} bytes, which stay in another tree")
        }
        Removed::Upload(repository, id, bytes) => format!("upload {repository} {id} {bytes} bytes"),
        Removed::Leftover(path, bytes) => format!("leftover {} {bytes} bytes", path.display()),
        Removed::Directory(path) => format!("directory {}", path.display()),
    }
}

/// Says why there is nothing to work on.
pub(super) fn unusable(unusable: &Unusable) -> ExitCode {
    match unusable {
        Unusable::Usage(message) => {
            eprintln!("spliceway: {message}");
            ExitCode::from(WRONG_USAGE)
        }
        Unusable::Missing(message) => {
            eprintln!("spliceway: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does `work` once no other process does such work on the same tree, or says that it took too long.
pub(super) fn in_turn<T, E>(
    mut work: impl FnMut() -> Result<T, E>,
    is_busy: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + TURN_WAIT_MAX;
    let mut has_said = false;
    loop {
        match work() {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                if !has_said {
                    eprintln!("spliceway: {}; waiting", GcError::Busy);
                    has_said = true;
                }
                thread::sleep(TURN_LOOK_EVERY);
            }
            result => return result,
        }
    }
}
