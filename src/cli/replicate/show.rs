//! What a person or a script sees of the work.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant, SystemTime};

use bytesize::ByteSize;
use humantime_serde::re::humantime::format_rfc3339_millis;
use serde::Serialize;

use crate::oci::Digest;
use crate::replicate::{Ended, Event, ImageName, ImageOutcome, Narrator};

/// How often a blob's progress is an object of its own.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// One way to show what happens. Called on the thread that works.
pub(super) trait Show {
    /// Something happened.
    fn tell(&self, event: &Event);

    /// All is over: how it went, if nobody is told by [`Show::tell`]. Says whether that could be said.
    fn end(&self, ended: &Ended) -> bool;
}

/// All ways that were asked for.
#[derive(Default)]
pub(super) struct Shows(Vec<Box<dyn Show>>);

impl Shows {
    pub(super) fn add(&mut self, show: impl Show + 'static) {
        self.0.push(Box::new(show));
    }

    pub(super) fn tell(&self, event: &Event) {
        for show in &self.0 {
            show.tell(event);
        }
    }

    pub(super) fn end(&self, ended: &Ended) -> bool {
        // The first is the one that was asked for most expressly.
        self.0.first().is_none_or(|show| show.end(ended))
    }
}

/// Lines of the log; of a dry run what would be done stands on standard output, as that was asked for.
#[derive(Debug, Default)]
pub(super) struct Lines {
    narrator: Narrator,
    /// The log is elsewhere than where the result is printed, or the result is not printed.
    is_whole: bool,
    dry_run: Cell<bool>,
}

impl Lines {
    /// `is_whole`: the log has the result too, and of a dry run everything.
    pub(super) fn new(is_whole: bool) -> Self {
        Self { is_whole, ..Self::default() }
    }
}

impl Show for Lines {
    fn tell(&self, event: &Event) {
        match event {
            Event::RunStarted { dry_run, .. } => self.dry_run.set(*dry_run),
            Event::RunDone(_) if !self.is_whole => return,
            _ => {}
        }
        match intention(event) {
            Some(line) if self.dry_run.get() && !self.is_whole => {
                // Whoever does not read it will not read the result either, which says so.
                let _ = writeln!(io::stdout(), "{line}");
            }
            _ => self.narrator.tell(event),
        }
    }

    fn end(&self, ended: &Ended) -> bool {
        result(ended)
    }
}

/// What an event of a dry run says would be done.
pub(super) fn intention(event: &Event) -> Option<String> {
    match event {
        Event::ImageDone { outcome: ImageOutcome::Present, .. } => None,
        Event::ImageDone { image, outcome, bytes, .. } => {
            let word = if *outcome == ImageOutcome::Copied { "copy" } else { "update" };
            Some(format!("would {word} {image}, {}", ByteSize(*bytes).display().iec()))
        }
        Event::Deleted { image } => Some(format!("would delete {image}")),
        _ => None,
    }
}

/// Prints how the work went, on standard output, and what failed, on standard error.
pub(super) fn result(ended: &Ended) -> bool {
    let Some(summary) = &ended.summary else { return true };
    for failure in &summary.failures {
        eprintln!("spliceway: {}: {}", printable(&failure.what), printable(&failure.why));
    }
    let untold = summary.failures_total.saturating_sub(summary.failures.len() as u64);
    if untold > 0 {
        eprintln!("spliceway: … and {untold} more failures");
    }
    match writeln!(io::stdout(), "{summary}") {
        // The reader of a pipe has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => true,
        Err(error) => {
            eprintln!("spliceway: cannot write to standard output: {error}");
            false
        }
        Ok(()) => true,
    }
}

/// What registries say must not steer a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An object a line, on standard output: the event with the time at which it happened.
#[derive(Debug, Default)]
pub(super) struct Json {
    /// Of blobs that are under way: when one was last told of, and the bytes since.
    untold: RefCell<HashMap<(ImageName, Digest), (Instant, u64)>>,
    has_failed: Cell<bool>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

impl Json {
    /// The event as it is to be told now, if it is.
    fn thinned(&self, event: &Event) -> Option<Event> {
        let mut untold = self.untold.borrow_mut();
        let mut event = event.clone();
        match &mut event {
            Event::BlobProgress { image, digest, moved, .. } => {
                let known = untold.entry((image.clone(), *digest)).or_insert_with(|| (Instant::now(), 0));
                known.1 = known.1.saturating_add(*moved);
                if known.0.elapsed() < PROGRESS_EVERY {
                    return None;
                }
                *moved = known.1;
                *known = (Instant::now(), 0);
            }
            Event::BlobDone { image, digest, .. } => {
                untold.remove(&(image.clone(), *digest));
            }
            Event::ImageDone { image, .. } => untold.retain(|(other, _), _| other != image),
            Event::RunStarted { .. } | Event::RunDone(_) => untold.clear(),
            _ => {}
        }
        Some(event)
    }
}

impl Show for Json {
    fn tell(&self, event: &Event) {
        if self.has_failed.get() {
            return;
        }
        let Some(event) = self.thinned(event) else { return };
        let time = format_rfc3339_millis(SystemTime::now()).to_string();
        let written = serde_json::to_string(&Line { time, event: &event })
            .map_err(io::Error::other)
            .and_then(|line| writeln!(io::stdout(), "{line}"));
        if let Err(error) = written {
            self.has_failed.set(true);
            // The work goes on; the exit code will say that not all was told.
            eprintln!("spliceway: cannot write to standard output: {error}");
        }
    }

    fn end(&self, _: &Ended) -> bool {
        !self.has_failed.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn progress_is_thinned_and_what_ends_is_not() {
        let json = Json::default();
        let image = ImageName { repository: "a".parse().unwrap(), reference: "1".parse().unwrap() };
        let digest = Digest::of(Algorithm::Sha256, b"");
        for _ in 0..1000 {
            let progress =
                Event::BlobProgress { image: image.clone(), digest, moved: 1, done: 1, size: None };
            if json.thinned(&progress).is_some() {
                // A second may pass on a busy machine.
                continue;
            }
            assert_eq!(json.untold.borrow().len(), 1);
        }
        let how = crate::replicate::BlobOutcome::Copied;
        assert!(json.thinned(&Event::BlobDone { image, digest, size: None, how }).is_some());
        assert!(json.untold.borrow().is_empty());
    }

    #[test]
    fn what_others_sent_cannot_steer_a_terminal() {
        assert_eq!(printable("a\u{1b}[31m\nb"), "a [31m b");
    }
}
