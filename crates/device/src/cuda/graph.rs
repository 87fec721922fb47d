//! Work recorded once and given to the GPU again by one call.
#![allow(unsafe_code)]

use cudarc::driver::{result, sys};

use super::context::driver_error;
use super::{CudaDevice, CudaStream, Event};
use crate::DeviceError;
use crate::counters::ALLOCATIONS;

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

impl CudaStream {
    /// Records what `work` gives to this stream instead of running it. What it needs (modules, plans) must be loaded: run
    /// it once before.
    ///
    /// # Errors
    /// What `work` fails with, [`DeviceError::Capture`] for work that allocated, and [`DeviceError::Driver`] where the
    /// driver can't record it: a wait of the host, a copy from pageable memory.
    pub fn capture<E: From<DeviceError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<CudaGraph, E> {
        let device = self.device();
        device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let allocations = ALLOCATIONS.get();
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::begin_capture(self.raw(), mode) }.map_err(driver_error("cuStreamBeginCapture"))?;
        let worked = work();
        // SAFETY: the capture began above, in this thread. It must end whatever `work` came to.
        let ended = unsafe { result::stream::end_capture(self.raw()) };
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
        let allocated = ALLOCATIONS.get() - allocations;
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

/// Replays of which the median is taken.
const TIMED_REPLAYS: usize = 9;

impl CudaStream {
    /// Microseconds that one call of `work` takes on the GPU: `num_calls` calls are run once, recorded together, and
    /// replayed; the median counts. `work` is given its call's number, so that it can take other operands each time. For
    /// benchmarks: waits for the GPU.
    ///
    /// # Errors
    /// As [`CudaStream::capture`].
    pub fn time_calls<E: From<DeviceError>>(
        &self,
        num_calls: usize,
        mut work: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<f32, E> {
        let mut all = || (0..num_calls).try_for_each(&mut work);
        all()?;
        let mut graph = self.capture(&mut all)?;
        let (mut start, mut end) = (Event::with_timing(self.device())?, Event::with_timing(self.device())?);
        let mut times = [0.0; TIMED_REPLAYS];
        // The first replay brings the graph to the GPU.
        for (i, time) in std::iter::once(&mut 0.0).chain(&mut times).enumerate() {
            self.record(&mut start)?;
            // SAFETY: `work` borrows all memory that was recorded, until this function is over.
            unsafe { self.replay(&mut graph) }?;
            self.record(&mut end)?;
            end.wait()?;
            *time = if i == 0 { 0.0 } else { end.milliseconds_since(&start)? };
        }
        times.sort_by(f32::total_cmp);
        let median = times.get(TIMED_REPLAYS / 2).copied().unwrap_or_default();
        Ok(median * 1e3 / num_calls.max(1) as f32)
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
