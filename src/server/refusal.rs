//! Why a request's head is refused, and what is answered.

use std::fmt;

use http::StatusCode;

/// Why a head was refused, for metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A CR or an LF that is not part of a CRLF.
    LineEnd,
    /// Not `METHOD SP target SP HTTP/1.x`.
    RequestLine,
    /// A request target that the method does not allow or that has characters no URI has.
    Target,
    /// An HTTP version other than 1.0 and 1.1.
    Version,
    /// A field name that is no token, or a field line without a colon.
    FieldName,
    /// A control character in a field's value.
    FieldValue,
    /// A field line that continues the one before it (`obs-fold`).
    Fold,
    /// No Host, several, or one that is not `host[:port]`.
    Host,
    /// A Content-Length that is not one number, or that stands beside a Transfer-Encoding.
    ContentLength,
    /// A Transfer-Encoding other than `chunked`, or one in HTTP/1.0.
    TransferEncoding,
    /// More bytes than [`Limits::bytes`](super::head::Limits::bytes).
    TooLarge,
    /// More fields than [`Limits::fields`](super::head::Limits::fields).
    TooMany,
    /// The head did not become whole in time.
    TimedOut,
}

impl Refusal {
    /// Every refusal, in the order of [`index`](Self::index).
    pub const ALL: [Self; 13] = [
        Self::LineEnd,
        Self::RequestLine,
        Self::Target,
        Self::Version,
        Self::FieldName,
        Self::FieldValue,
        Self::Fold,
        Self::Host,
        Self::ContentLength,
        Self::TransferEncoding,
        Self::TooLarge,
        Self::TooMany,
        Self::TimedOut,
    ];

    /// The refusal's place in [`ALL`](Self::ALL).
    pub const fn index(self) -> usize {
        self as usize
    }

    /// A stable name, for a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LineEnd => "line_end",
            Self::RequestLine => "request_line",
            Self::Target => "target",
            Self::Version => "version",
            Self::FieldName => "field_name",
            Self::FieldValue => "field_value",
            Self::Fold => "fold",
            Self::Host => "host",
            Self::ContentLength => "content_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::TimedOut => "timed_out",
        }
    }

    /// The status to answer with: 400, 408, 431 or 505.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TooLarge | Self::TooMany => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// A refused head: what to answer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadError {
    /// The status to answer with: 400, 408, 431 or 505.
    pub status: StatusCode,
    /// Which rule was broken.
    pub refusal: Refusal,
    /// The rule and the offending bytes, escaped and cut short; fit for the answer's body and for a log line.
    pub reason: String,
}

impl HeadError {
    /// A head that breaks the rule `refusal`.
    pub fn new(refusal: Refusal, reason: impl Into<String>) -> Self {
        Self { status: refusal.status(), refusal, reason: reason.into() }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for HeadError {}
