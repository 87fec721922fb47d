//! Where results go: a table, and lines of comma-separated values.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use foveal_device::Times;

use super::ceilings::Rate;

const HEADING: &str = "date,gpu,driver,commit,op,shape,us,p20_us,p80_us,value,unit,share";

/// Prints results as they come.
pub(super) struct Results {
    /// What every line begins with.
    run: String,
    csv: Option<File>,
}

impl Results {
    /// Adds to `csv`, if that is given.
    pub(super) fn new(gpu: &str, driver: &str, commit: &str, csv: Option<&Path>) -> anyhow::Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
        let run = [&date(since.as_secs() / 86_400), gpu, driver, commit].map(field).join(",");
        let csv = csv.map(|path| open(path).with_context(|| path.display().to_string())).transpose()?;
        Ok(Self { run, csv })
    }

    /// A line: how long it took, and how quick that is.
    pub(super) fn print(&mut self, op: &str, shape: &str, times: Times, rate: Rate) -> anyhow::Result<()> {
        let Times { p20_us, median_us, p80_us } = times;
        let Rate { value, unit, share } = rate;
        let value = if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let percent = if share.is_nan() { String::new() } else { format!("{:.0} %", share * 100.0) };
        let spread = format!("({p20_us:.1} to {p80_us:.1})");
        println!("{op:<26} {shape:<22} {median_us:>10.1} us {spread:<22} {value:>7} {unit:<7} {percent:>6}");
        if let Some(csv) = &mut self.csv {
            let (op, shape) = (field(op), field(shape));
            let share = if share.is_nan() { String::new() } else { format!("{share:.3}") };
            let run = &self.run;
            writeln!(csv, "{run},{op},{shape},{median_us:.2},{p20_us:.2},{p80_us:.2},{value},{unit},{share}")?;
        }
        Ok(())
    }
}

/// A file with a heading, at its end.
fn open(path: &Path) -> anyhow::Result<File> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    if file.metadata()?.len() == 0 {
        writeln!(file, "{HEADING}")?;
    }
    Ok(file)
}

/// Text that can't break a line of values.
fn field(text: &str) -> String {
    text.replace([',', '"', '\n'], ";")
}

/// The date of a day since 1970 in UTC, as 2026-11-25. Howard Hinnant's `civil_from_days`: years begin in March, so that
/// the leap day is their last.
fn date(days: u64) -> String {
    const DAYS_OF_ERA: u64 = 146_097;
    /// From the first of March of year 0 to 1970.
    const TO_1970: u64 = 719_468;
    let (era, day) = ((days + TO_1970) / DAYS_OF_ERA, (days + TO_1970) % DAYS_OF_ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + next_year)
}

#[cfg(test)]
mod tests {
    use super::{date, field};

    #[test]
    fn days_are_dates() {
        let days = [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_782, "2026-11-25")];
        for (day, text) in days {
            assert_eq!(date(day), text);
        }
    }

    #[test]
    fn a_field_holds_no_comma() {
        assert_eq!(field("a, \"b\""), "a; ;b;");
    }
}
