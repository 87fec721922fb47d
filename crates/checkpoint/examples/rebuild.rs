//! Rebuilds a reference checkpoint from its manifest into a safetensors file: `rebuild MANIFEST OUT`. Without arguments
//! it rebuilds the smallest one into a temporary directory.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use foveal_checkpoint::WeightSource;

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/goldens/qwen2_vl/manifest.json");

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = env::args().nth(1).unwrap_or_else(|| MANIFEST.to_owned());
    let out = env::args().nth(2).map_or_else(|| env::temp_dir().join("rebuilt.safetensors"), PathBuf::from);
    let weights = WeightSource::rebuilt(&fs::read(&manifest)?, &manifest)?;
    weights.write_safetensors(&out)?;
    println!("{}: {} tensors, {} bytes", out.display(), weights.tensors().len(), weights.total_bytes());
    Ok(())
}
