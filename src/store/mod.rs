//! The only code that speaks Redis.
//!
//! Every call names a partition. Writes are one Redis Function each and leave through `writers`; reads are plain
//! commands over shared connections.

mod append;
mod checks;
mod connections;
mod durability;
mod errors;
mod follow;
mod functions;
mod groups;
mod grown;
mod health;
mod keys;
mod log;
mod metrics;
mod migrations;
mod pointers;
mod read;
mod recent;
mod tail;
mod times;
mod verify;
mod writers;

use std::{
    sync::{Arc, Weak, atomic::AtomicUsize},
    time::Duration,
};

use arc_swap::ArcSwap;
use redis::ConnectionInfo;
use tokio::sync::Notify;

pub use append::Appended;
pub use checks::{Check, CheckStatus, examine};
pub use connections::Connections;
pub use durability::{DurabilityConfig, Standing};
pub use errors::StartError;
pub use follow::{Batch, LogFollower, StreamFollower};
pub use functions::{Library, hex};
pub use groups::{Asked, ConsumerStatus, Group, GroupStatus, Nack, Next, Parked, ParkedPage, Which};
use grown::Grown;
pub use health::Health;
pub use keys::Keys;
pub use log::{LogFilter, LogPage, LogRequest, StreamsPage};
pub use metrics::{COUNTS, SECONDS, StoreMetrics};
pub use migrations::{Migration, Migrations};
pub use read::{Direction, PAGE_BYTES, Page, PageRequest, bytes_of};
pub use recent::LiveEvent;
use tail::Tail;
pub use verify::{Report, Verifier};
use writers::Writers;

use crate::model::{Partition, Partitions, StreamId};

/// How often Redis' settings are looked at.
const HEALTH_PAUSE: Duration = Duration::from_secs(5);

/// How a store is reached and used.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where Redis is.
    pub address: ConnectionInfo,
    /// Stands before every key; empty for none.
    pub namespace: String,
    /// Number of partitions; must be the one that the store was created with.
    pub partitions: Partitions,
    /// Tasks that append, each with a connection of its own; as many again for what replicas confirm.
    pub writers: usize,
    /// Most appends that wait for a writer, of either kind; further ones are refused.
    pub queued_max: usize,
    /// For each call, all of it: waiting, connecting, Redis' answer, repeating.
    pub timeout: Duration,
    /// Whether to run due migrations; if not, they stop the start.
    pub migrate: bool,
    /// What appends must survive.
    pub durability: DurabilityConfig,
    /// The functions; tests put in others.
    pub library: Library,
}

/// An event store in Redis. Keeps no state of its own: any number of them may share one Redis. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    keys: Keys,
    partitions: Partitions,
    connections: Connections,
    writers: Writers,
    /// For what replicas have to confirm: others do not wait for that.
    waiting_writers: Writers,
    library: Library,
    append_function: String,
    timeout: Duration,
    durability: DurabilityConfig,
    health: ArcSwap<Health>,
    /// Told when Redis is to be looked at before its time.
    doubt: Arc<Notify>,
    /// Bytes of the largest event read so far.
    largest: AtomicUsize,
    groups: groups::Cache,
    tails: Vec<Tail>,
    /// Told when a partition's reader has taken in events.
    grown: Grown,
}

impl Store {
    /// Connects, checks version and layout, runs due migrations, loads the functions.
    ///
    /// # Errors
    /// [`StartError`], in one sentence each.
    pub async fn open(config: StoreConfig) -> Result<Self, StartError> {
        let StoreConfig { address, namespace, partitions, writers, queued_max, timeout, migrate, library, durability } =
            config;
        let connections = Connections::new(address, timeout)?;
        let keys = Keys::new(&namespace, partitions);
        health::check_version(&connections).await?;
        let migrations = Migrations::default();
        if migrate {
            migrations.run(&connections, &keys, partitions).await?;
        } else {
            migrations.check(&connections, &keys).await?;
        }
        migrations::check_partitions(&connections, &keys, partitions).await?;
        log::check_log(&connections, &keys, partitions).await?;
        library.load(&mut connections.exclusive().await?).await?;
        let health = Health::look(&connections, &library, durability).await?;
        durability::check_floor(&health)?;
        let waiting_writers = Writers::start(&connections, writers, queued_max, Some(durability.replicas));
        let writers = Writers::start(&connections, writers, queued_max, None);
        let append_function = library.function("es_append");
        let grown = Grown::default();
        let inner = Arc::new_cyclic(|inner| {
            let tail = |partition| {
                let keys = [keys.log(partition), keys.wake(partition)];
                Tail::start(&connections, inner.clone(), partition, keys, grown.clone(), partitions.count().into())
            };
            let (tails, largest) = (partitions.all().map(tail).collect(), AtomicUsize::new(0));
            let groups = groups::Cache::default();
            Inner {
                keys,
                partitions,
                connections,
                writers,
                waiting_writers,
                library,
                append_function,
                timeout,
                durability,
                health: ArcSwap::from_pointee(health),
                doubt: Arc::default(),
                largest,
                groups,
                tails,
                grown,
            }
        });
        tokio::spawn(watch_health(Arc::downgrade(&inner), Arc::clone(&inner.doubt)));
        Ok(Self(inner))
    }

    /// The partition of a stream.
    #[must_use]
    pub fn partition(&self, stream: &StreamId) -> Partition {
        self.0.partitions.of(stream)
    }

    /// How many partitions the store has.
    #[must_use]
    pub fn partitions(&self) -> Partitions {
        self.0.partitions
    }

    /// Looks at Redis anew, and loads the functions if they are gone.
    ///
    /// # Errors
    /// Redis does not answer within the timeout.
    pub async fn check_health(&self) -> Result<Arc<Health>, StartError> {
        let Inner { connections, library, durability, .. } = &*self.0;
        let look = async {
            let health = Health::look(connections, library, *durability).await?;
            if health.functions_loaded {
                return Ok(health);
            }
            library.load(&mut connections.exclusive().await?).await?;
            Health::look(connections, library, *durability).await
        };
        let looked = tokio::time::timeout(self.0.timeout, look).await;
        let health = looked.map_err(|_| deadpool_redis::PoolError::Timeout(deadpool_redis::TimeoutType::Recycle))??;
        let standing = health.standing.after(&self.standing());
        let health = Arc::new(Health { standing, ..health });
        let before = self.0.health.swap(Arc::clone(&health));
        let levels = [&before, &health].map(|health| health.standing.level());
        if levels[0] != levels[1] || before.standing.shortfall() != health.standing.shortfall() {
            let shortfall = health.standing.shortfall();
            tracing::warn!(before = %levels[0], now = %levels[1], shortfall, "the durability of appends has changed");
        }
        if before.run_id != health.run_id {
            self.metrics().failover();
            tracing::warn!(role = health.role, "another Redis answers, or the same one started anew: a failover?");
        }
        Ok(health)
    }

    /// What is counted of round trips to Redis.
    #[must_use]
    pub fn metrics(&self) -> &StoreMetrics {
        self.0.connections.metrics()
    }

    /// How much waits and is in use right now.
    #[must_use]
    pub fn load(&self) -> Load {
        let (pool_in_use, pool_idle, pool_waiting) = self.0.connections.pool();
        let queued = self.0.writers.queued() + self.0.waiting_writers.queued();
        Load { queued, pool_in_use, pool_idle, pool_waiting }
    }
}

/// How busy a store is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Appends that wait for a writer.
    pub queued: usize,
    /// Exclusive connections in use.
    pub pool_in_use: usize,
    /// Exclusive connections that are idle.
    pub pool_idle: usize,
    /// Callers that wait for an exclusive connection.
    pub pool_waiting: usize,
}

/// Looks at Redis again and again, so that what appends tell of their durability stays true when Redis' settings change.
async fn watch_health(store: Weak<Inner>, doubt: Arc<Notify>) {
    loop {
        let _ = tokio::time::timeout(HEALTH_PAUSE, doubt.notified()).await;
        let Some(inner) = store.upgrade() else { return };
        if let Err(error) = Store(inner).check_health().await {
            tracing::warn!(%error, "cannot look at Redis");
        }
    }
}
