//! What is wrong with a configuration, said so that the reader can put it right: where, which key, which value, and
//! what would be accepted instead.

use std::fmt;
use std::path::PathBuf;

/// Why a configuration was refused. The operator's fault in every variant; the running configuration is unaffected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file itself could not be read.
    #[error("{}: cannot read the configuration: {source}; name a readable file", path.display())]
    Read {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong type.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where in the file.
        origin: Origin,
        /// The parser's message, without the line itself, which may hold a password.
        message: String,
    },
    /// A setting has a value that cannot be used, or lacks one.
    #[error(transparent)]
    Value(Box<BadValue>),
}

/// Where a setting was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of the configuration file, counted from 1; `None` if the parser could not tell.
    File(PathBuf, Option<usize>),
    /// A flag of the command line, with its dashes.
    Flag(&'static str),
    /// A variable of the environment.
    Variable(&'static str),
    /// Nowhere: what applies when nothing is given.
    Default,
}

/// One setting that was refused.
#[derive(Debug, thiserror::Error)]
pub struct BadValue {
    /// Where it was given.
    pub origin: Origin,
    /// The table it belongs to, for a reader: `[server]`, `registry "main"`, `upstream "docker.io"`.
    pub table: String,
    /// The key.
    pub key: &'static str,
    /// The value as it was given, without any password; `None` if it is missing or must not be shown.
    pub value: Option<String>,
    /// What is wrong with it: a verb and what follows, such as "is not a duration".
    pub problem: String,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Flag(name) | Self::Variable(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {}", quoted(value))?;
        }
        write!(f, " in {} {}; {}", self.table, self.problem, self.remedy)
    }
}

impl From<BadValue> for ConfigError {
    fn from(bad: BadValue) -> Self {
        Self::Value(Box::new(bad))
    }
}

/// The longest piece of a bad value that a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 100;

/// `value` in quotation marks, control characters escaped, cut where it gets too long to be read.
fn quoted(value: &str) -> String {
    if value.chars().count() <= QUOTED_CHARS_MAX {
        return format!("{value:?}");
    }
    let head: String = value.chars().take(QUOTED_CHARS_MAX).collect();
    format!("{head:?}…")
}
