//! How a GPU shares a step's attention among its multiprocessors.

use foveal_device::{DType, Device, DeviceError, Tensor};
use foveal_kernels::paged_attention::{Plan, Work, plan, work_size};

use crate::attention::Step;
use crate::{BatchLimits, DecoderSettings, LlmError};

/// The list of a step's attention work, written on the device once a step and read by every layer, and the memory for
/// partial results. The CPU needs none.
#[derive(Debug)]
pub(crate) struct AttentionWork {
    /// i32
    list: Tensor,
    /// i32, zero between launches.
    counters: Tensor,
    /// f32
    partials: Tensor,
}

impl AttentionWork {
    /// Memory for batches within `limits`; `None` on the CPU.
    pub(crate) fn new(
        settings: &DecoderSettings,
        device: &Device,
        limits: BatchLimits,
    ) -> Result<Option<Self>, DeviceError> {
        let Some(cuda) = device.stream().cuda() else { return Ok(None) };
        let layout = settings.kv_layout(device.activation_dtype());
        let (num_heads, num_sms) = (settings.num_attention_heads, cuda.num_sms() as usize);
        let size = work_size(limits.max_tokens, limits.max_seqs, num_heads, layout, num_sms);
        Ok(Some(Self {
            list: Tensor::zeros(device, DType::I32, &[size.list_len])?,
            counters: Tensor::zeros(device, DType::I32, &[size.counters_len])?,
            partials: Tensor::zeros(device, DType::F32, &[size.partials_len])?,
        }))
    }

    /// Writes the step's list.
    pub(crate) fn plan(&mut self, step: &Step<'_>) -> Result<(), LlmError> {
        let (cu_seqlens, context_lens) = (step.batch.cu_seqlens, step.batch.context_lens);
        let (list, counters) = (self.list.view_mut()?, self.counters.view_mut()?);
        let num_heads = step.settings.num_attention_heads;
        plan(step.stream, Plan { cu_seqlens, context_lens, num_heads, layout: step.layout, list, counters })?;
        Ok(())
    }

    /// What one layer takes.
    pub(crate) fn lend(&mut self) -> Result<Work<'_>, LlmError> {
        Ok(Work { list: self.list.view(), counters: self.counters.view_mut()?, partials: self.partials.view_mut()? })
    }

    /// Bytes of all of it.
    pub(crate) fn len_bytes(&self) -> usize {
        [&self.list, &self.counters, &self.partials].iter().map(|tensor| tensor.len_bytes()).sum()
    }
}
