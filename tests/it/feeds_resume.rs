//! Feeds under load, broken off and resumed, over restarts of Redis, and over another history.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    app::{Answer, TestApp, TestRedis, eventually},
    feed::{Feed, name},
    groups::append,
};

/// Writers that append to 20 streams, `each` events each; Redis may be away meanwhile.
fn writers(app: &TestApp, count: usize, each: usize) -> JoinSet<()> {
    let next = Arc::new(AtomicUsize::new(0));
    (0..count)
        .map(|_| {
            let (client, url, next) = (app.client.clone(), app.url.clone(), Arc::clone(&next));
            async move {
                for _ in 0..each {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let id = format!("e{number}");
                    let body = json!({"events": [{"id": id, "type": "t", "data": number}]}).to_string();
                    let path = format!("{url}/streams/s-{}/events", number % 20);
                    let mut appended = false;
                    // Redis is away for a moment now and then; an id makes that harmless.
                    for _ in 0..100 {
                        let request = client.post(&path).header("content-type", "application/json");
                        let answer = request.body(body.clone()).send().await;
                        appended = answer.is_ok_and(|answer| answer.status().is_success());
                        if appended {
                            break;
                        }
                    }
                    assert!(appended);
                }
            }
        })
        .collect()
}

/// That these are the events of the writers, each once, in the order of their streams and partitions.
fn check(app: &TestApp, events: &[Value], count: usize) {
    let mut numbers: Vec<_> = events.iter().map(|event| event["data"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..count as u64).collect::<Vec<_>>(), "every event exactly once");
    let (mut versions, mut positions) = (HashMap::new(), HashMap::new());
    for event in events {
        let stream = event["stream"].as_str().unwrap();
        let version = versions.entry(stream).or_insert(0);
        *version += 1;
        assert_eq!(event["version"], *version, "{stream}");
        let id = streamkeep::model::StreamId::parse(stream).unwrap();
        let position = positions.entry(app.store.partition(&id)).or_insert(0);
        *position += 1;
        assert_eq!(event["position"], *position, "the log of a partition");
    }
}

/// Follows until it has seen so many events, and comes back whenever the feed ends or breaks, or `leave` says so.
async fn follow(app: &TestApp, path: &str, count: usize, mut leave: impl FnMut() -> bool) -> Vec<Value> {
    let (mut events, mut last): (Vec<Value>, Option<String>) = (Vec::new(), None);
    while events.len() < count {
        let url = format!("{}{path}", app.url);
        let mut opened = None;
        eventually("the feed opens", async || {
            opened = Feed::open_at(&app.client, &url, last.as_deref()).await.ok();
            opened.is_some()
        })
        .await;
        let mut feed = opened.unwrap();
        while events.len() < count {
            let Ok(Some(block)) = feed.try_block().await else { break };
            events.extend(block.message());
            if !feed.last_id.is_empty() {
                last = Some(feed.last_id.clone());
            }
            if leave() {
                break;
            }
        }
    }
    events
}

test_app! {
    async fn fifty_writers_are_followed_without_loss_or_repeat(app) {
        let other = TestApp::start_on(app.redis.clone(), app.store.partitions().count()).await;
        let load = writers(&app, 50, 40);
        let (mut rng, seed) = (fastrand::Rng::new(), fastrand::u64(..));
        rng.seed(seed);
        println!("seed {seed}");
        let (steady, restless, stream) = tokio::join!(
            follow(&other, "/events", 2_000, || false),
            // Leaves at random moments and comes back with the last id.
            follow(&app, "/events", 2_000, || rng.u32(..40) == 0),
            follow(&other, "/streams/s-7", 100, || false),
        );
        load.join_all().await;
        check(&app, &steady, 2_000);
        check(&app, &restless, 2_000);
        let versions: Vec<_> = stream.iter().map(|event| event["version"].as_u64().unwrap()).collect();
        assert_eq!(versions, (1..=100).collect::<Vec<u64>>());
    }
}

test_app! {
    async fn redis_dies_under_feeds_and_nothing_is_lost_or_repeated(app) {
        let (count, url) = (1_000, format!("{}/events", app.url));
        let load = writers(&app, 10, count / 10);
        // Feeds stay open while Redis is away.
        let mut feed = Feed::open_at(&app.client, &url, None).await.unwrap();
        let mut stream = Feed::open(&app, "/streams/s-3", None).await;
        let mut events = Vec::new();
        for round in 1..=4 {
            while events.len() < round * count / 5 {
                events.push(feed.event().await);
            }
            let killed = app.redis.server.pid();
            app.redis.signal("KILL");
            // What is on its way already may be enough for the next round.
            eventually("Redis runs again", async || app.redis.server.pid().is_some_and(|pid| Some(pid) != killed)).await;
        }
        events.extend(feed.events(count - events.len()).await);
        load.join_all().await;
        check(&app, &events, count);
        let versions: Vec<_> = stream.events(count / 20).await.iter().map(|event| event["version"].as_u64().unwrap()).collect();
        assert_eq!(versions, (1..=count as u64 / 20).collect::<Vec<_>>());
        append(&app, "s-3", "last", 1).await;
        assert_eq!((name(&feed.event().await), name(&stream.event().await)), ("s-3@51".into(), "s-3@51".into()));
    }
}

/// Opens a feed that is to be refused.
async fn refused(app: &TestApp, path: &str, last: &str) -> Answer {
    let request = app.request(Method::GET, path).header("accept", "text/event-stream").header("last-event-id", last);
    Answer::of(request).await
}

test_app! {
    async fn a_feed_of_another_history_is_refused(app) {
        append(&app, "s-1", "x", 20).await;
        let (mut log, mut stream) = (Feed::open(&app, "/events", None).await, Feed::open(&app, "/streams/s-1", None).await);
        log.until_caught_up().await;
        stream.until_caught_up().await;
        let (log_id, stream_id) = (log.last_id.clone(), stream.last_id.clone());
        assert!(Feed::open(&app, "/events", Some(&log_id)).await.until_caught_up().await.is_empty());
        assert!(Feed::open(&app, "/streams/s-1", Some(&stream_id)).await.until_caught_up().await.is_empty());
        drop((log, stream));
        let mut redis = app.redis.connection().await;
        redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
        // Ahead of the log; then as many events again, but others.
        for count in [0, 10, 10] {
            if count > 0 {
                append(&app, "s-1", "x", count).await;
            }
            let problem = refused(&app, "/events", &log_id).await.expect_problem(409, "history-diverged");
            assert!(problem.json()["head"].is_u64());
            let problem = refused(&app, "/streams/s-1", &stream_id).await.expect_problem(409, "history-diverged");
            assert!(problem.json()["head"].is_u64());
            app.get(&format!("/events?after={log_id}&wait=1")).await.expect_problem(409, "history-diverged");
        }
    }
}

/// Reads on until the feed says why it ends.
async fn end(feed: &mut Feed) -> Value {
    let mut last = None;
    while let Some(block) = feed.block().await {
        assert!(block.message().is_none(), "an event of another history: {block:?}");
        last = Some(block);
    }
    let last = last.expect("it says why");
    assert_eq!(last.event.as_deref(), Some("problem"), "{last:?}");
    serde_json::from_str(&last.data.unwrap()).unwrap()
}

test_app! {
    async fn an_open_feed_ends_when_history_diverges(app) {
        // Fewer events than before, as many, and more.
        for count in [2_usize, 20, 40] {
            append(&app, "s-1", "x", 20).await;
            let mut feeds = Vec::new();
            for path in ["/events", "/streams/s-1"] {
                let mut feed = Feed::open(&app, path, None).await;
                feed.until_caught_up().await;
                append(&app, "s-1", "x", 1).await;
                feed.event().await;
                feeds.push(feed);
            }
            feeds[0].event().await;
            let mut redis = app.redis.connection().await;
            redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
            append(&app, "s-1", "y", count).await;
            for feed in &mut feeds {
                let problem = end(feed).await;
                assert_eq!((&problem["code"], &problem["status"]), (&json!("history-diverged"), &json!(409)));
                assert!(problem["head"].is_u64());
            }
            redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
        }
    }
}

/// What was read from one partition is not lost where another cannot be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_cannot_be_read_costs_no_event_of_others() {
    let app = TestApp::start(4).await;
    for n in 0..40 {
        append(&app, &format!("s-{n}"), "x", 1).await;
    }
    let mut redis = app.redis.connection().await;
    let lost: u64 = redis::cmd("XLEN").arg("{2}:log").query_async(&mut redis).await.unwrap();
    redis::cmd("SET").arg("{2}:log").arg("none of ours").exec_async(&mut redis).await.unwrap();
    let mut feed = Feed::open(&app, "/events", None).await;
    let (mut events, mut problem) = (0, None);
    while let Some(block) = feed.block().await {
        events += u64::from(block.message().is_some());
        problem = block.event.or(problem);
    }
    // The partitions take turns: those before the broken one were read.
    assert_eq!(problem.as_deref(), Some("problem"));
    let mut read = 0;
    for partition in 0..2 {
        let key = format!("{{{partition}}}:log");
        read += redis::cmd("XLEN").arg(key).query_async::<u64>(&mut redis).await.unwrap();
    }
    assert!(lost > 0 && read > 0);
    assert_eq!(events, read);
}

test_app! {
    async fn removed_events_are_passed_over(app) {
        append(&app, "s-1", "x", 10).await;
        append(&app, "s-2", "x", 1).await;
        let mut log = Feed::open(&app, "/events", None).await;
        log.until_caught_up().await;
        let last = log.last_id.clone();
        let mut redis = app.redis.connection().await;
        let key: Vec<String> = redis::cmd("KEYS").arg("*events:s-1").query_async(&mut redis).await.unwrap();
        redis::cmd("XTRIM").arg(&key[0]).arg("MINID").arg("0-6").exec_async(&mut redis).await.unwrap();
        let mut again = Feed::open(&app, "/events", Some(&last)).await;
        assert_eq!(again.until_caught_up().await.len(), 0);
        assert_eq!(Feed::open(&app, "/events", None).await.until_caught_up().await.len(), 6);
        let mut stream = Feed::open(&app, "/streams/s-1", None).await;
        assert_eq!(stream.until_caught_up().await.len(), 5);
        append(&app, "s-1", "x", 1).await;
        assert_eq!(name(&stream.event().await), "s-1@11");
    }
}

/// Events are fetched once for all who follow, and followers of one stream are not troubled by others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_followers_cost_redis_what_one_does() {
    let app = TestApp::start(1).await;
    append(&app, "s-1", "x", 1).await;
    let mut cost = Vec::new();
    let mut feeds: Vec<Feed> = Vec::new();
    for followers in [2, 200] {
        while feeds.len() < followers {
            let path = if feeds.len().is_multiple_of(2) { "/events?after=end" } else { "/streams/s-1?from=100000" };
            let mut feed = Feed::open(&app, path, None).await;
            feed.until_caught_up().await;
            feeds.push(feed);
        }
        let clients = app.redis.clients().await;
        let before = app.redis.calls_of("xrange").await;
        for _ in 0..50 {
            append(&app, "s-1", "x", 1).await;
        }
        for feed in feeds.iter_mut().step_by(2) {
            feed.events(50).await;
        }
        cost.push((app.redis.calls_of("xrange").await - before, clients));
    }
    println!("XRANGE for 50 appends, and connections: {cost:?}");
    assert!(cost[1].0 <= cost[0].0 + 50, "{cost:?}");
    assert!(cost[1].1 <= cost[0].1 + 4, "{cost:?}");
}

/// A client that reads nothing is let go, with a line in the log; others do not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_reads_nothing_is_closed() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| {
        config.server.idle_timeout = std::time::Duration::from_secs(1);
        config.limits.waiting = 2;
    })
    .await;
    let mut busy = Feed::open(&app, "/events", None).await;
    let idle = Feed::open(&app, "/events", None).await;
    assert!(Feed::open_at(&app.client, &format!("{}/events", app.url), None).await.is_err());
    let data = "x".repeat(500_000);
    let body = json!({"events": [{"type": "large", "data": data}]}).to_string();
    let mut versions = 0;
    eventually("there is room for another", async || {
        app.append("s-1", &body).await.expect(201);
        versions += 1;
        assert_eq!(busy.event().await["version"], versions);
        // A poll, for a feed would stay.
        app.get("/streams/none-1?wait=1").await.status != 503
    })
    .await;
    drop(idle);
}

/// Whoever falls out of what is kept of the newest events reads pages again, misses nothing, and is told when it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_follower_falls_behind_and_catches_up() {
    const BATCHES: usize = 40;
    let app = TestApp::start(1).await;
    let mut feeds = [Feed::open(&app, "/events", None).await, Feed::open(&app, "/streams/s-1", None).await];
    for feed in &mut feeds {
        assert_eq!(feed.until_caught_up().await.len(), 0);
    }
    let events: Vec<_> = (0..250).map(|_| json!({"type": "t", "data": "x".repeat(6_000)})).collect();
    let body = json!({"events": events}).to_string();
    for _ in 0..BATCHES {
        app.append("s-1", &body).await.expect(201);
    }
    for feed in &mut feeds {
        let mut versions = Vec::new();
        // It may fall behind more than once; the last time that it has caught up it has all.
        while versions.len() < 250 * BATCHES {
            versions.extend(feed.until_caught_up().await.iter().map(|event| event["version"].as_u64().unwrap()));
        }
        assert!(versions.iter().copied().eq(1..=250 * BATCHES as u64), "every version once, in order");
    }
    append(&app, "s-1", "x", 1).await;
    for feed in &mut feeds {
        assert_eq!(feed.event().await["version"], 250 * BATCHES + 1);
    }
}
