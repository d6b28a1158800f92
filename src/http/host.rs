//! Which of several places a request's Host selects.

use ::http::HeaderMap;
use ::http::header::HOST;

/// The first of `places` whose selector is the request's Host: a host in lower case, with a port or, meaning any, without.
pub fn select<'a, T>(places: &'a [(String, T)], headers: &HeaderMap) -> Option<&'a T> {
    if places.is_empty() {
        return None;
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let name = without_port(&host);
    let selected = places.iter().find(|(selector, _)| *selector == host || selector == name);
    selected.map(|(_, place)| place)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // `[::1]` has colons and no port.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_select_with_and_without_their_port() {
        let places = [("a.example".to_owned(), 1), ("b.example:81".to_owned(), 2), ("[::1]".to_owned(), 3)];
        for (host, expected) in [
            ("a.example", Some(1)),
            ("A.Example:8080", Some(1)),
            ("b.example:81", Some(2)),
            ("b.example", None),
            ("[::1]:80", Some(3)),
            ("[::1]", Some(3)),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            assert_eq!(select(&places, &headers).copied(), expected, "{host}");
        }
    }
}
