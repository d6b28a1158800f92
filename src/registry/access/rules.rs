//! What a configuration grants: rights, the repositories that they are about, and who has them. Pure.
//!
//! Everything here only adds: what is not granted is refused, so a repository that is reached by an unforeseen name is
//! not open by it.

use std::fmt;
use std::str::FromStr;

use super::{Action, Wish};
use crate::oci::RepositoryName;
use crate::oci::name::REPOSITORY_NAME_LEN_MAX;

/// A set of the actions that can be granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Reading content, tags and, if it is of every repository, the catalog.
    pub pull: bool,
    /// Uploading blobs, and putting manifests.
    pub push: bool,
    /// Deleting tags, manifests and blobs.
    pub delete: bool,
}

impl Rights {
    /// Nothing.
    pub const NONE: Self = Self { pull: false, push: false, delete: false };
    /// To read.
    pub const PULL: Self = Self { pull: true, push: false, delete: false };
    /// Everything.
    pub const ALL: Self = Self { pull: true, push: true, delete: true };

    /// The words of the configuration, in its order.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        [(self.pull, "pull"), (self.push, "push"), (self.delete, "delete")]
            .into_iter()
            .filter_map(|(granted, word)| granted.then_some(word))
    }

    /// Adds what a word of the configuration means; false if it means nothing.
    pub fn add(&mut self, word: &str) -> bool {
        match word {
            "pull" => self.pull = true,
            "push" => self.push = true,
            "delete" => self.delete = true,
            _ => return false,
        }
        true
    }

    fn include(self, action: Action) -> bool {
        match action {
            Action::Pull | Action::Catalog => self.pull,
            Action::Push => self.push,
            Action::Delete => self.delete,
            Action::Ping => true,
        }
    }
}

/// Rights in the repositories that one of the patterns matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What may be done.
    pub rights: Rights,
    /// Where. Not empty.
    pub repositories: Vec<Pattern>,
}

impl Grant {
    /// `rights` in every repository.
    pub fn everywhere(rights: Rights) -> Self {
        Self { rights, repositories: vec![Pattern::all()] }
    }

    /// Whether it grants every right in every repository.
    pub(super) fn is_everything(&self) -> bool {
        self.rights == Rights::ALL && self.is_everywhere()
    }

    /// Whether it is about every repository.
    pub fn is_everywhere(&self) -> bool {
        self.repositories.iter().any(Pattern::is_all)
    }

    pub(super) fn allows(&self, wish: &Wish<'_>) -> bool {
        self.rights.include(wish.action)
            && match (wish.action, wish.repository) {
                (Action::Ping, _) => true,
                // It names every repository there is.
                (Action::Catalog, _) | (_, None) => self.is_everywhere(),
                (_, Some(name)) => self.repositories.iter().any(|pattern| pattern.matches(name)),
            }
    }
}

/// What users may do who have logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Their names; `*` is everyone who has logged in.
    pub users: Vec<String>,
    /// What they may do, and where.
    pub grant: Grant,
}

impl Rule {
    pub(super) fn allows(&self, user: &str, wish: &Wish<'_>) -> bool {
        self.users.iter().any(|named| named == "*" || named == user) && self.grant.allows(wish)
    }
}

/// Names of repositories: `*` stands for any characters within a component, `**` for any characters, slashes included.
///
/// `team/*` matches `team/app` and not `team/app/base`, `team/**` both; neither matches `team`.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    /// `*`
    WithinComponent,
    /// `**`
    Anything,
}

impl Pattern {
    fn all() -> Self {
        Self { text: "**".to_owned(), pieces: vec![Piece::Anything] }
    }

    fn is_all(&self) -> bool {
        self.pieces == [Piece::Anything]
    }

    /// Takes time in proportion to the lengths of name and pattern, and no memory.
    fn matches(&self, name: &RepositoryName) -> bool {
        if self.is_all() {
            return true;
        }
        // The places in the pattern that can have been reached: no pattern is longer than a name.
        let mut reached = [false; REPOSITORY_NAME_LEN_MAX + 1];
        reached[0] = true;
        self.skip_stars(&mut reached);
        for &byte in name.as_str().as_bytes() {
            let mut next = [false; REPOSITORY_NAME_LEN_MAX + 1];
            for (at, &piece) in self.pieces.iter().enumerate().filter(|&(at, _)| reached[at]) {
                match piece {
                    Piece::Byte(expected) => next[at + 1] |= expected == byte,
                    Piece::WithinComponent => next[at] |= byte != b'/',
                    Piece::Anything => next[at] = true,
                }
            }
            self.skip_stars(&mut next);
            reached = next;
        }
        reached[self.pieces.len()]
    }

    /// A star may stand for nothing.
    fn skip_stars(&self, reached: &mut [bool]) {
        for (at, piece) in self.pieces.iter().enumerate() {
            if reached[at] && !matches!(piece, Piece::Byte(_)) {
                reached[at + 1] = true;
            }
        }
    }
}

impl FromStr for Pattern {
    type Err = &'static str;

    /// The error says what is wrong with it: a verb and what follows.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut pieces = Vec::with_capacity(text.len());
        for byte in text.bytes() {
            let piece = match byte {
                b'*' if pieces.last() == Some(&Piece::WithinComponent) => {
                    pieces.pop();
                    Piece::Anything
                }
                b'*' if pieces.last() == Some(&Piece::Anything) => {
                    return Err("has more than two * in a row");
                }
                b'*' => Piece::WithinComponent,
                b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/' => Piece::Byte(byte),
                _ => return Err("matches no repository, as it holds what no name does"),
            };
            pieces.push(piece);
        }
        match text {
            "" => Err("is empty"),
            _ if pieces.len() > REPOSITORY_NAME_LEN_MAX => Err("is longer than any name"),
            _ if text.starts_with('/') || text.ends_with('/') || text.contains("//") => {
                Err("matches no repository, as names have no slash at an end and no two in a row")
            }
            _ => Ok(Self { text: text.to_owned(), pieces }),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap_or_else(|problem| panic!("{text:?} {problem}"))
    }

    fn name(text: &str) -> RepositoryName {
        text.parse().expect("a valid name")
    }

    #[test]
    fn a_star_stays_within_a_component_and_two_do_not() {
        for (text, matching, others) in [
            ("team/app", &["team/app"][..], &["team/ap", "team/apps", "team", "x/team/app"][..]),
            ("team/*", &["team/app", "team/a"], &["team", "team/app/base", "teams/app"]),
            ("team/**", &["team/app", "team/app/base"], &["team", "teams/app"]),
            ("*", &["app"], &["team/app"]),
            ("**", &["app", "team/app", "a/b/c"], &[]),
            ("**/app", &["team/app", "a/b/app"], &["app", "team/app2"]),
            ("a*/b*c", &["a/bc", "ax/bbcc", "ax/b-c"], &["a/b", "a/b/c", "ba/bc"]),
            ("a**z", &["az", "a/b/z", "abz"], &["a/b", "z"]),
            ("**a**b**", &["ab", "x/a/y/b/z", "aab"], &["ba", "a"]),
        ] {
            for one in matching {
                assert!(pattern(text).matches(&name(one)), "{text} matches {one}");
            }
            for one in others {
                assert!(!pattern(text).matches(&name(one)), "{text} does not match {one}");
            }
        }
        let longest = format!("{}*", "a".repeat(REPOSITORY_NAME_LEN_MAX - 1));
        assert!(pattern(&longest).matches(&name(&"a".repeat(REPOSITORY_NAME_LEN_MAX))));
        // What would take for ever by trying all ways.
        let hard = "*a".repeat(60);
        assert!(!pattern(&hard).matches(&name(&format!("{}b", "a".repeat(250)))));
    }

    #[test]
    fn a_pattern_that_can_match_nothing_is_refused() {
        for text in ["", "/a", "a/", "a//b", "A", "a b", "***", "a:b", &"a".repeat(256)] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_catalog_needs_pull_of_every_repository() {
        let catalog = Wish { repository: None, action: Action::Catalog };
        let grant = |rights, repository| Grant { rights, repositories: vec![pattern(repository)] };
        assert!(grant(Rights::PULL, "**").allows(&catalog));
        assert!(!grant(Rights::PULL, "*").allows(&catalog));
        assert!(!grant(Rights { pull: false, ..Rights::ALL }, "**").allows(&catalog));
    }

    #[test]
    fn a_rule_is_about_its_users_repositories_and_actions() {
        let app = name("team/app");
        let wish = |action| Wish { repository: Some(&app), action };
        let rule = Rule {
            users: vec!["alice".into()],
            grant: Grant {
                rights: Rights { delete: false, ..Rights::ALL },
                repositories: vec![pattern("team/*")],
            },
        };
        assert!(rule.allows("alice", &wish(Action::Push)) && rule.allows("alice", &wish(Action::Pull)));
        assert!(!rule.allows("alice", &wish(Action::Delete)));
        assert!(!rule.allows("bob", &wish(Action::Pull)));
        assert!(!rule.allows("*", &wish(Action::Pull)), "a user cannot call himself everyone");
        let other = name("other/app");
        assert!(!rule.allows("alice", &Wish { repository: Some(&other), action: Action::Pull }));
        let everyone = Rule { users: vec!["*".into()], ..rule };
        assert!(everyone.allows("bob", &wish(Action::Pull)));
    }
}
