//! Dates in HTTP fields (RFC 9110 §5.6.7): whole seconds, always GMT.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 9999-12-31 23:59:59, the last second that has a four-digit year, in seconds after 1970.
const LAST_SECS: u64 = 253_402_300_799;

/// How far ahead a two-digit year may lie before it means the century before (§5.6.7), in years.
const TWO_DIGIT_YEARS_AHEAD_MAX: u64 = 50;

/// The time as a field shows it: `Sun, 06 Nov 1994 08:49:37 GMT`. Fractions of a second are dropped; what lies before
/// 1970 or after 9999 is clamped, so that no file's time is too odd to be sent.
pub fn format(time: SystemTime) -> String {
    httpdate::fmt_http_date(to_second(time))
}

/// The time cut down to the second that [`format()`] shows, with the same clamping. Times are compared in this form.
pub fn to_second(time: SystemTime) -> SystemTime {
    let secs = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    UNIX_EPOCH + Duration::from_secs(secs.min(LAST_SECS))
}

/// Reads a date in any of the three forms that §5.6.7 asks recipients to read: `Sun, 06 Nov 1994 08:49:37 GMT`,
/// `Sunday, 06-Nov-94 08:49:37 GMT`, `Sun Nov  6 08:49:37 1994`.
///
/// `None` if it is none of them, does not exist, is a wrong day of the week, or lies before 1970 or after 9999. The
/// two-digit years of the second form are 1970 to 2069; with a clock at hand, [`parse_at`] follows the RFC.
pub fn parse(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// Like [`parse`], but a two-digit year that would lie more than 50 years after `now` means the century before.
pub fn parse_at(text: &str, now: SystemTime) -> Option<SystemTime> {
    let Some((head, year, tail)) = two_digit_year(text.trim()) else { return parse(text) };
    let now_year: u64 = format(now).get(12..16)?.parse().ok()?;
    let this_century = now_year / 100 * 100 + year;
    // The next century's year is within reach only from the second half of this one.
    let year = [this_century + 100, this_century, this_century.saturating_sub(100)]
        .into_iter()
        .find(|year| *year <= now_year + TWO_DIGIT_YEARS_AHEAD_MAX)?;
    let (weekday, day_month) = head.split_once(", ")?;
    let (day, month) = day_month.split_once('-')?;
    if !["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"].contains(&weekday) {
        return None;
    }
    parse(&format!("{}, {day} {month} {year:04} {tail}", &weekday[..3]))
}

/// Takes `Sunday, 06-Nov-94 08:49:37 GMT` apart: `Sunday, 06-Nov`, 94, `08:49:37 GMT`.
fn two_digit_year(text: &str) -> Option<(&str, u64, &str)> {
    let (date, tail) =
        text.split_once(':').and_then(|(hours, _)| text.split_at_checked(hours.len().checked_sub(3)?))?;
    let (head, year) = date.rsplit_once('-')?;
    let two_digits = year.len() == 2 && year.bytes().all(|byte| byte.is_ascii_digit());
    two_digits.then_some((head, year.parse().ok()?, tail.strip_prefix(' ')?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn the_three_forms() {
        for text in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(parse(text), Some(at(784_111_777)), "{text}");
            assert_eq!(parse_at(text, at(1_795_000_000)), Some(at(784_111_777)), "{text}");
        }
        assert_eq!(format(at(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn what_is_no_date() {
        for text in [
            "",
            "0",
            "784111777",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37",
            "Thu, 31 Dec 1903 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06 Nov-94 08:49:37 GMT",
            ", 06-Nov-94 08:49:37 GMT",
            "-94 :",
            "é-94 é:",
            "-:",
            "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(parse(text), None, "{text}");
            assert_eq!(parse_at(text, at(0)), None, "{text}");
        }
    }

    #[test]
    fn clamping() {
        assert_eq!(format(UNIX_EPOCH - Duration::from_nanos(1)), "Thu, 01 Jan 1970 00:00:00 GMT");
        let end = "Fri, 31 Dec 9999 23:59:59 GMT";
        assert_eq!(format(at(LAST_SECS)), end);
        assert_eq!(format(at(LAST_SECS + 1)), end);
        assert_eq!(format(at(i64::MAX as u64)), end);
        assert_eq!(parse(end), Some(at(LAST_SECS)));
        assert_eq!(to_second(at(7) + Duration::from_millis(999)), at(7));
    }

    #[test]
    fn two_digit_years_reach_fifty_years_ahead() {
        let year_of = |text: &str, now: &str| {
            parse_at(text, parse(now).unwrap()).map(|time| format(time)[12..16].to_owned())
        };
        let now = "Sat, 21 Nov 2026 00:00:00 GMT";
        // 1 January 2076 is a Wednesday, 1 January 1977 a Saturday, 1 January 2000 a Saturday.
        assert_eq!(year_of("Wednesday, 01-Jan-76 00:00:00 GMT", now).as_deref(), Some("2076"));
        assert_eq!(year_of("Saturday, 01-Jan-77 00:00:00 GMT", now).as_deref(), Some("1977"));
        assert_eq!(year_of("Saturday, 01-Jan-00 00:00:00 GMT", now).as_deref(), Some("2000"));
        // 1 January 2101 is a Saturday.
        let late = "Thu, 21 Nov 2069 00:00:00 GMT";
        assert_eq!(year_of("Saturday, 01-Jan-01 00:00:00 GMT", late).as_deref(), Some("2101"));
    }

    proptest! {
        #[test]
        fn round_trip(secs in 0..=LAST_SECS, nanos in 0u32..1_000_000_000) {
            let time = at(secs) + Duration::from_nanos(nanos.into());
            prop_assert_eq!(parse(&format(time)), Some(at(secs)));
            prop_assert_eq!(parse_at(&format(time), UNIX_EPOCH), Some(at(secs)));
            prop_assert_eq!(to_second(time), at(secs));
        }

        #[test]
        fn survives_anything(text in "[SunModay, 0-9:GMT-é]{0,40}", now: u32) {
            let _ = (parse(&text), parse_at(&text, at(now.into())));
        }
    }
}
