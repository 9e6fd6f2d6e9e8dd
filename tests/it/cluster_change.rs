//! A cluster that changes under load: a primary dies, a replica takes over, a slot moves to another shard.

use std::time::{Duration, Instant};

use redis::Cmd;
use streamkeep::{model::Durability, store::DurabilityConfig};
use tokio::time::timeout;

use crate::{
    app::{TestApp, calls_in, eventually},
    checker::{Violation, check},
    cluster_set::{Cluster, stream_in},
    end::read_end_of,
    load::Load,
    nodes::Node,
    sentinel::{failovers, is_structural},
};

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;
const PARTITIONS: u16 = 8;

async fn acked(load: &Load, count: usize) {
    let until = load.recorder.acked() + count;
    eventually("appends are acknowledged", async || load.recorder.acked() >= until).await;
}

/// What became of the load, without what is explained by acknowledged appends that were lost; and how many these are.
async fn outcome(cluster: &Cluster, load: &Load, app: &TestApp) -> (Vec<Violation>, usize) {
    let calls = load.recorder.take();
    let end = read_end_of(&app.url, cluster.homes(PARTITIONS).await).await;
    let violations = check(&calls, &end);
    let lost = violations.iter().filter(|violation| matches!(violation, Violation::Lost { .. })).count();
    println!("{} calls, {} acked, {lost} lost", calls.len(), load.recorder.acked());
    (violations, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_followed_by_its_replica() {
    killed_under_load(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_replicated_is_lost_when_a_primary_is_killed() {
    assert_eq!(killed_under_load(Some(Durability::Replicated)).await, 0);
}

/// Kills a primary while writers append, whose appends reach a level at least. How many acknowledged ones are gone.
async fn killed_under_load(floor: Option<Durability>) -> usize {
    let mut cluster = Cluster::start(3, true).await;
    let durability = DurabilityConfig { floor, ..DurabilityConfig::default() };
    let app = TestApp::start_with(cluster.redis(), PARTITIONS, |config| config.store.durability = durability).await;
    let load = Load::new(16, vec![app.url.clone()]);
    let writers = load.start();
    acked(&load, 500).await;
    let (dies, lives) = (cluster.home(1).await, cluster.home(0).await);
    assert_ne!(dies, lives);
    let (stream, other) = (stream_in(&app, 1), stream_in(&app, 0));
    let began = Instant::now();
    cluster.servers[dies].kill().await;
    app.append(&other, ONE).await.expect(201);
    println!("another shard: {:?}", began.elapsed());
    let follows = cluster.replica_of(dies);
    if floor.is_none() {
        eventually("its partitions are back", async || app.append(&stream, ONE).await.status == 201).await;
        println!("acknowledged again after {:?}", began.elapsed());
        assert_eq!(cluster.home(1).await, follows);
        acked(&load, 500).await;
    }
    eventually("its replica takes over", async || cluster.home(1).await == follows).await;
    cluster.servers[dies].run().await;
    // With a floor only now: the one that took over had no replica.
    eventually("its partitions are back", async || app.append(&stream, ONE).await.status == 201).await;
    eventually("the old primary follows", async || cluster.servers[dies].info("role").await == "slave").await;
    acked(&load, 500).await;
    load.stop.cancel();
    writers.join_all().await;
    let counted = failovers(&app).await;
    println!("{counted} failovers; killed: {dies}, its replica: {follows}, primary now: {}", cluster.home(1).await);
    assert_eq!(counted, 1, "the old primary that comes back is none");
    let (violations, lost) = outcome(&cluster, &load, &app).await;
    // The appends of this test itself are strangers to the load.
    let violations: Vec<_> = violations.into_iter().filter(is_structural).filter(|of| !is_own(of)).collect();
    assert_eq!(violations, []);
    lost
}

/// Of a stream that the load does not write to.
fn is_own(violation: &Violation) -> bool {
    matches!(violation, Violation::Stranger { stream, .. } if stream.starts_with("order-"))
}

/// Has a replica take over. On a busy machine it may not catch up within the 5 s that Redis gives it, and has to be told
/// again (`CLUSTER FAILOVER`).
async fn take_over(replica: &Node) {
    for _ in 0..3 {
        replica.ask::<()>("CLUSTER FAILOVER").await;
        let taken_over = eventually("it has taken over", async || replica.info("role").await == "master");
        if timeout(Duration::from_secs(6), taken_over).await.is_ok() {
            return;
        }
    }
    panic!("it does not take over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_by_hand_loses_nothing() {
    let cluster = Cluster::start(3, true).await;
    let app = cluster.app(PARTITIONS).await;
    let load = Load::new(16, vec![app.url.clone()]);
    let writers = load.start();
    acked(&load, 500).await;
    let from = cluster.home(1).await;
    for (one, other) in [(from, cluster.replica_of(from)), (cluster.replica_of(from), from)] {
        take_over(&cluster.servers[other]).await;
        eventually("the old one follows", async || cluster.servers[one].info("master_link_status").await == "up").await;
        acked(&load, 500).await;
    }
    load.stop.cancel();
    writers.join_all().await;
    let (violations, _) = outcome(&cluster, &load, &app).await;
    assert_eq!(violations, []);
}

/// Moves a partition's slot from a server to another as operators do, key by key.
async fn move_slot(cluster: &Cluster, partition: u16, from: usize, to: usize) {
    let (from, to) = (&cluster.servers[from], &cluster.servers[to]);
    let slot: u16 = from.ask(&format!("CLUSTER KEYSLOT {{{partition}}}")).await;
    let (from_id, to_id): (String, String) = (from.ask("CLUSTER MYID").await, to.ask("CLUSTER MYID").await);
    to.ask::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}")).await;
    from.ask::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}")).await;
    loop {
        let keys: Vec<String> = from.ask(&format!("CLUSTER GETKEYSINSLOT {slot} 3")).await;
        if keys.is_empty() {
            break;
        }
        let mut migrate = Cmd::new();
        migrate.arg("MIGRATE").arg(to.address.ip().to_string()).arg(to.address.port()).arg("").arg(0).arg(5_000);
        migrate.arg("KEYS").arg(keys);
        migrate.exec_async(&mut from.connection().await).await.unwrap();
    }
    for server in [to, from] {
        server.ask::<()>(&format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_there_and_back_loses_nothing() {
    let cluster = Cluster::start(3, false).await;
    let app = cluster.app(PARTITIONS).await;
    let load = Load::new(16, vec![app.url.clone()]);
    let writers = load.start();
    acked(&load, 500).await;
    let (from, to) = (cluster.home(1).await, cluster.home(0).await);
    assert_ne!(from, to);
    for (from, to) in [(from, to), (to, from)] {
        // The one that it comes to does not know the functions.
        cluster.servers[to].ask::<()>("FUNCTION FLUSH").await;
        let began = Instant::now();
        move_slot(&cluster, 1, from, to).await;
        println!("moved in {:?}", began.elapsed());
        eventually("all know", async || cluster.home(1).await == to).await;
        acked(&load, 500).await;
    }
    load.stop.cancel();
    writers.join_all().await;
    assert_eq!(failovers(&app).await, 0, "a slot that moves is no failover");
    let (violations, _) = outcome(&cluster, &load, &app).await;
    assert_eq!(violations, []);
}

/// An old primary that comes back tells of the cluster as it was, and takes writes, until it hears of the others. Here it
/// hears of none, and is the only one that answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_comes_back_is_not_believed() {
    let mut cluster = Cluster::start(3, true).await;
    let durability = DurabilityConfig { floor: Some(Durability::Memory), ..DurabilityConfig::default() };
    let app = TestApp::start_with(cluster.redis(), PARTITIONS, |config| {
        config.store.durability = durability;
        config.store.timeout = Duration::from_millis(500);
    })
    .await;
    // The address of the service names it, so it will be asked.
    let (old, new) = (0, cluster.replica_of(0));
    let partition = cluster.partitions_of(old, PARTITIONS).await[0];
    let stream = stream_in(&app, partition);
    app.append(&stream, ONE).await.expect(201);
    let length = format!("XLEN {{{partition}}}:log");
    let keys: u64 = cluster.servers[old].ask("DBSIZE").await;
    eventually("it is replicated", async || cluster.servers[new].ask::<u64>("DBSIZE").await == keys).await;
    cluster.servers[old].kill().await;
    cluster.servers[new].ask::<()>("CLUSTER FAILOVER TAKEOVER").await;
    eventually("the new one is found", async || app.append(&stream, ONE).await.status == 201).await;

    for (_, other) in cluster.servers.iter().enumerate().filter(|(place, _)| *place != old) {
        other.signal("STOP");
    }
    // It is not to notice that it is alone.
    cluster.servers[old].set("cluster-node-timeout", "60000");
    cluster.servers[old].run().await;
    let old = &cluster.servers[old];
    let says_ok = async || old.ask::<String>("CLUSTER INFO").await.contains("cluster_state:ok");
    eventually("it takes writes", says_ok).await;
    assert_eq!(old.ask::<u64>(&length).await, 1, "it has missed what came later");
    let asked = async || {
        let calls = calls_in(&old.ask::<String>("INFO commandstats").await);
        calls.get("cluster|slots").copied().unwrap_or_default()
    };
    let enough = asked().await + 3;
    eventually("the service asks it", async || {
        let status = app.append(&stream, ONE).await.status;
        assert!(status == 503 || status == 504, "{status}");
        asked().await >= enough
    })
    .await;
    assert_eq!(old.ask::<u64>(&length).await, 1);

    for server in &cluster.servers {
        server.signal("CONT");
    }
    eventually("the new one is back", async || app.append(&stream, ONE).await.status == 201).await;
    eventually("the old one follows", async || old.info("role").await == "slave").await;
}
