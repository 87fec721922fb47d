//! What a smaller form of a model loses against the model itself: the program `accuracy`.
//!
//! Two forms of a model, the reference and the candidate, run one after the other, never both in memory. Both answer the
//! same questions greedily ([`judge_questions`]), and both are fed the same tokens, whatever they would have said
//! themselves: at each of those the Kullback-Leibler divergence of the candidate's distribution from the reference's is
//! taken over the whole vocabulary. [`judge_random`] does the latter alone, for weights that nobody trained.
//!
//! In between the reference's logits stand on the host, in float32 and at most [`MAX_KEPT_BYTES`] of them.

mod divergence;
mod judge;
mod model;
mod paired;
mod questions;
mod random;
mod report;
mod round;
mod rows;
mod run;

pub use divergence::{DivergenceSummary, MAX_KEPT_BYTES, RowDivergence};
pub use judge::{Along, judge_questions};
pub use model::{ModelChoice, open_device};
pub use paired::Paired;
pub use questions::{Question, read_questions};
pub use random::{RandomPrompts, judge_random};
pub use report::{Outcome, QuestionReport};
