//! Work recorded once and given to the GPU again by one call.
#![allow(unsafe_code)]

use cudarc::driver::{result, sys};

use super::context::driver_error;
use super::{CudaDevice, CudaStream};
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
