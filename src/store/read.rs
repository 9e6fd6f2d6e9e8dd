//! Reading one stream: plain commands, one round trip.

use std::sync::atomic::Ordering;

use redis::{Cmd, FromRedisValue, Pipeline, Value};

use crate::{
    model::{Error, Event, Partition, Position, StreamId, Version},
    store::{
        Store,
        reply::{Parts, Reply},
    },
};

/// Most events fetched at once before it is known how large they are; a page of the default size in one round trip.
const PIECE_MAX: usize = 101;
/// A page that would be larger is cut short: a thousand events may be a gigabyte.
pub const PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Which way a read goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Versions rise.
    Forward,
    /// Versions fall.
    Backward,
}

impl Direction {
    /// The version that comes after this one; before the first there is version 0, which no event has.
    fn after(self, version: Version) -> Version {
        match self {
            Self::Forward => version.plus(1),
            Self::Backward => version.minus(1),
        }
    }
}

/// A part of a stream.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// First version wanted; `None`: the first, or going backward the newest.
    pub from: Option<Version>,
    /// Last version wanted; `None`: the newest, or going backward the first.
    pub to: Option<Version>,
    /// Most events wanted. There may be fewer, and still a next page, where they are large.
    pub limit: usize,
    /// A page that would be larger is cut short: roughly so many bytes.
    pub bytes: usize,
    /// Which way.
    pub direction: Direction,
}

/// A page of a stream.
#[derive(Debug)]
pub struct Page {
    /// The stream's version.
    pub version: Version,
    /// The events, in the order asked for.
    pub events: Vec<Event>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Version>,
}

impl Store {
    /// Reads a page of a stream.
    ///
    /// # Errors
    /// [`Error::StreamNotFound`], [`Error::StreamDeleted`], or that Redis is not available.
    pub async fn read(&self, partition: Partition, stream: &StreamId, page: PageRequest) -> Result<Page, Error> {
        // One more than wanted tells whether there is a next page, also where somebody removed events by hand.
        let wanted = page.limit + 1;
        let piece = self.piece(page.bytes, &[]).min(wanted);
        let mut commands = Pipeline::with_capacity(3);
        self.add_head(&mut commands, partition, stream);
        commands.add_command(self.range(partition, stream, page, piece));
        let mut replies = self.0.connections.read(partition, &commands).await?.into_iter();
        let head = head(&mut replies)?;
        let mut events = self.met(entries(stream, replies.next().as_ref())?);
        let full = events.len() == piece && piece < wanted;
        let cut = full && self.read_on(partition, stream, page, &mut events).await?;
        // The head was asked first: what came in between belongs to the answer too.
        let newest = events.iter().map(|event| event.version).max().unwrap_or_default();
        let version = head.max(newest);
        if version == Version::ZERO {
            return Err(Error::StreamNotFound);
        }
        let next = match events.last() {
            Some(_) if events.len() > page.limit => events.pop().map(|event| event.version),
            Some(last) if cut => Some(page.direction.after(last.version)),
            _ => None,
        };
        Ok(Page { version, events, next })
    }

    /// The rest of a large page, as far as its bytes allow: from the first piece it is known how large its events are.
    /// `true` where it was cut short.
    async fn read_on(
        &self,
        partition: Partition,
        stream: &StreamId,
        page: PageRequest,
        events: &mut Vec<Event>,
    ) -> Result<bool, Error> {
        let Some(last) = events.last() else { return Ok(false) };
        let rest = page.limit + 1 - events.len();
        let count = self.piece(page.bytes, events).min(rest);
        if count == 0 && events.len() > 1 {
            return Ok(true);
        }
        // A page that is full with its first event must get past it: a feed's first one is only compared.
        let count = count.max(1);
        let page = PageRequest { from: Some(page.direction.after(last.version)), ..page };
        let mut commands = Pipeline::with_capacity(1);
        commands.add_command(self.range(partition, stream, page, count));
        let further = self.met(entries(stream, self.0.connections.read(partition, &commands).await?.first())?);
        let cut = further.len() == count && count < rest;
        events.extend(further);
        Ok(cut)
    }

    /// How many events to fetch at once for a page of `bytes`. Before it is known how large they are: as many as fit,
    /// should they all be as large as the largest that this instance has met. Then: as many as fit beside those that
    /// are there, should they be as large as these.
    pub(super) fn piece(&self, bytes: usize, events: &[Event]) -> usize {
        let known = bytes_of(events);
        match events.len() {
            0 => (bytes / self.0.largest.load(Ordering::Relaxed).max(1)).clamp(1, PIECE_MAX),
            count => bytes.saturating_sub(known) / (known / count).max(1),
        }
    }

    /// Takes note of how large events are.
    pub(super) fn met(&self, events: Vec<Event>) -> Vec<Event> {
        if let Some(largest) = events.iter().map(size_of).max() {
            self.0.largest.fetch_max(largest, Ordering::Relaxed);
        }
        events
    }

    /// Reads one event.
    ///
    /// # Errors
    /// [`Error::StreamNotFound`], [`Error::EventNotFound`], [`Error::StreamDeleted`], or that Redis is not available.
    pub async fn read_event(&self, partition: Partition, stream: &StreamId, version: Version) -> Result<Event, Error> {
        let (from, to) = (Some(version), Some(version));
        let page = PageRequest { from, to, limit: 1, bytes: PAGE_BYTES, direction: Direction::Forward };
        self.read(partition, stream, page).await?.events.pop().ok_or(Error::EventNotFound)
    }

    /// Looks up a stream's version, and nothing else.
    ///
    /// # Errors
    /// [`Error::StreamNotFound`], [`Error::StreamDeleted`], or that Redis is not available.
    pub async fn version(&self, partition: Partition, stream: &StreamId) -> Result<Version, Error> {
        let mut commands = Pipeline::with_capacity(2);
        self.add_head(&mut commands, partition, stream);
        match head(&mut self.0.connections.read(partition, &commands).await?.into_iter())? {
            Version::ZERO => Err(Error::StreamNotFound),
            version => Ok(version),
        }
    }

    /// The two commands whose replies `head` reads: a version is the number of events there and of those removed
    /// (cheaper than XINFO STREAM or XREVRANGE, which carry whole events).
    pub(super) fn add_head(&self, commands: &mut Pipeline, partition: Partition, stream: &StreamId) {
        commands.cmd("XLEN").arg(self.0.keys.events(partition, stream));
        commands.cmd("HMGET").arg(self.0.keys.stream(partition, stream)).arg("removed").arg("tombstone");
    }

    fn range(&self, partition: Partition, stream: &StreamId, page: PageRequest, count: usize) -> Cmd {
        let key = self.0.keys.events(partition, stream);
        let bound = |version: Option<Version>, open: &str| version.map_or(open.to_owned(), |v| format!("0-{v}"));
        let mut range = match page.direction {
            Direction::Forward => {
                let mut range = redis::cmd("XRANGE");
                range.arg(key).arg(bound(page.from, "-")).arg(bound(page.to, "+"));
                range
            }
            Direction::Backward => {
                let mut range = redis::cmd("XREVRANGE");
                range.arg(key).arg(bound(page.from, "+")).arg(bound(page.to, "-"));
                range
            }
        };
        range.arg("COUNT").arg(count);
        range
    }
}

pub(super) fn head(replies: &mut impl Iterator<Item = Reply>) -> Result<Version, Error> {
    let length: u64 = decode(replies.next())?;
    let (removed, tombstone): (Option<u64>, Option<String>) = decode(replies.next())?;
    match tombstone {
        Some(_) => Err(Error::StreamDeleted),
        None => Version::new(length + removed.unwrap_or(0)).ok_or_else(|| Error::Corrupt("version".to_owned())),
    }
}

/// Roughly what an event takes in an answer.
fn size_of(event: &Event) -> usize {
    event.data.len() + event.metadata.len() + 256
}

/// Roughly what events take in an answer.
pub fn bytes_of<'a>(events: impl IntoIterator<Item = &'a Event>) -> usize {
    events.into_iter().map(size_of).sum()
}

/// The number in an entry id of ours, `0-<version>` or `0-<position>`; `None` in any other.
pub(super) fn entry_number(id: &str) -> Option<u64> {
    id.strip_prefix("0-").and_then(Position::parse).map(Position::get)
}

/// Reads a reply as `T`.
pub(super) fn decode<T: FromRedisValue>(reply: Option<impl Into<Value>>) -> Result<T, Error> {
    redis::from_redis_value(reply.map_or(Value::Nil, Into::into)).map_err(|error| Error::Corrupt(error.to_string()))
}

/// Reads the reply of XRANGE on `events:<stream>`. What an event holds stays where it is in the reply.
pub(super) fn entries(stream: &StreamId, reply: Option<&Reply>) -> Result<Vec<Event>, Error> {
    let mut parts = reply.map(Reply::parts);
    let found = parts.as_mut().and_then(|parts| Some((parts.list()?, parts)));
    let (count, parts) = found.ok_or_else(|| Error::Corrupt(format!("stream {stream} has no entries")))?;
    (0..count).map(|_| event(stream, parts)).collect()
}

fn event(stream: &StreamId, parts: &mut Parts<'_>) -> Result<Event, Error> {
    let corrupt = || Error::Corrupt(format!("an entry of stream {stream} is none of ours"));
    let (id, fields) = parts.entry().ok_or_else(corrupt)?;
    let number = entry_number(id).and_then(Version::new);
    let version = number.ok_or_else(|| Error::Corrupt(format!("entry id {id} of stream {stream}")))?;
    let [mut event_id, mut kind, mut data, mut metadata] = [const { None }; 4];
    let (mut timestamp_ms, mut position) = (None, None);
    for _ in 0..fields / 2 {
        match parts.bytes().ok_or_else(corrupt)? {
            b"id" => event_id = parts.string(),
            b"type" => kind = parts.string(),
            b"data" => data = parts.string(),
            b"metadata" => metadata = parts.string(),
            b"timestamp" => timestamp_ms = parts.text().and_then(|digits| digits.parse().ok()),
            b"position" => position = parts.text().and_then(Position::parse),
            _ => drop(parts.bytes()),
        }
    }
    let complete = (|| {
        let (id, kind, data, metadata) = (event_id?, kind?, data?, metadata?);
        let (timestamp_ms, position) = (timestamp_ms?, position?);
        Some(Event { stream: stream.clone(), version, position, id, kind, timestamp_ms, data, metadata })
    })();
    complete.ok_or_else(|| Error::Corrupt(format!("event {version} of stream {stream} lacks a field")))
}
