//! Streams whose copies end when a test says so.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use foveal_device::{DeviceError, ViewMut};

use crate::sync::Arc;

/// A stream.
#[derive(Clone, Default)]
pub(crate) struct SimulatedStream(Arc<Inner>);

#[derive(Default)]
struct Inner {
    work: Mutex<VecDeque<Work>>,
    /// Set: the device is broken, nothing ends.
    is_broken: AtomicBool,
}

enum Work {
    /// The addresses that are read.
    Copy(Range<usize>),
    Mark(Arc<AtomicBool>),
}

/// A mark in a stream's order.
pub(crate) struct SimulatedFence {
    stream: SimulatedStream,
    is_reached: Arc<AtomicBool>,
}

impl SimulatedStream {
    pub(crate) fn new_fence(&self) -> SimulatedFence {
        SimulatedFence { stream: self.clone(), is_reached: Arc::new(AtomicBool::new(true)) }
    }

    /// The bytes arrive at once, but the stream is taken to read them until the copy is carried out.
    pub(crate) fn copy(&self, bytes: &[u8], to: ViewMut<'_>) -> Result<(), DeviceError> {
        to.into_mut_bytes()?.copy_from_slice(bytes);
        let start = bytes.as_ptr().addr();
        self.0.work.lock().unwrap().push_back(Work::Copy(start..start + bytes.len()));
        self.health()
    }

    pub(crate) fn record(&self, fence: &mut SimulatedFence) -> Result<(), DeviceError> {
        self.health()?;
        fence.stream = self.clone();
        fence.is_reached = Arc::default();
        self.0.work.lock().unwrap().push_back(Work::Mark(fence.is_reached.clone()));
        Ok(())
    }

    pub(crate) fn synchronize(&self) -> Result<(), DeviceError> {
        self.health()?;
        while self.advance() {}
        Ok(())
    }

    /// Carries out what is next; `false` when there is nothing.
    pub(crate) fn advance(&self) -> bool {
        let next = self.0.work.lock().unwrap().pop_front();
        if let Some(Work::Mark(is_reached)) = &next {
            is_reached.store(true, Ordering::Release);
        }
        next.is_some()
    }

    /// The addresses that copies read now.
    pub(crate) fn reads(&self) -> Vec<Range<usize>> {
        let work = self.0.work.lock().unwrap();
        work.iter().filter_map(|work| if let Work::Copy(range) = work { Some(range.clone()) } else { None }).collect()
    }

    pub(crate) fn break_down(&self) {
        self.0.is_broken.store(true, Ordering::Release);
    }

    fn health(&self) -> Result<(), DeviceError> {
        if self.0.is_broken.load(Ordering::Acquire) {
            return Err(DeviceError::Driver { call: "simulated", reason: "broken".to_owned() });
        }
        Ok(())
    }
}

impl SimulatedFence {
    pub(crate) fn is_done(&self) -> bool {
        self.is_reached.load(Ordering::Acquire)
    }

    pub(crate) fn wait(&self) -> Result<(), DeviceError> {
        self.stream.health()?;
        while !self.is_done() && self.stream.advance() {}
        assert!(self.is_done(), "waited for a mark that nothing leads to");
        Ok(())
    }
}
