//! Names, hosts, addresses and URLs as they stand in a configuration, and the rules they must keep.

use std::net::SocketAddr;

use url::{Host, Url};

/// A refusal: what is wrong, and what would be right.
pub(super) type Refusal = (String, String);

/// The name under which Docker Hub is known to clients (`?ns=docker.io`).
pub(super) const DOCKER_HUB: &str = "docker.io";
/// The host that answers the registry API for Docker Hub.
pub(super) const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Other spellings of Docker Hub, which answer no registry API.
pub(super) const DOCKER_HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry.hub.docker.com"];

/// The longest name of a registry or an upstream, in bytes: a directory's name on every Linux filesystem.
const NAME_LEN_MAX: usize = 128;

/// Checks one path component of a repository name (OCI distribution, "Pulling manifests"):
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
pub(super) fn check_component(name: &str) -> Result<(), Refusal> {
    let remedy = || "write lower-case letters and digits, joined by single \".\", \"-\" or \"_\"".to_owned();
    if name.is_empty() {
        return Err(("is empty".to_owned(), remedy()));
    }
    if name.len() > NAME_LEN_MAX {
        return Err((format!("is longer than {NAME_LEN_MAX} bytes"), "choose a shorter name".to_owned()));
    }
    if name.contains('/') {
        return Err((
            "contains a \"/\", but is one component of a path".to_owned(),
            "leave out what follows".to_owned(),
        ));
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err((
            "contains upper-case letters".to_owned(),
            format!("write {:?}", name.to_ascii_lowercase()),
        ));
    }
    if !is_component(name) {
        return Err(("is not a component of a repository name".to_owned(), remedy()));
    }
    Ok(())
}

/// Checks a pattern of repositories' names, perhaps with an upstream's in front: what could match none is refused.
pub(super) fn check_repository_pattern(pattern: &str) -> Result<(), Refusal> {
    let refused = |problem: &str, remedy: &str| Err((problem.to_owned(), remedy.to_owned()));
    let name = pattern.rsplit_once('/').map_or(pattern, |(_, name)| name);
    if pattern.is_empty() {
        return refused("is empty", "name a repository, or leave it out");
    }
    if name.contains([':', '@']) {
        return refused("names a tag or a digest", "name the repository alone: all that it holds is meant");
    }
    let is_possible =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/:*?".contains(&byte);
    if !pattern.bytes().all(is_possible) || pattern.starts_with('/') || pattern.ends_with('/') {
        return refused("matches no repository", "write e.g. \"library/*\" or \"ghcr.io/team/app\"");
    }
    Ok(())
}

/// Checks a name as in `?ns=`: a component, with a port perhaps (`docker.io`, `registry.example:5000`).
pub(super) fn check_upstream_name(name: &str) -> Result<(), Refusal> {
    match name.rsplit_once(':') {
        Some((host, port)) => {
            check_component(host)?;
            check_port(port)
        }
        None => check_component(name),
    }
}

/// Checks `host`, `host:port`, `[address]` or `[address]:port`, in lower case.
pub(super) fn check_host(host: &str) -> Result<(), Refusal> {
    // Nothing but these can stand in a `Host` that a client sends; a "*" in particular would promise what is not done.
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte)) {
        return Err(not_a_host());
    }
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    if let Some(port) = port {
        check_port(port)?;
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err((
            "contains upper-case letters".to_owned(),
            format!("write {:?}", host.to_ascii_lowercase()),
        ));
    }
    // `Host::parse` also lower-cases, decodes and maps to ASCII: what it changes would never equal a request's Host.
    match Host::parse(name) {
        Ok(parsed) if parsed.to_string() == name => Ok(()),
        _ => Err(not_a_host()),
    }
}

/// An address to listen on.
pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, Refusal> {
    text.parse().map_err(|_| {
        let remedy = match text.rsplit_once(':') {
            Some(("" | "*", port)) if check_port(port).is_ok() => {
                format!("write \"[::]:{port}\" for every address, \"127.0.0.1:{port}\" for this machine only")
            }
            Some(("localhost", port)) if check_port(port).is_ok() => format!("write \"127.0.0.1:{port}\""),
            _ => "write ADDR:PORT, such as \"127.0.0.1:5000\" or \"[::]:5000\"".to_owned(),
        };
        ("is not an address with a port".to_owned(), remedy)
    })
}

/// The URL of a registry: scheme, host, port, and a path perhaps; Docker Hub's names become the host that answers.
pub(super) fn parse_url(text: &str) -> Result<Url, Refusal> {
    let example = || "write e.g. \"https://registry.example:5000\"".to_owned();
    let mut url = Url::parse(text).map_err(|error| {
        if text.contains("://") {
            return (format!("is not a URL ({error})"), example());
        }
        ("is not a URL".to_owned(), format!("write \"https://{}\"", redacted(text)))
    })?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(("is not an http or https URL of a host".to_owned(), example()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let remedy = "move them to `username` and `password_file`".to_owned();
        return Err(("contains credentials".to_owned(), remedy));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err((
            "has a query or a fragment".to_owned(),
            "leave out what follows \"?\" or \"#\"".to_owned(),
        ));
    }
    // "/v2" alone is what everybody may add who has read the API; before a project's name it has a meaning.
    let path = match url.path().trim_end_matches('/') {
        "/v2" => String::new(),
        path => path.to_owned(),
    };
    if path.ends_with("/v2") {
        return Err(("contains the API's own path".to_owned(), "leave out \"/v2\"".to_owned()));
    }
    url.set_path(&path);
    if url.host_str().is_some_and(|host| host == DOCKER_HUB || DOCKER_HUB_ALIASES.contains(&host)) {
        let shown = redacted(text);
        url.set_host(Some(DOCKER_HUB_HOST)).map_err(|_| (format!("{shown} is not a URL"), example()))?;
    }
    Ok(url)
}

/// `text` without what stands between `//` and `@`, where people write passwords.
pub(super) fn redacted(text: &str) -> String {
    let start = text.find("//").map_or(0, |slashes| slashes + 2);
    let (head, rest) = text.split_at(start);
    let authority_len = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    // The last "@" even beyond the first "/": a password may contain one.
    match rest.rfind('@') {
        Some(at) if at < authority_len || rest[..at].contains(':') => format!("{head}…{}", &rest[at..]),
        _ => text.to_owned(),
    }
}

/// Host and port of a URL as clients name them: the port only if it is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The name of the upstream that `--upstream URL` stands for, and its further spellings in `?ns=`.
pub(super) fn name_of(url: &Url) -> (String, Vec<String>) {
    let authority = authority(url);
    if authority == DOCKER_HUB_HOST {
        return (DOCKER_HUB.to_owned(), vec![authority]);
    }
    if check_upstream_name(&authority).is_ok() {
        return (authority, Vec::new());
    }
    // An IPv6 address, or a host name with odd characters: what clients say is an alias of a name that a directory
    // can have.
    let words: Vec<_> =
        authority.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    (format!("host-{}", words.join("-")).to_ascii_lowercase(), vec![authority])
}

/// The path component under which an upstream of this name keeps its content: the port's colon, which no component
/// may contain, becomes an underscore.
pub(super) fn directory_of(name: &str) -> String {
    name.replace(':', "_")
}

fn not_a_host() -> Refusal {
    let remedy = "write a host name or an address, with a port perhaps: \"registry.example:5000\"";
    ("is not a host".to_owned(), remedy.to_owned())
}

fn check_port(port: &str) -> Result<(), Refusal> {
    match port.parse::<u16>() {
        Ok(number) if number > 0 && !port.starts_with('+') => Ok(()),
        _ => Err((
            format!("has {port:?} for a port"),
            "write a port from 1 to 65535, or leave it out with its colon".to_owned(),
        )),
    }
}

fn is_component(name: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(is_word)
        && bytes.last().is_some_and(is_word)
        && bytes.split(is_word).all(|between| {
            matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|&byte| byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_components_with_a_port_perhaps() {
        for name in
            ["main", "docker.io", "a", "0", "a-b", "a---b", "a__b", "a_b.c", "ghcr.io", "localhost:5000"]
        {
            assert_eq!(check_upstream_name(name), Ok(()), "{name}");
        }
        for name in [
            "", ".", "..", ".a", "a.", "a..b", "a___b", "a._b", "-a", "a-", "A", "a/b", "a b", "a:", "a:0",
            ":1", "a:b", "a:+1", "a:65536", "a:1:2", "ä", "a\0",
        ] {
            assert!(check_upstream_name(name).is_err(), "{name}");
        }
        assert!(check_component(&"a".repeat(NAME_LEN_MAX)).is_ok());
        assert!(check_component(&"a".repeat(NAME_LEN_MAX + 1)).is_err());
    }

    #[test]
    fn hosts_are_what_a_host_header_holds() {
        for host in ["a", "r.example:443", "127.0.0.1", "127.0.0.1:5000", "[::1]", "[::1]:5000", "a_b.c"] {
            assert_eq!(check_host(host), Ok(()), "{host}");
        }
        for host in ["", "A", "a b", "a/b", "http://a", "a:", "a:x", "::1", "[::1", "[0:0::1]", "%41", "*.a"]
        {
            assert!(check_host(host).is_err(), "{host}");
        }
    }

    #[test]
    fn urls_are_normalised() {
        for (text, url) in [
            ("https://r.example", "https://r.example/"),
            ("https://R.Example/", "https://r.example/"),
            ("http://r.example:80", "http://r.example/"),
            ("https://r.example/prefix/", "https://r.example/prefix"),
            ("https://r.example/v2/", "https://r.example/"),
            ("https://r.example/v2/project", "https://r.example/v2/project"),
            ("https://docker.io", "https://registry-1.docker.io/"),
            ("https://index.docker.io/", "https://registry-1.docker.io/"),
        ] {
            assert_eq!(parse_url(text).unwrap().as_str(), url);
        }
        for (text, part) in [
            ("registry.example", "https://registry.example"),
            ("ftp://r.example", "http or https"),
            ("https://", "not a URL"),
            ("https://u:p@r.example", "credentials"),
            ("https://u@r.example", "credentials"),
            ("https://r.example?x", "query"),
            ("https://r.example#x", "query"),
            ("https://r.example/prefix/v2/", "/v2"),
            ("unix:/run/x", "http or https"),
            ("https://r.example:99999", "not a URL"),
        ] {
            let (problem, remedy) = parse_url(text).unwrap_err();
            assert!(problem.contains(part) || remedy.contains(part), "{text}: {problem}; {remedy}");
        }
    }

    #[test]
    fn passwords_in_urls_are_not_repeated() {
        for text in
            ["https://user:secret@h", "https://user:secret@h:99999/x", "user:secret@h", "http://u:se/cret@h"]
        {
            let shown = redacted(text);
            assert!(!shown.contains("cret"), "{shown}");
            assert!(shown.contains("@h"), "{shown}");
        }
        assert_eq!(redacted("https://h/a@b"), "https://h/a@b");
    }

    #[test]
    fn an_upstream_given_as_a_url_is_named_after_its_host() {
        for (url, name, alias) in [
            ("https://registry-1.docker.io", "docker.io", Some("registry-1.docker.io")),
            ("https://docker.io", "docker.io", Some("registry-1.docker.io")),
            ("https://ghcr.io", "ghcr.io", None),
            ("http://localhost:5001", "localhost:5001", None),
            ("http://127.0.0.1:5001", "127.0.0.1:5001", None),
            ("http://[::1]:5001", "host-1-5001", Some("[::1]:5001")),
        ] {
            let (named, aliases) = name_of(&parse_url(url).unwrap());
            assert_eq!((named.as_str(), aliases.first().map(String::as_str)), (name, alias));
            assert_eq!(check_upstream_name(&named), Ok(()));
            assert_eq!(check_component(&directory_of(&named)), Ok(()));
        }
    }

    #[test]
    fn addresses_that_are_nearly_right_get_a_fitting_remedy() {
        assert!(parse_listen("127.0.0.1:0").is_ok());
        assert!(parse_listen("[::]:5000").is_ok());
        for (text, part) in [
            (":5000", "[::]:5000"),
            ("*:5000", "[::]:5000"),
            ("localhost:5000", "127.0.0.1:5000"),
            ("5000", "ADDR"),
        ] {
            assert!(parse_listen(text).unwrap_err().1.contains(part), "{text}");
        }
    }
}
