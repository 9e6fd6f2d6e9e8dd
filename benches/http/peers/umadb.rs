//! UmaDB over gRPC: an event has its stream as a tag, and a condition is that no event with this tag comes after the last
//! one that is known.

use uuid::Uuid;

use super::{Peer, Wanted, http2::Connection};
use crate::{
    clients::PAGE,
    load::{Client, Turn},
    process::{Server, find},
    rows::Target,
    streams::{KIND, Share, data},
};

pub fn start(wanted: &Wanted) -> Result<Peer, String> {
    let program = find("umadb").ok_or("umadb is not on PATH (cargo install --locked umadb)")?;
    let folder = wanted.data.join("umadb");
    std::fs::create_dir(&folder).map_err(|error| format!("UmaDB: {error}"))?;
    let server = Server::start(&program, |address| {
        let (address, folder) = (address.to_string(), folder.display().to_string());
        ["--listen", &address, "--db-path", &folder].map(str::to_owned).to_vec()
    })?;
    Ok(Peer { target: Target::UmaDb, server, level: "on disk; it has no other way".to_owned() })
}

/// `Append`
pub struct Append {
    connection: Connection,
    share: Share,
    events: usize,
}

impl Append {
    pub fn new(share: Share, events: usize) -> Self {
        Self { connection: Connection::new("/umadb.v1.DCB/Append"), share, events }
    }
}

impl Client for Append {
    fn request(&mut self, out: &mut Vec<u8>) {
        let (stream, last) = self.share.take(0);
        let mut request = Vec::new();
        for _ in 0..self.events {
            let mut event = Vec::new();
            field(&mut event, 1, KIND.as_bytes());
            field(&mut event, 2, stream.as_bytes());
            field(&mut event, 3, data().as_bytes());
            field(&mut event, 4, Uuid::new_v4().to_string().as_bytes());
            field(&mut request, 1, &event);
        }
        let mut condition = Vec::new();
        field(&mut condition, 1, &tagged(&stream));
        number_field(&mut condition, 2, last);
        field(&mut request, 2, &condition);
        self.connection.request(out, &request);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let length = self.connection.reply(input)?;
        // Behind the head of a message: field 1, the position.
        assert_eq!(self.connection.data.get(5), Some(&(1 << 3)), "an answer has a position");
        let digits = self.connection.data[6..].iter().rev();
        self.share.settle(digits.fold(0, |number, digit| number << 7 | u64::from(digit & 0x7f)));
        Some(length)
    }

    fn turn(&self) -> Turn {
        Turn::Over(self.events)
    }
}

/// `Read` of all events with a tag.
pub struct Read {
    connection: Connection,
    message: Vec<u8>,
}

impl Read {
    pub fn new(index: usize) -> Self {
        let mut message = Vec::new();
        field(&mut message, 1, &tagged(&format!("page-{index:08}")));
        number_field(&mut message, 4, PAGE as u64);
        number_field(&mut message, 6, PAGE as u64);
        Self { connection: Connection::new("/umadb.v1.DCB/Read"), message }
    }
}

impl Client for Read {
    fn request(&mut self, out: &mut Vec<u8>) {
        self.connection.request(out, &self.message);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let length = self.connection.reply(input)?;
        assert!(self.connection.data.len() > PAGE * data().len(), "all events come");
        Some(length)
    }

    fn turn(&self) -> Turn {
        Turn::Over(PAGE)
    }
}

/// A query for the events of a stream.
fn tagged(stream: &str) -> Vec<u8> {
    let (mut item, mut query) = (Vec::new(), Vec::new());
    field(&mut item, 2, stream.as_bytes());
    field(&mut query, 1, &item);
    query
}

/// A field of bytes, or of a message.
fn field(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn number_field(out: &mut Vec<u8>, tag: u8, value: u64) {
    out.push(tag << 3);
    varint(out, value);
}

/// Seven bits a byte, the lowest first.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(0x80 | u8::try_from(value & 0x7f).expect("seven bits"));
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
}
