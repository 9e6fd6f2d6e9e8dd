//! `streamkeep verify`: a sound store passes, also at work, and each kind of damage is found and named.

use std::{process::Output, time::Duration};

use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::{Value, json};
use streamkeep::{
    model::Partitions,
    store::{DurabilityConfig, Library, Report, StoreConfig, Verifier},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    app::{TestApp, TestRedis},
    groups::{TestGroup, append},
    load::Load,
};

pub async fn verify(redis: &TestRedis, partitions: u16) -> Report {
    let config = StoreConfig {
        address: redis.server.address(),
        namespace: String::new(),
        partitions: Partitions::new(partitions).unwrap(),
        writers: 1,
        queued_max: 1,
        timeout: Duration::from_secs(20),
        migrate: false,
        durability: DurabilityConfig::default(),
        library: Library::default(),
    };
    Verifier::open(config, Box::new(|_| ())).await.unwrap().verify().await.unwrap()
}

async fn command(redis: &TestRedis, partitions: u16) -> Output {
    let url = redis.url();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_streamkeep"));
    command.args(["verify", "--redis-url", &url, "--partitions", &partitions.to_string()]);
    command.output().await.unwrap()
}

/// Takes from a group again and again, and acks, gives back, parks, skips or forgets.
async fn consume(client: reqwest::Client, group: String, stop: CancellationToken, mut rng: fastrand::Rng) {
    let post = async |what: &str, body: Value| {
        let request = client.post(format!("{group}/{what}")).json(&body);
        request.send().await.unwrap();
    };
    while !stop.is_cancelled() {
        let query = format!("{group}/next?limit={}&wait=1", rng.u8(1..20));
        let answer: Value = client.get(query).send().await.unwrap().json().await.unwrap();
        for delivery in answer["deliveries"].as_array().unwrap() {
            let leases = json!([delivery["lease"]]);
            match rng.u8(..20) {
                0 => {}
                1 | 2 => post("nack", json!({"leases": leases, "action": "retry", "delay_ms": rng.u8(..100)})).await,
                3 => post("nack", json!({"leases": leases, "action": "park"})).await,
                4 => post("nack", json!({"leases": leases, "action": "skip"})).await,
                _ => post("ack", json!({ "leases": leases })).await,
            }
        }
        match rng.u8(..50) {
            0 => post("parked/replay", json!({"count": 3})).await,
            1 => post("seek", json!({"to": "beginning"})).await,
            _ => {}
        }
    }
}

const GROUPS: [(&str, &str); 4] = [
    ("plain", r#"{"lease_ms":1000,"max_deliveries":3,"backoff_ms":[0,20]}"#),
    ("ordered", r#"{"ordering":"stream","lease_ms":1000,"max_deliveries":3}"#),
    ("stopping", r#"{"ordering":"stream","lease_ms":1000,"max_deliveries":1,"on_exhausted":"park_stream"}"#),
    ("one", r#"{"stream":"load-3","ordering":"stream","lease_ms":1000,"types":["type-1","type-2"]}"#),
];

test_app! {
    async fn a_sound_store_passes_also_at_work(app) {
        let partitions = app.store.partitions().count();
        for (name, settings) in GROUPS {
            // The least lease that the service takes is longer; the store takes any.
            let settings = settings.replace("\"lease_ms\":200", "\"lease_ms\":1000");
            app.put(&format!("/groups/{name}"), &settings).await.expect(201);
        }
        let mut load = Load::new(6, vec![app.url.clone()]);
        load.operations = 1_200;
        let (mut writers, stop) = (load.start(), CancellationToken::new());
        let mut consumers = JoinSet::new();
        for (index, (name, _)) in GROUPS.into_iter().chain(GROUPS).enumerate() {
            let rng = fastrand::Rng::with_seed(load.seed + index as u64);
            consumers.spawn(consume(app.client.clone(), format!("{}/groups/{name}", app.url), stop.clone(), rng));
        }
        let mut looks = 0;
        while !writers.is_empty() || looks < 3 {
            let report = verify(&app.redis, partitions).await;
            assert_eq!((&report.findings[..], report.wrong), (&[][..], 0), "at work");
            looks += 1;
            while let Some(ended) = writers.try_join_next() {
                ended.unwrap();
            }
        }
        stop.cancel();
        consumers.join_all().await;
        let report = verify(&app.redis, partitions).await;
        assert_eq!((&report.findings[..], report.wrong), (&[][..], 0), "at rest");
        assert!(report.events > 1_000 && report.pointers == report.events, "{report:?}");
        assert_eq!((report.groups, report.streams, report.removed), (4, 20, 0), "{report:?}");
        assert!(report.notes.is_empty(), "{report:?}");
        let output = command(&app.redis, partitions).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let summary = String::from_utf8(output.stdout).unwrap();
        assert!(summary.starts_with(&format!("{} log entries, 0 of them", report.pointers)), "{summary}");
        assert!(summary.contains(" events in 20 streams; 4 groups"), "{summary}");
    }
}

/// Two streams, one of them with an index of ids, and a group that has one event of each state: position 1 leased, 2
/// waiting for a retry, 3 parked.
async fn furnish(app: &TestApp) {
    append(app, "a-1", "x", 6).await;
    let ids: Vec<_> = (1..=3).map(|id| json!({"id": format!("id {id}"), "type": "x", "data": 1})).collect();
    app.append("b-1", &json!({ "events": ids }).to_string()).await.expect(201);
    let group = TestGroup::create(app, "g", json!({})).await;
    let taken = group.next("limit=3").await;
    group.post("nack", json!({"leases": [taken[1].lease], "action": "retry", "delay_ms": 60_000})).await.expect(200);
    group.nack(&taken[2..], "park").await.expect(200);
    let ordered = TestGroup::create(app, "o", json!({"ordering": "stream"})).await;
    assert_eq!(ordered.next("limit=10").await.len(), 2);
}

async fn run(redis: &mut MultiplexedConnection, line: &str) {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    // `_` is a space within a word.
    for word in words {
        command.arg(word.replace('_', " "));
    }
    command.exec_async(redis).await.unwrap();
}

/// What is done by hand, and what is then told.
const DAMAGE: &[(&[&str], &[&str])] = &[
    (
        &["XDEL log 0-5"],
        &[
            "log of partition 0: position 5 is missing",
            "a-1@5, x, says that its position is 5; the log has nothing there",
        ],
    ),
    (
        &["XDEL log 0-9"],
        &[
            "log of partition 0: ends at 0-8, but 0-9 was written",
            "b-1@3, x, says that its position is 9; the log has nothing there",
        ],
    ),
    (&["XADD log * s a-1"], &["is none of ours"]),
    (&["XADD log 0-10 s a-1 v 7 t x"], &["log of partition 0: position 10 names a-1@7, which is not there"]),
    (
        &["XADD log 0-10 s a-1 v 6 t x"],
        &["log of partition 0: position 10 names a-1@6, which says that its position is 6"],
    ),
    (&["XADD log 0-10 s a-1 v 6 t y"], &["log of partition 0: position 10 names a-1@6 as y, but its type is x"]),
    (&["DEL log", "SET log 1"], &["the log of partition 0 is no stream"]),
    (
        &["XDEL events:a-1 0-3"],
        &["log of partition 0: position 3 names a-1@3, which is not there", "stream a-1: version 3 is missing"],
    ),
    (
        &["XTRIM events:a-1 MINID 0-4"],
        &["stream a-1: the events before version 4 are gone, but 0 are noted as removed"],
    ),
    (&["XDEL events:a-1 0-6"], &["stream a-1: ends at 0-5, but 0-6 was written"]),
    (&["DEL events:a-1"], &["log of partition 0: position 1 names a-1@1, which is not there"]),
    (&["DEL events:a-1", "SET events:a-1 1"], &["key events:a-1 is no stream, but a string"]),
    (&["XADD events:a-1 * type x"], &["stream a-1: was not written by Streamkeep"]),
    (
        &["XADD events:a-1 0-7 id 7 type x data 1 metadata {} timestamp 1 version 7"],
        &["stream a-1: entry 0-7 has not one field position"],
    ),
    (
        &["XADD events:a-1 0-7 id 7 type x data {1 metadata {} timestamp 1 version 7 position 10"],
        &["stream a-1: entry 0-7 has no JSON in data"],
    ),
    (
        &["XADD events:a-1 0-7 id 7 type x data 1 metadata [] timestamp 1 version 7 position 10"],
        &["stream a-1: entry 0-7 has metadata that are no object"],
    ),
    (
        &["XADD events:a-1 0-7 id 7 type x data 1 metadata {} timestamp 1 version 8 position 10"],
        &["stream a-1: entry 0-7 says that its version is 8"],
    ),
    (
        &["XADD events:a-1 0-7 id 7 type x data 1 metadata {} timestamp 1 version 7 position 10"],
        &["a-1@7, x, says that its position is 10; the log has nothing there"],
    ),
    (
        &["XADD events:a-1 0-7 id 7 type x data 1 metadata {} timestamp 1 version 7 position 9"],
        &["a-1@7, x, says that its position is 9; the log has b-1@3, x there"],
    ),
    (&["RENAME events:a-1 events:a/1"], &["key events:a/1 is no stream of this store"]),
    (&["HSET ids:b-1 id_1 2"], &["stream b-1: its index has an id at version 2, which has the id id 2"]),
    (&["HSET ids:b-1 other 9"], &["stream b-1: its index has an id at version 9, which is not there"]),
    (&["DEL ids:b-1", "SET ids:b-1 1"], &["key ids:b-1 is no hash"]),
    (&["XACK log g 0-1"], &["group g in partition 0: position 1 has a lease, but no pending entry in Redis"]),
    (
        &["HDEL group:g/lease 1"],
        &[
            "group g in partition 0: position 1 is due, but has no lease",
            "group g in partition 0: position 1 is pending in Redis, but has no lease",
        ],
    ),
    (&["ZREM group:g/due 1"], &["group g in partition 0: position 1 has a lease, but is never due"]),
    (
        &["HSET group:g/lease 1 ab:1:2:a-1"],
        &["group g in partition 0: the lease of position 1 is not of a-1@1: ab:1:2:a-1"],
    ),
    (&["HSET group:g/lease 1 nonsense"], &["group g in partition 0: the lease of position 1 cannot be read: nonsense"]),
    (&["ZADD group:g/ready 1 1:1:a-1"], &["group g in partition 0: position 1 is ready and leased"]),
    (&["ZADD group:g/ready 8 8:2:b-1"], &["group g in partition 0: position 8 is ready, but lies behind the cursor 3"]),
    (&["ZADD group:g/ready 3 3:3:a-1"], &["group g in partition 0: position 3 is parked and ready"]),
    (
        &["ZADD group:g/parked 1 1", "HSET group:g/parked/info 1 0:1:1:1:nack:a-1\n"],
        &["group g in partition 0: position 1 is parked and leased"],
    ),
    (
        &["HDEL group:g/parked/info 3"],
        &[
            "group g in partition 0: position 3 is parked, but nothing good is known of it",
            "group g in partition 0: 1 are parked, but 0 are known as parked",
        ],
    ),
    (&["HSET group:g waiting 2"], &["group g in partition 0: waiting counts 2, but 1 are stored"]),
    (&["HSET group:o held 0"], &["group o in partition 0: held counts 0, but 7 are stored"]),
    (&["HSET group:o stopped 1"], &["group o in partition 0: stopped counts 1, but 0 are stored"]),
    (
        &["HSET group:o/busy a-1 5:1:6:5:0:0"],
        &[
            "group o in partition 0: stream a-1 is busy with nothing: 5:1:6:5:0:0",
            "group o in partition 0: position 1 is under way, but its stream a-1 is not busy with it",
        ],
    ),
    (
        &["HSET group:o/busy a-1 1:1:2:5:0:0"],
        &["group o in partition 0: stream a-1 holds more than it passed over: 1:1:2:5:0:0"],
    ),
    (
        &["ZADD group:o/again 0 c-1|0000000000000002|2"],
        &["group o in partition 0: position 2 is to be replayed, but nothing releases its stream c-1"],
    ),
    (&["HSET group:g cursor 4"], &["group g in partition 0: its cursor is 4, but Redis' own group is at 0-3"]),
    (
        &["HSET group:g generation other"],
        &["group g in partition 0: its copy is not of the generation that the registry says"],
    ),
    (&["DEL group:g"], &["group g in partition 0: its copy is not of the generation that the registry says"]),
    (&["XGROUP DESTROY log g"], &["group g in partition 0: Redis has no consumer group of this name on log"]),
];

#[tokio::test]
async fn each_damage_is_found_and_named() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    for (damage, expected) in DAMAGE {
        // Functions and schema stay.
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
        for key in keys.iter().filter(|key| !key.contains("streamkeep:")) {
            run(&mut redis, &format!("DEL {key}")).await;
        }
        let app = TestApp::start_on(app.redis.clone(), 1).await;
        furnish(&app).await;
        let sound = verify(&app.redis, 1).await;
        assert_eq!((&sound.findings[..], sound.groups), (&[][..], 2), "before {damage:?}");
        for line in *damage {
            run(&mut redis, line).await;
        }
        let report = verify(&app.redis, 1).await;
        for expected in *expected {
            assert!(report.findings.iter().any(|line| line.contains(expected)), "{damage:?}: {:#?}", report.findings);
        }
        assert!(report.wrong >= report.findings.len() as u64);
    }
}

#[tokio::test]
async fn a_stream_in_a_foreign_partition_is_named() {
    let app = TestApp::start(4).await;
    append(&app, "a-1", "x", 1).await;
    let home = app.store.partition(&streamkeep::model::StreamId::parse("a-1").unwrap()).get();
    let (other, mut redis) = ((home + 1) % 4, app.redis.connection().await);
    run(&mut redis, &format!("COPY {{{home}}}:events:a-1 {{{other}}}:events:a-1")).await;
    run(&mut redis, &format!("XADD {{{other}}}:log 0-1 s a-1 v 1 t x")).await;
    let findings = verify(&app.redis, 4).await.findings;
    let lines = [
        format!("key {{{other}}}:events:a-1 is no stream of this store"),
        format!("log of partition {other}: position 1 names stream a-1, which belongs to partition {home}"),
    ];
    assert_eq!(findings.len(), 2, "{findings:#?}");
    assert!(lines.iter().all(|line| findings.contains(line)), "{findings:#?}");
}

/// What was trimmed from the beginning is told, and no damage.
#[tokio::test]
async fn a_trimmed_log_and_removed_events_are_told() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    furnish(&app).await;
    run(&mut redis, "XTRIM log MINID 0-3").await;
    run(&mut redis, "XTRIM events:a-1 MINID 0-5").await;
    run(&mut redis, "HSET stream:a-1 removed 4").await;
    let report = verify(&app.redis, 1).await;
    assert_eq!(report.findings, [""; 0], "{report:?}");
    assert_eq!(report.notes, ["the log of partition 0 begins at position 3: it was trimmed"]);
    assert_eq!((report.pointers, report.removed, report.events), (7, 2, 5));
}

#[tokio::test]
async fn the_command_says_what_is_wrong_and_fails() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    append(&app, "a-1", "x", 300).await;
    // Every second event: more findings than are shown.
    for version in (2..300).step_by(2) {
        run(&mut redis, &format!("XDEL events:a-1 0-{version}")).await;
    }
    let output = command(&app.redis, 1).await;
    let (text, failure) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{text}{failure}");
    assert_eq!(text.lines().filter(|line| line.starts_with("wrong: ")).count(), 101, "{text}");
    assert!(text.contains("wrong: 198 further finding(s)"), "{text}");
    assert!(failure.contains("298 finding(s): the store is not sound"), "{failure}");
    let refused = command(&app.redis, 4).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("the store has 1 partition(s)"));
    // Nothing was changed by looking.
    assert_eq!(app.request(Method::GET, "/streams/a-1").send().await.unwrap().status(), 200);
}
