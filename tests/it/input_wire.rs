//! What is no HTTP, or hardly: bytes on a socket.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::input::{GOOD, Input, VICTIM, parse_answer, read_to_close};

/// An append to the victim, with these header lines and this body.
fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST {VICTIM} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}\r\n{body}").into_bytes()
}

/// A body in one chunk.
fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

#[tokio::test]
async fn heads_that_break_the_rules_of_http_are_refused() {
    let mut input = Input::start().await;
    let length = GOOD.len();
    let bad = [
        post(&format!("Content-Length: {length}\r\nContent-Length: {}\r\n", length + 1), GOOD),
        post(&format!("Content-Length: {length}, {}\r\n", length + 1), GOOD),
        post(&format!("Content-Length: +{length}\r\n"), GOOD),
        post("Content-Length: -1\r\n", GOOD),
        post("Content-Length: 0x10\r\n", GOOD),
        post("Content-Length: 1e2\r\n", GOOD),
        post("Content-Length: \r\n", GOOD),
        post("Content-Length: 99999999999999999999999\r\n", GOOD),
        post("Transfer-Encoding: xchunked\r\n", &chunked(GOOD)),
        post("Transfer-Encoding: gzip\r\n", &chunked(GOOD)),
        post("Transfer-Encoding: chunked, identity\r\n", &chunked(GOOD)),
        post(&format!("Content-Length: {length}\r\nX-Folded: a\r\n b\r\n"), GOOD),
        post(&format!("Content-Length : {length}\r\n"), GOOD),
        post(&format!(" Content-Length: {length}\r\n"), GOOD),
        post(&format!("Content-Length: {length}\r\nX\0: 1\r\n"), GOOD),
        post(&format!("Content-Length: {length}\r\nX: a\0b\r\n"), GOOD),
        post(&format!("Content-Length: {length}\r\nno colon\r\n"), GOOD),
        post(&format!("Content-Length: {length}\r\n: no name\r\n"), GOOD),
        post(&format!("Content-Length: {length}\r\nHost: y\r\n"), GOOD),
        post(&format!("Content-Length: {length}\r\nHost: x\r\n"), GOOD),
        post(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &chunked(GOOD)),
        post(&format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), &chunked(GOOD)),
        post(&format!("transfer-encoding:chunked\r\nX: y\r\nCONTENT-LENGTH:{length}\r\n"), &chunked(GOOD)),
        post(&format!("Content-Length: {length}\r\nContent-Length: {length}\r\n"), GOOD),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &chunked(GOOD)),
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        format!("POST {VICTIM} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{GOOD}")
            .into(),
        format!(
            "POST {VICTIM} HTTP/1.0\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            chunked(GOOD)
        )
        .into(),
        b"GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n".to_vec(),
        b"GET /livez HTTP/1.1\r\nHost: a/b\r\n\r\n".to_vec(),
        b"GET /livez HTTP/1.1\r\nHost: a@b\r\n\r\n".to_vec(),
        b"GET /livez HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".to_vec(),
        b"GET  /livez HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /li vez HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /livez\tHTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /streams/\0 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"G\xc3\xa4T / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /livez HTTP/1.2\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /livez HTTP/3.0\r\nHost: x\r\n\r\n".to_vec(),
        b"GET /livez http/1.1\r\nHost: x\r\n\r\n".to_vec(),
    ];
    for bytes in bad {
        let text = input.refused_bytes(&bytes, 400).await;
        parse_answer(&text).expect_problem(400, "invalid-request");
    }
}

#[tokio::test]
async fn two_lengths_are_seen_however_the_head_comes() {
    let mut input = Input::start().await;
    let bytes = post(&format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", GOOD.len()), &chunked(GOOD));
    let good = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    // Cut at each byte of the first field's name, and on a connection that has served a request.
    let from = bytes.windows(7).position(|window| window == b"Content").unwrap();
    for cut in (from..from + 20).chain([bytes.len()]) {
        let mut connection = input.connect().await;
        connection.set_nodelay(true).unwrap();
        connection.write_all(good).await.unwrap();
        let mut answer = [0; 1024];
        assert!(connection.read(&mut answer).await.unwrap() > 0);
        connection.write_all(&bytes[..cut]).await.unwrap();
        tokio::task::yield_now().await;
        let _ = connection.write_all(&bytes[cut..]).await;
        let text = read_to_close(&mut connection).await;
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
        parse_answer(&text).expect_problem(400, "invalid-request");
    }
    input.untouched("two lengths").await;
}

#[tokio::test]
async fn what_comes_before_a_bad_head_is_answered() {
    let mut input = Input::start().await;
    let append = |stream: &str| {
        let length = GOOD.len();
        format!(
            "POST /streams/{stream}/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{GOOD}"
        )
    };
    for bad in ["no request at all\r\n\r\n", "GET /livez HTTP/1.1\r\nHost: x\r\nbad field\r\n\r\n"] {
        let bytes = format!("{}GET /livez HTTP/1.1\r\nHost: x\r\n\r\n{bad}", append("witness-1"));
        let text = input.exchange(bytes.as_bytes()).await;
        input.appended += 1;
        let answers: Vec<&str> = text.split("HTTP/1.1 ").collect();
        let [first, appended, alive, refused] = answers[..] else { panic!("{text}") };
        assert_eq!(first, "");
        assert!(appended.starts_with("201 ") && appended.contains(r#""count":1"#), "{text}");
        assert!(alive.starts_with("200 "), "{text}");
        parse_answer(&format!("HTTP/1.1 {refused}")).expect_problem(400, "invalid-request");
        input.untouched(bad).await;
    }
    // In the version of HTTP that the client speaks.
    let text = input.exchange(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /\x01 HTTP/1.0\r\n\r\n").await;
    let (alive, refused) = text.rsplit_once("HTTP/1.0 ").unwrap();
    assert!(alive.starts_with("HTTP/1.0 200 "), "{text}");
    parse_answer(&format!("HTTP/1.0 {refused}")).expect_problem(400, "invalid-request");
}

#[tokio::test]
async fn a_long_answer_before_a_bad_head_stays_whole() {
    let input = Input::start().await;
    let big = format!(r#"{{"events":[{{"type":"a","data":"{}"}}]}}"#, "x".repeat(1_000_000));
    for _ in 0..8 {
        input.app.append("big-1", &big).await.expect(201);
    }
    let text = input.exchange(b"GET /streams/big-1 HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/9\r\n\r\n").await;
    let (page, refused) = text.rsplit_once("HTTP/1.1 ").unwrap();
    let page = parse_answer(page).expect(200);
    assert_eq!(page.header("content-length"), page.text.len().to_string());
    assert_eq!(page.json()["events"].as_array().unwrap().len(), 8);
    parse_answer(&format!("HTTP/1.1 {refused}")).expect_problem(400, "invalid-request");
}

#[tokio::test]
async fn what_is_no_http_1_is_refused_or_closed() {
    let mut input = Input::start().await;
    let garbage: Vec<u8> = (0..4_096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    for bytes in [
        b"GET /livez\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n".to_vec(),
        b"*1\r\n$4\r\nPING\r\n\r\n".to_vec(),
        garbage,
        vec![0; 4_096],
    ] {
        input.refused_bytes(&bytes, 0).await;
    }
    // Nothing at all.
    let mut connection = input.connect().await;
    connection.shutdown().await.unwrap();
    assert_eq!(read_to_close(&mut connection).await, "");
    input.untouched("nothing").await;
}

#[tokio::test]
async fn no_second_request_is_smuggled_in_a_body() {
    let mut input = Input::start().await;
    let inner = String::from_utf8(post(&format!("Content-Length: {}\r\n", GOOD.len()), GOOD)).unwrap();
    // Neither length is believed: what follows the head is never read as a request.
    for headers in [
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", 5 + inner.len()),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", 5 + inner.len()),
    ] {
        let text = input.exchange(&post(&headers, &format!("0\r\n\r\n{inner}"))).await;
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
        parse_answer(&text).expect_problem(400, "invalid-request");
        input.untouched(&headers).await;
        // Behind another request in the same packet hyper hides one of the two. It reads by Transfer-Encoding, and closes
        // the connection after the answer (RFC 9112 §6.3).
        let mut bytes = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
        bytes.extend(post(&headers, &format!("0\r\n\r\n{inner}")));
        let text = input.exchange(&bytes).await;
        assert_eq!(text.matches("HTTP/1.1").count(), 2, "{text}");
        assert!(text.contains("HTTP/1.1 400"), "{text}");
        input.untouched(&headers).await;
    }
    // A refused body is never read as the next request, whether there is more of it or not.
    for headers in [
        "Content-Length: 5000000\r\n",
        "Transfer-Encoding: chunked\r\nContent-Encoding: br\r\n",
        "Content-Length: 9\r\nX-Y: z\r\nHost: y\r\n",
    ] {
        let text = input.exchange(&post(headers, &inner)).await;
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
        input.untouched(headers).await;
    }
    for body in [
        "g\r\n",
        "-1\r\n",
        "+5\r\nhello\r\n",
        "ffffffffffffffffff\r\n",
        "5 \r\nhelloX",
        "3\r\nabcd\r\n",
        "5\r\nhello0\r\n\r\n",
        "1;\"\n\r\n",
    ] {
        input.refused_bytes(&post("Transfer-Encoding: chunked\r\n", body), 400).await;
    }
}

/// `count` header lines with values of `size` bytes.
fn fields(count: usize, size: usize) -> String {
    (0..count).fold(String::new(), |lines, n| lines + &format!("X-{n}: {}\r\n", "x".repeat(size)))
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let mut input = Input::start().await;
    // hyper counts too, beyond 100.
    for count in [63, 99, 200] {
        let headers = fields(count, 1);
        let bytes = format!("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        let text = input.refused_bytes(bytes.as_bytes(), 431).await;
        parse_answer(&text).expect_problem(431, "headers-too-large");
    }
    for (count, size) in [(1, 16 * 1024), (8, 2 * 1024), (1, 1024 * 1024)] {
        let headers = fields(count, size);
        let bytes = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let text = input.refused_bytes(bytes.as_bytes(), 431).await;
        parse_answer(&text).expect_problem(431, "headers-too-large");
    }
    // As with the fields, ours is the lower of two limits.
    for size in [9_000, 60_000, 70_000] {
        let bytes = format!("GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "x".repeat(size));
        let text = input.refused_bytes(bytes.as_bytes(), 414).await;
        parse_answer(&text).expect_problem(414, "uri-too-long");
    }
    let headers = fields(62, 200);
    let text = input
        .exchange(format!("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").as_bytes())
        .await;
    assert_eq!(parse_answer(&text).status, 200, "64 fields of under 16 KiB will do");
}

#[tokio::test]
async fn good_requests_in_odd_clothes_are_served() {
    let input = Input::start().await;
    for bytes in [
        "GET /livez HTTP/1.0\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
        "GET http://x/livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "\r\nGET /livez HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n",
        "GET /livez HTTP/1.1\nHost: x\nConnection: close\n\n",
    ] {
        let text = input.exchange(bytes.as_bytes()).await;
        assert_eq!(parse_answer(&text).status, 200, "{bytes:?}: {text}");
    }
    let pipelined = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(input.exchange(pipelined.as_bytes()).await.matches("HTTP/1.1 200").count(), 2);
}

#[tokio::test]
async fn a_slow_head_ends_the_connection() {
    let timeout = Duration::from_millis(300);
    let mut input = Input::start_with(|config| config.server.header_timeout = timeout).await;
    let began = Instant::now();
    let mut silent = input.connect().await;
    assert_eq!(read_to_close(&mut silent).await, "");
    assert!(began.elapsed() >= timeout);
    let mut half = input.connect().await;
    half.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    assert_eq!(read_to_close(&mut half).await, "");
    // Drop by drop, on a connection that has served a request: the time begins with the first byte.
    let mut slow = input.connect().await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 1024];
    assert!(slow.read(&mut answer).await.unwrap() > 0);
    let began = Instant::now();
    let (mut from, mut to) = slow.into_split();
    let dripping = tokio::spawn(async move {
        let mut drops = tokio::time::interval(Duration::from_millis(10));
        while to.write_all(b"G").await.is_ok() {
            drops.tick().await;
        }
    });
    let closed = tokio::time::timeout(Duration::from_secs(10), from.read(&mut answer)).await.expect("closed in time");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    assert!(began.elapsed() >= timeout && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    dripping.await.unwrap();
    input.untouched("slow heads").await;
}

#[tokio::test]
async fn an_idle_connection_outlives_the_time_for_heads() {
    let (header, idle) = (Duration::from_millis(200), Duration::from_millis(1_500));
    let input = Input::start_with(|config| {
        config.server.header_timeout = header;
        config.server.idle_timeout = idle;
    })
    .await;
    let mut connection = input.connect().await;
    let mut answer = [0; 1024];
    for _ in 0..2 {
        connection.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(connection.read(&mut answer).await.unwrap() > 0);
        // Quiet for longer than a head may take: time is the condition here.
        let quiet = tokio::time::timeout(header * 3, connection.read(&mut answer)).await;
        assert!(quiet.is_err(), "closed too early");
    }
    let began = Instant::now();
    assert_eq!(read_to_close(&mut connection).await, "");
    assert!(began.elapsed() < idle * 4);
}

#[tokio::test]
async fn a_slow_body_is_a_408_and_a_short_one_writes_nothing() {
    let mut input = Input::start_with(|config| config.limits.body_timeout = Duration::from_millis(300)).await;
    for headers in ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"] {
        let text = input.exchange(&post(headers, "")).await;
        let answer = parse_answer(&text).expect_problem(408, "request-timeout");
        assert_eq!(answer.header("connection"), "close");
        assert_eq!(answer.json()["retryable"], true);
        input.untouched(headers).await;
    }
    for headers in [format!("Content-Length: {}\r\n", GOOD.len() + 1), "Transfer-Encoding: chunked\r\n".to_owned()] {
        let body = if headers.starts_with('T') { format!("{:x}\r\n{GOOD}\r\n", GOOD.len()) } else { GOOD.to_owned() };
        let mut connection = input.connect().await;
        connection.write_all(&post(&headers, &body)).await.unwrap();
        connection.shutdown().await.unwrap();
        let text = read_to_close(&mut connection).await;
        if !text.is_empty() {
            parse_answer(&text).expect_problem(400, "invalid-json");
        }
        let mut gone = input.connect().await;
        gone.write_all(&post(&headers, &body)).await.unwrap();
        drop(gone);
        input.untouched(&headers).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go() {
    let input = Input::start_with(|config| {
        config.server.idle_timeout = Duration::from_millis(500);
        config.server.connections_max = 2;
    })
    .await;
    let big = format!(r#"{{"events":[{{"type":"a","data":"{}"}}]}}"#, "x".repeat(1_000_000));
    for _ in 0..8 {
        input.app.append("big-1", &big).await.expect(201);
    }
    // One of two connections asks for more than the sockets hold, and never reads.
    let mut deaf = input.connect().await;
    for _ in 0..4 {
        deaf.write_all(b"GET /streams/big-1 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    }
    input.app.get("/livez").await.expect(200);
    // A third one is served once the deaf one has been let go.
    let mut third = input.connect().await;
    third.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let text = read_to_close(&mut third).await;
    assert_eq!(parse_answer(&text).status, 200);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), deaf.read_to_end(&mut rest)).await.expect("closed");
    assert!(ended.is_err() || rest.len() < 30_000_000, "the whole was sent after all");
}
