//! Pixels to rows of the tower: normalisation and the patch convolution.

use std::sync::Arc;

use foveal_device::{CopyLane, DType, Stream, Tensor, View, ViewMut};
use foveal_kernels::patch::{Normalise, normalise};
use half::bf16;

use crate::input::Slices;
use crate::weights::{LinearWeights, Reader};
use crate::workspace::FlatBuffer;
use crate::{Patches, VisionError, VisionInput};

/// How uint8 pixels become the values that the tower was trained on: `(pixel / 255 - mean) / std`, channel by channel.
/// The processor's settings hold both (`image_mean`, `image_std`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// Mean of each channel, of pixels scaled to [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

/// The patch convolution, once over all temporal slices and once for stills.
pub(crate) struct PatchEmbed {
    /// `[hidden_size, C * T * P * P]`, in place.
    all: LinearWeights,
    /// `[hidden_size, C * P * P]`: the slices' sum. A still shows every slice the same pixels, so that `Σ_t w_t · x` is
    /// `(Σ_t w_t) · x`: half of the products and half of the bytes. Float32 on the CPU, since bfloat16 can't hold the sum
    /// exactly; rounded to bfloat16 on a GPU, as the pixels are.
    one: LinearWeights,
    normalisation: Normalisation,
    row_lens: [usize; 2],
}

impl PatchEmbed {
    pub(crate) fn load(reader: &Reader<'_>, normalisation: Normalisation) -> Result<Self, VisionError> {
        let config = reader.config;
        let (slices, patch) = (config.temporal_patch_size, config.patch_size);
        let shape = [config.hidden_size, config.in_channels, slices, patch, patch];
        let weight = reader.tensor("patch_embed.proj.weight", &shape)?;
        let bias = config.patch_bias.then(|| reader.tensor("patch_embed.proj.bias", &[config.hidden_size]));
        let bias = bias.transpose()?;
        let values = reader.weights.to_f32("patch_embed.proj.weight", &shape)?;
        let summed = sum_slices(&values, slices, patch * patch);
        let one_len = Slices::One.row_len(config);
        let dims = [config.hidden_size, one_len];
        let summed = match reader.device.activation_dtype() {
            DType::BF16 => Tensor::from_slice(reader.device, &to_bf16(&summed), &dims)?,
            _ => Tensor::from_slice(reader.device, &summed, &dims)?,
        };
        Ok(Self {
            all: LinearWeights { weights: vec![weight], bias: bias.clone() },
            one: LinearWeights { weights: vec![Arc::new(summed)], bias },
            normalisation,
            row_lens: [one_len, Slices::All.row_len(config)],
        })
    }

    /// Writes the embedding of every patch to `out`, `[num_patches, hidden_size]`. `pixels` is for the
    /// values on their way.
    pub(crate) fn forward(
        &self,
        stream: &Stream,
        inputs: &[VisionInput<'_>],
        pixels: &mut PixelBuffers<'_>,
        out: &mut ViewMut<'_>,
    ) -> Result<(), VisionError> {
        let mut first = 0;
        // Neighbours of one kind share a product.
        for run in inputs.chunk_by(|a, b| a.patches.slices() == b.patches.slices()) {
            let num_rows = run.iter().map(|input| input.grid.num_patches()).sum();
            let (convolution, row_len) = match run.first().map(|input| input.patches.slices()) {
                Some(Slices::One) => (&self.one, self.row_lens[0]),
                _ => (&self.all, self.row_lens[1]),
            };
            let mut start = 0;
            for input in run {
                let end = start + input.grid.num_patches();
                let rows = pixels.values.view_mut(&[num_rows, row_len])?.rows(start..end)?;
                self.values(stream, input.patches, &mut pixels.lane, rows)?;
                start = end;
            }
            let x = pixels.values.view(&[num_rows, row_len])?;
            convolution.forward(stream, x, out.reborrow().rows(first..first + num_rows)?)?;
            first += num_rows;
        }
        Ok(())
    }

    /// Writes the values of one input's patches, `[num_patches, row_len]`.
    fn values(
        &self,
        stream: &Stream,
        patches: Patches<'_>,
        lane: &mut Option<&mut CopyLane>,
        out: ViewMut<'_>,
    ) -> Result<(), VisionError> {
        let Normalisation { mean, std } = self.normalisation;
        match patches {
            Patches::Still(bytes) | Patches::Video(bytes) => {
                let dims = *out.shape();
                match lane.as_mut().zip(stream.cuda()) {
                    None => {
                        normalise(stream, Normalise { pixels: View::from_slice(bytes, &dims)?, mean, std, out })?;
                    }
                    Some((lane, cuda)) => {
                        lane.bring(cuda, bytes, |pixels| {
                            let pixels = pixels.reshape(&dims)?;
                            Ok::<_, VisionError>(normalise(stream, Normalise { pixels, mean, std, out })?)
                        })?;
                    }
                }
            }
            Patches::Rows(rows) => match out.dtype() {
                DType::BF16 => stream.write(bytemuck::cast_slice(&to_bf16(rows)), out)?,
                _ => stream.write(bytemuck::cast_slice(rows), out)?,
            },
        }
        Ok(())
    }
}

/// Where pixels become values.
pub(crate) struct PixelBuffers<'a> {
    /// For the normalised values.
    pub(crate) values: &'a mut FlatBuffer,
    /// Brings them to a GPU; none on the CPU, which reads them where they are.
    pub(crate) lane: Option<&'a mut CopyLane>,
}

fn to_bf16(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&value| bf16::from_f32(value)).collect()
}

/// Sums the temporal slices of `[rows, T, plane]`.
fn sum_slices(weight: &[f32], slices: usize, plane: usize) -> Vec<f32> {
    let mut summed = Vec::with_capacity(weight.len() / slices);
    for channel in weight.chunks_exact(slices * plane) {
        let (first, others) = channel.split_at(plane);
        let start = summed.len();
        summed.extend_from_slice(first);
        for slice in others.chunks_exact(plane) {
            for (sum, value) in summed[start..].iter_mut().zip(slice) {
                *sum += value;
            }
        }
    }
    summed
}
