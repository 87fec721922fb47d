//! The rotary tables on the device.

use foveal_device::{Device, Tensor, View};
use foveal_kernels::qk_norm_rope::Mrope;
use foveal_mrope::TextRopeTable;

use crate::{DecoderSettings, LlmError};

/// cos and sin by position, computed once and shared by all layers, and which axis turns each pair.
#[derive(Debug)]
pub(crate) struct RopeTables {
    cos: Tensor,
    sin: Tensor,
    axis_of_pair: Tensor,
}

impl RopeTables {
    /// Tables for positions below `max_positions`.
    pub(crate) fn new(settings: &DecoderSettings, device: &Device, max_positions: usize) -> Result<Self, LlmError> {
        let sections = &settings.mrope;
        let table = TextRopeTable::new(settings.rope_theta, sections.rotary_dim(), max_positions)?;
        let dims = [max_positions, sections.num_pairs()];
        Ok(Self {
            cos: Tensor::from_slice(device, table.cos(), &dims)?,
            sin: Tensor::from_slice(device, table.sin(), &dims)?,
            axis_of_pair: Tensor::from_slice(device, sections.axis_of_pair(), &[sections.num_pairs()])?,
        })
    }

    /// The tables with a step's `positions`, `[3, n]`.
    pub(crate) fn at<'a>(&'a self, positions: View<'a>) -> Mrope<'a> {
        Mrope { positions, cos: self.cos.view(), sin: self.sin.view(), axis_of_pair: self.axis_of_pair.view() }
    }
}
