//! A replica takes the primary's place, under load: at `replicated` nothing acknowledged is lost, at `memory` what is
//! lost is found by the same checker. And a group delivers all that there is in the end.

use std::{collections::HashSet, sync::Arc, time::Duration};

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use streamkeep::{
    model::Durability::{self, Memory, Replicated},
    redis_server::AppendFsync::Everysec,
    store::DurabilityConfig,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{TestApp, TestRedis, eventually},
    checker::{Violation, check},
    end::read_end,
    load::Load,
    record::{Call, End},
    replicas::{Address, Nodes, follow, info, log_length, promote},
};

/// Fewest appends that are acknowledged before and after.
const ACKED: usize = 300;
/// Fewest appends that a primary acknowledges at `memory` that has lost its replicas.
const ALONE: usize = 5;
/// Busy machines take long.
const PATIENCE: Duration = Duration::from_mins(1);

/// How a primary is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Cut off from its replicas for a while, then killed.
    Killed,
    /// Stopped, and another one promoted; then it goes on, and still has the connections of the service.
    Zombie,
}

struct Scene {
    nodes: Nodes,
    address: Address,
    app: TestApp,
    load: Load,
    writers: JoinSet<()>,
}

impl Scene {
    async fn start(level: Durability) -> Self {
        let nodes = Nodes::start(2, Everysec).await;
        let address = Address::of(&nodes.primary).await;
        let to = address.connection_info();
        let app = TestApp::start_with(nodes.primary.clone(), 1, |config| {
            config.store.address = to.into();
            config.store.durability = DurabilityConfig { floor: Some(level), ..DurabilityConfig::default() };
        })
        .await;
        app.put("/groups/all", r#"{"ordering":"stream","lease_ms":1000}"#).await.expect(201);
        // A replica that takes over without it knows of no group.
        for replica in &nodes.replicas {
            let mut redis = replica.connection().await;
            eventually("the replica has the group", async || {
                let exist = redis::cmd("EXISTS").arg("groups").arg("group:all").query_async::<usize>(&mut redis).await;
                exist.unwrap() == 2
            })
            .await;
        }
        let load = Load::new(16, vec![app.url.clone()]);
        let writers = load.start();
        Self { nodes, address, app, load, writers }
    }

    async fn acked(&self, more: usize) {
        let until = self.load.recorder.acked() + more;
        let acked = async {
            while self.load.recorder.acked() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, acked).await.expect("appends are acknowledged");
    }

    /// Waits until the old primary has carried out what no replica will ever have: at `memory` it acknowledges that. Where
    /// replicas must confirm, it may also be that appends are refused by now, or go to the new one.
    async fn goes_on_alone(&self, old: &TestRedis, replicated: usize) {
        let (acked, waits) = (self.load.recorder.acked(), self.app.store.standing().level().is_replicated());
        eventually("it goes on alone", async || {
            let more = log_length(old).await.saturating_sub(replicated);
            let over = self.load.recorder.acked() > acked || self.app.store.standing().shortfall().is_some();
            if waits { more > 0 || over } else { more >= ALONE && self.load.recorder.acked() >= acked + ALONE }
        })
        .await;
    }

    /// Loses the primary. Gives the new one.
    async fn lose(&mut self, how: Loss) -> Arc<TestRedis> {
        let old = self.nodes.primary.clone();
        match how {
            Loss::Killed => {
                self.nodes.link.lead_to(None).await;
                self.nodes.link.cut().await;
                let mut replicated = 0;
                for replica in &self.nodes.replicas {
                    replicated = replicated.max(log_length(replica).await);
                }
                self.goes_on_alone(&old, replicated).await;
                old.signal("KILL");
            }
            Loss::Zombie => old.signal("STOP"),
        }
        let new = self.promote().await;
        let replicated = log_length(&new).await;
        self.address.lead_to(Some(&new)).await;
        if let Loss::Zombie = how {
            // What was on its way to it is carried out now, and answered.
            old.signal("CONT");
            self.goes_on_alone(&old, replicated).await;
        }
        self.address.cut().await;
        new
    }

    /// As a Sentinel does it: the replica that is furthest takes over, the others follow it.
    async fn promote(&mut self) -> Arc<TestRedis> {
        let mut furthest = Vec::new();
        for replica in std::mem::take(&mut self.nodes.replicas) {
            let offset: u64 = info(&replica).await.get("slave_repl_offset").unwrap();
            furthest.push((offset, replica));
        }
        furthest.sort_by_key(|(offset, _)| *offset);
        let (_, new) = furthest.pop().unwrap();
        promote(&new).await;
        self.nodes.link = Address::of(&new).await;
        self.nodes.primary = new.clone();
        for (_, replica) in furthest {
            follow(&replica, &self.nodes.link).await;
            self.nodes.replicas.push(replica);
        }
        new
    }
}

/// Consumes a group until told to end and until there is nothing left: the ids of what it was handed.
async fn consume(client: reqwest::Client, url: String, end: CancellationToken) -> HashSet<String> {
    let mut seen = HashSet::new();
    loop {
        let ending = end.is_cancelled();
        let asked = client.get(format!("{url}/groups/all/next?limit=100&wait=2")).send().await;
        let Ok(answer) = asked else { continue };
        if answer.status() != 200 {
            println!("next: {} {}", answer.status(), answer.text().await.unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let Ok(answer) = answer.json::<Value>().await else { continue };
        let deliveries = answer["deliveries"].as_array().unwrap();
        if deliveries.is_empty() && ending {
            return seen;
        }
        let leases: Vec<&Value> = deliveries.iter().map(|delivery| &delivery["lease"]).collect();
        seen.extend(deliveries.iter().map(|delivery| delivery["event"]["id"].as_str().unwrap().to_owned()));
        if !leases.is_empty() {
            let ack = client.post(format!("{url}/groups/all/ack")).json(&json!({ "leases": leases }));
            if let Ok(answer) = ack.send().await
                && answer.status() != 200
            {
                println!("ack: {} {}", answer.status(), answer.text().await.unwrap_or_default());
            }
        }
    }
}

/// What came of it: the calls, what is stored, and what is wrong with it.
async fn fail_over(level: Durability, how: Loss) -> (Vec<Call>, End, Vec<Violation>) {
    let mut scene = Scene::start(level).await;
    let end = CancellationToken::new();
    let consumer = tokio::spawn(consume(scene.app.client.clone(), scene.app.url.clone(), end.clone()));
    scene.acked(ACKED).await;
    let new = scene.lose(how).await;
    scene.acked(ACKED).await;
    scene.load.stop.cancel();
    scene.writers.join_all().await;
    end.cancel();
    let handed = tokio::time::timeout(PATIENCE, consumer).await.unwrap().unwrap();
    let calls = scene.load.recorder.take();
    let mut redis: MultiplexedConnection = new.connection().await;
    let end = read_end(&scene.app.url, &mut redis, 1).await;
    let stored = end.partitions[0].streams.values().flatten();
    let missed: Vec<_> = stored.filter(|event| !handed.contains(&event.id)).collect();
    assert!(missed.is_empty(), "the group was not handed {missed:?}");
    let mut violations = check(&calls, &end);
    // A conflict may name a version that was not confirmed, and is undone; what was acknowledged is judged by the rest.
    violations.retain(|violation| !matches!(violation, Violation::BackInTime { .. }));
    let lost = violations.iter().filter(|violation| matches!(violation, Violation::Lost { .. })).count();
    let (calls_made, acked, wrong) = (calls.len(), scene.load.recorder.acked(), violations.len());
    println!("{level}, {how:?}: {calls_made} calls, {acked} acked, {lost} events lost, {wrong} violations");
    (calls, end, violations)
}

async fn nothing_is_lost(how: Loss) {
    let (.., violations) = fail_over(Replicated, how).await;
    assert_eq!(violations, []);
}

async fn losses_are_found(how: Loss) {
    let (.., violations) = fail_over(Memory, how).await;
    let lost = violations.iter().filter(|violation| matches!(violation, Violation::Lost { .. })).count();
    assert!(lost >= ALONE, "{lost}: {violations:?}");
    // Versions are 1 to n, each event is there whole, once, and in the log, all the same.
    let sound = |violation: &&Violation| {
        use Violation::{AnswersDiffer, ConditionBroken, Lost, Misplaced, TwoWinners, WrongAnswer};
        matches!(
            violation,
            Lost { .. }
                | TwoWinners { .. }
                | Misplaced { .. }
                | AnswersDiffer { .. }
                | WrongAnswer { .. }
                | ConditionBroken { .. }
        )
    };
    let unsound: Vec<_> = violations.iter().filter(|violation| !sound(violation)).collect();
    assert!(unsound.is_empty(), "{unsound:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_replicated_is_lost_when_the_primary_is_killed() {
    nothing_is_lost(Loss::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_replicated_is_lost_to_a_zombie() {
    nothing_is_lost(Loss::Zombie).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_at_memory_is_found_when_the_primary_is_killed() {
    losses_are_found(Loss::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_at_memory_to_a_zombie_is_found() {
    losses_are_found(Loss::Zombie).await;
}

/// Whoever holds a cursor of what is lost is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_of_what_was_lost_is_refused() {
    const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;
    let mut scene = Scene::start(Memory).await;
    scene.load.stop.cancel();
    while scene.writers.join_next().await.is_some() {}
    let append = async |count: usize| {
        let mut cursor = String::new();
        for _ in 0..count {
            cursor = scene.app.append("s-1", ONE).await.expect(201).json()["cursor"].as_str().unwrap().to_owned();
        }
        cursor
    };
    let kept = append(1).await;
    let log = log_length(&scene.nodes.primary).await;
    eventually("it is replicated", async || log_length(&scene.nodes.replicas[0]).await == log).await;
    eventually("it is replicated", async || log_length(&scene.nodes.replicas[1]).await == log).await;
    scene.nodes.link.lead_to(None).await;
    scene.nodes.link.cut().await;
    let lost = append(2).await;
    let new = scene.promote().await;
    scene.address.lead_to(Some(&new)).await;
    scene.address.cut().await;
    eventually("the new primary answers", async || scene.app.append("s-1", ONE).await.status == 201).await;
    // The other one stands at this position now; and what is ahead of the store is refused too.
    for _ in 0..2 {
        scene.app.get(&format!("/events?after={lost}")).await.expect_problem(409, "history-diverged");
        scene.app.append("s-1", ONE).await.expect(201);
    }
    scene.app.get(&format!("/events?after={kept}")).await.expect(200);
    eventually("it is told", async || {
        let metrics = scene.app.get("/metrics").await.text;
        metrics.lines().any(|line| line.starts_with("streamkeep_failovers_total{primary=") && line.ends_with("} 1"))
    })
    .await;
}
