//! Names of repositories and tags, and the reference part of a manifest's URL (OCI distribution specification 1.1,
//! "Pulling manifests", which gives both grammars).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::digest::{Digest, InvalidDigest};
use super::quoted;

/// The longest repository name, in characters, which are all ASCII. The specification leaves the limit to the registry
/// and tells clients to expect 255; that is also the longest file name on Linux filesystems.
pub const REPOSITORY_NAME_LEN_MAX: usize = 255;

/// The longest tag, in characters, which are all ASCII.
pub const TAG_LEN_MAX: usize = 128;

/// The name of a repository: components of lower-case letters and digits, separated inside by one `.`, one or two `_`
/// or any number of `-`, joined by `/`; at most [`REPOSITORY_NAME_LEN_MAX`] characters.
///
/// Every component begins with a letter or digit, so a repository cannot be mistaken for `_layers`, `_manifests` or
/// `_uploads` on disk. Cloning shares the text. Nothing is added or normalised: `library/` is the caller's business.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as text that shares its memory.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// The parts between the slashes; at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(input: &str) -> Result<RepositoryName, InvalidName> {
        let fail = |rule| Err(InvalidName { input: quoted(input), rule });
        if input.len() > REPOSITORY_NAME_LEN_MAX {
            return fail("it must have at most 255 characters");
        }
        match input.split('/').try_for_each(check_component) {
            Ok(()) => Ok(RepositoryName(input.into())),
            Err(rule) => fail(rule),
        }
    }
}

/// A tag: a letter, digit or `_`, then at most 127 of those, `.` and `-`. Cloning shares the text.
///
/// It cannot begin with `.`, so it is never `.` or `..` on disk, and it holds no `:`, so it is never taken for a digest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(input: &str) -> Result<Tag, InvalidTag> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let rule = match input.as_bytes() {
            [] => "it must not be empty",
            [first, ..] if !word(*first) => "it must begin with a letter, a digit or _",
            [_, rest @ ..] if !rest.iter().all(|&byte| word(byte) || byte == b'.' || byte == b'-') => {
                "it may hold only letters, digits, _, . and -"
            }
            all if all.len() > TAG_LEN_MAX => "it must have at most 128 characters",
            _ => return Ok(Tag(input.into())),
        };
        Err(InvalidTag { input: quoted(input), rule })
    }
}

/// What names a manifest within its repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// By tag, which may move.
    Tag(Tag),
    /// By digest, which cannot.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = InvalidReference;

    /// With a `:` it must be a digest, else a tag: no text is both.
    fn from_str(input: &str) -> Result<Reference, InvalidReference> {
        if input.contains(':') {
            Ok(Reference::Digest(input.parse()?))
        } else {
            Ok(Reference::Tag(input.parse()?))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

impl From<Tag> for Reference {
    fn from(tag: Tag) -> Reference {
        Reference::Tag(tag)
    }
}

impl From<Digest> for Reference {
    fn from(digest: Digest) -> Reference {
        Reference::Digest(digest)
    }
}

/// A text that is no repository name. The sender's fault: `NAME_INVALID` when a client sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("repository name {input} is invalid: {rule}")]
pub struct InvalidName {
    input: String,
    rule: &'static str,
}

/// A text that is no tag. The sender's fault: `TAG_INVALID` when a client sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tag {input} is invalid: {rule}")]
pub struct InvalidTag {
    input: String,
    rule: &'static str,
}

/// A text that is neither tag nor digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// It has no colon and is no tag.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// It has a colon and is no digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

/// What the validated texts have in common: they print as themselves, serialise as strings and are checked when read.
macro_rules! text {
    ($name:ident) => {
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text!(RepositoryName);
text!(Tag);

/// One path component: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`. One pass; the error is the rule that was broken.
fn check_component(component: &str) -> Result<(), &'static str> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = component.as_bytes();
    if rest.is_empty() {
        return Err("it must have no empty component");
    }
    loop {
        let word_len = rest.iter().take_while(|&&byte| alphanumeric(byte)).count();
        if word_len == 0 {
            return Err(match rest.first() {
                Some(b'.' | b'_' | b'-') | None => "components must begin and end with a letter or digit",
                Some(_) => "it may hold only lower-case letters, digits, and ., _, - and / between them",
            });
        }
        rest = &rest[word_len..];
        let Some(&separator) = rest.first() else { return Ok(()) };
        let separator_len = rest.iter().take_while(|&&byte| byte == separator).count();
        rest = &rest[separator_len..];
        match (separator, separator_len) {
            (b'.', 1) | (b'_', 1 | 2) | (b'-', _) => {}
            (b'.' | b'_', _) => {
                return Err("between letters or digits stands one ., one or two _, or several -");
            }
            _ => return Err("it may hold only lower-case letters, digits, and ., _, - and / between them"),
        }
        // Two different separators in a row leave no word between them; the next turn refuses that, as it does an end.
    }
}

/// What a fuzzer calls.
///
/// # Panics
/// If an accepted name does not print as its input, or could leave its directory.
#[doc(hidden)]
pub fn fuzz_entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert_eq!(name.to_string(), text);
        assert!(text.len() <= REPOSITORY_NAME_LEN_MAX && text.is_ascii());
        assert!(
            name.components().all(|part| part.as_bytes()[0].is_ascii_alphanumeric() && !part.contains(".."))
        );
    }
    let tag = text.parse::<Tag>();
    if let Ok(tag) = &tag {
        assert_eq!(tag.as_str(), text);
        assert!(
            text.len() <= TAG_LEN_MAX && !text.starts_with('.') && !text.contains(['/', ':', '\0', '\\'])
        );
    }
    match text.parse::<Reference>() {
        Ok(reference) => assert_eq!(reference.to_string(), text),
        Err(_) => assert!(tag.is_err() && text.parse::<Digest>().is_err()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn repository_names() {
        let long = format!("{}/b", "a".repeat(253));
        for good in [
            "a",
            "0",
            "a/b",
            "library/busybox",
            "a.b",
            "a_b",
            "a__b",
            "a-b",
            "a----b",
            "a-b_c.d__e/f0",
            &long,
        ] {
            let name: RepositoryName = good.parse().expect(good);
            assert_eq!(name.as_str(), good);
            assert_eq!(name.components().collect::<Vec<_>>().join("/"), good);
        }
        let too_long = format!("{long}c");
        for (bad, rule) in [
            ("", "empty component"),
            ("/", "empty component"),
            ("/a", "empty component"),
            ("a/", "empty component"),
            ("a//b", "empty component"),
            (".", "begin and end"),
            ("..", "begin and end"),
            ("a/../b", "begin and end"),
            ("_layers", "begin and end"),
            ("a/_manifests", "begin and end"),
            ("-a", "begin and end"),
            ("a-", "begin and end"),
            ("a_", "begin and end"),
            ("a.-b", "begin and end"),
            ("a-_b", "begin and end"),
            ("a..b", "one ., one or two _"),
            ("a___b", "one ., one or two _"),
            ("A", "only lower-case"),
            ("aB", "only lower-case"),
            ("a b", "only lower-case"),
            ("a:b", "only lower-case"),
            ("a@b", "only lower-case"),
            ("a\0", "only lower-case"),
            ("a\\b", "only lower-case"),
            ("é", "only lower-case"),
            (&too_long, "at most 255"),
        ] {
            let error = bad.parse::<RepositoryName>().expect_err(bad).to_string();
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn tags() {
        let longest = "x".repeat(128);
        for good in ["latest", "_", "1.0-rc_2", "V1", "sha256-abc", "a..b", &longest] {
            assert_eq!(good.parse::<Tag>().expect(good).to_string(), good);
        }
        let too_long = "x".repeat(129);
        for (bad, rule) in [
            ("", "empty"),
            (".", "begin"),
            ("..", "begin"),
            ("-a", "begin"),
            ("a/b", "only letters"),
            ("a:b", "only letters"),
            ("a\n", "only letters"),
            ("aé", "only letters"),
            (&too_long, "at most 128"),
        ] {
            let error = bad.parse::<Tag>().expect_err(bad).to_string();
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn references() {
        let digest = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(digest.parse(), Ok(Reference::Digest(_))));
        assert_eq!(
            digest.replace(':', "-").parse::<Reference>().unwrap().to_string(),
            digest.replace(':', "-")
        );
        assert!(matches!("sha256:0".parse::<Reference>(), Err(InvalidReference::Digest(_))));
        assert!(matches!("a b".parse::<Reference>(), Err(InvalidReference::Tag(_))));
    }

    #[test]
    fn as_json() {
        assert_eq!(serde_json::from_str::<RepositoryName>("\"a/b\"").unwrap().as_str(), "a/b");
        assert!(serde_json::from_str::<Tag>("\"a/b\"").is_err());
        assert_eq!(serde_json::to_string(&"v1".parse::<Tag>().unwrap()).unwrap(), "\"v1\"");
    }

    /// The grammar of a component by recursion over its alternatives, without regard to speed.
    fn naive_component(text: &[u8]) -> bool {
        let word = |part: &[u8]| {
            !part.is_empty() && part.iter().all(|b| b"abcdefghijklmnopqrstuvwxyz0123456789".contains(b))
        };
        word(text)
            || (1..text.len()).any(|at| {
                let (head, tail) = text.split_at(at);
                word(head)
                    && (1..tail.len()).any(|len| {
                        let (separator, rest) = tail.split_at(len);
                        let dashes = separator.iter().all(|&b| b == b'-');
                        (dashes || [b".".as_slice(), b"_", b"__"].contains(&separator))
                            && naive_component(rest)
                    })
            })
    }

    proptest! {
        #[test]
        fn names_agree_with_the_grammar(text in "[ab9._/A-]{0,9}") {
            let oracle = text.split('/').all(|part| naive_component(part.as_bytes()));
            prop_assert_eq!(text.parse::<RepositoryName>().is_ok(), oracle);
            fuzz_entry(text.as_bytes());
        }

        #[test]
        fn tags_agree_with_the_grammar(text in "[a-zA-Z0-9_.:/é-]{0,130}") {
            let oracle = !text.is_empty() && text.len() <= 128 && !text.starts_with(['.', '-'])
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            prop_assert_eq!(text.parse::<Tag>().is_ok(), oracle);
            fuzz_entry(text.as_bytes());
        }

        #[test]
        fn survives_anything(text: String) {
            fuzz_entry(text.as_bytes());
        }
    }
}
