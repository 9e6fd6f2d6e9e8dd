//! The streams that are appended to, and what every event holds.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of an event's data.
const DATA: usize = 200;
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

    fn name(&self, index: usize) -> String {
        format!("{}-{index:08}", self.prefix)
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
    /// The next stream's name and version, to which so many events are appended now. An append that fails ends the run.
    pub fn take(&mut self, events: usize) -> (String, u64) {
        self.at += self.step;
        if self.at >= self.streams.versions.len() {
            self.at = self.first;
        }
        let version = self.streams.versions[self.at].fetch_add(events as u64, Ordering::Relaxed);
        (self.streams.name(self.at), version)
    }

    /// Says what the version of that stream is now, where only the answer tells it.
    pub fn settle(&self, version: u64) {
        self.streams.versions[self.at].store(version, Ordering::Relaxed);
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

/// So many events as the body of an append.
pub fn body(events: usize) -> String {
    let event = format!(r#"{{"type":"{KIND}","data":{}}}"#, data());
    format!(r#"{{"events":[{}]}}"#, vec![event; events].join(","))
}
