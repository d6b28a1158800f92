//! Progress for a person at a terminal: a bar for everything, one for each image under way, and a line for each that is
//! done.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use bytesize::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::show::{Show, intention, printable, result};
use crate::replicate::{BlobOutcome, Ended, Event, ImageName, ImageOutcome};

const TOTAL: &str =
    "{elapsed_precise} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg}";
const IMAGE: &str = "  {prefix:<40!} [{wide_bar}] {binary_bytes}/{binary_total_bytes}";
/// Bars of images at once: more would not fit a terminal.
const BARS_MAX: usize = 16;
/// How often the time is redrawn although nothing moves.
const TICK_EVERY: Duration = Duration::from_millis(500);

/// The bars. Dropping it leaves the terminal as a program should.
pub(super) struct Terminal {
    bars: MultiProgress,
    total: ProgressBar,
    images: RefCell<HashMap<ImageName, ProgressBar>>,
    counts: Cell<Counts>,
    dry_run: Cell<bool>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    copied: u64,
    present: u64,
    failed: u64,
}

impl Terminal {
    pub(super) fn new() -> Self {
        let bars = MultiProgress::new();
        let total = bars.add(ProgressBar::new(0).with_style(style(TOTAL)));
        total.enable_steady_tick(TICK_EVERY);
        total.set_message("looking for sources");
        Self { bars, total, images: RefCell::default(), counts: Cell::default(), dry_run: Cell::default() }
    }

    /// Where the log's lines go, so that they do not run into the bars.
    pub(super) fn lines(&self) -> impl Write + Send + use<> {
        Above(self.bars.clone())
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
        let Counts { copied, present, failed } = counts;
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        let word = if self.dry_run.get() { "to copy" } else { "copied" };
        self.total.set_message(format!("{copied} {word}, {present} up to date{failed}"));
    }

    /// Prints a line above the bars.
    fn say(&self, line: &str) {
        // A terminal that is gone is nobody to tell.
        let _ = self.bars.println(printable(line));
    }

    fn image_done(&self, image: &ImageName, outcome: ImageOutcome, bytes: u64, elapsed_ms: u64) {
        if let Some(bar) = self.images.borrow_mut().remove(image) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
        let word = match (outcome, self.dry_run.get()) {
            (ImageOutcome::Present, _) => return self.count(|counts| counts.present += 1),
            (_, true) => "",
            (ImageOutcome::Copied, false) => "copied",
            (ImageOutcome::Updated, false) => "updated",
        };
        if !word.is_empty() {
            let bytes = ByteSize(bytes).display().iec();
            let seconds = Duration::from_millis(elapsed_ms).as_secs_f64();
            self.say(&format!("{word} {image}, {bytes} in {seconds:.1} s"));
        }
        self.count(|counts| counts.copied += 1);
    }
}

impl Show for Terminal {
    fn tell(&self, event: &Event) {
        if self.dry_run.get()
            && let Some(line) = intention(event)
        {
            // Whoever does not read it will not read the result either, which says so.
            let _ = self.bars.suspend(|| writeln!(io::stdout(), "{line}"));
        }
        match event {
            Event::RunStarted { dry_run, .. } => {
                self.dry_run.set(*dry_run);
                self.counts.set(Counts::default());
                self.images.borrow_mut().clear();
                self.total.set_length(0);
                self.total.set_position(0);
                self.total.reset_elapsed();
                self.count(|_| {});
            }
            Event::ImageStarted { image, bytes, .. } => {
                self.total.inc_length(*bytes);
                let mut images = self.images.borrow_mut();
                if images.len() < BARS_MAX && !self.dry_run.get() {
                    let bar =
                        ProgressBar::new(*bytes).with_style(style(IMAGE)).with_prefix(image.to_string());
                    images.insert(image.clone(), self.bars.add(bar));
                }
            }
            Event::BlobProgress { image, moved, .. } => {
                self.total.inc(*moved);
                if let Some(bar) = self.images.borrow().get(image) {
                    bar.inc(*moved);
                }
            }
            // What need not be sent is no part of the work.
            Event::BlobDone {
                image,
                size: Some(size),
                how: BlobOutcome::Mounted | BlobOutcome::Present,
                ..
            } => {
                self.total.dec_length(*size);
                if let Some(bar) = self.images.borrow().get(image) {
                    bar.dec_length(*size);
                }
            }
            Event::Repository { .. } | Event::BlobDone { .. } => {}
            Event::ImageDone { image, outcome, bytes, elapsed_ms, .. } => {
                self.image_done(image, *outcome, *bytes, *elapsed_ms);
            }
            Event::Retrying { what, why, after_ms, .. } => {
                let seconds = Duration::from_millis(*after_ms).as_secs_f64();
                self.say(&format!("trying again in {seconds:.1} s: {what}: {why}"));
            }
            Event::Failed(failure) => {
                self.say(&format!("failed: {}: {}", failure.what, failure.why));
                self.count(|counts| counts.failed += 1);
            }
            Event::Deleted { .. } if self.dry_run.get() => {}
            Event::Deleted { image } => self.say(&format!("deleted {image}")),
            Event::RunDone(_) => {
                for (_, bar) in self.images.borrow_mut().drain() {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn end(&self, ended: &Ended) -> bool {
        self.total.finish_and_clear();
        result(ended)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.total.finish_and_clear();
        // Whoever it fails for has no terminal.
        let _ = self.bars.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants: a wrong one shows as a plain bar.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

/// Standard error, above the bars.
struct Above(MultiProgress);

impl Write for Above {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write_all(lines)).map(|()| lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_right() {
        for template in [TOTAL, IMAGE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
