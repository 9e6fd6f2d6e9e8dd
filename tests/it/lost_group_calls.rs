//! Calls of groups' functions that are lost, or whose replies are: the state afterwards is that of one call.

use serde_json::{Value, json};

use crate::{
    app::{Answer, TestApp, TestRedis, eventually},
    groups::{TestGroup, append, leases, names},
    proxy::{Fault, Proxy},
};

struct Spoiled {
    app: TestApp,
    proxy: Proxy,
}

impl Spoiled {
    /// A service whose every call of Redis goes through a proxy, a stream with events, and a group of it.
    async fn start(events: usize, settings: Value) -> Self {
        let redis = TestRedis::start().await;
        let proxy = Proxy::start(&redis).await;
        let address = proxy.address();
        let app = TestApp::start_with(redis, 1, |config| config.store.address = address.into()).await;
        append(&app, "order-1", "placed", events).await;
        TestGroup::create(&app, "g", settings).await;
        Self { app, proxy }
    }

    fn group(&self) -> TestGroup<'_> {
        TestGroup::at(&self.app, "g")
    }

    /// Does something of which the call of `function` is spoiled.
    async fn spoil<T>(&self, function: &'static str, fault: Fault, what: impl Future<Output = T>) -> T {
        let lost = self.proxy.spoil(function, fault).await;
        let done = what.await;
        assert!(lost.await.is_err(), "{function} was called, and lost");
        done
    }

    /// In flight, waiting, held, parked, lag.
    async fn state(&self) -> Vec<u64> {
        self.group().numbers(&["in_flight", "waiting", "held", "parked", "lag"]).await
    }
}

const FAULTS: [Fault; 2] = [Fault::RequestLost, Fault::ReplyLost];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_handed_out_in_a_lost_reply_comes_again_with_its_lease() {
    for ordering in ["none", "stream"] {
        for fault in FAULTS {
            let spoiled = Spoiled::start(3, json!({"ordering": ordering, "lease_ms": 1000})).await;
            let group = spoiled.group();
            let mut taken = names(&spoiled.spoil("es_next", fault, group.next("limit=1")).await);
            while taken.len() < 3 {
                let more = group.next("limit=1&wait=5").await;
                taken.extend(names(&more));
                group.ack(&more).await;
            }
            taken.sort();
            taken.dedup();
            eventually("nothing is lost", async || {
                let more = group.next("limit=3").await;
                if !more.is_empty() {
                    group.ack(&more).await;
                }
                spoiled.state().await == [0, 0, 0, 0, 0]
            })
            .await;
        }
    }
}

/// What is asked of a group in hand, its function, and the state that it leaves.
const SETTLES: &[(&str, &str, &str, [u64; 5])] = &[
    ("ack", "es_ack", "", [1, 0, 0, 0, 0]),
    ("nack", "es_nack", "skip", [1, 0, 0, 0, 0]),
    ("nack", "es_nack", "retry", [1, 1, 0, 0, 0]),
    ("nack", "es_nack", "park", [1, 0, 0, 1, 0]),
    ("extend", "es_extend", "", [2, 0, 0, 0, 0]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_settlement_is_made_once() {
    for (what, function, action, state) in SETTLES {
        for fault in FAULTS {
            let spoiled = Spoiled::start(2, json!({"backoff_ms": [3_600_000]})).await;
            let group = spoiled.group();
            let taken = group.next("limit=2").await;
            let mut body = json!({ "leases": leases(&taken[..1]) });
            if !action.is_empty() {
                body["action"] = (*action).into();
            }
            let answer: Answer = spoiled.spoil(function, fault, group.post(what, body.clone())).await;
            assert_eq!(spoiled.state().await, state, "{what} {action} {fault:?}");
            let answer = answer.expect(200).json();
            assert_eq!(answer["lost"], json!([]), "{what} {action} {fault:?}: {answer}");
            // Asked once more by the client, it is done already; an extend just begins anew.
            let again = group.post(what, body).await.expect(200).json();
            let expected = u64::from(*what != "extend");
            assert_eq!(again["already"], expected, "{what} {action} {again}");
            assert_eq!(spoiled.state().await, state, "{what} {action} {fault:?}");
            // The other one is settled as ever.
            group.ack(&taken[1..]).await.expect(200);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_replay_or_drop_is_made_once() {
    for fault in FAULTS {
        let spoiled = Spoiled::start(2, json!({"ordering": "stream", "on_exhausted": "park_stream"})).await;
        let group = spoiled.group();
        let taken = group.next("limit=1").await;
        group.nack(&taken, "park").await.expect(200);
        assert!(group.next("limit=2").await.is_empty(), "the stream stands behind its parked event");
        assert_eq!(spoiled.state().await, [0, 0, 1, 1, 0]);
        spoiled.spoil("es_replay", fault, group.post("parked/replay", json!({}))).await.expect(200);
        assert_eq!(names(&group.next("limit=2").await), ["order-1@1"]);
        assert_eq!(spoiled.state().await, [1, 0, 1, 0, 0]);

        let spoiled = Spoiled::start(2, json!({"ordering": "stream", "on_exhausted": "park_stream"})).await;
        let group = spoiled.group();
        group.nack(&group.next("limit=1").await, "park").await.expect(200);
        assert!(group.next("limit=2").await.is_empty());
        let drop = spoiled.app.delete("/groups/g/parked");
        assert!(spoiled.spoil("es_replay", fault, drop).await.status.is_success());
        assert_eq!(spoiled.group().one().await.name(), "order-1@2");
        assert_eq!(spoiled.state().await, [1, 0, 0, 0, 0]);
    }
}

/// Every key of a group in Redis, for there must be none of one that is deleted.
async fn keys(app: &TestApp) -> Vec<String> {
    let mut redis = app.redis.connection().await;
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*group*").query_async(&mut redis).await.unwrap();
    let groups: Vec<redis::Value> = redis::cmd("XINFO").arg("GROUPS").arg("log").query_async(&mut redis).await.unwrap();
    keys.extend(groups.iter().map(|group| format!("{group:?}")));
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_change_of_a_group_is_made_once() {
    for function in ["es_register_group", "es_put_group"] {
        for fault in FAULTS {
            let spoiled = Spoiled::start(3, json!({})).await;
            let (app, group) = (&spoiled.app, spoiled.group());
            let settings = r#"{"lease_ms":5000}"#;
            spoiled.spoil(function, fault, app.put("/groups/new", settings)).await.expect(201);
            spoiled.spoil(function, fault, app.put("/groups/new", settings)).await.expect(200);
            assert_eq!(TestGroup::at(app, "new").next("limit=9").await.len(), 3);

            group.ack(&group.next("limit=2").await).await.expect(200);
            spoiled.spoil(function, fault, group.post("pause", json!({}))).await.expect(200);
            assert!(group.next("limit=9").await.is_empty());
            spoiled.spoil(function, fault, group.post("resume", json!({}))).await.expect(200);
            assert_eq!(group.next("limit=9").await.len(), 1);
            spoiled.spoil(function, fault, group.post("seek", json!({"to": "beginning"}))).await.expect(200);
            assert_eq!(spoiled.state().await, [0, 0, 0, 0, 3]);
            assert_eq!(group.next("limit=9").await.len(), 3);
        }
    }
    for function in ["es_register_group", "es_delete_group"] {
        for fault in FAULTS {
            let spoiled = Spoiled::start(3, json!({"ordering": "stream"})).await;
            spoiled.group().next("limit=1").await;
            spoiled.spoil(function, fault, spoiled.app.delete("/groups/g")).await.expect(204);
            spoiled.app.get("/groups/g").await.expect_problem(404, "group-not-found");
            let left = keys(&spoiled.app).await;
            assert!(left.iter().all(|key| key == "groups"), "{function} {fault:?}: {left:?}");
        }
    }
}

/// Deliveries that are used up park by themselves, and consumers that are gone are dropped, whatever reply is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_service_does_by_itself_is_done_once() {
    for function in ["es_nack", "es_expire"] {
        let spoiled = Spoiled::start(2, json!({"max_deliveries": 1, "lease_ms": 1000, "ordering": "stream"})).await;
        let group = spoiled.group();
        group.next("limit=1").await;
        let lost = spoiled.proxy.spoil(function, Fault::ReplyLost).await;
        eventually("it is parked", async || {
            group.next("limit=1").await;
            let status = group.status().await;
            status["parked"].as_u64().unwrap() >= 1
        })
        .await;
        drop(lost);
        eventually("all are parked in the end", async || {
            group.next("limit=1").await;
            spoiled.state().await == [0, 0, 0, 2, 0]
        })
        .await;
    }
    let spoiled = Spoiled::start(1, json!({})).await;
    let group = spoiled.group();
    group.ack(&group.next("consumer=gone").await).await.expect(200);
    let (store, name) = (&spoiled.app.store, streamkeep::model::GroupName::parse("g").unwrap());
    let dropped = spoiled.spoil(
        "es_drop_consumers",
        Fault::ReplyLost,
        store.drop_idle_consumers(&name, std::time::Duration::ZERO),
    );
    dropped.await.unwrap();
    assert_eq!(group.numbers(&["in_flight", "lag"]).await, [0, 0]);
    assert_eq!(group.status().await["consumers"], json!([]));
}
