//! Copying a store into another one, of whatever layout, while it takes writes.
//!
//! The logs of the source are read as one, in the order of time, and each event is added to its stream with the version and
//! the time that it has there, by a function that finds what is there already: a copy may break off anywhere, and is run
//! again. The target says how far it is.

mod groups;
mod merge;
mod source;
mod target;

use std::{
    iter::{self, zip},
    mem,
};

use futures::future::{join_all, select_all, try_join_all};
pub use groups::CopiedGroup;
use redis::Pipeline;
use tokio::time::sleep;

use self::{
    merge::Merge,
    source::{Entry, Look},
    target::Calls,
};
use super::{Store, errors::StartError, migrations, read::decode, tail::Waiter};
use crate::{
    model::{Cursor, Error, Fingerprint, Partition, StreamId, Version},
    store::StoreConfig,
};

/// Most log entries copied at once.
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
    /// What was read behind that.
    merge: Merge<Entry>,
    waiters: Vec<Waiter>,
}

/// What was copied in one go.
#[derive(Debug, Default)]
pub struct Step {
    /// How many events were not in the target yet.
    pub added: u64,
    /// Whether each partition of the source was read to its end in this step, and all of it copied.
    pub all: bool,
}

/// Where the logs of the source end, one position for each partition.
#[derive(Debug)]
pub struct Ends(Vec<u64>);

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
        let merge = Merge::new(partitions.count());
        let mut opened = Self { from, to, cursor: Cursor::beginning(partitions), merge, waiters };
        opened.find_place().await?;
        Ok(opened)
    }

    /// Where the logs of the source end now.
    ///
    /// # Errors
    /// The source does not answer.
    pub async fn ends(&self) -> Result<Ends, CopyError> {
        heads(&self.from).await.map(Ends).map_err(CopyError::Source)
    }

    /// How many entries before these ends are not yet copied.
    #[must_use]
    pub fn left(&self, Ends(ends): &Ends) -> u64 {
        zip(ends, self.places()).map(|(end, place)| end.saturating_sub(place)).sum()
    }

    /// Entries of the source's logs that were copied, now and before.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.places().sum()
    }

    /// Whether all that the source had when it was last looked at was read.
    #[must_use]
    pub fn has_caught_up(&self) -> bool {
        self.merge.is_at_end()
    }

    fn places(&self) -> impl Iterator<Item = u64> {
        self.cursor.places.iter().map(|place| place.map_or(0, |(position, _)| position.get()))
    }

    async fn find_place(&mut self) -> Result<(), CopyError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("GET").arg(self.to.0.keys.copied());
        let token = self.to.0.connections.read(Partition::FIRST, &commands).await.map_err(CopyError::Target)?.pop();
        let token: Option<String> = decode(token).map_err(CopyError::Target)?;
        let there = self.there().await?;
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

    /// Copies what comes next in the order of time. What the source's clocks have not passed yet waits for them, about a second
    /// at most: something that goes before it may still come.
    ///
    /// # Errors
    /// [`CopyError`]. What was copied stays, and is found when the copy is run again.
    pub async fn step(&mut self) -> Result<Step, CopyError> {
        // What was read comes back when all that was taken of it is copied; else it is read again.
        let mut merge = mem::replace(&mut self.merge, Merge::new(self.from.partitions().count()));
        let every = self.read(&mut merge).await.map_err(CopyError::Source)?;
        let entries: Vec<_> = iter::from_fn(|| merge.next()).take(PIECE).collect();
        if let Some(wait) = merge.wait().filter(|_| entries.is_empty()) {
            sleep(wait).await;
        }
        let added = self.copy(entries).await?;
        let all = every && merge.is_done();
        self.merge = merge;
        Ok(Step { added, all })
    }

    /// Reads on where nothing is left of a partition. Answers with whether that is every one.
    async fn read(&self, merge: &mut Merge<Entry>) -> Result<bool, Error> {
        let places = zip(self.from.partitions().all(), &self.cursor.places);
        let empty = places.filter(|(partition, _)| merge.is_empty(partition.get().into()));
        let looks = try_join_all(empty.map(|(partition, place)| Look::behind(&self.from, partition, *place))).await?;
        let every = looks.len() == self.cursor.places.len();
        for look in looks {
            merge.add(look.partition.get().into(), look.page(&self.from).await?);
        }
        Ok(every)
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
        let (there, done) = (self.there().await?, self.done());
        match there.checked_sub(done) {
            Some(0) => Ok(()),
            Some(further) => Err(CopyError::Further(further)),
            None => {
                let lost = format!("it lost {} event(s) that were copied; run the copy again", done - there);
                Err(CopyError::Target(Error::Unavailable(lost)))
            }
        }
    }

    /// Copies these entries, each of a partition of the source. In a log of the target they have this order.
    async fn copy(&mut self, entries: Vec<(usize, Entry)>) -> Result<u64, CopyError> {
        if entries.is_empty() {
            return Ok(0);
        }
        let mut cursor = self.cursor.clone();
        let mut calls: Vec<Calls> = self.to.partitions().all().map(|_| Calls::default()).collect();
        for (from, entry) in entries {
            let print = entry.event.as_ref().map_or(Fingerprint::REMOVED, |event| Fingerprint::of(&event.id));
            cursor.places[from] = Some((entry.pointer.position, print));
            let to = self.to.partition(&entry.pointer.stream);
            calls[usize::from(to.get())].add(&self.to, to, entry);
        }
        let sent = zip(self.to.partitions().all(), &calls).map(|(to, calls)| calls.send(&self.to, to));
        let added = join_all(sent).await.into_iter().sum::<Result<u64, CopyError>>()?;
        self.cursor = cursor;
        self.save().await?;
        Ok(added)
    }

    /// How many entries the target's logs ever had.
    async fn there(&self) -> Result<u64, CopyError> {
        Ok(heads(&self.to).await.map_err(CopyError::Target)?.iter().sum())
    }

    /// Keeps in the target how far it is. All before is there.
    async fn save(&self) -> Result<(), CopyError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("SET").arg(self.to.0.keys.copied()).arg(self.cursor.token());
        self.to.0.connections.read(Partition::FIRST, &commands).await.map(drop).map_err(CopyError::Target)
    }
}

/// The last positions of a store's logs.
async fn heads(store: &Store) -> Result<Vec<u64>, Error> {
    let mut heads = Vec::new();
    for partition in store.partitions().all() {
        heads.push(store.source_head(partition, None).await?);
    }
    Ok(heads)
}
