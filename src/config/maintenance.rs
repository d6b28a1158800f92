//! `[maintenance]` from what was typed to what can be used: what `serve` does by itself to stay healthy, and how often.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;

use super::error::{ConfigError, Origin};
use super::field::{DAY, Field, HOUR, MIB, SECOND, SIZE_MAX, Source, duration_text};
use super::raw::{self, Scalar, Setting};
use crate::maintain::gc::ExpireFrom;

/// What is meant to be rarer is meant to be off.
const INTERVAL: RangeInclusive<Duration> = SECOND..=Duration::from_hours(24 * 365);
/// Ages are bounded like `upload_expiry`, but for manifests that are kept for years.
const AGE_MAX: Duration = Duration::from_hours(24 * 365 * 10);
/// A push that takes longer than this from a blob to its manifest is nothing unusual.
const GRACE_USUAL: Duration = HOUR;
/// What is read again in a second, unless something is said.
const SCRUB_RATE: u64 = 50 * MIB;

/// `[maintenance]`: work in the background, in every registry's trees. Durations that are `None` are "off" in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaintenanceConfig {
    /// How often `local` is freed of what nothing references. Default 24 h. Off where docker-registry writes to it too.
    pub gc: Option<Duration>,
    /// How old a blob must be that no manifest references before it is collected. Default 24 h. Shorter than a push takes,
    /// it makes pushes fail and begin anew.
    pub gc_grace: Duration,
    /// Whether manifests that no tag leads to are collected too. Default no.
    pub gc_untagged: bool,
    /// How old manifests may become: older ones are removed with their tags. Default off.
    pub expire_manifests: Option<Duration>,
    /// What their age is counted from. Default: the push.
    pub expire_from: ExpireFrom,
    /// How often uploads are swept that are older than their registry's `upload_expiry`. Default 1 h.
    pub uploads: Option<Duration>,
    /// How often everything that is stored is read and hashed again. Default off.
    pub scrub: Option<Duration>,
    /// How fast that goes, in bytes a second. Default 50 MiB.
    pub scrub_rate: u64,
    /// Whether what it finds corrupt is fetched again from where it came from. Default yes.
    pub scrub_repair: bool,
}

/// The words for what a manifest's age is counted from.
const SOURCES: [(&str, ExpireFrom); 2] = [("push", ExpireFrom::Push), ("pull", ExpireFrom::Pull)];

/// What the file says, or the defaults.
pub(super) fn check(
    source: &Source<'_>,
    raw: Option<Spanned<raw::Maintenance>>,
    warnings: &mut Vec<String>,
) -> Result<MaintenanceConfig, ConfigError> {
    let at = raw.as_ref().map_or(Origin::Default, |table| source.at(table.span().start));
    let raw = raw.map(Spanned::into_inner).unwrap_or_default();
    let field = |key, setting: Setting<Scalar>| source.field("[maintenance]", &at, key, setting);
    let every = |key, setting, default| field(key, setting).duration_or_off(default, INTERVAL);
    let checked = MaintenanceConfig {
        gc: every("gc", raw.gc, Some(DAY))?,
        gc_grace: field("gc_grace", raw.gc_grace).duration(DAY, Duration::ZERO..=AGE_MAX)?,
        gc_untagged: switch(&field("gc_untagged", raw.gc_untagged), false)?,
        expire_manifests: field("expire_manifests", raw.expire_manifests)
            .duration_or_off(None, SECOND..=AGE_MAX)?,
        expire_from: field("expire_from", raw.expire_from).choice(ExpireFrom::Push, &SOURCES)?,
        uploads: every("uploads", raw.uploads, Some(HOUR))?,
        scrub: every("scrub", raw.scrub, None)?,
        scrub_rate: field("scrub_rate", raw.scrub_rate).size(SCRUB_RATE, MIB..=SIZE_MAX)?,
        scrub_repair: switch(&field("scrub_repair", raw.scrub_repair), true)?,
    };
    checked.warn(warnings);
    Ok(checked)
}

fn switch(field: &Field<'_, Scalar>, default: bool) -> Result<bool, ConfigError> {
    field.choice(default, &[("on", true), ("off", false)])
}

impl MaintenanceConfig {
    /// The word for what a manifest's age is counted from.
    pub(super) fn expire_from_word(&self) -> &'static str {
        SOURCES.iter().find(|(_, from)| *from == self.expire_from).map_or("", |(word, _)| word)
    }

    /// What can be used but is hardly meant.
    fn warn(&self, warnings: &mut Vec<String>) {
        if self.gc.is_some() && self.gc_grace < GRACE_USUAL {
            let grace = duration_text(self.gc_grace);
            warnings.push(format!(
                "[maintenance] gc_grace = \"{grace}\": what a client pushes may be collected before it pushes the manifest, \
                 and it has to begin anew"
            ));
        }
        let needs_gc =
            [("gc_untagged", self.gc_untagged), ("expire_manifests", self.expire_manifests.is_some())];
        for (key, is_given) in needs_gc {
            if is_given && self.gc.is_none() {
                warnings.push(format!("[maintenance] {key} is part of gc, which is off: nothing happens"));
            }
        }
    }
}
