//! Why something could not be copied, typed by whose fault it is: that decides who is asked next.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use humantime_serde::re::humantime::{FormattedDuration, format_duration};

use crate::oci::Digest;
use crate::upstream::UpstreamError;

/// See the module's documentation. Cheap to clone; messages name the server, the object and the cause.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// A source did not give it.
    #[error("source {0}")]
    Source(UpstreamError),
    /// What a source gave is not what it said it would be. Another source may be better.
    #[error("source {source_name}: {what}")]
    Content { source_name: String, what: String },
    /// What several sources gave together is not what it should be.
    #[error("what came from several sources has not the digest {0}")]
    Mixed(Box<Digest>),
    /// No source that is left has the content that the digest names.
    #[error("no source gives what has the digest {0}: what came is something else")]
    Corrupt(Box<Digest>),
    /// The target did not take it.
    #[error("target {0}")]
    Target(UpstreamError),
    /// The target's disk did not take it.
    #[error("target {target}: {what}: {cause}")]
    Disk { target: String, what: &'static str, cause: Arc<io::Error> },
    /// It was not asked, since it said that it wants to be left alone for so long.
    #[error("{server} wants to be left alone for another {}: it is not asked", whole_seconds(*left))]
    Resting { server: String, left: Duration },
    /// It is nothing that can be copied, whoever has it.
    #[error("{0}")]
    Unfit(String),
    /// Told to stop before it was done.
    #[error("stopped before it was done")]
    Stopped,
}

impl CopyError {
    /// What a registry said.
    pub(super) fn upstream(&self) -> Option<&UpstreamError> {
        match self {
            Self::Source(error) | Self::Target(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the same question to the same server may have another answer soon.
    pub(super) fn is_retryable(&self) -> bool {
        self.upstream().is_some_and(UpstreamError::is_retryable)
    }

    /// Whether the source, or the target, says that it is not there.
    pub(super) fn is_absence(&self) -> bool {
        self.upstream().is_some_and(UpstreamError::is_absence)
    }

    /// Whether it is about a server that answers nothing now, whatever it is asked.
    pub(super) fn is_of_the_server(&self) -> bool {
        self.is_retryable() || matches!(self, Self::Resting { .. })
    }

    pub(super) fn is_stop(&self) -> bool {
        matches!(self, Self::Stopped)
    }
}

fn whole_seconds(duration: Duration) -> FormattedDuration {
    format_duration(Duration::from_secs(duration.as_secs()))
}
