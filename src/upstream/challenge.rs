//! `WWW-Authenticate`: the challenges of a 401, parsed (RFC 9110 §11.6.1, RFC 6750 §3). Pure.

use http::{HeaderMap, header};

/// More challenges or parameters than this in one answer are not read.
const PARTS_MAX: usize = 64;

/// What a registry wants before it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token of this token server.
    Bearer(BearerChallenge),
    /// User name and password in every request (RFC 7617).
    Basic,
}

/// `Bearer realm="…",service="…",scope="…"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BearerChallenge {
    /// The token server's URL, as sent.
    pub(super) realm: String,
    pub(super) service: Option<String>,
    /// Scopes separated by spaces, as sent.
    pub(super) scope: Option<String>,
}

/// The challenges that we can answer, in the order of the headers. Malformed and unknown ones are left out.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| parse_line(line).into_iter().filter_map(Raw::into_challenge))
        .collect()
}

#[derive(Debug, Default)]
struct Raw {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Raw {
    fn into_challenge(mut self) -> Option<Challenge> {
        if self.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !self.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let realm = self.take("realm").filter(|realm| !realm.is_empty())?;
        let service = self.take("service");
        let scope = self.take("scope").filter(|scope| !scope.trim().is_empty());
        Some(Challenge::Bearer(BearerChallenge { realm, service, scope }))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.parameters.iter().position(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(self.parameters.swap_remove(at).1)
    }
}

/// One header line: challenges separated by commas, each a scheme and then parameters separated by commas too. A word
/// followed by `=` is a parameter of the challenge before it, any other word begins a challenge.
fn parse_line(line: &str) -> Vec<Raw> {
    let mut scanner = Scanner { rest: line };
    let mut found: Vec<Raw> = Vec::new();
    for _ in 0..PARTS_MAX {
        scanner.skip(|c| c == ',' || c.is_ascii_whitespace());
        let word = scanner.word();
        if word.is_empty() {
            // The end, or something that cannot begin a part: what was read so far counts.
            break;
        }
        let mut ahead = Scanner { rest: scanner.rest };
        ahead.skip(|c| c.is_ascii_whitespace());
        match ahead.rest.strip_prefix('=') {
            Some(after) if !found.is_empty() => {
                scanner.rest = after;
                scanner.skip(|c| c.is_ascii_whitespace());
                let Some(value) = scanner.value() else { break };
                if let Some(challenge) = found.last_mut() {
                    challenge.parameters.push((word.to_owned(), value));
                }
            }
            Some(_) => break,
            None => found.push(Raw { scheme: word.to_owned(), parameters: Vec::new() }),
        }
    }
    found
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, skipped: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(skipped);
    }

    /// A token (RFC 9110 §5.6.2), or a token68 such as Negotiate carries; without its padding, which is skipped.
    fn word(&mut self) -> &'a str {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c);
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// A quoted string with its escapes undone, or a bare value up to the next comma or space (realms come unquoted too).
    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            let end =
                self.rest.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(self.rest.len());
            let (value, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Some(value.to_owned());
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                _ => value.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::WWW_AUTHENTICATE, line.parse().unwrap());
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(BearerChallenge {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        })
    }

    #[test]
    fn the_usual_forms() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        assert_eq!(
            parse(&[hub]),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:a/b:pull,push")
            )]
        );
        assert_eq!(parse(&["Basic realm=\"x\""]), [Challenge::Basic]);
        assert_eq!(parse(&["bAsIc"]), [Challenge::Basic]);
        assert_eq!(
            parse(&["BEARER REALM=https://a/t?x=1 , Service = s"]),
            [bearer("https://a/t?x=1", Some("s"), None)]
        );
    }

    #[test]
    fn several_challenges_in_one_line_or_several() {
        let both = r#"Negotiate abc==, Basic realm="a, b", charset="UTF-8", Bearer scope="", realm="r\"\\s""#;
        assert_eq!(parse(&[both]), [Challenge::Basic, bearer("r\"\\s", None, None)]);
        assert_eq!(
            parse(&["Basic realm=x", "Bearer realm=\"r\",error=\"invalid_token\""]),
            [Challenge::Basic, bearer("r", None, None)]
        );
    }

    #[test]
    fn malformed_ones_are_left_out() {
        for line in [
            "",
            ",,",
            "=x",
            "Bearer",
            "Bearer realm=\"\"",
            "Bearer realm=\"open",
            "Bearer service=\"s\"",
            "Digest realm=x",
        ] {
            assert_eq!(parse(&[line]), [], "{line}");
        }
        // What came before the fault still counts.
        assert_eq!(parse(&["Basic, Bearer realm=\"open"]), [Challenge::Basic]);
    }

    #[test]
    fn hostile_lines_end() {
        parse(&[&"a,".repeat(5000), &"Bearer a=\"\\".repeat(500)]);
    }
}
