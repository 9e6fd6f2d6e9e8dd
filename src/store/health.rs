//! What the Redis underneath is, and what it promises.

use redis::{InfoDict, aio::ConnectionLike};

use crate::store::{Library, Standing, StartError, primary::Primary};

/// A replica that has sent no acknowledgement for longer, in seconds, is not counted on; each sends one a second.
const LAG_MAX: u64 = 5;

/// What a look at a primary showed.
#[derive(Clone, Debug)]
pub struct Health {
    /// Version of Redis, or of the Redis that Valkey is compatible with.
    pub server_version: String,
    /// `master` or `slave`, in Redis' words.
    pub role: String,
    /// `run_id`: another one after a failover, and after a restart. Not `master_replid`, which is another one also when a
    /// replica comes after a time without any, as for a snapshot.
    pub run_id: String,
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
    /// Of each connected replica whether it follows closely: it is not still fetching all, and heard of lately.
    pub replicas: Vec<bool>,
    /// What follows from these for appends.
    pub standing: Standing,
}

impl Health {
    pub(super) async fn look(primary: &Primary, library: &Library) -> Result<Self, StartError> {
        let mut redis = primary.exclusive().await?;
        let info: InfoDict = redis::cmd("INFO").query_async(&mut redis).await?;
        let text = |name: &str| info.get::<String>(name).unwrap_or_default();
        let append_only = config(&mut redis, "appendonly").await.map(|value| value == "yes");
        let append_fsync = config(&mut redis, "appendfsync").await;
        let synced = append_only.zip(append_fsync.as_deref()).map(|(on, fsync)| on && fsync == "always");
        let replicas: Vec<bool> = (0..)
            .map_while(|number| info.get::<String>(&format!("slave{number}")))
            .map(|replica| follows_closely(&replica))
            .collect();
        // Nobody waits for none; but whoever may not wait cannot have anything confirmed.
        let may_wait = redis::cmd("WAIT").arg(0).arg(1).exec_async(&mut redis).await.is_ok();
        let online = if may_wait { replicas.iter().filter(|online| **online).count() } else { 0 };
        Ok(Self {
            server_version: text("redis_version"),
            role: text("role"),
            run_id: text("run_id"),
            functions_loaded: library.is_loaded(&mut redis).await?,
            library: library.name(),
            append_only,
            append_fsync,
            eviction_policy: text("maxmemory_policy"),
            used_memory: info.get("used_memory").unwrap_or(0),
            max_memory: info.get("maxmemory").unwrap_or(0),
            replicas,
            standing: Standing::new(primary.server.durability(), synced, online),
        })
    }
}

/// As INFO has it: `ip=10.0.0.7,port=6379,state=online,offset=15441,lag=0`.
fn follows_closely(replica: &str) -> bool {
    let member = |name: &str| replica.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let lag = member("lag").and_then(|lag| lag.parse().ok()).unwrap_or(u64::MAX);
    member("state") == Some("online") && lag <= LAG_MAX
}

/// A setting of Redis; `None` where CONFIG is closed, as managed services do.
pub(super) async fn config(redis: &mut impl ConnectionLike, name: &str) -> Option<String> {
    let pair: redis::RedisResult<Vec<String>> = redis::cmd("CONFIG").arg("GET").arg(name).query_async(redis).await;
    pair.ok()?.into_iter().nth(1)
}

/// That the server knows Redis Functions, and is of a cluster only where one is expected.
pub(super) async fn check_version(primary: &Primary) -> Result<(), StartError> {
    let mut redis = primary.exclusive().await?;
    let info: InfoDict = redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
    // Redis' name of the field, and Valkey's.
    let mode = ["redis_mode", "server_mode"].into_iter().find_map(|field| info.get::<String>(field));
    if mode.as_deref() == Some("cluster") && !primary.server.is_of_cluster() {
        return Err(StartError::OfCluster(primary.name()));
    }
    let version: String = info.get("redis_version").unwrap_or_default();
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if major >= 7 { Ok(()) } else { Err(StartError::TooOld(version)) }
}
