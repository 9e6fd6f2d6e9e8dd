//! HTTP/2, with TLS and without: what holds for HTTP/1 holds here, and what is its own.

use std::time::{Duration, Instant};

use axum::http;
use h2::{
    Reason,
    client::{SendRequest, handshake},
};
use reqwest::{Client, Method, Version};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    app::{Answer, TestApp, TestConfig, TestRedis, eventually},
    feed::Feed,
    input::{GOOD, Input},
    tls::Files,
};

/// Without TLS, by prior knowledge.
fn configure(config: &mut TestConfig) {
    config.client = Client::builder().http2_prior_knowledge();
}

async fn start(change: impl FnOnce(&mut TestConfig)) -> TestApp {
    let change = |config: &mut TestConfig| {
        configure(config);
        change(config);
    };
    TestApp::start_with(TestRedis::start().await, 1, change).await
}

/// A connection whose windows are larger than the default, that of a request excepted. Until the service has told how many
/// requests it takes at once, it makes as many as hyper does.
async fn connect(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> SendRequest<bytes::Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(1 << 24).initial_max_send_streams(100);
    let (requests, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests
}

fn get(path: &str) -> http::Request<()> {
    http::Request::get(format!("http://x{path}")).body(()).unwrap()
}

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request whose headers end and whose body is empty: GET, with these fields as literals of HPACK.
fn headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    // :method GET and :scheme http stand in the static table.
    let mut block = vec![0x82, 0x86];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(1, 0x5, stream, &block)
}

/// The preface, and settings of the client.
fn preface(settings: &[u8]) -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, settings)].concat()
}

/// The frames that come until the connection is closed: kind, stream, and payload.
async fn frames(connection: &mut TcpStream) -> Vec<(u8, u32, Vec<u8>)> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "still open");
    let (mut frames, mut rest) = (Vec::new(), bytes.as_slice());
    while let Some((head, after)) = rest.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some((payload, after)) = after.split_at_checked(length) else { break };
        frames.push((head[3], u32::from_be_bytes(head[5..9].try_into().unwrap()), payload.to_vec()));
        rest = after;
    }
    frames
}

#[tokio::test]
async fn the_rules_of_every_request_hold() {
    let mut input = Input::start_with(|config| {
        configure(config);
        config.limits.body_timeout = Duration::from_millis(300);
    })
    .await;
    let answer = input.app.request(Method::GET, "/streams/witness-1").header("x-request-id", "mine").send().await;
    let answer = answer.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
    assert_eq!(answer.headers()["etag"], "\"1\"");
    assert_eq!(answer.headers()["x-request-id"], "mine");
    input.refused_body("{", 400, "invalid-json").await;
    input.refused_get("/nothing", 404, "not-found").await;
    input.refused_headers(&[("host", "other.example")], 400, "invalid-request").await;
    input.refused_headers(&[("x-large", &"x".repeat(17 * 1024))], 431, "headers-too-large").await;
    input.refused_get(&format!("/{}", "x".repeat(9_000)), 414, "uri-too-long").await;
    // A body that does not come.
    let mut requests = connect(input.connect().await).await;
    let uri = format!("http://x{}", crate::input::VICTIM);
    let request = http::Request::post(uri).header("content-type", "application/json").body(()).unwrap();
    let (answer, _body) = requests.send_request(request, false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 408);
    input.untouched("a slow body").await;
}

#[tokio::test]
async fn a_request_says_for_which_host_it_is() {
    let app = start(|_| {}).await;
    for (fields, status) in [
        (&[(":path", "/livez"), (":authority", "x")][..], "200"),
        (&[(":path", "/livez"), ("host", "x")], "200"),
        (&[(":path", "/livez"), (":authority", "x"), ("host", "x")], "200"),
        (&[(":path", "/livez"), (":authority", "x"), ("host", "y")], "400"),
        (&[(":path", "/livez"), ("host", "x"), ("host", "x")], "400"),
        (&[(":path", "/livez")], "400"),
    ] {
        let mut connection = TcpStream::connect(app.address()).await.unwrap();
        let bytes = [preface(&[]), headers(1, fields), frame(7, 0, 0, &[0; 8])].concat();
        connection.write_all(&bytes).await.unwrap();
        let frames = frames(&mut connection).await;
        let block = &frames.iter().find(|(kind, stream, _)| (*kind, *stream) == (1, 1)).expect("an answer").2;
        // :status 200 and 400 stand in the static table.
        assert_eq!(block[0], if status == "200" { 0x88 } else { 0x8c }, "{fields:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_go_over_one_connection() {
    let app = start(|_| {}).await;
    let requests = connect(TcpStream::connect(app.address()).await.unwrap()).await;
    let mut answers = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let mut requests = requests.clone().ready().await.unwrap();
        let (answer, _) = requests.send_request(get("/livez"), true).unwrap();
        answers.spawn(async move {
            let mut body = answer.await.unwrap();
            assert_eq!(body.status(), 200);
            while let Some(piece) = body.body_mut().data().await {
                let length = piece.unwrap().len();
                body.body_mut().flow_control().release_capacity(length).unwrap();
            }
        });
    }
    assert_eq!(answers.join_all().await.len(), 10_000);
    // More at once than are allowed are refused, each for itself.
    let mut bytes = preface(&[]);
    for stream in 0..200 {
        bytes.extend(headers(2 * stream + 1, &[(":path", "/streams/order-1?wait=1"), (":authority", "x")]));
    }
    bytes.extend(frame(7, 0, 0, &[0; 8]));
    let mut connection = TcpStream::connect(app.address()).await.unwrap();
    connection.write_all(&bytes).await.unwrap();
    let frames = frames(&mut connection).await;
    let refused = frames.iter().filter(|(kind, _, payload)| (*kind, payload.as_slice()) == (3, &[0, 0, 0, 7])).count();
    let answered = frames.iter().filter(|(kind, ..)| *kind == 1).count();
    assert_eq!((answered, refused), (128, 72));
}

#[tokio::test]
async fn a_rapid_reset_ends_the_connection() {
    let app = start(|_| {}).await;
    let mut bytes = preface(&[]);
    for stream in 0..5_000 {
        let stream = 2 * stream + 1;
        bytes.extend(headers(stream, &[(":path", "/events"), (":authority", "x")]));
        bytes.extend(frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    let mut connection = TcpStream::connect(app.address()).await.unwrap();
    let _ = connection.write_all(&bytes).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), connection.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "still open");
    let text = String::from_utf8_lossy(&rest);
    // It may be closed by a reset, before the reason is read.
    assert!(rest.is_empty() || ended.unwrap().is_err() || text.contains("too_many_resets"), "{text:?}");
    app.get("/livez").await.expect(200);
}

/// Requests a large page, reads none of it, and looks that it is reset, while another request on the connection goes on.
async fn one_that_is_not_read(app: &TestApp, requests: SendRequest<bytes::Bytes>) {
    let mut requests = requests.ready().await.unwrap();
    let (deaf, _) = requests.send_request(get("/streams/big-1"), true).unwrap();
    let (feed, _) = requests
        .send_request(
            http::Request::get("http://x/events?after=end").header("accept", "text/event-stream").body(()).unwrap(),
            true,
        )
        .unwrap();
    let mut deaf = deaf.await.unwrap();
    let mut feed = feed.await.unwrap();
    let began = Instant::now();
    // What came before the window was full can be had, and then the reset; nothing is released.
    let error = loop {
        match tokio::time::timeout(Duration::from_secs(20), deaf.body_mut().data()).await.expect("reset in time") {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it was sent to its end"),
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert!(began.elapsed() >= Duration::from_millis(500));
    app.append("small-1", GOOD).await.expect(201);
    let mut text = String::new();
    while !text.contains("small-1") {
        let piece = tokio::time::timeout(Duration::from_secs(20), feed.body_mut().data()).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&piece.unwrap().unwrap()));
    }
    let (alive, _) = requests.send_request(get("/livez"), true).unwrap();
    assert_eq!(alive.await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_reset_and_others_go_on() {
    let files = Files::new();
    for secure in [false, true] {
        let app = start(|config| {
            config.server.idle_timeout = Duration::from_millis(500);
            if secure {
                files.configure(config);
            }
        })
        .await;
        let big = format!(r#"{{"events":[{{"type":"a","data":"{}"}}]}}"#, "x".repeat(1_000_000));
        for _ in 0..4 {
            app.append("big-1", &big).await.expect(201);
        }
        let requests = if secure {
            connect(files.connect(app.address(), "h2").await).await
        } else {
            connect(TcpStream::connect(app.address()).await.unwrap()).await
        };
        one_that_is_not_read(&app, requests).await;
    }
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_and_one_with_a_feed_is_not() {
    let idle = Duration::from_millis(300);
    let app = start(|config| {
        config.server.idle_timeout = idle;
        config.server.header_timeout = idle;
    })
    .await;
    let mut feed = Feed::open(&app, "/events", None).await;
    feed.until_caught_up().await;
    // The preface and no request; one request and no other.
    for request in [Vec::new(), headers(1, &[(":path", "/livez"), (":authority", "x")])] {
        let began = Instant::now();
        let mut connection = TcpStream::connect(app.address()).await.unwrap();
        connection.write_all(&[preface(&[]), request].concat()).await.unwrap();
        frames(&mut connection).await;
        assert!(began.elapsed() >= idle);
    }
    app.append("order-1", GOOD).await.expect(201);
    assert_eq!(feed.event().await["stream"], "order-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_what_follows_and_waits() {
    let delay = Duration::from_secs(1);
    let app = start(|config| config.server.drain_delay = delay).await;
    let mut feed = Feed::open(&app, "/events", None).await;
    feed.until_caught_up().await;
    let poll = app.request(Method::GET, "/events?after=end&wait=60");
    let poll = tokio::spawn(Answer::of(poll));
    app.shutdown.cancel();
    app.get("/readyz").await.expect_problem(503, "not-ready");
    app.append("order-1", GOOD).await.expect(201);
    assert_eq!(feed.event().await["stream"], "order-1");
    assert_eq!(feed.block().await, None);
    poll.await.unwrap().expect(200);
    eventually("no new connection", async || TcpStream::connect(app.address()).await.is_err()).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), app.served).await;
    assert!(ended.is_ok(), "the connection was told to go, and went");
}

#[tokio::test]
async fn a_client_by_the_book_reads_a_large_page() {
    let app = start(|_| {}).await;
    let big = format!(r#"{{"events":[{{"type":"a","data":"{}"}}]}}"#, "x".repeat(1_000_000));
    for _ in 0..4 {
        app.append("big-1", &big).await.expect(201);
    }
    let page = app.get("/streams/big-1").await.expect(200);
    assert_eq!(page.header("content-length"), page.text.len().to_string());
    assert_eq!(page.json()["events"].as_array().unwrap().len(), 4);
    let (mut requests, connection) = handshake(TcpStream::connect(app.address()).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let (head, _) =
        requests.send_request(http::Request::head("http://x/streams/big-1").body(()).unwrap(), true).unwrap();
    assert_eq!(head.await.unwrap().headers()["etag"], "\"4\"");
}
