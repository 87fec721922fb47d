//! Working memory that operators need on a GPU alone.

use foveal_device::{DType, Device, DeviceError, Tensor, ViewMut};

/// Less is not worth being allocated again for.
const MIN_BYTES: usize = 1 << 16;

/// Bytes that are lent to one operator after another. On the CPU there are none.
#[derive(Debug)]
pub(super) struct LentBytes {
    device: Device,
    memory: Option<Tensor>,
    /// What became too small. It is no more than what took its place, and recorded steps are dropped where memory is freed.
    outgrown: Vec<Tensor>,
}

impl LentBytes {
    pub(super) fn new(device: &Device) -> Self {
        Self { device: device.clone(), memory: None, outgrown: Vec::new() }
    }

    /// At least `len_bytes` of a GPU's memory. Where more are needed than ever before, they are allocated, twice as many
    /// as then: a step that does so is rare. What the memory held is lost then, and only then.
    pub(super) fn lend(&mut self, len_bytes: usize) -> Result<ViewMut<'_>, DeviceError> {
        if !self.device.is_cuda() {
            return ViewMut::from_slice::<u8>(&mut [], &[0]);
        }
        let memory = match self.memory.take() {
            Some(memory) if memory.len_bytes() >= len_bytes => memory,
            outgrown => {
                self.outgrown.extend(outgrown);
                let len_bytes = len_bytes.max(MIN_BYTES).checked_next_power_of_two().unwrap_or(len_bytes);
                Tensor::zeros(&self.device, DType::U8, &[len_bytes])?
            }
        };
        self.memory.insert(memory).view_mut()
    }
}
