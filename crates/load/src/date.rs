//! The date of a run.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now in UTC, as vLLM's results have it: `20260131-235959`.
pub(crate) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format(seconds)
}

/// Seconds since 1970 as a date of the Gregorian calendar: years begin in March here, so that leap days are at their end.
fn format(seconds: u64) -> String {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    const DAYS_FROM_MARCH_0000_TO_1970: u64 = 719_468;
    let (days, second) = (seconds / 86_400 + DAYS_FROM_MARCH_0000_TO_1970, seconds % 86_400);
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    // Leap days that have passed in these 400 years are taken out.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, and again.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use super::format;

    /// Against a calendar that counts day by day.
    #[test]
    fn days_follow_one_another() {
        let (mut year, mut month, mut day) = (1970_u64, 1_u64, 1_u64);
        for number in 0..80_000_u64 {
            assert_eq!(format(number * 86_400 + 3_723), format!("{year:04}{month:02}{day:02}-010203"));
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let len = match month {
                2 => 28 + u64::from(is_leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > len {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
