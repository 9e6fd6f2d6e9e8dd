//! Migrations and the functions library.

use std::time::Duration;

use serde_json::json;
use streamkeep::{
    model::Partitions,
    store::{Connections, DurabilityConfig, Keys, Library, Migration, Migrations, StartError, Store, StoreConfig},
};

use crate::{
    app::{TestApp, TestRedis},
    groups::TestGroup,
};

const ONE: &str = r#"{"events":[{"type":"t","data":1}]}"#;
/// Takes three steps, as a migration of much data would.
const SLOW: &str = "local n = redis.call('HINCRBY', KEYS[1], 'steps', 1) if n < 3 then return 'more' end return 'done'";

fn partitions(count: u16) -> Partitions {
    Partitions::new(count).unwrap()
}

fn config(redis: &TestRedis, count: u16) -> StoreConfig {
    StoreConfig {
        address: redis.server.address(),
        namespace: String::new(),
        partitions: partitions(count),
        writers: 1,
        queued_max: 100,
        timeout: Duration::from_secs(5),
        migrate: true,
        durability: DurabilityConfig::default(),
        library: Library::default(),
    }
}

#[tokio::test]
async fn migrations_run_once_in_order_under_a_lock() {
    let redis = TestRedis::start().await;
    let connections = Connections::open(&config(&redis, 1)).await.unwrap();
    let keys = Keys::new("", partitions(1));
    let first = Migration { number: 1, script: "redis.call('HSET', KEYS[1], 'partitions', ARGV[1]) return 'done'" };
    let second = Migration { number: 2, script: SLOW };
    let migrations = Migrations::new(vec![first, second]);
    let runs = (0..4).map(|_| migrations.run(&connections, &keys, partitions(1)));
    let ran: Vec<_> = futures::future::join_all(runs).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(ran, [1, 2]);
    let mut plain = redis.connection().await;
    assert_eq!(redis::cmd("HGET").arg(keys.schema()).arg("steps").query_async::<u32>(&mut plain).await.unwrap(), 3);
    assert_eq!(redis::cmd("EXISTS").arg(keys.migrations_lock()).query_async::<u32>(&mut plain).await.unwrap(), 0);

    let changed = Migrations::new(vec![first, Migration { script: "return 'done'", ..second }]);
    assert!(matches!(changed.run(&connections, &keys, partitions(1)).await, Err(StartError::ChangedMigration(2))));
    let older = Migrations::new(vec![first]).run(&connections, &keys, partitions(1)).await;
    assert!(matches!(older, Err(StartError::NewerStore { stored: 2, known: 1 })));
}

#[tokio::test]
async fn a_store_keeps_its_number_of_partitions() {
    let redis = TestRedis::start().await;
    let due = Store::open(StoreConfig { migrate: false, ..config(&redis, 4) }).await.err().unwrap();
    assert!(matches!(due, StartError::MigrationsDue(1)), "{due}");
    Store::open(config(&redis, 4)).await.unwrap();
    Store::open(StoreConfig { migrate: false, ..config(&redis, 4) }).await.unwrap();
    let refused = Store::open(config(&redis, 1)).await.err().unwrap();
    assert!(matches!(refused, StartError::Partitions { stored: 4, asked: 1 }), "{refused}");
    // Another namespace is another store.
    Store::open(StoreConfig { namespace: "other".to_owned(), ..config(&redis, 1) }).await.unwrap();
}

#[tokio::test]
async fn a_log_of_somebody_else_is_not_used() {
    let redis = TestRedis::start().await;
    let mut plain = redis.connection().await;
    redis::cmd("XADD").arg("log").arg("*").arg("msg").arg("hello").exec_async(&mut plain).await.unwrap();
    let refused = Store::open(config(&redis, 1)).await.err().unwrap();
    assert!(matches!(&refused, StartError::ForeignLog(key) if key == "log"), "{refused}");
    Store::open(StoreConfig { namespace: "mine".to_owned(), ..config(&redis, 1) }).await.unwrap();
}

#[tokio::test]
async fn libraries_live_side_by_side_until_they_are_pruned() {
    let redis = TestRedis::start().await;
    let older = Library::from_source(&format!("{}\n-- an older build", Library::source()));
    let old = TestApp::start_with(redis.clone(), 1, |config| config.store.library = older.clone()).await;
    let new = TestApp::start_on(redis.clone(), 1).await;
    for app in [&old, &new, &old] {
        app.append("order-1", ONE).await.expect(201);
    }
    // What one version hands out, the other settles.
    let group = TestGroup::create(&old, "mailer", json!({ "ordering": "stream" })).await;
    for (takes, settles) in [(&old, &new), (&new, &old), (&old, &old)] {
        let taken = TestGroup::at(takes, "mailer").next("").await;
        assert_eq!(taken.len(), 1, "one of a stream at a time");
        TestGroup::at(settles, "mailer").ack(&taken).await.expect(200);
    }
    assert!(group.next("").await.is_empty());
    let connections = Connections::open(&config(&redis, 1)).await.unwrap();
    assert_eq!(Library::default().prune(&connections).await.unwrap(), [older.name()]);
    new.append("order-1", ONE).await.expect(201);
    // What is missing is loaded again, and nobody notices.
    old.append("order-1", ONE).await.expect(201);
}

#[tokio::test]
async fn a_flushed_library_comes_back_unseen() {
    let app = TestApp::start(1).await;
    let mut plain = app.redis.connection().await;
    for version in 1..=5 {
        redis::cmd("FUNCTION").arg("FLUSH").exec_async(&mut plain).await.unwrap();
        assert_eq!(app.append("order-1", ONE).await.expect(201).json()["version"], version);
    }
    redis::cmd("FUNCTION").arg("FLUSH").exec_async(&mut plain).await.unwrap();
    app.get("/readyz").await.expect(200);
}

#[tokio::test]
async fn namespaces_share_a_redis_and_nothing_else() {
    let redis = TestRedis::start().await;
    let one = TestApp::start_with(redis.clone(), 1, |config| config.store.namespace = "one".to_owned()).await;
    let two = TestApp::start_with(redis.clone(), 4, |config| config.store.namespace = "two".to_owned()).await;
    one.append("order-1", ONE).await.expect(201);
    two.get("/streams/order-1").await.expect_problem(404, "stream-not-found");
    two.append("order-1", ONE).await.expect(201);
    let mut plain = redis.connection().await;
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut plain).await.unwrap();
    keys.sort();
    assert!(keys.iter().all(|key| key.starts_with("one:") || key.starts_with("two:")), "{keys:?}");
    assert!(keys.contains(&"one:events:order-1".to_owned()), "{keys:?}");
}
