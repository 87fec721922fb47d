//! Graphs, and the memory that they read.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::time::Instant;

use foveal_device::{CudaGraph, Device, DeviceError, Stream, counters, hold_memory};

use crate::{CaptureReport, GraphStats};

/// Work on memory of its own, that can be recorded.
pub trait Record {
    /// What tells one recording from another: sizes, and which parts run.
    type Key: Copy + Eq + Hash + fmt::Debug;
    /// What the work fails with.
    type Error: From<DeviceError>;

    /// Gives the work of a key to the stream: for equal keys the same launches on the same memory. Whatever differs from call to
    /// call lies in device memory.
    ///
    /// # Errors
    /// Its own.
    fn launch(&mut self, stream: &Stream, key: Self::Key) -> Result<(), Self::Error>;
}

/// Graphs by key, and the work that owns all they read. On the CPU, and where graphs are switched off, the work runs as it is.
pub struct Graphs<W: Record> {
    // Dropped before the memory that they read.
    graphs: HashMap<W::Key, CudaGraph>,
    device: Device,
    work: W,
    is_on: bool,
    /// What the process had freed when the graphs were last known to be good.
    frees: u64,
    /// Bytes that all graphs took, and that the last one did.
    bytes: u64,
    last_bytes: u64,
    stats: GraphStats,
}

impl<W: Record> Graphs<W> {
    /// Without graphs as yet. `work` runs on the device's own stream.
    #[must_use]
    pub fn new(device: &Device, work: W) -> Self {
        let is_on = device.is_cuda();
        Self {
            graphs: HashMap::new(),
            device: device.clone(),
            work,
            is_on,
            frees: 0,
            bytes: 0,
            last_bytes: 0,
            stats: GraphStats::default(),
        }
    }

    /// Whether graphs are recorded and replayed; without, everything runs as it is: the same kernels on the same memory, and so
    /// the same bits.
    #[must_use]
    pub fn switched(mut self, is_on: bool) -> Self {
        self.is_on = is_on && self.device.is_cuda();
        self
    }

    /// Records the work of these keys in this order, as long as the GPU's memory that all graphs take stays within
    /// `budget_bytes`: one that may not fit, judged by the one before, is left out. Each runs once before it is recorded, so that
    /// its modules are loaded. Nothing to do on the CPU.
    ///
    /// # Errors
    /// The work's, and [`DeviceError::Capture`] for work that allocates.
    pub fn capture_all(
        &mut self,
        keys: impl IntoIterator<Item = W::Key>,
        budget_bytes: u64,
    ) -> Result<CaptureReport, W::Error> {
        let mut report = CaptureReport { budget_bytes, ..CaptureReport::default() };
        let start = Instant::now();
        for key in keys {
            if !self.is_on {
                break;
            }
            // Any graph takes something, though the driver often has it at hand.
            if self.bytes.saturating_add(self.last_bytes.max(1)) > budget_bytes {
                report.num_left_out += 1;
                continue;
            }
            let free = self.free_bytes()?;
            self.capture(key)?;
            self.last_bytes = free.saturating_sub(self.free_bytes()?);
            self.bytes += self.last_bytes;
            report.bytes += self.last_bytes;
            report.num_captured += 1;
        }
        report.elapsed = start.elapsed();
        Ok(report)
    }

    fn free_bytes(&self) -> Result<u64, DeviceError> {
        match self.device.stream().cuda() {
            Some(cuda) => Ok(cuda.device().memory_bytes()?.0 as u64),
            None => Ok(0),
        }
    }

    /// Records the work of a key, after a run of it, in place of an earlier recording.
    ///
    /// # Errors
    /// As [`Graphs::capture_all`].
    pub fn capture(&mut self, key: W::Key) -> Result<(), W::Error> {
        let stream = self.device.stream();
        let Some(cuda) = stream.cuda().filter(|_| self.is_on) else { return Ok(()) };
        self.work.launch(stream, key)?;
        if drop_if_freed(&mut self.graphs, &mut self.frees, &mut self.stats) {
            (self.bytes, self.last_bytes) = (0, 0);
        }
        let graph = cuda.capture(|| self.work.launch(stream, key))?;
        self.graphs.insert(key, graph);
        Ok(())
    }

    /// Gives the work of a key to the GPU: by its graph, or launch by launch where there is none.
    ///
    /// # Errors
    /// The work's, or [`DeviceError::Driver`].
    pub fn run(&mut self, key: W::Key) -> Result<(), W::Error> {
        let stream = self.device.stream();
        let held = hold_memory();
        if drop_if_freed(&mut self.graphs, &mut self.frees, &mut self.stats) {
            (self.bytes, self.last_bytes) = (0, 0);
        }
        let graph = self.graphs.get_mut(&key).filter(|_| self.is_on);
        let Some((cuda, graph)) = stream.cuda().zip(graph) else {
            drop(held);
            self.stats.eager_runs += 1;
            return self.work.launch(stream, key);
        };
        // SAFETY: every address that was recorded was good then, and no GPU's memory has been freed in this process since, or
        // the graph would be gone; nor is any while `held` lives, and once the graph is launched the driver has frees wait for
        // it. Whoever writes that memory meanwhile has the work's own: the stream orders them.
        unsafe { cuda.replay(graph) }?;
        self.stats.replays += 1;
        Ok(())
    }

    /// Counts what a run was for: `rows` that were wanted in a bucket of `bucket`.
    pub fn count_rows(&mut self, rows: usize, bucket: usize) {
        self.stats.rows += rows as u64;
        self.stats.padded_rows += bucket as u64;
    }

    /// The work, to read what it has written.
    #[must_use]
    pub fn work(&self) -> &W {
        &self.work
    }

    /// Lends the work: to bring what the next run reads, or for work that is never recorded. If the process gives back a GPU's
    /// memory, here or elsewhere, it may be the graphs': they are dropped then, and recorded no more until somebody asks.
    pub fn with_work<R>(&mut self, body: impl FnOnce(&mut W, &Stream) -> R) -> R {
        let result = body(&mut self.work, self.device.stream());
        if drop_if_freed(&mut self.graphs, &mut self.frees, &mut self.stats) {
            (self.bytes, self.last_bytes) = (0, 0);
        }
        result
    }

    /// Keys with a graph.
    #[must_use]
    pub fn num_graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Counts so far.
    #[must_use]
    pub fn stats(&self) -> GraphStats {
        self.stats
    }
}

/// Drops all graphs if a GPU's memory was freed since they were last known to be good; whether there were any.
fn drop_if_freed<K>(graphs: &mut HashMap<K, CudaGraph>, frees: &mut u64, stats: &mut GraphStats) -> bool {
    let now = counters().frees;
    let are_gone = now != *frees && !graphs.is_empty();
    if are_gone {
        graphs.clear();
        stats.resets += 1;
    }
    *frees = now;
    are_gone
}

impl<W: Record> fmt::Debug for Graphs<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { graphs, device, is_on, stats, .. } = self;
        f.debug_struct("Graphs")
            .field("num_graphs", &graphs.len())
            .field("device", device)
            .field("is_on", is_on)
            .field("stats", stats)
            .finish_non_exhaustive()
    }
}
