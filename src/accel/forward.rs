//! The fields of a request on its way to the backend, and of an answer on its way back (RFC 9110 section 7.6). No
//! I/O; what is said of a client is kept ready-made for its next request.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_SENDFILE_TYPE: HeaderName = HeaderName::from_static("x-sendfile-type");
const X_ACCEL_MAPPING: HeaderName = HeaderName::from_static("x-accel-mapping");

/// What every request says to the backend.
pub(super) struct Introduction {
    /// Host for a request that has none.
    pub(super) host: HeaderValue,
    /// X-Accel-Mapping, if the application is told what to answer with.
    pub(super) mapping: Option<HeaderValue>,
}

/// Which of the fields that matter here a message has: asked once, by a walk over all names.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of its own")]
struct Present {
    /// Any that concerns one connection only.
    hop: bool,
    connection: bool,
    chunked: bool,
    te: bool,
    expect: bool,
    /// Any that clients may not say.
    reserved: bool,
    forwarded_for: bool,
    forwarded_proto: bool,
    forwarded_host: bool,
}

impl Present {
    fn of(headers: &HeaderMap) -> Self {
        let mut present = Self::default();
        for name in headers.keys() {
            match *name {
                CONNECTION => present.connection = true,
                TRANSFER_ENCODING => present.chunked = true,
                TE => present.te = true,
                EXPECT => present.expect = true,
                UPGRADE => present.hop = true,
                _ => {
                    let text = name.as_str();
                    present.hop |= text == "keep-alive" || text == "proxy-connection";
                    if text.starts_with('x') {
                        present.reserved |= is_reserved(name);
                        present.forwarded_for |= text == "x-forwarded-for";
                        present.forwarded_proto |= text == "x-forwarded-proto";
                        present.forwarded_host |= text == "x-forwarded-host";
                    } else if text.contains('_') {
                        present.reserved |= is_reserved(name);
                    }
                }
            }
        }
        present
    }
}

/// Makes the fields of a client's request those of the request to the backend. `upgrade` is what the client would rather
/// speak, which is passed on only as far as [`may_switch`] says.
pub(super) fn request(
    headers: &mut HeaderMap,
    client: SocketAddr,
    upgrade: Option<HeaderValue>,
    introduction: &Introduction,
    clients: &Clients,
) {
    let mut present = Present::of(headers);
    let upgrade = upgrade.filter(|protocols| may_switch(headers, protocols));
    let trailers = present.te && accepts_trailers(headers);
    if present.connection || present.hop || present.chunked {
        hop_by_hop(headers);
        present = Present {
            te: present.te,
            expect: present.expect,
            chunked: present.chunked,
            ..Present::of(headers)
        };
    }
    if present.te {
        headers.remove(TE);
    }
    if present.expect {
        // The library waits for the backend before it lets the client send.
        headers.remove(EXPECT);
    }
    if present.reserved {
        let reserved: Vec<_> = headers.keys().filter(|name| is_reserved(name)).cloned().collect();
        for name in reserved {
            headers.remove(name);
        }
    }
    if present.chunked {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    match upgrade {
        Some(protocols) => {
            headers.insert(UPGRADE, protocols);
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        None if trailers => {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        None => {}
    }
    forwarded(headers, client.ip().to_canonical(), &present, clients);
    if !headers.contains_key(HOST) {
        headers.insert(HOST, introduction.host.clone());
    }
    if let Some(mapping) = &introduction.mapping {
        headers.insert(X_SENDFILE_TYPE, HeaderValue::from_static("X-Accel-Redirect"));
        headers.insert(X_ACCEL_MAPPING, mapping.clone());
    }
}

/// Makes the fields of a backend's answer those of the answer to the client.
pub(super) fn response(headers: &mut HeaderMap) {
    let present = Present::of(headers);
    if present.connection || present.hop || present.chunked {
        hop_by_hop(headers);
    }
}

/// Removes what concerns one connection only.
fn hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        // What most say, and removed anyhow.
        .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive") && !name.eq_ignore_ascii_case(b"close"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        // Without these the message would be another one.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(TE).iter().any(|codings| lists(codings, b"trailers"))
}

/// Whether a client asks to change to one of `protocols`: without the option in Connection it does not (RFC 9110 section
/// 7.8). Nor is `h2c` passed on: over HTTP/2 a client would send the application further requests with fields that nobody
/// made over, X-Accel-Mapping and X-Forwarded-For among them. Such a request is answered in HTTP/1.1.
fn may_switch(headers: &HeaderMap, protocols: &HeaderValue) -> bool {
    headers.get_all(CONNECTION).iter().any(|options| lists(options, b"upgrade")) && !lists(protocols, b"h2c")
}

/// Whether a list that is separated by commas has this member, in any case.
fn lists(value: &HeaderValue, member: &[u8]) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(member))
}

/// Whether clients may not say it: the backend would take it for our word. Application servers that give fields to the
/// application as variables make no difference between `-` and `_`.
fn is_reserved(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let begins = |prefix: &[u8]| {
        let same = |(a, b): (&u8, &u8)| a == b || (*a == b'_' && *b == b'-');
        name.len() >= prefix.len() && name.iter().zip(prefix).all(same)
    };
    begins(b"x-accel-")
        || begins(b"x-sendfile")
        || (name.contains(&b'_') && (begins(b"x-forwarded-") || begins(b"content-length")))
}

/// What is said of the clients that asked last, ready-made.
#[derive(Default)]
pub(super) struct Clients(RefCell<VecDeque<Rc<Client>>>);

/// How many of them are remembered.
const CLIENTS_MAX: usize = 8;

struct Client {
    address: IpAddr,
    host: Option<HeaderValue>,
    /// X-Forwarded-For, if there was no proxy before us.
    forwarded_for: HeaderValue,
    /// Forwarded.
    forwarded: HeaderValue,
}

impl Clients {
    fn of(&self, address: IpAddr, host: Option<&HeaderValue>) -> Rc<Client> {
        let mut known = self.0.borrow_mut();
        if let Some(client) =
            known.iter().find(|client| client.address == address && client.host.as_ref() == host)
        {
            return Rc::clone(client);
        }
        if known.len() >= CLIENTS_MAX {
            known.pop_front();
        }
        let client = Rc::new(Client::new(address, host.cloned()));
        known.push_back(Rc::clone(&client));
        client
    }
}

impl Client {
    fn new(address: IpAddr, host: Option<HeaderValue>) -> Self {
        // Digits, letters and punctuation: always a value.
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        let mut forwarded = match address {
            IpAddr::V4(address) => format!("for={address}"),
            IpAddr::V6(address) => format!("for=\"[{address}]\""),
        };
        let said = host.as_ref().and_then(|host| host.to_str().ok());
        if let Some(host) = said.filter(|host| !host.contains(['"', '\\'])) {
            // Writing to a string does not fail.
            let _ = write!(forwarded, ";host=\"{host}\"");
        }
        forwarded.push_str(";proto=http");
        Self { address, host, forwarded_for: value(address.to_string()), forwarded: value(forwarded) }
    }
}

/// Says who asked, for which host, in which scheme (RFC 7239, and what was there before it). What a proxy before us said
/// about host and scheme stays: we only see its connection.
fn forwarded(headers: &mut HeaderMap, client: IpAddr, present: &Present, clients: &Clients) {
    let client = clients.of(client, headers.get(HOST));
    if present.forwarded_for {
        let mut chain: Vec<u8> = Vec::new();
        for value in headers.get_all(X_FORWARDED_FOR) {
            chain.extend_from_slice(value.as_bytes());
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(client.forwarded_for.as_bytes());
        if let Ok(value) = HeaderValue::from_bytes(&chain) {
            headers.insert(X_FORWARDED_FOR, value);
        }
    } else {
        headers.append(X_FORWARDED_FOR, client.forwarded_for.clone());
    }
    if !present.forwarded_proto {
        headers.append(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !present.forwarded_host
        && let Some(host) = &client.host
    {
        headers.append(X_FORWARDED_HOST, host.clone());
    }
    headers.append(FORWARDED, client.forwarded.clone());
}

/// The value of Rack's X-Accel-Mapping: for each root the prefix that stands for it.
pub(super) fn mapping<'a>(locations: impl Iterator<Item = (&'a str, &'a str)>) -> Option<HeaderValue> {
    let pairs: Vec<_> = locations
        // These would separate what belongs together.
        .filter(|(root, prefix)| !root.contains(['=', ',']) && !prefix.contains(['=', ',']))
        .map(|(root, prefix)| format!("{}/={prefix}", root.trim_end_matches('/')))
        .collect();
    if pairs.is_empty() { None } else { HeaderValue::try_from(pairs.join(",")).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(lines: &[(&'static str, &'static str)], upgrade: Option<&'static str>) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let introduction = Introduction {
            host: HeaderValue::from_static("backend:1"),
            mapping: mapping([("/srv/a", "/files/"), ("/srv/=", "/odd/")].into_iter()),
        };
        let client = "[::ffff:192.0.2.1]:99".parse().unwrap();
        let clients = Clients::default();
        request(&mut headers, client, upgrade.map(HeaderValue::from_static), &introduction, &clients);
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    #[test]
    fn what_concerns_the_connection_stays_here() {
        let lines = sent(
            &[
                ("host", "app.example"),
                ("connection", "close, X-Hop, host"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("te", "trailers, deflate"),
                ("transfer-encoding", "chunked"),
                ("expect", "100-continue"),
                ("x-accel-mapping", "/=/etc/"),
                ("x_accel_redirect", "/x"),
                ("x-sendfile-type", "X-Sendfile"),
                ("x_forwarded_for", "10.0.0.1"),
                ("x_custom", "stays"),
            ],
            None,
        );
        assert_eq!(
            lines,
            [
                "connection: te",
                "forwarded: for=192.0.2.1;host=\"app.example\";proto=http",
                "host: app.example",
                "te: trailers",
                "transfer-encoding: chunked",
                "x-accel-mapping: /srv/a/=/files/",
                "x-forwarded-for: 192.0.2.1",
                "x-forwarded-host: app.example",
                "x-forwarded-proto: http",
                "x-sendfile-type: X-Accel-Redirect",
                "x_custom: stays",
            ]
        );
    }

    #[test]
    fn proxies_before_us_are_believed_about_what_we_cannot_see() {
        let lines = sent(
            &[
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-for", "10.0.0.2"),
                ("x-forwarded-proto", "https"),
                ("forwarded", "for=10.0.0.1;proto=https"),
                ("connection", "keep-alive, Upgrade"),
            ],
            Some("websocket"),
        );
        for line in [
            "connection: upgrade",
            "upgrade: websocket",
            "host: backend:1",
            "x-forwarded-for: 10.0.0.1, 10.0.0.2, 192.0.2.1",
            "x-forwarded-proto: https",
            "forwarded: for=10.0.0.1;proto=https",
            "forwarded: for=192.0.2.1;proto=http",
        ] {
            assert!(lines.contains(&line.to_owned()), "{line} in {lines:?}");
        }
    }

    #[test]
    fn other_protocols_are_asked_for_by_the_option_and_never_h2c() {
        for (connection, protocols, passes) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, UPGRADE", "foo/2, websocket", true),
            ("keep-alive", "websocket", false),
            ("x-upgrade", "websocket", false),
            ("Upgrade, HTTP2-Settings", "h2c", false),
            ("Upgrade", "websocket, H2C", false),
        ] {
            let lines = sent(&[("host", "a"), ("connection", connection)], Some(protocols));
            let asks = |line: &String| line.starts_with("upgrade:") || line.starts_with("connection:");
            let asked = lines.iter().filter(|line| asks(line)).count();
            assert_eq!(asked, if passes { 2 } else { 0 }, "{connection}; {protocols}: {lines:?}");
        }
    }
}
