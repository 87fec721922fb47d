//! Which of two models is right, question by question.

use std::ops::AddAssign;

/// How many questions are answered exactly by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paired {
    /// By both.
    pub both: usize,
    /// By the candidate alone.
    pub only_candidate: usize,
    /// By the reference alone.
    pub only_reference: usize,
    /// By neither.
    pub neither: usize,
}

impl Paired {
    /// One question.
    #[must_use]
    pub fn of(candidate: bool, reference: bool) -> Self {
        let mut one = Self::default();
        let count = match (candidate, reference) {
            (true, true) => &mut one.both,
            (true, false) => &mut one.only_candidate,
            (false, true) => &mut one.only_reference,
            (false, false) => &mut one.neither,
        };
        *count = 1;
        one
    }

    /// All questions.
    #[must_use]
    pub fn total(&self) -> usize {
        self.both + self.only_candidate + self.only_reference + self.neither
    }

    /// Those that the candidate answers.
    #[must_use]
    pub fn candidate(&self) -> usize {
        self.both + self.only_candidate
    }

    /// Those that the reference answers.
    #[must_use]
    pub fn reference(&self) -> usize {
        self.both + self.only_reference
    }

    /// How likely the questions that one alone answers would be shared out as unevenly as they are, or more, were both
    /// equally good: McNemar's test, exact and two-sided. Above 0.05 the difference says nothing.
    #[must_use]
    pub fn p_value(&self) -> f64 {
        let fewer = self.only_candidate.min(self.only_reference);
        let n = self.only_candidate + self.only_reference;
        // ln of n over k, grown from k = 0.
        let (mut ln_choose, mut tail) = (0.0_f64, 0.0_f64);
        for k in 0..=fewer {
            tail += (ln_choose - n as f64 * std::f64::consts::LN_2).exp();
            ln_choose += ((n - k) as f64 / (k + 1) as f64).ln();
        }
        (2.0 * tail).min(1.0)
    }
}

impl AddAssign for Paired {
    fn add_assign(&mut self, other: Self) {
        let Self { both, only_candidate, only_reference, neither } = other;
        self.both += both;
        self.only_candidate += only_candidate;
        self.only_reference += only_reference;
        self.neither += neither;
    }
}

#[cfg(test)]
mod tests {
    use super::Paired;

    #[test]
    fn p_values_by_hand() {
        let p =
            |only_candidate, only_reference| Paired { only_candidate, only_reference, ..Paired::default() }.p_value();
        assert_eq!(p(0, 0), 1.0);
        assert_eq!(p(3, 3), 1.0);
        // 2 * (1 + 6) / 2^6
        assert!((p(1, 5) - 14.0 / 64.0).abs() < 1e-12);
        assert!((p(5, 0) - 2.0 / 32.0).abs() < 1e-12);
    }

    #[test]
    fn each_question_is_counted_once() {
        let mut all = Paired::default();
        for (candidate, reference) in [(true, true), (true, false), (false, true), (false, false), (true, true)] {
            all += Paired::of(candidate, reference);
        }
        assert_eq!(all, Paired { both: 2, only_candidate: 1, only_reference: 1, neither: 1 });
        assert_eq!([all.total(), all.candidate(), all.reference()], [5, 3, 3]);
    }
}
