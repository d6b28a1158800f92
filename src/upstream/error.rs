//! What can go wrong between here and an upstream, typed by what a caller can do about it.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::options::Operation;
use crate::oci::Digest;

/// Which request failed: endpoint, operation and object. Every [`UpstreamError`] carries one, so that a message can be
/// understood without the log around it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt(Arc<AttemptInner>);

#[derive(Debug, PartialEq, Eq)]
struct AttemptInner {
    endpoint: String,
    operation: Operation,
    subject: String,
}

impl Attempt {
    /// Names an attempt: the endpoint's `host[:port]`, what is asked of it, and for which object.
    pub fn new(endpoint: impl Into<String>, operation: Operation, subject: impl Into<String>) -> Self {
        Self(Arc::new(AttemptInner { endpoint: endpoint.into(), operation, subject: subject.into() }))
    }

    /// The endpoint's `host[:port]`.
    pub fn endpoint(&self) -> &str {
        &self.0.endpoint
    }

    /// What was asked.
    pub fn operation(&self) -> Operation {
        self.0.operation
    }

    /// The object that it was asked for, as `repository@digest`, `repository:tag` or a token's scope.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.0.endpoint, self.0.operation.as_str(), self.0.subject)
    }
}

/// Why an upstream gave no usable answer.
///
/// When several endpoints were tried, the error is the one of the upstream's own URL, which is the authority over its
/// mirrors. Messages hold no token, no password and no query string of a URL.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// 404 by the upstream's own URL: the object does not exist there, or is hidden from us.
    #[error("{attempt}: not found (404){}", said(detail.as_deref()))]
    NotFound {
        /// The failed request.
        attempt: Attempt,
        /// What the registry said, if anything.
        detail: Option<Arc<str>>,
    },
    /// 401 after everything that the credentials allow was tried, or the token server refused them.
    #[error("{attempt}: unauthorized: {detail}")]
    Unauthorized {
        /// The failed request.
        attempt: Attempt,
        /// Which step was refused, and what the registry said.
        detail: Arc<str>,
    },
    /// 403.
    #[error("{attempt}: denied (403){}", said(detail.as_deref()))]
    Denied {
        /// The failed request.
        attempt: Attempt,
        /// What the registry said, if anything.
        detail: Option<Arc<str>>,
    },
    /// 429.
    #[error("{attempt}: rate limited (429){}{}", retry_hint(*retry_after), said(detail.as_deref()))]
    RateLimited {
        /// The failed request.
        attempt: Attempt,
        /// How long the upstream asks to be left alone; at most one hour (RFC 9110 §10.2.3).
        retry_after: Option<Duration>,
        /// What the registry said, if anything.
        detail: Option<Arc<str>>,
    },
    /// Any 5xx.
    #[error("{attempt}: the upstream failed with status {status}{}", said(detail.as_deref()))]
    ServerError {
        /// The failed request.
        attempt: Attempt,
        /// The status, 500 to 599.
        status: u16,
        /// How long the upstream asks to be left alone; at most one hour (RFC 9110 §10.2.3).
        retry_after: Option<Duration>,
        /// What the registry said, if anything.
        detail: Option<Arc<str>>,
    },
    /// 416: the range begins beyond the end of what the upstream holds.
    #[error("{attempt}: range not satisfiable (416){}", of_length(*length))]
    RangeNotSatisfiable {
        /// The failed request.
        attempt: Attempt,
        /// The object's length by the answer's `Content-Range: bytes */length`.
        length: Option<u64>,
    },
    /// Any other 4xx to a request that was to change something: the registry does not do it.
    #[error("{attempt}: refused ({status}){}", said(detail.as_deref()))]
    Refused {
        /// The failed request.
        attempt: Attempt,
        /// The status, 400 to 499.
        status: u16,
        /// What the registry said, if anything: its code first (OCI distribution spec, "Error Codes").
        detail: Option<Arc<str>>,
    },
    /// An answer that is well-formed and makes no sense here: another status, too many redirects, a forbidden redirect.
    #[error("{attempt}: unexpected answer: {what}")]
    Unexpected {
        /// The failed request.
        attempt: Attempt,
        /// What came, and what was expected.
        what: String,
    },
    /// No connection: name resolution, TCP or TLS failed.
    #[error("{attempt}: cannot connect: {cause}")]
    Connect {
        /// The failed request.
        attempt: Attempt,
        /// The causes, outermost first.
        cause: Arc<str>,
    },
    /// A wait reached its bound.
    #[error("{attempt}: timeout: no {what} within {after:?}")]
    Timeout {
        /// The failed request.
        attempt: Attempt,
        /// What was waited for: `connection`, `response headers`, `token`, `body bytes`, `complete body`.
        what: &'static str,
        /// The bound that was reached.
        after: Duration,
    },
    /// The connection broke: before the answer, or with the body incomplete.
    #[error("{attempt}: connection broken: {cause}")]
    Broken {
        /// The failed request.
        attempt: Attempt,
        /// The causes, outermost first.
        cause: Arc<str>,
    },
    /// An answer that violates HTTP or the distribution spec.
    #[error("{attempt}: malformed answer: {what}")]
    Malformed {
        /// The failed request.
        attempt: Attempt,
        /// What is wrong, with the offending value quoted.
        what: String,
    },
    /// A document (manifest, tag list, token) is longer than we accept.
    #[error("{attempt}: answer too large: more than {limit} bytes{}", announced(*length))]
    TooLarge {
        /// The failed request.
        attempt: Attempt,
        /// The limit in bytes.
        limit: u64,
        /// The length that the upstream announced.
        length: Option<u64>,
    },
    /// The content is not what its digest says.
    #[error("{attempt}: digest mismatch: expected {expected}, got content of {actual}")]
    DigestMismatch {
        /// The failed request.
        attempt: Attempt,
        /// The digest asked for or announced.
        expected: Box<Digest>,
        /// The digest of the bytes received.
        actual: Box<Digest>,
    },
}

impl UpstreamError {
    /// Whether another try, or another mirror, may succeed: the network, a timeout, a broken body, 429, 5xx.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. }
                | Self::ServerError { .. }
                | Self::Connect { .. }
                | Self::Timeout { .. }
                | Self::Broken { .. }
        )
    }

    /// Whether the upstream itself says that the object does not exist.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// How long the upstream asks to be left alone, if it does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::ServerError { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A stable label for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Unauthorized { .. } => "unauthorized",
            Self::Denied { .. } => "denied",
            Self::RateLimited { .. } => "rate_limited",
            Self::ServerError { .. } => "server_error",
            Self::RangeNotSatisfiable { .. } => "range_not_satisfiable",
            Self::Refused { .. } => "refused",
            Self::Unexpected { .. } => "unexpected",
            Self::Connect { .. } => "connect",
            Self::Timeout { .. } => "timeout",
            Self::Broken { .. } => "reset",
            Self::Malformed { .. } => "malformed",
            Self::TooLarge { .. } => "too_large",
            Self::DigestMismatch { .. } => "digest_mismatch",
        }
    }

    /// The request that failed.
    pub fn attempt(&self) -> &Attempt {
        match self {
            Self::NotFound { attempt, .. }
            | Self::Unauthorized { attempt, .. }
            | Self::Denied { attempt, .. }
            | Self::RateLimited { attempt, .. }
            | Self::ServerError { attempt, .. }
            | Self::RangeNotSatisfiable { attempt, .. }
            | Self::Refused { attempt, .. }
            | Self::Unexpected { attempt, .. }
            | Self::Connect { attempt, .. }
            | Self::Timeout { attempt, .. }
            | Self::Broken { attempt, .. }
            | Self::Malformed { attempt, .. }
            | Self::TooLarge { attempt, .. }
            | Self::DigestMismatch { attempt, .. } => attempt,
        }
    }
}

/// Why an [`Upstream`](super::Upstream) cannot be made from its options. Each names the option and the bad value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamConfigError {
    /// `url` or one of `mirrors`.
    #[error("upstream {upstream}: {key} {value:?}: {reason}")]
    Url {
        /// The upstream's name.
        upstream: String,
        /// `url` or `mirrors`.
        key: &'static str,
        /// The value; a password in it is replaced by `***`.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// The name is not usable as one path component.
    #[error("upstream name {name:?}: {reason}")]
    Name {
        /// The name as given.
        name: String,
        /// What would be right.
        reason: &'static str,
    },
    /// `username` and `password` cannot be sent by HTTP Basic (RFC 7617 §2).
    #[error("upstream {upstream}: username: {reason}")]
    Login {
        /// The upstream's name.
        upstream: String,
        /// What would be right.
        reason: &'static str,
    },
    /// A file that the options name is unreadable or malformed.
    #[error("upstream {upstream}: {key} {}: {reason}", path.display())]
    File {
        /// The upstream's name.
        upstream: String,
        /// `ca_file` or `docker_config`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

/// The messages of an error and of its causes in one line, without repetitions.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> Arc<str> {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let message = cause.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        next = cause.source();
    }
    text.into()
}

fn said(detail: Option<&str>) -> String {
    detail.map(|detail| format!(": {detail}")).unwrap_or_default()
}

fn retry_hint(retry_after: Option<Duration>) -> String {
    retry_after.map(|after| format!(", retry after {} s", after.as_secs())).unwrap_or_default()
}

fn of_length(length: Option<u64>) -> String {
    length.map(|length| format!(", its length is {length}")).unwrap_or_default()
}

fn announced(length: Option<u64>) -> String {
    length.map(|length| format!(" (announced: {length})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> Attempt {
        Attempt::new("registry.example:5000", Operation::Manifest, "library/alpine:3")
    }

    #[test]
    fn a_message_names_endpoint_operation_object_and_cause() {
        let error = UpstreamError::Connect { attempt: attempt(), cause: "connection refused".into() };
        assert_eq!(
            error.to_string(),
            "registry.example:5000: manifest library/alpine:3: cannot connect: connection refused"
        );
        let error = UpstreamError::RateLimited {
            attempt: attempt(),
            retry_after: Some(Duration::from_secs(7)),
            detail: Some("TOOMANYREQUESTS".into()),
        };
        assert!(
            error.to_string().ends_with("rate limited (429), retry after 7 s: TOOMANYREQUESTS"),
            "{error}"
        );
    }

    #[test]
    fn only_passing_troubles_are_retryable() {
        let timeout =
            UpstreamError::Timeout { attempt: attempt(), what: "token", after: Duration::from_secs(1) };
        assert!(timeout.is_retryable() && !timeout.is_absence());
        let absent = UpstreamError::NotFound { attempt: attempt(), detail: None };
        assert!(!absent.is_retryable() && absent.is_absence());
        let large = UpstreamError::TooLarge { attempt: attempt(), limit: 1, length: None };
        assert!(!large.is_retryable() && !large.is_absence());
    }

    #[test]
    fn causes_are_joined_without_repetition() {
        let inner = std::io::Error::other("refused");
        let outer = std::io::Error::other(inner); // displays as its inner error
        assert_eq!(&*causes(&outer), "refused");
    }
}
