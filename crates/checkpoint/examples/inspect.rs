//! Prints what a model folder holds, without loading it. Takes a folder, or shows the tiny model of this repository.

use std::env;
use std::error::Error;

use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};
use foveal_device::DType;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny");

fn main() -> Result<(), Box<dyn Error>> {
    let folder = ModelFolder::open(env::args().nth(1).as_deref().unwrap_or(TINY))?;
    let config = ModelConfig::load(&folder)?;
    let (text, vision) = (&config.text, &config.vision);
    println!("{}: {}", folder.name(), config.family.name());
    println!(
        "  decoder: {} layers of {}, {} heads over {} KV heads of {}",
        text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.head_dim
    );
    println!(
        "  tower:   {} blocks of {}, {} heads, patches of {} px, {} deepstack levels",
        vision.depth,
        vision.hidden_size,
        vision.num_heads,
        vision.patch_size,
        vision.deepstack_visual_indexes.len()
    );
    println!("  KV cache: {} bytes per token in bf16", text.kv_bytes_per_token(DType::BF16));
    config.ensure_supported()?;

    let weights = WeightSource::open(&folder)?;
    println!("  {} tensors, {} bytes", weights.tensors().len(), weights.total_bytes());
    for (component, summary) in weights.summary() {
        let (parameters, bytes) = (summary.num_parameters, summary.len_bytes);
        println!("    {component}: {parameters} parameters, {bytes} bytes {:?}", summary.dtypes);
    }
    Ok(())
}
