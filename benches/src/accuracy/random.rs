//! Two forms of a model on random text: for weights that nobody trained, which answer nothing.

use anyhow::ensure;
use foveal_device::Device;
use foveal_types::TokenId;

use super::divergence::{KeptLogits, MAX_KEPT_BYTES, divergences};
use super::model::{LoadedModel, ModelChoice, Scope, check_pair};
use super::run::{Run, RunLimits, max_logit_rows};
use super::{DivergenceSummary, RowDivergence};

/// Prompts of random tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomPrompts {
    /// Prompts.
    pub num_prompts: usize,
    /// Tokens of each.
    pub num_tokens: usize,
    /// Of the random numbers.
    pub seed: u64,
}

/// Feeds both models with the same random prompts and compares them behind every token. The reference runs first and is
/// gone when the candidate comes.
///
/// # Errors
/// Of the models or the device; for more rows than the reference's logits have room for ([`MAX_KEPT_BYTES`]).
pub fn judge_random(
    device: &Device,
    candidate: &ModelChoice,
    reference: &ModelChoice,
    prompts: RandomPrompts,
) -> anyhow::Result<DivergenceSummary> {
    check_pair(device, candidate, reference)?;
    ensure!(prompts.num_prompts > 0 && prompts.num_tokens > 0, "no prompts, or none with tokens");
    let kept = prompts.keep(&reference.load(device, Scope::Decoder)?)?;
    let model = candidate.load(device, Scope::Decoder)?;
    let mut rows: Vec<RowDivergence> = Vec::new();
    let mut blocks = 0;
    prompts.feed(&model, |logits| {
        rows.extend(divergences(kept.get(blocks).unwrap_or_default(), logits, model.vocab_size()));
        blocks += 1;
    })?;
    DivergenceSummary::of(rows).ok_or_else(|| anyhow::anyhow!("no rows were compared"))
}

impl RandomPrompts {
    /// All of the reference's logits.
    fn keep(&self, model: &LoadedModel) -> anyhow::Result<KeptLogits> {
        let vocab_size = model.vocab_size();
        let rows = self.num_prompts.saturating_mul(self.num_tokens);
        let most = MAX_KEPT_BYTES / (vocab_size * size_of::<f32>());
        ensure!(rows <= most, "{rows} rows of {vocab_size} logits are too many to keep: at most {most}");
        let mut kept = KeptLogits::default();
        self.feed(model, |logits| kept.push(logits))?;
        Ok(kept)
    }

    /// Feeds one prompt after the other, in chunks whose logits there is memory for.
    fn feed(&self, model: &LoadedModel, mut on_logits: impl FnMut(&[f32])) -> anyhow::Result<()> {
        let (len, most) = (self.num_tokens, model.decoder.max_model_len());
        ensure!(len <= most, "a prompt has {len} tokens, the model takes {most}");
        let chunk = max_logit_rows(model).min(len);
        let limits = RunLimits { num_seqs: 1, max_len: len, max_tokens: chunk, max_logit_rows: chunk };
        let mut run = Run::open(model, &limits)?;
        let mut random = SplitMix64(self.seed);
        for _ in 0..self.num_prompts {
            let prompt: Vec<TokenId> = (0..len).map(|_| random.token(model.vocab_size())).collect();
            for (i, ids) in prompt.chunks(chunk).enumerate() {
                let mut rows = run.rows();
                rows.push_text(0, i * chunk, ids);
                on_logits(run.read(&rows, None)?);
            }
        }
        Ok(())
    }
}

/// Sebastiano Vigna's generator, <https://prng.di.unimi.it/splitmix64.c>.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn token(&mut self, vocab_size: usize) -> TokenId {
        TokenId((self.next() % vocab_size as u64) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::SplitMix64;

    /// The first values that Vigna's program gives for seed 0.
    #[test]
    fn numbers_are_splitmix64() {
        let mut random = SplitMix64(0);
        assert_eq!([random.next(), random.next()], [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4]);
    }
}
