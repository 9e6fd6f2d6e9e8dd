//! One blocking reader for each partition, and only while somebody waits: it wakes all who do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{Value, aio::ConnectionLike as _};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::{
    model::Partition,
    store::{Connections, Keys},
};

/// How long one XREAD blocks, in ms.
const BLOCK_MS: usize = 5_000;
/// Pause before a broken connection is opened again.
const PAUSE: Duration = Duration::from_millis(50);

/// What there is to wait for in one partition: a new event, or something that became deliverable.
pub struct Tail {
    shared: Arc<Shared>,
    _reader: AbortOnDropHandle<()>,
}

struct Shared {
    waiters: AtomicUsize,
    wanted: Notify,
    woken: watch::Sender<u64>,
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

impl Tail {
    pub(super) fn start(connections: &Connections, keys: &Keys, partition: Partition) -> Self {
        let shared =
            Arc::new(Shared { waiters: AtomicUsize::new(0), wanted: Notify::new(), woken: watch::Sender::new(0) });
        let keys = [keys.log(partition), keys.wake(partition)];
        let reader = tokio::spawn(read(connections.clone(), keys, Arc::clone(&shared)));
        Self { shared, _reader: AbortOnDropHandle::new(reader) }
    }

    /// A waiter that is woken by whatever happens from now on. Make it before looking, so that nothing is missed.
    pub(super) fn waiter(&self) -> Waiter {
        self.shared.waiters.fetch_add(1, Ordering::AcqRel);
        self.shared.wanted.notify_one();
        Waiter { shared: Arc::clone(&self.shared), seen: self.shared.woken.subscribe() }
    }
}

async fn read(connections: Connections, keys: [String; 2], shared: Arc<Shared>) {
    loop {
        while shared.waiters.load(Ordering::Acquire) == 0 {
            shared.wanted.notified().await;
        }
        if let Err(error) = read_while_wanted(&connections, &keys, &shared).await {
            warn!(%error, "cannot follow the log");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Reads until nobody waits any more. What came between the last look and the first read is told as one wake-up.
async fn read_while_wanted(connections: &Connections, keys: &[String; 2], shared: &Shared) -> redis::RedisResult<()> {
    let mut connection = connections.open_blocking(Duration::from_millis(2 * BLOCK_MS as u64)).await?;
    let mut places = [last_id(&mut connection, &keys[0]).await?, last_id(&mut connection, &keys[1]).await?];
    shared.woken.send_modify(|count| *count += 1);
    while shared.waiters.load(Ordering::Acquire) > 0 {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1_000).arg("BLOCK").arg(BLOCK_MS).arg("STREAMS").arg(keys).arg(&places);
        let reply: Option<Vec<(String, Entries)>> = command.query_async(&mut connection).await?;
        for (key, entries) in reply.into_iter().flatten() {
            if let (Some(index), Some((id, _))) = (keys.iter().position(|known| *known == key), entries.last()) {
                places[index].clone_from(id);
            }
            shared.woken.send_modify(|count| *count += 1);
        }
    }
    Ok(())
}

/// Ids, and what does not matter here.
type Entries = Vec<(String, Value)>;

async fn last_id(connection: &mut redis::aio::MultiplexedConnection, key: &str) -> redis::RedisResult<String> {
    let command = redis::cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1).to_owned();
    let entries: Entries = redis::from_redis_value(connection.req_packed_command(&command).await?)?;
    Ok(entries.into_iter().next().map_or("0-0".to_owned(), |(id, _)| id))
}
