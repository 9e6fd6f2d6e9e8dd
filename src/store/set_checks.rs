//! What `streamkeep doctor` looks at besides, where Redis is several servers.

use std::time::Duration;

use futures::future::join_all;
use redis::{ConnectionAddr, RedisResult};

use super::{
    Check, Connections, StoreConfig,
    address::{RedisAddress, Set},
    health, topology,
    view::SLOTS,
};

/// How long a sentinel may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Looks at what holds the servers together. Changes nothing.
pub(super) async fn examine(config: &StoreConfig, connections: &Connections) -> Vec<Check> {
    match &config.address.set {
        Set::Single(_) => Vec::new(),
        Set::Sentinel { sentinels, name } => vec![examine_sentinels(&config.address, sentinels, name).await],
        Set::Cluster(_) => {
            let mut checks = examine_cluster(connections).await;
            checks.push(shares(connections));
            checks
        }
    }
}

async fn examine_sentinels(address: &RedisAddress, sentinels: &[ConnectionAddr], of: &str) -> Check {
    let name = "sentinels";
    let asks = sentinels.iter().map(async |sentinel| {
        let mut connection = topology::connect(address.sentinel(sentinel), ANSWER).await?;
        redis::cmd("SENTINEL").arg("CKQUORUM").arg(of).query_async(&mut connection).await
    });
    let answers: Vec<RedisResult<String>> = join_all(asks).await;
    let (mut there, mut said) = (0, None);
    for answer in answers {
        match answer {
            Ok(_) => there += 1,
            Err(error) => said = Some(error.to_string()),
        }
    }
    match said {
        None => Check::ok(name, format!("{there} of {there} answer, and are enough for a failover")),
        Some(said) => Check::warn(
            name,
            format!("only {there} of {} answer that they are enough for a failover: {said}", sentinels.len()),
        ),
    }
}

async fn examine_cluster(connections: &Connections) -> Vec<Check> {
    let name = "cluster";
    let mut checks = Vec::new();
    for (primary, _) in connections.primaries() {
        let Ok(mut redis) = primary.exclusive().await else { continue };
        let info: RedisResult<String> = redis::cmd("CLUSTER").arg("INFO").query_async(&mut redis).await;
        let info = info.unwrap_or_default();
        let says = |field: &str| info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let (state, assigned) = (says("cluster_state").unwrap_or(""), says("cluster_slots_assigned").unwrap_or(""));
        let failing = says("cluster_slots_fail").unwrap_or("");
        if state != "ok" || assigned != SLOTS.to_string() || failing != "0" {
            checks.push(Check::warn(
                name,
                format!("{} says state {state}, {assigned} slots assigned, {failing} failing", primary.name()),
            ));
        }
        if health::config(&mut redis, "cluster-require-full-coverage").await.as_deref() == Some("yes") {
            let advice = "one shard that is down stops all others; set cluster-require-full-coverage no";
            checks.push(Check::warn(name, format!("{}: {advice}", primary.name())));
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(name, "state ok, all slots assigned"));
    }
    checks
}

/// How many primaries have something to do.
fn shares(connections: &Connections) -> Check {
    let name = "shares";
    let shares: Vec<usize> = connections.primaries().iter().map(|(_, partitions)| partitions.len()).collect();
    let (partitions, primaries) = (shares.iter().sum::<usize>(), shares.len());
    let (most, least) = (shares.iter().max().unwrap_or(&0), shares.iter().min().unwrap_or(&0));
    let detail = format!("{partitions} partition(s) on {primaries} primaries, {least} to {most} each");
    match least {
        0 => Check::warn(name, format!("{detail}: some have nothing to do; move slots, or take more partitions")),
        _ => Check::ok(name, detail),
    }
}
