//! Sends requests when they are due, at most so many at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

use crate::answer::Answer;
use crate::error::LoadError;

/// A request's thread parses small JSON and holds a buffer of 16 KiB.
const STACK_BYTES: usize = 512 << 10;

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// When it was sent, from the run's start on.
    pub(crate) start: Duration,
    /// Its answer, or why there is none.
    pub(crate) result: Result<Answer, String>,
}

/// All requests of a run.
#[derive(Debug)]
pub(crate) struct Outcomes {
    /// From the first request's time to the last answer's end.
    pub(crate) duration: Duration,
    /// In the requests' order.
    pub(crate) all: Vec<Outcome>,
}

/// Sends request `i` by `ask(i)` when `due[i]` has come and fewer than `num_workers` are under way, in order; `on_done` is told
/// how many have ended. With everything due at once this is a closed loop: a request that ends is followed by the next one.
pub(crate) fn send_all(
    due: &[Duration],
    num_workers: usize,
    ask: impl Fn(usize) -> Result<Answer, String> + Sync,
    on_done: impl Fn(usize) + Sync,
) -> Result<Outcomes, LoadError> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(due.len()));
    // Written until every thread is there: what it then holds is the run's start, or nothing if there are too few of them.
    let begin = RwLock::new(None);
    let work = || {
        let Some(begin): Option<Instant> = *begin.read().unwrap_or_else(PoisonError::into_inner) else { return };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(due) = due.get(index) else { return };
            sleep(due.saturating_sub(begin.elapsed()));
            let start = begin.elapsed();
            let outcome = Outcome { start, result: ask(index) };
            let num_done = {
                let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                outcomes.push((index, outcome));
                outcomes.len()
            };
            on_done(num_done);
        }
    };
    let start = std::thread::scope(|scope| {
        let mut begin = begin.write().unwrap_or_else(PoisonError::into_inner);
        for got in 0..num_workers {
            if Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).is_err() {
                return Err(LoadError::Threads { asked: num_workers, got });
            }
        }
        let now = Instant::now();
        *begin = Some(now);
        Ok(now)
    });
    let duration = start?.elapsed();
    let mut all = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.sort_unstable_by_key(|(index, _)| *index);
    Ok(Outcomes { duration, all: all.into_iter().map(|(_, outcome)| outcome).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_before_its_time_or_beyond_its_places() {
        let due: Vec<Duration> = (0..30).map(|number| Duration::from_millis(number / 3)).collect();
        for num_workers in [1, 4, 30] {
            let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let ask = |index: usize| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_millis(1));
                now.fetch_sub(1, Ordering::SeqCst);
                Err(index.to_string())
            };
            let told = Mutex::new(Vec::new());
            let outcomes = send_all(&due, num_workers, ask, |num| told.lock().unwrap().push(num)).unwrap();
            assert!(most.into_inner() <= num_workers);
            for (number, (outcome, due)) in outcomes.all.iter().zip(&due).enumerate() {
                assert!(outcome.start >= *due && outcome.start <= outcomes.duration);
                assert_eq!(outcome.result.as_ref().unwrap_err(), &number.to_string());
            }
            let mut told = told.into_inner().unwrap();
            told.sort_unstable();
            assert_eq!(told, (1..=30).collect::<Vec<_>>());
        }
        assert!(send_all(&[], 0, |_| Err(String::new()), |_| ()).unwrap().all.is_empty());
    }
}
