//! What is said about a scrub: findings and sums on standard output, for people or as JSON; how far it is on standard
//! error, as a bar on a terminal and as a line every now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::maintain::Stop;
use crate::maintain::repair::{Mended, Repaired, Step};
use crate::maintain::scrub::{Event, Finding, Outcome, Reached, ScrubError, Scrubbed};

/// How often it is said how far it is where there is no terminal.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// Into how many steps a bar is divided.
const BAR_STEPS: u64 = 1000;

/// Where everything goes.
pub(super) struct Output {
    json: bool,
    repair: bool,
    root: PathBuf,
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Output {
    pub(super) fn new(json: bool, repair: bool) -> Self {
        Self { json, repair, root: PathBuf::new(), bar: None, said: Instant::now() }
    }

    /// The tree in `root` is next.
    pub(super) fn begin(&mut self, root: &Path) {
        root.clone_into(&mut self.root);
        self.said = Instant::now();
        self.bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent}% {msg} (left: {eta})");
            let bar = ProgressBar::new(BAR_STEPS).with_prefix(root.display().to_string());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
    }

    /// Something happened. `stop` is told if nobody reads what is said about it.
    pub(super) fn step(&mut self, step: &Step, stop: &Stop) {
        if let Step::Scrub(Event::Reached(reached)) = step {
            return self.reached(reached, stop);
        }
        let line = if self.json { self.object(step).to_string() } else { self.sentence(step) };
        self.line(&line, stop);
    }

    /// The tree is done with.
    pub(super) fn end(&mut self, mended: &Mended, stop: &Stop) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let Scrubbed { blobs, bytes, wrong, rescued, left, transient, unchecked, complete } = mended.scrubbed;
        if self.json {
            let line = json!({
                "event": "summary", "tree": self.root, "blobs": blobs, "bytes": bytes, "corrupt": wrong,
                "rescued": rescued, "left": left, "transient": transient, "unchecked": unchecked,
                "missing": mended.missing, "repaired": mended.repaired, "unrepaired": mended.unrepaired,
                "complete": complete,
            });
            return self.line(&line.to_string(), stop);
        }
        let mut parts = Vec::new();
        for (count, what) in [
            (wrong, "corrupt"),
            (mended.missing, "missing since an earlier scrub"),
            (rescued, "written again from memory"),
            (mended.repaired, "repaired"),
            (mended.unrepaired, if self.repair { "not repaired" } else { "to be repaired" }),
            (left, "not set aside"),
            (transient, "read wrong once"),
            (unchecked, "not checked"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        if !complete {
            parts.push("ended before all was read".to_owned());
        }
        let verdict = if parts.is_empty() { "all right".to_owned() } else { parts.join(", ") };
        let blobs = if blobs == 1 { "1 blob".to_owned() } else { format!("{blobs} blobs") };
        self.line(&format!("{}: {blobs}, {}: {verdict}", self.root.display(), ByteSize(bytes)), stop);
    }

    /// The tree could not be scrubbed to its end.
    pub(super) fn failed(&mut self, error: &ScrubError) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        eprintln!("spliceway: {error}");
    }

    fn reached(&mut self, reached: &Reached, stop: &Stop) {
        let Reached { blobs, bytes, share } = *reached;
        if let Some(bar) = &self.bar {
            // From 0 to 1.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            bar.set_position((share * BAR_STEPS as f64) as u64);
            bar.set_message(format!("{blobs} blobs, {}", ByteSize(bytes)));
        }
        if self.said.elapsed() < SAY_EVERY {
            return;
        }
        self.said = Instant::now();
        if self.json {
            let line = json!({
                "event": "progress", "tree": self.root, "blobs": blobs, "bytes": bytes, "share": share,
            });
            self.line(&line.to_string(), stop);
        } else if self.bar.is_none() {
            let (root, percent) = (self.root.display(), share * 100.0);
            eprintln!("{root}: {percent:.0} %, {blobs} blobs, {} so far", ByteSize(bytes));
        }
    }

    fn sentence(&self, step: &Step) -> String {
        let root = self.root.display();
        match step {
            Step::Scrub(Event::Found(Finding { digest, len, cause, outcome })) => {
                let outcome = match outcome {
                    Outcome::SetAside(path) => format!("set aside as {}", path.display()),
                    Outcome::Rescued(path) => {
                        format!("memory had it right and is on disk now; set aside as {}", path.display())
                    }
                    Outcome::Left(error) => format!("it cannot be set aside and is still served: {error}"),
                };
                format!("corrupt {digest} ({len} bytes in {root}): {cause}; {outcome}")
            }
            Step::Scrub(Event::Transient { digest, cause }) => {
                format!(
                    "read wrong once {digest} (in {root}): {cause}; the second time it was right: check disk and memory"
                )
            }
            Step::Scrub(Event::Unchecked { path, error }) => {
                format!("not checked {}: {error}", path.display())
            }
            Step::Scrub(Event::Reached(_)) => String::new(),
            Step::Missing(digest) => {
                let remedy = if self.repair { "" } else { "; push it again, or scrub with --repair" };
                format!("missing {digest} (in {root}): it was set aside by an earlier scrub{remedy}")
            }
            Step::Repaired(digest, repaired) => format!("repaired {digest} (in {root}): {repaired}"),
            Step::NotRepaired(digest, error) => format!("not repaired {digest} (in {root}): {error}"),
        }
    }

    fn object(&self, step: &Step) -> Value {
        let tree = &self.root;
        match step {
            Step::Scrub(Event::Found(Finding { digest, len, cause, outcome })) => {
                let (word, path, error) = match outcome {
                    Outcome::SetAside(path) => ("set-aside", Some(path), None),
                    Outcome::Rescued(path) => ("rescued", Some(path), None),
                    Outcome::Left(error) => ("left", None, Some(error.to_string())),
                };
                json!({
                    "event": "corrupt", "tree": tree, "digest": digest, "bytes": len, "cause": cause.to_string(),
                    "outcome": word, "path": path, "error": error,
                })
            }
            Step::Scrub(Event::Transient { digest, cause }) => {
                json!({"event": "transient", "tree": tree, "digest": digest, "cause": cause.to_string()})
            }
            Step::Scrub(Event::Unchecked { path, error }) => {
                json!({"event": "unchecked", "tree": tree, "path": path, "error": error.to_string()})
            }
            Step::Scrub(Event::Reached(_)) => Value::Null,
            Step::Missing(digest) => json!({"event": "missing", "tree": tree, "digest": digest}),
            Step::Repaired(digest, repaired) => {
                let (from, upstream, repository) = match repaired {
                    Repaired::FromCache => ("cache", None, None),
                    Repaired::FromUpstream { upstream, repository } => {
                        ("upstream", Some(upstream), Some(repository.as_str()))
                    }
                    Repaired::NotNeeded => ("nowhere", None, None),
                };
                json!({
                    "event": "repaired", "tree": tree, "digest": digest, "from": from, "upstream": upstream,
                    "repository": repository,
                })
            }
            Step::NotRepaired(digest, error) => {
                json!({"event": "not-repaired", "tree": tree, "digest": digest, "error": error.to_string()})
            }
        }
    }

    /// A line on standard output; findings leave at once.
    fn line(&self, line: &str, stop: &Stop) {
        let write = || {
            let mut output = io::stdout().lock();
            writeln!(output, "{line}").and_then(|()| output.flush())
        };
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        if let Err(error) = written {
            // The reader of a pipe has seen enough; anything else is worth a word.
            if error.kind() != io::ErrorKind::BrokenPipe {
                eprintln!("spliceway: cannot write to standard output: {error}");
            }
            stop.stop();
        }
    }
}
