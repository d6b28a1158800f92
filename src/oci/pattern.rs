//! Patterns of images, as a person writes them: `team/*`, `team/app:v1.*`.

use std::fmt;

use super::{RepositoryName, Tag};

/// Which images are meant: `REPOSITORY`, or `REPOSITORY:TAG`. `*` stands for any text, slashes included, and `?` for one
/// byte; anything else stands for itself. The whole name must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    repository: String,
    tag: Option<String>,
}

impl Pattern {
    /// Any text is a pattern; one that no image can have fits none.
    pub fn new(text: &str) -> Self {
        match text.split_once(':') {
            Some((repository, tag)) => Self { repository: repository.to_owned(), tag: Some(tag.to_owned()) },
            None => Self { repository: text.to_owned(), tag: None },
        }
    }

    /// Whether any tag of a repository may be meant.
    pub fn fits_repository(&self, repository: &str) -> bool {
        fits(self.repository.as_bytes(), repository.as_bytes())
    }

    /// Whether a tag is meant, of a repository that fits. Without a tag in the pattern every tag is.
    pub fn fits_tag(&self, tag: &str) -> bool {
        self.tag.as_ref().is_none_or(|pattern| fits(pattern.as_bytes(), tag.as_bytes()))
    }

    /// The repository, if there is one name only that fits.
    pub fn named_repository(&self) -> Option<RepositoryName> {
        // Neither `*` nor `?` can stand in a name.
        self.repository.parse().ok()
    }

    /// The tag, if there is one only that fits.
    pub fn named_tag(&self) -> Option<Tag> {
        self.tag.as_ref()?.parse().ok()
    }

    /// Whether the pattern says something about tags.
    pub fn names_tags(&self) -> bool {
        self.tag.is_some()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any bytes and `?` for one.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Behind the last `*`, and how much of the text it stands for, up to which byte.
    let mut star = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                star = Some((at, seen));
            }
            Some(&byte) if byte == b'?' || byte == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((behind, until)) = star else { return false };
                (at, seen) = (behind, until + 1);
                star = Some((behind, seen));
            }
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        let cases = [
            ("a/b", "a/b", true),
            ("a/b", "a/bc", false),
            ("a/*", "a/b/c", true),
            ("a/*", "a", false),
            ("*", "a", true),
            ("*b", "abab", true),
            ("*b?", "abab", false),
            ("*ab*ab*", "xabyabz", true),
            ("*ab*ab*", "xabyaz", false),
            ("?/b", "a/b", true),
            ("?", "", false),
            ("", "a", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
        let pattern = Pattern::new("team/*:v?");
        assert!(pattern.fits_repository("team/app") && pattern.fits_tag("v1") && !pattern.fits_tag("v10"));
        assert!(Pattern::new("team/*").fits_tag("anything"));
    }

    #[test]
    fn a_pattern_is_written_as_it_was_read() {
        for text in ["a", "a:b", "a/*:", "*"] {
            assert_eq!(Pattern::new(text).to_string(), text);
        }
    }
}
