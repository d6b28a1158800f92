//! The servers behind an upstream: its mirrors in order, then its own URL; which of them are down; and who is asked next.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use url::{Host, Url};

use super::error::UpstreamError;

/// How long an endpoint that could not be reached is passed over.
const DOWN_FOR: Duration = Duration::from_secs(10);

/// Docker Hub's API host; the other names answer no API.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Scheme, host and port: what may share an `Authorization` header (RFC 6454 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) is_https: bool,
    /// Lower case; an IPv6 address in brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Origin {
    /// `None` unless the URL is http or https with a host.
    pub(super) fn of(url: &Url) -> Option<Self> {
        let is_https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host_str()?.trim_end_matches('.').to_ascii_lowercase();
        Some(Self { is_https, host, port: url.port_or_known_default()? })
    }

    /// `host`, or `host:port` if the port is not the scheme's own.
    pub(super) fn authority(&self) -> String {
        if self.port == if self.is_https { 443 } else { 80 } {
            self.host.clone()
        } else {
            self.authority_with_port()
        }
    }

    /// `host:port`.
    pub(super) fn authority_with_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Whether the host is an IPv4 or IPv6 address.
    pub(super) fn is_address(&self) -> bool {
        matches!(Host::parse(&self.host), Ok(Host::Ipv4(_) | Host::Ipv6(_)))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

/// One server.
pub(super) struct Endpoint {
    /// Its position: mirrors first, the upstream's own URL last.
    pub(super) index: usize,
    pub(super) origin: Origin,
    /// `host[:port]` for messages.
    pub(super) label: String,
    /// Ends in `/v2/`, or in the project's path below it.
    base: Url,
    /// What the base's path adds in front of a repository's name, for token scopes: empty or ending in `/`.
    pub(super) project: String,
    /// Milliseconds since [`Endpoints::epoch`]; in the past: not down.
    down_until_ms: AtomicU64,
}

impl Endpoint {
    /// Reads an endpoint's URL; the error says what would be right.
    pub(super) fn parse(index: usize, text: &str) -> Result<Self, String> {
        let mut url =
            Url::parse(text).map_err(|error| format!("{error}; expected http(s)://host[:port][/prefix]"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("credentials do not belong into the URL; use the credentials' own options".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("has a query or a fragment; expected http(s)://host[:port][/prefix]".into());
        }
        if matches!(url.host_str(), Some("docker.io" | "index.docker.io" | "registry.hub.docker.com")) {
            url.set_host(Some(DOCKER_HUB_HOST)).map_err(|error| error.to_string())?;
        }
        let origin = Origin::of(&url).ok_or("expected http(s)://host[:port][/prefix]")?;
        let prefix = url.path().trim_end_matches('/').to_owned();
        let project = match prefix.strip_prefix("/v2") {
            Some("") => Some(String::new()),
            Some(rest) => rest.strip_prefix('/').map(|project| format!("{project}/")),
            None => None,
        };
        url.set_path(&if project.is_some() { format!("{prefix}/") } else { format!("{prefix}/v2/") });
        Ok(Self {
            index,
            label: origin.authority(),
            origin,
            base: url,
            project: project.unwrap_or_default(),
            down_until_ms: AtomicU64::new(0),
        })
    }

    /// The same, as the only endpoint of an upstream.
    pub(super) fn alone(&self) -> Self {
        Self {
            index: 0,
            origin: self.origin.clone(),
            label: self.label.clone(),
            base: self.base.clone(),
            project: self.project.clone(),
            down_until_ms: AtomicU64::new(0),
        }
    }

    /// The URL of `path` (`<repository>/manifests/<reference>` and the like) with an optional query. Repository names,
    /// tags and digests hold no character that would need escaping.
    pub(super) fn url(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path()));
        url.set_query(query);
        url
    }

    /// Whether this is Docker Hub itself.
    pub(super) fn is_docker_hub(&self) -> bool {
        self.origin.host == DOCKER_HUB_HOST
    }
}

/// All endpoints of an upstream; never empty.
pub(super) struct Endpoints {
    mirrors: Vec<Endpoint>,
    own: Endpoint,
    epoch: Instant,
}

impl Endpoints {
    /// `own` is the upstream's own URL, the authority; its index is the number of mirrors.
    pub(super) fn new(mirrors: Vec<Endpoint>, own: Endpoint) -> Self {
        Self { mirrors, own, epoch: Instant::now() }
    }

    /// The upstream's own URL.
    pub(super) fn own(&self) -> &Endpoint {
        &self.own
    }

    /// All, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> + Clone {
        self.mirrors.iter().chain([&self.own])
    }

    /// Passes an endpoint over for the next seconds.
    pub(super) fn mark_down(&self, endpoint: &Endpoint) {
        let until = self.now_ms() + u64::try_from(DOWN_FOR.as_millis()).unwrap_or(u64::MAX);
        endpoint.down_until_ms.store(until, Ordering::Relaxed);
        tracing::debug!(endpoint = %endpoint.label, "endpoint is down, passing it over for {DOWN_FOR:?}");
    }

    /// Begins a walk over the endpoints.
    ///
    /// In order from the one that `choice` names, wrapping round, without those that are down; but the upstream's own
    /// URL is never left out, only asked last when it is down, since nobody else can say that something does not exist.
    /// If all are down, all are asked.
    pub(super) fn walk(&self, choice: EndpointChoice) -> Walk<'_> {
        let count = self.mirrors.len() + 1;
        let first = match choice {
            EndpointChoice::First => 0,
            EndpointChoice::After(index) => index.wrapping_add(1) % count,
        };
        let in_order = self.iter().cycle().skip(first).take(count);
        let (mut order, mut down): (Vec<_>, Vec<_>) = in_order.partition(|endpoint| !self.is_down(endpoint));
        if order.is_empty() {
            order.append(&mut down);
        } else if self.is_down(&self.own) {
            order.push(&self.own);
        }
        order.reverse();
        // `order` holds at least the upstream's own URL: it is among those up, or appended above.
        let current = order.pop().unwrap_or(&self.own);
        Walk { current, rest: order, verdict: None, own: self.own.index }
    }

    fn is_down(&self, endpoint: &Endpoint) -> bool {
        endpoint.down_until_ms.load(Ordering::Relaxed) > self.now_ms()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Which endpoint a request begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointChoice {
    /// The first that is not down.
    #[default]
    First,
    /// The one after this index ([`BlobResponse::endpoint`](super::BlobResponse::endpoint)), wrapping round: for a
    /// download that broke there.
    After(usize),
}

/// One request's way from endpoint to endpoint.
pub(super) struct Walk<'a> {
    current: &'a Endpoint,
    /// Backwards.
    rest: Vec<&'a Endpoint>,
    verdict: Option<UpstreamError>,
    own: usize,
}

impl<'a> Walk<'a> {
    /// The endpoint to ask now.
    pub(super) fn endpoint(&self) -> &'a Endpoint {
        self.current
    }

    /// Takes note of how the current endpoint failed and goes on to the next; or, if there is none, returns the verdict:
    /// what the upstream's own URL said, whatever happened at the mirrors.
    pub(super) fn next(&mut self, error: UpstreamError) -> Result<(), UpstreamError> {
        let is_own = self.current.index == self.own;
        match self.rest.pop() {
            Some(next) => {
                tracing::debug!(%error, next = %next.label, "trying the next endpoint");
                if is_own {
                    self.verdict = Some(error);
                }
                self.current = next;
                Ok(())
            }
            None if is_own => Err(error),
            None => Err(self.verdict.take().unwrap_or(error)),
        }
    }
}

/// A URL for messages, without a password, query or fragment.
pub(super) fn redacted(text: &str) -> String {
    match Url::parse(text) {
        Ok(mut url) if url.has_host() => {
            if url.password().is_some() {
                // Fails only for URLs that cannot have a password.
                let _ = url.set_password(Some("***"));
            }
            url.set_query(None);
            url.set_fragment(None);
            url.into()
        }
        _ => match text.rsplit_once('@') {
            Some((_, host)) => format!("***@{host}"),
            None => text.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::Attempt;
    use super::super::options::Operation;
    use super::*;

    /// Two mirrors and the upstream's own URL, of which some are down.
    fn endpoints(down: &[usize]) -> Endpoints {
        let endpoint = |index| Endpoint::parse(index, "http://r.example").unwrap();
        let endpoints = Endpoints::new(vec![endpoint(0), endpoint(1)], endpoint(2));
        for endpoint in endpoints.iter().filter(|endpoint| down.contains(&endpoint.index)) {
            endpoints.mark_down(endpoint);
        }
        endpoints
    }

    fn failed(index: usize) -> UpstreamError {
        let attempt = Attempt::new("r.example", Operation::Blob, index.to_string());
        UpstreamError::Unexpected { attempt, what: String::new() }
    }

    /// The order in which all endpoints fail, and whose failure is the verdict.
    fn all_fail(down: &[usize], choice: EndpointChoice) -> (Vec<usize>, String) {
        let endpoints = endpoints(down);
        let mut walk = endpoints.walk(choice);
        let mut order = Vec::new();
        loop {
            let index = walk.endpoint().index;
            order.push(index);
            if let Err(verdict) = walk.next(failed(index)) {
                return (order, verdict.attempt().subject().to_owned());
            }
        }
    }

    #[test]
    fn the_order_of_a_walk() {
        use EndpointChoice::{After, First};
        for (down, choice, expected) in [
            (&[][..], First, &[0, 1, 2][..]),
            (&[], After(0), &[1, 2, 0]),
            (&[], After(1), &[2, 0, 1]),
            (&[], After(2), &[0, 1, 2]),
            (&[0], First, &[1, 2]),
            (&[0], After(2), &[1, 2]),
            (&[2], First, &[0, 1, 2]),
            (&[2], After(1), &[0, 1, 2]), // never left out, but last
            (&[0, 2], First, &[1, 2]),
            (&[0, 1], After(0), &[2]),
            (&[0, 1, 2], First, &[0, 1, 2]),
            (&[0, 1, 2], After(1), &[2, 0, 1]),
        ] {
            let (order, verdict) = all_fail(down, choice);
            assert_eq!(order, expected, "{down:?} {choice:?}");
            assert_eq!(verdict, "2", "the upstream's own URL has the last word");
        }
    }

    #[test]
    fn being_down_ends() {
        let endpoints = endpoints(&[0]);
        let mirror = endpoints.iter().next().unwrap();
        assert!(endpoints.is_down(mirror));
        mirror.down_until_ms.store(endpoints.now_ms(), Ordering::Relaxed);
        assert!(!endpoints.is_down(mirror));
    }

    #[test]
    fn urls_of_endpoints() {
        let url =
            |base: &str| String::from(Endpoint::parse(0, base).unwrap().url("a/tags/list", Some("n=1")));
        assert_eq!(url("https://R.example"), "https://r.example/v2/a/tags/list?n=1");
        assert_eq!(url("http://[::1]:5000/x/"), "http://[::1]:5000/x/v2/a/tags/list?n=1");
        assert_eq!(url("https://r.example/v2/proxy/hub"), "https://r.example/v2/proxy/hub/a/tags/list?n=1");
        assert_eq!(url("https://r.example/v2x"), "https://r.example/v2x/v2/a/tags/list?n=1");
        assert_eq!(Endpoint::parse(0, "https://r.example/v2/proxy/hub").unwrap().project, "proxy/hub/");
    }

    #[test]
    fn authorities() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap()).map(|origin| origin.to_string());
        assert_eq!(origin("https://r.example.:443/x").as_deref(), Some("r.example"));
        assert_eq!(origin("http://r.example:443").as_deref(), Some("r.example:443"));
        assert_eq!(origin("http://[::1]").as_deref(), Some("[::1]"));
        assert_eq!(origin("ftp://r.example"), None);
    }

    #[test]
    fn redaction() {
        assert_eq!(redacted("https://u:p@r.example/?q#f"), "https://u:***@r.example/");
        assert_eq!(redacted("u:p@r.example"), "***@r.example");
        assert_eq!(redacted("r.example"), "r.example");
    }
}
