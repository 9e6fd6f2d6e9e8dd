//! An entry of a stream as it stands there, with whatever is wrong with it.

use serde::de::IgnoredAny;

use super::Lines;
use crate::{
    model::{Error, EventId, Position, StreamId},
    store::{
        read::{decode, entry_number},
        reply::Reply,
    },
};

/// The fields of an event, in the order in which they are written.
const FIELDS: [&str; 7] = ["id", "type", "data", "metadata", "timestamp", "version", "position"];

/// Id, fields and values as bytes.
pub(super) type RawEntry = (String, Vec<(Vec<u8>, Vec<u8>)>);

/// Takes apart the reply of XRANGE.
pub(super) fn raw_entries(reply: Option<Reply>) -> Result<Vec<RawEntry>, Error> {
    let entries: Vec<(String, Vec<Vec<u8>>)> = decode(reply)?;
    let pairs = |fields: Vec<Vec<u8>>| {
        let mut fields = fields.into_iter();
        std::iter::from_fn(move || fields.next().zip(fields.next())).collect()
    };
    Ok(entries.into_iter().map(|(id, fields)| (id, pairs(fields))).collect())
}

/// What an entry says, where it is an event.
pub(super) struct Stored {
    pub(super) version: u64,
    pub(super) position: u64,
    pub(super) kind: String,
    pub(super) bytes: usize,
}

/// Reads an entry of a stream; `None`, and a line that says why, where it is no event.
pub(super) fn stored(stream: &StreamId, (id, fields): &RawEntry, wrong: &mut Lines) -> Option<Stored> {
    let mut refuse = |what: String| -> Option<Stored> {
        wrong.insert(format!("stream {stream}: entry {id} {what}"));
        None
    };
    let Some(version) = entry_number(id).filter(|version| *version > 0) else {
        return refuse("is no event of ours".to_owned());
    };
    let mut texts = [""; 7];
    for (index, name) in FIELDS.into_iter().enumerate() {
        let mut values = fields.iter().filter(|(field, _)| field == name.as_bytes());
        let (Some((_, value)), None) = (values.next(), values.next()) else {
            return refuse(format!("has not one field {name}"));
        };
        let Ok(text) = str::from_utf8(value) else { return refuse(format!("has no text in {name}")) };
        texts[index] = text;
    }
    let [event_id, kind, data, metadata, timestamp, own_version, position] = texts;
    for (name, json) in [("data", data), ("metadata", metadata)] {
        if serde_json::from_str::<IgnoredAny>(json).is_err() {
            return refuse(format!("has no JSON in {name}"));
        }
    }
    if !metadata.trim_start().starts_with('{') {
        return refuse("has metadata that are no object".to_owned());
    }
    if EventId::parse(event_id).is_none() || kind.is_empty() {
        return refuse("has no good id or type".to_owned());
    }
    if timestamp.parse::<u64>().is_err() {
        return refuse("has no time in timestamp".to_owned());
    }
    if own_version != version.to_string() {
        return refuse(format!("says that its version is {own_version}"));
    }
    let Some(position) = Position::parse(position).map(Position::get) else {
        return refuse("has no number in position".to_owned());
    };
    let bytes = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    Some(Stored { version, position, kind: kind.to_owned(), bytes })
}
