//! Who downloads what next.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::HubError;

/// Large enough that asking for it costs little beside it, small enough that losing it costs little.
pub(crate) const PIECE_BYTES: u64 = 16 << 20;

/// How often whoever waits looks around.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// When to look again whether another process has let go of a blob.
const LOCKED_PAUSE: Duration = Duration::from_millis(200);

/// Something to do for a worker; blobs by their index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Lock a blob and see what is there.
    Open(usize),
    /// Fetch these bytes of a blob.
    Piece(usize, Range<u64>),
}

/// Whether a blob's server sends parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ranges {
    /// Nobody has asked for one yet: one worker finds out.
    Unknown,
    Yes,
    No,
}

#[derive(Debug)]
enum Phase {
    Closed { not_before: Instant },
    Opening,
    Open { next: u64, in_flight: usize, ranges: Ranges },
    Done,
}

/// Gives out the pieces of all blobs, a blob's in their order, and keeps the first error.
///
/// Pieces that were given out and are not on disk take memory: their number is limited. Whoever holds the piece that the
/// others of its blob wait for is at work, so that the limit never stops everybody.
#[derive(Debug)]
pub(crate) struct Queue {
    lens: Vec<u64>,
    max_pieces: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    phases: Vec<Phase>,
    /// What of each blob is on disk.
    written: Vec<u64>,
    failure: Option<HubError>,
}

impl Queue {
    /// For blobs of these sizes and this many workers.
    pub(crate) fn new(lens: Vec<u64>, workers: usize) -> Self {
        let now = Instant::now();
        let phases = lens.iter().map(|_| Phase::Closed { not_before: now }).collect();
        let state = Mutex::new(State { phases, written: vec![0; lens.len()], failure: None });
        Self { lens, max_pieces: 2 * workers as u64, state, changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next task, waited for; none when all is done, or was given up.
    pub(crate) fn next(&self, is_cancelled: impl Fn() -> bool) -> Option<Task> {
        let mut state = self.state();
        loop {
            if is_cancelled() {
                state.failure.get_or_insert(HubError::Cancelled);
            }
            if state.failure.is_some() || state.phases.iter().all(|phase| matches!(phase, Phase::Done)) {
                self.changed.notify_all();
                return None;
            }
            if let Some(task) = self.choose(&mut state) {
                return Some(task);
            }
            let waited = self.changed.wait_timeout(state, LOOK_AROUND);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn choose(&self, state: &mut State) -> Option<Task> {
        let now = Instant::now();
        // One who is alone with a blob writes what comes at once.
        let held = |(phase, written): (&Phase, &u64)| match phase {
            Phase::Open { next, ranges: Ranges::Yes, .. } => next.saturating_sub(*written),
            _ => 0,
        };
        let held: u64 = state.phases.iter().zip(&state.written).map(held).sum();
        let has_room = held < self.max_pieces * PIECE_BYTES;
        for (index, (phase, &len)) in state.phases.iter_mut().zip(&self.lens).enumerate() {
            match phase {
                Phase::Closed { not_before } if *not_before <= now => {
                    *phase = Phase::Opening;
                    return Some(Task::Open(index));
                }
                Phase::Open { next, in_flight, ranges }
                    if *next < len && (*in_flight == 0 || *ranges == Ranges::Yes && has_room) =>
                {
                    let start = *next;
                    *next = if *ranges == Ranges::No { len } else { len.min(start + PIECE_BYTES) };
                    *in_flight += 1;
                    return Some(Task::Piece(index, start..*next));
                }
                _ => {}
            }
        }
        None
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Phase)) {
        if let Some(phase) = self.state().phases.get_mut(index) {
            change(phase);
        }
        self.changed.notify_all();
    }

    /// A blob is locked by somebody else.
    pub(crate) fn locked(&self, index: usize) {
        self.change(index, |phase| *phase = Phase::Closed { not_before: Instant::now() + LOCKED_PAUSE });
    }

    /// A blob can be fetched from `written` on.
    pub(crate) fn opened(&self, index: usize, written: u64) {
        self.wrote(index, written);
        self.change(index, |phase| *phase = Phase::Open { next: written, in_flight: 0, ranges: Ranges::Unknown });
    }

    /// A part came as a part: others may be asked for beside it.
    pub(crate) fn has_ranges(&self, index: usize) {
        self.change(index, |phase| {
            if let Phase::Open { ranges: ranges @ Ranges::Unknown, .. } = phase {
                *ranges = Ranges::Yes;
            }
        });
    }

    /// The whole came instead of a part. True if the one who got it is alone with the blob, and now has all of it to fetch.
    pub(crate) fn has_no_ranges(&self, index: usize) -> bool {
        let len = self.lens.get(index).copied().unwrap_or_default();
        let mut is_alone = false;
        self.change(index, |phase| {
            if let Phase::Open { next, ranges, .. } = phase
                && *ranges != Ranges::Yes
            {
                (*next, *ranges, is_alone) = (len, Ranges::No, true);
            }
        });
        is_alone
    }

    /// More of a blob is on disk.
    pub(crate) fn wrote(&self, index: usize, written: u64) {
        if let Some(place) = self.state().written.get_mut(index) {
            *place = written;
        }
        self.changed.notify_all();
    }

    /// A piece was fetched.
    pub(crate) fn fetched(&self, index: usize) {
        self.change(index, |phase| {
            if let Phase::Open { in_flight, .. } = phase {
                *in_flight = in_flight.saturating_sub(1);
            }
        });
    }

    /// A blob is in its place.
    pub(crate) fn done(&self, index: usize) {
        self.change(index, |phase| *phase = Phase::Done);
    }

    /// Everybody is to stop.
    pub(crate) fn fail(&self, error: HubError) {
        self.state().failure.get_or_insert(error);
        self.changed.notify_all();
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.state().failure.is_some()
    }

    /// The first error.
    pub(crate) fn result(self) -> Result<(), HubError> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.failure.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::{HubError, PIECE_BYTES, Queue, Task};

    fn next(queue: &Queue) -> Option<Task> {
        queue.choose(&mut queue.state())
    }

    #[test]
    fn one_worker_asks_whether_there_are_parts_before_others_join() {
        let len = 3 * PIECE_BYTES + 1;
        let queue = Queue::new(vec![10, len], 4);
        assert_eq!([next(&queue), next(&queue), next(&queue)], [Some(Task::Open(0)), Some(Task::Open(1)), None]);
        queue.opened(0, 4);
        queue.opened(1, 0);
        assert_eq!(next(&queue), Some(Task::Piece(0, 4..10)));
        assert_eq!(next(&queue), Some(Task::Piece(1, 0..PIECE_BYTES)));
        assert_eq!(next(&queue), None, "nobody knows yet");
        queue.has_ranges(1);
        assert_eq!(next(&queue), Some(Task::Piece(1, PIECE_BYTES..2 * PIECE_BYTES)));
        assert!(!queue.has_no_ranges(1), "once there were parts");
        assert_eq!(next(&queue), Some(Task::Piece(1, 2 * PIECE_BYTES..3 * PIECE_BYTES)));
        assert_eq!(next(&queue), Some(Task::Piece(1, 3 * PIECE_BYTES..len)));
        assert_eq!(next(&queue), None);
        queue.done(0);
        queue.done(1);
        assert_eq!(queue.next(|| false), None);
        assert!(queue.result().is_ok());
    }

    #[test]
    fn without_parts_one_worker_has_the_whole() {
        let len = 3 * PIECE_BYTES;
        let queue = Queue::new(vec![len], 4);
        assert_eq!(next(&queue), Some(Task::Open(0)));
        queue.opened(0, 0);
        assert_eq!(next(&queue), Some(Task::Piece(0, 0..PIECE_BYTES)));
        assert!(queue.has_no_ranges(0));
        queue.fetched(0);
        assert_eq!(next(&queue), None, "all of it was given to the one");
    }

    #[test]
    fn what_waits_in_memory_is_limited() {
        let queue = Queue::new(vec![100 * PIECE_BYTES], 2);
        next(&queue);
        queue.opened(0, 0);
        next(&queue);
        queue.has_ranges(0);
        let given = 1 + (0..100).filter(|_| next(&queue).is_some()).count();
        assert_eq!(given, 4);
        queue.wrote(0, PIECE_BYTES);
        assert!(next(&queue).is_some());
        assert_eq!(next(&queue), None);
    }

    #[test]
    fn an_error_or_a_cancellation_ends_it_for_all() {
        let queue = Queue::new(vec![1], 1);
        queue.fail(HubError::NoCacheFolder);
        assert_eq!(queue.next(|| true), None);
        assert!(matches!(queue.result(), Err(HubError::NoCacheFolder)), "the first one counts");
        let queue = Queue::new(vec![1], 1);
        assert_eq!(queue.next(|| true), None);
        assert!(matches!(queue.result(), Err(HubError::Cancelled)));
    }
}
