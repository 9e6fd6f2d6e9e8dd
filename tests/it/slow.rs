//! Clients that are slow on purpose, and many of them.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    app::{TestApp, TestRedis, eventually},
    feed::Feed,
    input::Input,
};

const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";

/// Asks `/livez` on a connection that is kept.
async fn is_alive(connection: &mut TcpStream) {
    connection.write_all(LIVEZ).await.unwrap();
    let mut answer = [0; 1024];
    let read = connection.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..read]));
}

#[tokio::test]
async fn those_inside_are_served_when_there_is_no_room_for_more() {
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| config.server.connections_max = 200).await;
    let mut inside = Vec::new();
    for _ in 0..200 {
        let mut connection = TcpStream::connect(app.address()).await.unwrap();
        is_alive(&mut connection).await;
        inside.push(connection);
    }
    let mut outside = TcpStream::connect(app.address()).await.unwrap();
    outside.write_all(LIVEZ).await.unwrap();
    for connection in &mut inside {
        is_alive(connection).await;
    }
    let mut answer = [0; 12];
    // Nobody has gone: time is the condition here.
    let early = tokio::time::timeout(Duration::from_millis(300), outside.read_exact(&mut answer)).await;
    assert!(early.is_err(), "one more than there is room for");
    inside.pop();
    outside.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_feed_that_is_not_read_is_closed_and_others_are_not() {
    let idle = Duration::from_millis(500);
    let input = Input::start_with(|config| config.server.idle_timeout = idle).await;
    let app = &input.app;
    let feeds = async || {
        let metrics = app.get("/metrics").await.expect(200).text;
        let line = metrics.lines().find(|line| line.starts_with("streamkeep_feeds_open ")).map(str::to_owned);
        line.unwrap_or(metrics)
    };
    let mut other = Feed::open(app, "/events?after=end", None).await;
    other.until_caught_up().await;
    let mut deaf = input.connect().await;
    deaf.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").await.unwrap();
    eventually("both are open", async || feeds().await == "streamkeep_feeds_open 2").await;
    let big = format!(r#"{{"events":[{{"type":"a","data":"{}"}}]}}"#, "x".repeat(1_000_000));
    let mut last = 0;
    for _ in 0..12 {
        last = app.append("big-1", &big).await.expect(201).json()["version"].as_u64().unwrap();
        assert_eq!(other.event().await["version"], last);
    }
    eventually("it is closed", async || feeds().await == "streamkeep_feeds_open 1").await;
    app.append("big-1", &big).await.expect(201);
    assert_eq!(other.event().await["version"], last + 1);
}

#[tokio::test]
async fn a_body_drop_by_drop_is_refused_in_time_and_holds_up_nobody() {
    let mut input = Input::start_with(|config| config.limits.body_timeout = Duration::from_millis(500)).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut connection = input.connect().await;
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n",
            crate::input::VICTIM
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let (mut from, mut to) = connection.into_split();
        slow.push(tokio::spawn(async move {
            let mut drops = tokio::time::interval(Duration::from_millis(20));
            let dripping = async {
                while to.write_all(b" ").await.is_ok() {
                    drops.tick().await;
                }
                std::future::pending::<()>().await;
            };
            let mut answer = [0; 12];
            tokio::select! {
                read = from.read_exact(&mut answer) => drop(read.unwrap()),
                () = dripping => {}
            }
            answer
        }));
    }
    input.app.get("/livez").await.expect(200);
    for answer in slow {
        assert_eq!(&answer.await.unwrap(), b"HTTP/1.1 408");
    }
    input.untouched("slow bodies").await;
}
