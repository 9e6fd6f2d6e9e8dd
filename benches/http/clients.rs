//! What the connections say: appends and reads, over HTTP and as raw commands of Redis with the same keys and arguments.

use std::io::Write as _;

use crate::{
    load::{Client, Turn},
    streams::{ID, KIND, Share, body, data},
    wire::{bulk, command, http_reply, post, resp_replies},
};

/// Events of a stream that is read.
pub const PAGE: usize = 100;

/// `POST /streams/{id}/events` with `If-Match`.
pub struct HttpAppend {
    share: Share,
    events: usize,
    tail: Vec<u8>,
}

impl HttpAppend {
    pub fn new(share: Share, events: usize) -> Self {
        let body = body(events);
        let length = body.len();
        let head = format!("\"\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        Self { share, events, tail: [head.into_bytes(), body.into_bytes()].concat() }
    }
}

impl Client for HttpAppend {
    fn request(&mut self, out: &mut Vec<u8>) {
        let (stream, version) = self.share.take(self.events);
        write!(out, "POST /streams/{stream}/events HTTP/1.1\r\nHost: localhost\r\nIf-Match: \"{version}")
            .expect("memory takes it");
        out.extend_from_slice(&self.tail);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        http_reply(input, b"HTTP/1.1 201")
    }

    fn turn(&self) -> Turn {
        Turn::Over(self.events)
    }
}

/// The append function, as the service calls it.
pub struct RawAppend {
    share: Share,
    function: String,
    events: usize,
}

impl RawAppend {
    pub fn new(share: Share, function: &str, events: usize) -> Self {
        Self { share, function: function.to_owned(), events }
    }
}

/// A call of the append function: so many events, at the versions behind this one.
pub fn call_append(out: &mut Vec<u8>, function: &str, stream: &str, version: u64, events: usize) {
    let keys = ["log", &format!("events:{stream}"), &format!("ids:{stream}"), &format!("stream:{stream}")];
    let (version, count) = (version.to_string(), events.to_string());
    let head = [&["FCALL", function, "4"][..], &keys, &[&count, &version, "", "", stream]].concat();
    let event = [ID, "", KIND, data(), "{}"];
    write!(out, "*{}\r\n", head.len() + event.len() * events).expect("memory takes it");
    for argument in head.into_iter().chain((0..events).flat_map(|_| event)) {
        bulk(out, argument);
    }
}

/// The length of the reply to a call of the append function.
pub fn append_reply(input: &[u8]) -> Option<usize> {
    let length = resp_replies(input, 1)?;
    // What failed has a word in place of the first version.
    let line = input[..length].split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
    assert!(line.first().is_some_and(u8::is_ascii_digit), "{}", String::from_utf8_lossy(&input[..length]));
    Some(length)
}

impl Client for RawAppend {
    fn request(&mut self, out: &mut Vec<u8>) {
        let (stream, version) = self.share.take(self.events);
        call_append(out, &self.function, &stream, version, self.events);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        append_reply(input)
    }

    fn turn(&self) -> Turn {
        Turn::Over(self.events)
    }
}

/// `XADD` of an event of the same fields, and nothing else: no condition, no log, no version.
pub struct Xadd {
    share: Share,
}

impl Xadd {
    pub fn new(share: Share) -> Self {
        Self { share }
    }
}

impl Client for Xadd {
    fn request(&mut self, out: &mut Vec<u8>) {
        let (stream, version) = self.share.take(1);
        add_whole(out, &stream, None, version, version);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        resp_replies(input, 1)
    }
}

/// `XADD` of an event with the fields that the append function writes, and the name of its stream where that is not the
/// key.
pub fn add_whole(out: &mut Vec<u8>, key: &str, stream: Option<&str>, version: u64, position: u64) {
    let (version, position) = (version.to_string(), position.to_string());
    let named = stream.map(|stream| ["stream", stream]);
    let fields = ["id", ID, "type", KIND, "data", data(), "metadata", "{}"];
    let numbers = ["timestamp", "1700000000000", "version", &version, "position", &position];
    command(
        out,
        &[&["XADD", key, "*"][..], named.as_ref().map_or(&[], |named| &named[..]), &fields, &numbers].concat(),
    );
}

/// A client's requests, several at once, and then all replies: it does not wait for one before it sends the next.
pub struct Pipelined<C> {
    client: C,
    requests: usize,
}

impl<C: Client> Pipelined<C> {
    pub fn new(client: C, requests: usize) -> Self {
        Self { client, requests }
    }
}

impl<C: Client> Client for Pipelined<C> {
    fn request(&mut self, out: &mut Vec<u8>) {
        for _ in 0..self.requests {
            self.client.request(out);
        }
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        (0..self.requests).try_fold(0, |at, _| Some(at + self.client.reply(&input[at..])?))
    }

    fn turn(&self) -> Turn {
        match self.client.turn() {
            Turn::GoesOn => Turn::GoesOn,
            Turn::Over(events) => Turn::Over(events * self.requests),
            Turn::Last(events) => Turn::Last(events * self.requests),
        }
    }
}

/// `GET /streams/{id}`
pub struct HttpRead {
    request: Vec<u8>,
    events: usize,
}

impl HttpRead {
    /// So many events of a stream.
    pub fn new(stream: &str, events: usize) -> Self {
        let request = format!("GET /streams/{stream}?limit={events} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Self { request: request.into_bytes(), events }
    }
}

impl Client for HttpRead {
    fn request(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        http_reply(input, b"HTTP/1.1 200")
    }

    fn turn(&self) -> Turn {
        Turn::Over(self.events)
    }
}

/// `XRANGE`
pub struct RawRead {
    request: Vec<u8>,
}

impl RawRead {
    pub fn new(index: usize) -> Self {
        let (mut request, key) = (Vec::new(), format!("events:page-{index:08}"));
        command(&mut request, &["XRANGE", &key, "-", "+", "COUNT", &PAGE.to_string()]);
        Self { request }
    }
}

impl Client for RawRead {
    fn request(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        resp_replies(input, 1)
    }

    fn turn(&self) -> Turn {
        Turn::Over(PAGE)
    }
}

/// Fills the streams that are read, over HTTP; one connection's requests, one after the other.
pub struct HttpFill {
    pub index: usize,
}

impl Client for HttpFill {
    fn request(&mut self, out: &mut Vec<u8>) {
        post(out, &format!("/streams/page-{:08}/events", self.index), "POST", body(PAGE).as_bytes());
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        http_reply(input, b"HTTP/1.1 201")
    }
}
