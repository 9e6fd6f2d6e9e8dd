//! Judgements of a deployment: what `/readyz` shows of a running service, and what `streamkeep doctor` looks at besides.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::aio::ConnectionLike;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Connections, Health, Keys, Migrations, StartError, StoreConfig, health, log, migrations};

/// Pings of which the latency is the median.
const PINGS: usize = 21;
/// A round trip that takes longer makes every request slow.
const SLOW: Duration = Duration::from_millis(5);
/// Clocks that differ by more make times in events and deadlines of leases look wrong to whoever compares them.
const CLOCKS_MS: u64 = 1_000;
/// The share of `maxmemory` from which there is little left, in percent.
const NEARLY_FULL: u64 = 80;
/// The largest `stream-node-max-bytes` at which short streams do not waste memory.
const NODE_BYTES: u64 = 3_072;

/// One check.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Check {
    /// What is looked at.
    pub name: &'static str,
    /// `ok`, `warn` (works, but should be mended) or `fail` (not ready).
    pub status: CheckStatus,
    /// What was seen.
    pub detail: String,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Works, but should be mended.
    Warn,
    /// Not ready.
    Fail,
}

impl Check {
    /// As it should be.
    #[must_use]
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: CheckStatus::Ok, detail: detail.into() }
    }

    /// Works, but should be mended.
    #[must_use]
    pub fn warn(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: CheckStatus::Warn, detail: detail.into() }
    }

    /// Not ready.
    #[must_use]
    pub fn fail(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: CheckStatus::Fail, detail: detail.into() }
    }
}

impl Health {
    /// What is to be said of Redis.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        vec![
            Check::ok("redis", format!("answers, version {}", self.server_version)),
            match self.role.as_str() {
                "master" => Check::ok("role", "primary"),
                _ => Check::fail("role", "a replica: takes no writes"),
            },
            if self.functions_loaded {
                Check::ok("functions", &self.library)
            } else {
                Check::fail("functions", &self.library)
            },
            self.append_only_file(),
            match self.standing.shortfall() {
                None => Check::ok("durability", self.standing.level().as_str()),
                Some(why) => Check::warn("durability", format!("{why}; appends are refused, all else goes on")),
            },
            match self.eviction_policy.as_str() {
                "noeviction" => Check::ok("maxmemory-policy", "noeviction"),
                other => {
                    let detail =
                        format!("{other}: Redis may drop events when it is full; set maxmemory-policy noeviction");
                    Check::warn("maxmemory-policy", detail)
                }
            },
        ]
    }

    fn append_only_file(&self) -> Check {
        let name = "append-only-file";
        match (self.append_only, self.append_fsync.as_deref()) {
            (Some(true), Some("no")) => Check::warn(
                name,
                "on, appendfsync no: a crash of the machine loses what it has not written; set everysec or always",
            ),
            (Some(true), Some(fsync)) => Check::ok(name, format!("on, appendfsync {fsync}")),
            (Some(false), _) => Check::warn(name, "off: a restart of Redis loses every event; set appendonly yes"),
            _ => Check::warn(name, "CONFIG is closed: not known"),
        }
    }

    fn memory(&self) -> Check {
        let (used, most) = (self.used_memory, self.max_memory);
        let mib = |bytes: u64| bytes / (1024 * 1024);
        match used.saturating_mul(100).checked_div(most) {
            None => Check::ok("memory", format!("{} MiB used, no maxmemory", mib(used))),
            Some(share) => {
                let detail = format!("{share} % of maxmemory, {} of {} MiB", mib(used), mib(most));
                match share {
                    100.. => Check::fail("memory", format!("{detail}: appends are refused; raise maxmemory")),
                    NEARLY_FULL..100 => Check::warn("memory", format!("{detail}: raise maxmemory before it is full")),
                    _ => Check::ok("memory", detail),
                }
            }
        }
    }

    fn replicas(&self) -> Check {
        let name = "replicas";
        match self.replicas.iter().filter(|online| !**online).count() {
            0 if self.replicas.is_empty() => Check::ok(name, "none connected: Redis is the only copy"),
            0 => Check::ok(name, format!("{} connected", self.replicas.len())),
            away => Check::warn(
                name,
                format!("{away} of {} are not online, or lag: look at INFO replication", self.replicas.len()),
            ),
        }
    }
}

/// Looks at a deployment from all sides. Changes nothing.
pub async fn examine(config: StoreConfig) -> Vec<Check> {
    let StoreConfig { address, namespace, partitions, timeout, library, durability, .. } = config;
    let looked = async {
        let connections = Connections::new(address, timeout)?;
        health::check_version(&connections).await?;
        let health = Health::look(&connections, &library, durability).await?;
        Ok::<_, StartError>((connections, health))
    };
    let (connections, health) = match looked.await {
        Ok(found) => found,
        Err(error) => return vec![Check::fail("redis", unreachable_advice(&error))],
    };
    let mut checks = health.checks();
    for check in &mut checks {
        match (check.name, check.status) {
            ("functions", CheckStatus::Fail) => {
                let detail = format!("{} is not loaded: the service does it when it starts", check.detail);
                *check = Check::warn("functions", detail);
            }
            ("durability", CheckStatus::Warn) => {
                let why = health.standing.shortfall().unwrap_or_default();
                *check = Check::fail("durability", format!("{why}; the service does not start"));
            }
            _ => {}
        }
    }
    checks.extend([health.memory(), health.replicas()]);
    let keys = Keys::new(&namespace, partitions);
    let layout = async {
        Migrations::default().check(&connections, &keys).await?;
        migrations::check_partitions(&connections, &keys, partitions).await?;
        log::check_log(&connections, &keys, partitions).await
    };
    checks.push(match layout.await {
        Ok(()) => Check::ok("layout", format!("up to date, {} partition(s)", partitions.count())),
        Err(error @ StartError::MigrationsDue(_)) => {
            Check::warn("layout", format!("{error}; the service does it when it starts"))
        }
        Err(error) => Check::fail("layout", error.to_string()),
    });
    match connections.exclusive().await {
        Ok(mut redis) => {
            let others = library.others(&mut redis).await.unwrap_or_default();
            checks.push(other_libraries(&others));
            checks.push(node_bytes(health::config(&mut redis, "stream-node-max-bytes").await.as_deref()));
            checks.push(latency(&mut redis).await);
            checks.push(clock(&mut redis).await);
        }
        Err(error) => checks.push(Check::fail("redis", error.to_string())),
    }
    checks
}

fn unreachable_advice(error: &StartError) -> String {
    match error {
        StartError::TooOld(_) => error.to_string(),
        _ => format!("{error}; look at --redis-url, and whether Redis runs there"),
    }
}

fn other_libraries(others: &[String]) -> Check {
    let name = "other-libraries";
    if others.is_empty() {
        return Check::ok(name, "none");
    }
    let detail =
        format!("{}; `streamkeep migrate --prune` removes them, once no older instance runs", others.join(", "));
    Check::warn(name, detail)
}

fn node_bytes(value: Option<&str>) -> Check {
    let name = "stream-node-max-bytes";
    match value.map(|text| text.parse::<u64>().unwrap_or(0)) {
        None => Check::ok(name, "CONFIG is closed: not known"),
        Some(bytes @ 1..=NODE_BYTES) => Check::ok(name, bytes.to_string()),
        Some(bytes) => {
            Check::warn(name, format!("{bytes}: short streams take about a fifth more memory; set {NODE_BYTES}"))
        }
    }
}

async fn latency(redis: &mut impl ConnectionLike) -> Check {
    let mut took = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        if let Err(error) = redis::cmd("PING").exec_async(redis).await {
            return Check::fail("latency", error.to_string());
        }
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let median = took[PINGS / 2];
    let detail = format!("a round trip takes {:.2} ms", median.as_secs_f64() * 1_000.0);
    if median < SLOW {
        return Check::ok("latency", detail);
    }
    Check::warn("latency", format!("{detail}, and every request at least one: run the service nearer to Redis"))
}

/// Half a round trip lies between Redis' look at its clock and ours.
async fn clock(redis: &mut impl ConnectionLike) -> Check {
    let began = SystemTime::now();
    let time: redis::RedisResult<(u64, u64)> = redis::cmd("TIME").query_async(redis).await;
    let ended = SystemTime::now();
    let ms = |time: SystemTime| {
        u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
    };
    match time {
        Ok((seconds, micros)) => clocks(seconds * 1_000 + micros / 1_000, u64::midpoint(ms(began), ms(ended))),
        Err(error) => Check::fail("clock", error.to_string()),
    }
}

fn clocks(theirs: u64, ours: u64) -> Check {
    let difference = theirs.abs_diff(ours);
    let detail = format!("{difference} ms apart");
    if difference <= CLOCKS_MS {
        return Check::ok("clock", detail);
    }
    let side = if theirs > ours { "ahead of" } else { "behind" };
    Check::warn(
        "clock",
        format!("Redis is {difference} ms {side} this machine: times of events are Redis'; run NTP on both"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_are_told() {
        assert_eq!(clocks(5_000, 5_900).status, CheckStatus::Ok);
        let check = clocks(7_000, 5_000);
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(check.detail.starts_with("Redis is 2000 ms ahead of"), "{}", check.detail);
        assert!(clocks(5_000, 7_000).detail.starts_with("Redis is 2000 ms behind"));
    }
}
