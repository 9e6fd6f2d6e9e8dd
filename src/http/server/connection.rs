//! What hyper does not watch over on a connection: a client that is slow with the head of a request, or says in it twice
//! how long the body is, one that takes no bytes of its answer, and one that is still sending when it has been refused.
//! And what hyper itself refuses gets a whole answer here.

use std::{
    io, mem,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::StatusCode;
use bytes::{Buf as _, Bytes};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::head::LengthFields;
use crate::http::request;

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
    two_lengths: AtomicBool,
}

/// A head is on its way. A new connection begins here: whoever connects has a request.
const HEAD: u8 = 0;
/// A request is at work, until hyper has the last byte of its answer.
const BUSY: u8 = 1;
/// The answer is on its way to the client.
const ANSWERED: u8 = 2;
/// Kept open for further requests.
const IDLE: u8 = 3;
/// In HTTP/2 all of that goes on at once, and `http2.rs` watches over it.
const SHARED: u8 = 4;

impl Phase {
    /// A head has been parsed; the request is at work until the guard is dropped.
    pub fn busy(&self) -> Busy {
        self.0.turn.store(BUSY, Relaxed);
        self.0.unread.store(false, Relaxed);
        Busy(self.clone())
    }

    /// The first request of HTTP/2 has come.
    pub fn shared(&self) {
        self.0.turn.store(SHARED, Relaxed);
    }

    fn is(&self, turn: u8) -> bool {
        self.0.turn.load(Relaxed) == turn
    }

    /// Whether it was `from`, which it no longer is.
    fn moves(&self, from: u8, to: u8) -> bool {
        let moves = self.is(from);
        if moves {
            self.0.turn.store(to, Relaxed);
        }
        moves
    }
}

/// A request at work.
pub struct Busy(Phase);

impl Busy {
    /// The client may still be sending a body that nobody reads.
    pub fn leaves_body_unread(&self) {
        self.0.0.unread.store(true, Relaxed);
    }

    /// Whether its head says more than once how long its body is. Not known of a head that came, or began to come,
    /// together with the request before it.
    pub fn has_two_lengths(&self) -> bool {
        self.0.0.two_lengths.load(Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.turn.store(ANSWERED, Relaxed);
    }
}

/// Who is at the other end.
#[derive(Clone)]
pub struct Client {
    /// Its address, or that of a gateway.
    pub address: SocketAddr,
    /// Counts those that take nothing of their answer.
    pub stalled: Counter,
}

impl Client {
    /// It takes nothing of its answer.
    pub fn stalls(&self) {
        self.stalled.inc();
    }
}

/// A connection that ends where its client takes too long.
pub struct Watched<S> {
    stream: S,
    client: Client,
    phase: Phase,
    head_timeout: Duration,
    stall_timeout: Duration,
    /// When the head that has begun must have ended, where `reading` has not been set to it yet.
    head_until: Option<Instant>,
    reading: Pin<Box<Sleep>>,
    writing: Option<Pin<Box<Sleep>>>,
    /// Of the head that is on its way.
    lengths: LengthFields,
    /// What is left to send of the answer that takes the place of hyper's.
    refusal: Option<Bytes>,
    lingering: bool,
    /// Whether the client has taken nothing for too long.
    stalls: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Gives a head `head_timeout` from its first byte (the first of a connection: from now), and a client that takes
    /// no byte of its answer `stall_timeout`.
    pub fn new(stream: S, client: Client, phase: Phase, head_timeout: Duration, stall_timeout: Duration) -> Self {
        let reading = Box::pin(tokio::time::sleep(head_timeout));
        Self {
            stream,
            client,
            phase,
            head_timeout,
            stall_timeout,
            head_until: None,
            reading,
            writing: None,
            lengths: LengthFields::default(),
            refusal: None,
            lingering: false,
            stalls: false,
        }
    }

    /// A part of a head may have come.
    fn read(&mut self, bytes: &[u8]) {
        if self.phase.moves(IDLE, HEAD) {
            self.head_until = Some(Instant::now() + self.head_timeout);
            self.lengths = LengthFields::default();
        }
        // Never unset: the request is refused, and its connection closed.
        if self.phase.is(HEAD) && self.lengths.read(bytes) > 1 {
            self.phase.0.two_lengths.store(true, Relaxed);
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_stalled(written, context)
    }

    /// Whether what hyper writes now is its own: no answer is under way, so it refuses what it cannot read. (What it
    /// refuses behind an answer that is stuck in its buffer stays bare.)
    fn is_refusing(&self) -> bool {
        self.phase.is(HEAD) || self.phase.is(IDLE)
    }

    /// Sends a whole answer in place of hyper's, which has no body.
    fn poll_refuse(&mut self, context: &mut Context<'_>, bare: &[u8]) -> Poll<io::Result<usize>> {
        let Some(mut refusal) = self.refusal.take().or_else(|| in_full(bare, &self.lengths)) else {
            return self.poll_send(context, bare);
        };
        // The client may still be sending what has been refused.
        self.phase.0.unread.store(true, Relaxed);
        while refusal.has_remaining() {
            match self.poll_send(context, &refusal) {
                Poll::Ready(Ok(written)) => refusal.advance(written),
                Poll::Pending => {
                    self.refusal = Some(refusal);
                    return Poll::Pending;
                }
                failed @ Poll::Ready(_) => return failed,
            }
        }
        Poll::Ready(Ok(bare.len()))
    }

    /// Ends a write that no byte moves in for too long. (With TLS flushing and closing write too.)
    fn unless_stalled<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.writing = None;
            return written;
        }
        let timer = self.writing.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.stall_timeout)));
        ready!(timer.as_mut().poll(context));
        // Flushing and closing come to the same end.
        if !mem::replace(&mut self.stalls, true) {
            self.client.stalls();
            tracing::info!(client = %self.client.address, "closed: the client takes nothing of its answer");
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let had = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > had {
            self.read(&into.filled()[had..]);
        }
        // Most heads come in one piece, and never touch the timer. Drop by drop there is a wait after each drop.
        if read.is_pending() && self.phase.is(HEAD) {
            if let Some(until) = self.head_until.take() {
                self.reading.as_mut().reset(until);
            }
            return self.reading.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_refusing() { self.poll_refuse(context, bytes) } else { self.poll_send(context, bytes) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_refusing() {
            return self.poll_refuse(context, parts.first().map_or(&[], |part| part));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.unless_stalled(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has nothing left to write: an answer, if there is one, has gone.
        self.phase.moves(ANSWERED, IDLE);
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.unless_stalled(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.lingering {
            let shut = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.unless_stalled(shut, context))?;
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

/// hyper's refusal, which has no body, with the fields and the document that every failure has. `None` where it is none.
fn in_full(bare: &[u8], head: &LengthFields) -> Option<Bytes> {
    let (status_line, fields) = std::str::from_utf8(bare).ok()?.split_once("\r\n")?;
    let (version, status) = status_line.split_once(' ').filter(|(version, _)| version.starts_with("HTTP/1."))?;
    let status: StatusCode = status.get(..3)?.parse().ok()?;
    // Where its buffer is full hyper does not say of what.
    let too_large = status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    let status = if too_large && head.in_request_line() { StatusCode::URI_TOO_LONG } else { status };
    let answer = request::unreadable(status)?;
    let mut text = format!("{version} {status}\r\n").into_bytes();
    let date = fields.lines().find(|field| field.starts_with("date:")).map(str::as_bytes);
    let ours =
        answer.headers().iter().map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()].join(&b": "[..]));
    for field in date.map(<[u8]>::to_vec).into_iter().chain(ours) {
        text.extend_from_slice(&field);
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(answer.body());
    Some(text.into())
}
