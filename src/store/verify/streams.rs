//! The streams: versions without a gap, whole events, each with its place in the log; and the indexes of their ids.

use std::{collections::HashMap, sync::Arc};

use futures::StreamExt as _;
use redis::{Pipeline, Value};

use super::{
    Lines, PIECE, Verifier,
    entry::{Stored, raw_entries, stored},
    refusal,
};
use crate::{
    model::{Error, EventId, Partition, StreamId, Version},
    store::{
        pointers::{self, Pointer},
        primary::Primary,
        read::{decode, entries, entry_number},
    },
};

/// Streams that are walked through at the same time.
const STREAMS: usize = 8;

/// What XINFO STREAM says, in one step.
pub(super) struct Info {
    pub(super) last_given: String,
    pub(super) first: Option<String>,
    pub(super) last: Option<String>,
}

impl Verifier {
    pub(super) async fn walk_streams(&self) -> Result<(), Error> {
        for (primary, _) in self.connections.primaries() {
            self.walk_streams_of(&primary).await?;
        }
        Ok(())
    }

    async fn walk_streams_of(&self, primary: &Arc<Primary>) -> Result<(), Error> {
        let mut cursor = 0_u64;
        loop {
            let mut commands = Pipeline::with_capacity(1);
            commands.cmd("SCAN").arg(cursor).arg("MATCH").arg(self.keys.events_pattern()).arg("COUNT").arg(500);
            let keys: Vec<Vec<u8>>;
            (cursor, keys) = decode(self.connections.ask_at(primary, &commands).await?.pop())?;
            let walks = keys.iter().map(|key| self.walk_stream(String::from_utf8_lossy(key).into_owned()));
            let mut walks = futures::stream::iter(walks).buffer_unordered(STREAMS);
            while let Some(walked) = walks.next().await {
                walked?;
            }
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    async fn walk_stream(&self, key: String) -> Result<(), Error> {
        let home = self.keys.parse_events(&key);
        let Some((partition, stream)) = home.filter(|(partition, stream)| self.partitions.of(stream) == *partition)
        else {
            return self.judge(async || Ok((Lines::from([format!("key {key} is no stream of this store")]), ()))).await;
        };
        self.note(|report| report.streams += 1);
        let readable = self.judge(async || self.look_at_bounds(partition, &stream, &key).await).await?;
        if readable {
            self.walk_events(partition, &stream).await?;
        }
        self.walk_ids(partition, &stream).await
    }

    async fn walk_events(&self, partition: Partition, stream: &StreamId) -> Result<(), Error> {
        let mut after = None;
        loop {
            let look = async || self.look_at_events(partition, stream, after.as_deref()).await;
            let (last, count) = self.judge(look).await?;
            self.note(|report| report.events += count);
            (self.looked_at)(count);
            if last.is_none() {
                return Ok(());
            }
            after = last;
        }
    }

    /// That a stream begins behind what was removed, and ends with the last version that it gave. `false` where its
    /// events cannot be read.
    async fn look_at_bounds(&self, partition: Partition, stream: &StreamId, key: &str) -> Result<(Lines, bool), Error> {
        let mut wrong = Lines::new();
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("TYPE").arg(key);
        commands.cmd("HMGET").arg(self.keys.stream(partition, stream)).arg("removed").arg("tombstone");
        let mut replies = self.connections.ask(partition, &commands).await?.into_iter();
        let kind: String = decode(replies.next())?;
        if kind != "stream" {
            if kind != "none" {
                wrong.insert(format!("key {key} is no stream, but a {kind}"));
            }
            return Ok((wrong, false));
        }
        let (removed, tombstone): (Option<u64>, Option<String>) = decode(replies.next()).unwrap_or_default();
        let Some(info) = self.stream_info(partition, key).await?.filter(|_| tombstone.is_none()) else {
            return Ok((wrong, true));
        };
        let (Some(given), removed) = (entry_number(&info.last_given), removed.unwrap_or(0)) else {
            wrong.insert(format!("stream {stream}: was not written by Streamkeep, its last id is {}", info.last_given));
            return Ok((wrong, false));
        };
        let first = info.first.map_or(Some(given + 1), |first| entry_number(&first));
        if first.is_some_and(|first| first != removed + 1) {
            let first = first.unwrap_or(0);
            wrong.insert(format!(
                "stream {stream}: the events before version {first} are gone, but {removed} are noted as removed"
            ));
        }
        if info.last.as_ref().is_some_and(|last| *last != info.last_given) {
            let last = info.last.unwrap_or_default();
            wrong.insert(format!("stream {stream}: ends at {last}, but {} was written", info.last_given));
        }
        Ok((wrong, true))
    }

    /// Looks at the events behind the id `after`, which is read too: should it be gone, they were removed meanwhile.
    /// Answers with the last id, and how many there were.
    async fn look_at_events(
        &self,
        partition: Partition,
        stream: &StreamId,
        after: Option<&str>,
    ) -> Result<(Lines, (Option<String>, u64)), Error> {
        let mut wrong = Lines::new();
        let (key, from) = (self.keys.events(partition, stream), after.unwrap_or("-"));
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("XRANGE").arg(key).arg(from).arg("+").arg("COUNT").arg(self.piece() + 1);
        let mut found = raw_entries(self.connections.read(partition, &commands).await?.pop())?;
        let mut previous = None;
        if after.is_some() && found.first().map(|(id, _)| id.as_str()) == after {
            previous = entry_number(&found.remove(0).0);
        }
        let mut events = Vec::with_capacity(found.len());
        for entry in &found {
            let version = entry_number(&entry.0);
            if let (Some(previous), Some(version)) = (previous, version)
                && version > previous + 1
            {
                wrong.insert(missing(stream, previous + 1, version - 1));
            }
            previous = version.or(previous);
            events.extend(stored(stream, entry, &mut wrong));
        }
        self.met(events.iter().map(|event| event.bytes).max().unwrap_or(0));
        self.find_places(partition, stream, &events, &mut wrong).await?;
        let count = found.len() as u64;
        Ok((wrong, (found.pop().map(|(id, _)| id), count)))
    }

    /// That the log has each event at its position, unless the log was trimmed up to there.
    async fn find_places(
        &self,
        partition: Partition,
        stream: &StreamId,
        events: &[Stored],
        wrong: &mut Lines,
    ) -> Result<(), Error> {
        let log = self.keys.log(partition);
        let mut commands = Pipeline::with_capacity(events.len() + 1);
        for event in events {
            let id = format!("0-{}", event.position);
            commands.cmd("XRANGE").arg(&log).arg(&id).arg(&id);
        }
        commands.cmd("XRANGE").arg(&log).arg("-").arg("+").arg("COUNT").arg(1);
        let mut replies = self.connections.ask(partition, &commands).await?;
        let first: Vec<(String, Vec<String>)> = decode(replies.pop()).unwrap_or_default();
        let begins = first.first().map_or(Some(u64::MAX), |(id, _)| entry_number(id)).unwrap_or(0);
        for (event, reply) in events.iter().zip(replies) {
            let there = decode(Some(reply)).and_then(pointers::pointers).unwrap_or_default().pop();
            let Stored { version, position, kind, .. } = event;
            let what = match &there {
                Some(Pointer { stream: named, version: at, kind: of, .. })
                    if named == stream && at.get() == *version && of == kind =>
                {
                    continue;
                }
                None if *position < begins => continue,
                None => "nothing".to_owned(),
                Some(Pointer { stream, version, kind, .. }) => format!("{stream}@{version}, {kind}"),
            };
            wrong.insert(format!(
                "{stream}@{version}, {kind}, says that its position is {position}; the log has {what} there"
            ));
        }
        Ok(())
    }

    /// That each id of the index is that of the event which it points at.
    async fn walk_ids(&self, partition: Partition, stream: &StreamId) -> Result<(), Error> {
        let (key, mut cursor) = (self.keys.ids(partition, stream), 0_u64);
        loop {
            let mut commands = Pipeline::with_capacity(1);
            commands.cmd("HSCAN").arg(&key).arg(cursor).arg("COUNT").arg(PIECE);
            let replies = self.connections.ask(partition, &commands).await?;
            if refusal(replies.first()).is_some() {
                return self.judge(async || Ok((Lines::from([format!("key {key} is no hash")]), ()))).await;
            }
            let found: Vec<(Vec<u8>, Value)>;
            (cursor, found) = decode(replies.into_iter().next())?;
            let forms: Vec<Vec<u8>> = found.into_iter().map(|(form, _)| form).collect();
            for forms in forms.chunks(self.piece()) {
                self.judge(async || self.look_at_ids(partition, stream, forms).await).await?;
            }
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    async fn look_at_ids(
        &self,
        partition: Partition,
        stream: &StreamId,
        forms: &[Vec<u8>],
    ) -> Result<(Lines, ()), Error> {
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("HMGET").arg(self.keys.ids(partition, stream)).arg(forms);
        commands.cmd("HMGET").arg(self.keys.stream(partition, stream)).arg("removed").arg("tombstone");
        let mut replies = self.connections.read(partition, &commands).await?.into_iter();
        let versions: Vec<Option<String>> = decode(replies.next())?;
        let (removed, tombstone): (Option<u64>, Option<String>) = decode(replies.next())?;
        let mut wrong = Lines::new();
        let known: Vec<_> =
            forms.iter().zip(&versions).filter_map(|(form, text)| Some((form, text.as_ref()?))).collect();
        let mut commands = Pipeline::with_capacity(known.len());
        for (_, version) in &known {
            let id = format!("0-{}", Version::parse(version).unwrap_or_default());
            commands.cmd("XRANGE").arg(self.keys.events(partition, stream)).arg(&id).arg(&id);
        }
        if known.is_empty() {
            return Ok((wrong, ()));
        }
        for ((form, text), reply) in known.into_iter().zip(self.connections.ask(partition, &commands).await?) {
            let version = Version::parse(text).unwrap_or_default().get();
            let event = match entries(stream, Some(&reply)) {
                Ok(mut events) => events.pop(),
                // Told by the walk through the events.
                Err(_) => continue,
            };
            let is_it =
                event.as_ref().and_then(|event| EventId::parse(&event.id)).is_some_and(|id| id.index_key() == *form);
            let gone = event.is_none() && version > 0 && (tombstone.is_some() || version <= removed.unwrap_or(0));
            if !is_it && !gone {
                let has = event.map_or("is not there".to_owned(), |event| format!("has the id {}", event.id));
                wrong.insert(format!("stream {stream}: its index has an id at version {text}, which {has}"));
            }
        }
        Ok((wrong, ()))
    }

    /// What Redis says of a stream; `None` where it is not there, or no stream.
    pub(super) async fn stream_info(&self, partition: Partition, key: &str) -> Result<Option<Info>, Error> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("XINFO").arg("STREAM").arg(key);
        let mut replies = self.connections.ask(partition, &commands).await?;
        if refusal(replies.first()).is_some() {
            return Ok(None);
        }
        let mut info: HashMap<String, Value> = decode(replies.pop())?;
        let mut id = |name: &str| {
            let entry: Option<(String, Value)> = decode(info.remove(name))?;
            Ok::<_, Error>(entry.map(|(id, _)| id))
        };
        let (first, last) = (id("first-entry")?, id("last-entry")?);
        Ok(Some(Info { first, last, last_given: decode(info.remove("last-generated-id"))? }))
    }
}

fn missing(stream: &StreamId, from: u64, to: u64) -> String {
    if from == to {
        format!("stream {stream}: version {from} is missing")
    } else {
        format!("stream {stream}: versions {from} to {to} are missing")
    }
}
