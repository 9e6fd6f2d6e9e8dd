//! Events: those that are to be appended, and those that are stored.

use std::borrow::Cow;

use bytestring::ByteString;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Position, StreamId, Version, write_rfc3339};

/// The id of an event: 1 to 128 printable ASCII characters, unique in its stream for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventId(String);

impl EventId {
    /// The id, or `None` where `text` is empty, too long, or has a character that is not printable ASCII.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let good = (1..=128).contains(&text.len()) && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        good.then(|| Self(text.to_owned()))
    }

    /// A new id in order of time: UUIDv7 (RFC 9562 §5.7).
    #[must_use]
    pub fn new_v7() -> Self {
        Self(Uuid::now_v7().hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned())
    }

    /// The id that an idempotency key gives the event at `index` of a request: UUIDv5 (RFC 9562 §5.5) of stream, key
    /// and index, so the same request has the same ids for ever.
    #[must_use]
    pub fn from_key(stream: &StreamId, key: &str, index: usize) -> Self {
        const SPACE: Uuid = uuid::uuid!("6f1de1c6-3f0a-5d52-9d2e-6a1f0a1c7b11");
        Self(Uuid::new_v5(&SPACE, format!("{stream}\n{index}\n{key}").as_bytes()).to_string())
    }

    /// The id of an imported event that has none: UUIDv5 of the name of its source, the number of its line and the
    /// bytes of that line, so another import of the same source finds it there already.
    #[must_use]
    pub fn from_line(source: &str, number: u64, line: &str) -> Self {
        const SPACE: Uuid = uuid::uuid!("c38a3870-6bd9-40b0-98f0-c7092963e40b");
        Self(Uuid::new_v5(&SPACE, format!("{source}\n{number}\n{line}").as_bytes()).to_string())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as it stands in a stream's index: a UUID in its usual writing as 16 bytes, which halves the index;
    /// anything else as it is. No two ids have the same form: of UUIDs only those are packed whose ninth byte is no
    /// ASCII (all of RFC 9562's own variant).
    #[must_use]
    pub fn index_key(&self) -> Vec<u8> {
        match Uuid::try_parse(&self.0) {
            Ok(uuid) if !uuid.as_bytes()[8].is_ascii() && uuid.to_string() == self.0 => uuid.as_bytes().to_vec(),
            _ => self.0.as_bytes().to_vec(),
        }
    }
}

/// Checks an event type: 1 to `max` characters, none of them a control character.
///
/// # Errors
/// What is wrong, in words for the client.
pub fn check_type(text: &str, max: usize) -> Result<(), String> {
    if text.is_empty() || text.chars().count() > max {
        return Err(format!("a type has 1 to {max} characters"));
    }
    if text.chars().any(char::is_control) {
        return Err("a type has no control characters".to_owned());
    }
    Ok(())
}

/// An event to be appended. Borrows from the request, so that data and metadata are copied once, into the call.
#[derive(Debug)]
pub struct NewEvent<'a> {
    /// Its id: the client's, or one that the service made before the call.
    pub id: EventId,
    /// What happened.
    pub kind: Cow<'a, str>,
    /// Any JSON, byte for byte.
    pub data: &'a RawValue,
    /// A JSON object, byte for byte.
    pub metadata: Cow<'a, str>,
}

impl NewEvent<'_> {
    /// Bytes of its data and metadata.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.get().len() + self.metadata.len()
    }

    /// The event as it is stored there and then, in memory of its own.
    #[must_use]
    pub fn stored(&self, stream: &StreamId, version: Version, position: Position, timestamp_ms: u64) -> Event {
        let [id, kind, data, metadata] = together([self.id.as_str(), &self.kind, self.data.get(), &self.metadata]);
        Event { stream: stream.clone(), version, position, id, kind, timestamp_ms, data, metadata }
    }
}

/// What makes a repeated append harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The ids come from the client and are kept in the stream's index.
    ById,
    /// The same, where the ids follow from a key. Holds the id that one more event would have: if it is known, the key
    /// came with more events before.
    ByKey(EventId),
    /// The service made the ids: only its own repeat within the same request can know them.
    ByService,
}

/// Copies parts into one piece of memory.
fn together<const N: usize>(parts: [&str; N]) -> [ByteString; N] {
    let all = ByteString::from(parts.concat());
    let mut rest = &*all;
    parts.map(|part| {
        let (own, behind) = rest.split_at(part.len());
        rest = behind;
        all.slice_ref(own)
    })
}

/// A stored event. Never changes. Its parts may be slices of what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The stream that it belongs to.
    pub stream: StreamId,
    /// Its number in the stream.
    pub version: Version,
    /// Its number in the log of the stream's partition.
    pub position: Position,
    /// Unique in the stream.
    pub id: ByteString,
    /// What happened.
    pub kind: ByteString,
    /// When it was stored, by Redis' clock: milliseconds since 1970, UTC.
    pub timestamp_ms: u64,
    /// JSON as it was sent.
    pub data: ByteString,
    /// JSON object as it was sent.
    pub metadata: ByteString,
}

impl Event {
    /// The same in memory of its own, for whoever keeps it: a slice holds all that it is one of.
    #[must_use]
    pub fn detached(&self) -> Self {
        let [id, kind, data, metadata] = together([&self.id, &self.kind, &self.data, &self.metadata]);
        Self { stream: self.stream.clone(), id, kind, data, metadata, ..*self }
    }

    /// Writes the event as one line of JSON. Data and metadata go out as the bytes that came in: they were checked
    /// when they were appended, so they are neither parsed nor written anew.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut number = itoa::Buffer::new();
        out.extend_from_slice(b"{\"stream\":\"");
        out.extend_from_slice(self.stream.as_str().as_bytes());
        out.extend_from_slice(b"\",\"version\":");
        out.extend_from_slice(number.format(self.version.get()).as_bytes());
        out.extend_from_slice(b",\"position\":");
        out.extend_from_slice(number.format(self.position.get()).as_bytes());
        out.extend_from_slice(b",\"id\":");
        write_string(out, &self.id);
        out.extend_from_slice(b",\"type\":");
        write_string(out, &self.kind);
        out.extend_from_slice(b",\"time\":\"");
        write_rfc3339(out, self.timestamp_ms);
        out.extend_from_slice(b"\",\"data\":");
        out.extend_from_slice(self.data.as_bytes());
        out.extend_from_slice(b",\"metadata\":");
        out.extend_from_slice(self.metadata.as_bytes());
        out.push(b'}');
    }
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing text to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_event_is_the_same_one() {
        let came = ByteString::from("{}before-1paid{\"a\":1}behind");
        let [metadata, id, kind, data] = [0..2, 2..10, 10..14, 14..21].map(|range| came.slice_ref(&came[range]));
        let stream = StreamId::parse("order-1").expect("a good id");
        let (version, position) = (Version::FIRST, Position::ZERO.plus(7));
        let event = Event { stream, version, position, id, kind, timestamp_ms: 5, data, metadata };
        let detached = event.detached();
        assert_eq!(detached, event);
        assert_eq!((&*detached.id, &*detached.data), ("before-1", "{\"a\":1}"));
        let within = came.as_bytes().as_ptr_range();
        assert!(!within.contains(&detached.data.as_bytes().as_ptr()), "in memory of its own");
    }

    #[test]
    fn index_keys_are_short_and_never_collide() {
        let key = |text: &str| EventId::parse(text).expect("a good id").index_key();
        assert_eq!(key("01890a5d-ac96-774b-bcce-b302099a8057").len(), 16);
        assert_eq!(key("01890A5D-AC96-774B-BCCE-B302099A8057").len(), 36, "another writing is another id");
        assert_eq!(key("61616161-6161-6161-6161-616161616161").len(), 36, "16 ASCII bytes could be another id");
        assert_eq!(key("aaaaaaaaaaaaaaaa"), b"aaaaaaaaaaaaaaaa");
    }
}
