//! Finding the quickest matrix products before the first step.

use foveal_device::{Stream, Tensor, UniformFill};

use crate::layer::DecoderLayer;
use crate::projection::Projection;
use crate::projection_input::ProjectionInput;
use crate::{Decoder, LlmError, Workspace};

/// The fewest rows that are tuned for: below, a kernel of our own needs no choice, and for FP8 on Hopper up to 64, with block scales
/// and few weights up to 128.
const FEWEST_ROWS: usize = 16;
/// From so many rows on a product's time hangs on how its tiles fill the card, and three numbers of rows between one power of two
/// and the next are tuned for as well; below, it hangs on reading weights.
const FINE_FROM: usize = 512;
/// Layers whose weights take turns, so that none comes from the GPU's cache: four of a large model's are several times as
/// large as that.
const LAYERS_IN_TURN: usize = 4;
/// Where the random activations start; any would do. Zeros would run faster than anything real.
const SEED: u64 = 0x5EED;

impl Decoder {
    /// Has the device find its quickest matrix products for steps of up to as many rows as `workspace` takes, by trying.
    /// The choices are kept on disk: a second start finds them there. Nothing to find on the CPU.
    ///
    /// # Errors
    /// [`LlmError::Op`] or [`LlmError::Device`].
    pub fn tune(&self, stream: &Stream, workspace: &mut Workspace) -> Result<(), LlmError> {
        let Some(cuda) = stream.cuda() else { return Ok(()) };
        for input in [&mut workspace.hidden.normed, &mut workspace.attn, &mut workspace.inner] {
            let tensor = &mut input.float;
            let len = tensor.shape().num_elements();
            let fill = UniformFill { state: SEED, offset: 0.0, scale: 1.0, rows: 1, row_len: len, placed_len: len };
            cuda.fill_uniform(fill, tensor.view_mut()?)?;
        }
        let most = workspace.limits().max_tokens;
        tuned_rows(most).try_for_each(|rows| self.tune_rows(stream, rows, workspace))
    }

    fn tune_rows(&self, stream: &Stream, n: usize, ws: &mut Workspace) -> Result<(), LlmError> {
        let layers: Vec<&DecoderLayer> = self.layers().iter().take(LAYERS_IN_TURN).collect();
        let tune =
            |projection: fn(&DecoderLayer) -> &Projection, x: &mut ProjectionInput, out: &mut Tensor| match &layers[..]
            {
                [] => Ok(()),
                [first, others @ ..] => {
                    let others: Vec<&Projection> = others.iter().map(|layer| projection(layer)).collect();
                    x.round(stream, n, projection(first).input_form())?;
                    projection(first).tune(stream, n, x, out, &others)
                }
            };
        tune(|layer| &layer.attention.qkv_proj, &mut ws.hidden.normed, &mut ws.qkv)?;
        tune(|layer| &layer.attention.o_proj, &mut ws.attn, &mut ws.hidden.delta)?;
        tune(|layer| &layer.mlp.gate_up_proj, &mut ws.hidden.normed, &mut ws.gate_up)?;
        tune(|layer| &layer.mlp.down_proj, &mut ws.inner, &mut ws.hidden.delta)?;
        if n <= ws.limits().max_logit_rows {
            let head = self.lm_head();
            ws.hidden.normed.round(stream, n, head.input_form())?;
            head.tune(stream, n, &ws.hidden.normed, &mut ws.logits, &[])?;
        }
        Ok(())
    }
}

/// The numbers of rows up to `most` that are tuned for, in rising order. Steps of other numbers take what was found for the next
/// larger one.
fn tuned_rows(most: usize) -> impl Iterator<Item = usize> {
    let next = |&rows: &usize| {
        let power = 1 << rows.ilog2();
        rows.checked_add(if rows < FINE_FROM { power } else { power / 4 })
    };
    let below = std::iter::successors(Some(FEWEST_ROWS), next).take_while(move |&rows| rows < most);
    below.chain((most >= FEWEST_ROWS).then_some(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_double_and_are_finer_where_tiles_count() {
        let up_to = |most| tuned_rows(most).collect::<Vec<usize>>();
        assert_eq!(up_to(2560), [16, 32, 64, 128, 256, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560]);
        assert_eq!(up_to(600), [16, 32, 64, 128, 256, 512, 600]);
        assert_eq!((up_to(16), up_to(15)), (vec![16], vec![]));
    }
}
