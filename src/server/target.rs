//! The grammar of a request's target and of Host (RFC 9112 section 3.2, RFC 3986 section 3).
//!
//! Pure. What is taken here hyper's URI parser takes too.

use std::net::Ipv6Addr;

/// The four forms of RFC 9112 section 3.2.
pub(super) fn is_target(method: &[u8], target: &[u8]) -> bool {
    if method == b"CONNECT" {
        return is_authority(target) && target.last().is_some_and(u8::is_ascii_digit) && has_port(target);
    }
    match target {
        b"*" => method == b"OPTIONS",
        [b'/', ..] => is_path_and_query(target),
        _ => {
            let prefix_len = [&b"http://"[..], b"https://"]
                .iter()
                .find(|scheme| {
                    target.len() >= scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme)
                })
                .map(|scheme| scheme.len());
            prefix_len.is_some_and(|prefix_len| {
                let rest = &target[prefix_len..];
                let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
                is_authority(&rest[..end]) && is_path_and_query(&rest[end..])
            })
        }
    }
}

/// A host and perhaps a port that hyper's URI parser takes as well. User information is refused with the `@`: RFC 9110
/// section 4.2.4.
fn is_authority(authority: &[u8]) -> bool {
    is_host(authority) && http::uri::Authority::try_from(authority).is_ok()
}

/// The characters of RFC 3986 section 3.3 and 3.4, and a few that clients send all the same and that mean nothing
/// special: ``[ ] \ ^ { | }``, and in a query, where browsers leave it as it is, `` ` ``. All of them are taken by hyper's
/// URI parser.
fn is_path_and_query(bytes: &[u8]) -> bool {
    let path_len = bytes.iter().position(|byte| *byte == b'?').unwrap_or(bytes.len());
    let (path, query) = bytes.split_at(path_len);
    let is_usual = |byte: &u8| matches!(byte, b'!' | b'$'..=b';' | b'=' | b'?'..=b'_' | b'a'..=b'~');
    path.iter().all(is_usual) && query.iter().all(|byte| is_usual(byte) || *byte == b'`')
}

/// `uri-host [ ":" port ]`, not empty (RFC 9110 section 7.2, RFC 3986 section 3.2.2).
pub(super) fn is_host(value: &[u8]) -> bool {
    let (host, rest) = if value.first() == Some(&b'[') {
        let Some(end) = value.iter().position(|byte| *byte == b']') else { return false };
        let address = std::str::from_utf8(&value[1..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
        if address.is_none() {
            return false;
        }
        value.split_at(end + 1)
    } else {
        let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
        if !is_registered_name(&value[..end]) {
            return false;
        }
        value.split_at(end)
    };
    !host.is_empty() && (rest.is_empty() || is_port(&rest[1..]) && rest[0] == b':')
}

/// `port` of RFC 3986 may be empty; a number must be one that TCP has.
fn is_port(digits: &[u8]) -> bool {
    digits.is_empty()
        || digits.iter().all(u8::is_ascii_digit)
            && std::str::from_utf8(digits).is_ok_and(|text| text.parse::<u16>().is_ok())
}

fn has_port(authority: &[u8]) -> bool {
    let behind_address = authority.iter().rposition(|byte| *byte == b']').map_or(0, |at| at + 1);
    authority[behind_address..].contains(&b':')
}

fn is_registered_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let [byte, tail @ ..] = rest {
        rest = match byte {
            b'%' => match tail {
                [high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => tail,
                _ => return false,
            },
            byte if is_host_byte(*byte) => tail,
            _ => return false,
        };
    }
    !name.is_empty()
}

/// `unreserved` and `sub-delims` of RFC 3986 section 2.
const fn is_host_byte(byte: u8) -> bool {
    matches!(byte,
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~'
        | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_taken_by_the_uri_parser_too() {
        // Every byte at every place where the grammar looks at it.
        for byte in 0..=u8::MAX {
            for (before, after) in
                [("/", ""), ("/a", "b"), ("/?", "x"), ("http://a", "/"), ("http://a/", "?b")]
            {
                let target = [before.as_bytes(), &[byte], after.as_bytes()].concat();
                if is_target(b"GET", &target) {
                    let parsed = http::Uri::from_maybe_shared(bytes::Bytes::from(target.clone()));
                    assert!(parsed.is_ok(), "{:?}", target.escape_ascii().to_string());
                }
            }
        }
    }

    #[test]
    fn ports_are_told_from_addresses() {
        assert!(is_target(b"CONNECT", b"[::1]:443"));
        assert!(is_target(b"CONNECT", b"a:443"));
        assert!(!is_target(b"CONNECT", b"[::1]"));
        assert!(!is_target(b"CONNECT", b"a:"));
        assert!(!is_target(b"CONNECT", b"1"));
    }

    #[test]
    fn hosts() {
        for host in [
            "a",
            "a:",
            "a:0",
            "a:65535",
            "1.2.3.4:5000",
            "[::1]",
            "[fe80::1]:80",
            "a_b~c",
            "x%2f",
            "a!$&'()*+,;=",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a:b", "a:-1", "a:65536", "a:+1", "a b", "[::1", "[]", "[::1]x", "[::1]:x", "[v1.a]",
            "a@b", "%", "%zz",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }
}
