//! Consumers of a group: `next` and `ack` over HTTP; and `XREADGROUP` and `XACK` on a stream that holds the same events,
//! as a worker without a service would call them.

use std::{
    io::Write as _,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use streamkeep::store::Library;

use crate::{
    clients::{add_whole, append_reply, call_append},
    load::{Client, Turn},
    wire::{bulk, command, http_reply, post, resp_replies},
};

/// Streams whose events are handed out.
pub const STREAMS: usize = 10_000;
/// The stream that holds whole events, for the raw consumers, and their group.
const WHOLE: &str = "whole";
const GROUP: &str = "workers";
/// Commands in a pipeline of the fill.
const PIPELINE: usize = 500;

/// How many events are left to be handed out in a row's round.
pub type Left = Arc<AtomicUsize>;

/// What a consumer does next.
pub enum Step {
    /// It asks for events.
    Next,
    /// It acks so many.
    Ack(usize),
}

/// What consumers of both kinds share: who asks, for how many, and how far it is.
pub struct Consumer {
    name: String,
    pub limit: usize,
    left: Left,
    pub step: Step,
}

impl Consumer {
    pub fn new(index: usize, limit: usize, left: &Left) -> Self {
        Self { name: format!("consumer-{index}"), limit, left: Arc::clone(left), step: Step::Next }
    }

    /// Events came; none where the others hold the last ones.
    pub fn took(&mut self, count: usize) {
        let before = self.left.load(Ordering::Relaxed);
        let left = if count == 0 { 0 } else { before.saturating_sub(count) };
        self.left.store(left, Ordering::Relaxed);
        self.step = if count == 0 { Step::Next } else { Step::Ack(count) };
    }

    /// What the last reply means, which acked so many.
    pub fn turn(&self, acked: usize) -> Turn {
        match self.step {
            Step::Next if self.left.load(Ordering::Relaxed) == 0 => Turn::Last(acked),
            Step::Next => Turn::Over(acked),
            Step::Ack(_) => Turn::GoesOn,
        }
    }
}

/// `GET /groups/{group}/next`, then `POST /groups/{group}/ack`
pub struct HttpConsumer {
    consumer: Consumer,
    group: String,
    /// The body of the ack.
    leases: Vec<u8>,
    acked: usize,
}

impl HttpConsumer {
    pub fn new(group: &str, index: usize, limit: usize, left: &Left) -> Self {
        Self { consumer: Consumer::new(index, limit, left), group: group.to_owned(), leases: Vec::new(), acked: 0 }
    }
}

impl Client for HttpConsumer {
    fn request(&mut self, out: &mut Vec<u8>) {
        let Self { consumer: Consumer { name, limit, step, .. }, group, leases, .. } = self;
        if let Step::Next = step {
            write!(out, "GET /groups/{group}/next?consumer={name}&limit={limit} HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .expect("memory takes it");
        } else {
            post(out, &format!("/groups/{group}/ack"), "POST", leases);
        }
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let length = http_reply(input, b"HTTP/1.1 200")?;
        if let Step::Ack(count) = self.consumer.step {
            (self.acked, self.consumer.step) = (count, Step::Next);
            return Some(length);
        }
        self.acked = 0;
        self.leases.clear();
        self.leases.extend_from_slice(b"{\"leases\":[");
        let text = std::str::from_utf8(&input[..length]).expect("answers are UTF-8");
        let mut count = 0;
        for part in text.split("{\"lease\":").skip(1) {
            let lease = part.split(',').next().expect("a part has a beginning");
            self.leases.extend_from_slice(if count == 0 { b"" } else { b"," });
            self.leases.extend_from_slice(lease.as_bytes());
            count += 1;
        }
        self.leases.extend_from_slice(b"]}");
        self.consumer.took(count);
        Some(length)
    }

    fn turn(&self) -> Turn {
        self.consumer.turn(self.acked)
    }
}

/// `XREADGROUP`, then `XACK`
pub struct RawConsumer {
    consumer: Consumer,
    ids: Vec<String>,
    acked: usize,
}

impl RawConsumer {
    pub fn new(index: usize, limit: usize, left: &Left) -> Self {
        Self { consumer: Consumer::new(index, limit, left), ids: Vec::new(), acked: 0 }
    }
}

impl Client for RawConsumer {
    fn request(&mut self, out: &mut Vec<u8>) {
        let Consumer { name, limit, step, .. } = &self.consumer;
        if let Step::Next = step {
            command(out, &["XREADGROUP", "GROUP", GROUP, name, "COUNT", &limit.to_string(), "STREAMS", WHOLE, ">"]);
            return;
        }
        write!(out, "*{}\r\n", 3 + self.ids.len()).expect("memory takes it");
        for argument in ["XACK", WHOLE, GROUP].into_iter().chain(self.ids.iter().map(String::as_str)) {
            bulk(out, argument);
        }
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let length = resp_replies(input, 1)?;
        if let Step::Ack(count) = self.consumer.step {
            (self.acked, self.consumer.step) = (count, Step::Next);
            return Some(length);
        }
        self.acked = 0;
        self.ids = entry_ids(&input[..length]);
        self.consumer.took(self.ids.len());
        Some(length)
    }

    fn turn(&self) -> Turn {
        self.consumer.turn(self.acked)
    }
}

/// The ids of entries: each stands first in an array of two, whose second is an array of fields and values.
fn entry_ids(reply: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(reply).expect("the events are UTF-8");
    let after = text.split("*2\r\n$").skip(1).filter_map(|part| {
        let mut lines = part.split("\r\n").skip(1);
        let id = lines.next()?;
        lines.next()?.starts_with('*').then(|| id.to_owned())
    });
    after.filter(|id| id.contains('-')).collect()
}

/// Appends events to the streams in turns, as the service does, and the same ones to the stream that holds them whole.
pub struct Fill {
    function: String,
    events: Range<usize>,
    sent: usize,
}

impl Fill {
    pub fn new(events: usize) -> Self {
        Self { function: Library::default().function("es_append"), events: 0..events, sent: 0 }
    }
}

impl Client for Fill {
    fn request(&mut self, out: &mut Vec<u8>) {
        let before = self.events.len();
        for event in self.events.by_ref().take(PIPELINE) {
            let (stream, version) = (format!("work-{:08}", event % STREAMS), (event / STREAMS) as u64);
            call_append(out, &self.function, &stream, version, 1);
            add_whole(out, WHOLE, Some(&stream), version, event as u64 + 1);
        }
        self.sent = 2 * (before - self.events.len());
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        (0..self.sent / 2).try_fold(0, |at, _| {
            let at = at + append_reply(&input[at..])?;
            Some(at + resp_replies(&input[at..], 1)?)
        })
    }

    fn turn(&self) -> Turn {
        if self.events.is_empty() { Turn::Last(self.sent) } else { Turn::Over(self.sent) }
    }
}

/// Creates a group, or moves it to the beginning.
pub struct HttpGroup {
    method: &'static str,
    path: String,
    body: String,
}

impl HttpGroup {
    pub fn create(group: &str, ordering: &str) -> Self {
        let body = format!(r#"{{"ordering":"{ordering}"}}"#);
        Self { method: "PUT", path: format!("/groups/{group}"), body }
    }

    pub fn seek(group: &str) -> Self {
        Self { method: "POST", path: format!("/groups/{group}/seek"), body: r#"{"to":"beginning"}"#.to_owned() }
    }
}

impl Client for HttpGroup {
    fn request(&mut self, out: &mut Vec<u8>) {
        post(out, &self.path, self.method, self.body.as_bytes());
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        http_reply(input, b"HTTP/1.1 20")
    }
}

/// Makes the raw consumers' group anew.
pub struct RawGroup;

impl Client for RawGroup {
    fn request(&mut self, out: &mut Vec<u8>) {
        command(out, &["XGROUP", "DESTROY", WHOLE, GROUP]);
        command(out, &["XGROUP", "CREATE", WHOLE, GROUP, "0"]);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        resp_replies(input, 2)
    }
}
