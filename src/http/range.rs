//! Range requests: which bytes a client asks for (RFC 9110 §14), and which it gets.
//!
//! [`parse`] reads a Range field, [`select`] resolves it against a representation's length. Whether the field counts at
//! all is decided before: only for GET, only if If-Range allows it, and only if there is exactly one such field.

use std::fmt::Write;

use thiserror::Error;

/// The most ranges that one request may ask for. Clients ask for one, sometimes a few; more is an attack or a mistake
/// (RFC 9110 §17.15), to be answered like no Range at all or with 416.
pub const MAX_RANGES: usize = 64;

/// The longest value of Content-Range: three numbers of 20 digits.
const CONTENT_RANGE_LEN_MAX: usize = 68;

/// How many bytes of a refused field an error message repeats.
const QUOTED_BYTES_MAX: usize = 100;

/// Bytes `start..start + len` of a representation. `len ≥ 1`, and the end does not overflow; [`select`] makes only such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// How many bytes; at least 1.
    pub len: u64,
}

impl ByteRange {
    /// The offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// The value of Content-Range for this part of a representation of `total` bytes: `bytes 0-99/1000` (§14.4).
    pub fn content_range(&self, total: u64) -> String {
        let mut value = String::with_capacity(CONTENT_RANGE_LEN_MAX);
        // Writing to a string does not fail.
        let _ = write!(value, "bytes {}-{}/{total}", self.start, self.end().saturating_sub(1));
        value
    }
}

/// The value of Content-Range in a 416 about a representation of `total` bytes: `bytes */1000` (§14.4).
pub fn unsatisfied_content_range(total: u64) -> String {
    format!("bytes */{total}")
}

/// Reads the Content-Range of another server's 206: the range and, unless it is `*`, the total. `None` if it is
/// malformed, of another unit, empty, or beyond its own total (§14.4).
pub fn parse_content_range(value: &[u8]) -> Option<(ByteRange, Option<u64>)> {
    let (unit, rest) = split_once(trim_ows(value), b' ')?;
    let (range, total) = split_once(rest, b'/')?;
    let (first, last) = split_once(range, b'-')?;
    let (first, last) = (number_exact(first)?, number_exact(last)?);
    let len = last.checked_add(1)?.checked_sub(first).filter(|&len| len > 0)?;
    let total = if total == b"*" { None } else { Some(number_exact(total)?) };
    let fits = unit.eq_ignore_ascii_case(b"bytes") && total.is_none_or(|total| last < total);
    fits.then_some((ByteRange { start: first, len }, total))
}

/// One element of a Range field (§14.1.1). Numbers beyond u64 saturate: no representation is that long, so they mean
/// the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-last`, both included; first ≤ last.
    FromTo(u64, u64),
    /// `first-`, to the end.
    From(u64),
    /// `-length`: the last bytes, or all if there are fewer.
    Suffix(u64),
}

impl RangeSpec {
    /// The bytes meant in a representation of `len` bytes, the end clipped; `None` if there are none.
    fn resolve(self, len: u64) -> Option<ByteRange> {
        let (start, end) = match self {
            RangeSpec::FromTo(first, last) => (first, last.saturating_add(1).min(len)),
            RangeSpec::From(first) => (first, len),
            RangeSpec::Suffix(suffix_len) => (len.saturating_sub(suffix_len), len),
        };
        (start < end).then(|| ByteRange { start, len: end - start })
    }
}

/// Reads a Range field.
///
/// `Ok(None)`: the unit is not `bytes` (in any case), and the field must be ignored (§14.2). The list is never empty
/// otherwise; empty elements and whitespace around commas are tolerated (§5.6.1.2). An error means that the field is
/// no Range at all, or asks for more than [`MAX_RANGES`]; it may be ignored or answered with 416, whichever the caller
/// prefers for each.
pub fn parse(value: &[u8]) -> Result<Option<Vec<RangeSpec>>, InvalidRange> {
    let fail = |rule| Err(InvalidRange::Syntax { input: quoted(value), rule });
    let Some((unit, set)) = split_once(trim_ows(value), b'=') else {
        return fail("it must be unit=ranges");
    };
    if unit.is_empty() || !unit.iter().all(|&byte| is_token(byte)) {
        return fail("the unit must be a token");
    }
    if !unit.eq_ignore_ascii_case(b"bytes") {
        return Ok(None);
    }
    let mut specs = Vec::new();
    for element in set.split(|&byte| byte == b',').map(trim_ows).filter(|element| !element.is_empty()) {
        if specs.len() == MAX_RANGES {
            return Err(InvalidRange::TooMany);
        }
        match parse_spec(element) {
            Ok(spec) => specs.push(spec),
            Err(rule) => return fail(rule),
        }
    }
    if specs.is_empty() { fail("it must name at least one range") } else { Ok(Some(specs)) }
}

/// What to send of a representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it, as 200.
    Whole,
    /// These parts, as 206: one plainly, several as multipart/byteranges. Never empty, never overlapping, in total never
    /// more than the representation; in the order in which they were asked for.
    Parts(Vec<ByteRange>),
    /// Nothing: 416, with [`unsatisfied_content_range`].
    Unsatisfiable,
}

/// Resolves ranges against a representation of `len` bytes.
///
/// Of several ranges those that lie beyond the end are dropped; if none is left, or `len` is 0, the answer is
/// [`Selection::Unsatisfiable`] (§14.1.2). Ranges that overlap become one, in the place of the first of them
/// (§15.3.7.2 allows it); adjacent ones stay apart. If what was asked for sums to more than the representation, overlaps
/// counted as often as they were asked for, the client gets it whole: that is cheaper for both, and stops requests that
/// ask for the same bytes many times (nginx does the same). An empty list selects all.
pub fn select(specs: &[RangeSpec], len: u64) -> Selection {
    if specs.is_empty() {
        return Selection::Whole;
    }
    let ranges: Vec<ByteRange> = specs.iter().filter_map(|spec| spec.resolve(len)).collect();
    let total: u128 = ranges.iter().map(|range| u128::from(range.len)).sum();
    match ranges.len() {
        0 => Selection::Unsatisfiable,
        _ if total > u128::from(len) => Selection::Whole,
        1 => Selection::Parts(ranges),
        _ => Selection::Parts(coalesce(&ranges)),
    }
}

/// A Range field that cannot be followed. The client's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidRange {
    /// It does not have the form of a Range field, or a range ends before it begins.
    #[error("range {input} is invalid: {rule}")]
    Syntax {
        /// The field's value, escaped, shortened and in quotes.
        input: String,
        /// What was broken.
        rule: &'static str,
    },
    /// It asks for more than [`MAX_RANGES`] ranges.
    #[error("range is invalid: it asks for more than {MAX_RANGES} ranges")]
    TooMany,
}

/// Merges ranges that share a byte, directly or through others, into the place of the first that was asked for.
fn coalesce(ranges: &[ByteRange]) -> Vec<ByteRange> {
    let mut by_start: Vec<(usize, ByteRange)> = ranges.iter().copied().enumerate().collect();
    by_start.sort_by_key(|(_, range)| range.start);
    let mut merged: Vec<(usize, ByteRange)> = Vec::with_capacity(ranges.len());
    for (place, range) in by_start {
        match merged.last_mut() {
            Some((first_place, last)) if range.start < last.end() => {
                *first_place = place.min(*first_place);
                last.len = range.end().max(last.end()) - last.start;
            }
            _ => merged.push((place, range)),
        }
    }
    merged.sort_by_key(|(place, _)| *place);
    merged.into_iter().map(|(_, range)| range).collect()
}

fn parse_spec(element: &[u8]) -> Result<RangeSpec, &'static str> {
    const FORM: &str = "a range must be first-last, first- or -length";
    let (first, last) = split_once(element, b'-').ok_or(FORM)?;
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(RangeSpec::FromTo(first, last)),
        (Some(_), Some(_)) => Err("a range must not end before it begins"),
        (Some(first), None) if last.is_empty() => Ok(RangeSpec::From(first)),
        (None, Some(suffix_len)) if first.is_empty() => Ok(RangeSpec::Suffix(suffix_len)),
        _ => Err(FORM),
    }
}

/// `1*DIGIT`, saturating.
fn number(digits: &[u8]) -> Option<u64> {
    let add = |sum: u64, digit: &u8| {
        let digit = char::from(*digit).to_digit(10)?;
        Some(sum.saturating_mul(10).saturating_add(u64::from(digit)))
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, add) }
}

/// `1*DIGIT`; `None` beyond u64.
fn number_exact(digits: &[u8]) -> Option<u64> {
    number(digits)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == separator)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// Without optional whitespace: spaces and tabs (RFC 9110 §5.6.3).
fn trim_ows(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn quoted(value: &[u8]) -> String {
    match value.get(..QUOTED_BYTES_MAX) {
        Some(head) if head.len() < value.len() => {
            format!("\"{}…\" ({} bytes)", head.escape_ascii(), value.len())
        }
        _ => format!("\"{}\"", value.escape_ascii()),
    }
}

/// What a fuzzer calls: the first eight bytes are the representation's length, the rest is the field.
///
/// # Panics
/// If a selection is outside the representation, overlaps itself, or is larger than it.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    let Some((len, value)) = data.split_first_chunk() else { return };
    let len = u64::from_le_bytes(*len);
    let _ = parse_content_range(value).map(|(range, total)| total.map(|total| range.content_range(total)));
    let Ok(Some(specs)) = parse(value) else { return };
    assert!((1..=MAX_RANGES).contains(&specs.len()));
    let Selection::Parts(parts) = select(&specs, len) else { return };
    assert!((1..=specs.len()).contains(&parts.len()));
    assert!(parts.iter().all(|part| part.len > 0 && part.end() <= len && part.start < part.end()));
    assert!(parts.iter().map(|part| u128::from(part.len)).sum::<u128>() <= u128::from(len));
    let apart = |a: &ByteRange, b: &ByteRange| a.end() <= b.start || b.end() <= a.start;
    assert!(parts.iter().enumerate().all(|(i, a)| parts[..i].iter().all(|b| apart(a, b))));
    for part in &parts {
        let written = part.content_range(len);
        assert_eq!(parse_content_range(written.as_bytes()), Some((*part, Some(len))));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::RangeSpec::{From, FromTo, Suffix};
    use super::*;

    fn specs(value: &str) -> Vec<RangeSpec> {
        parse(value.as_bytes()).expect(value).expect(value)
    }

    fn parts(value: &str, len: u64) -> Selection {
        select(&specs(value), len)
    }

    fn some(ranges: &[(u64, u64)]) -> Selection {
        Selection::Parts(ranges.iter().map(|&(start, len)| ByteRange { start, len }).collect())
    }

    #[test]
    fn reads_every_form() {
        for (value, expected) in [
            ("bytes=0-0", vec![FromTo(0, 0)]),
            ("bytes=5-", vec![From(5)]),
            ("bytes=-5", vec![Suffix(5)]),
            ("bytes=-0", vec![Suffix(0)]),
            ("BYTES=1-2,3-4", vec![FromTo(1, 2), FromTo(3, 4)]),
            (" bytes=\t1-2 ,\t, 3- ,,-4,\t", vec![FromTo(1, 2), From(3), Suffix(4)]),
            ("bytes=007-08", vec![FromTo(7, 8)]),
            ("bytes=0-18446744073709551616", vec![FromTo(0, u64::MAX)]),
            ("bytes=99999999999999999999-99999999999999999998", vec![FromTo(u64::MAX, u64::MAX)]),
            ("bytes=-99999999999999999999", vec![Suffix(u64::MAX)]),
        ] {
            assert_eq!(specs(value), expected, "{value}");
        }
    }

    #[test]
    fn ignores_other_units() {
        for value in ["lines=1-2", "bytesx=", "none=whatever", "b*ytes=1-2"] {
            assert_eq!(parse(value.as_bytes()), Ok(None), "{value}");
        }
    }

    #[test]
    fn refuses_what_is_no_range() {
        for (value, rule) in [
            ("", "unit=ranges"),
            ("bytes", "unit=ranges"),
            ("bytes 0-1", "unit=ranges"),
            ("=0-1", "token"),
            ("bytes =0-1", "token"),
            ("bytes=", "at least one"),
            ("bytes=, ,", "at least one"),
            ("bytes=-", "first-last"),
            ("bytes=5", "first-last"),
            ("bytes=a-b", "first-last"),
            ("bytes=1-2x", "first-last"),
            ("bytes=+1-2", "first-last"),
            ("bytes=1 - 2", "first-last"),
            ("bytes=1--2", "first-last"),
            ("bytes=--2", "first-last"),
            ("bytes=1-2-3", "first-last"),
            ("bytes=1-2;3-4", "first-last"),
            ("bytes=0-1,bytes=2-3", "first-last"),
            ("bytes=\u{661}-", "first-last"),
            ("bytes=2-1", "end before it begins"),
            ("bytes=0-1,2-1", "end before it begins"),
            ("bytes=99999999999999999999-5", "end before it begins"),
        ] {
            let error = parse(value.as_bytes()).expect_err(value).to_string();
            assert!(error.contains(rule), "{error}");
        }
        let long = parse(&[0xff; 5000]).unwrap_err().to_string();
        assert!(long.len() < 600 && long.contains("(5000 bytes)"), "{long}");
    }

    #[test]
    fn the_number_of_ranges_is_bounded() {
        let most = format!("bytes={}", ["1-1"; MAX_RANGES].join(","));
        assert_eq!(specs(&most).len(), MAX_RANGES);
        assert_eq!(specs(&format!("{most},,")).len(), MAX_RANGES);
        assert_eq!(parse(format!("{most},2-2").as_bytes()), Err(InvalidRange::TooMany));
    }

    #[test]
    fn selects_against_the_length() {
        for (value, len, expected) in [
            ("bytes=0-0", 10, some(&[(0, 1)])),
            ("bytes=0-9", 10, some(&[(0, 10)])),
            ("bytes=0-10", 10, some(&[(0, 10)])),
            ("bytes=0-", 10, some(&[(0, 10)])),
            ("bytes=9-", 10, some(&[(9, 1)])),
            ("bytes=9-99999999999999999999", 10, some(&[(9, 1)])),
            ("bytes=10-", 10, Selection::Unsatisfiable),
            ("bytes=10-20", 10, Selection::Unsatisfiable),
            ("bytes=-1", 10, some(&[(9, 1)])),
            ("bytes=-10", 10, some(&[(0, 10)])),
            ("bytes=-11", 10, some(&[(0, 10)])),
            ("bytes=-0", 10, Selection::Unsatisfiable),
            ("bytes=0-", 0, Selection::Unsatisfiable),
            ("bytes=-1", 0, Selection::Unsatisfiable),
            ("bytes=-0,10-,3-4", 10, some(&[(3, 2)])),
            ("bytes=-0,10-", 10, Selection::Unsatisfiable),
            ("bytes=0-18446744073709551615", u64::MAX, some(&[(0, u64::MAX)])),
        ] {
            assert_eq!(parts(value, len), expected, "{value} of {len}");
        }
        assert_eq!(select(&[], 10), Selection::Whole);
        assert_eq!(select(&[FromTo(2, 1)], 10), Selection::Unsatisfiable);
    }

    #[test]
    fn overlapping_ranges_merge_and_others_keep_their_order() {
        for (value, expected) in [
            ("bytes=8-9,0-1", some(&[(8, 2), (0, 2)])),
            ("bytes=0-4,5-9", some(&[(0, 5), (5, 5)])),
            ("bytes=0-4,4-8", some(&[(0, 9)])),
            ("bytes=6-7,0-2,2-3", some(&[(6, 2), (0, 4)])),
            ("bytes=5-6,0-0,6-7", some(&[(5, 3), (0, 1)])),
            // The middle one joins the other two, in the first one's place.
            ("bytes=4-5,9-9,1-2,2-4", some(&[(1, 5), (9, 1)])),
            ("bytes=2-5,3-4", some(&[(2, 4)])),
            ("bytes=-1,9-", some(&[(9, 1)])),
        ] {
            assert_eq!(parts(value, 10), expected, "{value}");
        }
    }

    #[test]
    fn asking_for_more_than_all_gives_the_whole() {
        assert_eq!(parts("bytes=0-4,5-9", 10), some(&[(0, 5), (5, 5)]));
        assert_eq!(parts("bytes=0-5,5-9", 10), Selection::Whole);
        assert_eq!(parts("bytes=0-,0-", 10), Selection::Whole);
        assert_eq!(parts("bytes=0-,0-", u64::MAX), Selection::Whole);
        assert_eq!(select(&[From(0); 64], u64::MAX), Selection::Whole);
    }

    #[test]
    fn content_range() {
        let range = ByteRange { start: 2, len: 3 };
        assert_eq!((range.end(), range.content_range(10).as_str()), (5, "bytes 2-4/10"));
        assert_eq!(unsatisfied_content_range(0), "bytes */0");
        assert_eq!(parse_content_range(b"bytes 2-4/10"), Some((range, Some(10))));
        assert_eq!(parse_content_range(b"Bytes 2-4/*"), Some((range, None)));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 2-4",
            "bytes 4-2/10",
            "bytes 2-10/10",
            "lines 2-4/10",
            "bytes=2-4/10",
            "bytes 2-/10",
            "bytes -4/10",
            "bytes 2-4/",
            "bytes 2-4/1 0",
            "bytes 2-+4/10",
            "bytes 1-18446744073709551615/*",
            "bytes 1-99999999999999999999/*",
            "bytes 2-4/99999999999999999999",
        ] {
            assert_eq!(parse_content_range(bad.as_bytes()), None, "{bad}");
        }
    }

    /// The grammar read with the standard library and wide numbers.
    fn naive_parse(set: &str) -> Option<Vec<RangeSpec>> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
            digits.then(|| u64::try_from(text.parse::<u128>().unwrap()).unwrap_or(u64::MAX))
        };
        let elements =
            set.split(',').map(|element| element.trim_matches([' ', '\t'])).filter(|e| !e.is_empty());
        let specs: Option<Vec<RangeSpec>> = elements
            .map(|element| match element.split('-').collect::<Vec<_>>()[..] {
                ["", suffix] => number(suffix).map(Suffix),
                [first, ""] => number(first).map(From),
                [first, last] => {
                    let (first, last) = (number(first)?, number(last)?);
                    (first <= last).then_some(FromTo(first, last))
                }
                _ => None,
            })
            .collect();
        specs.filter(|specs| !specs.is_empty())
    }

    fn any_spec() -> impl Strategy<Value = RangeSpec> {
        let number = || prop_oneof![9 => 0u64..30, 1 => Just(u64::MAX)];
        prop_oneof![
            (number(), number()).prop_map(|(a, b)| FromTo(a.min(b), a.max(b))),
            (0u64..30, 0u64..4).prop_map(|(a, more)| FromTo(a, a + more)),
            number().prop_map(From),
            number().prop_map(Suffix),
        ]
    }

    proptest! {
        #[test]
        fn parsing_agrees_with_a_naive_reading(set in "([0-9]{0,2}-[0-9]{0,2}|[0-9]{19,22}-[0-9]{19,22}|[ \t,x-]){0,5}") {
            let parsed = parse(format!("bytes={set}").as_bytes());
            prop_assert_eq!(parsed.ok().flatten(), naive_parse(&set));
        }

        /// Against sets of byte offsets.
        #[test]
        fn selection_is_the_union_of_what_was_asked_for(specs in proptest::collection::vec(any_spec(), 1..6), len in 0u64..25) {
            let asked = |spec: &RangeSpec| -> Vec<u64> {
                (0..len).filter(|&at| match *spec {
                    FromTo(first, last) => first <= at && at <= last,
                    From(first) => first <= at,
                    Suffix(suffix_len) => len - at <= suffix_len,
                }).collect()
            };
            let wanted: Vec<Vec<u64>> = specs.iter().map(asked).filter(|bytes| !bytes.is_empty()).collect();
            match select(&specs, len) {
                Selection::Unsatisfiable => prop_assert!(wanted.is_empty()),
                Selection::Whole => prop_assert!(wanted.iter().map(Vec::len).sum::<usize>() as u64 > len),
                Selection::Parts(parts) => {
                    prop_assert!(wanted.iter().map(Vec::len).sum::<usize>() as u64 <= len);
                    let mut sent: Vec<u64> = parts.iter().flat_map(|part| part.start..part.end()).collect();
                    sent.sort_unstable();
                    let mut union = wanted.concat();
                    union.sort_unstable();
                    union.dedup();
                    prop_assert_eq!(sent, union);
                    // Each part stands where the first range that it answers stood.
                    let place = |part: &ByteRange| wanted.iter().position(|bytes| part.start <= bytes[0] && bytes[0] < part.end());
                    prop_assert!(parts.is_sorted_by_key(place));
                }
            }
        }

        #[test]
        fn survives_anything(len: u64, set in "[0-9, \t=a-]{0,40}", prefix in "(bytes=|BYTES=|bytes |)") {
            fuzz_entry(&[&len.to_le_bytes(), prefix.as_bytes(), set.as_bytes()].concat());
        }
    }
}
