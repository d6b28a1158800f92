//! Versions in tags, and ranges of them: pure.
//!
//! Tags are looser than Semantic Versioning: `v1.2.3`, `1.2`, `1.2.3-alpine`. A tag is a version if it is one to three
//! numbers joined by dots, after a `v` perhaps, before a suffix perhaps that begins with `-` or `_`. Missing numbers are 0.
//!
//! | suffix | is | a range takes it |
//! |---|---|---|
//! | `-rc1`, `-beta.2`, `-dev`, `-b3` … (the words of `PRE_RELEASE`) | a pre-release | if it names a pre-release of the same version itself, as in Semantic Versioning |
//! | anything else: `-alpine`, `-1`, `_rc1` (build metadata as helm writes it) | a variant of the version | whenever it takes the version |
//!
//! Of one version, pre-releases come first, then variants, then the plain tag; two of a kind by their text, in which
//! numbers count as numbers (`rc9` before `rc10`).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use semver::{BuildMetadata, Prerelease, VersionReq};

/// Words that begin the suffix of a pre-release, in lower case.
const PRE_RELEASE: [&str; 14] = [
    "alpha",
    "beta",
    "canary",
    "cr",
    "dev",
    "ea",
    "insiders",
    "milestone",
    "next",
    "nightly",
    "pre",
    "preview",
    "rc",
    "snapshot",
];
/// Letters that do so if a number follows them.
const PRE_RELEASE_LETTERS: [&str; 4] = ["a", "b", "m", "p"];
/// The longest range, in bytes: what is longer is no range that a person wrote.
const RANGE_BYTES_MAX: usize = 1000;

/// A tag that is a version. Ordered from old to new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    numbers: [u64; 3],
    /// How many of them are written.
    written: usize,
    kind: Kind,
    /// Without the character in front.
    suffix: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    PreRelease,
    Variant,
    Plain,
}

impl<'a> Version<'a> {
    /// The version that a tag is, if it is one.
    pub fn of(tag: &'a str) -> Option<Self> {
        let text = tag.strip_prefix(['v', 'V']).unwrap_or(tag);
        let (numbers_text, suffix) = match text.find(['-', '_']) {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        let mut numbers = [0; 3];
        let mut written = 0;
        for part in numbers_text.split('.') {
            let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            *numbers.get_mut(written)? = part.parse().ok().filter(|_| is_number)?;
            written += 1;
        }
        let is_dashed = text[numbers_text.len()..].starts_with('-');
        let kind = match suffix {
            None => Kind::Plain,
            Some(suffix) if is_dashed && is_pre_release(suffix) => Kind::PreRelease,
            Some(_) => Kind::Variant,
        };
        Some(Self { numbers, written, kind, suffix: suffix.unwrap_or_default() })
    }

    fn semantic(&self) -> semver::Version {
        let [major, minor, patch] = self.numbers;
        let pre = if self.kind == Kind::PreRelease { identifiers(self.suffix) } else { Prerelease::EMPTY };
        semver::Version { major, minor, patch, pre, build: BuildMetadata::EMPTY }
    }
}

impl Ord for Version<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let (own, others) =
            ((self.numbers, self.kind, self.written), (other.numbers, other.kind, other.written));
        let by_numbers = (own.0, own.1).cmp(&(others.0, others.1));
        by_numbers.then_with(|| natural(self.suffix, other.suffix)).then(own.2.cmp(&others.2))
    }
}

impl PartialOrd for Version<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Whether a suffix is that of a pre-release by its first word.
fn is_pre_release(suffix: &str) -> bool {
    let letters = suffix.bytes().take_while(u8::is_ascii_alphabetic).count();
    let word = suffix[..letters].to_ascii_lowercase();
    PRE_RELEASE.contains(&word.as_str())
        || PRE_RELEASE_LETTERS.contains(&word.as_str())
            && suffix[letters..].starts_with(|c: char| c.is_ascii_digit())
}

/// The suffix in Semantic Versioning's form: no underscore, no empty identifier, no leading zero.
fn identifiers(suffix: &str) -> Prerelease {
    let parts = suffix.split('.').filter(|part| !part.is_empty()).map(|part| {
        let part = part.replace('_', "-");
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return part;
        }
        let digits = part.trim_start_matches('0');
        if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
    });
    // What a tag may hold is then right; the suffix of a pre-release begins with a letter, so that it is not empty.
    Prerelease::new(&parts.collect::<Vec<_>>().join(".")).unwrap_or(Prerelease::EMPTY)
}

/// Compares texts in which runs of digits count as numbers.
pub fn natural(left: &str, right: &str) -> Ordering {
    let (mut a, mut b) = (left.as_bytes(), right.as_bytes());
    loop {
        match (a, b) {
            ([], []) => return left.cmp(right),
            ([], _) => return Ordering::Less,
            (_, []) => return Ordering::Greater,
            ([x, ..], [y, ..]) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (number_a, number_b) = (digits(&mut a), digits(&mut b));
                match (number_a.len(), number_a).cmp(&(number_b.len(), number_b)) {
                    Ordering::Equal => {}
                    unequal => return unequal,
                }
            }
            ([x, rest_a @ ..], [y, rest_b @ ..]) => {
                if x != y {
                    return x.cmp(y);
                }
                (a, b) = (rest_a, rest_b);
            }
        }
    }
}

/// Takes the digits that a text begins with, and gives them without leading zeros.
fn digits<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let (number, rest) = text.split_at(text.iter().take_while(|byte| byte.is_ascii_digit()).count());
    *text = rest;
    &number[number.iter().take_while(|byte| **byte == b'0').count()..]
}

/// Which versions are wanted: comparators such as `>=1.2`, `<2`, `^1.4`, `~1.4.2`, `1.x`, all of which must hold, joined by
/// spaces or commas; `||` between alternatives. A version alone means what begins with it: `1.2` is `1.2.x`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    text: String,
    alternatives: Vec<VersionReq>,
}

impl Range {
    /// Whether a version is wanted.
    pub fn takes(&self, version: &Version<'_>) -> bool {
        let version = version.semantic();
        self.alternatives.iter().any(|range| range.matches(&version))
    }
}

impl FromStr for Range {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let fail = |why: String| InvalidRange { text: text.chars().take(100).collect(), why };
        if text.len() > RANGE_BYTES_MAX {
            return Err(fail(format!("it is longer than {RANGE_BYTES_MAX} bytes")));
        }
        let alternatives = text.split("||").map(|one| {
            let comparators = comparators(one);
            if comparators.is_empty() {
                return Err(fail("nothing is compared".to_owned()));
            }
            VersionReq::parse(&comparators.join(", ")).map_err(|error| fail(error.to_string()))
        });
        Ok(Self { alternatives: alternatives.collect::<Result<_, _>>()?, text: text.to_owned() })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The comparators of one alternative in the form that the library reads.
fn comparators(text: &str) -> Vec<String> {
    let mut comparators = Vec::new();
    let mut operator = String::new();
    for word in text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty()) {
        let version = word.trim_start_matches(['<', '>', '=', '^', '~']);
        operator.push_str(&word[..word.len() - version.len()]);
        if version.is_empty() {
            continue;
        }
        let is_wild = version.contains(['*', 'x', 'X']) && !version.contains('-');
        let default = if is_wild { "" } else { "=" };
        let shown = if operator.is_empty() { default } else { operator.as_str() };
        comparators.push(format!("{shown}{}", version.strip_prefix(['v', 'V']).unwrap_or(version)));
        operator.clear();
    }
    if !operator.is_empty() {
        comparators.push(operator);
    }
    comparators
}

/// A text that is no range of versions. The fault of whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no range of versions: {why}; write e.g. \">=1.2 <2\" or \"1.4.x || ^2.1\"")]
pub struct InvalidRange {
    text: String,
    why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_version() {
        for tag in [
            "1",
            "v1",
            "1.2",
            "1.2.3",
            "v1.2.3",
            "1.2.3-rc1",
            "1.2.3-alpine",
            "2024.01.02",
            "1.2.3_b.4",
            "1-",
        ] {
            assert!(Version::of(tag).is_some(), "{tag}");
        }
        for tag in [
            "latest",
            "v",
            "1.",
            ".1",
            "1..2",
            "1.2.3.4",
            "1.2.3rc1",
            "vv1",
            "main-1.2",
            "+1",
            "99999999999999999999",
        ] {
            assert!(Version::of(tag).is_none(), "{tag}");
        }
    }

    #[test]
    fn from_old_to_new() {
        let sorted = [
            "0.9",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc9",
            "1.0.0-rc10",
            "1.0.0-1",
            "1.0.0-10",
            "1.0.0-alpine",
            "1.0",
            "v1.0.0",
            "1.0.1-rc1",
            "1.0.1",
            "1.9",
            "1.10",
            "v2",
            "20240101",
        ];
        for pair in sorted.windows(2) {
            let versions = [pair[0], pair[1]].map(|tag| Version::of(tag).expect(tag));
            assert_eq!(versions[0].cmp(&versions[1]), Ordering::Less, "{pair:?}");
        }
    }

    #[test]
    fn ranges_take_versions() {
        let cases = [
            (">=1.2", "1.2.0 v1.2 1.3 2 1.2.3-alpine 1.3.0_b1", "1.1.9 1.2.0-rc1 1.3.0-rc1 latest"),
            (">=1.2 <2", "1.2 1.99.1", "2 2.0.0-alpine 1.1"),
            (">= 1.2, < 2", "1.2 1.99.1", "2 1.1"),
            ("1.2", "1.2 1.2.9", "1.3 1.1 2.2"),
            ("v1.2.3", "1.2.3 v1.2.3 1.2.3-alpine", "1.2.4 1.2.3-rc1"),
            ("1.x", "1 1.9", "2 0.9"),
            ("1.2.*", "1.2.7", "1.3"),
            ("^1.4", "1.4 1.9", "2 1.3"),
            ("~1.4.2", "1.4.9", "1.5 1.4.1"),
            ("1.4.x || ^2.1", "1.4.0 2.2", "1.5 2.0 3"),
            (">=1.2.0-rc1", "1.2.0-rc1 1.2.0-rc2 1.2.0 1.3", "1.2.0-beta 1.3.0-rc1 1.1"),
            ("*", "1 0.1", "latest 1.0.0-rc1"),
        ];
        for (range, taken, left) in cases {
            let parsed: Range = range.parse().expect(range);
            let takes = |tag: &str| Version::of(tag).is_some_and(|version| parsed.takes(&version));
            for tag in taken.split(' ') {
                assert!(takes(tag), "{range} takes {tag}");
            }
            for tag in left.split(' ') {
                assert!(!takes(tag), "{range} leaves {tag}");
            }
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in
            ["", " ", "||", "1.2 ||", "latest", ">=", ">=1.2 <", "1.2 - 1.4", "!=1", &"1 ".repeat(501)]
        {
            let error = text.parse::<Range>().expect_err(text).to_string();
            assert!(error.contains("write e.g."), "{error}");
        }
    }

    #[test]
    fn numbers_in_texts_count_as_numbers() {
        for (left, right, expected) in [
            ("a9", "a10", Ordering::Less),
            ("a010", "a9", Ordering::Greater),
            ("a1", "a01", Ordering::Greater),
            ("a", "a", Ordering::Equal),
            ("a", "a1", Ordering::Less),
            ("nightly-20240102", "nightly-20231231", Ordering::Greater),
        ] {
            assert_eq!(natural(left, right), expected, "{left} {right}");
        }
    }
}
