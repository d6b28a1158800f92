//! The options of one upstream: validated by [`Upstream::new`](super::Upstream::new), never read again afterwards.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How one upstream registry is reached. Public fields, so that `config` fills them; [`UpstreamOptions::new`] gives the
/// defaults.
#[derive(Clone)]
pub struct UpstreamOptions {
    /// The name in messages, in `?ns=`, and as the first path component in the cache: one path component.
    pub name: String,
    /// The registry itself, `http(s)://host[:port][/prefix]`: the authority on what exists. Requests go to
    /// `<prefix>/v2/…`, or, if the prefix itself begins with `/v2/`, to `<prefix>/…` (a project of a proxy registry).
    /// `docker.io` and `index.docker.io` mean `registry-1.docker.io`.
    pub url: String,
    /// Tried in this order before `url`; the same form as `url`.
    pub mirrors: Vec<String>,
    /// How to log in.
    pub credentials: Credentials,
    /// PEM certificates that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Further hosts (`host` for any port, or `host:port`) that may be given the credentials when a registry names
    /// them as its token server.
    pub auth_hosts: Vec<String>,
    /// Bound on name resolution, TCP and TLS together. Default 5 s.
    pub connect_timeout: Duration,
    /// Bound on one attempt at one endpoint until the response's headers: connecting, a token and redirects included.
    /// Default 30 s, what newer containerds wait for a mirror's headers.
    pub header_timeout: Duration,
    /// Bound on the wait for the next bytes of a body. Default 30 s.
    pub stall_timeout: Duration,
    /// The longest manifest that is accepted, in bytes. Default 4 MiB (OCI distribution spec, "Pushing Manifests").
    pub max_manifest_bytes: usize,
    /// Docker Hub's rules apply: one-part names mean `library/…`. Set by itself when `url` is Docker Hub's; to be set
    /// by hand for a full mirror of it.
    pub docker_hub: bool,
    /// It is pushed to: tokens are asked for that allow it.
    pub pushes: bool,
    /// How many runtimes will use the upstream, each with connections of its own. Only a size hint. Default 1.
    pub workers: usize,
    /// Called once per attempt at an endpoint, when its response headers are there or it failed. Must not block.
    pub observer: Option<Observer>,
}

/// See [`UpstreamOptions::observer`].
pub type Observer = Arc<dyn Fn(&RequestObservation<'_>) + Send + Sync>;

impl UpstreamOptions {
    /// Options with every default, for an anonymous upstream without mirrors.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            mirrors: Vec::new(),
            credentials: Credentials::None,
            ca_file: None,
            auth_hosts: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            max_manifest_bytes: 4 << 20,
            docker_hub: false,
            pushes: false,
            workers: 1,
            observer: None,
        }
    }
}

impl fmt::Debug for UpstreamOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL may hold a password by mistake (it is refused later, but printed perhaps before).
        f.debug_struct("UpstreamOptions")
            .field("name", &self.name)
            .field("url", &super::endpoint::redacted(&self.url))
            .field(
                "mirrors",
                &self.mirrors.iter().map(|mirror| super::endpoint::redacted(mirror)).collect::<Vec<_>>(),
            )
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// How to log in at an upstream.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Anonymously; anonymous tokens are still asked for.
    #[default]
    None,
    /// For `url`'s origin, and for its token server.
    Basic {
        /// Without a colon (RFC 7617 §2).
        username: String,
        /// Never printed.
        password: String,
    },
    /// Docker's `config.json` (or podman's `auth.json`): an entry per host, for mirrors too. Read again when it changes.
    DockerConfig(PathBuf),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Basic { username, .. } => {
                f.debug_struct("Basic").field("username", username).field("password", &"***").finish()
            }
            Self::DockerConfig(path) => f.debug_tuple("DockerConfig").field(path).finish(),
        }
    }
}

/// What is asked of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// GET of a blob, whole or a range.
    Blob,
    /// HEAD of a blob.
    BlobHead,
    /// GET of a manifest.
    Manifest,
    /// HEAD of a manifest.
    ManifestHead,
    /// GET of one page of a tag list.
    Tags,
    /// GET of one page of a list of referrers.
    Referrers,
    /// GET of one page of the list of repositories.
    Catalog,
    /// Any request of the upload of a blob.
    Upload,
    /// PUT of a manifest.
    ManifestPut,
    /// DELETE of a manifest or a tag.
    ManifestDelete,
    /// A request to a token server.
    Token,
    /// What a client asks for, with its own header fields.
    Relay,
}

impl Operation {
    /// A stable label for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::BlobHead => "blob_head",
            Self::Manifest => "manifest",
            Self::ManifestHead => "manifest_head",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Catalog => "catalog",
            Self::Upload => "upload",
            Self::ManifestPut => "manifest_put",
            Self::ManifestDelete => "manifest_delete",
            Self::Token => "token",
            Self::Relay => "relay",
        }
    }
}

/// One attempt at an endpoint, as told to [`UpstreamOptions::observer`].
#[derive(Clone, Debug)]
pub struct RequestObservation<'a> {
    /// The upstream's name.
    pub upstream: &'a str,
    /// The endpoint's `host[:port]`; of a token request the token server's.
    pub endpoint: &'a str,
    /// What was asked.
    pub operation: Operation,
    /// `ok`, or [`UpstreamError::reason`](super::UpstreamError::reason).
    pub outcome: &'static str,
    /// Until the response's headers, or until the failure; of a token request until the token was read.
    pub elapsed: Duration,
    /// How many requests the upstream still allows, by its `ratelimit-remaining` header (Docker Hub).
    pub rate_limit_remaining: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_password() {
        let mut options = UpstreamOptions::new("hub", "https://u:hunter2@registry.example");
        options.mirrors = vec!["https://u:hunter2@mirror.example/x".into()];
        options.credentials = Credentials::Basic { username: "robot".into(), password: "hunter2".into() };
        let text = format!("{options:?}");
        assert!(text.contains("robot") && text.contains("mirror.example"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
