//! One setting on its way from text to value: it knows where it was given, so that a refusal can say so.

use std::collections::HashSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use humantime_serde::re::humantime;
use toml::Spanned;
use url::Url;

use super::error::{BadValue, ConfigError, Origin};
use super::name;
use super::raw::{Scalar, Setting, Texts};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const DAY: Duration = Duration::from_hours(24);
pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
/// Sizes are offsets into files, which the kernel counts as signed.
pub(super) const SIZE_MAX: u64 = i64::MAX as u64;
/// The shortest timeout that is not a typing error.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
/// What is meant to be longer is meant to be never, and every wait has a bound.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// Stands for no duration.
pub(super) const OFF: &str = "off";

/// The file that is being checked: turns places in it into line numbers.
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

/// A setting, given or not, of one table.
pub(super) struct Field<'a, T> {
    pub(super) table: &'a str,
    pub(super) key: &'static str,
    pub(super) origin: Origin,
    pub(super) given: Option<T>,
}

impl Source<'_> {
    /// The origin of something that begins `offset` bytes into the file.
    pub(super) fn at(&self, offset: usize) -> Origin {
        let before = self.text.get(..offset);
        let line = before.map(|text| 1 + text.bytes().filter(|&byte| byte == b'\n').count());
        Origin::File(self.path.to_owned(), line)
    }

    /// A setting of the file; a missing one is said to be missing from the table that starts at `table_at`.
    pub(super) fn field<'t, T>(
        &self,
        table: &'t str,
        table_at: &Origin,
        key: &'static str,
        setting: Setting<T>,
    ) -> Field<'t, T> {
        match setting.map(|spanned| (spanned.span().start, Spanned::into_inner(spanned))) {
            Some((start, value)) => Field { table, key, origin: self.at(start), given: Some(value) },
            None => Field { table, key, origin: table_at.clone(), given: None },
        }
    }
}

impl<T> Field<'_, T> {
    /// Replaces what the file says by what a flag or a variable says.
    pub(super) fn or_rather(self, stronger: Option<(Origin, T)>) -> Self {
        match stronger {
            Some((origin, value)) => Self { origin, given: Some(value), ..self },
            None => self,
        }
    }

    /// A refusal that shows `value`.
    pub(super) fn bad(
        &self,
        value: impl Display,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        self.refusal(Some(format!("{value}")), problem.into(), remedy.into())
    }

    /// A refusal of something that is missing, or that must not be shown.
    pub(super) fn bad_unshown(&self, problem: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        self.refusal(None, problem.into(), remedy.into())
    }

    fn refusal(&self, value: Option<String>, problem: String, remedy: String) -> ConfigError {
        let table = self.table.to_owned();
        BadValue { origin: self.origin.clone(), table, key: self.key, value, problem, remedy }.into()
    }
}

impl<T> Field<'_, T> {
    /// A refusal of `value` by one of the rules of [`name`].
    pub(super) fn refused(&self, value: impl Display, (problem, remedy): name::Refusal) -> ConfigError {
        self.bad(value, problem, remedy)
    }

    /// A registry's URL; `text` is the value or one of its list.
    pub(super) fn url(&self, text: &str) -> Result<Url, ConfigError> {
        name::parse_url(text).map_err(|refusal| self.refused(name::redacted(text), refusal))
    }
}

impl Field<'_, PathBuf> {
    /// The path, as it was given.
    pub(super) fn path(&self) -> Result<Option<PathBuf>, ConfigError> {
        match &self.given {
            Some(path) if path.as_os_str().is_empty() => {
                Err(self.bad("", "is empty", "name a path, or leave the key out"))
            }
            given => Ok(given.clone()),
        }
    }
}

impl Field<'_, Texts> {
    /// The list; nothing given is an empty one.
    pub(super) fn texts(&self) -> &[String] {
        self.given.as_ref().map_or(&[], |Texts(texts)| texts)
    }

    /// The list, each a host with a port perhaps.
    pub(super) fn hosts(&self) -> Result<Vec<String>, ConfigError> {
        for host in self.texts() {
            name::check_host(host).map_err(|refusal| self.refused(host, refusal))?;
        }
        Ok(self.texts().to_vec())
    }

    /// The list, each the name of a repository in which `*` stands for any text and `?` for any character.
    pub(super) fn repository_patterns(&self) -> Result<Vec<String>, ConfigError> {
        for pattern in self.texts() {
            name::check_repository_pattern(pattern).map_err(|refusal| self.refused(pattern, refusal))?;
        }
        Ok(self.texts().to_vec())
    }

    /// As [`Field::hosts`], none of which may select anything else: what is in `seen` does, and what that is `taken` says.
    pub(super) fn own_hosts(
        &self,
        seen: &mut HashSet<String>,
        taken: &str,
    ) -> Result<Vec<String>, ConfigError> {
        let hosts = self.hosts()?;
        if let Some(host) = hosts.iter().find(|host| !seen.insert((*host).clone())) {
            return Err(self.bad(host, taken, "list each host once"));
        }
        Ok(hosts)
    }

    /// The list, each an address to listen on that nothing else listens on: what is in `seen` is taken.
    pub(super) fn own_addresses(&self, seen: &mut Vec<SocketAddr>) -> Result<Vec<SocketAddr>, ConfigError> {
        let mut addresses = Vec::new();
        for text in self.texts() {
            let address = name::parse_listen(text).map_err(|refusal| self.refused(text, refusal))?;
            if address.port() != 0 && seen.contains(&address) {
                return Err(self.bad(text, "is already listened on", "name each address once"));
            }
            seen.push(address);
            addresses.push(address);
        }
        Ok(addresses)
    }
}

impl Field<'_, Scalar> {
    /// The text; an integer is its digits.
    pub(super) fn text(&self) -> Option<String> {
        self.given.as_ref().map(ToString::to_string)
    }

    /// A duration such as `"60s"` or `"1m 30s"` that lies within `allowed`.
    pub(super) fn duration(
        &self,
        default: Duration,
        allowed: RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let Some(given) = &self.given else { return Ok(default) };
        self.duration_of(given, allowed, "write a number with a unit, such as \"500ms\", \"10s\" or \"2m\"")
    }

    fn duration_of(
        &self,
        given: &Scalar,
        allowed: RangeInclusive<Duration>,
        remedy: &str,
    ) -> Result<Duration, ConfigError> {
        let Scalar::Text(text) = given else { return Err(self.bad(given, "has no unit of time", remedy)) };
        let Ok(duration) = humantime::parse_duration(text) else {
            return Err(self.bad(given, "is not a duration", remedy));
        };
        if allowed.contains(&duration) {
            return Ok(duration);
        }
        let (least, most) = (duration_text(*allowed.start()), duration_text(*allowed.end()));
        Err(self.bad(given, "is out of bounds", format!("give a duration from {least} to {most}")))
    }

    /// As [`Field::duration`], or the word "off", which is `None`.
    pub(super) fn duration_or_off(
        &self,
        default: Option<Duration>,
        allowed: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, ConfigError> {
        match &self.given {
            None => Ok(default),
            Some(Scalar::Boolean(false)) => Ok(None),
            Some(Scalar::Text(text)) if text == OFF => Ok(None),
            Some(given) => {
                let remedy = "write a number with a unit, such as \"12h\" or \"30d\", or \"off\"";
                self.duration_of(given, allowed, remedy).map(Some)
            }
        }
    }

    /// A duration after which something is given up.
    pub(super) fn timeout(&self, default: Duration) -> Result<Duration, ConfigError> {
        self.duration(default, TIMEOUT_MIN..=TIMEOUT_MAX)
    }

    /// A number of bytes within `allowed`: an integer, or text such as `"32MiB"` or `"500GB"`.
    pub(super) fn size(&self, default: u64, allowed: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        Ok(self.size_if_given(allowed)?.unwrap_or(default))
    }

    /// As [`Field::size`], of something that is kept in memory.
    pub(super) fn small_size(
        &self,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Result<usize, ConfigError> {
        // Bounds of such sizes are far below 4 GiB.
        Ok(usize::try_from(self.size(default, allowed)?).unwrap_or(usize::MAX))
    }

    /// As [`Field::size`], where nothing given means that nothing applies.
    pub(super) fn size_if_given(&self, allowed: RangeInclusive<u64>) -> Result<Option<u64>, ConfigError> {
        let Some(given) = &self.given else { return Ok(None) };
        let bytes = match given {
            Scalar::Integer(number) => u64::try_from(*number).ok(),
            Scalar::Text(text) => text.trim().parse::<ByteSize>().ok().map(|size| size.as_u64()),
            Scalar::Boolean(_) => None,
        };
        let Some(bytes) = bytes else {
            let remedy = "give a number of bytes, or a size such as \"32MiB\" or \"500GB\"";
            return Err(self.bad(given, "is not a size", remedy));
        };
        if allowed.contains(&bytes) {
            return Ok(Some(bytes));
        }
        let (least, most) = (size_text(*allowed.start()), size_text(*allowed.end()));
        Err(self.bad(given, "is out of bounds", format!("give a size from {least} to {most}")))
    }

    /// A whole number within `allowed`.
    pub(super) fn count(&self, default: u32, allowed: RangeInclusive<u32>) -> Result<u32, ConfigError> {
        let Some(given) = &self.given else { return Ok(default) };
        let number = match given {
            Scalar::Integer(number) => u32::try_from(*number).ok(),
            Scalar::Text(text) => text.trim().parse().ok(),
            Scalar::Boolean(_) => None,
        };
        match number {
            Some(number) if allowed.contains(&number) => Ok(number),
            _ => {
                let remedy = format!("give a whole number from {} to {}", allowed.start(), allowed.end());
                Err(self.bad(given, "is not possible here", remedy))
            }
        }
    }

    /// One of the words of `choices`; a boolean stands for "on" or "off".
    pub(super) fn choice<T: Copy>(&self, default: T, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let given = match &self.given {
            None => return Ok(default),
            Some(Scalar::Boolean(true)) => "on".to_owned(),
            Some(Scalar::Boolean(false)) => "off".to_owned(),
            Some(given) => given.to_string(),
        };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == given) {
            return Ok(*choice);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        Err(self.bad(given, "is not a choice", format!("write {}", words.join(" or "))))
    }
}

/// `None` for 0, which stands for "choose".
pub(super) fn nonzero(number: u32) -> Option<NonZeroUsize> {
    usize::try_from(number).ok().and_then(NonZeroUsize::new)
}

/// What [`Field::duration`] reads back. Many days stay days: the library's months are not whole ones.
pub(super) fn duration_text(duration: Duration) -> String {
    let days = duration.as_secs() / DAY.as_secs();
    if days >= 30 && Duration::from_hours(24 * days) == duration {
        return format!("{days}d");
    }
    humantime::format_duration(duration).to_string()
}

/// `bytes` in the largest unit that divides it, so that nothing is rounded: what [`Field::size`] reads back.
pub(super) fn size_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 9] = [
        (1, ""),
        (KIB, "KiB"),
        (MIB, "MiB"),
        (GIB, "GiB"),
        (1 << 40, "TiB"),
        (1_000, "kB"),
        (1_000_000, "MB"),
        (1_000_000_000, "GB"),
        (1_000_000_000_000, "TB"),
    ];
    let fitting = UNITS.iter().filter(|(unit, _)| bytes.is_multiple_of(*unit));
    let (unit, suffix) = fitting.min_by_key(|(unit, _)| bytes / unit).unwrap_or(&(1, ""));
    format!("{}{suffix}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(given: Scalar) -> Field<'static, Scalar> {
        Field { table: "[t]", key: "k", origin: Origin::Default, given: Some(given) }
    }

    #[test]
    fn sizes_are_read_and_written_back_without_rounding() {
        for bytes in [0, 1, 1023, 1024, 1025, 32 << 20, (32 << 20) + 1, 500_000_000_000, 3 << 40] {
            let text = size_text(bytes);
            let read = field(Scalar::Text(text.clone())).size(7, 0..=u64::MAX).unwrap();
            assert_eq!(read, bytes, "{text}");
        }
        for (bytes, text) in
            [(0, "0"), (512, "512"), (1 << 30, "1GiB"), (500_000_000_000, "500GB"), (48 << 10, "48KiB")]
        {
            assert_eq!(size_text(bytes), text);
        }
        assert_eq!(field(Scalar::Text("500GB".into())).size(0, 0..=u64::MAX).unwrap(), 500_000_000_000);
        assert_eq!(field(Scalar::Integer(4096)).size(0, 0..=u64::MAX).unwrap(), 4096);
        assert!(field(Scalar::Integer(-1)).size(0, 0..=u64::MAX).is_err());
    }

    #[test]
    fn bounds_include_both_ends() {
        for (number, right) in [(1, false), (2, true), (5, true), (6, false), (-2, false), (1 << 40, false)] {
            assert_eq!(field(Scalar::Integer(number)).count(3, 2..=5).is_ok(), right, "{number}");
        }
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        for (text, right) in [("999ms", false), ("1s", true), ("1m", true), ("61s", false), ("5", false)] {
            let read = field(Scalar::Text(text.into())).duration(second, second..=minute);
            assert_eq!(read.is_ok(), right, "{text}");
        }
    }
}
