//! Media types of manifests, and a client's Accept header (RFC 9110 §12.5.1).

/// Docker image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, version 2 schema 1, unsigned. Legacy.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker image manifest, version 2 schema 1, signed. Legacy.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Any bytes; what blobs are served as.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// What our own requests for manifests accept: every kind, named, since some registries do not count `*/*` and
/// convert or refuse what is not named. Schema 1 comes last and with low weight: a registry that has a choice must
/// not make a legacy manifest for us.
pub const ALL_MANIFESTS_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1, \
    application/vnd.docker.distribution.manifest.v1+json;q=0.1";

/// The media type without its parameters and surrounding whitespace; as written, so to be compared without regard to
/// case. `application/json; charset=utf-8` → `application/json`.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// What a client accepts: the parsed Accept header fields of a request.
///
/// Parameters other than the weight are ignored, as registries do. An element that is no media range is skipped; a
/// weight that cannot be read counts as 1, because who names a type wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    elements: Vec<Element>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Element {
    /// In lower case: `type/subtype`, `type/*` or `*/*`.
    range: String,
    /// The weight in thousandths, 0..=1000; 0 means "not this".
    weight_milli: u16,
}

impl Accept {
    /// From the values of all Accept field lines in order; each may be a list.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Accept {
        let elements =
            lines.into_iter().flat_map(|line| split_outside_quotes(line, b',')).filter_map(Element::parse);
        Accept { elements: elements.collect() }
    }

    /// Whether nothing was asked for: no Accept field, or only empty ones. Everything is accepted then.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Whether `media_type` (without parameters) is acceptable: the most specific range that matches it has a weight
    /// above 0, or there is no Accept at all.
    pub fn accepts(&self, media_type: &str) -> bool {
        self.is_empty() || self.weight_milli(media_type) > 0
    }

    /// How much `media_type` is wanted, in thousandths: the weight of the most specific range that matches it, the
    /// highest if that one is given several times; 0 if none does.
    pub fn weight_milli(&self, media_type: &str) -> u16 {
        let best =
            self.elements.iter().filter_map(|e| Some((e.specificity(media_type)?, e.weight_milli))).max();
        best.map_or(0, |(_, weight)| weight)
    }

    /// Whether one of these media types is accepted by its full name, not merely by `*/*` or `application/*`. That is
    /// how a client is known that understands, say, OCI manifests.
    pub fn names_any(&self, media_types: &[&str]) -> bool {
        let names = |e: &Element, name: &str| e.weight_milli > 0 && e.range.eq_ignore_ascii_case(name);
        self.elements.iter().any(|e| media_types.iter().any(|name| names(e, name)))
    }
}

impl Element {
    fn parse(text: &str) -> Option<Element> {
        let mut parts = split_outside_quotes(text, b';');
        let range = match parts.next()?.trim() {
            // Seen from old Java clients ("*; q=.2").
            "*" => "*/*".to_owned(),
            range => range.to_ascii_lowercase(),
        };
        let (kind, subtype) = range.split_once('/')?;
        let word = |part: &str| !part.is_empty() && part.bytes().all(is_token);
        if !word(kind) || !word(subtype) || (kind == "*" && subtype != "*") {
            return None;
        }
        let weight = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
        });
        let weight_milli = weight.and_then(parse_weight).unwrap_or(1000);
        Some(Element { range, weight_milli })
    }

    /// 0 for `*/*`, 1 for `type/*`, 2 for the type itself; `None` if it does not match.
    fn specificity(&self, media_type: &str) -> Option<u8> {
        if self.range.eq_ignore_ascii_case(media_type) {
            return Some(2);
        }
        if self.range == "*/*" {
            return Some(0);
        }
        let prefix = self.range.strip_suffix('*')?;
        let same = media_type.get(..prefix.len())?.eq_ignore_ascii_case(prefix);
        same.then_some(1)
    }
}

/// `0` to `1` with at most three decimals (RFC 9110 §12.4.2), in thousandths.
fn parse_weight(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let milli = format!("{decimals:0<3}").parse().ok()?;
    match (whole, milli) {
        ("0" | "", milli) => Some(milli),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Splits at a separator, but not within a quoted string (RFC 9110 §5.6.4). A quote that is never closed reaches to the
/// end.
fn split_outside_quotes(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted && c == char::from(separator),
        }
        false
    })
}

/// What a fuzzer calls.
///
/// # Panics
/// If an answer contradicts another.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let accept = Accept::parse(text.lines());
    for media_type in [OCI_MANIFEST, DOCKER_LIST, OCTET_STREAM] {
        assert!(!accept.names_any(&[media_type]) || accept.accepts(media_type));
        assert!(accept.weight_milli(media_type) <= 1000);
        assert!(!accept.is_empty() || accept.accepts(media_type));
    }
    assert!(text.contains(essence(text)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accept(lines: &[&str]) -> Accept {
        Accept::parse(lines.iter().copied())
    }

    #[test]
    fn essence_drops_parameters() {
        assert_eq!(essence(" application/json ; charset=\"a;b\""), "application/json");
        assert_eq!(essence(""), "");
        assert_eq!(essence("a/b"), "a/b");
    }

    #[test]
    fn our_own_accept_names_every_manifest() {
        let ours = accept(&[ALL_MANIFESTS_ACCEPT]);
        let all =
            [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED];
        for media_type in all {
            assert!(ours.names_any(&[media_type]), "{media_type}");
        }
        assert_eq!(ours.elements.len(), all.len());
        assert_eq!(ours.weight_milli(DOCKER_SCHEMA1_SIGNED), 100);
        assert!(!ours.accepts(OCTET_STREAM));
    }

    #[test]
    fn several_lines_are_one_list() {
        let both = accept(&[OCI_INDEX, "application/json, , */*;q=0.5"]);
        assert_eq!(both, accept(&[&format!("{OCI_INDEX},application/json,*/*;q=0.5")]));
        assert!(both.names_any(&[OCI_MANIFEST, OCI_INDEX]));
        assert!(both.accepts(OCI_MANIFEST) && !both.names_any(&[OCI_MANIFEST]));
        assert_eq!((both.weight_milli(OCI_INDEX), both.weight_milli(OCI_MANIFEST)), (1000, 500));
    }

    #[test]
    fn the_most_specific_range_decides() {
        let a = accept(&["*/*;q=0, Application/*; Q=0.7 , application/xml;q=0.000"]);
        assert!(a.accepts("APPLICATION/json") && !a.accepts("application/xml") && !a.accepts("text/plain"));
        let a = accept(&["a/b;q=0, a/b;q=0.2"]);
        assert_eq!(a.weight_milli("a/b"), 200);
        assert!(!accept(&["a/b;q=0"]).names_any(&["a/b"]));
        assert!(!accept(&["application/*"]).accepts("applicationx/json"));
    }

    #[test]
    fn absent_or_odd() {
        assert!(
            accept(&[]).is_empty() && accept(&[]).accepts(OCI_INDEX) && !accept(&[]).names_any(&[OCI_INDEX])
        );
        assert!(accept(&["", " , "]).is_empty());
        assert!(accept(&["*; q=.2"]).accepts(OCI_INDEX));
        assert!(accept(&["json, /, a/, /b, */b, a/b/c, a b/c"]).is_empty());
        assert!(accept(&["a/b;q=high"]).accepts("a/b"));
        assert_eq!(accept(&["a/b;q=2;q=0"]).weight_milli("a/b"), 1000);
        let quoted = accept(&[r#"a/b;x=",\",c/d;q=0";q=0.5, e/f"#]);
        assert_eq!(
            (quoted.weight_milli("a/b"), quoted.accepts("c/d"), quoted.accepts("e/f")),
            (500, false, true)
        );
    }

    #[test]
    fn weights() {
        for (text, milli) in
            [("0", 0), ("1", 1000), ("1.0", 1000), ("1.000", 1000), ("0.5", 500), ("0.001", 1), (".25", 250)]
        {
            assert_eq!(parse_weight(text), Some(milli), "{text}");
        }
        for text in ["-1", "1.001", "2", "0.0001", "0.x", "x", "+0", "0,5"] {
            assert_eq!(parse_weight(text), None, "{text}");
        }
    }

    proptest! {
        /// Well-formed lists against a direct reading of the precedence rule.
        #[test]
        fn agrees_with_the_precedence_rule(list in proptest::collection::vec((0usize..4, 0u16..=1000), 0..6)) {
            const RANGES: [&str; 4] = ["*/*", "a/*", "a/b", "c/d"];
            let text: Vec<String> = list.iter().map(|(range, q)| match q {
                1000 => format!("{};q=1", RANGES[*range]),
                q => format!("{} ; q=0.{q:03}", RANGES[*range]),
            }).collect();
            let parsed = accept(&[&text.join(" ,\t")]);
            let max_of = |range| list.iter().filter(|(r, _)| *r == range).map(|(_, q)| *q).max();
            let expected = max_of(2).or(max_of(1)).or(max_of(0));
            prop_assert_eq!(parsed.weight_milli("a/b"), expected.unwrap_or(0));
            prop_assert_eq!(parsed.accepts("a/b"), list.is_empty() || expected.is_some_and(|q| q > 0));
            prop_assert_eq!(parsed.names_any(&["a/b"]), max_of(2).is_some_and(|q| q > 0));
        }

        #[test]
        fn survives_anything(text in "([a-z*/;=,.q01\" \\\\é]|\n){0,60}") {
            fuzz_entry(text.as_bytes());
        }
    }
}
