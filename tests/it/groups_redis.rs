//! What a plain Redis client sees of groups, and may do beside them.

use std::collections::HashMap;

use redis::{Value, aio::MultiplexedConnection};
use serde_json::json;

use crate::{
    app::TestApp,
    groups::{TestGroup, append},
};

/// `XINFO GROUPS` of a group: its last id and its lag; and how many are pending (`XPENDING`).
async fn seen(redis: &mut MultiplexedConnection, key: &str, group: &str) -> (String, u64, u64) {
    let groups: Vec<HashMap<String, Value>> =
        redis::cmd("XINFO").arg("GROUPS").arg(key).query_async(redis).await.unwrap();
    let text = |group: &HashMap<String, Value>, name: &str| -> String {
        redis::from_redis_value(group[name].clone()).unwrap()
    };
    let found = groups.iter().find(|found| text(found, "name") == group).unwrap();
    let pending: (u64, Value, Value, Value) =
        redis::cmd("XPENDING").arg(key).arg(group).query_async(redis).await.unwrap();
    assert_eq!(redis::from_redis_value::<u64>(found["pending"].clone()).unwrap(), pending.0);
    let lag = redis::from_redis_value(found["lag"].clone()).unwrap();
    (text(found, "last-delivered-id"), lag, pending.0)
}

#[tokio::test]
async fn xinfo_and_xpending_tell_the_truth() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    append(&app, "a-1", "x", 6).await;
    let group = TestGroup::create(&app, "g", json!({})).await;
    let one = TestGroup::create(&app, "one", json!({"stream": "a-1"})).await;
    assert_eq!(seen(&mut redis, "log", "g").await, ("0-0".into(), 6, 0));
    for (key, group, name) in [("log", &group, "g"), ("events:a-1", &one, "one")] {
        let taken = group.next("limit=4&consumer=ada").await;
        assert_eq!(seen(&mut redis, key, name).await, ("0-4".into(), 2, 4));
        group.ack(&taken[..1]).await.expect(200);
        group
            .post("nack", json!({"leases": [taken[1].lease], "action": "retry", "delay_ms": 60_000}))
            .await
            .expect(200);
        group.nack(&taken[2..3], "park").await.expect(200);
        assert_eq!(seen(&mut redis, key, name).await, ("0-4".into(), 2, 2), "leased and waiting");
        let pending: Vec<(String, String, u64, u64)> =
            redis::cmd("XPENDING").arg(key).arg(name).arg("-").arg("+").arg(10).query_async(&mut redis).await.unwrap();
        let pending: Vec<_> = pending.into_iter().map(|(id, consumer, _, count)| (id, consumer, count)).collect();
        assert_eq!(pending, [("0-2".into(), "ada".into(), 1), ("0-4".into(), "ada".into(), 1)]);
        group.next("limit=10").await;
        assert_eq!(seen(&mut redis, key, name).await, ("0-6".into(), 0, 4));
        group.post("seek", json!({"to": 5})).await.expect(200);
        assert_eq!(seen(&mut redis, key, name).await, ("0-5".into(), 1, 0));
    }
    app.delete("/groups/g").await.expect(204);
    let groups: Vec<Value> = redis::cmd("XINFO").arg("GROUPS").arg("log").query_async(&mut redis).await.unwrap();
    assert!(groups.is_empty());
    app.delete("/groups/one").await.expect(204);
    let keys: Vec<String> = redis::cmd("KEYS").arg("group:*").query_async(&mut redis).await.unwrap();
    assert!(keys.is_empty(), "nothing is left: {keys:?}");
}

#[tokio::test]
async fn events_that_nobody_wants_leave_no_pending_entry() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    append(&app, "a-1", "x", 700).await;
    append(&app, "b-1", "x", 1).await;
    let group = TestGroup::create(&app, "g", json!({"categories": ["b"]})).await;
    assert_eq!(group.one().await.name(), "b-1@1");
    assert_eq!(seen(&mut redis, "log", "g").await, ("0-701".into(), 0, 1));
}

/// Ids and fields.
type Entries = Vec<(String, HashMap<String, String>)>;

/// Reads two entries as a plain consumer of a plain group.
async fn read_foreign(redis: &mut MultiplexedConnection) -> Entries {
    let mut command = redis::cmd("XREADGROUP");
    command.arg(&["GROUP", "foreign", "me", "COUNT", "2", "STREAMS", "events:a-1", ">"]);
    let mut read: Vec<(String, Entries)> = command.query_async(redis).await.unwrap();
    read.remove(0).1
}

#[tokio::test]
async fn a_foreign_group_works_beside() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    append(&app, "a-1", "x", 3).await;
    let group = TestGroup::create(&app, "g", json!({"stream": "a-1"})).await;
    let () = redis::cmd("XGROUP")
        .arg("CREATE")
        .arg("events:a-1")
        .arg("foreign")
        .arg("0")
        .query_async(&mut redis)
        .await
        .unwrap();
    let read = read_foreign(&mut redis).await;
    assert_eq!(read.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["0-1", "0-2"]);
    assert_eq!(read[0].1["type"], "x");
    group.ack(&group.next("limit=10").await).await.expect(200);
    group.post("seek", json!({"to": "beginning"})).await.expect(200);
    let acked: u64 =
        redis::cmd("XACK").arg("events:a-1").arg("foreign").arg("0-1").query_async(&mut redis).await.unwrap();
    assert_eq!(acked, 1);
    assert_eq!(seen(&mut redis, "events:a-1", "foreign").await, ("0-2".into(), 1, 1));
    assert_eq!(seen(&mut redis, "events:a-1", "g").await, ("0-0".into(), 3, 0));
    append(&app, "a-1", "x", 1).await;
    assert_eq!(group.next("limit=10").await.len(), 4);
    app.delete("/groups/g").await.expect(204);
    assert_eq!(seen(&mut redis, "events:a-1", "foreign").await, ("0-2".into(), 2, 1), "it outlives ours");
    let read = read_foreign(&mut redis).await;
    assert_eq!(read.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["0-3", "0-4"]);
}
