//! Which images are wanted: pure, without I/O and clocks.
//!
//! A tag must pass, in this order: a pattern of `include` if there is any; none of `exclude`; the range of versions, which
//! takes no tag that is not a version ([`version`](super::version)); and be among the newest of what is left. Newest are
//! the greatest versions, then the tags that are no versions, from the end of their natural order.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use super::version::{Range, Version, natural};
use crate::oci::{Pattern, Platform, RepositoryName, Tag};

/// What is to be copied of what a source has. The default is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// What is wanted; empty: every repository.
    pub include: Vec<Pattern>,
    /// What is not, although it is included.
    pub exclude: Vec<Pattern>,
    /// Versions that are wanted; `None`: every tag.
    pub versions: Option<Range>,
    /// How many tags of a repository are wanted, the newest; `None`: all.
    pub newest: Option<NonZeroUsize>,
    /// Machines whose images are wanted of an image for several; empty: all.
    pub platforms: Vec<PlatformPattern>,
}

impl Selection {
    /// Whether any tag of a repository may be wanted.
    pub fn repository(&self, repository: &RepositoryName) -> bool {
        let name = repository.as_str();
        let is_included =
            self.include.is_empty() || self.include.iter().any(|pattern| pattern.fits_repository(name));
        let is_excluded =
            self.exclude.iter().any(|pattern| !pattern.names_tags() && pattern.fits_repository(name));
        is_included && !is_excluded
    }

    /// Those of a repository's tags that are wanted, in the order in which they came.
    ///
    /// Where versions or the newest are chosen, tags that belong to a digest (`sha256-…`: lists of referrers, signatures)
    /// are left out: they are no versions, and would stand in the way of tags that are.
    pub fn tags(&self, repository: &RepositoryName, mut tags: Vec<Tag>) -> Vec<Tag> {
        let name = repository.as_str();
        let fits = |pattern: &&Pattern| pattern.fits_repository(name);
        let include: Vec<_> = self.include.iter().filter(fits).collect();
        let exclude: Vec<_> = self.exclude.iter().filter(fits).collect();
        if include.is_empty() && !self.include.is_empty() {
            return Vec::new();
        }
        let is_any = |patterns: &[&Pattern], tag: &Tag| patterns.iter().any(|one| one.fits_tag(tag.as_str()));
        tags.retain(|tag| (include.is_empty() || is_any(&include, tag)) && !is_any(&exclude, tag));
        if let Some(range) = &self.versions {
            tags.retain(|tag| Version::of(tag.as_str()).is_some_and(|version| range.takes(&version)));
        }
        match self.newest {
            Some(count) => newest(tags, count.get()),
            None => tags,
        }
    }

    /// Whether the image for a machine is wanted. One that names no machine is.
    pub fn platform(&self, platform: &Platform) -> bool {
        let names_none = platform.os.is_empty() && platform.architecture.is_empty();
        self.platforms.is_empty() || names_none || self.platforms.iter().any(|one| one.fits(platform))
    }

    /// Whether a tag could be wanted if it were there: by its name alone, whatever other tags there are. What is not so is
    /// never deleted.
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> bool {
        let alone = Self { newest: self.newest.and(NonZeroUsize::new(1)), ..self.clone() };
        alone.repository(repository) && !alone.tags(repository, vec![tag.clone()]).is_empty()
    }

    /// Whether only some machines' images are wanted.
    pub fn has_platforms(&self) -> bool {
        !self.platforms.is_empty()
    }

    /// The repositories that are named without `*` and `?`, sorted: they can be asked for at a registry that gives no list
    /// of its repositories (Docker Hub).
    pub fn named_repositories(&self) -> Vec<RepositoryName> {
        let mut names: Vec<_> = self.include.iter().filter_map(Pattern::named_repository).collect();
        names.retain(|name| self.repository(name));
        names.sort();
        names.dedup();
        names
    }

    /// The tags of a repository that are named, as it is, without `*` and `?`, and may be wanted.
    pub fn named_tags(&self, repository: &RepositoryName) -> Vec<Tag> {
        let of_it =
            self.include.iter().filter(|pattern| pattern.named_repository().as_ref() == Some(repository));
        of_it.filter_map(Pattern::named_tag).filter(|tag| self.tag(repository, tag)).collect()
    }

    /// Whether these are all that can be wanted: then no list is needed.
    pub fn names_all(&self) -> bool {
        !self.include.is_empty() && self.include.iter().all(|one| one.named_repository().is_some())
    }
}

/// A pattern as a person writes it, `REPOSITORY` or `REPOSITORY:TAG`.
///
/// # Errors
/// No image can fit it; in words that follow the pattern.
pub fn pattern(text: &str) -> Result<Pattern, &'static str> {
    let repository = text.split_once(':').map_or(text, |(repository, _)| repository);
    let is_path = !repository.starts_with('/') && !repository.ends_with('/') && !repository.contains("//");
    if text.is_empty() {
        Err("it is empty; write REPOSITORY or REPOSITORY:TAG, with * and ?")
    } else if text.contains('@') {
        Err("images are selected by their tags, not by digests; write REPOSITORY:TAG")
    } else if text.contains("://") || !is_path {
        Err("no repository has such a name; write REPOSITORY or REPOSITORY:TAG, without a registry")
    } else if repository.contains(|letter: char| letter.is_ascii_uppercase()) {
        Err("repositories have no capital letters")
    } else {
        Ok(Pattern::new(text))
    }
}

/// The newest `count` of the tags, in the order in which they came.
fn newest(mut tags: Vec<Tag>, count: usize) -> Vec<Tag> {
    tags.retain(|tag| !belongs_to_digest(tag.as_str()));
    if tags.len() <= count {
        return tags;
    }
    let mut order: Vec<usize> = (0..tags.len()).collect();
    order.sort_by(|left, right| {
        let (left, right) = (tags[*left].as_str(), tags[*right].as_str());
        // `None`, which is no version, is less than any version.
        let by_version = Version::of(left).cmp(&Version::of(right));
        by_version.then_with(|| natural(left, right)).reverse()
    });
    let mut is_kept = vec![false; tags.len()];
    for index in order.into_iter().take(count) {
        is_kept[index] = true;
    }
    let mut kept = is_kept.into_iter();
    tags.retain(|_| kept.next().unwrap_or(false));
    tags
}

/// Digits of a digest that stand in such a tag, whatever the algorithm (OCI distribution, "Referrers Tag Schema").
const DIGITS_IN_TAG: usize = 64;

/// Whether a tag is named after a digest: `sha256-<hex>`, or that with a suffix, as cosign has it.
pub(super) fn belongs_to_digest(tag: &str) -> bool {
    ["sha256-", "sha512-"].iter().any(|prefix| {
        tag.strip_prefix(prefix)
            .is_some_and(|rest| rest.bytes().take_while(u8::is_ascii_hexdigit).count() >= DIGITS_IN_TAG)
    })
}

/// A machine as a person writes it: `linux/amd64`, `linux/arm/v7`. Without a variant every variant fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformPattern {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl PlatformPattern {
    fn fits(&self, platform: &Platform) -> bool {
        let (architecture, default) = usual_name(&platform.architecture);
        let variant = platform.variant.as_deref().filter(|variant| !variant.is_empty()).or(default);
        self.os == platform.os
            && self.architecture == architecture
            && self.variant.as_deref().is_none_or(|wanted| Some(wanted) == variant)
    }
}

/// The name that Go has for an architecture, and the variant that is meant if none is named, as containerd sees it.
fn usual_name(architecture: &str) -> (&str, Option<&'static str>) {
    match architecture {
        "x86_64" | "x86-64" => ("amd64", None),
        "i386" | "i486" | "i586" | "i686" => ("386", None),
        "aarch64" | "arm64" => ("arm64", Some("v8")),
        "armhf" | "arm" => ("arm", Some("v7")),
        other => (other, None),
    }
}

impl FromStr for PlatformPattern {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        match parts[..] {
            [os, architecture, ref variant @ ..]
                if variant.len() <= 1 && parts.iter().all(|part| word(part)) =>
            {
                Ok(Self {
                    os: os.to_owned(),
                    architecture: usual_name(architecture).0.to_owned(),
                    variant: variant.first().map(|&variant| variant.to_owned()),
                })
            }
            _ => Err(InvalidPlatform(text.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for PlatformPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// A text that names no machine. The fault of whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no platform; write OS/ARCH or OS/ARCH/VARIANT, such as \"linux/amd64\" or \"linux/arm/v7\""
)]
pub struct InvalidPlatform(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::new(text)).collect()
    }

    /// The tags of `repository` that are taken of `tags`.
    fn taken(selection: &Selection, repository: &str, tags: &str) -> String {
        let tags = tags.split(' ').map(|tag| tag.parse().unwrap()).collect();
        let taken = selection.tags(&repository.parse().unwrap(), tags);
        taken.iter().map(Tag::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn everything_is_taken_by_default() {
        let all = Selection::default();
        assert!(all.repository(&"a/b".parse().unwrap()));
        assert_eq!(taken(&all, "a/b", "b a sha256-0"), "b a sha256-0");
        assert!(all.platform(&Platform::default()));
        assert!(!all.names_all() && !all.has_platforms());
    }

    #[test]
    fn patterns_include_and_exclude() {
        let selection = Selection {
            include: patterns(&["team/*", "base:v?"]),
            exclude: patterns(&["team/secret", "team/*:*-debug", "base:v0"]),
            ..Selection::default()
        };
        for (name, expected) in [("team/app", true), ("team/secret", false), ("base", true), ("other", false)]
        {
            assert_eq!(selection.repository(&name.parse().unwrap()), expected, "{name}");
        }
        assert_eq!(taken(&selection, "team/app", "v1 v1-debug x"), "v1 x");
        assert_eq!(taken(&selection, "team/secret", "v1"), "");
        assert_eq!(taken(&selection, "base", "v0 v1 v10 x"), "v1");
        assert_eq!(taken(&selection, "other", "v1"), "");
    }

    #[test]
    fn the_newest_are_versions_first() {
        let newest = |count, tags: &str| {
            let selection = Selection { newest: NonZeroUsize::new(count), ..Selection::default() };
            taken(&selection, "a", tags)
        };
        let digest = format!("sha256-{}.sig", "0".repeat(64));
        let tags = format!("1.10.0 1.9.0 2.0.0-rc1 latest nightly-9 nightly-10 {digest}");
        assert_eq!(newest(2, &tags), "1.10.0 2.0.0-rc1");
        assert_eq!(newest(4, &tags), "1.10.0 1.9.0 2.0.0-rc1 nightly-10");
        assert_eq!(newest(99, &tags), "1.10.0 1.9.0 2.0.0-rc1 latest nightly-9 nightly-10");
    }

    #[test]
    fn the_newest_are_of_the_range() {
        let selection = Selection {
            versions: Some("<2".parse().unwrap()),
            newest: NonZeroUsize::new(1),
            ..Selection::default()
        };
        assert_eq!(taken(&selection, "a", "1.10.0 1.9.0 2.0.0 latest"), "1.10.0");
    }

    #[test]
    fn platforms() {
        let selection = Selection {
            platforms: ["linux/x86_64", "linux/arm/v7", "linux/arm64/v8"]
                .map(|text| text.parse().unwrap())
                .into(),
            ..Selection::default()
        };
        for (os, architecture, variant, expected) in [
            ("linux", "amd64", None, true),
            ("linux", "amd64", Some("v3"), true),
            ("linux", "arm", None, true),
            ("linux", "arm", Some("v6"), false),
            ("linux", "arm64", Some(""), true),
            ("windows", "amd64", None, false),
            ("unknown", "unknown", None, false),
            ("", "", None, true),
        ] {
            let platform = Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
                os_version: None,
            };
            assert_eq!(selection.platform(&platform), expected, "{platform:?}");
        }
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b"] {
            assert!(bad.parse::<PlatformPattern>().is_err(), "{bad}");
        }
        assert_eq!("linux/aarch64/v8".parse::<PlatformPattern>().unwrap().to_string(), "linux/arm64/v8");
    }

    #[test]
    fn repositories_that_are_named() {
        let named = |include: &[&str]| {
            let exclude = patterns(&["c"]);
            let selection = Selection { include: patterns(include), exclude, ..Selection::default() };
            let names: Vec<_> = selection.named_repositories().iter().map(ToString::to_string).collect();
            (names.join(" "), selection.names_all())
        };
        assert_eq!(named(&["b:v*", "a", "b", "c"]), ("a b".to_owned(), true));
        assert_eq!(named(&["a", "b/*"]), ("a".to_owned(), false));
        assert_eq!(named(&["a", "B"]), ("a".to_owned(), false));
        assert_eq!(named(&[]), (String::new(), false));
    }

    #[test]
    fn a_tag_by_itself() {
        let selection = Selection {
            include: patterns(&["a:*"]),
            versions: Some(">=1".parse().unwrap()),
            newest: NonZeroUsize::new(1),
            ..Selection::default()
        };
        let tag =
            |repository: &str, tag: &str| selection.tag(&repository.parse().unwrap(), &tag.parse().unwrap());
        assert!(tag("a", "1.0") && tag("a", "2.0"));
        assert!(!tag("a", "0.9") && !tag("a", "latest") && !tag("b", "1.0"));
    }
}
