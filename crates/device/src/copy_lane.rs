//! Bytes that come to a GPU beside its work instead of between it.

use std::fmt;

use crate::{CudaStream, DType, Device, DeviceError, Event, Tensor, View};

/// A stream of copies beside a stream of work, and memory for what it brings: a copy begins when the work that reads its place
/// has ended, and the work that reads it waits for the copy; the host waits for neither.
pub struct CopyLane {
    copies: CudaStream,
    /// They take turns, so that one is filled while the work on the other still waits; the first is next.
    places: [Place; 2],
}

struct Place {
    /// `[capacity_bytes]` u8
    bytes: Tensor,
    copied: Event,
    /// Behind the work that read it last.
    read: Event,
}

impl CopyLane {
    /// Beside the stream of a GPU, for up to `capacity_bytes` at once; takes twice as many.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] on the CPU, which needs none; [`DeviceError::OutOfMemory`] or [`DeviceError::Driver`].
    pub fn new(device: &Device, capacity_bytes: usize) -> Result<Self, DeviceError> {
        let Some(work) = device.stream().cuda() else {
            let reason = "it reads the host's memory where it is".to_owned();
            return Err(DeviceError::Unavailable { device: "the CPU".to_owned(), reason });
        };
        let place = || -> Result<Place, DeviceError> {
            Ok(Place {
                bytes: Tensor::zeros(device, DType::U8, &[capacity_bytes])?,
                copied: Event::new(work.device())?,
                read: Event::new(work.device())?,
            })
        };
        Ok(Self { copies: work.beside()?, places: [place()?, place()?] })
    }

    /// Begins to bring `bytes`, has `work` wait for them, and has `read` give what reads them to `work`.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] for more than the capacity, [`DeviceError::Driver`], and what `read` fails with.
    pub fn bring<R, E: From<DeviceError>>(
        &mut self,
        work: &CudaStream,
        bytes: &[u8],
        read: impl FnOnce(View<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        let Self { copies, places: [place, _] } = self;
        if bytes.len() > place.bytes.len_bytes() {
            return Err(DeviceError::TooLarge { value: bytes.len() }.into());
        }
        copies.wait_for(&place.read)?;
        copies.upload(bytes, place.bytes.rows_mut(0..bytes.len())?)?;
        copies.record(&mut place.copied)?;
        work.wait_for(&place.copied)?;
        let result = read(place.bytes.rows(0..bytes.len())?);
        // Also after an error: some of it may have been given.
        work.record(&mut place.read)?;
        self.places.swap(0, 1);
        result
    }
}

impl fmt::Debug for CopyLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [place, _] = &self.places;
        write!(f, "CopyLane(2 places of {} bytes)", place.bytes.len_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;

    #[test]
    fn a_cpu_has_none() {
        assert!(matches!(CopyLane::new(&Device::cpu(1).unwrap(), 16), Err(DeviceError::Unavailable { .. })));
    }

    /// Each batch of bytes arrives whole, though the next ones are on their way before it is read.
    #[test]
    fn bytes_arrive_in_order_on_a_gpu() {
        let Some(device) = gpu() else { return };
        let work = device.stream().cuda().unwrap();
        let mut lane = CopyLane::new(&device, 1 << 20).unwrap();
        let mut kept = Tensor::zeros(&device, DType::U8, &[8, 1 << 20]).unwrap();
        for i in 0..8_u8 {
            let to = kept.rows_mut(usize::from(i)..usize::from(i) + 1).unwrap();
            lane.bring(work, &vec![i + 1; 1 << 20], |bytes| work.copy(bytes.reshape(&[1, 1 << 20])?, to)).unwrap();
        }
        let kept = kept.to_vec::<u8>().unwrap();
        assert!(kept.chunks(1 << 20).zip(1..).all(|(row, i)| row.iter().all(|&byte| byte == i)));
        let refused = lane.bring(work, &vec![0; (1 << 20) + 1], |_| Ok::<_, DeviceError>(()));
        assert!(matches!(refused, Err(DeviceError::TooLarge { .. })));
    }
}
