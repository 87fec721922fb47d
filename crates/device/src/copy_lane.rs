//! Bytes that come to a GPU beside its work instead of between it.

use std::fmt;

use crate::{CudaStream, DType, Device, DeviceError, Event, Tensor, View};

/// Places that take turns, so that one is filled while the work on the other still waits.
const PLACES: usize = 2;

/// A stream of copies beside a stream of work, and memory for what it brings: a copy begins when the work that reads its place
/// has ended, and the work that reads it waits for the copy; the host waits for neither.
pub struct CopyLane {
    copies: CudaStream,
    places: [Place; PLACES],
    next: usize,
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
        Ok(Self { copies: work.beside()?, places: [place()?, place()?], next: 0 })
    }

    /// Begins to bring `bytes`, and has `work` wait for them. What is given to `work` before [`CopyLane::release`] may read
    /// them.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] for more than the capacity, [`DeviceError::Driver`].
    pub fn bring(&mut self, work: &CudaStream, bytes: &[u8]) -> Result<View<'_>, DeviceError> {
        let Self { copies, places, next } = self;
        let place = &mut places[*next % PLACES];
        if bytes.len() > place.bytes.len_bytes() {
            return Err(DeviceError::TooLarge { value: bytes.len() });
        }
        copies.wait_for(&place.read)?;
        copies.upload(bytes, place.bytes.rows_mut(0..bytes.len())?)?;
        copies.record(&mut place.copied)?;
        work.wait_for(&place.copied)?;
        place.bytes.rows(0..bytes.len())
    }

    /// What `work` has been given so far is all that reads the bytes that were brought last.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn release(&mut self, work: &CudaStream) -> Result<(), DeviceError> {
        let place = &mut self.places[self.next % PLACES];
        self.next = (self.next + 1) % PLACES;
        work.record(&mut place.read)
    }
}

impl fmt::Debug for CopyLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CopyLane({PLACES} places of {} bytes)", self.places[0].bytes.len_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_none() {
        assert!(matches!(CopyLane::new(&Device::cpu(1).unwrap(), 16), Err(DeviceError::Unavailable { .. })));
    }

    /// Each batch of bytes arrives whole, though the next ones are on their way before it is read.
    #[test]
    fn bytes_arrive_in_order_on_a_gpu() {
        let device = match Device::cuda(0) {
            Ok(device) => device,
            Err(error) => {
                assert!(std::env::var_os("FOVEAL_REQUIRE_GPU").is_none(), "{error}");
                println!("skipped: {error}");
                return;
            }
        };
        let work = device.stream().cuda().unwrap();
        let mut lane = CopyLane::new(&device, 1 << 20).unwrap();
        let mut kept = Tensor::zeros(&device, DType::U8, &[8, 1 << 20]).unwrap();
        for i in 0..8_u8 {
            let bytes = lane.bring(work, &vec![i + 1; 1 << 20]).unwrap();
            let row = usize::from(i);
            work.copy(bytes.reshape(&[1, 1 << 20]).unwrap(), kept.rows_mut(row..row + 1).unwrap()).unwrap();
            lane.release(work).unwrap();
        }
        let kept = kept.to_vec::<u8>().unwrap();
        assert!(kept.chunks(1 << 20).zip(1..).all(|(row, i)| row.iter().all(|&byte| byte == i)));
        assert!(matches!(lane.bring(work, &vec![0; (1 << 20) + 1]), Err(DeviceError::TooLarge { .. })));
    }
}
