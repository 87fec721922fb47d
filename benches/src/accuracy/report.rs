//! What came out of questions, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

use anyhow::Context;

use super::{DivergenceSummary, Paired, RowDivergence};

/// One question's outcome.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first two words.
    pub kind: String,
    /// The question.
    pub question: String,
    /// What is right.
    pub expected: String,
    /// What the reference says.
    pub reference: String,
    /// What the candidate says.
    pub candidate: String,
    /// At each token that both were fed with; empty where the reference's logits had no room.
    pub rows: Vec<RowDivergence>,
}

impl Outcome {
    /// Who is right.
    #[must_use]
    pub fn paired(&self) -> Paired {
        Paired::of(self.candidate == self.expected, self.reference == self.expected)
    }
}

/// The outcome of all questions.
#[derive(Clone, Debug)]
pub struct QuestionReport {
    /// In the order of the questions.
    pub outcomes: Vec<Outcome>,
}

impl QuestionReport {
    /// Who is right, over all questions.
    #[must_use]
    pub fn paired(&self) -> Paired {
        let mut all = Paired::default();
        self.outcomes.iter().for_each(|outcome| all += outcome.paired());
        all
    }

    /// Answers of the candidate that are the reference's, right or wrong.
    #[must_use]
    pub fn num_same_answers(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.candidate == outcome.reference).count()
    }

    /// How far apart the distributions are, over all tokens.
    #[must_use]
    pub fn divergence(&self) -> Option<DivergenceSummary> {
        DivergenceSummary::of(self.outcomes.iter().flat_map(|outcome| outcome.rows.iter().copied()))
    }

    /// Writes a line of comma-separated values for each question.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_csv(&self, path: &Path) -> anyhow::Result<()> {
        let write = || {
            let mut text = Vec::new();
            writeln!(
                text,
                "number,kind,question,expected,reference,candidate,reference_right,candidate_right,tokens,same_best,\
                 mean_kl,max_kl"
            )?;
            for (number, outcome) in self.outcomes.iter().enumerate() {
                let Outcome { kind, question, expected, reference, candidate, rows } = outcome;
                let texts = [kind, question, expected, reference, candidate].map(|text| quoted(text)).join(",");
                let (reference_right, candidate_right) = (reference == expected, candidate == expected);
                let summary = DivergenceSummary::of(rows.iter().copied());
                let divergence =
                    summary.map_or(",,".to_owned(), |s| format!("{},{:e},{:e}", s.num_same_best, s.mean, s.max));
                let num_rows = rows.len();
                writeln!(text, "{number},{texts},{reference_right},{candidate_right},{num_rows},{divergence}")?;
            }
            std::fs::write(path, text)
        };
        write().with_context(|| path.display().to_string())
    }
}

/// Text as one value.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

impl fmt::Display for QuestionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<&str, Paired> = BTreeMap::new();
        for outcome in &self.outcomes {
            *kinds.entry(&outcome.kind).or_default() += outcome.paired();
        }
        let all = self.paired();
        let headings = ["questions", "both right", "only A", "only B", "neither", "A", "B"];
        write!(f, "{:<20}", "")?;
        headings.iter().try_for_each(|heading| write!(f, " {heading:>10}"))?;
        writeln!(f)?;
        for (kind, paired) in kinds.into_iter().chain([("all", all)]) {
            let Paired { both, only_candidate, only_reference, neither } = paired;
            let counts = [paired.total(), both, only_candidate, only_reference, neither];
            write!(f, "{kind:<20}")?;
            counts.iter().try_for_each(|count| write!(f, " {count:>10}"))?;
            let percent = |right: usize| 100.0 * right as f64 / paired.total().max(1) as f64;
            writeln!(f, " {:>8.2} % {:>8.2} %", percent(paired.candidate()), percent(paired.reference()))?;
        }
        let (same, total) = (self.num_same_answers(), all.total());
        writeln!(f, "A is the candidate, B the reference; McNemar's p {:.3}", all.p_value())?;
        writeln!(f, "answers equal, right or wrong: {same} of {total}")?;
        match self.divergence() {
            Some(divergence) => write!(f, "{divergence}")?,
            None => write!(f, "no token was compared")?,
        }
        match self.outcomes.iter().filter(|outcome| outcome.rows.is_empty()).count() {
            0 => Ok(()),
            left_out => write!(f, "\n(without the last {left_out} questions: no more logits are kept)"),
        }
    }
}
