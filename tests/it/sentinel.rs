//! A store in a Redis that Sentinel watches: a primary, two replicas, three sentinels, all real.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use futures::future::join_all;
use redis::Value;
use serde_json::json;
use streamkeep::{model::Durability, store::DurabilityConfig};

use crate::{
    app::{TestApp, TestRedis, eventually, free_address},
    checker::{Violation, check},
    end::read_end,
    feed::{Feed, name},
    groups::TestGroup,
    load::Load,
    nodes::Node,
    program,
};

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;
/// What the sentinels call it.
const NAME: &str = "store";

/// A primary, its replicas and their sentinels. The first of the servers is the first primary.
struct SentinelSet {
    servers: Vec<Node>,
    sentinels: Vec<Node>,
}

impl SentinelSet {
    /// Starts one, with further settings of the servers and lines of the sentinels' files. The sentinels take a server for
    /// dead that is silent for so long.
    async fn start_with(down_after_ms: u64, settings: &[(&str, &str)], lines: &str) -> Self {
        let primary = Node::start(settings).await;
        let of = format!("{} {}", primary.address.ip(), primary.address.port());
        let replica: Vec<_> = settings.iter().copied().chain([("replicaof", of.as_str())]).collect();
        let mut servers = vec![primary];
        servers.extend(join_all((0..2).map(|_| Node::start(&replica))).await);
        eventually("the replicas have all", async || {
            let of_each = servers[1..].iter().map(|replica| replica.info("master_link_status"));
            join_all(of_each).await.iter().all(|status| status == "up")
        })
        .await;
        // With all replicas: the sentinels ask for them every ten seconds only.
        let sentinels = join_all((0..3).map(async |_| {
            let address = free_address();
            let mut text = format!("sentinel announce-ip {}\nsentinel monitor {NAME} {of} 2\n", address.ip());
            writeln!(text, "sentinel down-after-milliseconds {NAME} {down_after_ms}").unwrap();
            writeln!(text, "sentinel failover-timeout {NAME} 10000\n{lines}").unwrap();
            Node::start_sentinel(address, &text).await
        }))
        .await;
        Self { servers, sentinels }
    }

    async fn start() -> Self {
        let set = Self::start_with(1_000, &[], "").await;
        eventually("the sentinels know one another", async || {
            let asked = set.sentinels.iter().map(|sentinel| sentinel.try_ask::<String>("SENTINEL CKQUORUM store"));
            let quorum =
                join_all(asked).await.iter().all(|said| said.as_ref().is_ok_and(|said| said.starts_with("OK 3")));
            let replicas = set.sentinels.iter().map(|sentinel| sentinel.ask::<Vec<Value>>("SENTINEL REPLICAS store"));
            quorum && join_all(replicas).await.iter().all(|replicas| replicas.len() == 2)
        })
        .await;
        set
    }

    fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|sentinel| sentinel.address.to_string()).collect();
        format!("redis+sentinel://{}/{NAME}", hosts.join(","))
    }

    async fn app(&self, partitions: u16) -> TestApp {
        TestApp::start_on(TestRedis::of_set(&self.url()), partitions).await
    }

    /// The places of those that say that they are primary.
    async fn primaries(&self) -> Vec<usize> {
        let roles = join_all(self.servers.iter().map(|server| server.info("role"))).await;
        (0..roles.len()).filter(|place| roles[*place] == "master").collect()
    }

    /// The place of the only primary. On a busy machine the sentinels may have made another one once more.
    async fn primary(&self) -> usize {
        let mut primaries = Vec::new();
        eventually("one server is primary", async || {
            primaries = self.primaries().await;
            primaries.len() == 1
        })
        .await;
        primaries[0]
    }

    /// Waits until a server is primary that was none, and gives its place.
    async fn taken_over(&self, from: usize) -> usize {
        let mut new = None;
        eventually("another server is primary", async || {
            new = self.primaries().await.into_iter().find(|place| *place != from);
            new.is_some()
        })
        .await;
        new.unwrap()
    }
}

/// The line of a check of `streamkeep doctor`.
async fn doctor(set: &SentinelSet, check: &str) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    command.args(["doctor", "--redis-url", &set.url(), "--partitions", "4"]);
    let lines = String::from_utf8(command.output().await.unwrap().stdout).unwrap();
    let is_it = |line: &&str| line.split_whitespace().nth(1) == Some(check);
    lines.lines().find(is_it).unwrap_or_else(|| panic!("{lines}")).to_owned()
}

pub async fn failovers(app: &TestApp) -> u64 {
    let metrics = app.get("/metrics").await.expect(200).text;
    let of_each = metrics.lines().filter(|line| line.starts_with("streamkeep_failovers_total{"));
    of_each.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_and_goes_on_after_a_failover_by_hand() {
    let set = SentinelSet::start().await;
    let app = set.app(4).await;
    let mut feed = Feed::open(&app, "/events", None).await;
    let group = TestGroup::create(&app, "mailer", json!({ "ordering": "stream" })).await;
    for version in 1..=10 {
        let answer = app.append_with("order-1", &[("if-match", &format!("\"{}\"", version - 1))], ONE).await;
        answer.expect(201);
    }
    app.append_with("order-1", &[("if-match", "\"3\"")], ONE).await.expect_problem(409, "version-conflict");
    let taken = group.next("limit=4&consumer=a").await;
    assert_eq!(taken.len(), 1, "ordered by stream");
    let names: Vec<_> = feed.events(10).await.iter().map(name).collect();
    assert_eq!(names.last().map(String::as_str), Some("order-1@10"));
    eventually("the replicas have all", async || {
        let (one, other) =
            (set.servers[1].info("slave_repl_offset").await, set.servers[2].info("slave_repl_offset").await);
        let primary = set.servers[0].info("master_repl_offset").await;
        one == primary && other == primary
    })
    .await;

    let line = doctor(&set, "sentinels").await;
    assert!(line.ends_with("3 of 3 answer, and are enough for a failover"), "{line}");
    assert!(doctor(&set, "replicas").await.ends_with("2 connected"));

    set.sentinels[0].ask::<String>("SENTINEL FAILOVER store").await;
    let began = Instant::now();
    eventually("the service knows", async || failovers(&app).await > 0).await;
    println!("known after {:?}", began.elapsed());
    let answer = app.append_with("order-1", &[("if-match", "\"10\"")], ONE).await.expect(201).json();
    assert_eq!(answer["version"], 11);
    assert_eq!(app.get("/streams/order-1").await.expect(200).json()["version"], 11, "its own writes");
    group.ack(&taken).await.expect(200);
    assert_eq!(group.one().await.name(), "order-1@2");
    assert_eq!(name(&feed.event().await), "order-1@11");
    // The old primary follows in the end, though it was told last.
    eventually("it follows", async || set.servers[0].info("role").await == "slave").await;
    app.append("order-1", ONE).await.expect(201);
    assert_eq!(name(&feed.event().await), "order-1@12");
    app.get("/readyz").await.expect(200);
}

/// Violations that no lost acknowledgement explains: the store would not be an earlier state of itself.
pub fn is_structural(violation: &Violation) -> bool {
    !matches!(
        violation,
        Violation::Lost { .. }
            | Violation::Misplaced { .. }
            | Violation::TwoWinners { .. }
            | Violation::BackInTime { .. }
            | Violation::ConditionBroken { .. }
            | Violation::AnswersDiffer { .. }
            | Violation::RefusedButThere { .. }
            | Violation::WrongAnswer { .. }
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_followed_by_another_under_load() {
    killed_under_load(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_replicated_is_lost_when_a_primary_is_killed() {
    assert_eq!(killed_under_load(Some(Durability::Replicated)).await, 0);
}

/// Kills the primary while writers append, whose appends reach a level at least. How many acknowledged ones are gone.
async fn killed_under_load(floor: Option<Durability>) -> usize {
    let mut set = SentinelSet::start().await;
    let durability = DurabilityConfig { floor, ..DurabilityConfig::default() };
    let app =
        TestApp::start_with(TestRedis::of_set(&set.url()), 1, |config| config.store.durability = durability).await;
    let load = Load::new(16, vec![app.url.clone()]);
    let writers = load.start();
    let acked = async |count: usize| {
        let until = load.recorder.acked() + count;
        eventually("appends are acknowledged", async || load.recorder.acked() >= until).await;
    };
    acked(1_000).await;
    let began = Instant::now();
    set.servers[0].kill().await;
    let new = set.taken_over(0).await;
    acked(1).await;
    println!("acknowledged again after {:?}", began.elapsed());
    acked(1_000).await;
    // The old one comes back, believes for a moment to be what it was, and becomes a replica.
    set.servers[0].run().await;
    eventually("the old primary follows", async || set.servers[0].info("role").await == "slave").await;
    acked(500).await;
    load.stop.cancel();
    writers.join_all().await;
    let calls = load.recorder.take();
    let (now, failovers) = (set.primary().await, failovers(&app).await);
    println!("{failovers} failovers; server {new} took over, {now} is primary now");
    let end = read_end(&app.url, &mut set.servers[now].connection().await, 1).await;
    let violations = check(&calls, &end);
    let lost = violations.iter().filter(|violation| matches!(violation, Violation::Lost { .. })).count();
    println!("{} calls, {} acked, {lost} lost", calls.len(), load.recorder.acked());
    let structural: Vec<_> = violations.iter().filter(|violation| is_structural(violation)).collect();
    assert_eq!(structural, [] as [&Violation; 0]);
    assert!(failovers >= 1);
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_hangs_is_left_and_may_come_back() {
    let set = SentinelSet::start().await;
    // Calls have twenty seconds: whoever waited for the one that hangs would take that long.
    let app = set.app(1).await;
    let mut feed = Feed::open(&app, "/events", None).await;
    app.append("order-1", ONE).await.expect(201);
    assert_eq!(name(&feed.event().await), "order-1@1");
    eventually("the replicas have it", async || {
        join_all(set.servers[1..].iter().map(|replica| replica.ask::<u64>("XLEN log"))).await == [1, 1]
    })
    .await;
    set.servers[0].signal("STOP");
    let began = Instant::now();
    let (read, append) = tokio::join!(
        app.get("/streams/order-1"),
        app.append_with("order-1", &[("if-match", "\"1\""), ("idempotency-key", "k")], ONE)
    );
    println!("left after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    read.expect(200);
    assert!(matches!(append.status.as_u16(), 200 | 201), "{append:?}");
    assert_eq!(append.json()["version"], 2);
    assert_eq!(name(&feed.event().await), "order-1@2");
    set.servers[0].signal("CONT");
    eventually("the old primary follows", async || set.servers[0].info("role").await == "slave").await;
    assert_eq!(app.append("order-1", ONE).await.expect(201).json()["version"], 3);
    assert_eq!(name(&feed.event().await), "order-1@3");
    assert_eq!(failovers(&app).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_ahead_of_a_lost_failover_hears_it() {
    let mut set = SentinelSet::start().await;
    let at_memory = DurabilityConfig { floor: Some(Durability::Memory), ..DurabilityConfig::default() };
    let redis = TestRedis::of_set(&set.url());
    let app = TestApp::start_with(redis, 1, |config| config.store.durability = at_memory).await;
    app.append("order-1", ONE).await.expect(201);
    eventually("the replicas have it", async || {
        join_all(set.servers[1..].iter().map(|replica| replica.ask::<u64>("XLEN log"))).await == [1, 1]
    })
    .await;
    let before = app.get("/events").await.expect(200).json()["next"].as_str().unwrap().to_owned();
    // What comes now no replica has.
    for replica in &mut set.servers[1..] {
        replica.kill().await;
    }
    app.append("order-1", ONE).await.expect(201);
    let ahead = app.get("/events").await.expect(200).json()["next"].as_str().unwrap().to_owned();
    set.servers[0].kill().await;
    for replica in &mut set.servers[1..] {
        replica.run().await;
    }
    set.taken_over(0).await;
    app.get(&format!("/events?after={ahead}")).await.expect_problem(409, "history-diverged");
    app.get(&format!("/events?after={before}")).await.expect(200);
    assert_eq!(app.get("/streams/order-1").await.expect(200).json()["version"], 1, "an earlier state of itself");
    app.append_with("order-1", &[("if-match", "\"1\"")], ONE).await.expect(201);
    // Another event stands there now: the place alone does not tell, its fingerprint does.
    app.get(&format!("/events?after={ahead}")).await.expect_problem(409, "history-diverged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_come_from_files_and_are_shown_nowhere() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (password, wrong) = (file("password", "s3cret-redis\n"), file("wrong", "s3cret-wrong\n"));
    let set = SentinelSet::start().await;
    for server in &set.servers {
        server.ask::<String>("ACL SETUSER app on >s3cret-redis ~* +@all").await;
    }
    for sentinel in &set.sentinels {
        sentinel.ask::<String>("ACL SETUSER app on >s3cret-sentinel ~* &* +@all").await;
    }
    let url = set.url().replace("://", "://app@");
    let sentinel = file("sentinel", "s3cret-sentinel");
    let listen = free_address();
    let secrets = ["--redis-url", &url, "--redis-password-file", &password, "--sentinel-user", "app"];
    let secrets = [&secrets[..], &["--sentinel-password-file", &sentinel]].concat();
    let command = program::serve_at(&listen.to_string(), &[&secrets[..], &["--log", "debug"]].concat());
    let service = program::Service::start(command, listen, folder.path()).await;
    let answer = service.client.post(format!("{}/streams/order-1/events", service.url)).json(&json!({
        "events": [{ "type": "t", "data": 1 }]
    }));
    assert_eq!(answer.send().await.unwrap().status(), 201);
    let clients: String = set.servers[0].ask("CLIENT LIST").await;
    assert!(clients.contains("user=app"), "{clients}");
    assert!(!service.log().contains("s3cret"), "{}", service.log());
    service.signal("TERM");

    let refused = [
        &["--redis-url", url.as_str(), "--redis-password-file", &wrong, "--sentinel-user", "app"][..],
        &["--sentinel-password-file", &sentinel],
    ]
    .concat();
    let output = program::serve_at(&free_address().to_string(), &refused).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("authentication failed") && !said.contains("s3cret"), "{said}");
}
