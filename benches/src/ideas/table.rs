//! The table.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use foveal_device::Times;
use serde::Serialize;

use super::equal::Equal;

/// What is switched on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Idea {
    /// Its name.
    pub name: &'static str,
    /// What the engine does.
    pub with: &'static str,
    /// What it would do without.
    pub without: &'static str,
}

/// Microseconds of one way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// What a fifth of the samples lies below.
    pub p20_us: f32,
    /// What half of them lies below.
    pub median_us: f32,
    /// What four fifths of them lie below.
    pub p80_us: f32,
}

/// What came of a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Both ways gave equal results and were timed.
    Measured {
        /// The engine's way.
        with: Spread,
        /// The other.
        without: Spread,
        /// How many times as long the other takes, by the medians.
        gain: f32,
        /// How equal the results are.
        equal: Equal,
        /// What else is to be said.
        note: String,
    },
    /// There is nothing to measure here, for a reason.
    LeftOut(String),
    /// It couldn't be measured.
    Failed(String),
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What is switched on and off.
    pub idea: Idea,
    /// At which size.
    pub case: String,
    /// On what.
    pub device: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What all rows have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Header {
    /// What was built.
    pub commit: String,
    /// Whose sizes they are.
    pub model: String,
}

/// Rows, printed as they come.
#[derive(Debug)]
pub struct Table {
    header: Header,
    device: String,
    lines: Vec<Line>,
    json: Option<PathBuf>,
}

/// How a row was measured.
pub(super) struct Measured {
    pub(super) times: [Times; 2],
    pub(super) equal: Equal,
    pub(super) note: String,
}

#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    header: &'a Header,
    lines: &'a [Line],
}

impl Table {
    /// An empty table, to be saved to `json` where that is given.
    #[must_use]
    pub fn new(header: Header, json: Option<PathBuf>) -> Self {
        println!("| idea | case | with | without | gain | equal | note |\n| --- | --- | --- | --- | --- | --- | --- |");
        Self { header, device: String::new(), lines: Vec::new(), json }
    }

    /// Its rows so far.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Rows that couldn't be measured.
    #[must_use]
    pub fn num_failed(&self) -> usize {
        self.lines.iter().filter(|line| matches!(line.outcome, Outcome::Failed(_))).count()
    }

    /// Says where the next rows are measured.
    pub(super) fn on(&mut self, device: String) {
        self.device = device;
    }

    pub(super) fn measured(&mut self, idea: Idea, case: impl Into<String>, row: Measured) {
        let Measured { times, equal, note } = row;
        let [with, without] = times.map(Spread::from);
        let gain = without.median_us / with.median_us;
        self.add(idea, case.into(), Outcome::Measured { with, without, gain, equal, note });
    }

    /// A row that makes no sense here.
    pub fn left_out(&mut self, idea: Idea, case: impl Into<String>, reason: impl Into<String>) {
        self.add(idea, case.into(), Outcome::LeftOut(reason.into()));
    }

    /// A row that couldn't be measured, if `result` says so: the others are measured all the same.
    pub(super) fn keep(&mut self, idea: Idea, case: impl Into<String>, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.add(idea, case.into(), Outcome::Failed(format!("{error:#}")));
        }
    }

    fn add(&mut self, idea: Idea, case: String, outcome: Outcome) {
        let line = Line { idea, case, device: self.device.clone(), outcome };
        println!("{line}");
        self.lines.push(line);
    }

    /// Writes all rows so far, where that was asked for.
    pub(super) fn save(&self) -> anyhow::Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let text = serde_json::to_string_pretty(&Json { header: &self.header, lines: &self.lines })?;
        fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }
}

impl From<Times> for Spread {
    fn from(times: Times) -> Self {
        let Times { p20_us, median_us, p80_us } = times;
        Self { p20_us, median_us, p80_us }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p20_us, median_us, p80_us } = self;
        let (unit, scale) = if *median_us < 1000.0 { ("us", 1.0) } else { ("ms", 1e-3) };
        // Three digits, or a nanosecond.
        let digits = match median_us * scale {
            ..1.0 => 3,
            ..10.0 => 2,
            ..100.0 => 1,
            _ => 0,
        };
        let [low, median, high] = [p20_us, median_us, p80_us].map(|us| format!("{:.digits$}", us * scale));
        write!(f, "{median} {unit} ({low} to {high})")
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { idea: Idea { name, with, without }, case, device, outcome } = self;
        match outcome {
            Outcome::Measured { with: a, without: b, gain, equal, note } => {
                write!(
                    f,
                    "| {name} | {case}, {device} | {with}: {a} | {without}: {b} | x {gain:.2} | {equal} | {note} |"
                )
            }
            Outcome::LeftOut(reason) => write!(f, "| {name} | {case}, {device} | | | | | left out: {reason} |"),
            Outcome::Failed(reason) => write!(f, "| {name} | {case}, {device} | | | | | FAILED: {reason} |"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDEA: Idea = Idea { name: "doors", with: "open", without: "shut" };

    #[test]
    fn rows_say_what_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.json");
        let header = Header { commit: "abc".to_owned(), model: "tiny".to_owned() };
        let mut table = Table::new(header, Some(path.clone()));
        table.on("a machine".to_owned());
        let times = [[1.0, 2.0, 3.0], [900.0, 5000.0, 12_345.0]].map(|[p20_us, median_us, p80_us]| Times {
            p20_us,
            median_us,
            p80_us,
        });
        table.measured(IDEA, "one", Measured { times, equal: Equal::Bitwise, note: "so".to_owned() });
        table.left_out(IDEA, "two", "no doors");
        table.keep(IDEA, "three", Err(anyhow::anyhow!("stuck")));
        table.keep(IDEA, "four", Ok(()));
        table.save().unwrap();
        let rows: Vec<String> = table.lines().iter().map(Line::to_string).collect();
        let measured = "| doors | one, a machine | open: 2.00 us (1.00 to 3.00) | shut: 5.00 ms (0.90 to 12.35) | x 2500.00 \
                        | bitwise | so |";
        assert_eq!(rows[0], measured);
        assert_eq!(rows[1], "| doors | two, a machine | | | | | left out: no doors |");
        assert_eq!(rows[2..], ["| doors | three, a machine | | | | | FAILED: stuck |"]);
        assert_eq!(table.num_failed(), 1);
        let json: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!((&json["commit"], &json["model"]), (&"abc".into(), &"tiny".into()));
        assert_eq!(json["lines"][0]["outcome"]["measured"]["without"]["median_us"], 5000.0);
        assert_eq!(json["lines"][1]["outcome"]["left_out"], "no doors");
        assert_eq!(json["lines"][2]["idea"]["without"], "shut");
    }
}
