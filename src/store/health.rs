//! What the Redis underneath is, and what it promises.

use std::fmt;

use redis::{InfoDict, aio::ConnectionLike};
use serde::Serialize;

use crate::store::{Library, StartError, primary::Primary};

/// What an acknowledged append survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Redis has it in memory; with `appendfsync everysec` about the last two seconds may be lost.
    #[default]
    Memory,
    /// It is on the primary's disk (`appendfsync always`).
    Fsync,
}

impl Durability {
    /// The level's name, as in the `Streamkeep-Durability` header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Fsync => "fsync",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// What a look at a primary showed.
#[derive(Clone, Debug)]
pub struct Health {
    /// Version of Redis, or of the Redis that Valkey is compatible with.
    pub server_version: String,
    /// `master` or `slave`, in Redis' words.
    pub role: String,
    /// `master_replid`: another one after a failover, and after a restart.
    pub replication_id: String,
    /// Whether the functions are loaded.
    pub functions_loaded: bool,
    /// Name of the functions library.
    pub library: String,
    /// `appendonly`; `None` where CONFIG is closed.
    pub append_only: Option<bool>,
    /// `appendfsync`; `None` where CONFIG is closed.
    pub append_fsync: Option<String>,
    /// `maxmemory-policy`; anything but `noeviction` lets Redis drop events.
    pub eviction_policy: String,
    /// Bytes that Redis uses.
    pub used_memory: u64,
    /// `maxmemory`, in bytes; 0 for none.
    pub max_memory: u64,
    /// Of each connected replica whether it is online, not still fetching all.
    pub replicas: Vec<bool>,
    /// Follows from these.
    pub durability: Durability,
}

impl Health {
    pub(super) async fn look(primary: &Primary, library: &Library) -> Result<Self, StartError> {
        let mut redis = primary.pool.get().await?;
        let info: InfoDict = redis::cmd("INFO").query_async(&mut redis).await?;
        let text = |name: &str| info.get::<String>(name).unwrap_or_default();
        let append_only = config(&mut redis, "appendonly").await.map(|value| value == "yes");
        let append_fsync = config(&mut redis, "appendfsync").await;
        let always = append_only == Some(true) && append_fsync.as_deref() == Some("always");
        Ok(Self {
            server_version: text("redis_version"),
            role: text("role"),
            replication_id: text("master_replid"),
            functions_loaded: library.is_loaded(&mut redis).await?,
            library: library.name(),
            append_only,
            append_fsync,
            eviction_policy: text("maxmemory_policy"),
            used_memory: info.get("used_memory").unwrap_or(0),
            max_memory: info.get("maxmemory").unwrap_or(0),
            replicas: (0..)
                .map_while(|number| info.get::<String>(&format!("slave{number}")))
                .map(|replica| replica.contains("state=online"))
                .collect(),
            durability: if always { Durability::Fsync } else { Durability::Memory },
        })
    }
}

/// A setting of Redis; `None` where CONFIG is closed, as managed services do.
pub(super) async fn config(redis: &mut impl ConnectionLike, name: &str) -> Option<String> {
    let pair: redis::RedisResult<Vec<String>> = redis::cmd("CONFIG").arg("GET").arg(name).query_async(redis).await;
    pair.ok()?.into_iter().nth(1)
}

/// That the server knows Redis Functions, and is of a cluster only where one is expected.
pub(super) async fn check_version(primary: &Primary) -> Result<(), StartError> {
    let mut redis = primary.pool.get().await?;
    let info: InfoDict = redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
    if info.get::<String>("redis_mode").as_deref() == Some("cluster") && !primary.server.is_of_cluster() {
        return Err(StartError::OfCluster(primary.name()));
    }
    let version: String = info.get("redis_version").unwrap_or_default();
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major >= 7 { Ok(()) } else { Err(StartError::TooOld(version)) }
}
