//! Levels of durability: which are given, asked for and reached, with real replicas that hang, go and come back.

use std::time::Duration;

use streamkeep::{
    model::Durability::{self, Fsync, Memory, Replicated, ReplicatedFsync},
    redis_server::AppendFsync::{self, Always, Everysec},
    store::{DurabilityConfig, Store},
};

use crate::{
    app::{Answer, TestApp, TestRedis, eventually, free_address},
    program::{Run, finish, serve, streamkeep},
    proxy::{Fault, Proxy},
    replicas::Nodes,
};

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;
const WITH_ID: &str = r#"{"events":[{"id":"a","type":"t","data":1}]}"#;
const HEADER: &str = "streamkeep-durability";
/// Long enough for a busy machine; half of it is what a test waits for replicas that hang.
const TIMEOUT: Duration = Duration::from_secs(3);

async fn service(nodes: &Nodes, config: DurabilityConfig) -> TestApp {
    TestApp::start_with(nodes.primary.clone(), 1, |test| {
        test.store.durability = config;
        test.store.timeout = TIMEOUT;
    })
    .await
}

fn floor(floor: Durability) -> DurabilityConfig {
    DurabilityConfig { floor: Some(floor), ..DurabilityConfig::default() }
}

/// Appends, asking for a level.
async fn ask(app: &TestApp, level: &str) -> Answer {
    app.append_with("s-1", &[(HEADER, level)], ONE).await
}

async fn version(app: &TestApp) -> String {
    app.head("/streams/s-1").await.header("etag").to_owned()
}

/// What a check of `/readyz` says.
async fn check(app: &TestApp, name: &str) -> (String, String) {
    let checks = app.get("/readyz").await.expect(200).json()["checks"].clone();
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone();
    (check["status"].as_str().unwrap().to_owned(), check["detail"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_redis_alone_gives_what_its_disk_gives() {
    for (fsync, level) in [(Everysec, Memory), (Always, Fsync)] {
        let redis = TestRedis::start_with(|config| config.append_fsync = fsync).await;
        let app = TestApp::start_on(redis, 1).await;
        for asked in ["memory", level.as_str()] {
            assert_eq!(ask(&app, asked).await.expect(201).header(HEADER), level.as_str());
        }
        for asked in Durability::ALL.into_iter().filter(|asked| *asked > level) {
            let problem = ask(&app, asked.as_str()).await.expect_problem(400, "durability-unsupported").json();
            assert_eq!(problem["retryable"], false);
        }
        for garbage in ["", "disk", "Fsync", "fsync, memory"] {
            ask(&app, garbage).await.expect_problem(400, "invalid-request");
        }
        let both = [(HEADER, "memory"), (HEADER, "memory")];
        app.append_with("s-1", &both, ONE).await.expect_problem(400, "invalid-request");
        assert_eq!(version(&app).await, "\"2\"", "nothing was written by what was refused");
        assert_eq!(app.get("/readyz").await.expect(200).json()["durability"], level.as_str());
        assert_eq!(check(&app, "durability").await, ("ok".to_owned(), level.as_str().to_owned()));
    }
}

#[tokio::test]
async fn with_replicas_the_level_is_replicated_and_cannot_be_lowered() {
    let nodes = Nodes::start(1, Always).await;
    let app = service(&nodes, DurabilityConfig::default()).await;
    assert_eq!(app.append("s-1", WITH_ID).await.expect(201).header(HEADER), "replicated");
    assert_eq!(app.append("s-1", WITH_ID).await.expect(200).header(HEADER), "replicated");
    for asked in ["memory", "fsync", "replicated"] {
        assert_eq!(ask(&app, asked).await.expect(201).header(HEADER), "replicated");
    }
    // What replicas have on disk, only the operator can know.
    ask(&app, "replicated-fsync").await.expect_problem(400, "durability-unsupported");
    let asserted = DurabilityConfig { assert_fsync: true, ..floor(ReplicatedFsync) };
    let app = service(&nodes, asserted).await;
    assert_eq!(ask(&app, "memory").await.expect(201).header(HEADER), "replicated-fsync");
    assert_eq!(app.get("/readyz").await.expect(200).json()["durability"], "replicated-fsync");
}

#[tokio::test]
async fn who_asks_for_more_waits_for_replicas_and_nobody_else() {
    let nodes = Nodes::start(1, Everysec).await;
    let app = service(&nodes, floor(Memory)).await;
    assert_eq!(ask(&app, "replicated").await.expect(201).header(HEADER), "replicated");
    // Everysec on the primary: that a replica has it does not put it on a disk.
    ask(&app, "fsync").await.expect_problem(400, "durability-unsupported");
    nodes.replicas[0].signal("STOP");
    let (waiting, ()) = tokio::join!(ask(&app, "replicated"), async {
        for _ in 0..20 {
            assert_eq!(app.append("s-1", ONE).await.expect(201).header(HEADER), "memory");
        }
    });
    waiting.expect_problem(504, "durability-unconfirmed");
    nodes.replicas[0].signal("CONT");
}

#[tokio::test]
async fn what_a_hanging_replica_does_not_confirm_is_settled_by_a_repeat() {
    let nodes = Nodes::start(1, Always).await;
    let app = service(&nodes, floor(Replicated)).await;
    app.append("s-1", ONE).await.expect(201);
    nodes.replicas[0].signal("STOP");
    let problem = app.append("s-1", WITH_ID).await.expect_problem(504, "durability-unconfirmed");
    assert_eq!(problem.header("etag"), "\"2\"");
    let document = problem.json();
    assert_eq!(
        (&document["applied"], &document["first_version"], &document["version"]),
        (&true.into(), &2.into(), &2.into())
    );
    assert_eq!(document["retryable"], true);
    assert!(problem.header(HEADER).is_empty());
    assert_eq!(version(&app).await, "\"2\"", "it is in the stream");
    // A repeat is not confirmed either, whether or not the replica is given up by then; a conflict stays one.
    let again = app.append("s-1", WITH_ID).await;
    assert!(again.json()["code"].as_str().unwrap().starts_with("durability-un"), "{again:?}");
    eventually("the replica is missed", async || {
        let answer = app.append_with("s-1", &[("if-match", "\"2\"")], ONE).await;
        answer.status == 503 && answer.json()["code"] == "durability-unavailable"
    })
    .await;
    let before = version(&app).await;
    app.append("s-1", ONE).await.expect_problem(503, "durability-unavailable");
    assert_eq!(version(&app).await, before, "nothing was written");
    nodes.replicas[0].signal("CONT");
    let mut answer = None;
    eventually("the replica is back", async || {
        let again = app.append("s-1", WITH_ID).await;
        let settled = again.status == 200;
        answer = Some(again);
        settled
    })
    .await;
    let answer = answer.unwrap();
    assert_eq!((answer.header(HEADER), answer.header("etag")), ("replicated", "\"2\""));
    assert_eq!((&answer.json()["duplicate"], &answer.json()["first_version"]), (&true.into(), &2.into()));
    let metrics = app.get("/metrics").await.text;
    assert!(metrics.contains("streamkeep_appends_total{outcome=\"unconfirmed\"}"), "{metrics}");
    let counted =
        metrics.lines().find_map(|line| line.strip_prefix("streamkeep_appends_total{outcome=\"unconfirmed\"} "));
    assert!(counted.unwrap().parse::<u64>().unwrap() >= 1);
}

#[tokio::test]
async fn a_conflict_is_a_conflict_though_no_replica_confirms() {
    let nodes = Nodes::start(1, Always).await;
    let app = service(&nodes, floor(Replicated)).await;
    app.append("s-1", ONE).await.expect(201);
    nodes.replicas[0].signal("STOP");
    let stale = app.append_with("s-1", &[("if-match", "\"7\"")], ONE).await;
    assert_eq!(stale.expect_problem(409, "version-conflict").json()["current_version"], 1);
    nodes.replicas[0].signal("CONT");
}

/// Not all that hangs is one replica: as many must confirm as the operator says.
#[tokio::test]
async fn as_many_replicas_confirm_as_are_demanded() {
    let nodes = Nodes::start(2, Always).await;
    let one = service(&nodes, floor(Replicated)).await;
    let two = service(&nodes, DurabilityConfig { replicas: 2, ..floor(Replicated) }).await;
    two.append("s-1", ONE).await.expect(201);
    nodes.replicas[1].signal("STOP");
    one.append("s-1", ONE).await.expect(201);
    two.append("s-1", ONE).await.expect_problem(504, "durability-unconfirmed");
    nodes.replicas[1].signal("CONT");
    eventually("both confirm", async || two.append("s-1", ONE).await.status == 201).await;
}

async fn replicas_that_go(config: DurabilityConfig, fsync: AppendFsync) -> (Nodes, TestApp) {
    let mut nodes = Nodes::start(1, fsync).await;
    let app = service(&nodes, config).await;
    assert_eq!(ask(&app, "replicated").await.expect(201).header(HEADER), "replicated");
    let gone = nodes.replicas.pop();
    tokio::task::spawn_blocking(|| drop(gone)).await.unwrap();
    eventually("the replica is missed", async || {
        check(&app, "durability").await.1 != "replicated" && nodes.online().await == 0
    })
    .await;
    (nodes, app)
}

#[tokio::test]
async fn without_the_replicas_that_a_floor_demands_nothing_is_written() {
    let (mut nodes, app) = replicas_that_go(floor(Replicated), Always).await;
    let (status, detail) = check(&app, "durability").await;
    assert_eq!(status, "warn");
    assert!(detail.contains("0 of the 1 replica(s)"), "{detail}");
    let before = version(&app).await;
    let refused = app.append("s-1", ONE).await.expect_problem(503, "durability-unavailable");
    assert_eq!((refused.header("retry-after"), &refused.json()["retryable"]), ("1", &true.into()));
    ask(&app, "memory").await.expect_problem(503, "durability-unavailable");
    assert_eq!(version(&app).await, before);
    app.get("/streams/s-1").await.expect(200);
    nodes.add(Always).await;
    eventually("the new replica is seen", async || app.append("s-1", ONE).await.status == 201).await;
    assert_eq!(check(&app, "durability").await, ("ok".to_owned(), "replicated".to_owned()));
}

#[tokio::test]
async fn without_a_floor_the_level_falls_and_who_asks_for_more_is_told() {
    let (_nodes, app) = replicas_that_go(DurabilityConfig::default(), Everysec).await;
    assert_eq!(app.append("s-1", ONE).await.expect(201).header(HEADER), "memory");
    let before = version(&app).await;
    ask(&app, "replicated").await.expect_problem(503, "durability-unavailable");
    ask(&app, "fsync").await.expect_problem(400, "durability-unsupported");
    assert_eq!(version(&app).await, before);
}

#[tokio::test]
async fn an_engine_that_is_durable_is_believed() {
    let redis = TestRedis::start_with(|config| config.append_fsync = Everysec).await;
    let engine = DurabilityConfig { engine_durable: true, ..floor(ReplicatedFsync) };
    let app = TestApp::start_with(redis, 1, |test| test.store.durability = engine).await;
    for asked in Durability::ALL {
        assert_eq!(ask(&app, asked.as_str()).await.expect(201).header(HEADER), "replicated-fsync");
    }
}

#[tokio::test]
async fn a_floor_that_cannot_be_reached_stops_the_start() {
    let redis = TestRedis::start_with(|config| config.append_fsync = Everysec).await;
    let listen = free_address().to_string();
    for (level, why) in [
        ("fsync", "Redis does not have appendfsync always"),
        ("replicated", "0 of the 1 replica(s) that must confirm are there"),
        ("replicated-fsync", "Redis does not have appendfsync always"),
    ] {
        let mut command = serve(&redis, &listen, &["--durability", level]);
        let run =
            finish(command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap());
        run.await.expect_failure(&[&format!("the level {level} is demanded and cannot be reached: {why}")]);
    }
    // Refused before it is asked: what it says of Redis is seen to be false.
    let app = TestApp::start_on(redis.clone(), 1).await;
    let durability = DurabilityConfig { assert_fsync: true, ..floor(Fsync) };
    let config = TestApp::store_config(&redis, 1);
    let opened = Store::open(streamkeep::store::StoreConfig { durability, ..config }).await;
    assert!(opened.err().unwrap().to_string().contains("cannot be reached"));
    app.append("s-1", ONE).await.expect(201);
}

/// A repeat after a lost reply, on a connection that has written nothing, is confirmed for what the first call wrote.
#[tokio::test]
async fn a_lost_reply_is_settled_and_confirmed() {
    let nodes = Nodes::start(1, Always).await;
    let proxy = Proxy::start(&nodes.primary).await;
    let address = proxy.address();
    let app = TestApp::start_with(nodes.primary.clone(), 1, |test| test.store.address = address.into()).await;
    for (version, fault) in (1..).zip([Fault::RequestLost, Fault::ReplyLost, Fault::ReplyLost]) {
        let _lost = proxy.spoil_next(fault).await;
        let answer = app.append("s-1", ONE).await.expect(201);
        assert_eq!((answer.header(HEADER), answer.json()["version"].as_u64()), ("replicated", Some(version)));
    }
}

/// On a connection that has written nothing WAIT answers at once on newer servers, whatever replicas have.
#[tokio::test]
async fn what_a_repeat_finds_is_not_confirmed_by_a_replica_that_hangs() {
    let nodes = Nodes::start(1, Always).await;
    let proxy = Proxy::start(&nodes.primary).await;
    let address = proxy.address();
    let app = TestApp::start_with(nodes.primary.clone(), 1, |test| {
        test.store.address = address.into();
        test.store.durability = floor(Replicated);
        test.store.timeout = TIMEOUT;
    })
    .await;
    let key = [("idempotency-key", "k")];
    for (number, (headers, body)) in
        [(&[][..], ONE), (&[("if-match", "*")], ONE), (&[("if-none-match", "*")], ONE), (&key, ONE), (&[], WITH_ID)]
            .into_iter()
            .enumerate()
    {
        eventually("the replica follows", async || app.append("s-1", ONE).await.status == 201).await;
        nodes.replicas[0].signal("STOP");
        let stream = if number == 2 { "s-2" } else { "s-1" };
        let _lost = proxy.spoil_next(Fault::ReplyLost).await;
        let answer = app.append_with(stream, headers, body).await;
        nodes.replicas[0].signal("CONT");
        assert_eq!(answer.expect_problem(504, "durability-unconfirmed").json()["applied"], true);
    }
}

async fn import(app: &TestApp, level: &str) -> Run {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "{\"stream\":\"s-1\",\"type\":\"t\",\"data\":1}\n").unwrap();
    streamkeep(app, &["import", file.path().to_str().unwrap(), "--durability", level]).await
}

#[tokio::test]
async fn an_import_asks_for_a_level() {
    let redis = TestRedis::start_with(|config| config.append_fsync = Everysec).await;
    let app = TestApp::start_on(redis, 1).await;
    let refused = import(&app, "fsync").await;
    let refused =
        refused.expect_failure(&["line 1: ", "400 durability-unsupported: ", "does not give fsync", "0 appended"]);
    assert!(!refused.stderr.contains("Correct the line"), "{refused:?}");
    import(&app, "memory").await.expect_summary(1, 1, 0);
    let run = import(&app, "disk").await;
    assert!(run.code != Some(0) && run.stderr.contains("memory, fsync, replicated or replicated-fsync"), "{run:?}");

    let redis = TestRedis::start_with(|config| config.append_fsync = Always).await;
    let app = TestApp::start_on(redis, 1).await;
    import(&app, "fsync").await.expect_summary(1, 1, 0);
    import(&app, "fsync").await.expect_summary(1, 0, 1);
}

#[tokio::test]
async fn an_import_repeats_what_replicas_do_not_confirm() {
    let nodes = Nodes::start(1, Everysec).await;
    let app = service(&nodes, floor(Memory)).await;
    assert_eq!(ask(&app, "replicated").await.expect(201).header(HEADER), "replicated");
    nodes.replicas[0].signal("STOP");
    let (run, ()) = tokio::join!(import(&app, "replicated"), async {
        let unconfirmed = r#"streamkeep_appends_total{outcome="unconfirmed"} 1"#;
        eventually("it is not confirmed", async || app.get("/metrics").await.text.contains(unconfirmed)).await;
        nodes.replicas[0].signal("CONT");
    });
    run.expect_summary(1, 0, 1);
    assert_eq!(version(&app).await, "\"2\"", "it is there once");
}
