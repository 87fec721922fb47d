//! Every operator at the shapes of Qwen3-VL-8B.

use foveal_device::DType;

use super::{Bench, accumulation, attention, decoder_rows, linear, sampling, vision_rows};

/// Rows of a decoder's batch: one sequence, many, and a full step of prompts.
const ROWS: [usize; 3] = [1, 128, 8192];
/// Patches of a batch: less than any picture, one picture of 512 x 512, and several.
const PATCHES: [usize; 4] = [1, 128, 1024, 8192];
/// Rows that sample.
const SAMPLED: [usize; 3] = [1, 32, 128];

/// All operators.
///
/// # Errors
/// Of the device, or of an operator.
pub fn kernels(bench: &mut Bench) -> anyhow::Result<()> {
    linear::linears(bench)?;
    accumulation::sums(bench)?;
    for n in ROWS {
        decoder_rows::embedding(bench, n)?;
        decoder_rows::picked_rows(bench, n)?;
        decoder_rows::rms_norm(bench, n)?;
        decoder_rows::rms_norm_f8(bench, n)?;
        decoder_rows::silu(bench, n)?;
        decoder_rows::silu_f8(bench, n)?;
        for kv in [DType::BF16, DType::F8E4M3] {
            decoder_rows::rotary(bench, n, kv)?;
        }
    }
    for n in PATCHES {
        vision_rows::pixels(bench, n)?;
        vision_rows::position_table(bench, n)?;
        vision_rows::layer_norm(bench, n)?;
        vision_rows::gelu(bench, n)?;
        vision_rows::rotary(bench, n)?;
    }
    attention::all(bench)?;
    for rows in SAMPLED {
        sampling::greedy(bench, rows)?;
        sampling::drawn(bench, rows)?;
    }
    Ok(())
}
