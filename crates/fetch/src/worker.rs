//! A thread that waits for the network in the caller's place.
//!
//! Lookups, connections and reads block for as long as the system or the host likes, and few of them can be told to
//! stop. So they run on a thread of their own, while the caller looks at the clock and at whether the picture is still
//! wanted, and leaves when it isn't. Leaving shuts the connection down, so that only an unanswered lookup keeps a
//! thread; how many threads there are is limited.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Agent;

use crate::FetchError;

/// Time between two looks at whether the picture is still wanted.
const POLL: Duration = Duration::from_millis(20);

/// How many threads may be there at once.
#[derive(Debug)]
pub(crate) struct Workers {
    num_running: Arc<AtomicUsize>,
    max_running: usize,
}

impl Workers {
    pub(crate) fn new(max_running: usize) -> Self {
        Self { num_running: Arc::default(), max_running }
    }

    /// Runs `work` on a thread of its own until it is done, `deadline` has come or `is_cancelled` says so. `None` is
    /// returned at the deadline.
    pub(crate) fn run(
        &self,
        deadline: Instant,
        is_cancelled: &dyn Fn() -> bool,
        work: impl FnOnce(&Switch) -> Result<Vec<u8>, FetchError> + Send + 'static,
    ) -> Option<Result<Vec<u8>, FetchError>> {
        let busy = FetchError::Busy { max_concurrent: self.max_running };
        let Some(slot) = self.take_slot() else { return Some(Err(busy)) };
        let switch = Arc::new(Switch::default());
        let _off_when_left = OffWhenDropped(&switch);
        let (sender, receiver) = mpsc::sync_channel(1);
        let work_switch = Arc::clone(&switch);
        let spawned = thread::Builder::new().name("foveal-fetch".to_owned()).spawn(move || {
            let result = work(&work_switch);
            drop(slot);
            // Nobody receives it once the caller has left.
            let _ = sender.send(result);
        });
        if spawned.is_err() {
            return Some(Err(busy));
        }
        loop {
            if is_cancelled() {
                return Some(Err(FetchError::Cancelled));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            match receiver.recv_timeout(left.min(POLL)) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let source = "the fetching thread panicked".into();
                    return Some(Err(FetchError::Network { what: "the fetch broke off", source }));
                }
            }
        }
    }

    fn take_slot(&self) -> Option<Slot> {
        let take = |num_running| (num_running < self.max_running).then_some(num_running + 1);
        self.num_running.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).ok()?;
        Some(Slot(Arc::clone(&self.num_running)))
    }
}

/// One of the threads that there may be.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Ends a fetch from another thread.
#[derive(Default)]
pub(crate) struct Switch(Mutex<State>);

#[derive(Default)]
struct State {
    is_off: bool,
    /// Whose connection is under way.
    agent: Option<Agent>,
}

impl Switch {
    /// Whether the fetch may go on.
    pub(crate) fn check(&self) -> Result<(), FetchError> {
        if self.state().is_off { Err(FetchError::Cancelled) } else { Ok(()) }
    }

    /// From now on switching off shuts this agent's connections down.
    pub(crate) fn watch(&self, agent: &Agent) -> Result<(), FetchError> {
        let mut state = self.state();
        if state.is_off {
            return Err(FetchError::Cancelled);
        }
        state.agent = Some(agent.clone());
        Ok(())
    }

    fn off(&self) {
        let mut state = self.state();
        state.is_off = true;
        let agent = state.agent.take();
        drop(state);
        if let Some(agent) = agent {
            agent.shutdown();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a single assignment, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Switches off however the caller leaves, also by a panic of its `is_cancelled`.
struct OffWhenDropped<'a>(&'a Switch);

impl Drop for OffWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.off();
    }
}
