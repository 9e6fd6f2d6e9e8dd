//! `streamkeep import` and `streamkeep export`: the program itself, on a service that runs.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::Deserialize;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    app::{TestApp, eventually},
    consumers::real_log,
    feed::Feed,
    log::read_all,
    program::{Run, command, finish, signal, streamkeep},
};

/// A line, of the source or of an export, with the bytes of what it carries.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Line {
    stream: String,
    r#type: String,
    #[serde(deserialize_with = "bytes")]
    data: String,
    #[serde(deserialize_with = "bytes")]
    metadata: String,
    id: Option<String>,
}

fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(|json| json.get().to_owned())
}

fn lines(text: &str) -> Vec<Line> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The events of each stream in their order, without ids.
fn by_stream(lines: &[Line]) -> BTreeMap<&str, Vec<(&str, &str, &str)>> {
    let mut streams = BTreeMap::<_, Vec<_>>::new();
    for line in lines {
        streams.entry(&*line.stream).or_default().push((&*line.r#type, &*line.data, &*line.metadata));
    }
    streams
}

async fn streamkeep_reading(app: &TestApp, arguments: &[&str], stdin: &[u8]) -> Run {
    reading(&app.url, arguments, stdin).await
}

async fn reading(url: &str, arguments: &[&str], stdin: &[u8]) -> Run {
    let mut child = command(url, arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // It may have stopped at an early line.
    let _ = input.write_all(stdin).await;
    drop(input);
    finish(child).await
}

/// Imports NDJSON.
pub async fn import(url: &str, text: &str) {
    let run = reading(url, &["import", "-"], text.as_bytes()).await.expect_success();
    assert!(run.stdout.starts_with(&format!("{} events read, ", text.lines().count())), "{run:?}");
}

async fn export(app: &TestApp, arguments: &[&str]) -> Vec<Line> {
    let run = streamkeep(app, &[&["export", "-"], arguments].concat()).await.expect_success();
    assert_eq!(run.stderr, "", "standard output is the output: nothing else is shown where nobody looks");
    lines(&run.stdout)
}

/// How many events the log has, counted page by page.
async fn count(app: &TestApp) -> usize {
    read_all(app, "limit=1000").await.0.len()
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    MultiGzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    text
}

/// `count` events in `streams` streams in turn; without ids.
fn many(count: usize, streams: usize) -> String {
    let line =
        |n: usize| format!("{{\"stream\":\"many-{}\",\"type\":\"t\",\"data\":{n},\"metadata\":{{}}}}\n", n % streams);
    (0..count).map(line).collect()
}

fn file(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// That the service holds the events of `source`, each once, in the order of its stream, byte for byte.
async fn expect_all(app: &TestApp, source: &[Line]) {
    let stored = export(app, &[]).await;
    assert_eq!(stored.len(), source.len());
    assert_eq!(by_stream(&stored), by_stream(source));
    let ids: HashSet<_> = stored.iter().map(|line| (&line.stream, line.id.as_ref().unwrap())).collect();
    assert_eq!(ids.len(), stored.len());
}

async fn expect_round_trip(app: &TestApp, path: &Path, source: &[Line]) {
    let path = path.to_str().unwrap();
    let first = streamkeep(app, &["import", path]).await.expect_summary(source.len(), source.len(), 0);
    let streams = by_stream(source).len();
    assert!(first.stdout.contains(&format!(", {streams} streams, ")), "{first:?}");
    expect_all(app, source).await;
    streamkeep(app, &["import", path, "--concurrency", "3"]).await.expect_summary(source.len(), 0, source.len());
    assert_eq!(count(app).await, source.len());
}

test_app! {
    async fn what_is_imported_comes_out_identical(app) {
        let path = root("examples/receipt.ndjson");
        let source = lines(&fs::read_to_string(&path).unwrap());
        assert_eq!(source.len(), 150);
        expect_round_trip(&app, &path, &source).await;
    }
}

test_app! {
    async fn a_whole_real_log_comes_out_identical(app) {
        let (text, folder) = (real_log(), TempDir::new().unwrap());
        let source = lines(&text);
        assert!(source.len() > 8_500, "{} events", source.len());
        expect_round_trip(&app, Path::new(&file(&folder, "receipt.ndjson.gz", gzip(&text))), &source).await;
    }
}

// Whoever follows while the real log is imported counts what the file has.
test_app! {
    async fn a_projection_of_a_real_log_that_is_coming_in(app) {
        let (text, folder) = (real_log(), TempDir::new().unwrap());
        let mut wanted = BTreeMap::<String, usize>::new();
        for line in lines(&text) {
            *wanted.entry(line.r#type).or_default() += 1;
        }
        let path = file(&folder, "receipt.ndjson", &text);
        let mut feed = Feed::open(&app, "/events?category=receipt", None).await;
        feed.until_caught_up().await;
        let project = async {
            let mut counts = BTreeMap::<String, usize>::new();
            for event in feed.events(wanted.values().sum()).await {
                *counts.entry(event["type"].as_str().unwrap().to_owned()).or_default() += 1;
            }
            counts
        };
        let arguments = ["import", &path];
        let (counts, run) = tokio::join!(project, streamkeep(&app, &arguments));
        run.expect_success();
        assert_eq!(counts, wanted);
    }
}

test_app! {
    async fn an_export_is_in_the_order_of_the_log_and_can_be_imported(app) {
        app.append("a-1", r#"{"events":[{"id":"1","type":"x\"y","data":{"n":1.0e2,"n":0.10}},{"type":"ü","data":"\ud83d\ude00"}]}"#)
            .await
            .expect(201);
        app.append("b-1", "{\"events\":[{\"id\":\"1\",\"type\":\"t\",\"data\":[1,\r\n2],\"metadata\":{ \"a\" : [ ] }}]}")
            .await
            .expect(201);
        let first = streamkeep(&app, &["export"]).await.expect_success().stdout;
        let page = app.get("/events").await.expect(200).json();
        let ids = |lines: &[Line]| lines.iter().map(|line| line.id.clone().unwrap()).collect::<Vec<_>>();
        let in_log: Vec<_> = page["events"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids(&lines(&first)), in_log);
        assert!(first.contains(r#"{"stream":"a-1","type":"x\"y","data":{"n":1.0e2,"n":0.10},"metadata":{},"id":"1"}"#), "{first}");
        // Line breaks between the parts of JSON are the one thing that a line cannot hold.
        assert!(first.contains(r#"{"stream":"b-1","type":"t","data":[1,  2],"metadata":{ "a" : [ ] },"id":"1"}"#), "{first}");

        let other = TestApp::start(app.store.partitions().count()).await;
        streamkeep_reading(&other, &["import", "-"], first.as_bytes()).await.expect_summary(3, 3, 0);
        let mut again: Vec<_> = export(&other, &[]).await;
        let mut first = lines(&first);
        again.sort_by_key(|line| (line.stream.clone(), line.id.clone()));
        first.sort_by_key(|line| (line.stream.clone(), line.id.clone()));
        assert_eq!(again, first);
    }
}

test_app! {
    async fn plain_and_gzip_come_from_files_and_standard_input(app) {
        let text = "\n{\"stream\":\"a-1\",\"type\":\"t\",\"data\":1,\"id\":\"given\"}\r\n \n{\"stream\":\"a-1\",\"type\":\"t\",\"data\":2}";
        let folder = TempDir::new().unwrap();
        let (plain, packed) = (file(&folder, "plain", text), file(&folder, "packed", gzip(text)));
        streamkeep(&app, &["import", &plain]).await.expect_summary(2, 2, 0);
        streamkeep(&app, &["import", &packed]).await.expect_summary(2, 0, 2);
        streamkeep_reading(&app, &["import", "-"], text.as_bytes()).await.expect_summary(2, 0, 2);
        streamkeep_reading(&app, &["import", "-"], &gzip(text)).await.expect_summary(2, 0, 2);
        // Another source: the line without an id is another event.
        streamkeep(&app, &["import", &plain, "--source", "other"]).await.expect_summary(2, 1, 1);
        let stored = export(&app, &[]).await;
        assert_eq!(stored.iter().map(|line| line.data.as_str()).collect::<Vec<_>>(), ["1", "2", "2"]);
        assert_eq!(stored[0].id.as_deref(), Some("given"));
        assert_eq!(stored[1].id.as_ref().unwrap().as_bytes()[14], b'5', "UUIDv5");
        streamkeep(&app, &["import", &file(&folder, "empty", "")]).await.expect_summary(0, 0, 0);
    }
}

test_app! {
    async fn an_import_that_was_killed_goes_on_where_it_stopped(app) {
        let text = many(3_000, 40);
        let folder = TempDir::new().unwrap();
        let path = file(&folder, "many.ndjson", &text);
        let mut child = command(&app.url, &["import", &path, "--concurrency", "4"]).spawn().unwrap();
        eventually("some events are there", async || count(&app).await > 100).await;
        child.kill().await.unwrap();
        let before = count(&app).await;
        assert!(before < 3_000, "killed too late to tell anything");
        streamkeep(&app, &["import", &path]).await.expect_success();
        expect_all(&app, &lines(&text)).await;
    }
}

test_app! {
    async fn an_import_that_is_interrupted_says_how_far_it_was(app) {
        let mut child = command(&app.url, &["import", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(many(10, 3).as_bytes()).await.unwrap();
        eventually("the events are there", async || count(&app).await == 10).await;
        // Standard input stays open: nothing but the signal ends this.
        signal(&child, rustix::process::Signal::INT);
        finish(child).await.expect_failure(&["interrupted: ", " already there", "Run it again"]);
        drop(input);
    }
}

test_app! {
    async fn an_import_outlives_the_death_of_redis(app) {
        let text = many(3_000, 40);
        let folder = TempDir::new().unwrap();
        let path = file(&folder, "many.ndjson", &text);
        let mut child = command(&app.url, &["import", &path]).spawn().unwrap();
        let pid = app.redis.server.pid().unwrap();
        eventually("some events are there", async || count(&app).await > 100).await;
        app.redis.signal("KILL");
        assert!(child.try_wait().unwrap().is_none(), "killed too late to tell anything");
        let run = finish(child).await.expect_success();
        assert!(run.stdout.starts_with("3000 events read, "), "{run:?}");
        assert_ne!(app.redis.server.pid(), Some(pid));
        expect_all(&app, &lines(&text)).await;
    }
}

test_app! {
    async fn a_bad_line_stops_the_import_and_is_named(app) {
        let good = r#"{"stream":"a-1","type":"t","data":1}"#;
        for (bad, what) in [
            ("nonsense", "expected"),
            (r#"{"stream":"a-1","type":"t","data":1"#, "EOF"),
            (r#"{"stream":"a-1","type":"t","data":1,"more":1}"#, "unknown field `more`"),
            (r#"{"stream":"a b","type":"t","data":1}"#, "a stream id has"),
            (r#"{"stream":"..","type":"t","data":1}"#, "a stream id has"),
            (r#"{"stream":"a-1","data":1}"#, "missing field `type`"),
            (r#"{"stream":"a-1","type":"t"}"#, "missing field `data`"),
            (r#"{"stream":"a-1","type":"t","data":1,"id":null}"#, "invalid type: null"),
            // Only the service knows these rules.
            (r#"{"stream":"a-1","type":"","data":1}"#, "422 invalid-event: a type has 1 to 256 characters"),
            (r#"{"stream":"a-1","type":"t","data":1,"metadata":[]}"#, "400 invalid-json: "),
            (r#"{"stream":"a-1","type":"t","data":1,"id":"ä"}"#, "422 invalid-event: an id has"),
        ] {
            let text = format!("{good}\n\n{bad}\n{good}\n");
            let run = streamkeep_reading(&app, &["import", "-", "--retry-secs", "1"], text.as_bytes()).await;
            let run = run.expect_failure(&["streamkeep: line 3: ", what, "do not take it out"]);
            assert_eq!(run.stderr.matches("line ").count(), 2, "one line is named, and what to do with it: {run:?}");
            assert_eq!(run.stdout, "");
        }
        let run = streamkeep_reading(&app, &["import", "-"], b"\xff\n").await;
        run.expect_failure(&["line 1: it is no UTF-8", "0 appended, 0 already there"]);
        assert_eq!(count(&app).await, 1, "the good first line");
        let corrected = format!("{good}\n\n\n{good}\n");
        streamkeep_reading(&app, &["import", "-"], corrected.as_bytes()).await.expect_summary(2, 1, 1);
    }
}

test_app! {
    async fn an_id_with_other_data_stops_the_import(app) {
        app.append("a-1", r#"{"events":[{"id":"x","type":"t","data":1}]}"#).await.expect(201);
        let text = format!("{}{}", many(5, 5), "{\"stream\":\"a-1\",\"type\":\"t\",\"data\":2,\"id\":\"x\"}\n");
        let run = streamkeep_reading(&app, &["import", "-"], text.as_bytes()).await;
        run.expect_failure(&["line 6: ", "422 event-id-reused"]);
        let truncated = &gzip(&text)[..40];
        streamkeep_reading(&app, &["import", "-"], truncated).await.expect_failure(&["line 1: cannot read on: "]);
    }
}

test_app! {
    async fn streams_and_categories_are_exported_to_files(app) {
        let path = root("examples/receipt.ndjson");
        streamkeep(&app, &["import", path.to_str().unwrap()]).await.expect_success();
        streamkeep_reading(&app, &["import", "-"], many(2_345, 1).as_bytes()).await.expect_summary(2_345, 2_345, 0);
        streamkeep_reading(&app, &["import", "-"], br#"{"stream":"a+b-1","type":"t","data":1}"#).await.expect_summary(1, 1, 0);
        let source = lines(&fs::read_to_string(&path).unwrap());

        let one: Vec<_> = source.iter().filter(|line| line.stream == "receipt-3818").cloned().collect();
        assert_eq!(by_stream(&export(&app, &["--stream", "receipt-3818"]).await), by_stream(&one));
        let long = export(&app, &["--stream", "many-0"]).await;
        assert_eq!(by_stream(&long), by_stream(&lines(&many(2_345, 1))), "several pages");
        assert_eq!(export(&app, &["--category", "a+b"]).await.len(), 1);
        assert_eq!(export(&app, &["--category", "nothing"]).await, []);

        let folder = TempDir::new().unwrap();
        let packed = file(&folder, "receipt.ndjson.gz", "what was there before");
        let exported = streamkeep(&app, &["export", &packed, "--category", "receipt"]).await.expect_success();
        assert!(exported.stdout.starts_with("150 events written, "), "{exported:?}");
        assert_eq!(by_stream(&lines(&gunzip(&fs::read(&packed).unwrap()))), by_stream(&source));
        let plain = folder.path().join("all.ndjson");
        streamkeep(&app, &["export", plain.to_str().unwrap()]).await.expect_success();
        assert_eq!(lines(&fs::read_to_string(&plain).unwrap()).len(), 150 + 2_345 + 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
        streamkeep(&app, &["export", "/dev/null"]).await.expect_success();
        assert!(!fs::metadata("/dev/null").unwrap().is_file(), "a device is written to, not replaced");
    }
}

test_app! {
    async fn a_failed_export_leaves_the_file_as_it_was(app) {
        let folder = TempDir::new().unwrap();
        let path = file(&folder, "a.ndjson", "before");
        let failed = streamkeep(&app, &["export", &path, "--stream", "nothing-1"]).await;
        failed.expect_failure(&["404 stream-not-found: "]);
        streamkeep(&app, &["export", &path, "--stream", "a b"]).await.expect_failure(&["is no stream id"]);
        streamkeep(&app, &["export", &path, "--category", "a-b"]).await.expect_failure(&["is no category"]);
        streamkeep(&app, &["export", "/nowhere/a.ndjson"]).await.expect_failure(&["cannot write /nowhere/a.ndjson: "]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }
}

test_app! {
    async fn an_export_ends_quietly_when_its_reader_has_enough(app) {
        streamkeep_reading(&app, &["import", "-"], many(8_000, 100).as_bytes()).await.expect_summary(8_000, 8_000, 0);
        let mut child = command(&app.url, &["export"]).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut first = [0; 10];
        output.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, br#"{"stream":"#);
        drop(output);
        let run = finish(child).await.expect_success();
        assert_eq!(run.stderr, "");
    }
}

#[tokio::test]
async fn a_service_with_small_pages_is_exported_whole() {
    let redis = crate::app::TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| config.limits.page_events = 7).await;
    streamkeep_reading(&app, &["import", "-"], many(50, 4).as_bytes()).await.expect_summary(50, 50, 0);
    let run = streamkeep(&app, &["export"]).await.expect_success();
    assert_eq!(by_stream(&lines(&run.stdout)), by_stream(&lines(&many(50, 4))));
}

#[tokio::test]
async fn a_service_that_demands_conditions_refuses_an_import_clearly() {
    let redis = crate::app::TestRedis::start().await;
    let app = TestApp::start_with(redis, 1, |config| config.require_condition = true).await;
    let run = streamkeep_reading(&app, &["import", "-"], many(1, 1).as_bytes()).await;
    run.expect_failure(&["line 1: ", "428 precondition-required"]);
}

#[tokio::test]
async fn a_service_that_does_not_run_is_a_clear_failure_in_bounded_time() {
    // Bound and closed again: nobody listens there.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://user:secret@{address}/");
    let path = root("examples/receipt.ndjson");
    for arguments in [&["import", path.to_str().unwrap()], &["export", "-"]] {
        let child = command(&url, &[arguments, &["--retry-secs", "1"][..]].concat()).spawn().unwrap();
        let run = tokio::time::timeout(std::time::Duration::from_secs(20), finish(child)).await.unwrap();
        let run = run.expect_failure(&["gave up after 1 s", "cannot be reached", &address.to_string(), "refused"]);
        assert!(!run.stderr.contains("secret"), "{run:?}");
    }
}

#[tokio::test]
async fn addresses_that_cannot_work_are_refused_at_once() {
    for (url, what) in [
        ("ftp://localhost", "begins with ftp:"),
        ("localhost:7070", "begins with localhost:"),
        ("nonsense", "cannot be used"),
        ("http://localhost/?a=b", "has a ? or #"),
    ] {
        finish(command(url, &["import", "-"]).spawn().unwrap()).await.expect_failure(&[what]);
    }
    let run = finish(command("http://localhost", &["import", "/nowhere"]).spawn().unwrap()).await;
    run.expect_failure(&["cannot read /nowhere: "]);
}

#[tokio::test]
async fn an_answer_of_something_else_is_no_success() {
    async fn answering(answer: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        url
    }
    let path = root("examples/receipt.ndjson");
    let arguments = ["import", path.to_str().unwrap(), "--concurrency", "1", "--retry-secs", "1"];
    let moved = "HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let login = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>";
    for (answer, what) in [(moved, "302: the service is at http://elsewhere/"), (login, "is not that of Streamkeep")] {
        let run = finish(command(&answering(answer).await, &arguments).spawn().unwrap()).await;
        run.expect_failure(&["line 1: ", what, "0 appended"]);
    }
}
