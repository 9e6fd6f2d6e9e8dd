//! The text protocol of NATS.

use std::io::Write as _;

use crate::wire::number;

/// What a connection says first: who it is, and where its answers go.
pub fn hello(inbox: &str) -> Vec<u8> {
    let connect = r#"CONNECT {"verbose":false,"pedantic":false,"headers":true}"#;
    // One subject each: a consumer delivers to none that is only part of a pattern.
    format!("{connect}\r\nSUB {inbox}.a 1\r\nSUB {inbox}.d 2\r\n").into_bytes()
}

/// Subjects for the answers of one connection.
pub fn inbox() -> String {
    format!("_INBOX.{:016x}", fastrand::u64(..))
}

pub fn publish(out: &mut Vec<u8>, subject: &str, answer: &str, payload: &[u8]) {
    write!(out, "PUB {subject} {answer} {}\r\n", payload.len()).expect("memory takes it");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// The same with a header.
pub fn publish_with(out: &mut Vec<u8>, subject: &str, answer: &str, header: &str, payload: &[u8]) {
    let header = format!("NATS/1.0\r\n{header}\r\n\r\n");
    write!(out, "HPUB {subject} {answer} {} {}\r\n{header}", header.len(), header.len() + payload.len())
        .expect("memory takes it");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// A message that came.
pub struct Message<'a> {
    /// Where an answer to it goes.
    pub answer: Option<&'a str>,
    pub payload: &'a [u8],
}

/// So many messages and the bytes up to the last, once all are there. What else the server says is passed over.
pub fn messages(input: &[u8], count: usize) -> Option<(Vec<Message<'_>>, usize)> {
    let (mut found, mut at) = (Vec::with_capacity(count), 0);
    while found.len() < count {
        let end = at + input[at..].iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(&input[at..end]).expect("the protocol is text").trim_ascii_end();
        at = end + 1;
        let mut words = line.split(' ');
        match words.next() {
            Some("MSG" | "HMSG") => {}
            Some("INFO" | "PING" | "PONG" | "+OK") => continue,
            _ => panic!("{line}"),
        }
        // Subject, id of the subscription, where an answer goes, length of the header, length of all.
        let words: Vec<_> = words.collect();
        let length = usize::try_from(number(words.last()?.as_bytes())).expect("a length is not negative");
        let payload = input.get(at..at + length + 2)?;
        found.push(Message { answer: (words.len() > 3).then(|| words[2]), payload: &payload[..length] });
        at += length + 2;
    }
    Some((found, at))
}
