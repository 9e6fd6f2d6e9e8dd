//! A store in a cluster: everything works over all partitions, and a shard that is down touches no other.

use std::time::{Duration, Instant};

use serde_json::json;
use streamkeep::store::{CheckStatus, Store, Verifier, examine};

use crate::{
    app::{TestApp, TestRedis, eventually},
    cluster_set::{Cluster, stream_in},
    deploy::access_rule,
    feed::Feed,
    groups::{TestGroup, names},
    log::read_all,
};

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;
const PARTITIONS: u16 = 8;

/// All events of the log, by its pages.
async fn log(app: &TestApp) -> usize {
    read_all(app, "limit=7").await.0.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_over_all_partitions() {
    let cluster = Cluster::start(3, false).await;
    let (app, other) = (cluster.app(PARTITIONS).await, cluster.app(PARTITIONS).await);
    let group = TestGroup::create(&app, "mailer", json!({ "ordering": "stream" })).await;
    let mut feed = Feed::open(&app, "/events", None).await;
    let streams: Vec<_> = (0..PARTITIONS).map(|partition| stream_in(&app, partition)).collect();
    for (stream, partition) in streams.iter().zip(0..) {
        for version in 1..=3 {
            let headers = [("if-match", format!("\"{}\"", version - 1)), ("idempotency-key", format!("k{version}"))];
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = app.append_with(stream, &headers, ONE).await.expect(201).json();
            assert_eq!((answer["version"].as_u64(), answer["partition"].as_u64()), (Some(version), Some(partition)));
            let again = other.append_with(stream, &headers, ONE).await.expect(200).json();
            assert_eq!((again["version"].as_u64(), again["duplicate"].as_bool()), (Some(version), Some(true)));
        }
        other.append_with(stream, &[("if-match", "\"1\"")], ONE).await.expect_problem(409, "version-conflict");
        assert_eq!(other.get(&format!("/streams/{stream}")).await.expect(200).json()["version"], 3);
    }
    assert_eq!(log(&other).await, 24);
    assert_eq!(other.get("/streams").await.expect(200).json()["streams"].as_array().unwrap().len(), 8);
    assert_eq!(feed.events(24).await.len(), 24);
    for _ in 1..=3 {
        let taken = group.next("limit=100&consumer=a").await;
        assert_eq!(taken.len(), 8, "one of each stream: {taken:?}");
        TestGroup::at(&other, "mailer").ack(&taken).await.expect(200);
    }
    assert_eq!(group.numbers(&["lag", "in_flight"]).await, [0, 0]);
    let ready = app.get("/readyz").await.expect(200).json();
    assert_eq!(ready["unavailable"], json!([]), "{ready}");

    let mut config = other_config(&cluster, PARTITIONS);
    let report = Verifier::open(config.clone(), Box::new(|_| {})).await.unwrap().verify().await.unwrap();
    assert_eq!((report.findings, report.streams, report.events, report.groups), (Vec::new(), 8, 24, 1));
    let checks = examine(config.clone()).await;
    assert!(checks.iter().all(|check| check.status != CheckStatus::Fail), "{checks:?}");
    let said = |name: &str| checks.iter().find(|check| check.name == name).unwrap();
    assert_eq!(said("cluster").detail, "state ok, all slots assigned");
    assert!(said("shares").detail.starts_with("8 partition(s) on 3 primaries, 2 to 4 each"), "{checks:?}");
    assert!(said("replicas").detail.contains("nobody takes over"), "{checks:?}");
    cluster.servers[1].ask::<()>("CONFIG SET cluster-require-full-coverage yes").await;
    let checks = examine(config.clone()).await;
    let cluster_check = checks.iter().find(|check| check.name == "cluster").unwrap();
    assert_eq!(cluster_check.status, CheckStatus::Warn);
    assert!(cluster_check.detail.contains("set cluster-require-full-coverage no"), "{checks:?}");
    config.partitions = streamkeep::model::Partitions::new(4).unwrap();
    let refusal = Store::open(config).await.err().unwrap().to_string();
    assert!(refusal.contains("the store has 8 partition(s)"), "{refusal}");
}

#[tokio::test]
async fn one_server_of_a_cluster_is_no_store() {
    let cluster = Cluster::start(2, false).await;
    let (url, at) = (cluster.servers[0].url(), crate::app::free_address().to_string());
    let output = crate::program::serve_at(&at, &["--redis-url", &url]).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let host = url.strip_prefix("redis://").unwrap();
    let sentence = format!("streamkeep: {host} is one server of a cluster: use redis+cluster://{host}\n");
    assert!(!output.status.success() && said.ends_with(&sentence), "{said}");
    let alone = crate::nodes::Node::start(&[]).await;
    let url = alone.url().replace("redis://", "redis+cluster://");
    let output = crate::program::serve_at(&at, &["--redis-url", &url]).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("cluster support disabled"), "{said}");
}

fn other_config(cluster: &Cluster, partitions: u16) -> streamkeep::store::StoreConfig {
    streamkeep::store::StoreConfig {
        address: cluster.redis().server.address(),
        namespace: String::new(),
        partitions: streamkeep::model::Partitions::new(partitions).unwrap(),
        writers: 1,
        queued_max: 100,
        timeout: Duration::from_secs(20),
        migrate: true,
        durability: streamkeep::store::DurabilityConfig::default(),
        library: streamkeep::store::Library::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_partition_has_its_keys_in_one_slot() {
    let cluster = Cluster::start(3, false).await;
    let app = cluster.app(1).await;
    let group = TestGroup::create(&app, "mailer", json!({})).await;
    for stream in ["a-1", "b-2", "c-3"] {
        app.append_with(stream, &[("idempotency-key", "k")], ONE).await.expect(201);
    }
    let taken = group.next("limit=3&consumer=a").await;
    group.ack(&taken).await.expect(200);
    assert_eq!(log(&app).await, 3);
    let home = &cluster.servers[cluster.home(0).await];
    assert_eq!(home.ask::<u64>("XLEN {0}:log").await, 3);
    let report = Verifier::open(other_config(&cluster, 1), Box::new(|_| {})).await.unwrap().verify().await.unwrap();
    assert_eq!((report.findings, report.streams), (Vec::new(), 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_down_touches_no_other() {
    let mut cluster = Cluster::start(3, false).await;
    let short = |config: &mut crate::app::TestConfig| config.store.timeout = Duration::from_secs(1);
    let app = TestApp::start_with(cluster.redis(), PARTITIONS, short).await;
    let streams: Vec<_> = (0..PARTITIONS).map(|partition| stream_in(&app, partition)).collect();
    let group = TestGroup::create(&app, "mailer", json!({})).await;
    for stream in &streams {
        app.append(stream, ONE).await.expect(201);
    }
    let down = cluster.home(1).await;
    let away = cluster.partitions_of(down, PARTITIONS).await;
    assert!(!away.contains(&0) && away.len() < usize::from(PARTITIONS), "{away:?}");
    cluster.servers[down].kill().await;

    for (stream, partition) in streams.iter().zip(0..) {
        let began = Instant::now();
        let (append, read) = (app.append(stream, ONE).await, app.get(&format!("/streams/{stream}")).await);
        if away.contains(&partition) {
            for answer in [append, read] {
                assert!(answer.header("retry-after") == "1" || answer.status == 504, "{answer:?}");
            }
        } else {
            append.expect(201);
            read.expect(200);
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        }
    }
    let ready = app.get("/readyz").await.expect(200).json();
    assert_eq!(ready["unavailable"], json!(away), "{ready}");
    let check = ready["checks"].as_array().unwrap().iter().find(|check| check["name"] == "redis").unwrap().clone();
    let list: Vec<_> = away.iter().map(ToString::to_string).collect();
    assert!(check["detail"].as_str().unwrap().ends_with(&format!("partitions {}", list.join(", "))), "{check}");

    // Groups and feeds go on with the others, and an instance that starts now does too.
    let late = TestApp::start_with(cluster.redis(), PARTITIONS, short).await;
    let there = usize::from(PARTITIONS) - away.len();
    let mut feed = Feed::open(&late, "/events", None).await;
    assert_eq!(feed.events(2 * there).await.len(), 2 * there);
    let mut taken = Vec::new();
    eventually("the others are handed out", async || {
        taken.extend(TestGroup::at(&late, "mailer").next("limit=100&consumer=a").await);
        taken.len() == 2 * there
    })
    .await;

    cluster.servers[down].run().await;
    eventually("it is back", async || app.append(&streams[1], ONE).await.status == 201).await;
    eventually("it is ready", async || app.get("/readyz").await.json()["unavailable"] == json!([])).await;
    for stream in &streams {
        late.append(stream, ONE).await.expect(201);
    }
    let all = log(&late).await;
    eventually("the rest is handed out", async || {
        taken.extend(group.next("limit=100&consumer=a").await);
        let mut once = names(&taken);
        once.dedup();
        once.len() == all
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_that_are_missing_on_one_primary_are_loaded_there() {
    let cluster = Cluster::start(3, false).await;
    let app = cluster.app(PARTITIONS).await;
    let streams: Vec<_> = (0..PARTITIONS).map(|partition| stream_in(&app, partition)).collect();
    for (round, server) in (1..).zip(&cluster.servers) {
        server.ask::<()>("FUNCTION FLUSH").await;
        for stream in &streams {
            assert_eq!(app.append(stream, ONE).await.expect(201).json()["version"], round);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_of_a_cluster_needs_no_more_than_the_page_says() {
    let cluster = Cluster::start(3, false).await;
    let (rule, besides) = access_rule();
    for server in &cluster.servers {
        server.ask::<()>(&format!("{rule} {besides}")).await;
    }
    let url = cluster.url().replace("://", "://streamkeep:secret@");
    let app = TestApp::start_on(TestRedis::of_set(&url), PARTITIONS).await;
    for partition in 0..PARTITIONS {
        app.append(&stream_in(&app, partition), ONE).await.expect(201);
    }
    assert_eq!(log(&app).await, usize::from(PARTITIONS));
    for server in &cluster.servers {
        assert_eq!(server.ask::<Vec<redis::Value>>("ACL LOG").await, [], "nothing was refused");
    }
}
