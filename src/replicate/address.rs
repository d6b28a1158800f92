//! Addresses of registries as people, scripts and files write them, and which of them mean this machine's own.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;
use url::{Host, Url};

/// Longest wait for the addresses of a name.
pub(super) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one name that are looked at.
pub(super) const ADDRESSES_MAX: usize = 256;

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// As it is.
    Http,
    /// Through TLS.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl std::str::FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            _ => {
                let shown: String = text.chars().take(20).collect();
                Err(format!("{shown:?} is no scheme; write \"http\" or \"https\""))
            }
        }
    }
}

/// What an address means that does not say everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// The scheme; `None`: https, or http if the host is this machine by its name (`localhost`, 127.0.0.1, …).
    pub scheme: Option<Scheme>,
    /// The port of an address that has neither port nor scheme.
    pub port: u16,
}

/// Where a registry is: scheme, host, port, and a path perhaps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    url: Url,
    port: u16,
}

impl Address {
    /// Reads `HOST`, `HOST:PORT`, an IPv6 address with or without brackets, or a URL. The error says what is wrong and
    /// repeats no password.
    pub fn parse(text: &str, defaults: Defaults) -> Result<Self, String> {
        const EXPECTED: &str = "expected HOST[:PORT], http://… or https://…";
        let text = text.trim();
        if text.is_empty() {
            return Err(format!("it is empty; {EXPECTED}"));
        }
        let url =
            if text.contains("://") { Url::parse(text) } else { Url::parse(&completed(text, defaults)) };
        let url = url.map_err(|error| format!("{error}; {EXPECTED}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(EXPECTED.to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it contains credentials; give them by their own options".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("it has a query or a fragment; {EXPECTED}"));
        }
        match (url.host(), url.port_or_known_default()) {
            (Some(_), Some(port)) if port > 0 => Ok(Self { url, port }),
            _ => Err(EXPECTED.to_owned()),
        }
    }

    /// The registry at an address of the network.
    pub(super) fn of_ip(ip: IpAddr, port: u16, scheme: Scheme) -> Result<Self, String> {
        let defaults = Defaults { scheme: Some(scheme), port };
        Self::parse(&SocketAddr::new(ip.to_canonical(), port).to_string(), defaults)
    }

    /// The URL.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The port, which may be the scheme's own.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is spoken to through TLS.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Whether the host is this machine by the way it is written.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.url)
    }

    /// The host as it is compared: lower case, without the dot that ends a full name.
    fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default().trim_end_matches('.')
    }

    fn ip(&self) -> Option<IpAddr> {
        match self.url.host()? {
            Host::Ipv4(ip) => Some(ip.into()),
            Host::Ipv6(ip) => Some(IpAddr::from(ip).to_canonical()),
            Host::Domain(_) => None,
        }
    }
}

/// `host:port`, the port always.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.host(), self.port, self.url.path().trim_end_matches('/'))
    }
}

/// Docker Hub's names: everybody writes them without port and scheme, and they have one of each.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The URL that `HOST[:PORT][/PATH]` stands for.
fn completed(text: &str, defaults: Defaults) -> String {
    if text.parse::<Ipv6Addr>().is_ok() {
        return completed(&format!("[{text}]"), defaults);
    }
    if DOCKER_HUB.contains(&text) {
        return format!("https://{text}");
    }
    let (authority, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let has_port = authority.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
    let port = if has_port { String::new() } else { format!(":{}", defaults.port) };
    let https = format!("https://{authority}{port}{path}");
    let scheme = defaults.scheme.unwrap_or_else(|| match Url::parse(&https) {
        Ok(url) if is_loopback(&url) => Scheme::Http,
        _ => Scheme::Https,
    });
    format!("{}{}", scheme.as_str(), &https["https".len()..])
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).to_canonical().is_loopback(),
        None => false,
    }
}

/// The registries that are never a source: the target itself.
///
/// An address means one of them if it has the same port and either the same host, or an address of the network in common;
/// all addresses of this machine count as one. Two names of one address are two registries all the same if both are spoken
/// to through TLS, which tells them apart by name.
#[derive(Clone, Debug, Default)]
pub struct Locals(Vec<Address>);

impl Locals {
    /// The target, and what else is known of where it can be reached.
    pub fn new(addresses: Vec<Address>) -> Self {
        Self(addresses)
    }

    /// Those of the addresses that are not local, in their order. Names are resolved, each once and all at once; one that
    /// cannot be is not local.
    pub(super) async fn without(&self, mut addresses: Vec<Address>) -> Vec<Address> {
        let ports: Vec<_> = self.0.iter().map(Address::port).collect();
        let suspects = addresses.iter().filter(|address| ports.contains(&address.port));
        let mut places = HashMap::new();
        let asked =
            suspects.chain(&self.0).map(|address| async move { (address.clone(), places_of(address).await) });
        for (address, found) in futures_util::future::join_all(asked).await {
            places.insert(address, found);
        }
        let none = Vec::new();
        let of = |address: &Address| places.get(address).unwrap_or(&none);
        addresses.retain(|address| {
            !self.0.iter().any(|local| {
                let both_by_name =
                    address.is_https() && local.is_https() && address.ip().is_none() && local.ip().is_none();
                address.port == local.port
                    && (address.host() == local.host()
                        || !both_by_name && of(address).iter().any(|place| of(local).contains(place)))
            })
        });
        addresses
    }
}

/// Where on the network something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On this machine, at whichever of its addresses.
    Here,
    There(IpAddr),
}

async fn places_of(address: &Address) -> Vec<Place> {
    let ips = match address.ip() {
        Some(ip) => vec![ip],
        None => resolve(address.host(), address.port).await.unwrap_or_default(),
    };
    ips.into_iter().map(|ip| if is_of_this_machine(ip) { Place::Here } else { Place::There(ip) }).collect()
}

/// The addresses of a name by the system's resolver, sorted, each once; at least one.
pub(super) async fn resolve(name: &str, port: u16) -> Result<Vec<IpAddr>, String> {
    let found = match timeout(RESOLVE_TIMEOUT, lookup_host((name, port))).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(format!("cannot resolve {name}: {error}")),
        Err(_) => return Err(format!("cannot resolve {name}: no answer within {RESOLVE_TIMEOUT:?}")),
    };
    let mut ips: Vec<_> = found.map(|address| address.ip().to_canonical()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips.truncate(ADDRESSES_MAX);
    if ips.is_empty() { Err(format!("{name} has no address")) } else { Ok(ips) }
}

/// Whether an address is one of this machine's. Sends nothing: a datagram socket that is connected to an address of the
/// machine itself gets that address as its own.
fn is_of_this_machine(ip: IpAddr) -> bool {
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The port means nothing, but must be one.
    let own = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    own.is_ok_and(|own| own.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that no resolver needs to ask anybody about: its label is too long.
    const UNKNOWN: &str = "a-name-that-is-longer-than-any-label-of-the-domain-name-system-may-be.example";
    const PLAIN: Defaults = Defaults { scheme: Some(Scheme::Http), port: 5000 };
    const GUESSED: Defaults = Defaults { scheme: None, port: 5000 };

    fn address(text: &str) -> Address {
        Address::parse(text, PLAIN).expect(text)
    }

    #[test]
    fn what_is_not_said_is_completed() {
        for (text, defaults, expected) in [
            ("r.example", PLAIN, "http://r.example:5000/"),
            ("r.example", GUESSED, "https://r.example:5000/"),
            ("r.example:443", GUESSED, "https://r.example/"),
            ("r.example:80", PLAIN, "http://r.example/"),
            ("http://r.example", GUESSED, "http://r.example/"),
            ("https://R.example/prefix/", PLAIN, "https://r.example/prefix/"),
            ("r.example/prefix", PLAIN, "http://r.example:5000/prefix"),
            ("localhost", GUESSED, "http://localhost:5000/"),
            ("127.0.0.2:5001", GUESSED, "http://127.0.0.2:5001/"),
            ("::1", GUESSED, "http://[::1]:5000/"),
            ("::ffff:127.0.0.1", GUESSED, "http://[::ffff:7f00:1]:5000/"),
            ("2001:db8::1", PLAIN, "http://[2001:db8::1]:5000/"),
            ("[2001:db8::1]:5001", PLAIN, "http://[2001:db8::1]:5001/"),
            ("[2001:db8::1]", PLAIN, "http://[2001:db8::1]:5000/"),
            ("docker.io", PLAIN, "https://docker.io/"),
        ] {
            assert_eq!(Address::parse(text, defaults).expect(text).url().as_str(), expected, "{text}");
        }
        assert_eq!(address("r.example:443").to_string(), "r.example:443");
        assert_eq!(address("https://r.example/p/").to_string(), "r.example:443/p");
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_password() {
        for text in [
            "",
            " ",
            "a b",
            "ftp://a",
            "http://",
            "host:port",
            "host:0",
            "u:secret@h",
            "http://u:secret@h",
            "http://h?q=secret",
            "h#secret",
        ] {
            let error = Address::parse(text, PLAIN).expect_err(text);
            assert!(!error.contains("secret"), "{error}");
        }
    }

    async fn is_local(locals: &[&str], text: &str) -> bool {
        let locals = Locals::new(locals.iter().map(|text| address(text)).collect());
        locals.without(vec![address(text)]).await.is_empty()
    }

    #[tokio::test]
    async fn this_machine_is_local_however_it_is_spelled() {
        for text in [
            "localhost:5000",
            "127.0.0.1",
            "127.9.9.9:5000",
            "::1",
            "[::1]:5000",
            "::ffff:127.0.0.1",
            "0.0.0.0:5000",
            "LOCALHOST.:5000",
            "http://localhost:5000/",
        ] {
            assert!(is_local(&["localhost:5000"], text).await, "{text}");
            assert!(is_local(&["0.0.0.0:5000"], text).await, "{text}");
        }
        for text in ["localhost:5001", "192.0.2.1:5000", &format!("{UNKNOWN}:5000")] {
            assert!(!is_local(&["localhost:5000"], text).await, "{text}");
        }
        assert!(!is_local(&[], "localhost:5000").await);
    }

    #[tokio::test]
    async fn another_machine_is_local_by_name_and_address() {
        assert!(is_local(&["192.0.2.1:5000"], "192.0.2.1").await);
        assert!(is_local(&["192.0.2.1:5000"], "::ffff:192.0.2.1").await);
        assert!(is_local(&[&format!("{UNKNOWN}:5000")], &format!("{}.:5000", UNKNOWN.to_uppercase())).await);
        assert!(!is_local(&["192.0.2.1:5000"], "localhost:5000").await, "that is not the target");
    }

    #[tokio::test]
    async fn names_at_one_address_differ_through_tls() {
        let locals = Locals::new(vec![address("https://a.localhost:5000")]);
        // glibc resolves no such names without a resolver that does: the rule needs names that resolve.
        let same = vec![address("https://localhost:5000"), address("https://127.0.0.1:5000")];
        let left = locals.without(same.clone()).await;
        assert!(left.contains(&same[0]), "another name through TLS is another registry");
    }

    #[test]
    fn own_addresses_are_known() {
        assert!(is_of_this_machine("127.0.0.1".parse().unwrap()));
        assert!(is_of_this_machine("::1".parse().unwrap()));
        assert!(!is_of_this_machine("192.0.2.1".parse().unwrap()));
        assert!(!is_of_this_machine("2001:db8::1".parse().unwrap()));
    }
}
