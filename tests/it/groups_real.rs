//! A real log, drained by many consumers of which some die, on two instances; and Redis killed in the middle.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{TestApp, TestRedis, eventually},
    groups::{Taken, TestGroup},
};

/// What all consumers saw.
#[derive(Default)]
struct Seen {
    /// How often each event came.
    came: HashMap<String, u64>,
    /// Acked, and told so.
    acked: HashSet<String>,
    /// The last version of each stream for which an ack was sent.
    last: HashMap<String, u64>,
    violations: Vec<String>,
    /// Order of each stream is promised.
    ordered: bool,
}

impl Seen {
    fn comes(&mut self, taken: &Taken) {
        *self.came.entry(taken.name()).or_default() += 1;
        if self.acked.contains(&taken.name()) {
            self.violations.push(format!("{} came again, acked as it was", taken.name()));
        }
        let last = self.last.get(&taken.stream).copied().unwrap_or(0);
        if self.ordered && taken.version > last + 1 {
            self.violations.push(format!("{} after {last}", taken.name()));
        }
    }

    /// Noted before: as soon as the ack has arrived, what is behind may go to another consumer.
    fn acking(&mut self, taken: &Taken) {
        let last = self.last.entry(taken.stream.clone()).or_default();
        *last = taken.version.max(*last);
    }

    fn acks(&mut self, taken: &Taken, answer: &Value) {
        let once = answer["acked"] == 1 || answer["already"] == 1;
        if once && !self.acked.insert(taken.name()) && answer["acked"] == 1 {
            self.violations.push(format!("{} was acked twice", taken.name()));
        }
    }
}

/// Takes and acks until told to stop; some events it takes and forgets.
async fn consume(
    url: String,
    name: String,
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
    mut rng: Rng,
    forgets: bool,
) {
    let client = Client::builder().no_proxy().build().unwrap();
    let limit = rng.usize(1..10);
    while !stop.is_cancelled() {
        let next = format!("{url}/groups/g/next?consumer={name}&limit={limit}&wait=1");
        let Some(answer) = json_of(client.get(next)).await else { continue };
        for delivery in answer["deliveries"].as_array().into_iter().flatten() {
            let taken = Taken::of(delivery);
            seen.lock().unwrap().comes(&taken);
            if forgets && rng.u8(..100) == 0 {
                continue;
            }
            let ack = client.post(format!("{url}/groups/g/ack")).json(&json!({"leases": [taken.lease]}));
            seen.lock().unwrap().acking(&taken);
            let answer = loop {
                match json_of(ack.try_clone().unwrap()).await {
                    Some(answer) => break answer,
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            seen.lock().unwrap().acks(&taken, &answer);
        }
    }
}

/// The answer's JSON; nothing while the service cannot do its work.
async fn json_of(request: reqwest::RequestBuilder) -> Option<Value> {
    let response = request.send().await.ok()?;
    if response.status().is_server_error() { None } else { response.json().await.ok() }
}

/// Appends the excerpt of a real log, and answers with the name of each event.
async fn import(app: &TestApp) -> HashSet<String> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/receipt.ndjson");
    let mut names = HashSet::new();
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let stream = event["stream"].as_str().unwrap();
        let body = json!({"events": [{"type": event["type"], "data": event["data"], "metadata": event["metadata"]}]});
        let version = app.append(stream, &body.to_string()).await.expect(201).json()["version"].clone();
        names.insert(format!("{stream}@{version}"));
    }
    names
}

/// Drains the real log with eight consumers on two instances; meanwhile `disturb` does its worst.
async fn drain(partitions: u16, ordering: &str, forgets: bool, disturb: impl AsyncFnOnce(&TestRedis)) {
    let redis = TestRedis::start().await;
    let app = TestApp::start_on(redis.clone(), partitions).await;
    let other = TestApp::start_on(redis.clone(), partitions).await;
    let body = json!({"ordering": ordering, "lease_ms": 1000, "max_deliveries": 1_000});
    let group = TestGroup::create(&app, "g", body).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let all = Arc::new(Mutex::new(Seen { ordered: ordering == "stream", ..Seen::default() }));
    let (stop, mut consumers) = (CancellationToken::new(), JoinSet::new());
    for number in 0..8 {
        let url = if number % 2 == 0 { app.url.clone() } else { other.url.clone() };
        let rng = Rng::with_seed(seed + number);
        consumers.spawn(consume(url, format!("c{number}"), all.clone(), stop.clone(), rng, forgets));
    }
    let names = import(&app).await;
    disturb(&redis).await;
    eventually("all is acked", async || all.lock().unwrap().acked.len() == names.len()).await;
    stop.cancel();
    consumers.join_all().await;
    let all = Arc::into_inner(all).unwrap().into_inner().unwrap();
    assert_eq!(all.violations, Vec::<String>::new());
    assert_eq!(all.acked, names);
    let again = all.came.values().filter(|came| **came > 1).count();
    println!("{} events, {again} came more than once", names.len());
    let counts = group.numbers(&["lag", "in_flight", "waiting", "held", "stopped_streams", "parked"]).await;
    assert_eq!(counts, [0; 6]);
}

async fn nothing(_: &TestRedis) {}

async fn kill(redis: &TestRedis) {
    for _ in 0..3 {
        let pid = redis.server.pid();
        redis.signal("KILL");
        eventually("Redis runs again", async || redis.server.pid().is_some_and(|new| Some(new) != pid)).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..100))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_log_is_drained_in_the_order_of_its_streams() {
    for partitions in [1, 4] {
        drain(partitions, "stream", true, nothing).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_log_is_drained_by_whoever_is_free() {
    for partitions in [1, 4] {
        drain(partitions, "none", true, nothing).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_acked_comes_again_when_redis_is_killed() {
    for ordering in ["stream", "none"] {
        drain(1, ordering, true, kill).await;
    }
}
