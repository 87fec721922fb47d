//! Two forms of a model on the same questions.

use foveal_device::Device;
use foveal_types::TokenId;

use super::divergence::{KeptLogits, divergences};
use super::model::{LoadedModel, ModelChoice, Scope, check_pair};
use super::questions::Question;
use super::report::{Outcome, QuestionReport};
use super::round::{MAX_SEQS, Round};
use super::run::max_logit_rows;

/// Rounds between two words about how far it is.
const ROUNDS_PER_WORD: usize = 8;

/// Which tokens both models are fed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// The reference's own greedy answers.
    Reference,
    /// The right answers.
    Given,
}

/// What the reference leaves behind.
#[derive(Default)]
struct Reference {
    texts: Vec<String>,
    /// What both are fed with.
    fed: Vec<Vec<TokenId>>,
    kept: KeptLogits,
}

/// Has both models answer, and feeds both with the same tokens. The reference runs first and is gone when the candidate
/// comes.
///
/// # Errors
/// Of the models, the questions or the device.
pub fn judge_questions(
    device: &Device,
    candidate: &ModelChoice,
    reference: &ModelChoice,
    questions: &[Question],
    along: Along,
) -> anyhow::Result<QuestionReport> {
    check_pair(device, candidate, reference)?;
    let reference = run_reference(&reference.load(device, Scope::Whole)?, questions, along)?;
    let outcomes = run_candidate(&candidate.load(device, Scope::Whole)?, questions, &reference)?;
    Ok(QuestionReport { outcomes })
}

fn run_reference(model: &LoadedModel, questions: &[Question], along: Along) -> anyhow::Result<Reference> {
    let mut reference = Reference::default();
    for_each_round("reference", model, questions, |round, questions| {
        let answers = round.answer()?;
        reference.texts.extend(texts(model, &answers)?);
        let fed = match along {
            Along::Reference => answers,
            Along::Given => {
                let front = model.front()?;
                questions.iter().map(|question| front.given(&question.answer)).collect::<Result<_, _>>()?
            }
        };
        round.force(&fed, |_, logits| {
            reference.kept.push(logits);
            Ok(())
        })?;
        reference.fed.extend(fed);
        Ok(())
    })?;
    Ok(reference)
}

fn run_candidate(model: &LoadedModel, questions: &[Question], reference: &Reference) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(questions.len());
    for_each_round("candidate", model, questions, |round, questions| {
        let first = outcomes.len();
        let answers = texts(model, &round.answer()?)?;
        outcomes.extend(questions.iter().zip(answers).enumerate().map(|(i, (question, candidate))| Outcome {
            kind: question.kind(),
            question: question.text.clone(),
            expected: question.answer.clone(),
            reference: reference.texts[first + i].clone(),
            candidate,
            rows: Vec::new(),
        }));
        round.force(&reference.fed[first..outcomes.len()], |i, logits| {
            if let Some(kept) = reference.kept.get(first + i) {
                outcomes[first + i].rows = divergences(kept, logits, model.vocab_size());
            }
            Ok(())
        })
    })?;
    Ok(outcomes)
}

/// Runs through all questions, some at a time, and says on stderr how far it is.
fn for_each_round(
    who: &str,
    model: &LoadedModel,
    questions: &[Question],
    mut on_round: impl FnMut(&mut Round<'_>, &[Question]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let per_round = MAX_SEQS.min(max_logit_rows(model));
    let mut done = 0;
    for (i, questions_of_round) in questions.chunks(per_round).enumerate() {
        on_round(&mut Round::open(model, questions_of_round)?, questions_of_round)?;
        done += questions_of_round.len();
        if (i + 1).is_multiple_of(ROUNDS_PER_WORD) || done == questions.len() {
            eprintln!("{who}: {done} of {} questions", questions.len());
        }
    }
    Ok(())
}

fn texts(model: &LoadedModel, answers: &[Vec<TokenId>]) -> anyhow::Result<Vec<String>> {
    let tokenizer = model.front()?.processor.tokenizer();
    Ok(answers.iter().map(|answer| tokenizer.decode(answer)).collect())
}
