//! A registry that we fetch from, or push to: its own URL and its mirrors, asked over HTTP/1.1.
//!
//! An [`Upstream`] is shared by all workers. It owns connections (a pool per worker: a fill's connection lives on the
//! worker that began it), tokens, credentials, and what is known of endpoints that are down; all of it is in memory and
//! none of it survives a restart. Nothing is contacted before the first request.
//!
//! The life of a request: `endpoint` names the endpoint to try, `exchange` makes one attempt there by a deadline, with
//! the `Authorization` that `auth` knows of (token dance) and redirects followed by hand in `client`; then
//! `blobs`, `manifests`, `tags` or `catalog` checks that the answer fits the question. Whatever fails, the next endpoint is
//! tried; in the end the upstream's own URL has the last word: a 404 of a mirror means nothing, a 404 of the URL means
//! that the object does not exist.
//!
//! What is pushed (`push`) goes to the upstream's own URL alone. A blob's bytes are a stream (`payload`), as they come from
//! elsewhere; it can be sent only once, so who pushes has it resumed or begun again.
//!
//! Every wait has a bound: connecting, the headers of an attempt, the next bytes of a body, a whole document.

mod auth;
mod blobs;
mod catalog;
mod challenge;
mod client;
mod credentials;
mod endpoint;
mod error;
mod exchange;
mod headers;
mod manifests;
mod options;
mod pages;
mod payload;
mod push;
mod realm;
mod referrers;
mod relay;
mod scope;
mod tags;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use blobs::{BlobBody, BlobHead, BlobRequest, BlobResponse, ContentRange};
pub use client::READ_BUFFER;
pub use endpoint::EndpointChoice;
pub(crate) use error::causes;
pub use error::{Attempt, UpstreamConfigError, UpstreamError};
pub use manifests::{FetchedManifest, ManifestHead};
pub use options::{Credentials, Observer, Operation, RequestObservation, UpstreamOptions};
pub use payload::{NotTaken, PieceSender, PieceStream};
pub use push::{ManifestTaken, Mount, UploadSession};
pub use relay::{Refusal, Relay, Relayed};

pub(crate) use tls::{Tls, read_ca_file};

use crate::oci::RepositoryName;
use auth::Authenticator;
use client::HttpClient;
use credentials::{CredentialStore, Login};
use endpoint::{Endpoint, Endpoints, redacted};

/// One upstream registry; see the module's documentation. `Send + Sync`, to be shared in an `Arc`.
pub struct Upstream {
    name: String,
    docker_hub: bool,
    pushes: bool,
    endpoints: Endpoints,
    client: Arc<HttpClient>,
    auth: Authenticator,
    header_timeout: Duration,
    stall_timeout: Duration,
    max_manifest_bytes: usize,
    observer: Option<Observer>,
}

impl Upstream {
    /// Checks the options, and reads the CA file and the credentials' file if they name one. Contacts nobody.
    pub fn new(options: UpstreamOptions) -> Result<Self, UpstreamConfigError> {
        check_name(&options.name)?;
        let upstream = &options.name;
        let parse = |index, key, value: &String| {
            Endpoint::parse(index, value).map_err(|reason| UpstreamConfigError::Url {
                upstream: upstream.clone(),
                key,
                value: redacted(value),
                reason,
            })
        };
        let mirrors = options.mirrors.iter().enumerate();
        let mirrors =
            mirrors.map(|(index, url)| parse(index, "mirrors", url)).collect::<Result<Vec<_>, _>>()?;
        let own = parse(mirrors.len(), "url", &options.url)?;

        let file_error = |key, path: &std::path::Path, reason| UpstreamConfigError::File {
            upstream: upstream.clone(),
            key,
            path: path.to_owned(),
            reason,
        };
        let extra_roots = match &options.ca_file {
            Some(path) => read_ca_file(path).map_err(|reason| file_error("ca_file", path, reason))?,
            None => Vec::new(),
        };
        let credentials = match &options.credentials {
            Credentials::None => CredentialStore::None,
            Credentials::Basic { username, password } => {
                let login = Login::basic(username, password)
                    .map_err(|reason| UpstreamConfigError::Login { upstream: upstream.clone(), reason })?;
                CredentialStore::Own { origin: own.origin.clone(), login }
            }
            Credentials::DockerConfig(path) => {
                CredentialStore::config(path).map_err(|reason| file_error("docker_config", path, reason))?
            }
        };

        Ok(Self {
            docker_hub: options.docker_hub || own.is_docker_hub(),
            pushes: options.pushes,
            auth: Authenticator::new(credentials, options.auth_hosts, mirrors.len() + 1),
            endpoints: Endpoints::new(mirrors, own),
            client: Arc::new(HttpClient::new(extra_roots, options.connect_timeout, options.workers)),
            header_timeout: options.header_timeout,
            stall_timeout: options.stall_timeout,
            max_manifest_bytes: options.max_manifest_bytes,
            observer: options.observer,
            name: options.name,
        })
    }

    /// The upstream's own URL with another login, or none, and over the same connections; `None` if the login cannot be
    /// sent. Tokens are the new one's own.
    pub fn as_seen_by(&self, login: Option<(&str, &str)>) -> Option<Self> {
        let own = self.endpoints.own().alone();
        let credentials = match login {
            Some((username, password)) => CredentialStore::Own {
                origin: own.origin.clone(),
                login: Login::basic(username, password).ok()?,
            },
            None => CredentialStore::None,
        };
        Some(Self {
            docker_hub: self.docker_hub,
            pushes: self.pushes,
            auth: Authenticator::new(credentials, self.auth.auth_hosts().to_vec(), 1),
            endpoints: Endpoints::new(Vec::new(), own),
            client: Arc::clone(&self.client),
            header_timeout: self.header_timeout,
            stall_timeout: self.stall_timeout,
            max_manifest_bytes: self.max_manifest_bytes,
            observer: self.observer.clone(),
            name: self.name.clone(),
        })
    }

    /// The name in the configuration: one path component.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `host[:port]` of the upstream's own URL.
    #[cfg(test)]
    fn host(&self) -> &str {
        &self.endpoints.own().label
    }

    /// How many endpoints there are: the mirrors and the upstream's own URL.
    #[cfg(test)]
    fn endpoint_count(&self) -> usize {
        self.endpoints.iter().count()
    }

    /// The name under which the upstream knows a repository: on Docker Hub, `library/` is added to one-part names.
    pub fn canonical(&self, repository: &RepositoryName) -> RepositoryName {
        if !self.docker_hub || repository.as_str().contains('/') {
            return repository.clone();
        }
        // Too long with the prefix: such a name does not exist there, and its own 404 says so.
        format!("library/{repository}").parse().unwrap_or_else(|_| repository.clone())
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<_> = self.endpoints.iter().map(|endpoint| &endpoint.label).collect();
        f.debug_struct("Upstream")
            .field("name", &self.name)
            .field("endpoints", &endpoints)
            .finish_non_exhaustive()
    }
}

/// The name becomes a path component and the first component of repository names.
fn check_name(name: &str) -> Result<(), UpstreamConfigError> {
    let is_component = !name.contains('/') && name.parse::<RepositoryName>().is_ok();
    if is_component {
        return Ok(());
    }
    let reason = "expected one path component of a repository name: lower case letters, digits, and . _ - between them";
    Err(UpstreamConfigError::Name { name: name.to_owned(), reason })
}

/// What a fuzzer calls: the parsers of what an upstream's headers hold.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    let mut fields = http::HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(8) {
        let Ok(value) = http::HeaderValue::from_bytes(line) else { continue };
        for name in [http::header::WWW_AUTHENTICATE, http::header::LINK] {
            fields.append(name, value.clone());
        }
        for name in [http::header::RETRY_AFTER, http::header::CONTENT_RANGE] {
            fields.insert(name, value.clone());
        }
    }
    challenge::challenges(&fields);
    headers::next_link(&fields);
    headers::retry_after(&fields, std::time::SystemTime::UNIX_EPOCH);
    headers::unsatisfied_length(&fields);
    if let Some(part) = headers::text(&fields, &http::header::CONTENT_RANGE).and_then(headers::content_range)
    {
        assert!(part.start <= part.end_inclusive && part.length() > 0);
    }
}

#[cfg(test)]
mod tests;
