//! Where requests are prepared: on a bounded number of threads apart from the network's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::error::ApiError;

/// Threads for one kind of work, and a bounded queue before them.
#[derive(Debug)]
pub(crate) struct Preparation {
    threads: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// Tells work that nobody waits for it any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    /// Whether whoever asked has gone.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sets the flag if it is dropped while work goes on: the request's future was dropped, because its connection was closed.
struct Abandon(Cancelled);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Preparation {
    /// `threads` at once, and `max_waiting` before them.
    pub(crate) fn new(threads: usize, max_waiting: usize) -> Self {
        Self { threads: Arc::new(Semaphore::new(threads.max(1))), waiting: AtomicUsize::new(0), max_waiting }
    }

    /// Requests that wait for a thread.
    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Runs `work` on a thread of its own once there is one. Dropping the future takes it out of the queue, or tells it to stop.
    ///
    /// # Errors
    /// What the work says; that the queue is full.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cancelled) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max_waiting && self.threads.available_permits() == 0 {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let message = format!("{} requests are waiting to be prepared already; try again later", self.max_waiting);
            return Err(ApiError::overloaded(message));
        }
        let place = Place(&self.waiting);
        let stopped = || ApiError::unavailable("shutting_down", "the server is shutting down");
        let thread = Arc::clone(&self.threads).acquire_owned().await.map_err(|_| stopped())?;
        drop(place);
        let cancelled = Cancelled::default();
        let abandon = Abandon(cancelled.clone());
        let task = tokio::task::spawn_blocking(move || {
            let result = if cancelled.is_set() { Err(stopped()) } else { work(&cancelled) };
            drop(thread);
            result
        });
        let result = task.await;
        drop(abandon);
        result.unwrap_or_else(|panic| {
            tracing::error!(%panic, "preparing a request failed");
            Err(ApiError::internal("the request couldn't be prepared; the server's log says why"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_queue_is_bounded_and_whoever_leaves_is_told() {
        let preparation = Arc::new(Preparation::new(1, 1));
        let (begun, has_begun) = mpsc::channel();
        let (told, was_told) = mpsc::channel();
        let first = Arc::clone(&preparation);
        let first = tokio::spawn(async move {
            let work = move |cancelled: &Cancelled| {
                begun.send(()).unwrap();
                while !cancelled.is_set() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                told.send(()).unwrap();
                Ok(())
            };
            first.run(work).await
        });
        tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
        let second = tokio::spawn({
            let preparation = Arc::clone(&preparation);
            async move { preparation.run(|_| Ok(2)).await }
        });
        while preparation.num_waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let third = preparation.run(|_| Ok(3)).await;
        assert_eq!(third.unwrap_err().detail.code, Some("overloaded"));
        // The first one's connection closes: its work is told, and the next has the thread.
        first.abort();
        assert_eq!(second.await.unwrap().unwrap(), 2);
        tokio::task::spawn_blocking(move || was_told.recv().unwrap()).await.unwrap();
        assert_eq!(preparation.num_waiting(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_one_requests_failure() {
        let preparation = Preparation::new(1, 1);
        let error = preparation.run::<()>(|_| panic!("a decoder's bug")).await.unwrap_err();
        assert_eq!(error.detail.code, Some("internal_error"));
        assert_eq!(preparation.run(|_| Ok(1)).await.unwrap(), 1);
    }
}
