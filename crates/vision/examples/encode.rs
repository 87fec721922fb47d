//! Encodes a picture drawn here with the tiny model's tower, alone: no decoder, no tokenizer.
//!
//! `cargo run -p foveal-vision --example encode [MODEL_FOLDER]`

use std::error::Error;
use std::path::PathBuf;

use foveal_vision::checkpoint::{ModelConfig, ModelFolder, WeightSource, prefix};
use foveal_vision::device::{DType, Device, Tensor};
use foveal_vision::mrope::GridThw;
use foveal_vision::{Normalisation, Patches, VisionInput, VisionOutput, VisionTower};

fn main() -> Result<(), Box<dyn Error>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny");
    let folder = ModelFolder::open(std::env::args_os().nth(1).map_or_else(|| PathBuf::from(default), PathBuf::from))?;
    let config = ModelConfig::load(&folder)?.vision;
    let weights = WeightSource::open(&folder)?;
    let device = Device::cpu(0)?;

    // Qwen3-VL's; a processor reads them from preprocessor_config.json.
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
    let tower = VisionTower::load(&config, normalisation, &weights, &device)?;
    weights.finish(&[prefix::VISION])?; // a tensor of the tower that nobody took is an error

    let merge = tower.spatial_merge_size() as u32;
    let grid = GridThw { t: 1, h: 4 * merge, w: 6 * merge };
    let pixels = red_disc(grid, merge as usize, config.patch_size);
    let mut workspace = tower.new_workspace(grid.num_patches())?;
    let rows = [tower.num_tokens(grid), tower.out_hidden_size()];
    let mut embeds = Tensor::zeros(&device, DType::F32, &rows)?;
    let mut levels = Vec::new();
    for _ in 0..tower.num_deepstack() {
        levels.push(Tensor::zeros(&device, DType::F32, &rows)?);
    }

    let deepstack = levels.iter_mut().map(Tensor::view_mut).collect::<Result<_, _>>()?;
    let output = VisionOutput { embeds: embeds.view_mut()?, deepstack };
    let input = VisionInput { grid, patches: Patches::Still(&pixels) };
    tower.encode(device.stream(), &[input], &mut workspace, output)?;

    println!("{} patches of {grid} -> {} tokens", grid.num_patches(), tower.num_tokens(grid));
    print(&embeds, "embeds")?;
    for (i, level) in levels.iter().enumerate() {
        print(level, &format!("deepstack.{i}"))?;
    }
    Ok(())
}

/// The mean length of a tensor's rows.
fn print(rows: &Tensor, name: &str) -> Result<(), Box<dyn Error>> {
    let values = rows.view();
    let values = values.as_slice::<f32>()?;
    let norms = values.chunks(rows.shape().row_len()).map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt());
    let num_rows = values.len() / rows.shape().row_len();
    println!("{name:12} {} mean row norm {:.3}", rows.shape(), norms.sum::<f32>() / num_rows as f32);
    Ok(())
}

/// A red disc on white, as the uint8 patches of one temporal copy: merge cell by merge cell, in each cell patch by
/// patch, in each patch channel by channel.
fn red_disc(grid: GridThw, merge: usize, patch: usize) -> Vec<u8> {
    let (rows, columns) = (grid.h as usize, grid.w as usize);
    let (center_y, center_x) = (rows * patch / 2, columns * patch / 2);
    let radius = center_y.min(center_x) * 3 / 4;
    let mut pixels = Vec::with_capacity(rows * columns * 3 * patch * patch);
    for index in 0..rows * columns {
        let (cell, place) = (index / (merge * merge), index % (merge * merge));
        let row = cell / (columns / merge) * merge + place / merge;
        let column = cell % (columns / merge) * merge + place % merge;
        for channel in 0..3 {
            for i in 0..patch * patch {
                let (y, x) = (row * patch + i / patch, column * patch + i % patch);
                let is_inside = y.abs_diff(center_y).pow(2) + x.abs_diff(center_x).pow(2) < radius.pow(2);
                pixels.push(if is_inside && channel > 0 { 30 } else { 230 });
            }
        }
    }
    pixels
}
