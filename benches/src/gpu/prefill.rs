//! A prompt, and pictures.

use std::path::Path;

use foveal_checkpoint::{ModelConfig, VisionConfig, WeightSource};
use foveal_device::Tensor;
use foveal_mrope::GridThw;
use foveal_vision::{Normalisation, Patches, VisionInput, VisionOutput, VisionTower};

use super::Bench;
use super::ceilings::Cost;
use super::session::{ModelForm, SEED, Session, config, step_cost};

/// Tokens of the prompt.
const TOKENS: usize = 1280;
/// Side of the pictures in pixels, and how many are encoded together.
const SIDE: usize = 512;
const PICTURES: [usize; 2] = [1, 8];

/// A prompt of 1280 tokens and pictures of 512 x 512, with dummy weights.
///
/// # Errors
/// Of the device, or of the model.
pub fn prefill(bench: &mut Bench, model: &Path, form: ModelForm) -> anyhow::Result<()> {
    let config = config(model)?;
    let shape = format!("1 x {TOKENS}{}", form.suffix());
    if bench.wants("prefill eager", &shape) || bench.wants("prefill graph", &shape) {
        let mut session = Session::open(&bench.device, &config, form, (1, TOKENS), 2048)?;
        let step = session.step(0..1, 0..TOKENS);
        let cost = step_cost(&config, form, 1, TOKENS, TOKENS);
        bench.time_pass("prefill", &shape, cost, || session.forward(&step))?;
    }
    pictures(bench, &config)
}

fn pictures(bench: &mut Bench, config: &ModelConfig) -> anyhow::Result<()> {
    let shape = |count: usize| format!("{count} x {SIDE} x {SIDE}");
    let ops = ["vision tower eager", "vision tower graph"];
    if !PICTURES.iter().any(|&count| ops.iter().any(|op| bench.wants(op, &shape(count)))) {
        return Ok(());
    }
    let weights = WeightSource::dummy(config, SEED)?;
    let normalisation = Normalisation { mean: [0.5; 3], std: [0.5; 3] };
    let tower = VisionTower::load(&config.vision, normalisation, &weights, &bench.device)?;
    let side = (SIDE / config.vision.patch_size) as u32;
    let grid = GridThw { t: 1, h: side, w: side };
    let patch_bytes = config.vision.patch_len() / config.vision.temporal_patch_size;
    let pixels: Vec<u8> = (0..grid.num_patches() * patch_bytes).map(|i| (i * 37 % 251) as u8).collect();
    let device = bench.device.clone();
    for count in PICTURES {
        let inputs = vec![VisionInput { grid, patches: Patches::Still(&pixels) }; count];
        let mut workspace = tower.new_workspace(count * grid.num_patches())?;
        let dims = [count * tower.num_tokens(grid), tower.out_hidden_size()];
        let tensor = || Tensor::zeros(&device, device.activation_dtype(), &dims);
        let mut embeds = tensor()?;
        let mut deepstack = (0..tower.num_deepstack()).map(|_| tensor()).collect::<Result<Vec<_>, _>>()?;
        let cost = tower_cost(&config.vision, grid, count);
        bench.time_eager(ops[0], &shape(count), cost, || {
            let out = output(&mut embeds, &mut deepstack)?;
            Ok(tower.encode(device.stream(), &inputs, &mut workspace, out)?)
        })?;
        // Without the pixels' way to the card.
        tower.load_inputs(device.stream(), &inputs, &mut workspace)?;
        bench.time_recorded(ops[1], &shape(count), cost, || {
            let out = output(&mut embeds, &mut deepstack)?;
            Ok(tower.launch(device.stream(), &mut workspace, out)?)
        })?;
    }
    Ok(())
}

fn output<'a>(embeds: &'a mut Tensor, deepstack: &'a mut [Tensor]) -> anyhow::Result<VisionOutput<'a>> {
    let deepstack = deepstack.iter_mut().map(Tensor::view_mut).collect::<Result<_, _>>()?;
    Ok(VisionOutput { embeds: embeds.view_mut()?, deepstack })
}

/// Of the blocks and the mergers; the patch embedding is a thousandth of it, and weights are small beside what is done
/// with them.
fn tower_cost(vision: &VisionConfig, grid: GridThw, count: usize) -> Cost {
    let n = count * grid.num_patches();
    let block = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size);
    let attention = 4.0 * (n * grid.num_patches()) as f64 * vision.hidden_size as f64;
    let merged = vision.hidden_size * vision.spatial_merge_size.pow(2);
    let merger = merged * (merged + vision.out_hidden_size);
    let mergers = 1 + vision.deepstack_visual_indexes.len();
    let num_merged = n / vision.spatial_merge_size.pow(2);
    let flops = vision.depth as f64 * (2.0 * (n * block) as f64 + attention);
    Cost { bytes: 0.0, flops: flops + 2.0 * (mergers * num_merged * merger) as f64 }
}
