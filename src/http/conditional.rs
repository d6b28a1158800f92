//! Conditional requests: whether to send, to say "not modified", or to refuse (RFC 9110 §13).
//!
//! A caller evaluates preconditions only if the answer without them would be 2xx (§13.2.1), and [`range_applies`] only
//! after [`evaluate`] said to proceed and only for a request that has a Range.

use std::time::SystemTime;

use ::http::header::{
    AsHeaderName, HeaderMap, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
};

use super::date;

/// What is known about the representation that would be sent. There is one, else preconditions would not be evaluated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Validators<'a> {
    /// The entity tag as it stands in the `ETag` field, quotes included. Strong; one that begins with `W/` is treated as
    /// the weak one it is.
    pub etag: Option<&'a str>,
    /// When the representation last changed; compared in whole seconds.
    pub last_modified: Option<SystemTime>,
}

/// The outcome of a request's preconditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Go on as if there were none.
    Proceed,
    /// 304: the client has it already.
    NotModified,
    /// 412: the client asked for no answer in this case.
    Failed,
}

/// Evaluates If-Match, If-Unmodified-Since, If-None-Match and If-Modified-Since in the order of §13.2.2.
///
/// The date fields count only if the tag field before them is absent, a date is valid and alone, and the representation
/// has a Last-Modified; If-Modified-Since only for GET and HEAD. A list of tags that is malformed anywhere matches
/// nothing, but is present. A Last-Modified later than `now` counts as `now`, as it must be sent (§8.8.2.1).
pub fn evaluate(
    method_is_get_or_head: bool,
    headers: &HeaderMap,
    validators: &Validators<'_>,
    now: SystemTime,
) -> Precondition {
    let changed_at = validators.last_modified.map(|time| date::to_second(time.min(now)));
    let changed_after = |field| Some(changed_at? > single_date(headers, field, now)?);

    let failed = if headers.contains_key(IF_MATCH) {
        !any_tag_matches(headers, IF_MATCH, validators, strong_match)
    } else {
        changed_after(IF_UNMODIFIED_SINCE) == Some(true)
    };
    if failed {
        return Precondition::Failed;
    }

    let held = if headers.contains_key(IF_NONE_MATCH) {
        any_tag_matches(headers, IF_NONE_MATCH, validators, weak_match)
    } else {
        method_is_get_or_head && changed_after(IF_MODIFIED_SINCE) == Some(false)
    };
    match (held, method_is_get_or_head) {
        (false, _) => Precondition::Proceed,
        (true, true) => Precondition::NotModified,
        (true, false) => Precondition::Failed,
    }
}

/// Whether a Range may be followed as far as If-Range is concerned (§13.1.5): there is none, or it is exactly the strong
/// `ETag`, or exactly the Last-Modified. A weak tag never matches, nor do several fields. If not, the Range is ignored and
/// the whole representation sent.
///
/// A date is a strong validator only if the representation did not change twice within its second (§8.8.2.2). Where that
/// can happen, leave `last_modified` out of `validators`.
pub fn range_applies(headers: &HeaderMap, validators: &Validators<'_>) -> bool {
    let mut values = headers.get_all(IF_RANGE).iter();
    let (value, None) = (values.next(), values.next()) else { return false };
    let Some(value) = value else { return true };
    let value = value.as_bytes().trim_ascii();
    if value.starts_with(b"\"") || value.starts_with(b"W/") {
        return match (take_tag(value), validators.etag.and_then(whole_tag)) {
            (Some((given, b"")), Some(ours)) => strong_match(given, ours),
            _ => false,
        };
    }
    let given = std::str::from_utf8(value).ok().and_then(date::parse);
    given.is_some() && given == validators.last_modified.map(date::to_second)
}

/// An entity tag (§8.8.3): what stands between the quotes, and whether `W/` stands before them.
#[derive(Clone, Copy)]
struct Tag<'a> {
    weak: bool,
    opaque: &'a [u8],
}

/// §8.8.3.2: equal and neither weak.
fn strong_match(a: Tag<'_>, b: Tag<'_>) -> bool {
    !a.weak && !b.weak && a.opaque == b.opaque
}

/// §8.8.3.2: equal, weak or not.
fn weak_match(a: Tag<'_>, b: Tag<'_>) -> bool {
    a.opaque == b.opaque
}

/// Whether the field's lines, taken together, are `*` or a well-formed list with a tag that matches ours.
fn any_tag_matches(
    headers: &HeaderMap,
    field: impl AsHeaderName,
    validators: &Validators<'_>,
    matches: fn(Tag<'_>, Tag<'_>) -> bool,
) -> bool {
    let ours = validators.etag.and_then(whole_tag);
    let mut lines = headers.get_all(field).iter().map(|line| line.as_bytes().trim_ascii()).peekable();
    let first_is_star = lines.next_if_eq(&b"*".as_slice()).is_some();
    if first_is_star {
        return lines.next().is_none();
    }
    let mut found = false;
    for line in lines {
        let mut rest = line;
        loop {
            // Empty elements are tolerated, so commas before a tag mean nothing (§5.6.1.2).
            let tag = rest.trim_ascii_start();
            if let [b',', after @ ..] = tag {
                rest = after;
                continue;
            }
            if tag.is_empty() {
                break;
            }
            let Some((tag, after)) = take_tag(tag) else { return false };
            found |= ours.is_some_and(|ours| matches(tag, ours));
            rest = after.trim_ascii_start();
            if !rest.is_empty() && !rest.starts_with(b",") {
                return false;
            }
        }
    }
    found
}

/// Takes an entity tag off the front. `etagc` is any visible character but the quote, or above ASCII: commas are allowed,
/// backslashes escape nothing (§8.8.3).
fn take_tag(text: &[u8]) -> Option<(Tag<'_>, &[u8])> {
    let (weak, text) = match text.strip_prefix(b"W/") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let text = text.strip_prefix(b"\"")?;
    let end = text.iter().position(|&byte| byte == b'"')?;
    let (opaque, rest) = text.split_at(end);
    let valid = opaque.iter().all(|&byte| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..));
    valid.then_some((Tag { weak, opaque }, &rest[1..]))
}

/// Our own tag. One that is malformed matches nothing.
fn whole_tag(text: &str) -> Option<Tag<'_>> {
    take_tag(text.as_bytes()).filter(|(_, rest)| rest.is_empty()).map(|(tag, _)| tag)
}

/// The date in a field that is no list: `None` if it is absent, comes more than once, or is no date.
fn single_date(headers: &HeaderMap, field: impl AsHeaderName, now: SystemTime) -> Option<SystemTime> {
    let mut values = headers.get_all(field).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    date::parse_at(value.to_str().ok()?, now)
}

/// What a fuzzer calls: each line is one field, the first byte says which.
///
/// # Panics
/// If an outcome is one that the method or the fields cannot have.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    const FIELDS: [::http::HeaderName; 5] =
        [IF_MATCH, IF_UNMODIFIED_SINCE, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE];
    let mut headers = HeaderMap::new();
    for line in data.split(|&byte| byte == b'\n') {
        let Some((field, value)) = line.split_first() else { continue };
        let field = FIELDS[usize::from(*field) % FIELDS.len()].clone();
        let Ok(value) = ::http::HeaderValue::from_bytes(value) else { continue };
        headers.append(field, value);
    }
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_001);
    let has = |field: ::http::HeaderName| headers.contains_key(field);
    for (etag, last_modified) in
        [(Some("\"a\""), Some(now)), (Some("W/\"a\""), None), (None, Some(now)), (None, None)]
    {
        let validators = Validators { etag, last_modified };
        let reading = evaluate(true, &headers, &validators, now);
        let writing = evaluate(false, &headers, &validators, now);
        assert_ne!(writing, Precondition::NotModified);
        if reading == Precondition::Failed {
            assert_eq!(writing, Precondition::Failed);
            assert!(has(IF_MATCH) || (has(IF_UNMODIFIED_SINCE) && last_modified.is_some()));
        }
        if reading == Precondition::NotModified {
            assert!(has(IF_NONE_MATCH) || (has(IF_MODIFIED_SINCE) && last_modified.is_some()));
        }
        let applies = range_applies(&headers, &validators);
        assert!(!applies || !has(IF_RANGE) || last_modified.is_some() || etag == Some("\"a\""));
        assert!(applies || has(IF_RANGE));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::Precondition::{Failed, NotModified, Proceed};
    use super::*;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const CHANGED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect(value));
        }
        headers
    }

    fn now() -> SystemTime {
        date::parse("Sat, 21 Nov 2026 00:00:00 GMT").unwrap()
    }

    /// Changed within the second of `CHANGED`, tagged `"a"`.
    fn validators() -> Validators<'static> {
        let changed = date::parse(CHANGED).unwrap() + Duration::from_millis(700);
        Validators { etag: Some("\"a\""), last_modified: Some(changed) }
    }

    /// The outcome for GET and for PUT.
    fn outcome(lines: &[(&'static str, &str)]) -> (Precondition, Precondition) {
        let headers = headers(lines);
        (evaluate(true, &headers, &validators(), now()), evaluate(false, &headers, &validators(), now()))
    }

    #[test]
    fn one_field() {
        for (name, value, get, put) in [
            ("if-match", "*", Proceed, Proceed),
            ("if-match", "\"a\"", Proceed, Proceed),
            ("if-match", "\"b\", \"a\"", Proceed, Proceed),
            ("if-match", "\"b\"", Failed, Failed),
            ("if-match", "W/\"a\"", Failed, Failed),
            ("if-match", "", Failed, Failed),
            ("if-none-match", "*", NotModified, Failed),
            ("if-none-match", "\"a\"", NotModified, Failed),
            ("if-none-match", "W/\"a\"", NotModified, Failed),
            ("if-none-match", ",\t\"b,\" ,,W/\"a\",", NotModified, Failed),
            ("if-none-match", "\"b\"", Proceed, Proceed),
            ("if-none-match", "\"A\"", Proceed, Proceed),
            ("if-none-match", "", Proceed, Proceed),
            ("if-unmodified-since", BEFORE, Failed, Failed),
            ("if-unmodified-since", CHANGED, Proceed, Proceed),
            ("if-unmodified-since", AFTER, Proceed, Proceed),
            ("if-unmodified-since", "yesterday", Proceed, Proceed),
            ("if-modified-since", BEFORE, Proceed, Proceed),
            ("if-modified-since", CHANGED, NotModified, Proceed),
            ("if-modified-since", AFTER, NotModified, Proceed),
            ("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT", NotModified, Proceed),
            ("if-modified-since", "yesterday", Proceed, Proceed),
        ] {
            assert_eq!(outcome(&[(name, value)]), (get, put), "{name}: {value}");
        }
        assert_eq!(outcome(&[]), (Proceed, Proceed));
    }

    #[test]
    fn a_malformed_list_matches_nothing() {
        for list in [
            "a",
            "\"a",
            "a\"",
            "\"a\" \"b\"",
            "\"a\"x",
            "\"a\", b",
            "w/\"a\"",
            "W/ \"a\"",
            "W/a",
            "*, \"a\"",
            "\"a\", *",
            "**",
            "\"a\", \"b c\"",
        ] {
            assert_eq!(outcome(&[("if-match", list)]), (Failed, Failed), "{list}");
            assert_eq!(outcome(&[("if-none-match", list)]), (Proceed, Proceed), "{list}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        for lines in [["\"b\"", "\"a\""], ["\"a\"", "\"b\""], ["", "\"a\""], ["\"b\",", ",\"a\""]] {
            let none_match = lines.map(|line| ("if-none-match", line));
            assert_eq!(outcome(&none_match), (NotModified, Failed), "{lines:?}");
        }
        for lines in [["*", "\"a\""], ["\"a\"", "*"], ["*", "*"], ["\"a\"", "b"]] {
            let none_match = lines.map(|line| ("if-none-match", line));
            assert_eq!(outcome(&none_match), (Proceed, Proceed), "{lines:?}");
        }
        for date in [BEFORE, AFTER] {
            let twice = ["if-unmodified-since", "if-modified-since"].map(|name| [(name, date), (name, date)]);
            assert_eq!(outcome(&twice.concat()), (Proceed, Proceed));
        }
    }

    #[test]
    fn tags_before_dates_and_match_before_none_match() {
        for (lines, get) in [
            ([("if-match", "\"a\""), ("if-unmodified-since", BEFORE)], Proceed),
            ([("if-match", "\"b\""), ("if-unmodified-since", AFTER)], Failed),
            ([("if-none-match", "\"a\""), ("if-modified-since", BEFORE)], NotModified),
            ([("if-none-match", "\"b\""), ("if-modified-since", AFTER)], Proceed),
            ([("if-none-match", "b"), ("if-modified-since", AFTER)], Proceed),
            ([("if-match", "\"b\""), ("if-none-match", "\"a\"")], Failed),
            ([("if-match", "\"a\""), ("if-none-match", "\"a\"")], NotModified),
            ([("if-match", "\"a\""), ("if-modified-since", CHANGED)], NotModified),
            ([("if-unmodified-since", BEFORE), ("if-none-match", "\"a\"")], Failed),
            ([("if-unmodified-since", CHANGED), ("if-modified-since", CHANGED)], NotModified),
        ] {
            assert_eq!(outcome(&lines).0, get, "{lines:?}");
        }
    }

    #[test]
    fn without_validators() {
        let nothing = Validators::default();
        for (name, value, get) in [
            ("if-match", "\"a\"", Failed),
            ("if-match", "*", Proceed),
            ("if-none-match", "\"a\"", Proceed),
            ("if-none-match", "*", NotModified),
            ("if-unmodified-since", BEFORE, Proceed),
            ("if-modified-since", AFTER, Proceed),
        ] {
            assert_eq!(evaluate(true, &headers(&[(name, value)]), &nothing, now()), get, "{name}: {value}");
        }
        let malformed = Validators { etag: Some("a"), last_modified: None };
        assert_eq!(evaluate(true, &headers(&[("if-none-match", "a")]), &malformed, now()), Proceed);
    }

    #[test]
    fn a_file_from_the_future_counts_as_changed_now() {
        let future = Validators { etag: None, last_modified: Some(now() + Duration::from_hours(1)) };
        let since = |time| headers(&[("if-modified-since", &date::format(time))]);
        assert_eq!(evaluate(true, &since(now()), &future, now()), NotModified);
        assert_eq!(evaluate(true, &since(now() - Duration::from_secs(1)), &future, now()), Proceed);
    }

    #[test]
    fn if_range() {
        for (value, applies) in [
            ("\"a\"", true),
            ("\"b\"", false),
            ("W/\"a\"", false),
            ("\"a\", \"b\"", false),
            ("*", false),
            ("a", false),
            ("\"a", false),
            ("", false),
            (CHANGED, true),
            (BEFORE, false),
            (AFTER, false),
            ("yesterday", false),
        ] {
            assert_eq!(range_applies(&headers(&[("if-range", value)]), &validators()), applies, "{value}");
        }
        assert!(range_applies(&headers(&[]), &validators()));
        assert!(!range_applies(&headers(&[("if-range", "\"a\""), ("if-range", "\"a\"")]), &validators()));
        let weak = Validators { etag: Some("W/\"a\""), last_modified: None };
        for value in ["W/\"a\"", "\"a\"", CHANGED, "yesterday"] {
            assert!(!range_applies(&headers(&[("if-range", value)]), &weak), "{value}");
        }
    }

    proptest! {
        /// Lists built from known tags against a comparison of those tags.
        #[test]
        fn lists_agree_with_their_tags(
            tags in proptest::collection::vec((any::<bool>(), prop_oneof!["[a,b/W ]{0,2}", Just("\u{e9}".to_owned())]), 0..5),
            separator in "[ \t]{0,2},[ \t,]{0,3}",
            split in 0usize..5,
        ) {
            let written: Vec<String> =
                tags.iter().map(|(weak, tag)| format!("{}\"{tag}\"", if *weak { "W/" } else { "" })).collect();
            let (one, two) = written.split_at(split.min(written.len()));
            let valid = tags.iter().all(|(_, tag)| !tag.contains(' '));
            let mut map = HeaderMap::new();
            for line in [one, two] {
                map.append("if-match", ::http::HeaderValue::from_bytes(line.join(&separator).as_bytes()).unwrap());
            }
            let expected = valid && tags.iter().any(|(weak, tag)| !weak && tag == "a");
            prop_assert_eq!(evaluate(true, &map, &validators(), now()) == Proceed, expected);
            let lines = map.remove("if-match").into_iter();
            prop_assert_eq!(lines.count(), 1);

            let mut map = HeaderMap::new();
            for line in [one, two] {
                map.append("if-none-match", ::http::HeaderValue::from_bytes(line.join(&separator).as_bytes()).unwrap());
            }
            let expected = valid && tags.iter().any(|(_, tag)| tag == "a");
            prop_assert_eq!(evaluate(true, &map, &validators(), now()) == NotModified, expected);
        }

        #[test]
        fn survives_anything(data in "([\u{0}-\u{4}](W/|\"|a|\\*|,| |Sun, 06 Nov 1994 08:49:37 GMT|é){0,6}\n){0,4}") {
            fuzz_entry(data.as_bytes());
        }
    }
}
