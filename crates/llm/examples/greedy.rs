//! Greedy decoding of one prompt with the tiny model: prefill in two chunks, then one token a step.
//!
//!     cargo run -p foveal-llm --example greedy

use foveal_llm::KvLayout;
use foveal_llm::checkpoint::{GenerationConfig, ModelConfig, ModelFolder, WeightSource};
use foveal_llm::device::{DType, Device};
use foveal_llm::types::TokenId;
use foveal_llm::{Batch, BatchLimits, Decoder, GenerationDefaults, Sampler, SamplerState, StopCriteria};

/// "Count from 3 to 12." in the model's chat format.
const PROMPT: [i32; 21] =
    [999, 434, 387, 198, 463, 462, 220, 18, 461, 220, 16, 17, 13, 1000, 198, 999, 64, 82, 447, 449, 198];

const MAX_MODEL_LEN: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = ModelFolder::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny"))?;
    let config = ModelConfig::load(&folder)?;
    let device = Device::cpu(0)?;
    let decoder = Decoder::load(&config, &WeightSource::open(&folder)?, &device, MAX_MODEL_LEN)?;
    let num_blocks = MAX_MODEL_LEN.div_ceil(KvLayout::DEFAULT_PAGE);
    let mut cache = decoder.new_kv_cache(num_blocks, DType::F32)?;
    let mut workspace = decoder.new_workspace(BatchLimits { max_tokens: 16, max_seqs: 1, max_logit_rows: 1 })?;

    let defaults = GenerationDefaults::new(&GenerationConfig::load(&folder, &config.text)?)?;
    let params = defaults.sampling.clone();
    let stop = StopCriteria::new(&params, &defaults, PROMPT.len(), MAX_MODEL_LEN);
    let prompt = PROMPT.map(|id| TokenId(id.cast_unsigned()));
    let mut state = SamplerState::new(&params, &prompt, &stop)?;
    let mut sampler = Sampler::new(&device, 1, decoder.settings().vocab_size)?;

    // One sequence that owns all pages in order, so that a token's slot is its index.
    let block_tables: Vec<i32> = (0..num_blocks as i32).collect();
    let mut answer: Vec<u32> = Vec::new();
    let (mut ids, mut start) = (PROMPT.to_vec(), 0);
    loop {
        let end = ids.len().min(start + workspace.limits().max_tokens);
        let positions: Vec<i32> = (start as i32..end as i32).collect();
        let slots: Vec<i64> = (start as i64..end as i64).collect();
        let rows = (end - start) as i32;
        let is_last_chunk = end == ids.len();
        let batch = Batch {
            input_ids: &ids[start..end],
            // Text has the same position on t, h and w.
            positions: &positions.repeat(3),
            slot_mapping: &slots,
            cu_seqlens: &[0, rows],
            context_lens: &[end as i32],
            block_tables: &block_tables,
            max_blocks: num_blocks,
            logit_rows: if is_last_chunk { &[rows - 1] } else { &[] },
            image: None,
        };
        let logits = decoder.forward(device.stream(), &batch, &mut cache, &mut workspace)?;
        start = end;
        if !is_last_chunk {
            continue;
        }
        let token = sampler.sample(device.stream(), logits, &mut [&mut state])?.remove(0)?;
        answer.push(token.token_id.0);
        if let Some(reason) = stop.finish_reason(token.token_id, answer.len()) {
            println!("{answer:?}\n{} tokens, finished by {}", answer.len(), reason.as_str());
            return Ok(());
        }
        ids.push(token.token_id.0.cast_signed());
    }
}
