//! webdis: any command of Redis over HTTP; here the same function on the same Redis as raw and the service. It reads no
//! events: an array in an array, as `XRANGE` answers, it gives as `null`.

use std::fs;

use streamkeep::store::Library;

use super::{Peer, Wanted};
use crate::{
    load::{Client, Turn},
    process::{Server, find},
    rows::Target,
    streams::{ID, KIND, Share, data},
    wire::http_reply,
};

/// As many connections to Redis as the row with most connections of its own.
const POOL: usize = 25;
const THREADS: usize = 2;

pub fn start(wanted: &Wanted) -> Result<Peer, String> {
    let program = find("webdis").ok_or("webdis is not on PATH (Debian's package webdis)")?;
    let file = wanted.data.join("webdis.json");
    let server = Server::start(&program, |address| {
        let settings = serde_json::json!({
            "redis_host": wanted.data.join("redis.sock"),
            "http_host": address.ip().to_string(),
            "http_port": address.port(),
            "threads": THREADS,
            "pool_size": POOL,
            "daemonize": false,
            "verbosity": 0,
            "logfile": wanted.data.join("webdis.log"),
        });
        fs::write(&file, settings.to_string()).expect("the temporary folder takes files");
        vec![file.display().to_string()]
    })?;
    Ok(Peer { target: Target::Webdis, server, level: "the same function on the same Redis".to_owned() })
}

/// `FCALL` of the append function in the body of a POST.
pub struct Append {
    share: Share,
    function: String,
    events: usize,
    /// The arguments of the events.
    tail: String,
}

impl Append {
    pub fn new(share: Share, events: usize) -> Self {
        let event = format!("/{ID}//{KIND}/{}/{{}}", data());
        Self { share, function: Library::default().function("es_append"), events, tail: event.repeat(events) }
    }
}

impl Client for Append {
    fn request(&mut self, out: &mut Vec<u8>) {
        let (stream, version) = self.share.take(self.events);
        let Self { function, tail, .. } = self;
        let keys = format!("log/events:{stream}/ids:{stream}/stream:{stream}");
        let body = format!("FCALL/{function}/4/{keys}/{}/{version}///{stream}{tail}", self.events);
        let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(body.as_bytes());
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let length = http_reply(input, b"HTTP/1.1 200")?;
        let answer = &input[..length];
        // What failed has something else in place of the first version.
        let version = answer.windows(3).position(|part| part == b"\":\"").and_then(|at| answer.get(at + 3));
        assert!(version.is_some_and(u8::is_ascii_digit), "{}", String::from_utf8_lossy(answer));
        Some(length)
    }

    fn turn(&self) -> Turn {
        Turn::Over(self.events)
    }
}
