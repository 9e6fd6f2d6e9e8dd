//! Long polls, and where a read of the log begins and ends.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    app::{Answer, TestApp, eventually},
    feed::{Feed, name},
    feeds::{events, names},
    groups::append,
};

/// A poll in the background: its answer, and when that came.
fn poll(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> tokio::task::JoinHandle<(Answer, Instant)> {
    let request = app.request(Method::GET, path);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    tokio::spawn(async move { (Answer::of(request).await, Instant::now()) })
}

/// How many requests Redis has answered: whoever waits has looked by the time that it stands still.
async fn settled(app: &TestApp) {
    let mut last = 0;
    eventually("all have looked", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let calls = app.redis.calls().await;
        let now = ["xrange", "xlen", "xrevrange"].iter().filter_map(|name| calls.get(*name)).sum();
        now == std::mem::replace(&mut last, now) && now > 0
    })
    .await;
}

test_app! {
    async fn polls_answer_at_once_or_when_something_comes(app) {
        let other = TestApp::start_on(app.redis.clone(), app.store.partitions().count()).await;
        append(&app, "order-1", "x", 2).await;
        let began = Instant::now();
        assert_eq!(events(app.get("/events?wait=20").await).len(), 2);
        assert_eq!(events(app.get("/streams/order-1?wait=20").await).len(), 2);
        assert!(began.elapsed() < Duration::from_secs(5), "what is there is not waited for");
        let next = app.get("/events?after=end").await.json()["next"].as_str().unwrap().to_owned();
        let polls = [
            format!("/events?after={next}&wait=20"),
            format!("/events?after={next}&category=order&type=y&wait=20"),
            "/streams/order-1?from=3&wait=20".to_owned(),
            "/streams/order-9?wait=20".to_owned(),
        ];
        let polls = polls.map(|path| poll(&other, &path, &[]));
        settled(&app).await;
        append(&app, "order-9", "z", 1).await;
        append(&app, "order-1", "y", 1).await;
        let appended = Instant::now();
        let mut got = Vec::new();
        for poll in polls {
            let (answer, at) = poll.await.unwrap();
            assert!(at < appended + Duration::from_secs(5));
            got.push(names(&events(answer)));
        }
        assert_eq!(got[1..], [["order-1@3"], ["order-1@3"], ["order-9@1"]]);
        assert!(got[0].contains(&"order-9@1".to_owned()) || got[0].contains(&"order-1@3".to_owned()), "{got:?}");
    }
}

test_app! {
    async fn a_poll_in_vain_is_an_empty_page(app) {
        append(&app, "order-1", "x", 2).await;
        let began = Instant::now();
        let polls = [
            poll(&app, "/events?after=end&wait=1", &[]),
            poll(&app, "/streams/order-1?from=3&wait=1", &[]),
            poll(&app, "/streams/none-1?wait=1", &[]),
            poll(&app, "/streams/order-1?wait=1", &[("if-none-match", "\"2\"")]),
        ];
        let mut answers = Vec::new();
        for poll in polls {
            let (answer, at) = poll.await.unwrap();
            assert!(at >= began + Duration::from_secs(1));
            answers.push(answer);
        }
        let [log, stream, none, unchanged] = answers.try_into().unwrap();
        assert_eq!(log.expect(200).json()["events"], json!([]));
        let stream = stream.expect(200);
        assert_eq!((stream.header("etag"), &stream.json()["events"]), ("\"2\"", &json!([])));
        let none = none.expect(200);
        assert_eq!(none.json(), json!({"stream": "none-1", "version": 0, "events": [], "next": null}));
        assert_eq!(none.header("etag"), "\"0\"");
        unchanged.expect(304);
        app.get("/streams/none-1").await.expect_problem(404, "stream-not-found");
    }
}

test_app! {
    async fn a_poll_waits_for_another_version(app) {
        append(&app, "order-1", "x", 2).await;
        let unchanged = poll(&app, "/streams/order-1?wait=20", &[("if-none-match", "\"2\"")]);
        settled(&app).await;
        append(&app, "order-2", "x", 1).await;
        assert!(!unchanged.is_finished());
        append(&app, "order-1", "x", 1).await;
        let (answer, _) = unchanged.await.unwrap();
        assert_eq!(answer.header("etag"), "\"3\"");
        assert_eq!(events(answer).len(), 3);
        // A false If-Match is not waited for.
        let (refused, _) = poll(&app, "/streams/order-1?wait=20", &[("if-match", "\"7\"")]).await.unwrap();
        refused.expect_problem(412, "precondition-failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_polls_as_empty() {
    let app = TestApp::start(4).await;
    append(&app, "order-1", "x", 2).await;
    let polls = [poll(&app, "/events?after=end&wait=60", &[]), poll(&app, "/streams/order-1?from=3&wait=60", &[])];
    settled(&app).await;
    app.shutdown.cancel();
    let began = Instant::now();
    for poll in polls {
        assert_eq!(events(poll.await.unwrap().0), Vec::<Value>::new());
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

test_app! {
    async fn the_log_begins_where_it_is_asked_to(app) {
        append(&app, "a-1", "x", 5).await;
        let first = app.get("/streams/a-1/events/5").await.json()["time"].as_str().unwrap().to_owned();
        eventually("the clock moves on", async || {
            append(&app, "a-1", "y", 1).await;
            let newest = events(app.get("/streams/a-1?direction=backward&limit=1").await).remove(0);
            newest["time"] != first.as_str()
        })
        .await;
        append(&app, "b-2", "z", 2).await;
        let all = events(app.get("/events?limit=1000").await);
        let since = all.iter().filter(|event| event["time"].as_str().unwrap() > first.as_str()).cloned();
        let since: Vec<Value> = since.collect();
        let time = since.iter().map(|event| event["time"].as_str().unwrap()).min().unwrap();
        assert_eq!(events(app.get(&format!("/events?limit=1000&from_time={time}")).await), since);
        assert_eq!(events(app.get("/events?from_time=2999-01-01T00:00:00Z").await), Vec::<Value>::new());
        assert_eq!(events(app.get("/events?after=beginning&limit=1000").await), all);
        let mut feed = Feed::open(&app, "/events?after=end", None).await;
        assert_eq!(feed.until_caught_up().await, Vec::<Value>::new());
        append(&app, "c-3", "x", 1).await;
        assert_eq!(name(&feed.event().await), "c-3@1");
        let mut feed = Feed::open(&app, &format!("/events?from_time={time}"), None).await;
        assert_eq!(feed.until_caught_up().await.len(), since.len() + 1);
    }
}

test_app! {
    async fn one_partition_is_read_alone_and_backward(app) {
        let count = app.store.partitions().count();
        for n in 0..60 {
            append(&app, &format!("s-{n}"), "x", 1).await;
        }
        let mut all = 0;
        for partition in 0..count {
            let path = format!("/events?partition={partition}");
            let forward = events(app.get(&format!("{path}&limit=1000")).await);
            let positions: Vec<_> = forward.iter().map(|event| event["position"].as_u64().unwrap()).collect();
            assert_eq!(positions, (1..=positions.len() as u64).collect::<Vec<_>>());
            let (mut backward, mut after) = (Vec::new(), String::new());
            loop {
                let page = app.get(&format!("{path}&direction=backward&limit=7{after}")).await.expect(200).json();
                backward.extend(page["events"].as_array().unwrap().clone());
                after = format!("&after={}", page["next"].as_str().unwrap());
                if page["caught_up"] == true {
                    break;
                }
            }
            backward.reverse();
            assert_eq!(backward, forward);
            let mut feed = Feed::open(&app, &path, None).await;
            assert_eq!(feed.until_caught_up().await, forward);
            let stream = format!("s-{}", (0..60).find(|n| {
                forward.iter().any(|event| event["stream"] == format!("s-{n}"))
            }).unwrap());
            let before = app.get(&format!("{path}&after=end")).await.json()["next"].as_str().unwrap().to_owned();
            append(&app, &stream, "x", 1).await;
            assert_eq!(name(&feed.event().await), format!("{stream}@2"));
            let polled = events(app.get(&format!("{path}&after={before}&wait=5")).await);
            assert_eq!(names(&polled), [format!("{stream}@2")]);
            all += forward.len();
        }
        assert_eq!(all, 60);
        app.get(&format!("/events?partition={count}")).await.expect_problem(400, "invalid-parameter");
        let whole = app.get("/events?direction=backward").await;
        if count > 1 {
            whole.expect_problem(400, "invalid-parameter");
        } else {
            whole.expect(200);
        }
    }
}

test_app! {
    async fn streams_are_listed_as_they_began(app) {
        for n in 0..30 {
            append(&app, &format!("{}-{n}", ["order", "invoice"][n % 2]), "x", 1 + n % 3).await;
        }
        append(&app, "order-0", "x", 1).await;
        let (mut streams, mut after) = (Vec::new(), String::new());
        loop {
            let page = app.get(&format!("/streams?limit=4{after}")).await.expect(200).json();
            streams.extend(page["streams"].as_array().unwrap().clone());
            after = format!("&after={}", page["next"].as_str().unwrap());
            if page["caught_up"] == true {
                break;
            }
        }
        assert_eq!(streams.len(), 30);
        for stream in &streams {
            let id = stream["stream"].as_str().unwrap();
            assert_eq!(app.get(&format!("/streams/{id}")).await.expect(200).json()["version"], stream["version"]);
        }
        append(&app, "order-99", "x", 2).await;
        let later = app.get(&format!("/streams?limit=4{after}")).await.expect(200).json();
        assert_eq!(later["streams"], json!([{"stream": "order-99", "version": 2}]));
        let orders = app.get("/streams?category=order&limit=1000").await.expect(200).json();
        assert_eq!(orders["streams"].as_array().unwrap().len(), 16);
        for bad in ["after=x", "limit=0", "category=a-b", "from=1", "wait=1"] {
            app.get(&format!("/streams?{bad}")).await.expect_problem(400, "invalid-parameter");
        }
    }
}
