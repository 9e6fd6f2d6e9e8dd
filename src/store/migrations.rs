//! Numbered migrations: each changes stored data, once, in order, under a lock, with its checksum kept.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use redis::{FromRedisValue, aio::ConnectionLike};
use sha2::{Digest, Sha256};
use tracing::info;
use uuid::Uuid;

use crate::{
    model::{Partition, Partitions},
    store::{Connections, Keys, StartError, StoreConfig, functions::hex},
};

/// How long the lock stands by itself, should its holder die. Renewed at every step.
const LOCK_TTL: Duration = Duration::from_secs(30);
/// How long another instance may hold the lock before this one gives up.
const LOCK_WAIT: Duration = Duration::from_mins(2);
/// How often a waiting instance asks.
const LOCK_ASK: Duration = Duration::from_millis(50);

/// Deletes the lock if it is still ours.
const UNLOCK: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// A change of stored data.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Its place in the order, from 1.
    pub number: u32,
    /// Lua for `EVAL`, repeated until it returns `done`, so that each step is short. KEYS: 1 `streamkeep:schema`;
    /// ARGV: 1 number of partitions.
    pub script: &'static str,
}

impl Migration {
    fn checksum(&self) -> String {
        hex(&Sha256::digest(self.script))
    }
}

/// All migrations that a service knows, in order.
#[derive(Clone, Debug)]
pub struct Migrations(Vec<Migration>);

impl Default for Migrations {
    fn default() -> Self {
        let script = include_str!("../../migrations-lua/0001_create_store.lua");
        Self::new(vec![Migration { number: 1, script }])
    }
}

impl Migrations {
    /// These migrations, numbered upwards.
    #[must_use]
    pub fn new(migrations: Vec<Migration>) -> Self {
        Self(migrations)
    }

    /// Runs what is due; waits for another instance that is doing so. Returns the numbers that were run.
    ///
    /// # Errors
    /// The store is newer than this service, was made by another, or Redis fails.
    pub async fn run(
        &self,
        connections: &Connections,
        keys: &Keys,
        partitions: Partitions,
    ) -> Result<Vec<u32>, StartError> {
        let mut redis = connections.exclusive(Partition::FIRST).await?;
        if self.due(&mut redis, keys).await?.is_empty() {
            return Ok(Vec::new());
        }
        let token = Uuid::now_v7().to_string();
        lock(&mut redis, keys, &token).await?;
        let ran = self.run_locked(&mut redis, keys, partitions).await;
        let unlocked: redis::RedisResult<u8> =
            redis::cmd("EVAL").arg(UNLOCK).arg(1).arg(keys.migrations_lock()).arg(&token).query_async(&mut redis).await;
        let ran = ran?;
        unlocked?;
        Ok(ran)
    }

    /// That nothing is due.
    ///
    /// # Errors
    /// [`StartError::MigrationsDue`] and those of [`Migrations::run`].
    pub async fn check(&self, connections: &Connections, keys: &Keys) -> Result<(), StartError> {
        match self.due(&mut connections.exclusive(Partition::FIRST).await?, keys).await?.len() {
            0 => Ok(()),
            due => Err(StartError::MigrationsDue(due)),
        }
    }

    async fn run_locked(
        &self,
        redis: &mut impl ConnectionLike,
        keys: &Keys,
        partitions: Partitions,
    ) -> Result<Vec<u32>, StartError> {
        let mut ran = Vec::new();
        for migration in self.due(redis, keys).await? {
            loop {
                redis::cmd("PEXPIRE").arg(keys.migrations_lock()).arg(millis(LOCK_TTL)).exec_async(redis).await?;
                let mut step = redis::cmd("EVAL");
                step.arg(migration.script).arg(1).arg(keys.schema()).arg(partitions.count());
                let state: String = step.query_async(redis).await?;
                if state == "done" {
                    break;
                }
            }
            let (number, checksum) = (migration.number, migration.checksum());
            redis::cmd("HSET").arg(keys.migrations()).arg(number).arg(checksum).exec_async(redis).await?;
            info!(number, "migration applied");
            ran.push(number);
        }
        Ok(ran)
    }

    /// What is not yet applied, after a look at what is.
    async fn due(&self, redis: &mut impl ConnectionLike, keys: &Keys) -> Result<Vec<Migration>, StartError> {
        let applied: BTreeMap<u32, String> = redis::cmd("HGETALL").arg(keys.migrations()).query_async(redis).await?;
        let known = self.0.last().map_or(0, |migration| migration.number);
        if let Some((&stored, _)) = applied.last_key_value().filter(|(stored, _)| **stored > known) {
            return Err(StartError::NewerStore { stored, known });
        }
        let mut due = Vec::new();
        for migration in &self.0 {
            match applied.get(&migration.number) {
                None => due.push(*migration),
                Some(checksum) if *checksum == migration.checksum() => {}
                Some(_) => return Err(StartError::ChangedMigration(migration.number)),
            }
        }
        Ok(due)
    }
}

/// The number of partitions that a store was created with.
///
/// # Errors
/// There is no store, or Redis cannot be reached.
pub(super) async fn stored_partitions(config: &StoreConfig) -> Result<Partitions, StartError> {
    let stored: Option<u16> = stored(&Connections::open(config).await?, &config.keys()).await?;
    stored.and_then(Partitions::new).ok_or(StartError::NoStore)
}

/// That the store has the number of partitions that this service was started for.
pub(super) async fn check_partitions(
    connections: &Connections,
    keys: &Keys,
    asked: Partitions,
) -> Result<(), StartError> {
    let stored: u16 = stored(connections, keys).await?;
    if stored == asked.count() { Ok(()) } else { Err(StartError::Partitions { stored, asked: asked.count() }) }
}

/// What the store says of its number of partitions.
async fn stored<T: FromRedisValue>(connections: &Connections, keys: &Keys) -> Result<T, StartError> {
    let mut redis = connections.exclusive(Partition::FIRST).await?;
    Ok(redis::cmd("HGET").arg(keys.schema()).arg("partitions").query_async(&mut redis).await?)
}

async fn lock(redis: &mut impl ConnectionLike, keys: &Keys, token: &str) -> Result<(), StartError> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        let mut take = redis::cmd("SET");
        take.arg(keys.migrations_lock()).arg(token).arg("NX").arg("PX").arg(millis(LOCK_TTL));
        if take.query_async::<Option<String>>(redis).await?.is_some() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(StartError::MigrationsLocked);
        }
        tokio::time::sleep(LOCK_ASK).await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
