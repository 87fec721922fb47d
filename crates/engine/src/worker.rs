//! The engine thread: feeds the scheduler with what happens, runs what it plans, tells callers.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use foveal_types::{Delta, DeviceFailure, Error, Exhausted, PreparedRequest, SeqId};

use crate::delta_stream::{DeltaSender, Stopped};
use crate::queue_gate::QueueGate;
use crate::scheduler::{Event, News, Scheduler, StepResults, Work};
use crate::stats::{EngineStats, ExecutorStats};

/// What handles send.
pub(crate) enum Command {
    Generate { request: Box<PreparedRequest>, deltas: DeltaSender },
    Shutdown,
}

/// Computes what plans say. The engine's own one runs the model; tests have others.
///
/// Dropping it ends what is still in flight. An error of any of them means that nothing works any more.
pub(crate) trait StepExecutor: Send {
    /// Takes a step. It may compute it at once or just send it on its way; steps run in the order in which they come.
    fn submit(&mut self, work: Work) -> Result<(), DeviceFailure>;

    /// The results of the oldest step that has been submitted and not waited for, once they are there.
    fn wait(&mut self) -> Result<StepResults, DeviceFailure>;

    /// Drops what is kept for a sequence that has ended. No step in flight holds it.
    fn forget(&mut self, id: SeqId);

    /// Nothing is in flight, and nothing comes before a request does.
    fn rest(&mut self) -> Result<(), DeviceFailure> {
        Ok(())
    }

    /// What it has counted so far.
    fn stats(&self) -> ExecutorStats {
        ExecutorStats::default()
    }
}

/// The engine thread's state.
pub(crate) struct Worker<E> {
    scheduler: Scheduler,
    executor: E,
    /// Steps that may be in flight at once, 1 or 2.
    depth: usize,
    num_in_flight: usize,
    /// Spent on planning, sending steps off and telling callers.
    host_time: Duration,
    clients: HashMap<SeqId, DeltaSender>,
    commands: Receiver<Command>,
    gate: Arc<QueueGate>,
    stats: SharedStats,
    next_id: u64,
}

/// Counts for whoever holds the engine.
pub(crate) type SharedStats = Arc<Mutex<EngineStats>>;

impl<E: StepExecutor> Worker<E> {
    /// With `run_ahead` a step is planned and sent off before the results of the one before it are there.
    pub(crate) fn new(
        scheduler: Scheduler,
        executor: E,
        run_ahead: bool,
        commands: Receiver<Command>,
        gate: Arc<QueueGate>,
    ) -> Self {
        Self {
            stats: Arc::new(Mutex::new(scheduler.stats())),
            scheduler,
            executor,
            depth: if run_ahead { 2 } else { 1 },
            num_in_flight: 0,
            host_time: Duration::ZERO,
            clients: HashMap::new(),
            commands,
            gate,
            next_id: 0,
        }
    }

    pub(crate) fn stats(&self) -> SharedStats {
        Arc::clone(&self.stats)
    }

    /// Runs until the handles are gone, a shutdown, a broken device or a panic. Nobody is left waiting then.
    pub(crate) fn run(mut self, stopped: &Stopped) {
        let reason: Error = match catch_unwind(AssertUnwindSafe(|| self.run_steps())) {
            Ok(Ok(())) => Exhausted::new("the engine was shut down before the answer was complete").into(),
            Ok(Err(failure)) => failure.into(),
            Err(panic) => DeviceFailure::new(format!("the engine thread panicked: {}", panic_message(&*panic))).into(),
        };
        if let Error::Device(failure) = &reason {
            tracing::error!(%failure, "the engine stops");
        }
        // First the reason: whoever finds its channel closed from now on reads it there.
        let _ = stopped.set(reason.clone());
        for (_, client) in self.clients.drain() {
            let _ = client.unbounded_send(Err(reason.clone()));
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Generate { deltas, .. } = command {
                let _ = deltas.unbounded_send(Err(reason.clone()));
            }
        }
    }

    fn run_steps(&mut self) -> Result<(), DeviceFailure> {
        let mut events = Vec::new();
        let mut is_idle = true;
        while self.collect(&mut events, is_idle) {
            let start = Instant::now();
            let plan = self.scheduler.step(std::mem::take(&mut events));
            self.publish_stats();
            for news in plan.news {
                self.tell(news);
            }
            for id in plan.ended {
                self.executor.forget(id);
            }
            let has_work = plan.work.is_some();
            if let Some(work) = plan.work {
                self.executor.submit(work)?;
                self.num_in_flight += 1;
            }
            is_idle = self.num_in_flight == 0;
            self.host_time += start.elapsed();
            if is_idle {
                self.executor.rest()?;
            }
            if self.num_in_flight == self.depth || (!has_work && !is_idle) {
                events.push(Event::Completed(self.executor.wait()?));
                self.num_in_flight -= 1;
            }
        }
        Ok(())
    }

    /// Before callers hear of what happened: whoever has its answer finds it counted.
    fn publish_stats(&self) {
        let host_ms = self.host_time.as_secs_f64() * 1e3;
        let stats = EngineStats { executor: self.executor.stats(), host_ms, ..self.scheduler.stats() };
        let last = std::mem::replace(&mut *self.stats.lock().unwrap_or_else(PoisonError::into_inner), stats);
        stats.export(&last);
    }

    /// Takes in what handles have sent and who has gone; waits for something when idle. `false` to stop.
    fn collect(&mut self, events: &mut Vec<Event>, is_idle: bool) -> bool {
        if is_idle {
            match self.commands.recv() {
                Ok(Command::Generate { request, deltas }) => events.push(self.arrive(request, deltas)),
                Ok(Command::Shutdown) | Err(_) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(Command::Generate { request, deltas }) => events.push(self.arrive(request, deltas)),
                Err(TryRecvError::Empty) => break,
                Ok(Command::Shutdown) | Err(TryRecvError::Disconnected) => return false,
            }
        }
        let gone = self.clients.extract_if(|_, deltas| deltas.is_closed());
        events.extend(gone.map(|(id, _)| Event::Cancelled(id)));
        true
    }

    fn arrive(&mut self, request: Box<PreparedRequest>, deltas: DeltaSender) -> Event {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        tracing::debug!(id = id.0, prompt_tokens = request.input_ids.len(), images = request.images.len(), "arrived");
        self.clients.insert(id, deltas);
        Event::Arrived(id, request)
    }

    fn tell(&mut self, news: News) {
        let (id, item) = match news {
            News::LeftQueue(_) => return self.gate.leave(),
            News::Delta(id, delta) => (id, Ok(delta)),
            News::Failed(id, error) => {
                tracing::info!(id = id.0, %error, "failed");
                (id, Err(error))
            }
        };
        if let Ok(Delta::Finished { reason, usage }) = &item {
            tracing::debug!(id = id.0, reason = reason.as_str(), ?usage, "finished");
        }
        let is_last = matches!(item, Err(_) | Ok(Delta::Finished { .. }));
        // A caller that has gone is noticed by `collect`; this delta is nobody's loss.
        let _ = self.clients.get(&id).map(|deltas| deltas.unbounded_send(item));
        if is_last {
            self.clients.remove(&id);
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
