//! Input that is too large, compressed, or both.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use reqwest::{Body, Method};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    app::Answer,
    input::{GOOD, Input, VICTIM, parse_answer, read_to_close},
};

const MIB: usize = 1024 * 1024;

fn event(members: &str) -> String {
    format!("{{\"events\":[{{{members}}}]}}")
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// A frame with one raw block (RFC 8878 §3.1.1): content of under 256 bytes, not made smaller.
fn zstd(plain: &[u8]) -> Vec<u8> {
    let length = u8::try_from(plain.len()).unwrap();
    let block = (u32::from(length) << 3 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, length], &block[..3], plain].concat()
}

#[tokio::test]
async fn events_and_batches_over_the_limits_are_refused() {
    let mut input = Input::start().await;
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let object = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    let answer =
        input.refused_body(event(&format!(r#""type":"a","data":{}"#, text(MIB + 1))), 413, "payload-too-large").await;
    assert_eq!(answer.json()["errors"][0]["pointer"], "#/events/0/data");
    let metadata = format!(r#""type":"a","data":1,"metadata":{}"#, object(64 * 1024 + 1));
    let answer = input.refused_body(event(&metadata), 413, "payload-too-large").await;
    assert_eq!(answer.json()["errors"][0]["pointer"], "#/events/0/metadata");
    let events = |count: usize| format!("{{\"events\":[{}]}}", vec![r#"{"type":"a","data":1}"#; count].join(","));
    input.refused_body(events(1_001), 413, "payload-too-large").await;
    input.refused_body(format!("{}{GOOD}", " ".repeat(4 * MIB)), 413, "payload-too-large").await;
    let app = &input.app;
    app.append("good-1", &event(&format!(r#""type":"a","data":{},"metadata":{}"#, text(MIB), object(64 * 1024))))
        .await
        .expect(201);
    app.append("good-2", &events(1_000)).await.expect(201);
    app.append("good-3", &format!("{}{GOOD}", " ".repeat(4 * MIB - GOOD.len()))).await.expect(201);
}

#[tokio::test]
async fn a_body_without_a_length_is_read_up_to_the_limit_only() {
    let mut input = Input::start_with(|config| config.limits.body_bytes = 100_000).await;
    let chunks = futures::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>(vec![b' '; 50_000])));
    let request = input.append().body(Body::wrap_stream(chunks));
    input.refused("chunks", request, 413, "payload-too-large").await;
    // An endless body: the answer comes although the request never ends, and the connection is closed.
    let (mut from, mut to) = input.connect().await.into_split();
    let endless = tokio::spawn(async move {
        let head = format!(
            "POST {VICTIM} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        to.write_all(head.as_bytes()).await?;
        loop {
            to.write_all(format!("400\r\n{}\r\n", " ".repeat(0x400)).as_bytes()).await?;
            tokio::task::yield_now().await;
        }
        #[allow(unreachable_code, reason = "gives the type")]
        std::io::Result::Ok(())
    });
    let mut head = vec![0; 4 * 1024];
    let mut length = 0;
    while !String::from_utf8_lossy(&head[..length]).contains("payload-too-large") {
        let read = from.read(&mut head[length..]).await.expect("the answer arrives before the connection is reset");
        assert!(read > 0, "closed without an answer");
        length += read;
    }
    let answer = parse_answer(&String::from_utf8_lossy(&head[..length])).expect_problem(413, "payload-too-large");
    assert_eq!(answer.header("connection"), "close");
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), endless).await.expect("reading stops");
    ended.unwrap().expect_err("the connection is closed");
    input.untouched("an endless body").await;
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_still_gets_the_answer() {
    let mut input = Input::start().await;
    for status in [413, 415] {
        let kind = if status == 413 { "application/json" } else { "text/plain" };
        let mut connection = input.connect().await;
        let head = format!(
            "POST {VICTIM} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            16 * MIB
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..16 {
            connection.write_all(&vec![b' '; MIB]).await.expect("taken, so that the answer is not lost in a reset");
        }
        let text = read_to_close(&mut connection).await;
        assert_eq!(parse_answer(&text).status.as_u16(), status, "{text}");
        input.untouched(kind).await;
    }
}

#[tokio::test]
async fn nobody_is_told_to_send_a_body_that_is_refused() {
    let mut input = Input::start().await;
    let request = |length: usize| {
        format!(
            "POST {VICTIM} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut connection = input.connect().await;
    connection.write_all(request(5 * MIB).as_bytes()).await.unwrap();
    connection.shutdown().await.unwrap();
    let text = read_to_close(&mut connection).await;
    parse_answer(&text).expect_problem(413, "payload-too-large");
    input.untouched("100-continue").await;
}

#[tokio::test]
async fn compressed_bodies_are_read() {
    let input = Input::start().await;
    for (number, (coding, body)) in [
        ("gzip", gzip(GOOD.as_bytes())),
        ("zstd", zstd(GOOD.as_bytes())),
        ("identity", GOOD.into()),
        ("GZIP", gzip(GOOD.as_bytes())),
        ("x-gzip", gzip(GOOD.as_bytes())),
        // Several members, or frames, are one body.
        ("gzip", [gzip(&GOOD.as_bytes()[..9]), gzip(&GOOD.as_bytes()[9..])].concat()),
        ("zstd", [zstd(&GOOD.as_bytes()[..9]), zstd(&GOOD.as_bytes()[9..])].concat()),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/streams/good-{number}/events");
        let request = input.app.request(Method::POST, &path).header("content-type", "application/json");
        let answer = Answer::of(request.header("content-encoding", coding).body(body)).await;
        assert_eq!(answer.status.as_u16(), 201, "{coding}: {answer:?}");
    }
}

#[tokio::test]
async fn compressed_bodies_that_are_broken_or_too_large_are_refused() {
    let mut input = Input::start().await;
    let send =
        |input: &Input, coding: &str, body: Vec<u8>| input.append().header("content-encoding", coding).body(body);
    let good = gzip(GOOD.as_bytes());
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0xff;
    let bad = [
        ("gzip", Vec::new()),
        ("gzip", b"not gzip".to_vec()),
        ("gzip", GOOD.into()),
        ("gzip", good[..good.len() - 6].to_vec()),
        ("gzip", flipped),
        ("zstd", b"not zstd".to_vec()),
        ("zstd", good.clone()),
        ("gzip", gzip(&good)),
        ("gzip", [good.as_slice(), b"trailing junk"].concat()),
        ("gzip", [good.as_slice(), gzip(b"x").as_slice()].concat()),
        ("zstd", [zstd(GOOD.as_bytes()).as_slice(), b"trailing junk"].concat()),
        ("zstd", zstd(GOOD.as_bytes())[..20].to_vec()),
        ("identity", good.clone()),
    ];
    for (index, (coding, body)) in bad.into_iter().enumerate() {
        let request = send(&input, coding, body);
        input.refused(&format!("{coding} {index}"), request, 400, "invalid-json").await;
    }
    // 64 MiB in 64 KiB.
    let bomb = gzip(&vec![b' '; 64 * MIB]);
    let request = send(&input, "gzip", bomb);
    input.refused("a bomb", request, 413, "payload-too-large").await;
    for coding in ["br", "deflate", "compress", "gzip, gzip", "gzip,zstd", "x", "", "aws-chunked", "gzip;q=1"] {
        let request = send(&input, coding, good.clone());
        let answer = input.refused(coding, request, 415, "unsupported-media-type").await;
        assert!(answer.header("accept-encoding").contains("gzip"), "{coding}: {answer:?}");
        assert!(answer.header("accept-encoding").contains("zstd"), "{coding}: {answer:?}");
        assert_eq!(answer.header("accept-post"), "application/json", "{coding}: {answer:?}");
    }
    let request = send(&input, "gzip", good.clone()).header("content-encoding", "gzip");
    input.refused("two lines", request, 415, "unsupported-media-type").await;
}

#[tokio::test]
async fn bodies_together_have_a_limit_too() {
    let redis = crate::app::TestRedis::start().await;
    let app = crate::app::TestApp::start_with(redis, 1, |config| {
        config.limits.bodies_bytes = 4 * MIB;
        config.store.timeout = std::time::Duration::from_secs(4);
    })
    .await;
    app.append("order-1", GOOD).await.expect(201);
    app.redis.signal("STOP");
    let large = format!(r#"{{"events":[{{"type":"t","data":"{}"}}]}}"#, "x".repeat(1_000_000));
    let answers = futures::future::join_all((0..8).map(|_| app.append("order-1", &large))).await;
    app.redis.signal("CONT");
    let overloaded = answers.iter().filter(|answer| answer.json()["code"] == "overloaded").count();
    assert_eq!(overloaded, 4, "{answers:?}");
    crate::app::eventually("there is room again", async || app.append("order-1", &large).await.status == 201).await;
}
