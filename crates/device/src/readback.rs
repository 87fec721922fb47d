//! Results on their way back to the host.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::cuda::{Event, PinnedMemory};
use crate::{Device, DeviceError, Element, Stream, View};

/// Where each tensor begins in the block: enough for every element type, and for whole cache lines to be rare.
const ALIGN: usize = 16;
/// The most tensors of one read.
const MAX_VIEWS: usize = 8;

/// Page-locked memory for the results of a step, and the one event that the host waits for. Made once; a read allocates
/// nothing.
///
/// [`Readback::read`] waits at once. [`Readback::begin`] and [`Readback::finish`] leave the host time to prepare the next
/// step in between; several steps at once take several of these.
pub struct Readback {
    kind: Kind,
    ranges: [Range<usize>; MAX_VIEWS],
    /// Whether copies may still be under way.
    is_under_way: bool,
}

enum Kind {
    /// On the CPU results are copied, so that code needn't tell the devices apart.
    Host(Vec<u64>),
    Cuda {
        memory: PinnedMemory,
        event: Event,
    },
}

/// What was read; the tensors by their place among the views.
pub struct ReadbackBytes<'a> {
    bytes: &'a [u8],
    ranges: &'a [Range<usize>; MAX_VIEWS],
}

impl Readback {
    /// Memory for reads of up to `capacity_bytes`, with each tensor's length rounded up to 16 bytes.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] or [`DeviceError::Driver`].
    pub fn new(device: &Device, capacity_bytes: usize) -> Result<Self, DeviceError> {
        let kind = match device.stream().cuda() {
            None => Kind::Host(vec![0; capacity_bytes.div_ceil(size_of::<u64>())]),
            Some(cuda) => Kind::Cuda {
                memory: PinnedMemory::zeroed(cuda.device(), capacity_bytes)?,
                event: Event::new(cuda.device())?,
            },
        };
        Ok(Self { kind, ranges: Default::default(), is_under_way: false })
    }

    /// Copies the tensors to the host and waits for them, and so for everything before them in the stream: one event
    /// wait.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] for more than the capacity or more than 8 tensors, [`DeviceError::NotOnDevice`] or
    /// [`DeviceError::NotOnHost`] for a tensor of another device, [`DeviceError::Driver`].
    pub fn read(&mut self, stream: &Stream, views: &[View<'_>]) -> Result<ReadbackBytes<'_>, DeviceError> {
        self.begin(stream, views)?;
        self.finish()
    }

    /// Has the tensors copied to the host behind what the stream has been given so far, and doesn't wait. What was begun
    /// before is waited for and lost.
    ///
    /// # Errors
    /// As [`Readback::read`].
    pub fn begin(&mut self, stream: &Stream, views: &[View<'_>]) -> Result<(), DeviceError> {
        self.settle()?;
        self.ranges = Default::default();
        if views.len() > MAX_VIEWS {
            return Err(DeviceError::TooLarge { value: views.len() });
        }
        let ranges = &mut self.ranges;
        let mut end = 0_usize;
        for (range, view) in ranges.iter_mut().zip(views) {
            let start = end.next_multiple_of(ALIGN);
            end = start + view.len_bytes();
            *range = start..end;
        }
        match &mut self.kind {
            Kind::Host(words) => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
                for (range, view) in ranges.iter().zip(views) {
                    let to = bytes.get_mut(range.clone()).ok_or(DeviceError::TooLarge { value: end })?;
                    to.copy_from_slice(view.as_bytes()?);
                }
                Ok(())
            }
            Kind::Cuda { memory, event } => {
                let cuda = stream.cuda().ok_or(DeviceError::Unavailable {
                    device: "the CPU".to_owned(),
                    reason: "this read-back was made for a GPU".to_owned(),
                })?;
                if end > memory.bytes().len() {
                    return Err(DeviceError::TooLarge { value: end });
                }
                self.is_under_way = true;
                let mut copied = Ok(());
                for (range, view) in ranges.iter().zip(views) {
                    // SAFETY: `memory` is borrowed exclusively, and whoever sees it again waits for the event first:
                    // `finish`, the next `begin` and `drop`. An error below waits here.
                    copied = copied.and_then(|()| unsafe { cuda.copy_to_pinned(view, memory, range.clone()) });
                }
                if let Err(error) = cuda.record(event) {
                    cuda.synchronize()?;
                    return Err(error);
                }
                copied
            }
        }
    }

    /// Waits for what was begun last, and so for everything before it in the stream: one event wait.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also for a fault of what ran before.
    pub fn finish(&mut self) -> Result<ReadbackBytes<'_>, DeviceError> {
        self.settle()?;
        let bytes = match &self.kind {
            Kind::Host(words) => bytemuck::cast_slice(words),
            Kind::Cuda { memory, .. } => memory.bytes(),
        };
        Ok(ReadbackBytes { bytes, ranges: &self.ranges })
    }

    /// Waits until no copy writes the memory.
    fn settle(&mut self) -> Result<(), DeviceError> {
        match &self.kind {
            Kind::Cuda { event, .. } if self.is_under_way => event.wait()?,
            _ => {}
        }
        self.is_under_way = false;
        Ok(())
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        // A device that can't be waited for writes no more.
        let _ = self.settle();
    }
}

impl ReadbackBytes<'_> {
    /// The elements of the `index`-th tensor.
    ///
    /// # Errors
    /// [`DeviceError::Misaligned`] where its length is no multiple of the element's size.
    pub fn slice<T: Element>(&self, index: usize) -> Result<&[T], DeviceError> {
        let range = self.ranges.get(index).cloned().unwrap_or_default();
        let bytes = self.bytes.get(range).unwrap_or_default();
        bytemuck::try_cast_slice(bytes).map_err(|_| DeviceError::Misaligned { dtype: T::DTYPE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_one_by_one() {
        let device = Device::cpu(1).unwrap();
        let mut readback = Readback::new(&device, 64).unwrap();
        let (a, b) = ([1_i32, 2, 3], [0.5_f32, 4.0]);
        let views = [View::from_slice(&a, &[3]).unwrap(), View::from_slice(&b, &[2]).unwrap()];
        let read = readback.read(device.stream(), &views).unwrap();
        assert_eq!(read.slice::<i32>(0).unwrap(), a);
        assert_eq!(read.slice::<f32>(1).unwrap(), b);
        assert!(read.slice::<f32>(2).unwrap().is_empty());
        readback.begin(device.stream(), &[View::from_slice(&b, &[2]).unwrap()]).unwrap();
        assert_eq!(readback.finish().unwrap().slice::<f32>(0).unwrap(), b);
        assert!(readback.finish().unwrap().slice::<f32>(1).unwrap().is_empty(), "of the read before");
        let long = [0_u8; 65];
        let long = View::from_slice(&long, &[65]).unwrap();
        assert!(matches!(readback.read(device.stream(), &[long]), Err(DeviceError::TooLarge { value: 65 })));
    }
}
