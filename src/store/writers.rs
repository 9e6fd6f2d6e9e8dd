//! Writers: tasks that own a connection each and send all appends that are waiting as one pipeline.
//!
//! Concurrent appends share a round trip, and those of one partition calls of the function, whose beginning and end cost
//! Redis as much as an event; a lone append waits for nobody: a writer takes what is queued the moment it is free. Several
//! writers keep several pipelines under way, so that the next is on its way to Redis while the reply (and with
//! `appendfsync always` the disk) is awaited. The connection is the writer's own, so that a WAIT at the
//! end of a pipeline speaks of exactly these writes: it counts the replicas that have them all. A connection is never
//! mended, only given up, so a WAIT cannot be asked on another one than its writes.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use async_channel::{Receiver, Sender, TrySendError};
use futures::FutureExt as _;
use tokio::sync::oneshot;
use tracing::{Instrument as _, info, warn};

use crate::{
    store::{
        append_call::{self, Answer, AppendCall},
        errors,
        packed::Packed,
        primary::Server,
        reply::Reply,
        wire::Wire,
    },
    telemetry::traces,
};

/// Most appends in one pipeline.
const APPENDS_MAX: usize = 256;
/// No further append is taken once a pipeline has this many bytes of payload.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// What writers call, as it is called in metrics and traces.
const APPEND: &str = "es_append";
/// Pauses between attempts to connect.
const RECONNECT: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);

/// Why a call has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoReply {
    /// It never left: nothing was written.
    NotSent,
    /// It left, and the connection broke or fell silent: it was carried out or not.
    Lost,
    /// Too many calls are queued: nothing was written.
    QueueFull,
}

struct Call {
    append: AppendCall,
    deadline: Instant,
    stage: Stage,
    reply: oneshot::Sender<Result<Answered, NoReply>>,
}

/// What became of an append.
pub(super) struct Answered {
    /// Redis' own words.
    pub(super) answer: Answer,
    /// Whether as many replicas have it as must; true where none must.
    pub(super) confirmed: bool,
}

/// Whether a call still stands in the queue. It leaves once: a writer takes it, or its caller gives it up.
#[derive(Clone, Default)]
struct Stage(Arc<AtomicU8>);

impl Stage {
    const QUEUED: u8 = 0;
    const TAKEN: u8 = 1;
    const GIVEN_UP: u8 = 2;

    /// `false` where the other side was first.
    fn leave(&self, to: u8) -> bool {
        self.0.compare_exchange(Self::QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The queue in front of a set of writers. They end when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Writers {
    queue: Sender<Call>,
}

impl Writers {
    /// Starts `count` writers behind a queue of at most `queued_max` calls. With `replicas`, so many must confirm each.
    pub(super) fn start(server: &Arc<Server>, count: usize, queued_max: usize, replicas: Option<u16>) -> Self {
        let (queue, calls) = async_channel::bounded(queued_max);
        for number in 0..count {
            let writer = Writer {
                number,
                replicas,
                calls: calls.clone(),
                server: Arc::clone(server),
                connection: None,
                failed: false,
            };
            tokio::spawn(writer.run());
        }
        Self { queue }
    }

    /// Calls that wait for a writer.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Sends an append and waits for its reply. It is carried out even where the caller has gone, so it is whole or
    /// absent.
    pub(super) async fn call(&self, append: AppendCall, deadline: Instant) -> Result<Answered, NoReply> {
        let (reply, answer) = oneshot::channel();
        let stage = Stage::default();
        let span = traces::round_trip(APPEND, 1);
        let call = Call { append, deadline, stage: stage.clone(), reply };
        self.queue.try_send(call).map_err(|error| match error {
            TrySendError::Full(_) => NoReply::QueueFull,
            TrySendError::Closed(_) => NoReply::NotSent,
        })?;
        match tokio::time::timeout_at(deadline.into(), answer.instrument(span)).await {
            Ok(answered) => answered.unwrap_or(Err(NoReply::Lost)),
            // Behind a pipeline that hangs a call may stand longer than its time.
            Err(_) if stage.leave(Stage::GIVEN_UP) => Err(NoReply::NotSent),
            Err(_) => Err(NoReply::Lost),
        }
    }
}

struct Writer {
    number: usize,
    /// How many must confirm each call, if any.
    replicas: Option<u16>,
    calls: Receiver<Call>,
    server: Arc<Server>,
    connection: Option<Wire>,
    /// Whether it had a connection that failed.
    failed: bool,
}

impl Writer {
    async fn run(mut self) {
        while let Ok(first) = self.calls.recv().await {
            // Once round the runtime: requests that are ready to run add their calls to this pipeline. Nothing is
            // awaited, so a lone append waits for nobody.
            tokio::task::yield_now().await;
            let mut batch = self.take(first);
            let Some(latest) = batch.iter().map(|call| call.deadline).max() else { continue };
            self.connect(latest).await;
            // Whoever gave up meanwhile knows that nothing was sent.
            batch.retain(|call| call.stage.leave(Stage::TAKEN));
            if batch.is_empty() {
                continue;
            }
            match self.connection.take() {
                Some(connection) => self.send(connection, batch, latest).await,
                None => answer_all(batch, NoReply::NotSent),
            }
        }
    }

    /// What is queued, up to the limits of a pipeline, without calls whose time is up.
    fn take(&self, first: Call) -> Vec<Call> {
        let mut bytes = first.append.bytes;
        let mut batch = vec![first];
        while batch.len() < APPENDS_MAX && bytes < BYTES_MAX {
            let Ok(call) = self.calls.try_recv() else { break };
            bytes += call.append.bytes;
            batch.push(call);
        }
        let now = Instant::now();
        batch.retain(|call| call.deadline > now);
        batch
    }

    /// Connects unless connected, trying until `deadline`.
    async fn connect(&mut self, deadline: Instant) {
        let mut pause = RECONNECT;
        while self.connection.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.server.open_wire(self.server.timeout())).await {
                Ok(Ok(connection)) => {
                    info!(writer = self.number, "connected to Redis");
                    if mem::take(&mut self.failed) {
                        self.server.metrics().reconnect();
                    }
                    self.connection = Some(connection);
                }
                Ok(Err(_)) if self.server.is_retired() => return,
                Ok(Err(error)) if left > pause => {
                    self.server.doubt();
                    warn!(writer = self.number, %error, "cannot connect to Redis");
                    let pausing = tokio::time::sleep(pause.mul_f64(0.5 + fraction()));
                    let _ = self.server.while_primary(pausing.map(Ok)).await;
                    pause = (pause * 2).min(RECONNECT_MAX);
                }
                _ => return,
            }
        }
    }

    async fn send(&mut self, connection: Wire, mut batch: Vec<Call>, deadline: Instant) {
        // Those of a stream stay in order.
        batch.sort_by_key(|call| call.append.partition);
        let (mut commands, mut shares) = (Packed::default(), Vec::new());
        for share in append_call::shares(&batch, |call| &call.append) {
            let appends = share.iter().map(|call| &call.append);
            append_call::add_call(&mut commands, self.server.append_function(), appends);
            shares.push(share.len());
        }
        let (metrics, began) = (self.server.metrics(), Instant::now());
        if let Some(replicas) = self.replicas {
            commands.begin(3);
            commands.word("WAIT");
            commands.number(replicas);
            commands.number(patience(deadline.saturating_duration_since(began)));
        }
        let replies = self.server.while_primary(connection.send_packed(commands));
        let replies = tokio::time::timeout_at(deadline.into(), replies).await;
        metrics.round_trip(APPEND, began.elapsed(), matches!(replies, Ok(Ok(_))));
        metrics.pipeline(batch.len());
        match replies {
            Ok(Ok(replies)) if let Some(confirmed) = self.confirmed(shares.len(), &replies) => {
                let demoted = errors::are_demoted(&replies);
                let answers =
                    shares.iter().zip(&replies).flat_map(|(count, reply)| append_call::answers(reply, *count));
                for (Call { reply, .. }, answer) in batch.into_iter().zip(answers) {
                    let _ = reply.send(Ok(Answered { answer, confirmed }));
                }
                self.connection = Some(connection).filter(|_| !demoted);
            }
            failed => {
                self.failed = true;
                self.server.doubt();
                warn!(writer = self.number, calls = batch.len(), error = ?failed.map(Result::err), "no reply from Redis");
                answer_all(batch, NoReply::Lost);
            }
        }
    }

    /// Whether enough replicas confirmed, by what stands behind the replies of so many calls. `None`: nobody knows, for
    /// WAIT was refused, as it is when the primary becomes a replica.
    fn confirmed(&self, calls: usize, replies: &[Reply]) -> Option<bool> {
        match (self.replicas, replies.get(calls..)?) {
            (None, []) => Some(true),
            (Some(replicas), [count]) => Some(count.parts().number()? >= replicas.into()),
            _ => None,
        }
    }
}

/// How long WAIT may take, in ms: half of what is left, so that its answer comes in time. Never 0, which is for ever.
fn patience(left: Duration) -> u64 {
    u64::try_from(left.as_millis() / 2).unwrap_or(u64::MAX).max(1)
}

/// A client that has gone no longer listens, which is no fault.
fn answer_all(calls: Vec<Call>, why: NoReply) {
    for call in calls {
        let _ = call.reply.send(Err(why));
    }
}

/// Jitter, 0 to 1: writers that lost Redis together do not come back together.
fn fraction() -> f64 {
    f64::from(uuid::Uuid::now_v7().as_bytes()[15]) / 255.0
}
