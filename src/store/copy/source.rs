//! Reading a partition of the source.

use std::iter::zip;

use redis::Pipeline;

use super::merge::Page;
use crate::{
    model::{Error, Event, EventId, Partition, Place},
    store::{
        Direction, Store,
        pointers::Pointer,
        read::{PAGE_BYTES, decode},
    },
};

/// Most log entries read at once.
const PAGE: usize = 500;

/// An entry of a partition's log, with what it names.
pub struct Entry {
    pub pointer: Pointer,
    /// `None` where it was removed.
    pub event: Option<Event>,
    /// The form of the event's id in the index of its stream, where it is kept there.
    pub kept: Option<Vec<u8>>,
}

/// What comes behind a place in a partition's log.
pub struct Look {
    pub partition: Partition,
    /// The clock before the log was read: what was appended since is not older.
    clock: u64,
    pointers: Vec<Pointer>,
}

impl Look {
    /// Reads the log.
    pub async fn behind(from: &Store, partition: Partition, place: Place) -> Result<Self, Error> {
        let clock = from.clock(partition).await?;
        let pointers = from.pointers(partition, place, PAGE, Direction::Forward).await?;
        Ok(Self { partition, clock, pointers })
    }

    /// Fetches the events, as far as all partitions together take no more than a page. One partition after another, for
    /// the size of its events is known from those that came before.
    pub async fn page(self, from: &Store) -> Result<Page<Entry>, Error> {
        let Self { partition, clock, mut pointers } = self;
        let whole = pointers.len() < PAGE;
        let bytes = PAGE_BYTES / usize::from(from.partitions().count());
        let (events, seen) = from.resolve_within(partition, &pointers, bytes).await?;
        let end = (whole && seen == pointers.len()).then_some(clock);
        pointers.truncate(seen);
        let kept = kept_ids(from, partition, &events).await?;
        let mut events = zip(events, kept).peekable();
        let entry = |pointer: Pointer| {
            let found = events.next_if(|(event, _)| event.position == pointer.position);
            let (event, kept) = found.map_or((None, None), |(event, kept)| (Some(event), kept));
            (event.as_ref().map(|event| event.timestamp_ms), Entry { pointer, event, kept })
        };
        Ok(Page { entries: pointers.into_iter().map(entry).collect(), end })
    }
}

/// Of each event, the form of its id in the index of its stream where it is kept there.
async fn kept_ids(from: &Store, partition: Partition, events: &[Event]) -> Result<Vec<Option<Vec<u8>>>, Error> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let forms: Vec<_> = events.iter().map(|event| EventId::parse(&event.id).map(|id| id.index_key())).collect();
    let mut commands = Pipeline::with_capacity(events.len());
    for (event, form) in zip(events, &forms) {
        commands.cmd("HGET").arg(from.0.keys.ids(partition, &event.stream)).arg(form.as_deref().unwrap_or_default());
    }
    let replies = from.0.connections.read(partition, &commands).await?;
    let kept = zip(zip(events, forms), replies).map(|((event, form), reply)| {
        let version: Option<u64> = decode(Some(reply))?;
        Ok(form.filter(|_| version == Some(event.version.get())))
    });
    kept.collect()
}
