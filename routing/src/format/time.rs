//! Times in UTC: RFC 3339 with milliseconds, or a pattern in the manner of `strftime`.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// How a time is written.
#[derive(Clone, Debug)]
pub(crate) struct TimeFormat(Vec<Part>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Char(char),
    Year,
    Month,
    Day,
    DaySpaced,
    Hour,
    Minute,
    Second,
    EpochSeconds,
    Fraction(usize),
    MonthName,
    WeekdayName,
    Offset,
    Zone,
}

impl TimeFormat {
    /// Reads a pattern; without one, times look like `2026-01-31T12:00:00.000Z`.
    pub(crate) fn parse(pattern: Option<&str>) -> Option<Self> {
        let pattern = pattern.filter(|pattern| !pattern.is_empty()).unwrap_or("%Y-%m-%dT%H:%M:%S.%3fZ");
        let mut parts = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => directive(chars.next()?, &mut chars, &mut parts)?,
                c => parts.push(Part::Char(c)),
            }
        }
        Some(Self(parts))
    }

    pub(crate) fn write(&self, at: SystemTime, out: &mut String) {
        let civil = Civil::from(at);
        for part in &self.0 {
            // Writing to a string cannot fail.
            let _ = civil.write(*part, out);
        }
    }
}

fn directive(c: char, rest: &mut std::str::Chars<'_>, parts: &mut Vec<Part>) -> Option<()> {
    let mut push = |list: &[Part]| parts.extend_from_slice(list);
    match c {
        'Y' => push(&[Part::Year]),
        'm' => push(&[Part::Month]),
        'd' => push(&[Part::Day]),
        'e' => push(&[Part::DaySpaced]),
        'H' => push(&[Part::Hour]),
        'M' => push(&[Part::Minute]),
        'S' => push(&[Part::Second]),
        's' => push(&[Part::EpochSeconds]),
        'f' => push(&[Part::Fraction(9)]),
        'b' => push(&[Part::MonthName]),
        'a' => push(&[Part::WeekdayName]),
        'z' => push(&[Part::Offset]),
        'Z' => push(&[Part::Zone]),
        'F' => push(&[Part::Year, Part::Char('-'), Part::Month, Part::Char('-'), Part::Day]),
        'T' => push(&[Part::Hour, Part::Char(':'), Part::Minute, Part::Char(':'), Part::Second]),
        '%' => push(&[Part::Char('%')]),
        digit @ '1'..='9' if rest.next() == Some('f') => push(&[Part::Fraction(digit as usize - '0' as usize)]),
        _ => return None,
    }
    Some(())
}

/// A moment taken apart.
struct Civil {
    epoch_seconds: u64,
    nanos: u32,
    year: u64,
    month: usize,
    day: u64,
    weekday: usize,
}

impl From<SystemTime> for Civil {
    fn from(at: SystemTime) -> Self {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let days = since.as_secs() / 86_400;
        // Count in eras of 400 years that begin on the first of March, so that leap days come last.
        let shifted = days + 719_468;
        let era_day = shifted % 146_097;
        let era_year = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
        let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
        let month = (5 * year_day + 2) / 153;
        let civil_month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            epoch_seconds: since.as_secs(),
            nanos: since.subsec_nanos(),
            year: shifted / 146_097 * 400 + era_year + u64::from(civil_month <= 2),
            month: usize::try_from(civil_month).unwrap_or(1),
            day: year_day - (153 * month + 2) / 5 + 1,
            weekday: usize::try_from((days + 4) % 7).unwrap_or(0),
        }
    }
}

impl Civil {
    fn write(&self, part: Part, out: &mut String) -> std::fmt::Result {
        let second = self.epoch_seconds % 86_400;
        match part {
            Part::Char(c) => out.write_char(c),
            Part::Year => write!(out, "{:04}", self.year),
            Part::Month => write!(out, "{:02}", self.month),
            Part::Day => write!(out, "{:02}", self.day),
            Part::DaySpaced => write!(out, "{:2}", self.day),
            Part::Hour => write!(out, "{:02}", second / 3600),
            Part::Minute => write!(out, "{:02}", second / 60 % 60),
            Part::Second => write!(out, "{:02}", second % 60),
            Part::EpochSeconds => write!(out, "{}", self.epoch_seconds),
            Part::Fraction(digits) => {
                let nanos = format!("{:09}", self.nanos);
                out.write_str(&nanos[..digits.min(9)])
            }
            Part::MonthName => out.write_str(MONTHS[self.month - 1]),
            Part::WeekdayName => out.write_str(WEEKDAYS[self.weekday]),
            Part::Offset => out.write_str("+0000"),
            Part::Zone => out.write_str("UTC"),
        }
    }
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

#[cfg(test)]
mod tests {
    use super::*;

    fn written(seconds: u64, millis: u64, pattern: Option<&str>) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis);
        let mut out = String::new();
        TimeFormat::parse(pattern).unwrap().write(at, &mut out);
        out
    }

    #[test]
    fn days_are_counted_rightly() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(written(seconds, 0, None), expected);
        }
    }

    #[test]
    fn patterns_are_followed() {
        let pattern = "%a, %d %b %Y %T %Z|%F|%s.%6f|%3f|%e%%";
        let text = written(951_782_400, 7, Some(pattern));
        assert_eq!(text, "Tue, 29 Feb 2000 00:00:00 UTC|2000-02-29|951782400.007000|007|29%");
        assert!(TimeFormat::parse(Some("%Q")).is_none());
        assert!(TimeFormat::parse(Some("%")).is_none());
    }
}
