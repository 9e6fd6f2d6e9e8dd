//! How soon those are woken who wait at another instance: 1,000 times each kind of wake-up, beside a plain client that
//! waits for the same in Redis. What that one needs, machine and disk take, and no service.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::{Value, json};
use streamkeep::store::Keys;
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    app::{Answer, TestApp},
    groups::{Taken, TestGroup, append},
};

/// Repeats of each wake-up.
const REPEATS: usize = 1_000;
/// What a wake-up may take, beside what it takes without us.
const PROMPT: Duration = Duration::from_millis(50);
const DELAY: Duration = Duration::from_millis(200);

/// Times of the service, and of the plain client.
#[derive(Default)]
struct Times {
    ours: Vec<Duration>,
    raw: Vec<Duration>,
}

impl Times {
    /// Percentiles of ours and of the plain client's.
    fn of(&mut self, percent: usize) -> [Duration; 2] {
        [&mut self.ours, &mut self.raw].map(|times| {
            times.sort_unstable();
            times[times.len() * percent / 100]
        })
    }

    /// That ours are prompt: the median as it stands, the 99th percentile but for what the machine takes, which the plain
    /// client feels once, and a wake-up by way of a reader and of HTTP twice.
    fn expect_prompt(&mut self, what: &str, after: Duration) {
        let ([middle, raw_middle], [p99, raw_p99]) = (self.of(50), self.of(99));
        println!("{what}, {} times: median {middle:?}, p99 {p99:?}; raw {raw_middle:?}, {raw_p99:?}", self.ours.len());
        assert!(middle < after + PROMPT, "{what}: {middle:?}");
        assert!(p99 < 2 * raw_p99 + PROMPT, "{what}: {p99:?}, raw {raw_p99:?}");
    }
}

/// Somebody who waits at another instance, and beside him a plain client.
struct Wait {
    other: TestApp,
    next: String,
    keys: Vec<String>,
    /// Of one who looks at Redis, and of the plain client.
    plain: [MultiplexedConnection; 2],
    /// How many are blocked in Redis while they wait: a reader for each partition, and the plain client.
    blocked: u64,
}

impl Wait {
    async fn start(app: &TestApp, group: &str) -> Self {
        let partitions = app.store.partitions();
        let keys = Keys::new("", partitions);
        Self {
            other: TestApp::start_on(app.redis.clone(), partitions.count()).await,
            next: format!("/groups/{group}/next?wait=20"),
            keys: partitions.all().flat_map(|partition| [keys.log(partition), keys.wake(partition)]).collect(),
            plain: [app.redis.connection().await, app.redis.connection().await],
            blocked: u64::from(partitions.count()) + 1,
        }
    }

    /// How many clients are blocked in Redis, and how many functions have been called.
    async fn seen(&mut self) -> [u64; 2] {
        let mut info = redis::cmd("INFO");
        let text: String = info.arg("clients").arg("commandstats").query_async(&mut self.plain[0]).await.unwrap();
        let number = |name: &str| {
            let digits = text.split(name).nth(1).unwrap_or("0").split(|c: char| !c.is_ascii_digit()).next().unwrap();
            digits.parse().unwrap()
        };
        [number("\nblocked_clients:"), number("cmdstat_fcall:calls=")]
    }

    /// Begins to wait, and returns once both are asleep.
    async fn begin(&mut self) -> [JoinHandle<(Instant, Option<Answer>)>; 2] {
        let [_, before] = self.seen().await;
        let request = self.other.request(Method::GET, &self.next);
        let ours = tokio::spawn(async move {
            let answer = Answer::of(request).await;
            (Instant::now(), Some(answer))
        });
        let (mut plain, keys) = (self.plain[1].clone(), self.keys.clone());
        let raw = tokio::spawn(async move {
            let mut command = redis::cmd("XREAD");
            command.arg("BLOCK").arg(20_000).arg("STREAMS").arg(&keys).arg(vec!["$"; keys.len()]);
            let entries: redis::Value = command.query_async(&mut plain).await.unwrap();
            assert_ne!(entries, redis::Value::Nil, "nothing came");
            (Instant::now(), None)
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let [blocked, calls] = self.seen().await;
            if blocked == self.blocked && calls > before {
                return [ours, raw];
            }
            assert!(Instant::now() < deadline, "{blocked} are blocked, and {} calls were made", calls - before);
        }
    }

    /// Wakes the one who waits, again and again, each time by what he got last.
    async fn measure(
        mut self,
        what: &str,
        first: Option<Taken>,
        mut before: impl AsyncFnMut(Option<&Taken>),
        mut wake: impl AsyncFnMut(Option<Taken>),
    ) {
        let (mut times, mut last) = (Times::default(), first);
        for _ in 0..REPEATS {
            before(last.as_ref()).await;
            let [ours, raw] = self.begin().await;
            let began = Instant::now();
            wake(last.take()).await;
            let (ours, raw) = tokio::join!(ours, raw);
            let ((at, answer), (raw_at, _)) = (ours.unwrap(), raw.unwrap());
            times.ours.push(at - began);
            times.raw.push(raw_at - began);
            let mut came = taken(answer.unwrap());
            assert_eq!(came.len(), 1, "{what}");
            last = came.pop();
        }
        times.expect_prompt(what, Duration::ZERO);
    }
}

fn taken(answer: Answer) -> Vec<Taken> {
    answer.expect(200).json()["deliveries"].as_array().unwrap().iter().map(Taken::of).collect()
}

async fn nothing(_: Option<&Taken>) {}

/// A group that hands out again and again.
fn patient() -> Value {
    json!({"max_deliveries": 1_000_000, "lease_ms": 3_600_000})
}

test_app! {
    async fn an_append_wakes_at_once(app) {
        let group = TestGroup::create(&app, "g", patient()).await;
        let wait = Wait::start(&app, "g").await;
        wait.measure("append", None, nothing, async |last| {
            append(&app, "a-1", "x", 1).await;
            if let Some(last) = last {
                group.ack(&[last]).await.expect(200);
            }
        })
        .await;
    }
}

test_app! {
    async fn a_nack_without_delay_wakes_at_once(app) {
        append(&app, "a-1", "x", 1).await;
        let group = TestGroup::create(&app, "g", patient()).await;
        let (first, wait) = (group.one().await, Wait::start(&app, "g").await);
        wait.measure("nack", Some(first), nothing, async |last| {
            let body = json!({"leases": [last.unwrap().lease], "action": "retry", "delay_ms": 0});
            group.post("nack", body).await.expect(200);
        })
        .await;
    }
}

test_app! {
    async fn an_ordered_release_wakes_at_once(app) {
        append(&app, "a-1", "x", 1_000).await;
        append(&app, "a-1", "x", 1).await;
        let group = TestGroup::create(&app, "g", json!({"ordering": "stream", "lease_ms": 3_600_000})).await;
        let (first, wait) = (group.one().await, Wait::start(&app, "g").await);
        wait.measure("ordered release", Some(first), nothing, async |last| {
            group.ack(&[last.unwrap()]).await.expect(200);
        })
        .await;
    }
}

test_app! {
    async fn a_replay_wakes_at_once(app) {
        append(&app, "a-1", "x", 1).await;
        let group = TestGroup::create(&app, "g", patient()).await;
        let (first, wait) = (group.one().await, Wait::start(&app, "g").await);
        let park = async |last: Option<&Taken>| drop(group.nack(std::slice::from_ref(last.unwrap()), "park").await.expect(200));
        let replay = async |_| drop(group.post("parked/replay", json!({})).await.expect(200));
        wait.measure("replay", Some(first), park, replay).await;
    }
}

test_app! {
    async fn a_resume_wakes_at_once(app) {
        append(&app, "a-1", "x", 1_000).await;
        let group = TestGroup::create(&app, "g", patient()).await;
        let wait = Wait::start(&app, "g").await;
        let pause = async |_: Option<&Taken>| drop(group.post("pause", json!({})).await.expect(200));
        let resume = async |_| drop(group.post("resume", json!({})).await.expect(200));
        wait.measure("resume", None, pause, resume).await;
    }
}

test_app! {
    async fn a_retry_comes_when_it_is_due(app) {
        let (app, mut groups) = (Arc::new(app), JoinSet::new());
        for number in 0..5 {
            groups.spawn(retry(app.clone(), number));
        }
        let mut times = Times::default();
        for of in groups.join_all().await {
            times.ours.extend(of.ours);
            times.raw.extend(of.raw);
        }
        let first = times.of(0)[0];
        assert!(first + Duration::from_millis(1) > DELAY, "{first:?}; Redis counts in ms");
        // 200 to 260 ms.
        times.expect_prompt("a retry after 200 ms", DELAY + Duration::from_millis(10));
    }
}

/// Gives an event back for a while, again and again; beside that, a plain client sleeps and then speaks to Redis.
async fn retry(app: Arc<TestApp>, number: usize) -> Times {
    let (name, stream) = (format!("g-{number}"), format!("a-{number}"));
    append(&app, &stream, "x", 1).await;
    let group = TestGroup::create(&app, &name, json!({"stream": stream, "max_deliveries": 1_000})).await;
    let other = TestApp::start_on(app.redis.clone(), app.store.partitions().count()).await;
    let (there, mut plain) = (TestGroup::at(&other, &name), app.redis.connection().await);
    let (mut times, mut held) = (Times::default(), group.one().await);
    for _ in 0..10 {
        let began = Instant::now();
        let ours = async {
            let body = json!({"leases": [held.lease], "action": "retry", "delay_ms": DELAY.as_millis()});
            let (_, came) = tokio::join!(group.post("nack", body), there.next("wait=20"));
            (began.elapsed(), came)
        };
        let raw = async {
            tokio::time::sleep(DELAY).await;
            redis::cmd("PING").exec_async(&mut plain).await.unwrap();
            began.elapsed()
        };
        let ((ours, mut came), raw) = tokio::join!(ours, raw);
        times.ours.push(ours);
        times.raw.push(raw);
        held = came.remove(0);
    }
    times
}
