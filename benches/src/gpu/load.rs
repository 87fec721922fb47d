//! Weights on their way from files to the card.

use std::path::Path;
use std::time::Instant;

use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource};
use foveal_device::Times;
use foveal_llm::Decoder;
use foveal_vision::{Normalisation, VisionTower};

use super::Bench;

/// Positions that the decoder has tables for; few, since they aren't loaded.
const MAX_MODEL_LEN: usize = 1024;

/// How quickly a checkpoint comes from its files to the GPU: the first time, and again, when they are in memory.
///
/// # Errors
/// Of the device, or of the checkpoint.
pub fn load(bench: &mut Bench, folder: &Path) -> anyhow::Result<()> {
    let folder = ModelFolder::open(folder)?;
    let config = ModelConfig::load(&folder)?;
    for round in ["first", "second"] {
        let start = Instant::now();
        let weights = WeightSource::open(&folder)?;
        let decoder = Decoder::load(&config, &weights, &bench.device, MAX_MODEL_LEN)?;
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
        let tower = VisionTower::load(&config.vision, normalisation, &weights, &bench.device)?;
        bench.device.stream().synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        let gb = weights.total_bytes() as f64 / 1e9;
        let times = Times::of(vec![(seconds * 1e6) as f32]);
        bench.report_value(&format!("load {round} time"), &format!("{gb:.1} GB"), times, (gb / seconds, "GB/s"))?;
        drop((decoder, tower));
    }
    Ok(())
}
