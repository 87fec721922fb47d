//! The engine thread: feeds the scheduler with what happens, runs what it plans, tells callers.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::{Receiver, TryRecvError};
use foveal_types::{Delta, DeviceFailure, Error, Exhausted, PreparedRequest, SeqId, TokenOutput};

use crate::delta_stream::{DeltaSender, Stopped};
use crate::queue_gate::QueueGate;
use crate::scheduler::{Event, News, Scheduler, Work};

/// What handles send.
pub(crate) enum Command {
    Generate { request: Box<PreparedRequest>, deltas: DeltaSender },
    Shutdown,
}

/// Computes what a plan says. The engine's own one runs the model; tests have others.
pub(crate) trait StepExecutor: Send {
    /// One result for each of the work's sequences, in order: the token if one was asked for, or why this sequence
    /// alone can't go on. An error at the top means that nothing works any more.
    fn execute(&mut self, work: &Work) -> Result<Vec<Result<Option<TokenOutput>, Error>>, DeviceFailure>;

    /// Drops what is kept for a sequence that has ended.
    fn forget(&mut self, id: SeqId);
}

/// The engine thread's state.
pub(crate) struct Worker<E> {
    scheduler: Scheduler,
    executor: E,
    clients: HashMap<SeqId, DeltaSender>,
    commands: Receiver<Command>,
    gate: Arc<QueueGate>,
    next_id: u64,
}

impl<E: StepExecutor> Worker<E> {
    pub(crate) fn new(scheduler: Scheduler, executor: E, commands: Receiver<Command>, gate: Arc<QueueGate>) -> Self {
        Self { scheduler, executor, clients: HashMap::new(), commands, gate, next_id: 0 }
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
            let plan = self.scheduler.step(std::mem::take(&mut events));
            for news in plan.news {
                self.tell(news);
            }
            for id in plan.ended {
                self.executor.forget(id);
            }
            is_idle = plan.work.is_none();
            if let Some(work) = plan.work {
                let results = self.executor.execute(&work)?;
                let ids = work.sequences.iter().map(|sequence| sequence.id);
                events.extend(ids.zip(results).map(|(id, result)| match result {
                    Ok(token) => Event::Computed(id, token),
                    Err(error) => Event::Failed(id, error),
                }));
            }
        }
        Ok(())
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
