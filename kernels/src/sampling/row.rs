//! One row: from logits to a token.

use super::RowSampling;
use super::philox::uniform;
use super::select::{Cut, cut_at, order};
use crate::math::exp;

/// Partial sums of a row, added up in one fixed order.
const LANES: usize = 8;

/// What a row has said so far. Slices are empty where nothing was given.
#[derive(Clone, Copy)]
pub(super) struct History<'a> {
    pub(super) output_counts: &'a [i32],
    pub(super) prompt_mask: &'a [u8],
    pub(super) banned: &'a [u32],
}

/// What a row chooses.
pub(super) struct Choice {
    pub(super) token_id: i32,
    pub(super) logprob: f32,
}

/// A row without any possible choice.
const NONE: Choice = Choice { token_id: -1, logprob: f32::NAN };

pub(super) fn sample(
    logits: &[f32],
    sampling: &RowSampling,
    history: History<'_>,
    scratch: &mut [f32],
    (top_ids, top_logprobs): (&mut [i32], &mut [f32]),
) -> Choice {
    top_ids.fill(-1);
    top_logprobs.fill(f32::NAN);
    let Some(log_sum) = log_sum_exp(logits) else { return NONE };
    best(logits, log_sum, top_ids, top_logprobs);
    let scores = if sampling.reads_output() || !history.banned.is_empty() {
        penalise(logits, sampling, history, scratch);
        &*scratch
    } else {
        logits
    };
    let Some(token) = choose(scores, sampling) else { return NONE };
    let logprob = logits.get(token).map_or(f32::NAN, |l| (f64::from(*l) - log_sum) as f32);
    Choice { token_id: i32::try_from(token).unwrap_or(-1), logprob }
}

/// The largest value, if all are numbers below infinity and one is above minus infinity.
fn finite_max(values: &[f32]) -> Option<f32> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nans = [false; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks.chain([rest]) {
        for ((max, nan), &value) in lanes.iter_mut().zip(&mut nans).zip(chunk) {
            *max = if value > *max { value } else { *max };
            *nan |= value.is_nan();
        }
    }
    let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (max.is_finite() && !nans.contains(&true)).then_some(max)
}

/// `ln Σ e^x`; `None` for a row that no distribution belongs to.
fn log_sum_exp(logits: &[f32]) -> Option<f64> {
    let max = finite_max(logits)?;
    let mut lanes = [0.0_f64; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks.chain([rest]) {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(exp(logit - max));
        }
    }
    Some(f64::from(max) + lanes.iter().sum::<f64>().ln())
}

/// The best tokens, best first, ties by the lower id, by insertion: few are wanted, and after the first few elements of
/// a long row hardly any is inserted.
fn best(logits: &[f32], log_sum: f64, ids: &mut [i32], logprobs: &mut [f32]) {
    let k = ids.len().min(logprobs.len());
    let mut len = 0_usize;
    for (id, &logit) in logits.iter().enumerate() {
        let worst = len.checked_sub(1).and_then(|last| logprobs.get(last)).copied();
        if len == k && worst.is_none_or(|worst| logit <= worst) {
            continue;
        }
        // Until the end the logits stand in place of their log-probabilities.
        let place = logprobs.iter().take(len).position(|&better| better < logit).unwrap_or(len);
        len = (len + 1).min(k);
        if let (Some(ids), Some(logprobs)) = (ids.get_mut(place..len), logprobs.get_mut(place..len)) {
            ids.rotate_right(1);
            logprobs.rotate_right(1);
            if let ([first_id, ..], [first, ..]) = (ids, logprobs) {
                (*first_id, *first) = (i32::try_from(id).unwrap_or(-1), logit);
            }
        }
    }
    for logit in logprobs.iter_mut().take(len) {
        *logit = (f64::from(*logit) - log_sum) as f32;
    }
}

/// Writes the logits after penalties and bans to `out`.
fn penalise(logits: &[f32], sampling: &RowSampling, history: History<'_>, out: &mut [f32]) {
    let History { output_counts, prompt_mask, banned } = history;
    out.copy_from_slice(logits);
    if sampling.reads_prompt() {
        let penalty = sampling.repetition_penalty;
        for ((out, &in_prompt), &count) in out.iter_mut().zip(prompt_mask).zip(output_counts) {
            if in_prompt != 0 || count > 0 {
                *out = if *out < 0.0 { *out * penalty } else { *out / penalty };
            }
        }
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        for (out, &count) in out.iter_mut().zip(output_counts) {
            if count > 0 {
                *out -= sampling.frequency_penalty * count as f32;
                *out -= sampling.presence_penalty;
            }
        }
    }
    for &id in banned {
        if let Some(out) = usize::try_from(id).ok().and_then(|id| out.get_mut(id)) {
            *out = f32::NEG_INFINITY;
        }
    }
}

fn choose(scores: &[f32], sampling: &RowSampling) -> Option<usize> {
    let max = finite_max(scores)?;
    if sampling.temperature > 0.0 {
        let kept = Kept::find(scores, max, sampling);
        return kept.draw(scores, uniform(sampling.seed, sampling.draw));
    }
    scores.iter().position(|&score| score == max)
}

/// The tokens that can be drawn, and their weights.
struct Kept {
    max: f32,
    temperature: f32,
    /// Tokens of a lower [`order`] are dropped.
    lowest: u32,
    /// How many of the tokens exactly at `lowest` stay, by id.
    ties: f64,
    /// Tokens of a lower weight are dropped.
    min_weight: f64,
}

impl Kept {
    fn find(scores: &[f32], max: f32, sampling: &RowSampling) -> Self {
        let temperature = sampling.temperature;
        let min_weight = f64::from(sampling.min_p).min(1.0);
        let mut kept = Self { max, temperature, lowest: 0, ties: f64::INFINITY, min_weight };
        let top_k = usize::try_from(sampling.top_k).unwrap_or(usize::MAX);
        if top_k > 0 && top_k < scores.len() {
            // All tokens as good as the k-th stay, as in HF.
            if let Some(cut) = cut_at(scores, top_k as f64, |_, _| 1.0) {
                kept.lowest = cut.order;
            }
        }
        if sampling.top_p < 1.0 {
            kept.keep_mass(scores, f64::from(sampling.top_p));
        }
        kept
    }

    /// The probability of a score relative to that of the best one.
    #[inline]
    fn weight(&self, score: f32) -> f64 {
        let relative = exp((score - self.max) / self.temperature);
        // Of an infinite temperature too, a token that can't be chosen has no weight.
        if score > f32::NEG_INFINITY { f64::from(relative) } else { 0.0 }
    }

    /// Keeps a token when the better ones' share of what is left is under `top_p`. Of equal tokens, those with the
    /// lower ids count as better.
    fn keep_mass(&mut self, scores: &[f32], top_p: f64) {
        let lowest = self.lowest;
        let mass = |order: u32, score: f32| if order >= lowest { self.weight(score) } else { 0.0 };
        let total: f64 = scores.iter().map(|&score| mass(order(score), score)).sum();
        let target = top_p * total;
        let Some(Cut { order: found, mass_above }) = cut_at(scores, target, mass) else { return };
        let at = scores.iter().find(|&&score| order(score) == found).map_or(1.0, |&score| self.weight(score));
        self.lowest = found;
        self.ties = ((target - mass_above) / at).ceil().max(1.0);
    }

    /// Runs `visit(id, weight)` over the kept tokens, by id, until it gives true.
    fn visit(&self, scores: &[f32], mut visit: impl FnMut(usize, f64) -> bool) {
        let mut ties = 0.0;
        for (id, &score) in scores.iter().enumerate() {
            let order = order(score);
            if order < self.lowest {
                continue;
            }
            if order == self.lowest {
                ties += 1.0;
                if ties > self.ties {
                    continue;
                }
            }
            let weight = self.weight(score);
            if weight > 0.0 && weight >= self.min_weight && visit(id, weight) {
                return;
            }
        }
    }

    /// The token at `uniform` of the kept weights, laid end to end by id.
    fn draw(&self, scores: &[f32], uniform: f64) -> Option<usize> {
        let mut total = 0.0;
        self.visit(scores, |_, weight| {
            total += weight;
            false
        });
        let (mut sum, mut chosen) = (0.0, None);
        self.visit(scores, |id, weight| {
            sum += weight;
            chosen = Some(id);
            sum > uniform * total
        });
        chosen
    }
}
