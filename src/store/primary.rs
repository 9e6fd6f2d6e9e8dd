//! One server that takes writes, and all connections to it: shared ones for reads, exclusive ones from a pool, and those
//! that the writers keep.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use futures::FutureExt as _;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisResult,
};
use tokio::{
    sync::{Mutex, Notify},
    time::{timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::store::{
    DurabilityConfig, Standing, StartError, errors, metrics::StoreMetrics, refusal, reply::Reply, topology, wire::Wire,
    writers::Writers,
};

/// Shared connections for reads: enough that one busy core of Redis is the limit, not the connection's own task.
const SHARED: usize = 2;
/// Exclusive connections: migrations, loading and checks, none of them on the way of a request.
const EXCLUSIVE: usize = 4;

/// How primaries are used, whichever they are.
#[derive(Clone)]
pub(super) struct Usage {
    /// For each call, all of it.
    pub timeout: Duration,
    /// What they call: the full name of `es_append`.
    pub append_function: String,
    /// Tasks that append.
    pub writers: usize,
    /// Most appends that wait for one of these.
    pub queued_max: usize,
    /// What appends must survive.
    pub durability: DurabilityConfig,
    /// What is counted.
    pub metrics: StoreMetrics,
    /// Told when a call had no answer, or was refused: another server may be primary now.
    pub doubted: Arc<Notify>,
    /// Told when primaries are to be looked at before their time.
    pub unseen: Arc<Notify>,
}

/// A server, and how to connect to it.
pub(super) struct Server {
    client: Client,
    usage: Usage,
    change: Change,
}

/// Whether another server may take the place of one.
pub(super) enum Change {
    /// Never: there is only this one.
    Never,
    /// It may; told when it has.
    May {
        /// Told when this one is primary no more: whatever waits for it is to ask another one.
        retired: CancellationToken,
        /// Whether it may turn into a replica that says nothing of it to those who read.
        silent: bool,
    },
}

impl Server {
    /// A new connection for pipelines, within `patience`. By TLS that is also how long their replies may take; else whoever
    /// sends looks at the clock.
    pub(super) async fn open_wire(&self, patience: Duration) -> RedisResult<Wire> {
        let connect = async {
            let wire = if let Some(wire) = Wire::open(self.client.get_connection_info(), self.usage.timeout).await? {
                wire
            } else {
                let config = connection_config(self.usage.timeout, patience);
                Wire::Tls(self.client.get_multiplexed_async_connection_with_config(&config).await?)
            };
            if self.must_say_role() && !topology::is_primary(wire.send(&topology::ask_role()).await?.pop())? {
                return Err(no_primary());
            }
            Ok(wire)
        };
        let connect = timeout(patience, connect).map(|ended| ended.unwrap_or_else(|_| Err(silent())));
        // What connects takes kilobytes, which each call that may have to connect would otherwise move about.
        self.while_primary(connect.boxed()).await
    }

    /// Gives a call up, as if its connection had broken, when this server is primary no more.
    pub(super) async fn while_primary<T>(&self, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        match &self.change {
            Change::Never => call.await,
            Change::May { retired, .. } => tokio::select! {
                answer = call => answer,
                () = retired.cancelled() => Err(RedisError::from((ErrorKind::Io, "another server is primary now"))),
            },
        }
    }

    /// Whether it is to be asked if it is a primary, for it would not say so to those who read.
    fn must_say_role(&self) -> bool {
        matches!(self.change, Change::May { silent: true, .. })
    }

    /// Whether it is one of a cluster.
    pub(super) fn is_of_cluster(&self) -> bool {
        matches!(self.change, Change::May { silent: false, .. })
    }

    /// Whether another server has taken its place.
    pub(super) fn is_retired(&self) -> bool {
        matches!(&self.change, Change::May { retired, .. } if retired.is_cancelled())
    }

    /// Another server has taken its place, or may have: whoever knows is to be asked.
    pub(super) fn doubt(&self) {
        self.usage.doubted.notify_one();
    }

    /// It gives another level of durability than was seen: it is to be looked at soon.
    pub(super) fn look_again(&self) {
        self.usage.unseen.notify_one();
    }

    /// How long a call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.usage.timeout
    }

    /// What appends must survive.
    pub(super) fn durability(&self) -> DurabilityConfig {
        self.usage.durability
    }

    /// What writers call.
    pub(super) fn append_function(&self) -> &str {
        &self.usage.append_function
    }

    /// What is counted.
    pub(super) fn metrics(&self) -> &StoreMetrics {
        &self.usage.metrics
    }
}

/// What a server says that does not answer in time.
pub(super) fn silent() -> RedisError {
    RedisError::from((ErrorKind::Io, "no answer in time"))
}

fn no_primary() -> RedisError {
    RedisError::from((ErrorKind::Client, "it is no primary"))
}

/// A connection that all share who read. Opened when first used, and anew after it broke.
#[derive(Default)]
struct Shared {
    open: ArcSwapOption<Wire>,
    opening: Mutex<()>,
}

impl Shared {
    async fn get(&self, server: &Server) -> RedisResult<Arc<Wire>> {
        if let Some(open) = self.open.load_full() {
            return Ok(open);
        }
        let _only_one = self.opening.lock().await;
        if let Some(open) = self.open.load_full() {
            return Ok(open);
        }
        let opened = Arc::new(server.open_wire(server.timeout()).await?);
        self.open.store(Some(Arc::clone(&opened)));
        Ok(opened)
    }

    /// Not used again, unless somebody has opened another one already.
    fn close(&self, broken: &Arc<Wire>) {
        self.open.compare_and_swap(broken, None);
    }
}

/// One server that takes writes.
pub(super) struct Primary {
    /// Where it is.
    pub(super) addr: ConnectionAddr,
    pub(super) server: Arc<Server>,
    shared: [Shared; SHARED],
    next: AtomicUsize,
    pub(super) pool: Pool,
    pub(super) writers: Writers,
    /// For what replicas have to confirm: others do not wait for that.
    pub(super) waiting_writers: Writers,
    /// What it gives, as last seen.
    pub(super) standing: ArcSwap<Standing>,
    /// It did not answer when it was last asked, for as long as a call may take.
    away: AtomicBool,
}

impl Primary {
    /// Connects when first used. `had_replicas`: see [`Standing::unseen`].
    pub(super) fn new(
        info: ConnectionInfo,
        usage: &Usage,
        change: Change,
        had_replicas: bool,
    ) -> Result<Arc<Self>, StartError> {
        let timeout = usage.timeout;
        let manager = Manager::new_with_config(info.clone(), connection_config(timeout, timeout))?;
        let pool = Pool::builder(manager)
            .max_size(EXCLUSIVE)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(timeout))
            .create_timeout(Some(timeout))
            .recycle_timeout(Some(timeout))
            .build()
            .map_err(|error| RedisError::from((ErrorKind::Client, "pool", error.to_string())))?;
        let addr = info.addr().clone();
        let server = Arc::new(Server { client: Client::open(info)?, usage: usage.clone(), change });
        let replicas = Some(usage.durability.replicas);
        let [writers, waiting_writers] =
            [None, replicas].map(|replicas| Writers::start(&server, usage.writers, usage.queued_max, replicas));
        let standing = ArcSwap::from_pointee(Standing::unseen(usage.durability, had_replicas));
        let (shared, next, away) = (Default::default(), AtomicUsize::new(0), AtomicBool::new(false));
        Ok(Arc::new(Self { addr, server, shared, next, pool, writers, waiting_writers, standing, away }))
    }

    /// Its address, as logs and metrics name it.
    pub(super) fn name(&self) -> String {
        self.addr.to_string()
    }

    /// A connection of one's own, given back when dropped. Costs a round trip (deadpool asks whether it still lives).
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses, or all are in use for longer than the timeout.
    pub(super) async fn exclusive(&self) -> Result<deadpool_redis::Connection, PoolError> {
        // As with `open_wire`.
        match Box::pin(self.pool.get()).await {
            Err(PoolError::Backend(error)) => {
                let said = if error.is_connection_dropped() { refusal::of(&self.addr).await } else { None };
                Err(PoolError::Backend(said.unwrap_or(error)))
            }
            got => got,
        }
    }

    /// Appends that wait for a writer.
    pub(super) fn queued(&self) -> usize {
        self.writers.queued() + self.waiting_writers.queued()
    }

    /// Sends commands over a shared connection, in one round trip, and gives one reply for each.
    ///
    /// # Errors
    /// There is no connection, it broke, or no answer came until `deadline`: then it is not used again, for it may be one
    /// that nothing comes from any more.
    pub(super) async fn send(&self, commands: &Pipeline, deadline: Instant) -> RedisResult<Vec<Reply>> {
        let shared = &self.shared[self.next.fetch_add(1, Ordering::Relaxed) % SHARED];
        let open = timeout_at(deadline.into(), shared.get(&self.server)).await.map_err(|_| silent())??;
        // A kilobyte, which each layer above would otherwise hold twice and move.
        let replies = self.server.while_primary(open.send(commands).boxed());
        let replies = timeout_at(deadline.into(), replies).await.unwrap_or_else(|_| Err(silent()));
        let broken = match &replies {
            Ok(replies) => errors::are_demoted(replies),
            Err(error) => error.code().is_none(),
        };
        if broken {
            shared.close(&open);
        } else if self.is_away() {
            self.set_away(false);
        }
        replies
    }

    /// Whether it did not answer when it was last asked.
    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    pub(super) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// It is one no more. What waits for it is given up, as if its connections had broken.
    pub(super) fn retire(&self) {
        if let Change::May { retired, .. } = &self.server.change {
            retired.cancel();
        }
    }
}

/// redis-rs gives up after 500 ms unless told otherwise; a slow fsync takes longer.
pub(super) fn connection_config(timeout: Duration, patience: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(patience))
}
