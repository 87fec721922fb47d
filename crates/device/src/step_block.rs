//! The integers of a step as one block and one copy.

use crate::{DType, Device, DeviceError, Element, Stream, Tensor, View};

/// Where each array begins: enough for every element type and for 16-byte loads.
const ALIGN: usize = 16;

/// Host arrays that go to the device together: packed one after another, sent by one copy, seen as tensors there. Made
/// once; using it allocates nothing.
#[derive(Debug)]
pub struct StepBlock {
    /// Words, so that every element type is aligned.
    host: Vec<u64>,
    layout: BlockLayout,
    /// `[capacity_bytes]` u8 on a GPU; the CPU reads the host's.
    device: Option<Tensor>,
}

/// An array of a [`StepBlock`]; the default is a place for no elements.
#[derive(Clone, Copy, Debug)]
pub struct BlockSlot {
    offset_bytes: usize,
    dtype: DType,
}

impl Default for BlockSlot {
    fn default() -> Self {
        Self { offset_bytes: 0, dtype: DType::U8 }
    }
}

/// Places arrays in a block, one after another. The same arrays in the same order get the same places, so that recorded work can
/// be told where they will lie.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockLayout {
    len_bytes: usize,
}

impl BlockLayout {
    /// The place of the next array, of `len` elements.
    pub fn array<T: Element>(&mut self, len: usize) -> BlockSlot {
        let offset_bytes = self.len_bytes;
        self.len_bytes = offset_bytes.saturating_add(len.saturating_mul(size_of::<T>())).next_multiple_of(ALIGN);
        BlockSlot { offset_bytes, dtype: T::DTYPE }
    }

    /// Bytes of all arrays so far.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl StepBlock {
    /// Bytes that an array of `len` elements takes in a block.
    #[must_use]
    pub const fn bytes_of<T: Element>(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(ALIGN)
    }

    /// A block for up to `capacity_bytes`, see [`StepBlock::bytes_of`].
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] or [`DeviceError::Driver`].
    pub fn new(device: &Device, capacity_bytes: usize) -> Result<Self, DeviceError> {
        let capacity_bytes = capacity_bytes.next_multiple_of(ALIGN);
        let on_device = || Tensor::zeros(device, DType::U8, &[capacity_bytes]);
        Ok(Self {
            host: vec![0; capacity_bytes / size_of::<u64>()],
            layout: BlockLayout::default(),
            device: device.is_cuda().then(on_device).transpose()?,
        })
    }

    /// Forgets all arrays.
    pub fn clear(&mut self) {
        self.layout = BlockLayout::default();
    }

    /// Begins with arrays that are placed already, to be filled by [`StepBlock::array_mut`].
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] for more than the block takes.
    pub fn place(&mut self, layout: BlockLayout) -> Result<(), DeviceError> {
        if layout.len_bytes > self.host.len() * size_of::<u64>() {
            return Err(DeviceError::TooLarge { value: layout.len_bytes });
        }
        self.layout = layout;
        Ok(())
    }

    /// The `len` elements of an array on the host, to be filled.
    ///
    /// # Errors
    /// [`DeviceError::WrongDType`] for another type than it was placed with, [`DeviceError::TooLarge`] for elements beyond what
    /// was placed.
    pub fn array_mut<T: Element>(&mut self, slot: BlockSlot, len: usize) -> Result<&mut [T], DeviceError> {
        if slot.dtype != T::DTYPE {
            return Err(DeviceError::WrongDType { actual: slot.dtype, wanted: T::DTYPE });
        }
        let end = slot.offset_bytes.saturating_add(len.saturating_mul(size_of::<T>()));
        if end > self.layout.len_bytes {
            return Err(DeviceError::TooLarge { value: end });
        }
        let host: &mut [u8] = bytemuck::cast_slice_mut(&mut self.host);
        let bytes = host.get_mut(slot.offset_bytes..end).ok_or(DeviceError::TooLarge { value: end })?;
        bytemuck::try_cast_slice_mut(bytes).map_err(|_| DeviceError::Misaligned { dtype: T::DTYPE })
    }

    /// Adds an array.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] when the block is full.
    pub fn push<T: Element>(&mut self, values: &[T]) -> Result<BlockSlot, DeviceError> {
        let mut layout = self.layout;
        let slot = layout.array::<T>(values.len());
        self.place(layout)?;
        self.array_mut(slot, values.len())?.copy_from_slice(values);
        Ok(slot)
    }

    /// Brings all arrays to the device, in the stream's order. Nothing to do on the CPU.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn send(&mut self, stream: &Stream) -> Result<(), DeviceError> {
        let Some(device) = &mut self.device else { return Ok(()) };
        let host: &[u8] = bytemuck::cast_slice(&self.host);
        let len_bytes = self.layout.len_bytes;
        stream.write(host.get(..len_bytes).unwrap_or_default(), device.rows_mut(0..len_bytes)?)
    }

    /// An array, where the device's operators read it.
    ///
    /// # Errors
    /// [`DeviceError::SizeMismatch`] for a shape that reaches beyond the block.
    pub fn view(&self, slot: BlockSlot, dims: &[usize]) -> Result<View<'_>, DeviceError> {
        let whole = match &self.device {
            Some(device) => device.view(),
            None => {
                let host: &[u8] = bytemuck::cast_slice(&self.host);
                View::from_slice(host, &[host.len()])?
            }
        };
        whole.cast_bytes(slot.offset_bytes, slot.dtype, dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_out_as_they_went_in() {
        let device = Device::cpu(1).unwrap();
        let capacity = StepBlock::bytes_of::<i32>(3) + StepBlock::bytes_of::<i64>(2) + StepBlock::bytes_of::<u8>(0);
        let mut block = StepBlock::new(&device, capacity).unwrap();
        for round in 0..2 {
            block.clear();
            let ids = block.push(&[round, 2, 3]).unwrap();
            let slots = block.push(&[-1_i64, 7]).unwrap();
            block.send(device.stream()).unwrap();
            assert_eq!(block.view(ids, &[3]).unwrap().as_slice::<i32>().unwrap(), [round, 2, 3]);
            assert_eq!(block.view(slots, &[1, 2]).unwrap().as_slice::<i64>().unwrap(), [-1, 7]);
            assert!(block.push(&[0_u8; 1]).is_err());
            assert!(block.view(slots, &[3]).is_err());
        }
        // The same arrays, placed before they are known.
        let mut layout = BlockLayout::default();
        let (ids, slots) = (layout.array::<i32>(3), layout.array::<i64>(2));
        block.place(layout).unwrap();
        block.array_mut(ids, 3).unwrap().copy_from_slice(&[4, 5, 6]);
        block.array_mut(slots, 2).unwrap().copy_from_slice(&[8_i64, 9]);
        block.send(device.stream()).unwrap();
        assert_eq!(block.view(ids, &[3]).unwrap().as_slice::<i32>().unwrap(), [4, 5, 6]);
        assert_eq!(block.view(slots, &[2]).unwrap().as_slice::<i64>().unwrap(), [8, 9]);
        assert!(block.array_mut::<i32>(slots, 2).is_err());
        assert!(block.array_mut::<i64>(slots, 3).is_err());
        layout.array::<u8>(1);
        assert!(block.place(layout).is_err());
    }
}
