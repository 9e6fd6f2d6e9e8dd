//! What hyper does not watch over on a connection: a client that is slow with the head of a request, one that takes no
//! bytes of its answer, and one that is still sending when it has been refused.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// How long a connection is kept half open after a refusal in the middle of a body. Closing at once would make the
/// kernel reset the connection, and the client would lose the answer that says what is wrong.
const LINGER: Duration = Duration::from_secs(2);

/// Where a connection stands. Only the task of the connection changes it, so no order is needed.
#[derive(Clone, Default)]
pub struct Phase(Arc<PhaseState>);

#[derive(Default)]
struct PhaseState {
    turn: AtomicU8,
    unread: AtomicBool,
}

/// A head is on its way. A new connection begins here: whoever connects has a request.
const HEAD: u8 = 0;
/// A request is at work, until the last byte of its answer.
const BUSY: u8 = 1;
/// Kept open for further requests.
const IDLE: u8 = 2;

impl Phase {
    /// A head has been parsed; the request is at work until the guard is dropped.
    pub fn busy(&self) -> Busy {
        self.0.turn.store(BUSY, Relaxed);
        self.0.unread.store(false, Relaxed);
        Busy(self.clone())
    }
}

/// A request at work.
pub struct Busy(Phase);

impl Busy {
    /// The client may still be sending a body that nobody reads.
    pub fn leaves_body_unread(&self) {
        self.0.0.unread.store(true, Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.turn.store(IDLE, Relaxed);
    }
}

/// A connection that ends where its client takes too long.
pub struct Watched {
    stream: TcpStream,
    phase: Phase,
    head_timeout: Duration,
    stall_timeout: Duration,
    /// When the head that has begun must have ended, where `reading` has not been set to it yet.
    head_until: Option<Instant>,
    reading: Pin<Box<Sleep>>,
    writing: Option<Pin<Box<Sleep>>>,
    lingering: bool,
}

impl Watched {
    /// Gives a head `head_timeout` from its first byte (the first of a connection: from now), and a client that takes
    /// no byte of its answer `stall_timeout`.
    pub fn new(stream: TcpStream, phase: Phase, head_timeout: Duration, stall_timeout: Duration) -> Self {
        let reading = Box::pin(tokio::time::sleep(head_timeout));
        Self { stream, phase, head_timeout, stall_timeout, head_until: None, reading, writing: None, lingering: false }
    }

    /// Ends a write that no byte moves in for too long.
    fn unless_stalled<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.writing = None;
            return written;
        }
        let timer = self.writing.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.stall_timeout)));
        timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let had = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > had && self.phase.0.turn.compare_exchange(IDLE, HEAD, Relaxed, Relaxed).is_ok() {
            self.head_until = Some(Instant::now() + self.head_timeout);
        }
        // Most heads come in one piece, and never touch the timer. Drop by drop there is a wait after each drop.
        if read.is_pending() && self.phase.0.turn.load(Relaxed) == HEAD {
            if let Some(until) = self.head_until.take() {
                self.reading.as_mut().reset(until);
            }
            return self.reading.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_stalled(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.unless_stalled(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.lingering {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            if !self.phase.0.unread.load(Relaxed) {
                return Poll::Ready(Ok(()));
            }
            self.lingering = true;
            self.reading.as_mut().reset(Instant::now() + LINGER);
        }
        let mut thrown_away = [0; 8 * 1024];
        while self.reading.as_mut().poll(context).is_pending() {
            let mut into = ReadBuf::new(&mut thrown_away);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut into)) {
                Ok(()) if !into.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
