//! What the connections say: appends and reads, over HTTP and as raw commands of Redis with the same keys and arguments.

use std::{
    io::Write as _,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::load::{Client, Turn};

/// Bytes of an event's data.
const DATA: usize = 200;
/// Events of a stream that is read.
pub const PAGE: usize = 100;
/// Of every event.
pub const KIND: &str = "order-placed";
pub const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// Streams with known versions. Each connection of a row owns a share of them, so that it can say what it expects.
pub struct Streams {
    prefix: &'static str,
    versions: Vec<AtomicU64>,
}

impl Streams {
    pub fn new(prefix: &'static str, count: usize) -> Arc<Self> {
        Arc::new(Self { prefix, versions: (0..count).map(|_| AtomicU64::new(0)).collect() })
    }

    /// The shares of `connections`.
    pub fn share_out(self: &Arc<Self>, connections: usize) -> impl Iterator<Item = Share> {
        (0..connections).map(move |first| Share { streams: Arc::clone(self), step: connections, at: first, first })
    }
}

/// Every `step`th stream.
pub struct Share {
    streams: Arc<Streams>,
    step: usize,
    first: usize,
    at: usize,
}

impl Share {
    /// The next stream's name and version.
    fn next(&mut self) -> (String, u64) {
        self.at += self.step;
        if self.at >= self.streams.versions.len() {
            self.at = self.first;
        }
        (self.streams.name(self.at), self.streams.versions[self.at].load(Ordering::Relaxed))
    }

    fn appended(&self) {
        self.streams.versions[self.at].fetch_add(1, Ordering::Relaxed);
    }
}

impl Streams {
    fn name(&self, index: usize) -> String {
        format!("{}-{index:08}", self.prefix)
    }
}

/// JSON of 200 bytes.
pub fn data() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let (head, tail) = (r#"{"order":"00001234","text":""#, "\"}");
        format!("{head}{}{tail}", "x".repeat(DATA - head.len() - tail.len()))
    });
    &TEXT
}

/// `POST /streams/{id}/events` with `If-Match`.
pub struct HttpAppend {
    share: Share,
    tail: Vec<u8>,
}

impl HttpAppend {
    pub fn new(share: Share) -> Self {
        let body = format!(r#"{{"events":[{{"type":"{KIND}","data":{}}}]}}"#, data());
        let length = body.len();
        let head = format!("\"\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        Self { share, tail: [head.into_bytes(), body.into_bytes()].concat() }
    }
}

impl Client for HttpAppend {
    fn request(&mut self, out: &mut Vec<u8>) {
        let (stream, version) = self.share.next();
        write!(out, "POST /streams/{stream}/events HTTP/1.1\r\nHost: localhost\r\nIf-Match: \"{version}")
            .expect("memory takes it");
        out.extend_from_slice(&self.tail);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let length = http_reply(input, b"HTTP/1.1 201")?;
        self.share.appended();
        Some(length)
    }
}

/// The append function, as the service calls it.
pub struct RawAppend {
    share: Share,
    function: String,
}

impl RawAppend {
    pub fn new(share: Share, function: &str) -> Self {
        Self { share, function: function.to_owned() }
    }
}

/// A call of the append function: one event, at the version behind this one.
pub fn call_append(out: &mut Vec<u8>, function: &str, stream: &str, version: &str) {
    let keys = ["log", &format!("events:{stream}"), &format!("ids:{stream}"), &format!("stream:{stream}")];
    let head = ["FCALL", function, "4"];
    let arguments = ["1", version, "", "", stream, ID, "", KIND, data(), "{}"];
    command(out, &[&head[..], &keys, &arguments].concat());
}

impl Client for RawAppend {
    fn request(&mut self, out: &mut Vec<u8>) {
        let (stream, version) = self.share.next();
        call_append(out, &self.function, &stream, &version.to_string());
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let length = resp_replies(input, 1)?;
        self.share.appended();
        Some(length)
    }
}

/// `GET /streams/{id}`
pub struct HttpRead {
    request: Vec<u8>,
}

impl HttpRead {
    pub fn new(index: usize) -> Self {
        let request = format!("GET /streams/page-{index:08}?limit={PAGE} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Self { request: request.into_bytes() }
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
        Turn::Over(PAGE)
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
        let event = format!(r#"{{"type":"{KIND}","data":{}}}"#, data());
        let body = format!(r#"{{"events":[{}]}}"#, vec![event; PAGE].join(","));
        let (index, length) = (self.index, body.len());
        write!(
            out,
            "POST /streams/page-{index:08}/events HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: *\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("memory takes it");
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        http_reply(input, b"HTTP/1.1 201")
    }
}

/// A command of Redis.
pub fn command(out: &mut Vec<u8>, arguments: &[&str]) {
    write!(out, "*{}\r\n", arguments.len()).expect("memory takes it");
    for argument in arguments {
        bulk(out, argument);
    }
}

pub fn bulk(out: &mut Vec<u8>, text: &str) {
    write!(out, "${}\r\n{text}\r\n", text.len()).expect("memory takes it");
}

/// The length of a reply with a `content-length`, once it is all there.
pub fn http_reply(input: &[u8], status: &[u8]) -> Option<usize> {
    let head = input.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    assert!(input.starts_with(status), "{}", String::from_utf8_lossy(input));
    let length = input[..head].split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked("content-length:".len())?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    let length = number(length.expect("answers have a length").trim_ascii());
    let all = head + usize::try_from(length).expect("a length is not negative");
    (input.len() >= all).then_some(all)
}

/// The length of so many replies, once they are all there.
pub fn resp_replies(input: &[u8], count: usize) -> Option<usize> {
    let (mut at, mut values) = (0, i64::try_from(count).expect("a count is small"));
    while values > 0 {
        let line = &input[at..];
        let end = line.iter().position(|byte| *byte == b'\n')?;
        at += end + 1;
        values -= 1;
        match line[0] {
            b'$' => at += usize::try_from(number(line[1..end].trim_ascii())).map_or(0, |length| length + 2),
            // No entries is an array of no length.
            b'*' => values += number(line[1..end].trim_ascii()).max(0),
            b':' | b'+' => {}
            _ => panic!("{}", String::from_utf8_lossy(input)),
        }
        if at > input.len() {
            return None;
        }
    }
    Some(at)
}

fn number(digits: &[u8]) -> i64 {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).expect("a number")
}
