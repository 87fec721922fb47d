//! A connection's socket, and whether anybody is at its other end.
//!
//! hyper sees that a client has gone when it reads, but it doesn't read while it holds bytes that came after a request; and it waits
//! for whoever doesn't read for as long as that takes. Both are looked at here, once in a while, from beside it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Between two looks at a connection.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The end of a connection that hyper reads and writes.
#[derive(Debug)]
pub(crate) struct Socket(Arc<Line>);

/// The other view of the same connection.
#[derive(Debug)]
pub(crate) struct Observer(Arc<Line>);

#[derive(Debug)]
struct Line {
    stream: TcpStream,
    opened: Instant,
    /// Since when a write has waited, in milliseconds after `opened`; [`NOT_WAITING`] while none does.
    write_waits_since: AtomicU64,
}

const NOT_WAITING: u64 = u64::MAX;

/// Why a connection is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// The client has closed it.
    Closed,
    /// The client has read nothing for too long.
    Unread,
}

/// Both views of a connection.
pub(crate) fn watched(stream: TcpStream) -> (Socket, Observer) {
    let line = Arc::new(Line { stream, opened: Instant::now(), write_waits_since: AtomicU64::new(NOT_WAITING) });
    (Socket(Arc::clone(&line)), Observer(line))
}

impl Observer {
    /// Waits until the client has closed its side, or has left what is written unread for `patience`.
    pub(crate) async fn until_given_up(&self, patience: Duration) -> GivenUp {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if self.is_closed() {
                return GivenUp::Closed;
            }
            if self.waited().is_some_and(|waited| waited >= patience) {
                return GivenUp::Unread;
            }
        }
    }

    /// Also where bytes before the end haven't been read.
    fn is_closed(&self) -> bool {
        match self.0.stream.ready(Interest::READABLE).now_or_never() {
            Some(Ok(ready)) => ready.is_read_closed(),
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// How long a write has waited.
    fn waited(&self) -> Option<Duration> {
        let since = self.0.write_waits_since.load(Ordering::Relaxed);
        (since != NOT_WAITING).then(|| self.0.opened.elapsed().saturating_sub(Duration::from_millis(since)))
    }
}

impl Socket {
    /// Writes by `write` as soon as there is room, and notes since when there was none.
    fn poll_by(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let line = &*self.0;
        loop {
            match line.stream.poll_write_ready(cx) {
                Poll::Pending => {
                    let now = line.opened.elapsed().as_millis() as u64;
                    let since = &line.write_waits_since;
                    let _ = since.compare_exchange(NOT_WAITING, now, Ordering::Relaxed, Ordering::Relaxed);
                    return Poll::Pending;
                }
                Poll::Ready(ready) => ready?,
            }
            match write(&line.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    line.write_waits_since.store(NOT_WAITING, Ordering::Relaxed);
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.0.stream;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(|_| ())),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_by(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_by(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// A socket keeps nothing back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&self.0.stream).shutdown(std::net::Shutdown::Write))
    }
}
