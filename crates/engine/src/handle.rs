//! What programs hold of an engine.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use foveal_llm::GenerationDefaults;
use foveal_types::{Error, Exhausted, PixelLender, PreparedRequest};

use crate::MemoryPlan;
use crate::delta_stream::{DeltaStream, Stopped};
use crate::queue_gate::QueueGate;
use crate::scheduler::{Limits, Scheduler};
use crate::worker::{Command, SharedStats, StepExecutor, Worker};
use crate::{EngineBuilder, EngineError, EngineStats};

/// A handle of a running engine. Cheap to clone and to share between threads.
///
/// The engine's one thread owns the device. When the last handle is dropped, or [`Engine::shutdown`] is called, it ends
/// after the step in progress; streams that are still open then end with [`Error::Exhausted`].
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    limits: Limits,
    memory: MemoryPlan,
    commands: Sender<Command>,
    gate: Arc<QueueGate>,
    stopped: Stopped,
    pixels: Arc<dyn PixelLender>,
    stats: SharedStats,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the engine thread needs besides what computes.
pub(crate) struct EngineOptions {
    pub(crate) limits: Limits,
    pub(crate) memory: MemoryPlan,
    pub(crate) defaults: GenerationDefaults,
    pub(crate) max_waiting: usize,
    pub(crate) prefix_caching: bool,
    pub(crate) run_ahead: bool,
    pub(crate) pixels: Arc<dyn PixelLender>,
}

impl Engine {
    /// Starts to describe an engine; see [`EngineBuilder`].
    #[must_use]
    pub fn builder() -> EngineBuilder {
        EngineBuilder::new()
    }

    pub(crate) fn start<E: StepExecutor + 'static>(executor: E, options: EngineOptions) -> Result<Self, EngineError> {
        let EngineOptions { limits, memory, defaults, max_waiting, prefix_caching, run_ahead, pixels } = options;
        let (commands, receiver) = unbounded();
        let gate = Arc::new(QueueGate::new(max_waiting));
        let stopped = Stopped::new(OnceLock::new());
        let scheduler = Scheduler::new(limits, defaults, prefix_caching);
        let worker = Worker::new(scheduler, executor, run_ahead, receiver, Arc::clone(&gate));
        let stats = worker.stats();
        let reason = Arc::clone(&stopped);
        let thread = std::thread::Builder::new().name("foveal-engine".to_owned());
        let thread =
            thread.spawn(move || worker.run(&reason)).map_err(|e| EngineError::Thread { reason: e.to_string() })?;
        let inner = Inner { limits, memory, commands, gate, stopped, pixels, stats, thread: Mutex::new(Some(thread)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Starts a request. Never blocks; whatever is wrong is the stream's first item:
    /// [`Error::Request`] for a request that could never run ([`Limits::check`]), [`Error::Exhausted`] when the waiting
    /// queue is full or the engine was shut down, [`Error::Device`] when the engine has stopped working.
    #[must_use = "dropping the stream cancels the request"]
    pub fn generate(&self, request: PreparedRequest) -> DeltaStream {
        let inner = &*self.inner;
        let refused = |error| DeltaStream::refused(Arc::clone(&inner.stopped), error);
        if let Some(error) = inner.stopped.get() {
            return refused(error.clone());
        }
        if let Err(error) = inner.limits.check(&request) {
            return refused(error.into());
        }
        if !inner.gate.enter() {
            let message = format!("{} requests are waiting already; try again later", inner.gate.max_waiting());
            return refused(Exhausted::new(message).into());
        }
        let (deltas, stream) = DeltaStream::new(Arc::clone(&inner.stopped));
        // If the thread has just ended, the command is dropped, and with it the stream's feeding end: it says why.
        let _ = inner.commands.send(Command::Generate { request: Box::new(request), deltas });
        stream
    }

    /// The sizes that bound every request.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// What memory has been set aside for. Prints as a table.
    #[must_use]
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.inner.memory
    }

    /// Memory for pictures' pixels, where the device copies them from: for [`foveal_types::PreparedRequest::images`].
    #[must_use]
    pub fn pixels(&self) -> &dyn PixelLender {
        &*self.inner.pixels
    }

    /// Requests that wait for their turn.
    #[must_use]
    pub fn num_waiting(&self) -> usize {
        self.inner.gate.num_waiting()
    }

    /// Counts and sizes as they were when the last step was planned.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        *self.inner.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the engine has stopped, if it has.
    #[must_use]
    pub fn stopped(&self) -> Option<Error> {
        self.inner.stopped.get().cloned()
    }

    /// Ends the engine after the step in progress and waits until its thread is gone. Open streams end with an error.
    pub fn shutdown(&self) {
        self.inner.join();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { limits, stopped, .. } = &*self.inner;
        f.debug_struct("Engine").field("limits", limits).field("stopped", stopped).finish_non_exhaustive()
    }
}

impl Inner {
    fn join(&self) {
        let _ = self.commands.send(Command::Shutdown);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // The thread catches its own panics and has told everyone.
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests;
