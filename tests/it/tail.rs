//! `streamkeep tail`: the program itself, on a service that runs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use streamkeep::model::rfc3339;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout},
    time::timeout,
};

use crate::{
    app::{TestApp, TestRedis, eventually, free_address},
    groups::append,
    program::{Run, command, finish, signal, streamkeep},
};

/// How long a line may take; a connection that broke may be made anew only after some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A run that goes on.
struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    fn start(url: &str, arguments: &[&str]) -> Self {
        let mut child = command(url, &[&["tail", "--format", "ndjson"], arguments].concat()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap().unwrap()
    }

    async fn names(&mut self, count: usize) -> Vec<String> {
        let mut shown = Vec::new();
        while shown.len() < count {
            shown.push(name(&self.line().await));
        }
        shown
    }

    /// Appends until something of that is shown: from then on it follows. Takes all that was appended, and gives the
    /// first that was shown.
    async fn begin(&mut self, app: &TestApp, stream: &str) -> u64 {
        let (mut shown, mut version) = (None, 0);
        for _ in 0..2_000 {
            version = append(app, stream, "tick", 1).await["version"].as_u64().unwrap();
            if let Ok(line) = timeout(Duration::from_millis(20), self.lines.next_line()).await {
                shown = Some(version_of(&line.unwrap().unwrap()));
                break;
            }
        }
        let first = shown.expect("it follows");
        for expected in first + 1..=version {
            assert_eq!(version_of(&self.line().await), expected, "none missed, none twice");
        }
        first
    }

    /// What it said on standard error, as far as its next end of a line.
    async fn said(&mut self) -> String {
        let mut said = Vec::new();
        while said.last() != Some(&b'\n') {
            said.push(timeout(PATIENCE, self.child.stderr.as_mut().unwrap().read_u8()).await.unwrap().unwrap());
        }
        String::from_utf8(said).unwrap()
    }

    async fn end(mut self, with: Signal) -> Run {
        signal(&self.child, with);
        let rest = self.lines.next_line().await.unwrap();
        assert_eq!(rest, None, "all lines were expected");
        finish(self.child).await
    }
}

fn version_of(line: &str) -> u64 {
    serde_json::from_str::<Value>(line).unwrap()["version"].as_u64().unwrap()
}

/// stream@version of a line.
fn name(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    format!("{}@{}", event["stream"].as_str().unwrap(), event["version"])
}

fn names(run: &Run) -> Vec<String> {
    run.stdout.lines().map(name).collect()
}

fn expected(stream: &str, versions: impl IntoIterator<Item = usize>) -> Vec<String> {
    versions.into_iter().map(|version| format!("{stream}@{version}")).collect()
}

async fn time(app: &TestApp, event: &str) -> String {
    app.get(event).await.expect(200).json()["time"].as_str().unwrap().to_owned()
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// What `tail` shows up to the given number of events, from the beginning unless the arguments say otherwise.
async fn shown(app: &TestApp, count: usize, arguments: &[&str]) -> Vec<String> {
    let from: &[&str] = if arguments.contains(&"--since") { &[] } else { &["--from", "beginning"] };
    let fixed = ["tail", "--format", "ndjson", "--count", &count.to_string()];
    let run = timeout(PATIENCE, streamkeep(app, &[&fixed, from, arguments].concat())).await.unwrap().expect_success();
    assert_eq!(run.stderr, "");
    names(&run)
}

test_app! {
    async fn what_comes_is_shown_as_it_comes(app) {
        append(&app, "a-1", "before", 3).await;
        let mut tail = Tail::start(&app.url, &[]);
        let first = tail.begin(&app, "a-1").await;
        assert!(first > 3, "what was there is not shown");
        let body = r#"{"events":[{"id":"x","type":"ü","data":{ "n":1.0e2,"n":0.10 },"metadata":{"m":[]}}]}"#;
        app.append("b-1", body).await.expect(201);
        let line = tail.line().await;
        assert!(line.contains(r#""type":"ü","#) && line.contains(r#""data":{ "n":1.0e2,"n":0.10 },"#), "{line}");
        let stored = app.get("/streams/b-1/events/1").await.expect(200);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), stored.json());
        assert_eq!(line, stored.text, "the event as the service tells it");
        let run = tail.end(Signal::INT).await.expect_success();
        assert_eq!(run.stderr, "");
    }
}

test_app! {
    async fn a_stream_is_followed_from_where_it_is(app) {
        append(&app, "a-1", "before", 3).await;
        for stream in ["a-1", "later-1"] {
            let mut tail = Tail::start(&app.url, &["--stream", stream]);
            append(&app, "b-1", "other", 1).await;
            let first = tail.begin(&app, stream).await;
            assert!(first > 3 || stream == "later-1", "what was there is not shown");
            append(&app, "b-1", "other", 1).await;
            let next = append(&app, stream, "next", 1).await;
            assert_eq!(version_of(&tail.line().await), next["version"].as_u64().unwrap());
            assert_eq!(tail.end(Signal::TERM).await.expect_success().stderr, "");
        }
    }
}

test_app! {
    async fn filters_go_together(app) {
        // All in one partition, for these have the same part behind the -: so there is one order of them.
        append(&app, "a-1", "x", 2).await;
        append(&app, "b-1", "y", 1).await;
        append(&app, "c-1", "x", 1).await;
        let fourth = time(&app, "/streams/c-1/events/1").await;
        eventually("a later millisecond", async || rfc3339(now_ms()) > fourth).await;
        append(&app, "a-1", "y", 1).await;
        append(&app, "b-1", "x", 1).await;
        let all = ["a-1@1", "a-1@2", "b-1@1", "c-1@1", "a-1@3", "b-1@2"];
        assert_eq!(shown(&app, 6, &[]).await, all);
        assert_eq!(shown(&app, 2, &[]).await, all[..2]);
        assert_eq!(shown(&app, 5, &["--category", "a", "--category", "b"]).await, ["a-1@1", "a-1@2", "b-1@1", "a-1@3", "b-1@2"]);
        assert_eq!(shown(&app, 4, &["--type", "x"]).await, ["a-1@1", "a-1@2", "c-1@1", "b-1@2"]);
        assert_eq!(shown(&app, 2, &["--category", "b", "--type", "x", "--type", "y"]).await, ["b-1@1", "b-1@2"]);
        assert_eq!(shown(&app, 3, &["--stream", "a-1"]).await, expected("a-1", 1..=3));
        assert_eq!(shown(&app, 1, &["--stream", "a-1", "--type", "y"]).await, ["a-1@3"]);
        let fifth = time(&app, "/streams/a-1/events/3").await;
        assert_eq!(shown(&app, 2, &["--since", &fifth, "--category", "a", "--category", "b"]).await, all[4..]);
        assert_eq!(shown(&app, 1, &["--since", &fifth, "--stream", "a-1"]).await, all[4..5]);
    }
}

test_app! {
    async fn a_cursor_of_an_append_and_of_a_feed_is_a_place_to_begin(app) {
        let cursor = append(&app, "a-1", "t", 2).await["cursor"].as_str().unwrap().to_owned();
        append(&app, "a-1", "t", 2).await;
        let tail = async |from: &str, stream: &[&str]| {
            let arguments = ["tail", "--format", "ndjson", "--count", "2", "--from", from];
            names(&streamkeep(&app, &[&arguments, stream].concat()).await.expect_success())
        };
        assert_eq!(tail(&cursor, &[]).await, expected("a-1", 3..=4));
        let feed = app.request(reqwest::Method::GET, "/streams/a-1?limit=2").header("accept", "application/x-ndjson");
        let feed = crate::app::Answer::of(feed).await.expect(200);
        let second: Value = serde_json::from_str(feed.text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(tail(second["cursor"].as_str().unwrap(), &["--stream", "a-1"]).await, expected("a-1", 3..=4));
    }
}

test_app! {
    async fn text_is_a_line_an_event(app) {
        app.append("order-1", r#"{"events":[{"type":"placed","data":{ "total":42.50 }}]}"#).await.expect(201);
        let long = "x".repeat(500);
        app.append("order-1", &format!(r#"{{"events":[{{"type":"noted","data":"{long}"}}]}}"#)).await.expect(201);
        let run = streamkeep(&app, &["tail", "--from", "beginning", "--count", "2"]).await.expect_success();
        let events = app.get("/streams/order-1").await.json();
        let time = |index: usize| events["events"][index]["time"].as_str().unwrap();
        let first = format!("{} order-1@1 placed {{ \"total\":42.50 }}\n", time(0));
        // No terminal: no colours, nothing shortened.
        assert_eq!(run.stdout, format!("{first}{} order-1@2 noted \"{long}\"\n", time(1)));
    }
}

/// One instance drains, and a while later another begins at its address; meanwhile a third goes on appending.
async fn expect_no_loss_over_a_restart(partitions: u16, arguments: &[&str]) {
    let redis = TestRedis::start().await;
    let app = TestApp::start_on(redis.clone(), partitions).await;
    let writer = TestApp::start_on(redis.clone(), partitions).await;
    let mut tail = Tail::start(&app.url, &[&["--from", "beginning"], arguments].concat());
    append(&writer, "a-1", "t", 50).await;
    assert_eq!(tail.names(50).await, expected("a-1", 1..=50));
    let listen = app.address().to_owned();
    app.shutdown.cancel();
    app.served.await.unwrap();
    append(&writer, "a-1", "t", 50).await;
    assert!(tail.said().await.contains("the service has ended the feed; trying again"));
    append(&writer, "a-1", "t", 50).await;
    let again = TestApp::start_with(redis, partitions, |config| config.listen = listen).await;
    append(&again, "a-1", "t", 50).await;
    assert_eq!(tail.names(150).await, expected("a-1", 51..=200));
    let run = tail.end(Signal::INT).await.expect_success();
    assert_eq!(run.stderr, "", "it says so once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_and_repeats_nothing() {
    expect_no_loss_over_a_restart(1, &[]).await;
    expect_no_loss_over_a_restart(4, &["--type", "t"]).await;
    expect_no_loss_over_a_restart(1, &["--stream", "a-1"]).await;
}

/// Passes on so many bytes of an answer, for each connection, and then closes it.
async fn cutting(service: &str, cuts: &'static [usize]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, service) = (format!("http://{}", listener.local_addr().unwrap()), service.to_owned());
    tokio::spawn(async move {
        let mut cuts = cuts.iter();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&service).await.unwrap();
            let cut = cuts.next().map_or(u64::MAX, |cut| *cut as u64);
            tokio::spawn(async move {
                let ((mut from_client, mut to_client), (from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let mut answer = from_server.take(cut);
                tokio::select! {
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                    _ = tokio::io::copy(&mut answer, &mut to_client) => {}
                }
                let _ = to_client.shutdown().await;
            });
        }
    });
    url
}

test_app! {
    async fn connections_that_break_anywhere_lose_and_repeat_nothing(app) {
        append(&app, "a-1", "t", 30).await;
        // In the headers; before the first event is whole; within later ones.
        let url = cutting(app.address(), &[40, 700, 1_501, 2_002, 3_003]).await;
        let mut tail = Tail::start(&url, &["--from", "beginning"]);
        assert_eq!(tail.names(30).await, expected("a-1", 1..=30));
        append(&app, "a-1", "t", 2).await;
        assert_eq!(tail.names(2).await, expected("a-1", 31..=32));
        let run = tail.end(Signal::INT).await.expect_success();
        assert!(run.stderr.lines().count() >= 3, "hardly a connection was cut: {run:?}");
        assert!(run.stderr.lines().all(|line| line.ends_with("; trying again")), "{run:?}");
    }
}

test_app! {
    async fn a_cursor_of_another_history_is_refused(app) {
        let other = TestApp::start(app.store.partitions().count()).await;
        append(&app, "a-1", "t", 3).await;
        let elsewhere = append(&other, "a-1", "t", 3).await["cursor"].as_str().unwrap().to_owned();
        let run = streamkeep(&app, &["tail", "--from", &elsewhere]).await;
        let run = run.expect_failure(&["the service refused with 409 history-diverged: ", "read again from the beginning"]);
        assert_eq!(run.stdout, "");
    }
}

test_app! {
    async fn a_history_that_is_lost_meanwhile_ends_it(app) {
        append(&app, "a-1", "t", 3).await;
        let mut tail = Tail::start(&app.url, &["--from", "beginning"]);
        assert_eq!(tail.names(3).await, expected("a-1", 1..=3));
        // As where an empty replica takes over.
        let mut redis = app.redis.connection().await;
        redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
        app.redis.signal("KILL");
        assert_eq!(timeout(PATIENCE, tail.lines.next_line()).await.unwrap().unwrap(), None);
        finish(tail.child).await.expect_failure(&["the service has ended the feed: history-diverged: "]);
    }
}

test_app! {
    async fn it_ends_quietly_when_its_reader_has_enough(app) {
        for _ in 0..3 {
            append(&app, "a-1", "t", 1_000).await;
        }
        let mut tail = Tail::start(&app.url, &["--from", "beginning"]);
        assert_eq!(tail.names(1).await, ["a-1@1"]);
        drop(tail.lines);
        assert_eq!(timeout(PATIENCE, finish(tail.child)).await.unwrap().expect_success().stderr, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_without_a_further_event_when_its_reader_has_enough() {
    let app = TestApp::start(1).await;
    append(&app, "a-1", "t", 1).await;
    let mut tail = Tail::start(&app.url, &["--from", "beginning"]);
    assert_eq!(tail.names(1).await, ["a-1@1"]);
    drop(tail.lines);
    assert_eq!(timeout(PATIENCE, finish(tail.child)).await.unwrap().expect_success().stderr, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_can_be_interrupted_while_nobody_reads() {
    let app = TestApp::start(1).await;
    let data = "x".repeat(100_000);
    let event = format!(r#"{{"type":"t","data":"{data}"}}"#);
    app.append("a-1", &format!(r#"{{"events":[{event},{event},{event}]}}"#)).await.expect(201);
    let mut tail = Tail::start(&app.url, &["--from", "beginning"]);
    assert_eq!(tail.names(1).await, ["a-1@1"]);
    signal(&tail.child, Signal::TERM);
    assert!(timeout(PATIENCE, tail.child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_for_a_service_that_is_not_there_yet() {
    let free = free_address().to_string();
    let redis = TestRedis::start().await;
    for (arguments, stream) in [(&["--from", "beginning"][..], "a-1"), (&["--stream", "b-1"], "b-1")] {
        let mut tail = Tail::start(&format!("http://user:secret@{free}"), arguments);
        let said = tail.said().await;
        assert!(said.contains("cannot be reached") && said.contains(&free) && !said.contains("secret"), "{said}");
        let app = TestApp::start_with(redis.clone(), 1, |config| config.listen.clone_from(&free)).await;
        tail.begin(&app, stream).await;
        assert_eq!(tail.end(Signal::INT).await.expect_success().stderr, "");
        app.shutdown.cancel();
        app.served.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_where_a_gateway_says_that_the_service_is_not_there() {
    let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = gateway.local_addr().unwrap().to_string();
    let mut tail = Tail::start(&format!("http://{listen}"), &["--from", "beginning"]);
    let (mut client, _) = gateway.accept().await.unwrap();
    client.read_u8().await.unwrap();
    let answer = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    client.write_all(answer).await.unwrap();
    drop((client, gateway));
    assert!(tail.said().await.contains("502"));
    let app = TestApp::start_with(TestRedis::start().await, 1, |config| config.listen = listen).await;
    tail.begin(&app, "a-1").await;
    assert_eq!(tail.end(Signal::INT).await.expect_success().stderr, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_for_a_service_that_has_too_much_to_do() {
    let redis = TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| config.limits.waiting = 1).await;
    let mut first = Tail::start(&app.url, &["--from", "beginning"]);
    first.begin(&app, "a-1").await;
    let mut second = Tail::start(&app.url, &["--from", "beginning"]);
    let said = second.said().await;
    assert!(said.contains("503 overloaded: ") && said.ends_with("; trying again\n"), "{said}");
    first.end(Signal::INT).await.expect_success();
    assert_eq!(second.names(1).await, ["a-1@1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_at_once() {
    let app = TestApp::start(1).await;
    for (arguments, code, what) in [
        (&["--from", "nonsense"][..], 1, "the service refused with 400 invalid-request: Last-Event-ID"),
        (&["--from", "a\nb"], 1, "is no cursor"),
        (&["--type", "a\u{7}b"], 1, "400 invalid-parameter: The parameter type"),
        (&["--stream", "a b"], 1, "is no stream id"),
        (&["--category", "a-b"], 1, "is no category"),
        (&["--since", "yesterday"], 2, "a time as in 2026-11-23T12:00:00Z"),
        (&["--count", "0"], 2, "0 is not in 1.."),
        (&["--stream", "a", "--category", "b"], 2, "cannot be used with"),
        (&["--since", "2026-11-23T12:00:00Z", "--from", "end"], 2, "cannot be used with"),
    ] {
        let run = timeout(PATIENCE, streamkeep(&app, &[&["tail"], arguments].concat())).await.unwrap();
        assert_eq!((run.code, run.stdout.as_str()), (Some(code), ""), "{run:?}");
        assert!(run.stderr.contains(what), "{what}: {run:?}");
    }
    let elsewhere = format!("{}/docs", app.url);
    finish(command(&elsewhere, &["tail"]).spawn().unwrap()).await.expect_failure(&["404"]);
}
