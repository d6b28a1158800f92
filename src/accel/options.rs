//! What an operator can set of a front.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

/// What a front needs to know.
#[derive(Clone, Debug)]
pub struct AccelOptions {
    /// Its name in logs and metrics. Default `accel`.
    pub name: String,
    /// The application.
    pub backend: BackendAddress,
    /// PEM certificates that are trusted for an https backend beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest time for name resolution, connecting and TLS together; then 504. Default 5 s.
    pub connect_timeout: Duration,
    /// Longest time from the last byte of a request to the head of its answer; then 504. Default 60 s.
    pub header_timeout: Duration,
    /// Longest time without a byte of an answer's body, and without a byte either way on a connection that changed its
    /// protocol. Default 60 s.
    pub stall_timeout: Duration,
    /// Largest body of a request in bytes; a larger one is answered 413. Default: no limit.
    pub body_bytes_max: Option<u64>,
    /// Idle connections to the backend that each worker keeps. Default 32.
    pub keep_alive: usize,
    /// The backend's fields that are obeyed.
    pub honour: Honour,
    /// Which of the backend's fields an answer with a file has.
    pub headers: HeaderRule,
    /// Which status an answer with a file has.
    pub status: StatusRule,
    /// Whether symbolic links are followed.
    pub symlinks: Symlinks,
    /// Directories beneath which X-Sendfile may name files; absolute, without a slash at the end.
    pub sendfile_roots: Vec<PathBuf>,
    /// Whether requests tell the application, in the words of Rack, which fields to answer with.
    pub sendfile_type: bool,
    /// Where X-Accel-Redirect leads to.
    pub locations: Vec<LocationOptions>,
}

/// Where an application listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendAddress {
    /// http or https; a path is put before the path of every request.
    Url(Url),
    /// A socket of the filesystem.
    Unix(PathBuf),
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A set of fields of the backend that are obeyed. What is not obeyed is passed on like any other field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Honour(u8);

impl Honour {
    /// None of them.
    pub const NOTHING: Self = Self(0);
    /// X-Accel-Redirect.
    pub const REDIRECT: Self = Self(1);
    /// X-Accel-Expires.
    pub const EXPIRES: Self = Self(1 << 1);
    /// X-Accel-Limit-Rate.
    pub const LIMIT_RATE: Self = Self(1 << 2);
    /// X-Accel-Buffering.
    pub const BUFFERING: Self = Self(1 << 3);
    /// X-Accel-Charset.
    pub const CHARSET: Self = Self(1 << 4);
    /// X-Sendfile.
    pub const SENDFILE: Self = Self(1 << 5);
    /// All X-Accel ones: the default.
    pub const ACCEL: Self = Self((1 << 5) - 1);
    /// All of them.
    pub const ALL: Self = Self((1 << 6) - 1);

    const WORDS: [(&'static str, Self); 6] = [
        ("redirect", Self::REDIRECT),
        ("expires", Self::EXPIRES),
        ("limit-rate", Self::LIMIT_RATE),
        ("buffering", Self::BUFFERING),
        ("charset", Self::CHARSET),
        ("sendfile", Self::SENDFILE),
    ];

    /// The one that a configuration calls `word`.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, one)| *one)
    }

    /// What a configuration calls them.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Self::WORDS.into_iter().filter(move |(_, one)| self.contains(*one)).map(|(word, _)| word)
    }

    /// These and `more`.
    #[must_use]
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Whether all of `wanted` are among them.
    pub const fn contains(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// Which of the backend's fields an answer with a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderRule {
    /// All that describe the content or the answer: also entity tag, dates, encoding, links and fields of its own.
    Keep,
    /// Those that nginx lets through: Content-Type, Content-Disposition, Set-Cookie, Cache-Control, Expires.
    Nginx,
}

impl HeaderRule {
    /// The word in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Nginx => "nginx",
        }
    }
}

/// Which status an answer with a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusRule {
    /// The file's: 200, or what the request's ranges and conditions make of it.
    File,
    /// The backend's, if it is not 200: then with the whole file.
    Backend,
}

impl StatusRule {
    /// The word in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Backend => "backend",
        }
    }
}

/// Whether symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symlinks {
    /// Those that stay beneath the root.
    Beneath,
    /// None.
    Deny,
}

impl Symlinks {
    /// The word in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Beneath => "beneath",
            Self::Deny => "deny",
        }
    }
}

/// An internal location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocationOptions {
    /// What the decoded path of X-Accel-Redirect begins with; begins and ends with a slash.
    pub prefix: String,
    /// What lies there.
    pub content: LocationContent,
}

impl LocationOptions {
    /// Its directory, if it is of files.
    pub fn root(&self) -> Option<&Path> {
        match &self.content {
            LocationContent::Root(root) => Some(root),
            LocationContent::Blobs(_) => None,
        }
    }
}

/// What lies at an internal location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocationContent {
    /// The files beneath a directory.
    Root(PathBuf),
    /// The blobs of the registry of this name, as `<repository>/<digest>`.
    Blobs(String),
}
