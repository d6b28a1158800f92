//! The log: lines on standard error, as text for people or JSON for machines, times in UTC.
//!
//! Lines are formatted where they arise and written by a thread of their own, so that a terminal or a pipe that
//! nobody reads never stalls a worker. At most [`LINES_QUEUED_MAX`] of [`LINE_BYTES_MAX`] wait; further ones are
//! dropped and counted. The access log is the target [`ACCESS`], at info: a line per request, of `key=value` fields,
//! unless the configuration turns it off.

mod rotate;

use std::cell::Cell;
use std::ffi::OsString;
use std::fmt::{Debug, Write as _};
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

pub use self::rotate::Rotating;

/// The target of the access log.
pub const ACCESS: &str = "access";

/// Lines that may wait to be written; with [`LINE_BYTES_MAX`], 16 MiB at worst and about 2 MiB as lines are.
pub const LINES_QUEUED_MAX: usize = 8192;

/// The longest line, in bytes. A longer text line is cut, a longer JSON line replaced by one that says so.
pub const LINE_BYTES_MAX: usize = 2048;

/// What the flags say about the log.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often `-v` was given, less how often `-q` was: 0 is info.
    pub verbosity: i16,
    /// Form of the lines.
    pub format: Format,
    /// Whether text lines are coloured.
    pub color: Color,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people, and for grep: time, level, target, message, `key=value`.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// If standard error is a terminal that can, and `NO_COLOR` is unset or empty (no-color.org).
    #[default]
    Auto,
    /// Even into files and pipes.
    Always,
    /// Not at all.
    Never,
}

/// Keeps the log going. Dropping it writes what is queued, waiting at most a second, and says what was dropped.
#[derive(Debug)]
#[must_use = "what is queued is lost unless this lives to the end"]
pub struct Guard {
    worker: Option<WorkerGuard>,
    dropped: ErrorCounter,
}

/// Starts the log of the process, on standard error. The first call counts; a later one in the same process changes
/// nothing.
pub fn start(options: Options, access_log: bool) -> Guard {
    start_to(options, access_log, io::stderr(), io::stderr().is_terminal())
}

/// Starts the log of the process, as [`start`], but lines go to `to`, which may be a terminal.
pub fn start_to(
    options: Options,
    access_log: bool,
    to: impl Write + Send + 'static,
    is_terminal: bool,
) -> Guard {
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_QUEUED_MAX)
        .thread_name("spliceway-log")
        .finish(to);
    let dropped = writer.error_counter();
    let ansi = options.color.applies(is_terminal, |name| std::env::var_os(name));
    let format = options.format;
    let lines = move || Bounded { to: writer.clone(), format };
    let subscriber = tracing_subscriber::registry()
        .with(lines_layer(format, ansi, lines).with_filter(targets(options.verbosity, access_log)));
    // The only error is that there is a log already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Guard { worker: Some(worker), dropped }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.worker.take());
        let dropped = self.dropped.dropped_lines();
        if dropped > 0 {
            eprintln!("spliceway: {dropped} log lines were dropped, as they were not read fast enough");
        }
    }
}

impl Color {
    fn applies(self, terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                terminal
                    && variable("NO_COLOR").is_none_or(|value| value.is_empty())
                    && variable("TERM").is_none_or(|value| value != "dumb")
            }
        }
    }
}

/// What is logged: this crate's lines and the access log at the level asked for, what libraries say about a step less.
fn targets(verbosity: i16, access_log: bool) -> Targets {
    let (own, libraries) = match verbosity {
        ..=-2 => (LevelFilter::ERROR, LevelFilter::ERROR),
        -1 => (LevelFilter::WARN, LevelFilter::ERROR),
        0 => (LevelFilter::INFO, LevelFilter::WARN),
        1 => (LevelFilter::DEBUG, LevelFilter::WARN),
        2.. => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    let access = if access_log { own } else { LevelFilter::OFF };
    Targets::new().with_default(libraries).with_target("spliceway", own).with_target(ACCESS, access)
}

/// The layer that makes lines of events.
fn lines_layer<S, W>(format: Format, ansi: bool, lines: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    match format {
        Format::Text => {
            let fields = format::debug_fn(text_field).delimited(" ");
            fmt::layer().with_ansi(ansi).fmt_fields(fields).with_writer(lines).boxed()
        }
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(lines)
            .boxed(),
    }
}

/// Writes one field of a text line. What upstreams and clients sent may stand in a value, and must neither begin a line
/// of its own nor steer a terminal: control characters are escaped, and a value with spaces stands in quotation marks.
fn text_field(line: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    thread_local! {
        static VALUE: Cell<String> = const { Cell::new(String::new()) };
    }
    // Taken, so that a value which logs while it is formatted finds another one.
    let mut text = VALUE.take();
    text.clear();
    let formatted = write!(text, "{value:?}").and_then(|()| {
        if field.name() == "message" {
            return write_escaped(line, &text);
        }
        write!(line, "{}=", field.name())?;
        // Strings are quoted and escaped by their Debug already.
        let is_plain =
            text.starts_with('"') || !text.contains(|c: char| c.is_control() || c == ' ' || c == '"');
        if is_plain { line.write_str(&text) } else { write!(line, "{text:?}") }
    });
    VALUE.set(text);
    formatted
}

fn write_escaped(line: &mut Writer<'_>, text: &str) -> std::fmt::Result {
    for piece in text.split_inclusive(|c: char| c.is_control()) {
        let plain = piece.trim_end_matches(|c: char| c.is_control());
        line.write_str(plain)?;
        write!(line, "{}", piece[plain.len()..].escape_debug())?;
    }
    Ok(())
}

/// Passes lines on, none longer than [`LINE_BYTES_MAX`]. Each `write` is a whole line, as the layer makes them.
struct Bounded<W> {
    to: W,
    format: Format,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if line.len() <= LINE_BYTES_MAX {
            return self.to.write(line);
        }
        match self.format {
            Format::Text => {
                const END: &[u8] = "…\n".as_bytes();
                let room = &line[..LINE_BYTES_MAX - END.len()];
                // Not in the middle of a character.
                let room = &room[..room.iter().rposition(|byte| byte & 0xC0 != 0x80).unwrap_or(0)];
                self.to.write_all(&[room, END].concat())?;
            }
            Format::Json => {
                let length = line.len();
                let text =
                    format!("a line of {length} bytes was left out: at most {LINE_BYTES_MAX} are written");
                let object = serde_json::json!({"level": "WARN", "target": module_path!(), "message": text});
                self.to.write_all(format!("{object}\n").as_bytes())?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, error, info, warn};

    use super::*;

    /// Collects what is written.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `events` leads to.
    fn logged(format: Format, verbosity: i16, events: impl FnOnce()) -> Vec<String> {
        logged_by(format, targets(verbosity, true), events)
    }

    fn logged_by(format: Format, targets: Targets, events: impl FnOnce()) -> Vec<String> {
        let memory = Memory::default();
        let to = memory.clone();
        let lines = move || Bounded { to: to.clone(), format };
        let subscriber =
            tracing_subscriber::registry().with(lines_layer(format, false, lines).with_filter(targets));
        tracing::subscriber::with_default(subscriber, events);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn text_is_one_line_with_time_level_target_and_fields() {
        let path = "/v2/a\nINFO forged/manifests/1";
        let lines = logged(Format::Text, 0, || {
            info!(target: ACCESS, method = "GET", path, status = 200, bytes = 12_u64, "request");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{line}");
        for part in [" INFO access: request ", "method=\"GET\"", "status=200", "bytes=12", "a\\nINFO forged"]
        {
            assert!(rest.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn what_others_sent_stays_in_its_line_and_field() {
        let sent = "a b\n2026 INFO forged\u{1b}[31m \"c\"";
        let lines = logged(Format::Text, 0, || {
            warn!(error = %sent, plain = %"1.2.3.4:5", text = "b c", number = 7, "{sent}");
            info!("");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].chars().all(|c| !c.is_control()), "{lines:?}");
        let escaped = "a b\\n2026 INFO forged\\u{1b}[31m";
        let (_, rest) = lines[0].split_once("logging::tests: ").unwrap();
        assert_eq!(
            rest,
            format!("{escaped} \"c\" error=\"{escaped} \\\"c\\\"\" plain=1.2.3.4:5 text=\"b c\" number=7")
        );
    }

    #[test]
    fn json_is_an_object_a_line() {
        let lines = logged(Format::Json, 0, || {
            info!(target: ACCESS, path = "a\n\"b\"", status = 200, "request");
            warn!("second");
        });
        assert_eq!(lines.len(), 2);
        let object: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(object["path"], "a\n\"b\"");
        assert_eq!(
            (&object["status"], &object["target"], &object["level"]),
            (&200.into(), &"access".into(), &"INFO".into())
        );
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn verbosity_decides_what_is_logged() {
        let all = || {
            error!(target: "hyper", "E-library");
            warn!(target: "hyper", "W-library");
            debug!(target: "hyper", "D-library");
            error!("E-own");
            warn!("W-own");
            info!("I-own");
            info!(target: ACCESS, "I-access");
            debug!("D-own");
            tracing::trace!("T-own");
        };
        for (verbosity, expected) in [
            (-9, "E-library E-own"),
            (-1, "E-library E-own W-own"),
            (0, "E-library W-library E-own W-own I-own I-access"),
            (1, "E-library W-library E-own W-own I-own I-access D-own"),
            (2, "E-library W-library D-library E-own W-own I-own I-access D-own T-own"),
        ] {
            let lines = logged(Format::Text, verbosity, all);
            let words: Vec<_> = lines.iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
            assert_eq!(words.join(" "), expected, "{verbosity}");
        }
    }

    #[test]
    fn the_access_log_can_be_off_without_the_rest() {
        let lines = logged_by(Format::Text, targets(2, false), || {
            info!(target: ACCESS, "I-access");
            info!("I-own");
        });
        assert!(lines.len() == 1 && lines[0].ends_with("I-own"), "{lines:?}");
    }

    #[test]
    fn no_line_is_longer_than_the_bound() {
        for excess in [0, 1, 2, 3] {
            let text = "ä".repeat(LINE_BYTES_MAX / 2) + &"x".repeat(excess);
            let lines = logged(Format::Text, 0, || info!("{text}"));
            assert_eq!(lines.len(), 1);
            assert!(lines[0].len() < LINE_BYTES_MAX && lines[0].ends_with("ä…"), "{}", lines[0]);
        }
        let lines = logged(Format::Json, 0, || info!("{}", "x".repeat(LINE_BYTES_MAX)));
        let object: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert!(object["message"].as_str().unwrap().contains("left out"));
    }

    #[test]
    fn colour_follows_flag_terminal_and_environment() {
        let unset = |_: &str| None;
        let no_color = |name: &str| (name == "NO_COLOR").then(|| OsString::from("1"));
        let empty = |name: &str| (name == "NO_COLOR").then(OsString::new);
        let dumb = |name: &str| (name == "TERM").then(|| OsString::from("dumb"));
        assert!(Color::Auto.applies(true, unset) && Color::Auto.applies(true, empty));
        assert!(!Color::Auto.applies(false, unset));
        assert!(!Color::Auto.applies(true, no_color) && !Color::Auto.applies(true, dumb));
        assert!(Color::Always.applies(false, no_color) && !Color::Never.applies(true, unset));
    }
}
