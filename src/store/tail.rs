//! One blocking reader for each partition, and only while somebody waits: it wakes all who do, and takes in each event
//! once for all who follow. What this instance itself appended it need not fetch.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{Pipeline, RedisError, RedisResult};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::{
    model::{Error, Event, Partition, Position, StreamId},
    store::{
        Connections, Inner, Store,
        grown::Grown,
        pace::Pace,
        pointers::{self, Mark, Pointer},
        primary::{Primary, silent},
        read::{PAGE_BYTES, entry_number},
        recent::{LiveEvent, Recent},
        reply::{Parts, Reply},
        wire::Wire,
    },
};

/// How long one XREAD blocks, in ms.
const BLOCK_MS: usize = 5_000;
/// How long its answer may take.
const PATIENCE: Duration = Duration::from_millis(2 * BLOCK_MS as u64);
/// Most entries of one XREAD.
const COUNT: usize = 1_000;
/// Pause before a broken connection is opened again; doubled with each further one, and half of it is chance.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// An append of more bytes is fetched by those who follow, though this instance itself carried it out.
const OWN_BYTES_MAX: usize = 64 * 1024;
/// How often requests that this instance carries out get their turn to leave the events that they appended, before those
/// are fetched.
const TURNS: usize = 3;
/// What the recent events of all partitions may take together, in bytes; but those of one no less than the minimum.
const RECENT_BYTES: usize = 64 * 1024 * 1024;
const RECENT_BYTES_MIN: usize = 4 * 1024 * 1024;

/// What there is to wait for in one partition: a new event, or something that became deliverable.
pub struct Tail {
    shared: Arc<Shared>,
    _reader: AbortOnDropHandle<()>,
}

struct Shared {
    waiters: AtomicUsize,
    followers: AtomicUsize,
    wanted: Notify,
    woken: watch::Sender<u64>,
    /// Shared by all partitions.
    grown: Grown,
    recent: RwLock<Recent>,
    /// Of the streams that are followed: told when events of theirs were taken in.
    bells: Mutex<HashMap<StreamId, watch::Sender<()>>>,
}

impl Shared {
    fn bells(&self) -> MutexGuard<'_, HashMap<StreamId, watch::Sender<()>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_recent(&self, change: impl FnOnce(&mut Recent)) {
        change(&mut self.recent.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Somebody who waits; for as long as it lives, the reader reads.
pub struct Waiter {
    shared: Arc<Shared>,
    seen: watch::Receiver<u64>,
}

impl Waiter {
    /// Waits for the next wake-up after this waiter was made, or after the last one that it was told of.
    pub async fn woken(&mut self) {
        // The sender lives as long as the store.
        let _ = self.seen.changed().await;
    }

    /// How many wake-ups there have been, told to this waiter or not.
    pub fn wakes(&self) -> u64 {
        *self.seen.borrow()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.shared.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Somebody who follows a partition; for as long as it lives, its events are fetched as they come.
pub(super) struct Following {
    shared: Arc<Shared>,
}

impl Following {
    pub(super) fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.shared.recent()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.shared.followers.fetch_sub(1, Ordering::AcqRel);
        self.shared.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Somebody who follows one stream.
pub(super) struct Bell {
    stream: StreamId,
    rung: watch::Receiver<()>,
    pub(super) following: Following,
}

impl Bell {
    /// Takes what was told so far as seen.
    pub(super) fn hush(&mut self) {
        self.rung.mark_unchanged();
    }

    /// Waits until events of the stream were taken in, or the reader began anew.
    pub(super) async fn rung(&mut self) {
        let _ = self.rung.changed().await;
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let mut bells = self.following.shared.bells();
        // The last one: this receiver is still there.
        if bells.get(&self.stream).is_some_and(|bell| bell.receiver_count() <= 1) {
            bells.remove(&self.stream);
        }
    }
}

impl Tail {
    pub(super) fn start(
        connections: &Connections,
        inner: Weak<Inner>,
        partition: Partition,
        keys: [String; 2],
        grown: Grown,
        share: usize,
    ) -> Self {
        let shared = Arc::new(Shared {
            waiters: AtomicUsize::new(0),
            followers: AtomicUsize::new(0),
            wanted: Notify::new(),
            woken: watch::Sender::new(0),
            grown,
            recent: RwLock::new(Recent::new((RECENT_BYTES / share).max(RECENT_BYTES_MIN))),
            bells: Mutex::default(),
        });
        let reader = Reader { connections: connections.clone(), inner, partition, keys, shared: Arc::clone(&shared) };
        Self { shared, _reader: AbortOnDropHandle::new(tokio::spawn(reader.run())) }
    }

    /// A waiter that is woken by whatever happens from now on. Make it before looking, so that nothing is missed.
    pub(super) fn waiter(&self) -> Waiter {
        self.shared.waiters.fetch_add(1, Ordering::AcqRel);
        self.shared.wanted.notify_one();
        Waiter { shared: Arc::clone(&self.shared), seen: self.shared.woken.subscribe() }
    }

    /// Follows the partition's log.
    pub(super) fn follow(&self) -> Following {
        self.shared.followers.fetch_add(1, Ordering::AcqRel);
        self.shared.waiters.fetch_add(1, Ordering::AcqRel);
        self.shared.wanted.notify_one();
        Following { shared: Arc::clone(&self.shared) }
    }

    /// The reader's session, where anybody follows, and an append of so many bytes is to be left to them.
    pub(super) fn session(&self, bytes: usize) -> Option<u64> {
        let wanted = bytes <= OWN_BYTES_MAX && self.shared.followers.load(Ordering::Acquire) > 0;
        wanted.then(|| self.shared.recent().session())
    }

    /// Leaves events that were appended since this session was asked for to those who follow.
    pub(super) fn offer(&self, session: u64, events: impl Iterator<Item = Event>) {
        let events: Vec<_> = events.map(LiveEvent::new).collect();
        self.shared.change_recent(|recent| events.into_iter().for_each(|live| recent.offer(session, live)));
    }

    /// Follows one stream: whatever happens in others wakes nobody.
    pub(super) fn follow_stream(&self, stream: &StreamId) -> Bell {
        let following = self.follow();
        let rung = self.shared.bells().entry(stream.clone()).or_insert_with(|| watch::Sender::new(())).subscribe();
        Bell { stream: stream.clone(), rung, following }
    }
}

struct Reader {
    connections: Connections,
    /// Weak, for the store owns its readers.
    inner: Weak<Inner>,
    partition: Partition,
    /// The log, and what else wakes.
    keys: [String; 2],
    shared: Arc<Shared>,
}

impl Reader {
    async fn run(self) {
        let mut pause = PAUSE;
        loop {
            while self.shared.waiters.load(Ordering::Acquire) == 0 {
                self.shared.wanted.notified().await;
            }
            let ended = self.read_while_wanted(&mut pause).await;
            self.shared.change_recent(Recent::end_session);
            if let Err(error) = ended {
                if pause == PAUSE {
                    warn!(%error, partition = self.partition.get(), "cannot follow the log");
                }
                // Those who follow look for themselves meanwhile: some of them may get through.
                self.tell_all();
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                pause = (2 * pause).min(PAUSE_MAX);
            }
        }
    }

    /// Reads until nobody waits any more. What came between the last look and the first read is told as one wake-up.
    async fn read_while_wanted(&self, pause: &mut Duration) -> Result<(), Error> {
        let opened = self.connections.open_blocking(self.partition, PATIENCE).await;
        let (wire, primary) = opened.map_err(|error| unavailable(&error))?;
        if *pause > PAUSE {
            self.connections.metrics().reconnect();
        }
        let [_, wake] = &self.keys;
        let store = self.store()?;
        let woken = store.last_id(self.partition, wake).await?;
        let mut mark = store.mark_at(self.partition, None).await?;
        // Not held while it blocks: the store could not be dropped.
        drop(store);
        let at = mark.as_ref().map_or(Position::ZERO, Mark::position);
        self.shared.change_recent(|recent| recent.begin_session(at));
        self.tell_all();
        *pause = PAUSE;
        let (mut places, mut pace) = ([format!("0-{at}"), woken], Pace::new(Instant::now()));
        // Whether `mark` is that of the last entry seen.
        let mut known = true;
        while self.shared.waiters.load(Ordering::Acquire) > 0 {
            // A log that was emptied and began anew is silent until it has as many entries as before.
            let standing = mark.as_ref().filter(|_| known);
            let commands = self.blocking(&places, standing)?;
            let replies = self.send(&wire, &primary, &commands).await.map_err(|error| {
                self.connections.failed(self.partition, &error, &primary);
                unavailable(&error)
            })?;
            let news = self.wake(&replies[0], &mut places)?;
            if let Some(mark) = standing {
                self.store()?.check_proof(mark, &replies[1..])?;
            }
            let followed = self.shared.followers.load(Ordering::Acquire) > 0;
            if !followed && news.is_some() {
                let to = entry_number(&places[0]).and_then(Position::new).unwrap_or_default();
                self.shared.change_recent(|recent| recent.skip(to));
                known = false;
            } else if followed && !known {
                // What came while nobody followed was not looked at: those who do now begin anew.
                return Ok(());
            } else if let Some(mut news) = news {
                let news = pointers::listed(&mut news)?;
                let pause = pace.pause(news.len(), self.shared.followers.load(Ordering::Acquire), Instant::now());
                mark = self.take_in(mark, news).await?;
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
            }
        }
        Ok(())
    }

    /// Waits for entries behind these places. What Redis does next, before it answers, is to tell whether the mark stands.
    fn blocking(&self, places: &[String; 2], mark: Option<&Mark>) -> Result<Pipeline, Error> {
        let mut commands = Pipeline::with_capacity(3);
        let command = commands.cmd("XREAD").arg("COUNT").arg(COUNT).arg("BLOCK").arg(BLOCK_MS);
        command.arg("STREAMS").arg(&self.keys).arg(places);
        if let Some(mark) = mark {
            self.store()?.add_proof(&mut commands, self.partition, mark);
        }
        Ok(commands)
    }

    async fn send(&self, wire: &Wire, primary: &Primary, commands: &Pipeline) -> RedisResult<Vec<Reply>> {
        let replies = primary.server.while_primary(wire.send(commands));
        let replies = tokio::time::timeout(PATIENCE, replies).await.map_err(|_| silent())??;
        replies.iter().find_map(Reply::error).map_or(Ok(replies), |error| Err(error.into()))
    }

    /// Moves the places on, and wakes those who wait. Answers with the list of new entries of the log, where there are some.
    fn wake<'a>(&self, reply: &'a Reply, places: &mut [String; 2]) -> Result<Option<Parts<'a>>, Error> {
        let (mut parts, mut news) = (reply.parts(), None);
        // Where nothing came there is no list.
        for _ in 0..parts.list().unwrap_or_default() {
            let key = if parts.list() == Some(2) { parts.text() } else { None };
            let (is_log, entries) = (key == Some(self.keys[0].as_str()), parts.clone());
            let last = parts.last_of_entries().ok_or_else(|| Error::Corrupt("what XREAD answers".to_owned()))?;
            last.clone_into(&mut places[usize::from(!is_log)]);
            self.shared.woken.send_modify(|count| *count += 1);
            news = if is_log { Some(entries) } else { news };
        }
        Ok(news)
    }

    fn store(&self) -> Result<Store, Error> {
        self.inner.upgrade().map(Store).ok_or_else(|| Error::Unavailable("the store is closed".to_owned()))
    }

    /// What is new, where this instance itself has appended all of it.
    async fn own(&self, pointers: &[Pointer]) -> Option<Vec<Arc<LiveEvent>>> {
        // Redis answers the append and this reader in the same moment, and the request may not have had its turn yet.
        for _ in 0..TURNS {
            if let Some(own) = self.shared.recent().offered(pointers) {
                return Some(own);
            }
            tokio::task::yield_now().await;
        }
        None
    }

    async fn fetch(
        &self,
        store: &Store,
        mark: Option<&Mark>,
        pointers: &[Pointer],
    ) -> Result<Vec<Arc<LiveEvent>>, Error> {
        let events = match mark {
            Some(mark) => store.resolve_behind(self.partition, mark, pointers).await?,
            None => store.resolve(self.partition, pointers).await?,
        };
        Ok(events.iter().map(Event::detached).map(LiveEvent::new).collect())
    }

    /// Takes in what is new, and tells those who follow. Answers with the mark of the last.
    async fn take_in(&self, mut mark: Option<Mark>, mut pointers: Vec<Pointer>) -> Result<Option<Mark>, Error> {
        let store = self.store()?;
        while !pointers.is_empty() {
            let rest = pointers.split_off(store.piece(PAGE_BYTES, &[]).min(pointers.len()));
            let piece = std::mem::replace(&mut pointers, rest);
            let events = match self.own(&piece).await {
                Some(own) => own,
                None => self.fetch(&store, mark.as_ref(), &piece).await?,
            };
            let to = piece.last().map_or(Position::ZERO, |pointer| pointer.position);
            let streams: Vec<StreamId> = piece.iter().map(|pointer| pointer.stream.clone()).collect();
            mark = Mark::of(piece, events.last().map(|live| &live.event));
            self.shared.change_recent(|recent| recent.extend(events, to));
            self.tell(&streams);
            // Those who follow go first: what is read next can only come to them after this.
            tokio::task::yield_now().await;
        }
        Ok(mark)
    }

    fn tell(&self, streams: &[StreamId]) {
        self.shared.grown.tell();
        let bells = self.shared.bells();
        if !bells.is_empty() {
            for bell in streams.iter().filter_map(|stream| bells.get(stream)) {
                bell.send_replace(());
            }
        }
    }

    fn tell_all(&self) {
        self.shared.woken.send_modify(|count| *count += 1);
        self.shared.grown.tell();
        for bell in self.shared.bells().values() {
            bell.send_replace(());
        }
    }
}

fn unavailable(error: &RedisError) -> Error {
    Error::Unavailable(error.to_string())
}
