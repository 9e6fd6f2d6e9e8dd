//! What a plain Redis client sees of groups, and may do beside them.

use std::{collections::HashMap, time::Duration};

use redis::{Value, aio::MultiplexedConnection};
use serde_json::json;
use streamkeep::{
    model::{GroupName, Partition},
    store::{Keys, Library},
};

use crate::{
    app::TestApp,
    group_model::open,
    groups::{TestGroup, append, names},
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

async fn move_by_hand(redis: &mut MultiplexedConnection, group: &str, id: &str) {
    redis::cmd("XGROUP").arg("SETID").arg("log").arg(group).arg(id).exec_async(redis).await.unwrap();
}

/// An event in each of these streams; their names as deliveries have them.
async fn append_to(app: &TestApp, streams: std::ops::RangeInclusive<usize>) -> Vec<String> {
    let mut names = Vec::new();
    for number in streams {
        append(app, &format!("a-{number}"), "x", 1).await;
        names.push(format!("a-{number}@1"));
    }
    names
}

#[tokio::test]
async fn a_cursor_that_was_moved_by_hand_loses_nothing() {
    for ordering in ["none", "stream"] {
        let app = TestApp::start(1).await;
        let mut redis = app.redis.connection().await;
        let group = TestGroup::create(&app, "g", json!({ "ordering": ordering })).await;
        append_to(&app, 1..=2).await;
        let first = group.next("limit=2").await;
        group.ack(&first[..1]).await.expect(200);
        let wanted = append_to(&app, 3..=8).await;
        move_by_hand(&mut redis, "g", "0-5").await;
        assert_eq!(names(&group.next("limit=10").await), wanted, "{ordering}");
        assert_eq!(seen(&mut redis, "log", "g").await, ("0-8".into(), 0, 7), "{ordering}");
        move_by_hand(&mut redis, "g", "0-0").await;
        assert!(group.next("limit=10").await.is_empty(), "nothing new: {ordering}");
        let wanted = append_to(&app, 91..=95).await;
        assert_eq!(names(&group.next("limit=4").await), wanted[..4], "{ordering}");
        assert_eq!(names(&group.next("limit=10").await), wanted[4..], "{ordering}");
        // The first one was acked, and is not pending again.
        assert_eq!(seen(&mut redis, "log", "g").await, ("0-13".into(), 0, 12), "{ordering}");
    }
}

#[tokio::test]
async fn a_gap_in_the_log_is_passed_over() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    append(&app, "a-1", "x", 8).await;
    let group = TestGroup::create(&app, "g", json!({})).await;
    redis::cmd("XDEL").arg("log").arg("0-4").exec_async(&mut redis).await.unwrap();
    let mut came = Vec::new();
    for query in ["limit=3", "limit=2", "limit=10"] {
        came.extend(group.next(query).await);
    }
    assert_eq!(names(&came), ["a-1@1", "a-1@2", "a-1@3", "a-1@5", "a-1@6", "a-1@7", "a-1@8"]);
    assert_eq!(seen(&mut redis, "log", "g").await, ("0-8".into(), 0, 7));
    group.ack(&came).await.expect(200);
    assert_eq!(seen(&mut redis, "log", "g").await, ("0-8".into(), 0, 0));
}

async fn consumers(redis: &mut MultiplexedConnection) -> Vec<String> {
    let rows: Vec<HashMap<String, Value>> =
        redis::cmd("XINFO").arg("CONSUMERS").arg("log").arg("g").query_async(redis).await.unwrap();
    rows.into_iter().map(|mut row| redis::from_redis_value(row.remove("name").unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn idle_consumers_are_dropped_unless_something_is_in_their_hands() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    append(&app, "a-1", "x", 103).await;
    let group = TestGroup::create(&app, "g", json!({})).await;
    let of_ada = group.next("consumer=ada").await;
    let retried = group.next("consumer=bob").await;
    group.post("nack", json!({"leases": [retried[0].lease], "action": "retry", "delay_ms": 60_000})).await.expect(200);
    for number in 0..101 {
        let taken = group.next(&format!("consumer=c{number}")).await;
        group.ack(&taken).await.expect(200);
    }
    assert_eq!(consumers(&mut redis).await.len(), 103);
    let (store, name) = (open(&app.redis, 1, &Library::default()).await, GroupName::parse("g").unwrap());
    assert_eq!(store.drop_idle_consumers(&name, Duration::from_hours(1)).await.unwrap(), 0, "none is idle for so long");
    assert_eq!(store.drop_idle_consumers(&name, Duration::ZERO).await.unwrap(), 101);
    assert_eq!(consumers(&mut redis).await, ["ada", "bob"]);
    // Whoever was seen idle, and has taken something since, stays too.
    let (library, keys) = (Library::default(), Keys::new("", store.partitions()));
    let mut drop = redis::cmd("FCALL");
    drop.arg(library.function("es_drop_consumers")).arg(12).arg(keys.group(Partition::FIRST, &name, None));
    drop.arg("g").arg("ada").arg("bob").arg("unknown");
    assert_eq!(drop.query_async::<u64>(&mut redis).await.unwrap(), 1, "only the unknown one");
    assert_eq!(consumers(&mut redis).await, ["ada", "bob"]);
    group.ack(&of_ada).await.expect(200);
    assert_eq!(store.drop_idle_consumers(&name, Duration::ZERO).await.unwrap(), 1);
    append(&app, "a-1", "x", 1).await;
    assert_eq!(names(&group.next("consumer=ada").await), ["a-1@104"]);
}
