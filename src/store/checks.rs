//! Judgements of a deployment: what `/readyz` shows of a running service, and what `streamkeep doctor` looks at besides.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::aio::ConnectionLike;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Connections, Health, Library, Migrations, Seen, StartError, StoreConfig, address::Set, health, log, migrations,
    primary::Primary, set_checks,
};

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

    /// In a set of servers one of them is to take over.
    fn replicas(&self, is_set: bool) -> Check {
        let name = "replicas";
        match self.replicas.iter().filter(|online| !**online).count() {
            0 if self.replicas.is_empty() && is_set => {
                Check::warn(name, "none connected: nobody takes over when this primary dies; add one")
            }
            0 if self.replicas.is_empty() => Check::ok(name, "none connected: Redis is the only copy"),
            0 => Check::ok(name, format!("{} connected", self.replicas.len())),
            away => Check::warn(
                name,
                format!("{away} of {} are not online, or lag: look at INFO replication", self.replicas.len()),
            ),
        }
    }
}

/// What is to be said of all primaries. A check fails only where it does of each: while others answer, only some
/// partitions are away.
#[must_use]
pub fn judge(seen: &[Seen]) -> Vec<Check> {
    let of_each = seen.iter().map(|seen| match &seen.health {
        Some(health) => health.checks(),
        None => vec![Check::fail("redis", seen.away())],
    });
    merge(seen, of_each.collect())
}

impl Seen {
    fn away(&self) -> String {
        let partitions: Vec<String> = self.partitions.iter().map(|partition| partition.get().to_string()).collect();
        format!("does not answer; not available: partitions {}", partitions.join(", "))
    }
}

/// One check of each name: of all primaries where it is well, else of each where it is not.
fn merge(seen: &[Seen], checks: Vec<Vec<Check>>) -> Vec<Check> {
    if seen.len() == 1 {
        return checks.into_iter().flatten().collect();
    }
    let mut names: Vec<&'static str> = Vec::new();
    for name in checks.iter().flatten().map(|check| check.name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut merged = Vec::with_capacity(names.len());
    for name in names {
        let of_name = seen.iter().zip(&checks);
        let of_name =
            of_name.filter_map(|(seen, checks)| Some((seen, checks.iter().find(|check| check.name == name)?)));
        let (well, ill): (Vec<_>, Vec<_>) = of_name.partition(|(_, check)| check.status == CheckStatus::Ok);
        let all_fail = ill.iter().filter(|(_, check)| check.status == CheckStatus::Fail).count() == seen.len();
        if let Some((_, check)) = well.first().filter(|_| ill.is_empty()) {
            merged.push(Check::ok(name, format!("{} primaries, the first: {}", well.len(), check.detail)));
        }
        for (seen, check) in ill {
            let status = if all_fail { check.status } else { CheckStatus::Warn };
            merged.push(Check { name, status, detail: format!("{}: {}", seen.primary, check.detail) });
        }
    }
    merged
}

/// Looks at a deployment from all sides. Changes nothing.
pub async fn examine(config: StoreConfig) -> Vec<Check> {
    let connections = match Connections::open(&config).await {
        Ok(connections) => connections,
        Err(error) => return vec![Check::fail("redis", unreachable_advice(&error))],
    };
    let (keys, partitions, library) = (config.keys(), config.partitions, &config.library);
    let is_set = !matches!(config.address.set, Set::Single(_));
    let (mut seen, mut checks) = (Vec::new(), Vec::new());
    for (primary, partitions) in connections.primaries() {
        let (health, of_it) = match examine_primary(&primary, library, is_set).await {
            Ok((health, checks)) => (Some(health), checks),
            Err(error) => (None, vec![Check::fail("redis", unreachable_advice(&error))]),
        };
        seen.push(Seen { primary: primary.name(), partitions, health });
        checks.push(of_it);
    }
    let mut checks = merge(&seen, checks);
    if seen.iter().all(|seen| seen.health.is_none()) {
        return checks;
    }
    checks.extend(set_checks::examine(&config, &connections).await);
    let layout = async {
        Migrations::default().check(&connections, &keys).await?;
        migrations::check_partitions(&connections, &keys, partitions).await?;
        log::check_log(&connections, &keys).await
    };
    checks.push(match layout.await {
        Ok(()) => Check::ok("layout", format!("up to date, {} partition(s)", partitions.count())),
        Err(error @ StartError::MigrationsDue(_)) => {
            Check::warn("layout", format!("{error}; the service does it when it starts"))
        }
        Err(error) => Check::fail("layout", error.to_string()),
    });
    checks
}

async fn examine_primary(
    primary: &Primary,
    library: &Library,
    is_set: bool,
) -> Result<(Health, Vec<Check>), StartError> {
    health::check_version(primary).await?;
    let health = Health::look(primary, library).await?;
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
    let mut redis = primary.exclusive().await?;
    let others = library.others(&mut redis).await.unwrap_or_default();
    checks.extend([health.memory(), health.replicas(is_set), other_libraries(&others)]);
    checks.push(node_bytes(health::config(&mut redis, "stream-node-max-bytes").await.as_deref()));
    checks.push(latency(&mut redis).await);
    checks.push(clock(&mut redis).await);
    Ok((health, checks))
}

fn unreachable_advice(error: &StartError) -> String {
    match error {
        StartError::TooOld(_) | StartError::OfCluster(_) => error.to_string(),
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
