//! Reading the log: all events of a partition in commit order.

use redis::{Pipeline, Value};

use crate::{
    model::{Category, Error, Event, Fingerprint, Partition, Partitions, Place, Position, StreamId, Version},
    store::{
        Connections, Keys, StartError, Store,
        read::{PAGE_BYTES, bytes_of, decode, entries},
    },
};

/// Most log entries looked at in one call, whatever a filter leaves of them.
const LOOKED_AT_MAX: usize = 1_000;

/// Log entries that are looked at together for the first event that was not removed.
const FIRST_PIECE: usize = 20;

/// Which events of the log are wanted.
#[derive(Clone, Debug, Default)]
pub struct LogFilter {
    /// Only those of streams in this category.
    pub category: Option<Category>,
    /// Only those of this stream.
    pub stream: Option<StreamId>,
}

impl LogFilter {
    fn wants(&self, stream: &StreamId) -> bool {
        self.category.as_ref().is_none_or(|category| category.as_str() == stream.category())
            && self.stream.as_ref().is_none_or(|wanted| wanted == stream)
    }

    fn is_open(&self) -> bool {
        self.category.is_none() && self.stream.is_none()
    }
}

/// A page of a partition's log.
#[derive(Debug)]
pub struct LogPage {
    /// The events that the filter wants, in commit order.
    pub events: Vec<Event>,
    /// After the last entry looked at.
    pub place: Place,
    /// Whether that is the head.
    pub caught_up: bool,
}

struct Pointer {
    position: Position,
    stream: StreamId,
    version: Version,
}

impl Store {
    /// Reads at most `limit` events of a partition's log after `place`. Looks at a bounded number of entries: a page
    /// may be empty and not yet caught up. Entries whose event was removed are passed over.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`] where another event, or none, is at `place`; or that Redis is not available.
    pub async fn read_log(
        &self,
        partition: Partition,
        place: Place,
        limit: usize,
        filter: &LogFilter,
    ) -> Result<LogPage, Error> {
        let asked = if filter.is_open() { limit } else { LOOKED_AT_MAX.max(limit) };
        let mut pointers = self.pointers(partition, place, asked).await?;
        let mut caught_up = pointers.len() < asked;
        let mut wanted = 0;
        let cut = pointers.iter().position(|pointer| {
            wanted += usize::from(filter.wants(&pointer.stream));
            wanted > limit
        });
        if let Some(cut) = cut {
            pointers.truncate(cut);
            caught_up = false;
        }
        let mut last = pointers.last().map(|pointer| pointer.position);
        let kept = |pointer: &Pointer| filter.wants(&pointer.stream) || Some(pointer.position) == last;
        pointers.retain(kept);
        let mut events = Vec::with_capacity(pointers.len());
        let mut left = pointers.as_slice();
        while !left.is_empty() {
            let (piece, rest) = left.split_at(self.piece().min(left.len()));
            events.extend(self.met(self.resolve(partition, piece).await?));
            left = rest;
            if bytes_of(&events) > PAGE_BYTES && !rest.is_empty() {
                caught_up = false;
                last = piece.last().map(|pointer| pointer.position);
                break;
            }
        }
        // The last entry names the cursor, also where the filter does not want it.
        let print = |position| match events.last() {
            Some(event) if event.position == position => Fingerprint::of(&event.id),
            _ => Fingerprint::REMOVED,
        };
        let place = last.map_or(place, |position| Some((position, print(position))));
        events.retain(|event| filter.wants(&event.stream));
        Ok(LogPage { events, place, caught_up })
    }

    /// The first event behind a position that was not removed. Looks at a bounded number of entries; `None` where all of
    /// them are gone, or there are none.
    pub(super) async fn first_after(&self, partition: Partition, position: u64) -> Result<Option<Event>, Error> {
        let (mut next, mut seen) = (position + 1, 0);
        while seen < LOOKED_AT_MAX {
            let mut commands = Pipeline::with_capacity(1);
            let from = format!("0-{next}");
            commands.cmd("XRANGE").arg(self.0.keys.log(partition)).arg(from).arg("+").arg("COUNT").arg(FIRST_PIECE);
            let entries: Vec<(String, Vec<String>)> = decode(self.0.connections.read(&commands).await?.pop())?;
            let pointers = entries.into_iter().map(pointer).collect::<Result<Vec<_>, _>>()?;
            let Some(last) = pointers.last().map(|pointer| pointer.position.get()) else { return Ok(None) };
            (next, seen) = (last + 1, seen + pointers.len());
            if let Some(event) = self.resolve(partition, &pointers).await?.into_iter().next() {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The log entries after `place`, whose own event is compared with its fingerprint.
    async fn pointers(&self, partition: Partition, place: Place, limit: usize) -> Result<Vec<Pointer>, Error> {
        let log = self.0.keys.log(partition);
        let from = place.map_or(Position::FIRST, |(position, _)| position);
        let count = limit + usize::from(place.is_some());
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("XRANGE").arg(&log).arg(format!("0-{from}")).arg("+").arg("COUNT").arg(count);
        commands.cmd("XLEN").arg(&log);
        let mut replies = self.0.connections.read(&commands).await?.into_iter();
        let entries: Vec<(String, Vec<String>)> = decode(replies.next())?;
        let head = Position::new(decode(replies.next())?).unwrap_or_default();
        let mut pointers = entries.into_iter().map(pointer).collect::<Result<Vec<_>, _>>()?;
        if let Some((position, fingerprint)) = place {
            let diverged = Error::HistoryDiverged { head };
            if pointers.first().is_none_or(|first| first.position != position) {
                return Err(diverged);
            }
            let own = self.resolve(partition, &[pointers.remove(0)]).await?;
            if own.first().is_some_and(|event| !fingerprint.fits(&event.id)) {
                return Err(diverged);
            }
        }
        Ok(pointers)
    }

    /// Fetches the events that pointers name; one round trip.
    async fn resolve(&self, partition: Partition, pointers: &[Pointer]) -> Result<Vec<Event>, Error> {
        if pointers.is_empty() {
            return Ok(Vec::new());
        }
        let mut commands = Pipeline::with_capacity(pointers.len());
        for Pointer { stream, version, .. } in pointers {
            let id = format!("0-{version}");
            commands.cmd("XRANGE").arg(self.0.keys.events(partition, stream)).arg(&id).arg(&id);
        }
        let replies: Vec<Value> = self.0.connections.read(&commands).await?;
        let mut events = Vec::with_capacity(pointers.len());
        for (pointer, reply) in pointers.iter().zip(replies) {
            let found = entries(&pointer.stream, Some(reply))?;
            events.extend(found.into_iter().map(|event| Event { position: pointer.position, ..event }));
        }
        Ok(events)
    }
}

fn pointer((id, fields): (String, Vec<String>)) -> Result<Pointer, Error> {
    let value = |name: &str| fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    let position = id.strip_prefix("0-").and_then(Position::parse);
    let pointer = || {
        let (stream, version) = (value("s").and_then(StreamId::parse)?, value("v").and_then(Version::parse)?);
        Some(Pointer { position: position?, stream, version })
    };
    pointer().ok_or_else(|| Error::Corrupt(format!("log entry {id}")))
}

/// That nobody else writes to the keys of the log: a stream called `log` is not that rare.
pub(super) async fn check_log(
    connections: &Connections,
    keys: &Keys,
    partitions: Partitions,
) -> Result<(), StartError> {
    let mut redis = connections.exclusive().await?;
    for log in partitions.all().map(|partition| keys.log(partition)) {
        let mut newest = redis::cmd("XREVRANGE");
        newest.arg(&log).arg("+").arg("-").arg("COUNT").arg(1);
        let foreign = || StartError::ForeignLog(log.clone());
        let newest: Vec<(String, Value)> = newest.query_async(&mut redis).await.map_err(|_| foreign())?;
        if newest.first().is_some_and(|(id, _)| !id.starts_with("0-")) {
            return Err(foreign());
        }
    }
    Ok(())
}
