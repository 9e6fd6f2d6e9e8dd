//! Which primary has which partition, and what is asked of it. A table says so; it is made anew when a call was not
//! answered or refused, and now and then. With one Redis, which nothing takes the place of, it never changes.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use redis::{ConnectionAddr, Pipeline, RedisError, ServerError};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument as _, info, warn};

use crate::{
    model::{Error, Partition},
    store::{
        Load, StoreConfig,
        address::{RedisAddress, Set},
        errors::{self, Refusal, StartError},
        metrics::{StoreMetrics, operation},
        primary::{Change, Primary, Usage},
        reply::Reply,
        topology,
        view::View,
        wire::Wire,
    },
    telemetry::traces,
};

/// Pauses before a call is repeated; each is the double of the one before, and half of it is chance.
const REPEAT_PAUSE: Duration = Duration::from_millis(20);
const REPEAT_PAUSE_MAX: Duration = Duration::from_millis(250);
/// How often it is asked who is primary, though every call is answered.
const LOOK: Duration = Duration::from_secs(10);
/// The least and the longest pause between two such looks while calls are not answered.
const LOOK_PAUSE: Duration = Duration::from_millis(25);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(500);

/// The primaries of a store, and the way to each. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    address: RedisAddress,
    table: ArcSwap<Table>,
    /// Held by whoever changes the table.
    changing: Mutex<()>,
    /// Of each partition, in their order.
    slots: Vec<(Partition, u16)>,
    usage: Usage,
    watch: OnceLock<AbortOnDropHandle<()>>,
}

/// Which primary has what.
struct Table {
    primaries: Vec<Arc<Primary>>,
    /// Of each partition, its place among them.
    partitions: Vec<usize>,
    view: View,
}

impl Table {
    fn has(&self, addr: &ConnectionAddr) -> bool {
        self.primaries.iter().any(|primary| primary.addr == *addr)
    }
}

/// The pauses of one call that is repeated.
pub(super) struct Pauses {
    next: Duration,
    deadline: Instant,
}

impl Pauses {
    pub(super) fn until(deadline: Instant) -> Self {
        Self { next: REPEAT_PAUSE, deadline }
    }

    /// Waits before the next attempt. `false` where there is no time for one.
    pub(super) async fn pause(&mut self) -> bool {
        let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(REPEAT_PAUSE_MAX);
        let time = Instant::now() + pause < self.deadline;
        if time {
            tokio::time::sleep(pause).await;
        }
        time
    }
}

impl Connections {
    /// Looks up who is primary. Does not connect to one Redis by itself: that is done when it is first used.
    ///
    /// # Errors
    /// Where the address does not make sense, or nobody says who is primary.
    pub async fn open(config: &StoreConfig) -> Result<Self, StartError> {
        let StoreConfig { address, partitions, timeout, writers, queued_max, durability, library, .. } = config;
        let keys = config.keys();
        let (metrics, doubted, unseen) = (StoreMetrics::default(), Arc::new(Notify::new()), Arc::default());
        let (timeout, writers, queued_max, durability) = (*timeout, *writers, *queued_max, *durability);
        let append_function = library.function("es_append");
        let usage = Usage { timeout, append_function, writers, queued_max, durability, metrics, doubted, unseen };
        let slots = partitions.all().map(|partition| (partition, topology::slot(&keys.log(partition)))).collect();
        let said = topology::look(address, &[], timeout).await?;
        let empty = Table { primaries: Vec::new(), partitions: Vec::new(), view: View::default() };
        let inner = Inner {
            address: address.clone(),
            table: ArcSwap::from_pointee(empty),
            changing: Mutex::default(),
            slots,
            usage,
            watch: OnceLock::new(),
        };
        inner.take(|before| Some(before.after(&said, Instant::now())))?;
        let inner = Arc::new(inner);
        if !matches!(address.set, Set::Single(_)) {
            let listeners = topology::listen(address, &inner.usage.doubted);
            let watch = watch(Arc::downgrade(&inner), Arc::clone(&inner.usage.doubted), listeners);
            let watch = tokio::spawn(watch);
            let _ = inner.watch.set(AbortOnDropHandle::new(watch));
        }
        Ok(Self(inner))
    }

    /// The primary that has a partition now.
    pub(super) fn primary(&self, partition: Partition) -> Arc<Primary> {
        let table = self.0.table.load();
        Arc::clone(&table.primaries[table.partitions[usize::from(partition.get())]])
    }

    /// Whether the primary of a partition did not answer when it was last asked, while there are others: whoever looks at
    /// several partitions is not to spend the time of a call on this one. Some other call will find it back.
    pub(super) fn is_away(&self, partition: Partition) -> bool {
        let table = self.0.table.load();
        table.primaries.len() > 1 && table.primaries[table.partitions[usize::from(partition.get())]].is_away()
    }

    /// All of them, each with its partitions.
    pub(super) fn primaries(&self) -> Vec<(Arc<Primary>, Vec<Partition>)> {
        let table = self.0.table.load();
        let has = |place: usize| {
            let of = self.0.slots.iter().zip(&table.partitions).filter(move |(_, at)| **at == place);
            of.map(|((partition, _), _)| *partition).collect()
        };
        table.primaries.iter().enumerate().map(|(place, primary)| (Arc::clone(primary), has(place))).collect()
    }

    /// A connection of one's own to the primary of a partition, given back when dropped. Costs a round trip (deadpool asks
    /// whether it still lives).
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses, or all are in use for longer than the timeout.
    pub(super) async fn exclusive(
        &self,
        partition: Partition,
    ) -> Result<deadpool_redis::Connection, deadpool_redis::PoolError> {
        self.primary(partition).exclusive().await
    }

    /// Whether the server of this name is a primary now.
    pub(super) fn is_primary(&self, name: &str) -> bool {
        self.0.table.load().primaries.iter().any(|primary| primary.name() == name)
    }

    /// What is counted of round trips.
    #[must_use]
    pub fn metrics(&self) -> &StoreMetrics {
        &self.0.usage.metrics
    }

    /// Told when primaries are to be looked at before their time.
    pub(super) fn unseen(&self) -> Arc<Notify> {
        Arc::clone(&self.0.usage.unseen)
    }

    /// How much waits and is in use right now, with all primaries.
    pub(super) fn load(&self) -> Load {
        let mut load = Load::default();
        for primary in &self.0.table.load().primaries {
            let pool = primary.pool.status();
            load.queued += primary.queued();
            load.pool_in_use += pool.size.saturating_sub(pool.available);
            load.pool_idle += pool.available;
            load.pool_waiting += pool.waiting;
        }
        load
    }

    /// A new connection for blocking commands, each of which may take as long as `patience`; and to whom it is.
    pub(super) async fn open_blocking(
        &self,
        partition: Partition,
        patience: Duration,
    ) -> redis::RedisResult<(Wire, Arc<Primary>)> {
        let primary = self.primary(partition);
        Ok((primary.server.open_wire(patience).await?, primary))
    }

    /// Takes note of a call about a partition that failed: another server may have it now.
    pub(super) fn failed(&self, partition: Partition, error: &RedisError, by: &Primary) {
        match (error.code(), error.detail()) {
            (Some("MOVED"), Some(to)) => self.moved(partition, to, &by.addr),
            _ => self.0.usage.doubted.notify_one(),
        }
    }

    /// Sends commands that only read over a shared connection, in one round trip, and gives one reply for each. While
    /// Redis is away, starting, or another server takes over, they are repeated, which is harmless for reads, for as long
    /// as there is time.
    ///
    /// # Errors
    /// The first error reply, or that Redis does not answer within the timeout.
    pub(super) async fn read(&self, partition: Partition, commands: &Pipeline) -> Result<Vec<Reply>, Error> {
        let replies = self.ask(partition, commands).await?;
        match replies.iter().find_map(Reply::error) {
            Some(error) => Err(errors::from_reply(&error)),
            None => Ok(replies),
        }
    }

    /// The same, with each error reply in its place among the others.
    ///
    /// # Errors
    /// Redis does not answer within the timeout.
    pub(super) async fn ask(&self, partition: Partition, commands: &Pipeline) -> Result<Vec<Reply>, Error> {
        let span = traces::round_trip(operation_of(commands), commands.len());
        self.exchange(partition, commands).instrument(span).await
    }

    /// As `ask`, for a task of its own, of which no request's trace tells.
    pub(super) async fn exchange(&self, partition: Partition, commands: &Pipeline) -> Result<Vec<Reply>, Error> {
        self.repeat(commands, || self.primary(partition), |to, by| self.moved(partition, to, by)).await
    }

    /// As `ask`, of one server, whatever partitions it has.
    ///
    /// # Errors
    /// Redis does not answer within the timeout.
    pub(super) async fn ask_at(&self, primary: &Arc<Primary>, commands: &Pipeline) -> Result<Vec<Reply>, Error> {
        let span = traces::round_trip(operation_of(commands), commands.len());
        self.repeat(commands, || Arc::clone(primary), |_, _| {}).instrument(span).await
    }

    async fn repeat(
        &self,
        commands: &Pipeline,
        whom: impl Fn() -> Arc<Primary>,
        moved: impl Fn(&str, &ConnectionAddr),
    ) -> Result<Vec<Reply>, Error> {
        let began = Instant::now();
        let deadline = began + self.0.usage.timeout;
        let calls = async {
            let mut pauses = Pauses::until(deadline);
            loop {
                let primary = whom();
                let mut silent = false;
                let why = match primary.send(commands, deadline).await {
                    Ok(replies) => match errors_of(&replies).iter().find_map(errors::refusal) {
                        None => return Ok(replies),
                        Some(Refusal::Moved(to)) => {
                            moved(to, &primary.addr);
                            "it is with another server".to_owned()
                        }
                        Some(refusal) => {
                            primary.server.doubt();
                            format!("{refusal:?}")
                        }
                    },
                    Err(error) if error.code().is_none() => {
                        silent = true;
                        primary.server.doubt();
                        error.to_string()
                    }
                    Err(error) => return Err(errors::from_call(&error)),
                };
                if !pauses.pause().await {
                    if silent {
                        primary.set_away(true);
                    }
                    return Err(Error::Unavailable(why));
                }
            }
        };
        let replies = calls.await;
        self.metrics().round_trip(operation_of(commands), began.elapsed(), replies.is_ok());
        replies
    }

    /// A server said that another one has the partition: at once for this one, by a look for the others.
    pub(super) fn moved(&self, partition: Partition, to: &str, by: &ConnectionAddr) {
        let (_, slot) = self.0.slots[usize::from(partition.get())];
        match topology::moved_to(&self.0.address, to, by) {
            Some(to) => self.0.moved(slot, by, &to),
            None => warn!(to, "Redis points to nowhere"),
        }
        self.0.usage.doubted.notify_one();
    }
}

fn errors_of(replies: &[Reply]) -> Vec<ServerError> {
    replies.iter().filter_map(Reply::error).collect()
}

fn operation_of(commands: &Pipeline) -> &'static str {
    commands.cmd_iter().next().map_or("other", operation)
}

impl Inner {
    fn moved(&self, slot: u16, by: &ConnectionAddr, to: &ConnectionAddr) {
        if let Err(error) = self.take(|before| before.moved(slot, by, to.clone())) {
            warn!(%error, "cannot use the server that has a partition now");
        }
    }

    /// Makes the table anew, by what is believed after what was believed before; `None` is nothing new. Servers that were
    /// primaries before stay as they are, with their connections; those that are none any more are retired. `true` if the
    /// owners are others now.
    fn take(&self, view: impl FnOnce(&View) -> Option<View>) -> Result<bool, StartError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.table.load_full();
        let Some(view) = view(&before.view) else { return Ok(false) };
        let addrs = view.primaries();
        let mut primaries = Vec::with_capacity(addrs.len());
        for addr in &addrs {
            primaries.push(match before.primaries.iter().find(|primary| primary.addr == *addr) {
                Some(known) => Arc::clone(known),
                None => {
                    self.usage.metrics.primary(&addr.to_string());
                    self.usage.unseen.notify_one();
                    let had_replicas = before.primaries.iter().any(|known| known.standing.load().had_replicas());
                    Primary::new(self.address.server(addr), &self.usage, self.change(), had_replicas)?
                }
            });
        }
        // Where nobody has a slot, the first one will say so.
        let place = |owner| addrs.iter().position(|addr| addr == owner);
        let place_of = |slot| view.owner(slot).and_then(place).unwrap_or(0);
        let partitions = self.slots.iter().map(|(_, slot)| place_of(*slot)).collect();
        let changed = !view.is_like(&before.view);
        let table = Arc::new(Table { primaries, partitions, view });
        self.table.store(Arc::clone(&table));
        self.tell(&before, &table);
        for gone in before.primaries.iter().filter(|known| !table.has(&known.addr)) {
            gone.retire();
        }
        Ok(changed)
    }

    /// Says, where it was not the beginning, which primaries are new, and counts those that took over from one that is
    /// none any more. A slot that was moved between two that stay is no failover.
    fn tell(&self, before: &Table, now: &Table) {
        if before.primaries.is_empty() {
            return;
        }
        for (place, primary) in now.primaries.iter().enumerate().filter(|(_, new)| !before.has(&new.addr)) {
            let name = primary.name();
            let moved = now.partitions.iter().zip(&before.partitions).filter(|(at, _)| **at == place);
            let mut from = moved.map(|(_, at)| &before.primaries[*at]);
            match from.find(|old| !now.has(&old.addr)) {
                Some(old) => {
                    self.usage.metrics.failover(&name);
                    warn!(primary = name, instead_of = old.name(), "another server is primary now: a failover");
                }
                None => info!(primary = name, "another server has slots now"),
            }
        }
    }

    fn change(&self) -> Change {
        match self.address.set {
            Set::Single(_) => Change::Never,
            Set::Sentinel { .. } => Change::May { retired: CancellationToken::new(), silent: true },
            // A replica of a cluster answers MOVED.
            Set::Cluster(_) => Change::May { retired: CancellationToken::new(), silent: false },
        }
    }
}

/// Asks who is primary now and then, and at once when a call had no answer or somebody told of a failover.
async fn watch(inner: Weak<Inner>, doubted: Arc<Notify>, _listeners: JoinSet<()>) {
    let mut pause = LOOK_PAUSE;
    loop {
        let asked = tokio::time::timeout(LOOK, doubted.notified()).await.is_ok();
        let Some(inner) = inner.upgrade() else { return };
        let known = inner.table.load().view.servers();
        let looked = topology::look(&inner.address, &known, inner.usage.timeout).await;
        let taken = looked.and_then(|said| inner.take(|before| Some(before.after(&said, Instant::now()))));
        let changed = taken.unwrap_or_else(|error| {
            if pause == LOOK_PAUSE_MAX {
                warn!(%error, "cannot find out who is primary");
            }
            false
        });
        if !inner.table.load().view.is_confirmed() {
            doubted.notify_one();
        }
        drop(inner);
        // Until another one is primary calls go on failing: no need to ask each time.
        pause = if asked && !changed { (2 * pause).min(LOOK_PAUSE_MAX) } else { LOOK_PAUSE };
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}
