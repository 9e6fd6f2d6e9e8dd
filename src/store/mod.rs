//! The only code that speaks Redis.
//!
//! Every call names a partition. Writes are one Redis Function each and leave through `writers`; reads are plain
//! commands over shared connections.

mod address;
mod append;
mod append_call;
mod checks;
mod connections;
mod copy;
mod durability;
mod errors;
mod follow;
mod functions;
mod groups;
mod grown;
mod health;
mod keys;
mod log;
mod look;
mod metrics;
mod migrations;
mod pace;
mod packed;
mod pointers;
mod primary;
mod read;
mod recent;
mod refusal;
mod reply;
mod set_checks;
mod tail;
mod times;
mod topology;
mod verify;
mod view;
mod wire;
mod writers;

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

pub use address::{RedisAddress, RedisSecrets};
pub use append::Appended;
pub use checks::{Check, CheckStatus, examine, judge};
pub use connections::Connections;
pub use copy::{CopiedGroup, Copier, CopyError, Ends, Step};
pub use durability::{DurabilityConfig, Standing};
pub use errors::StartError;
pub use follow::{Batch, LogFollower, StreamFollower};
pub use functions::{Library, hex};
pub use groups::{Asked, ConsumerStatus, Group, GroupStatus, Nack, Next, Parked, ParkedPage, Which};
use grown::Grown;
pub use health::Health;
pub use keys::Keys;
pub use log::{LogFilter, LogPage, LogRequest, StreamsPage};
pub use look::Seen;
pub use metrics::{COUNTS, SECONDS, StoreMetrics};
pub use migrations::{Migration, Migrations};
pub use read::{Direction, PAGE_BYTES, Page, PageRequest, bytes_of};
pub use recent::LiveEvent;
use tail::Tail;
pub use verify::{Report, Verifier};

use crate::model::{Partition, Partitions, StreamId};

/// How a store is reached and used.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where Redis is.
    pub address: RedisAddress,
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

impl StoreConfig {
    /// The names of the store's keys.
    #[must_use]
    pub fn keys(&self) -> Keys {
        let keys = Keys::new(&self.namespace, self.partitions);
        if self.address.is_cluster() { keys.on_cluster() } else { keys }
    }
}

/// An event store in Redis. Keeps no state of its own: any number of them may share one Redis. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    keys: Keys,
    partitions: Partitions,
    connections: Connections,
    library: Library,
    timeout: Duration,
    runs: look::Runs,
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
        let connections = Connections::open(&config).await?;
        let keys = config.keys();
        let StoreConfig { partitions, timeout, migrate, library, .. } = config;
        look::prepare(&connections, &library).await?;
        let migrations = Migrations::default();
        if migrate {
            migrations.run(&connections, &keys, partitions).await?;
        } else {
            migrations.check(&connections, &keys).await?;
        }
        migrations::check_partitions(&connections, &keys, partitions).await?;
        log::check_log(&connections, &keys).await?;
        durability::check_floor(&look::look(&connections, &library, timeout).await)?;
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
                library,
                timeout,
                runs: look::Runs::default(),
                largest,
                groups,
                tails,
                grown,
            }
        });
        tokio::spawn(look::watch(Arc::downgrade(&inner)));
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

    /// What is counted of round trips to Redis.
    #[must_use]
    pub fn metrics(&self) -> &StoreMetrics {
        self.0.connections.metrics()
    }

    /// How much waits and is in use right now.
    #[must_use]
    pub fn load(&self) -> Load {
        self.0.connections.load()
    }
}

/// How busy a store is.
#[derive(Clone, Copy, Debug, Default)]
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
