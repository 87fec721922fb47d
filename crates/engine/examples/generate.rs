//! Answers one prompt, given as token ids, with the small model of this repository:
//!
//! ```text
//! cargo run -p foveal-engine --example generate
//! ```
//!
//! The engine knows no tokenizer. The ids below are "Count from 3 to 12." in that model's template, and what comes back are
//! ids too; `foveal-processor` turns text into the one and the other into text.

use foveal_checkpoint::{GenerationConfig, ModelConfig, ModelFolder, WeightSource};
use foveal_engine::Engine;
use foveal_llm::GenerationDefaults;
use foveal_types::{Delta, PreparedRequest, SamplingParams, TokenId};
use foveal_vision::Normalisation;

const PROMPT: [u32; 21] =
    [999, 434, 387, 198, 463, 462, 220, 18, 461, 220, 16, 17, 13, 1000, 198, 999, 64, 82, 447, 449, 198];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = ModelFolder::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny"))?;
    let config = ModelConfig::load(&folder)?;
    let defaults = GenerationDefaults::new(&GenerationConfig::load(&folder, &config.text)?)?;
    let engine = Engine::builder()
        .model(config, WeightSource::open(&folder)?)
        .generation_defaults(defaults)
        .normalisation(Normalisation { mean: [0.5; 3], std: [0.5; 3] })
        .build()?;

    // Text alone: the same position on all three axes, and no delta.
    let positions = (0..3).flat_map(|_| 0..PROMPT.len() as i32).collect();
    let request = PreparedRequest {
        input_ids: PROMPT.map(TokenId).to_vec(),
        positions,
        rope_delta: 0,
        image_token_ranges: Vec::new(),
        images: Vec::new(),
        sampling: SamplingParams { max_tokens: Some(64), ..SamplingParams::default() },
    };
    for delta in engine.generate(request).blocking() {
        match delta? {
            Delta::Prefill { done, total } => println!("prefill: {done} of {total} tokens"),
            Delta::Token(token) => println!("token {}", token.token_id.0),
            Delta::Finished { reason, usage } => println!("finished: {} {usage:?}", reason.as_str()),
            _ => {}
        }
    }
    Ok(())
}
