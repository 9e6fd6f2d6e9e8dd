//! Calls of Redis that are lost, whose replies are lost, or that arrive after their repeat.

use crate::{
    app::{Answer, TestApp, TestRedis},
    proxy::{Fault, Proxy},
};

const ONE: &str = r#"{"events":[{"type":"placed","data":1}]}"#;
const TWO: &str = r#"{"events":[{"type":"placed","data":1},{"type":"paid","data":2}]}"#;
const WITH_ID: &str = r#"{"events":[{"id":"a","type":"placed","data":1}]}"#;
const KEY: (&str, &str) = ("idempotency-key", "\"key\"");

struct Spoiled {
    app: TestApp,
    proxy: Proxy,
}

impl Spoiled {
    /// A service whose every call of Redis goes through a proxy, and a stream with one event.
    async fn start(partitions: u16) -> Self {
        let redis = TestRedis::start().await;
        let proxy = Proxy::start(&redis).await;
        let address = proxy.address();
        let app = TestApp::start_with(redis, partitions, |config| {
            config.store.address = address.into();
            config.store.writers = 1;
        })
        .await;
        app.append("s-1", ONE).await.expect(201);
        Self { app, proxy }
    }

    async fn expect_version(&self, version: u64) {
        let page = self.app.get("/streams/s-1").await.expect(200).json();
        assert_eq!(page["version"], version);
        assert_eq!(page["events"].as_array().map(Vec::len), usize::try_from(version).ok());
        let log = self.app.get("/events").await.expect(200).json();
        assert_eq!(log["events"].as_array().map(Vec::len), usize::try_from(version).ok());
    }

    async fn append(&self, headers: &[(&str, &str)], body: &str) -> Answer {
        self.app.append_with("s-1", headers, body).await
    }

    /// An append whose call reaches Redis only after the service has repeated it and answered.
    async fn late(&self, headers: &[(&str, &str)], body: &str) -> (Answer, crate::proxy::Late) {
        let late = self.proxy.spoil_next(Fault::RequestLate).await;
        let answer = self.append(headers, body).await;
        (answer, late.await.unwrap())
    }
}

async fn a_lost_call_or_reply_is_repeated(partitions: u16) {
    for fault in [Fault::RequestLost, Fault::ReplyLost] {
        let spoiled = Spoiled::start(partitions).await;
        let mut version = 1;
        for (condition, body) in [
            (("x-none", ""), ONE),
            (("if-match", "\"2\""), TWO),
            (("if-match", "*"), ONE),
            (("if-match", "\"5\""), WITH_ID),
            (("x-none", ""), TWO),
        ] {
            let _lost = spoiled.proxy.spoil_next(fault).await;
            let answer = spoiled.append(&[condition], body).await;
            assert!(answer.status.is_success(), "{fault:?} {condition:?} {answer:?}");
            assert_eq!(answer.json()["first_version"], version + 1);
            version = answer.json()["version"].as_u64().unwrap();
            assert_eq!(answer.json()["position"], version);
            spoiled.expect_version(version).await;
        }
        let _lost = spoiled.proxy.spoil_next(fault).await;
        spoiled.append(&[("if-match", "\"1\"")], ONE).await.expect_problem(409, "version-conflict");
        spoiled.expect_version(version).await;
        let _lost = spoiled.proxy.spoil_next(fault).await;
        spoiled.append(&[KEY], TWO).await;
        spoiled.append(&[KEY], TWO).await.expect(200);
        spoiled.expect_version(version + 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_call_or_reply_is_repeated_on_one_partition() {
    a_lost_call_or_reply_is_repeated(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_call_or_reply_is_repeated_on_four_partitions() {
    a_lost_call_or_reply_is_repeated(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_arrives_after_its_repeat_adds_nothing() {
    let spoiled = Spoiled::start(1).await;
    let mut version = 1;
    let lists: (&str, &str) = ("if-match", "\"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\"");
    for headers in [&[][..], &[("if-match", "*")], &[lists], &[KEY]] {
        let (answer, late) = spoiled.late(headers, TWO).await;
        answer.expect(201);
        version += 2;
        late.arrive().await;
        spoiled.expect_version(version).await;
    }
}

/// A conflict says that nothing is written. A call under way may still find its condition met when it arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_is_told_only_where_the_lost_call_cannot_succeed_any_more() {
    let spoiled = Spoiled::start(1).await;
    for headers in [&[("if-match", "\"2\"")][..], &[("if-match", "\"0\", \"3\"")], &[("if-match", "\"4\""), KEY]] {
        let (answer, late) = spoiled.late(headers, ONE).await;
        answer.expect_problem(504, "outcome-unknown");
        drop(late);
    }
    let (answer, _late) = spoiled.late(&[("if-match", "\"0\"")], ONE).await;
    answer.expect_problem(409, "version-conflict");
    let (answer, _late) = spoiled.late(&[("if-none-match", "*")], ONE).await;
    answer.expect_problem(409, "version-conflict");
    let _late = spoiled.proxy.spoil_next(Fault::RequestLate).await;
    let answer = spoiled.app.append_with("s-new", &[("if-match", "*")], ONE).await;
    answer.expect_problem(504, "outcome-unknown");
    spoiled.expect_version(1).await;
}

/// That the functions are gone says nothing of the lost call either; they are loaded, and the repeat settles it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_settled_though_the_functions_are_gone() {
    let spoiled = Spoiled::start(1).await;
    let mut redis = spoiled.app.redis.connection().await;
    let late = spoiled.proxy.spoil_next(Fault::RequestLate).await;
    let flush = async {
        let late = late.await.unwrap();
        redis::cmd("FUNCTION").arg("FLUSH").exec_async(&mut redis).await.unwrap();
        late
    };
    let (answer, late) = tokio::join!(spoiled.append(&[], ONE), flush);
    answer.expect(201);
    late.arrive().await;
    spoiled.expect_version(2).await;
}

/// A repeat looks back over 1,000 events at most, and says so. Where the condition names versions it need not look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_settled_however_busy_the_stream() {
    let spoiled = Spoiled::start(1).await;
    let other = TestApp::start_on(spoiled.app.redis.clone(), 1).await;
    let many = format!(r#"{{"events":[{}]}}"#, vec![r#"{"type":"many","data":0}"#; 1_000].join(","));
    for (headers, status, version) in [
        (&[("if-match", "\"0\", \"1\"")][..], 201, 2),
        (&[("if-match", "\"1002\"")], 201, 1003),
        (&[("if-match", "*")], 504, 2004),
    ] {
        let held = spoiled.proxy.spoil_next(Fault::ReplyHeld).await;
        let overtake = async {
            let held = held.await.unwrap();
            other.append("s-1", &many).await.expect(201);
            drop(held);
        };
        let (answer, ()) = tokio::join!(spoiled.append(headers, ONE), overtake);
        let answer = answer.expect(status);
        if status == 201 {
            assert_eq!(answer.json()["version"], version);
        }
        let event = spoiled.app.get(&format!("/streams/s-1/events/{version}")).await.expect(200).json();
        assert_eq!((&event["type"], &event["position"]), (&"placed".into(), &version.into()));
        assert_eq!(spoiled.app.head("/streams/s-1").await.header("etag"), format!("\"{}\"", version + 1_000));
    }
}

/// Redis puts ERR before an error of one word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_to_a_tombstoned_stream_is_told_so() {
    let app = TestApp::start(1).await;
    let mut redis = app.redis.connection().await;
    let mut tombstone = redis::pipe();
    tombstone.cmd("XADD").arg("events:gone").arg("0-7").arg("any").arg("thing");
    tombstone.cmd("XTRIM").arg("events:gone").arg("MAXLEN").arg(0);
    tombstone.cmd("HSET").arg("stream:gone").arg("tombstone").arg(1);
    tombstone.exec_async(&mut redis).await.unwrap();
    app.append("gone", ONE).await.expect_problem(410, "stream-deleted");
}
