//! A connection that requests share, each with commands of its own: redis-rs' multiplexed connection does the same, but its
//! parser takes two thirds of the service's time for a page of events. By TLS, which costs more than that, redis-rs
//! connects; this is for TCP and unix sockets.

use std::{collections::VecDeque, io, time::Duration};

use bytes::{Buf as _, BytesMut};
use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

use crate::store::{
    packed::Packed,
    reply::{Replies, Reply},
};

/// Room for what comes: a page of a hundred small events.
const INPUT: usize = 64 * 1024;
/// No further request is put behind so many bytes that are not on their way yet.
const OUTPUT_MAX: usize = 64 * 1024;
/// Requests that wait to be written. Who finds no room waits.
const QUEUED: usize = 256;

/// A connection for pipelines, each of which gets its replies in order. It ends when the last clone is dropped.
#[derive(Clone)]
pub(super) enum Wire {
    /// What this file is about.
    Plain(mpsc::Sender<Request>),
    /// By TLS.
    Tls(MultiplexedConnection),
}

/// Commands, ready to be sent, and who waits for so many replies.
pub(super) struct Request {
    commands: Packed,
    answer: oneshot::Sender<Vec<Reply>>,
}

/// Who waits, with the replies that have come so far.
struct Waiting {
    replies: Vec<Reply>,
    count: usize,
    answer: oneshot::Sender<Vec<Reply>>,
}

impl Wire {
    /// Connects to a server without TLS, and logs in; `None` with TLS. Asks for a sign of life: a server that refuses
    /// everybody says so to whoever asks first.
    ///
    /// # Errors
    /// It cannot be reached within `patience`, or refuses.
    pub(super) async fn open(info: &ConnectionInfo, patience: Duration) -> RedisResult<Option<Self>> {
        let connect = async {
            let requests = match info.addr() {
                ConnectionAddr::Tcp(host, port) => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    // Small commands are not to wait for company.
                    stream.set_nodelay(true)?;
                    start(stream)
                }
                ConnectionAddr::Unix(path) => start(UnixStream::connect(path).await?),
                _ => return Ok(None),
            };
            let wire = Self::Plain(requests);
            for reply in wire.send(&login(info)).await? {
                if let Some(error) = reply.error() {
                    return Err(error.into());
                }
            }
            Ok(Some(wire))
        };
        timeout(patience, connect).await.unwrap_or_else(|_| Err(failed("no connection in time")))
    }

    /// Sends commands, and waits for their replies, error replies among them.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn send(&self, commands: &Pipeline) -> RedisResult<Vec<Reply>> {
        match self {
            Self::Tls(connection) => send_by_tls(connection, commands).await,
            Self::Plain(requests) => send(requests, commands.into()).await,
        }
    }

    /// The same, of commands that are packed.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn send_packed(&self, commands: Packed) -> RedisResult<Vec<Reply>> {
        match self {
            Self::Tls(connection) => send_by_tls(connection, &(&commands).into()).await,
            Self::Plain(requests) => send(requests, commands).await,
        }
    }
}

async fn send_by_tls(connection: &MultiplexedConnection, commands: &Pipeline) -> RedisResult<Vec<Reply>> {
    let replies = connection.clone().send_packed_commands(commands, 0, commands.len()).await?;
    Ok(replies.into_iter().map(Reply::from).collect())
}

async fn send(requests: &mpsc::Sender<Request>, commands: Packed) -> RedisResult<Vec<Reply>> {
    if commands.count == 0 {
        return Ok(Vec::new());
    }
    let (answer, answered) = oneshot::channel();
    let closed = || failed("the connection was closed");
    requests.send(Request { commands, answer }).await.map_err(|_| closed())?;
    answered.await.map_err(|_| closed())
}

/// What redis-rs sends first.
fn login(info: &ConnectionInfo) -> Pipeline {
    let (settings, mut commands) = (info.redis_settings(), Pipeline::new());
    if let Some(password) = settings.password() {
        commands.cmd("AUTH").arg(settings.username()).arg(password);
    }
    if settings.db() != 0 {
        commands.cmd("SELECT").arg(settings.db());
    }
    commands.cmd("PING");
    commands
}

fn failed(why: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Io, why))
}

fn start(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> mpsc::Sender<Request> {
    let (requests, queue) = mpsc::channel(QUEUED);
    // Where it breaks, those who wait find their channels closed.
    tokio::spawn(async move {
        if let Err(error) = run(stream, queue).await {
            debug!(%error, "a connection to Redis broke");
        }
    });
    requests
}

/// Writes what is asked and reads what is answered, until the connection breaks or nobody can ask any more.
async fn run(mut stream: impl AsyncRead + AsyncWrite + Unpin, mut queue: mpsc::Receiver<Request>) -> io::Result<()> {
    let (mut input, mut output) = (BytesMut::with_capacity(INPUT), BytesMut::new());
    let (mut replies, mut waiting) = (Replies::default(), VecDeque::<Waiting>::new());
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    loop {
        input.reserve(INPUT / 2);
        tokio::select! {
            // What waits leaves together. Those who asked ask no more before they are answered, so all get their turn.
            biased;
            request = queue.recv(), if output.len() < OUTPUT_MAX => {
                let Some(Request { commands: Packed { bytes, count }, answer }) = request else { return Ok(()) };
                output.extend_from_slice(&bytes);
                waiting.push_back(Waiting { replies: Vec::with_capacity(count), count, answer });
            }
            written = writer.write_buf(&mut output), if output.has_remaining() => {
                written?;
            }
            read = reader.read_buf(&mut input) => {
                if read? == 0 {
                    return Ok(());
                }
                while let Some(reply) = replies.next(&mut input)? {
                    let Some(first) = waiting.front_mut() else { return Ok(()) };
                    first.replies.push(reply);
                    if first.replies.len() == first.count && let Some(done) = waiting.pop_front() {
                        // Who gave up meanwhile does not want it.
                        let _ = done.answer.send(done.replies);
                    }
                }
            }
        }
    }
}
