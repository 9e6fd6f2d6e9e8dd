//! NATS JetStream: a subject a stream, all in one file store. A condition is the sequence of the subject's last message.

use std::ops::Range;

use super::{
    Peer, Wanted,
    nats::{Message, hello, inbox, messages, publish, publish_with},
};
use crate::{
    clients::PAGE,
    groups::{Consumer, Left, Step},
    load::{self, Address, Client, Turn},
    process::{Server, find},
    rows::Target,
    streams::{KIND, Share, data},
    wire::number,
};

/// More messages than are handed out in a round, so that nobody waits for the last ones.
const SPARE: usize = 1_000;
/// Messages in a pipeline of the fill.
const PIPELINE: usize = 500;
const HEADER: &str = "Nats-Expected-Last-Subject-Sequence: ";

pub fn start(wanted: &Wanted) -> Result<Peer, String> {
    let program = find("nats-server").ok_or("nats-server is not on PATH (Debian's package nats-server)")?;
    let (store, log) = (wanted.data.join("jetstream"), wanted.data.join("nats.log"));
    let server = Server::start(&program, |address| {
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let (store, log) = (store.display().to_string(), log.display().to_string());
        ["-js", "-a", &host, "-p", &port, "-sd", &store, "-l", &log].map(str::to_owned).to_vec()
    })?;
    // Before 2.10 there is no setting for it.
    Ok(Peer {
        target: Target::JetStream,
        server,
        level: "written to its file, which is synced every 2 minutes".to_owned(),
    })
}

/// Makes the streams, and fills the one that is handed out.
pub async fn fill(address: &Address, handed_out: Option<usize>) {
    for name in ["events", "work"] {
        let stream = format!(r#"{{"name":"{name}","subjects":["{name}.>"],"storage":"file","num_replicas":1}}"#);
        load::ask(address, Ask::new(vec![(format!("$JS.API.STREAM.CREATE.{name}"), stream)])).await;
    }
    if let Some(events) = handed_out {
        load::ask_all(address, Fill { connection: Connection::new(), events: 0..events + SPARE, sent: 0 }).await;
    }
}

/// Has the workers' consumer begin anew.
pub async fn seek(address: &Address) {
    let settings =
        r#"{"stream_name":"work","config":{"durable_name":"workers","ack_policy":"explicit","max_ack_pending":-1}}"#;
    let make = ("$JS.API.CONSUMER.DURABLE.CREATE.work.workers".to_owned(), settings.to_owned());
    let delete = ("$JS.API.CONSUMER.DELETE.work.workers".to_owned(), String::new());
    load::ask(address, Ask::new(vec![delete, make])).await;
}

/// What is said before the first request, and where answers go.
struct Connection {
    hello: Vec<u8>,
    inbox: String,
}

impl Connection {
    fn new() -> Self {
        let inbox = inbox();
        Self { hello: hello(&inbox), inbox }
    }

    /// A subject for answers.
    fn answer(&self) -> String {
        format!("{}.a", self.inbox)
    }

    fn greet(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.hello);
    }
}

/// The sequence in the answer to a message that was stored. One that was refused has a sequence too: 0.
fn sequence(message: &Message) -> u64 {
    let text = std::str::from_utf8(message.payload).expect("answers are text");
    assert!(!text.contains("\"error\":"), "{text}");
    let (_, rest) = text.split_once("\"seq\":").unwrap_or_else(|| panic!("{text}"));
    let digits = rest.split(|end: char| !end.is_ascii_digit()).next().unwrap_or_default();
    u64::try_from(number(digits.as_bytes())).expect("sequences are not negative")
}

/// The event as one would send it.
fn event() -> Vec<u8> {
    format!(r#"{{"type":"{KIND}","data":{}}}"#, data()).into_bytes()
}

/// A message with a condition, and where there are more, the others of the batch behind it: not one step, as there is none.
pub struct Append {
    connection: Connection,
    share: Share,
    events: usize,
    event: Vec<u8>,
}

impl Append {
    pub fn new(share: Share, events: usize) -> Self {
        Self { connection: Connection::new(), share, events, event: event() }
    }
}

impl Client for Append {
    fn request(&mut self, out: &mut Vec<u8>) {
        self.connection.greet(out);
        let (stream, last) = self.share.take(0);
        let (subject, answer) = (format!("events.{stream}"), self.connection.answer());
        publish_with(out, &subject, &answer, &format!("{HEADER}{last}"), &self.event);
        for _ in 1..self.events {
            publish(out, &subject, &answer, &self.event);
        }
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let (answers, length) = messages(input, self.events)?;
        self.share.settle(answers.iter().map(sequence).max()?);
        Some(length)
    }

    fn turn(&self) -> Turn {
        Turn::Over(self.events)
    }
}

/// A consumer of one subject that lives for one page: how a subject's messages are read.
pub struct Read {
    connection: Connection,
    index: usize,
    pages: usize,
}

impl Read {
    pub fn new(index: usize) -> Self {
        Self { connection: Connection::new(), index, pages: 0 }
    }

    fn consumer(&self, page: usize) -> String {
        format!("{}-{page}", &self.connection.inbox["_INBOX.".len()..])
    }
}

impl Client for Read {
    fn request(&mut self, out: &mut Vec<u8>) {
        self.connection.greet(out);
        let answer = self.connection.answer();
        if self.pages > 0 {
            let delete = format!("$JS.API.CONSUMER.DELETE.events.{}", self.consumer(self.pages));
            publish(out, &delete, &answer, b"");
        }
        self.pages += 1;
        let (name, index, inbox) = (self.consumer(self.pages), self.index, &self.connection.inbox);
        let settings = format!(
            r#"{{"stream_name":"events","config":{{"name":"{name}","deliver_subject":"{inbox}.d","deliver_policy":"all","ack_policy":"none","filter_subject":"events.page-{index:08}","mem_storage":true,"max_deliver":1}}}}"#
        );
        let create = format!("$JS.API.CONSUMER.CREATE.events.{name}.events.page-{index:08}");
        publish(out, &create, &answer, settings.as_bytes());
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let asked = if self.pages > 1 { 2 } else { 1 };
        let (found, length) = messages(input, asked + PAGE)?;
        let failed = found.iter().find(|message| message.payload.starts_with(br#"{"error"#) || is_error(message));
        assert!(failed.is_none(), "{}", String::from_utf8_lossy(input));
        Some(length)
    }

    fn turn(&self) -> Turn {
        Turn::Over(PAGE)
    }
}

/// Whether the answer of the interface says that it did not do what was asked.
fn is_error(message: &Message) -> bool {
    message.payload.starts_with(br#"{"type":"io.nats"#)
        && message.payload.windows(9).any(|part| part == br#""error":{"#)
}

/// Takes messages from the workers' consumer, then acks each and waits until all acks are confirmed.
pub struct Consume {
    connection: Connection,
    consumer: Consumer,
    /// Where the acks go.
    acks: Vec<String>,
    acked: usize,
}

impl Consume {
    pub fn new(index: usize, limit: usize, left: &Left) -> Self {
        Self { connection: Connection::new(), consumer: Consumer::new(index, limit, left), acks: Vec::new(), acked: 0 }
    }
}

impl Client for Consume {
    fn request(&mut self, out: &mut Vec<u8>) {
        self.connection.greet(out);
        let answer = self.connection.answer();
        if let Step::Next = self.consumer.step {
            let body = format!(r#"{{"batch":{}}}"#, self.consumer.limit);
            publish(out, "$JS.API.CONSUMER.MSG.NEXT.work.workers", &answer, body.as_bytes());
            return;
        }
        for ack in &self.acks {
            publish(out, ack, &answer, b"+ACK");
        }
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let (found, length) = messages(input, self.consumer.limit)?;
        if let Step::Ack(count) = self.consumer.step {
            (self.acked, self.consumer.step) = (count, Step::Next);
            return Some(length);
        }
        self.acked = 0;
        self.acks.clear();
        self.acks.extend(found.iter().map(|message| message.answer.expect("messages are acked").to_owned()));
        self.consumer.took(found.len());
        Some(length)
    }

    fn turn(&self) -> Turn {
        self.consumer.turn(self.acked)
    }
}

/// Publishes what is handed out.
struct Fill {
    connection: Connection,
    events: Range<usize>,
    sent: usize,
}

impl Client for Fill {
    fn request(&mut self, out: &mut Vec<u8>) {
        self.connection.greet(out);
        let (event, answer, before) = (event(), self.connection.answer(), self.events.len());
        for index in self.events.by_ref().take(PIPELINE) {
            publish(out, &format!("work.{:08}", index % crate::groups::STREAMS), &answer, &event);
        }
        self.sent = before - self.events.len();
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        Some(messages(input, self.sent)?.1)
    }

    fn turn(&self) -> Turn {
        if self.events.is_empty() { Turn::Last(self.sent) } else { Turn::Over(self.sent) }
    }
}

/// Requests of the interface, of which the last must succeed.
struct Ask {
    connection: Connection,
    requests: Vec<(String, String)>,
}

impl Ask {
    fn new(requests: Vec<(String, String)>) -> Self {
        Self { connection: Connection::new(), requests }
    }
}

impl Client for Ask {
    fn request(&mut self, out: &mut Vec<u8>) {
        self.connection.greet(out);
        for (subject, body) in &self.requests {
            publish(out, subject, &self.connection.answer(), body.as_bytes());
        }
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let (answers, length) = messages(input, self.requests.len())?;
        let last = answers.last()?;
        assert!(!is_error(last), "{}", String::from_utf8_lossy(last.payload));
        Some(length)
    }
}
