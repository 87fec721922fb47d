//! Work recorded once and given to the GPU again by one call.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use super::context::driver_error;
use super::{CudaDevice, CudaStream, Event};
use crate::DeviceError;
use crate::counters::own_allocations;

/// Work of a stream, recorded with all addresses and parameters. It reads and writes the very memory that was there when
/// it was recorded: who keeps a graph keeps that memory.
pub struct CudaGraph {
    device: CudaDevice,
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}

// SAFETY: the driver's graph handles may be used from any thread with the context current, one at a time: launching takes
// the graph exclusively.
unsafe impl Send for CudaGraph {}

/// Held while a stream is captured, and while somebody waits for all streams of a context: the driver refuses that during a
/// capture, of whichever thread, and the capture is lost.
static CAPTURE: Mutex<()> = Mutex::new(());

thread_local! {
    static IS_CAPTURING: Cell<bool> = const { Cell::new(false) };
}

/// While the guard lives no other thread captures a stream. A thread that captures one itself is given none, so that the driver's
/// refusal says what is wrong.
pub(crate) fn without_captures() -> Option<MutexGuard<'static, ()>> {
    (!IS_CAPTURING.get()).then(|| CAPTURE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Says that this thread captures, until it is dropped. Within another capture of the thread it has no guard.
struct Capturing(Option<MutexGuard<'static, ()>>);

impl Capturing {
    fn begin() -> Self {
        let others = without_captures();
        IS_CAPTURING.set(true);
        Self(others)
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        IS_CAPTURING.set(self.0.is_none());
    }
}

impl CudaStream {
    /// Records what `work` gives to this stream instead of running it. What it needs (modules, plans) must be loaded: run
    /// it once before. One thread of the process captures at a time, and whoever waits for a whole GPU waits until it
    /// is through: `work` must not wait for another thread that does either. Nobody else may use the stream meanwhile.
    ///
    /// # Errors
    /// What `work` fails with, [`DeviceError::Capture`] for work that allocated, and [`DeviceError::Driver`] where the
    /// driver can't record it: a wait of the host, a copy from pageable memory.
    pub fn capture<E: From<DeviceError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<CudaGraph, E> {
        let device = self.device();
        device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let allocations = own_allocations();
        let capturing = Capturing::begin();
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::begin_capture(self.raw(), mode) }.map_err(driver_error("cuStreamBeginCapture"))?;
        let worked = work();
        // SAFETY: the capture began above, in this thread. It must end whatever `work` came to.
        let ended = unsafe { result::stream::end_capture(self.raw()) };
        drop(capturing);
        let ended = ended.map_err(driver_error("cuStreamEndCapture"));
        let graph = match (worked, ended) {
            (Err(error), ended) => {
                if let Ok(graph) = ended {
                    destroy(graph);
                }
                return Err(error);
            }
            (Ok(()), Err(error)) => return Err(error.into()),
            (Ok(()), Ok(graph)) => graph,
        };
        let allocated = own_allocations() - allocations;
        if allocated > 0 {
            destroy(graph);
            return Err(DeviceError::Capture { allocated }.into());
        }
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        // SAFETY: `graph` was given by the capture just now.
        match unsafe { result::graph::instantiate(graph, flags) } {
            Ok(exec) => Ok(CudaGraph { device: device.clone(), graph, exec }),
            Err(error) => {
                destroy(graph);
                Err(driver_error("cuGraphInstantiate")(error).into())
            }
        }
    }

    /// Gives a graph's work to this stream.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    ///
    /// # Safety
    /// All memory that the graph was recorded with is still there, and nothing else writes it meanwhile.
    pub unsafe fn replay(&self, graph: &mut CudaGraph) -> Result<(), DeviceError> {
        self.device().bind()?;
        // SAFETY: graph and stream live as long as their borrows; the caller keeps the memory.
        unsafe { result::graph::launch(graph.exec, self.raw()) }.map_err(driver_error("cuGraphLaunch"))
    }
}

/// Replays that are timed.
const TIMED_REPLAYS: usize = 15;

/// Microseconds of something that was done several times, see [`CudaStream::time_calls`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// What a fifth of the times lies below.
    pub p20_us: f32,
    /// What half of them lies below.
    pub median_us: f32,
    /// What four fifths of them lie below.
    pub p80_us: f32,
}

impl Times {
    /// Of these microseconds, in any order; zeros of none.
    #[must_use]
    pub fn of(mut times_us: Vec<f32>) -> Self {
        times_us.sort_by(f32::total_cmp);
        let at = |tenths: usize| times_us.get(times_us.len() * tenths / 10).copied().unwrap_or_default();
        Self { p20_us: at(2), median_us: at(5), p80_us: at(8) }
    }
}

impl CudaStream {
    /// How long one call of `work` takes on the GPU: `num_calls` calls are run once, recorded together, and replayed
    /// several times. `work` is given its call's number, so that it can take other operands each time. For benchmarks:
    /// waits for the GPU.
    ///
    /// # Errors
    /// As [`CudaStream::capture`].
    pub fn time_calls<E: From<DeviceError>>(
        &self,
        num_calls: usize,
        work: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Times, E> {
        Ok(Times::of(self.time_calls_until(num_calls, work, |times| times.len() >= TIMED_REPLAYS)?))
    }

    /// As [`CudaStream::time_calls`]: the microseconds of one call in each replay so far are shown to `is_enough`, which ends
    /// them. Recorded, so that it is the GPU that is timed, however slow the host.
    pub(crate) fn time_calls_until<E: From<DeviceError>>(
        &self,
        num_calls: usize,
        mut work: impl FnMut(usize) -> Result<(), E>,
        is_enough: impl Fn(&[f32]) -> bool,
    ) -> Result<Vec<f32>, E> {
        let mut all = || (0..num_calls).try_for_each(&mut work);
        all()?;
        let mut graph = self.capture(&mut all)?;
        let (mut start, mut end) = (Event::with_timing(self.device())?, Event::with_timing(self.device())?);
        let mut replay = || -> Result<f32, DeviceError> {
            self.record(&mut start)?;
            // SAFETY: `work` holds all memory that was recorded until this function is over: the driver refuses to free
            // any during a capture, and to free it later, after an error here, waits for the GPU.
            unsafe { self.replay(&mut graph) }?;
            self.record(&mut end)?;
            end.wait()?;
            Ok(end.milliseconds_since(&start)? * 1e3 / num_calls.max(1) as f32)
        };
        // The first one brings the graph to the GPU.
        replay()?;
        let mut times = Vec::with_capacity(TIMED_REPLAYS);
        while !is_enough(&times) {
            times.push(replay()?);
        }
        Ok(times)
    }
}

fn destroy(graph: sys::CUgraph) {
    // SAFETY: called once for a graph that was captured and given to nobody.
    let _ = unsafe { result::graph::destroy(graph) };
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.device.bind().is_err() {
            return;
        }
        // SAFETY: made in `capture`, destroyed once; the driver lets launched work run to its end.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
        destroy(self.graph);
    }
}

#[cfg(test)]
mod tests {
    use super::Times;
    use crate::testing::gpu;
    use crate::{DType, DeviceError, Tensor};

    #[test]
    fn other_threads_may_download_while_a_stream_is_captured() {
        let (Some(device), Some(other)) = (gpu(), gpu()) else { return };
        let mut captured = Tensor::zeros(&device, DType::F32, &[64]).unwrap();
        let stream = device.stream().cuda().unwrap();
        std::thread::scope(|scope| {
            let downloads = scope.spawn(move || {
                let ones = Tensor::from_slice(&other, &[1.0_f32; 64], &[64]).unwrap();
                (0..500).all(|_| ones.to_vec::<f32>().unwrap() == [1.0; 64])
            });
            for _ in 0..100 {
                let fill = |_| -> Result<(), DeviceError> { stream.fill_zero(captured.view_mut()?) };
                stream.time_calls_until(20, fill, |times| !times.is_empty()).unwrap();
            }
            assert!(downloads.join().unwrap());
        });
    }

    #[test]
    fn a_download_within_a_capture_is_refused_and_the_next_capture_works() {
        let Some(device) = gpu() else { return };
        let mut tensor = Tensor::zeros(&device, DType::F32, &[64]).unwrap();
        let stream = device.stream().cuda().unwrap();
        assert!(stream.capture(|| tensor.to_vec::<f32>().map(|_| ())).is_err());
        let fill = || -> Result<(), DeviceError> { stream.fill_zero(tensor.view_mut()?) };
        assert!(stream.capture(fill).is_ok());
    }

    #[test]
    fn times_are_ranked() {
        let times = Times::of([9, 2, 5, 1, 7, 3, 8, 4, 6, 0].map(|us| us as f32).to_vec());
        assert_eq!(times, Times { p20_us: 2.0, median_us: 5.0, p80_us: 8.0 });
        assert_eq!(Times::of(vec![3.0]), Times { p20_us: 3.0, median_us: 3.0, p80_us: 3.0 });
        assert_eq!(Times::of(Vec::new()), Times::default());
    }
}
