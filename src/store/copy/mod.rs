//! Copying a store into another one, of whatever layout, while it takes writes.
//!
//! The logs of the source are read in order, and each event is added to its stream with the version and the time that it
//! has there, by a function that finds what is there already: a copy may break off anywhere, and is run again. The target
//! says how far it is.

mod groups;

use std::iter::zip;

use futures::future::{join_all, select_all};
pub use groups::CopiedGroup;
use redis::{Cmd, Pipeline};

use super::{
    Direction, Store,
    errors::{self, StartError},
    migrations,
    pointers::Pointer,
    read::{PAGE_BYTES, decode},
    reply::Reply,
    tail::Waiter,
};
use crate::{
    model::{Cursor, Error, Event, EventId, Fingerprint, Partition, StreamId, Version},
    store::StoreConfig,
};

/// Log entries read at once.
const PIECE: usize = 500;

/// Why a copy stopped.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source cannot be opened.
    #[error("the source: {0}")]
    SourceStart(StartError),
    /// The target cannot be opened.
    #[error("the target: {0}")]
    TargetStart(StartError),
    /// The source failed.
    #[error("the source: {0}")]
    Source(Error),
    /// The target failed.
    #[error("the target: {0}")]
    Target(Error),
    /// Another event stands at a version in the target.
    #[error("the target has another event as version {version} of {stream}: it took writes of its own")]
    OtherEvent {
        /// The stream.
        stream: StreamId,
        /// The version.
        version: Version,
    },
    /// The source's log does not name all events of a stream.
    #[error("the source's log does not name version {version} of {stream}: run `streamkeep verify` on the source")]
    Gap {
        /// The stream.
        stream: StreamId,
        /// The version.
        version: Version,
    },
    /// The target holds something else.
    #[error("the target holds events, and no copy of a store was begun in it: copy into an empty one")]
    NotEmpty,
    /// The target is a copy of another store.
    #[error("the target is a copy of another store, or the source has lost events since: copy into an empty one")]
    OtherSource,
    /// The target has events that are not of the source.
    #[error("the target has {0} event(s) that the source does not have: it took writes of its own")]
    Further(u64),
    /// A group cannot be made in the target.
    #[error("the group {name}: {error}")]
    Group {
        /// Its name.
        name: String,
        /// Why.
        error: Error,
    },
}

/// Copies a store.
pub struct Copier {
    from: Store,
    to: Store,
    /// How far the logs of the source are copied.
    cursor: Cursor,
    waiters: Vec<Waiter>,
}

/// What was copied in one go.
#[derive(Debug, Default)]
pub struct Step {
    /// How many events were not in the target yet.
    pub added: u64,
    /// Whether that was all that the source has.
    pub all: bool,
}

impl Copier {
    /// Opens both stores, the target where it is none yet with the layout of its configuration; and finds out where a copy
    /// that was broken off is to go on. The partitions of the source are those that it has, whatever its configuration
    /// says.
    ///
    /// # Errors
    /// [`CopyError`]: either cannot be opened, or the target holds something else than a copy of the source.
    pub async fn open(from: StoreConfig, to: StoreConfig) -> Result<Self, CopyError> {
        let partitions = migrations::stored_partitions(&from).await.map_err(CopyError::SourceStart)?;
        let from = StoreConfig { partitions, migrate: false, ..from };
        let from = Store::open(from).await.map_err(CopyError::SourceStart)?;
        let to = Store::open(to).await.map_err(CopyError::TargetStart)?;
        let waiters = partitions.all().map(|partition| from.0.tails[usize::from(partition.get())].waiter()).collect();
        let mut opened = Self { from, to, cursor: Cursor::beginning(partitions), waiters };
        opened.find_place().await?;
        Ok(opened)
    }

    /// How many events the source has that are not yet copied, about.
    ///
    /// # Errors
    /// The source does not answer.
    pub async fn left(&self) -> Result<u64, CopyError> {
        Ok(entries(&self.from).await.map_err(CopyError::Source)?.saturating_sub(self.done()))
    }

    /// Entries of the source's logs that were copied, now and before.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.cursor.places.iter().flatten().map(|(position, _)| position.get()).sum()
    }

    async fn find_place(&mut self) -> Result<(), CopyError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("GET").arg(self.to.0.keys.copied());
        let token = self.to.0.connections.read(Partition::FIRST, &commands).await.map_err(CopyError::Target)?.pop();
        let token: Option<String> = decode(token).map_err(CopyError::Target)?;
        let there = entries(&self.to).await.map_err(CopyError::Target)?;
        let Some(token) = token else {
            return if there == 0 { self.save().await } else { Err(CopyError::NotEmpty) };
        };
        let cursor = Cursor::parse(&token, self.from.partitions()).ok_or(CopyError::OtherSource)?;
        for (partition, place) in zip(self.from.partitions().all(), &cursor.places) {
            match self.from.check_place(partition, *place).await {
                Err(Error::HistoryDiverged { .. }) => return Err(CopyError::OtherSource),
                checked => checked.map_err(CopyError::Source)?,
            }
        }
        self.cursor = cursor;
        if there < self.done() {
            // The target lost some, in a failover perhaps: those that it has are passed over.
            self.cursor = Cursor::beginning(self.from.partitions());
        }
        Ok(())
    }

    /// Copies what comes next of each partition.
    ///
    /// # Errors
    /// [`CopyError`]. What was copied stays, and is found when the copy is run again.
    pub async fn step(&mut self) -> Result<Step, CopyError> {
        let mut step = Step { added: 0, all: true };
        for partition in self.from.partitions().all() {
            let place = self.cursor.places[usize::from(partition.get())];
            let pointers = self.from.pointers(partition, place, PIECE, Direction::Forward).await;
            let pointers = pointers.map_err(CopyError::Source)?;
            step.all &= pointers.len() < PIECE;
            let mut left = pointers.as_slice();
            while !left.is_empty() {
                let (piece, rest) = left.split_at(self.from.piece(PAGE_BYTES, &[]).clamp(1, left.len()));
                step.added += self.copy(partition, piece).await?;
                left = rest;
            }
            if !pointers.is_empty() {
                self.save().await?;
            }
        }
        Ok(step)
    }

    /// Waits until the source may have more.
    pub async fn more(&mut self) {
        select_all(self.waiters.iter_mut().map(|waiter| Box::pin(waiter.woken()))).await;
    }

    /// That the target has as many events as were copied, each of which it was said to have.
    ///
    /// # Errors
    /// [`CopyError::Further`]. Where it lost some, in a failover perhaps, running the copy again brings them.
    pub async fn check(&self) -> Result<(), CopyError> {
        let (there, done) = (entries(&self.to).await.map_err(CopyError::Target)?, self.done());
        match there.checked_sub(done) {
            Some(0) => Ok(()),
            Some(further) => Err(CopyError::Further(further)),
            None => {
                let lost = format!("it lost {} event(s) that were copied; run the copy again", done - there);
                Err(CopyError::Target(Error::Unavailable(lost)))
            }
        }
    }

    /// Copies what these entries of a log of the source name.
    async fn copy(&mut self, partition: Partition, pointers: &[Pointer]) -> Result<u64, CopyError> {
        let events = self.from.resolve(partition, pointers).await.map_err(CopyError::Source)?;
        let kept = kept_ids(&self.from, partition, &events).await.map_err(CopyError::Source)?;
        let count = self.to.partitions().count();
        let mut calls: Vec<(Pipeline, Vec<&Pointer>)> = (0..count).map(|_| Default::default()).collect();
        let mut events = zip(events, kept).peekable();
        let mut print = Fingerprint::REMOVED;
        for pointer in pointers {
            let event = events.next_if(|(event, _)| event.position == pointer.position);
            print = event.as_ref().map_or(Fingerprint::REMOVED, |(event, _)| Fingerprint::of(&event.id));
            let to = self.to.partition(&pointer.stream);
            let (commands, of) = &mut calls[usize::from(to.get())];
            commands.add_command(copy_command(&self.to, to, pointer, event));
            of.push(pointer);
        }
        let sent = zip(self.to.partitions().all(), &calls).filter(|(_, (_, of))| !of.is_empty());
        let added = join_all(sent.map(|(to, (commands, of))| add(&self.to, to, commands, of))).await;
        let added = added.into_iter().sum::<Result<u64, CopyError>>()?;
        if let Some(last) = pointers.last() {
            self.cursor.pass(partition, Some((last.position, print)));
        }
        Ok(added)
    }

    /// Keeps in the target how far it is. All before is there.
    async fn save(&self) -> Result<(), CopyError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("SET").arg(self.to.0.keys.copied()).arg(self.cursor.token());
        self.to.0.connections.read(Partition::FIRST, &commands).await.map(drop).map_err(CopyError::Target)
    }
}

/// How many entries the logs of a store ever had.
async fn entries(store: &Store) -> Result<u64, Error> {
    let mut entries = 0;
    for partition in store.partitions().all() {
        entries += store.source_head(partition, None).await?;
    }
    Ok(entries)
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

fn copy_command(to: &Store, partition: Partition, pointer: &Pointer, event: Option<(Event, Option<Vec<u8>>)>) -> Cmd {
    let Pointer { stream, version, kind, .. } = pointer;
    let keys = &to.0.keys;
    let mut call = redis::cmd("FCALL");
    call.arg(to.0.library.function("es_copy")).arg(3).arg(keys.events(partition, stream)).arg(keys.log(partition));
    call.arg(keys.ids(partition, stream)).arg(version.get());
    match event {
        Some((event, kept)) => {
            call.arg(event.timestamp_ms).arg(kept.unwrap_or_default()).arg(stream.as_str());
            call.arg(&*event.id).arg(&*event.kind).arg(&*event.data).arg(&*event.metadata)
        }
        None => call.arg(0).arg("").arg(stream.as_str()).arg("").arg(kind).arg("").arg(""),
    };
    call
}

fn misses_function(reply: &Reply) -> bool {
    reply.error().is_some_and(|error| errors::from_reply(&error) == Error::FunctionMissing)
}

/// Adds events to a partition of the target. Answers with how many were not there yet.
async fn add(to: &Store, partition: Partition, commands: &Pipeline, of: &[&Pointer]) -> Result<u64, CopyError> {
    let ask = || async {
        let replies = to.0.connections.ask(partition, commands).await?;
        if replies.iter().any(misses_function) { Err(Error::FunctionMissing) } else { Ok(replies) }
    };
    let replies = to.with_functions(partition, ask).await.map_err(CopyError::Target)?;
    let mut added = 0;
    for (reply, pointer) in zip(replies, of) {
        added += match reply.error() {
            Some(error) => {
                let stream = pointer.stream.clone();
                let version = error.details().and_then(|text| Version::parse(text.trim())).unwrap_or_default();
                return Err(match error.code() {
                    "OTHEREVENT" => CopyError::OtherEvent { stream, version },
                    "GAP" => CopyError::Gap { stream, version },
                    _ => CopyError::Target(errors::from_reply(&error)),
                });
            }
            None => decode::<u64>(Some(reply)).map_err(CopyError::Target)?,
        };
    }
    Ok(added)
}
