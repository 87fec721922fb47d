//! What a caller holds while its request runs.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use foveal_types::{Delta, DeviceFailure, Error};
use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_core::Stream;

/// Where the engine thread puts a request's news.
pub(crate) type DeltaSender = UnboundedSender<Result<Delta, Error>>;

/// Why the engine has stopped; empty while it runs.
pub(crate) type Stopped = Arc<OnceLock<Error>>;

/// The deltas of one request, to await as a [`Stream`] or to read with [`DeltaStream::blocking`]. Dropping it cancels
/// the request within one step.
///
/// It ends after [`Delta::Finished`] or the first error. It never hangs: if the engine stops for whatever reason, the
/// stream ends with an error that says why.
#[derive(Debug)]
pub struct DeltaStream {
    deltas: UnboundedReceiver<Result<Delta, Error>>,
    stopped: Stopped,
    is_done: bool,
}

impl DeltaStream {
    /// A stream and the end that feeds it. It holds one delta per token at most, so nothing bounds it further.
    pub(crate) fn new(stopped: Stopped) -> (DeltaSender, Self) {
        let (sender, deltas) = unbounded();
        (sender, Self { deltas, stopped, is_done: false })
    }

    /// A stream of one error.
    pub(crate) fn refused(stopped: Stopped, error: Error) -> Self {
        let (sender, stream) = Self::new(stopped);
        let _ = sender.unbounded_send(Err(error));
        stream
    }

    /// The same deltas as an iterator that blocks the calling thread until each is there. For programs without an
    /// async runtime.
    #[must_use]
    pub fn blocking(self) -> BlockingDeltas {
        BlockingDeltas { stream: self }
    }
}

impl Stream for DeltaStream {
    type Item = Result<Delta, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(Pin::new(&mut self.deltas).poll_next(cx)).unwrap_or_else(|| {
            let unknown = || DeviceFailure::new("the engine stopped before the answer was complete").into();
            Err(self.stopped.get().cloned().unwrap_or_else(unknown))
        });
        self.is_done = matches!(item, Err(_) | Ok(Delta::Finished { .. }));
        Poll::Ready(Some(item))
    }
}

/// The deltas of one request as a blocking iterator; see [`DeltaStream::blocking`]. Dropping it cancels the request.
#[derive(Debug)]
pub struct BlockingDeltas {
    stream: DeltaStream,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Iterator for BlockingDeltas {
    type Item = Result<Delta, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self.stream).poll_next(&mut cx) {
                Poll::Ready(item) => return item,
                // A wake-up between the poll and here is not lost: `park` then returns at once.
                Poll::Pending => std::thread::park(),
            }
        }
    }
}
