//! Following the log or one stream: first what is there, in pages; then what comes, from the events that the partition's
//! reader has fetched once for all. Whoever falls behind goes back to pages. Places decide what comes next, so nothing
//! is missed or repeated between the two.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    model::{Cursor, Error, Event, Fingerprint, Partition, Place, Position, StreamCursor, StreamId, Version},
    store::{
        Direction, LogFilter, LogRequest, Page, PageRequest, Store,
        read::bytes_of,
        recent::LiveEvent,
        tail::{Bell, Following},
    },
};

/// Roughly how many bytes a follower is given at once.
const BYTES: usize = 1024 * 1024;

/// What a follower was given.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events, in order; those of each partition in commit order.
    pub events: Vec<Arc<LiveEvent>>,
    /// Whether that was all by now.
    pub caught_up: bool,
    /// Whether it had to be read in pages, and there is more.
    pub behind: bool,
    /// Whether all came from where others who follow are given the same.
    pub shared: bool,
}

/// Follows the log, all partitions or one.
pub struct LogFollower {
    store: Store,
    filter: LogFilter,
    cursor: Cursor,
    lanes: Vec<Lane>,
    grown: watch::Receiver<()>,
}

/// A partition that is followed.
struct Lane {
    partition: Partition,
    following: Following,
    /// The reader's session in which this follower has seen everything up to its place.
    session: Option<u64>,
}

/// Follows one stream.
pub struct StreamFollower {
    store: Store,
    partition: Partition,
    bell: Bell,
    stream: StreamId,
    version: Version,
    /// Of the event at `version`, where it is known.
    fingerprint: Option<Fingerprint>,
    session: Option<u64>,
    /// Everything up to here was seen in this session.
    seen: Position,
}

impl Store {
    /// Follows the log behind a cursor: one partition, or all of them.
    #[must_use]
    pub fn follow_log(&self, cursor: Cursor, partition: Option<Partition>, filter: LogFilter) -> LogFollower {
        let lane = |partition: Partition| {
            let following = self.0.tails[usize::from(partition.get())].follow();
            Lane { partition, following, session: None }
        };
        let lanes = match partition {
            Some(partition) => vec![lane(partition)],
            None => self.partitions().all().map(lane).collect(),
        };
        LogFollower { store: self.clone(), filter, cursor, lanes, grown: self.0.grown.subscribe() }
    }

    /// Follows a stream behind a version. The stream may not be there yet. The fingerprint, where it is known, is that of
    /// the event at this version.
    #[must_use]
    pub fn follow_stream(
        &self,
        stream: &StreamId,
        version: Version,
        fingerprint: Option<Fingerprint>,
    ) -> StreamFollower {
        let partition = self.partition(stream);
        let bell = self.0.tails[usize::from(partition.get())].follow_stream(stream);
        let (session, seen) = (None, Position::ZERO);
        StreamFollower {
            store: self.clone(),
            partition,
            bell,
            stream: stream.clone(),
            version,
            fingerprint,
            session,
            seen,
        }
    }
}

impl LogFollower {
    /// Where it is: after all that it was given, or passed over.
    #[must_use]
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Gives at most `most` events that are there.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`], or that Redis is not available. May be called again.
    pub async fn look(&mut self, most: usize) -> Result<Batch, Error> {
        // Before looking, so that nothing which comes after it is missed.
        self.grown.mark_unchanged();
        let mut batch = Batch { caught_up: true, shared: true, ..Batch::default() };
        let (mut bytes, mut fault) = (0, None);
        let first = self.cursor.turn % self.lanes.len();
        for step in 0..self.lanes.len() {
            if batch.events.len() >= most || bytes > BYTES {
                batch.caught_up = false;
                break;
            }
            let index = (first + step) % self.lanes.len();
            if self.store.0.connections.is_away(self.lanes[index].partition) {
                batch.caught_up = false;
                continue;
            }
            let room = (most - batch.events.len(), BYTES.saturating_sub(bytes));
            match self.look_at(index, room, &mut batch).await {
                Ok(taken) => bytes += taken,
                Err(error) => {
                    // One that is away costs its whole time: the next look begins with those behind it. What does not
                    // pass shows itself again at once.
                    self.cursor.turn = if error.is_passing() { (index + 1) % self.lanes.len() } else { index };
                    fault = Some(error);
                    break;
                }
            }
        }
        match fault {
            Some(error) if batch.events.is_empty() => Err(error),
            // The place is behind these events already: they must not be lost.
            fault => Ok(Batch { caught_up: batch.caught_up && fault.is_none(), ..batch }),
        }
    }

    /// Waits until `look` may find more than it did.
    pub async fn changed(&mut self) {
        // The sender lives as long as the store.
        let _ = self.grown.changed().await;
    }

    /// Looks at one partition; says how many bytes that gave.
    async fn look_at(&mut self, index: usize, room: (usize, usize), batch: &mut Batch) -> Result<usize, Error> {
        let lane = &mut self.lanes[index];
        let place = self.cursor.places[usize::from(lane.partition.get())];
        if let Some(given) = lane.recent(place, room, &self.filter, &mut batch.events) {
            self.cursor.pass(lane.partition, given.place);
            batch.caught_up &= given.all;
            return Ok(given.bytes);
        }
        let session = lane.following.recent().session();
        let request =
            LogRequest { limit: room.0, bytes: room.1, direction: Direction::Forward, filter: self.filter.clone() };
        let page = self.store.read_log(lane.partition, place, &request).await?;
        lane.session = page.caught_up.then_some(session);
        self.cursor.pass(lane.partition, page.place);
        batch.caught_up &= page.caught_up;
        batch.behind |= !page.caught_up;
        batch.shared = false;
        let bytes = bytes_of(&page.events);
        batch.events.extend(page.events.into_iter().map(LiveEvent::new));
        Ok(bytes)
    }
}

/// How far the recent events of a partition have brought a follower.
struct Given {
    place: Place,
    bytes: usize,
    /// Whether that was all.
    all: bool,
}

impl Lane {
    /// Gives what the reader has fetched behind a place; `None` where that is not all that came since.
    fn recent(
        &self,
        mut place: Place,
        room: (usize, usize),
        filter: &LogFilter,
        events: &mut Vec<Arc<LiveEvent>>,
    ) -> Option<Given> {
        let recent = self.following.recent();
        let position = place.map_or(Position::ZERO, |(position, _)| position);
        if !recent.covers(self.session?, position) {
            return None;
        }
        let (most, mut bytes) = (events.len() + room.0, 0);
        for live in recent.after(position) {
            if events.len() == most || bytes > room.1 {
                return Some(Given { place, bytes, all: false });
            }
            place = Some((live.event.position, live.fingerprint));
            if filter.wants(&live.event.stream, &live.event.kind) {
                bytes += live.line.len();
                events.push(Arc::clone(live));
            }
        }
        Some(Given { place, bytes, all: true })
    }
}

impl StreamFollower {
    /// Where it is; `None` before the first event that it was given or began behind.
    #[must_use]
    pub fn cursor(&self) -> Option<StreamCursor> {
        let (version, fingerprint) = (self.version, self.fingerprint?);
        Some(StreamCursor { version, fingerprint })
    }

    /// Gives at most `most` events that are there.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`], [`Error::StreamDeleted`], or that Redis is not available. May be called again.
    pub async fn look(&mut self, most: usize) -> Result<Batch, Error> {
        // Before looking, so that nothing which comes after it is missed.
        self.bell.hush();
        let batch = match self.recent(most) {
            Some(batch) => batch,
            None => self.page(most).await?,
        };
        if let Some(last) = batch.events.last() {
            self.version = last.event.version;
            self.fingerprint = Some(last.fingerprint);
        }
        Ok(batch)
    }

    /// Waits until `look` may find more than it did.
    pub async fn changed(&mut self) {
        self.bell.rung().await;
    }

    /// What the reader has fetched; `None` where that is not all that came since.
    fn recent(&mut self, most: usize) -> Option<Batch> {
        let recent = self.bell.following.recent();
        let session = self.session.filter(|session| *session == recent.session())?;
        let mut events = recent.of_stream(&self.stream, self.version, self.seen);
        // Versions have no gaps: where the next one is there, so is all behind it, though `seen` was long ago.
        let next = events.first().is_some_and(|live| live.event.version == self.version.plus(1));
        if !next && !recent.covers(session, self.seen) {
            return None;
        }
        let to = recent.to();
        drop(recent);
        let mut room = BYTES;
        let fits = |live: &Arc<LiveEvent>| {
            let fits = room > 0;
            room = room.saturating_sub(live.line.len());
            fits
        };
        let count = events.iter().take(most).map(fits).take_while(|fits| *fits).count();
        let caught_up = count == events.len();
        events.truncate(count);
        self.seen = if caught_up { to } else { events.last().map_or(to, |live| live.event.position) };
        Some(Batch { events, caught_up, ..Batch::default() })
    }

    async fn page(&mut self, most: usize) -> Result<Batch, Error> {
        let (session, seen) = {
            let recent = self.bell.following.recent();
            (recent.session(), recent.to())
        };
        // From its own event on, where that is to be compared.
        let from = if self.fingerprint.is_some() { self.version } else { self.version.plus(1) };
        let limit = most + usize::from(self.fingerprint.is_some());
        let (from, direction) = (Some(from.max(Version::FIRST)), Direction::Forward);
        let request = PageRequest { from, to: None, limit, bytes: BYTES, direction };
        let mut page = match self.store.read(self.partition, &self.stream, request).await {
            Err(Error::StreamNotFound) => Page { version: Version::ZERO, events: Vec::new(), next: None },
            read => read?,
        };
        self.check_history(page.version, &mut page.events)?;
        let caught_up = page.next.is_none() && page.events.len() <= most;
        page.events.truncate(most);
        if caught_up {
            (self.session, self.seen) = (Some(session), seen);
        }
        let events = page.events.into_iter().map(LiveEvent::new).collect();
        Ok(Batch { events, caught_up, behind: !caught_up, shared: false })
    }

    /// Takes its own event from a page, and compares. Where it was removed the page begins behind it, which is no fault.
    fn check_history(&self, version: Version, events: &mut Vec<Event>) -> Result<(), Error> {
        let Some(fingerprint) = self.fingerprint else { return Ok(()) };
        let diverged = Error::HistoryDiverged { head: Position::ZERO.plus(version.get()) };
        match events.first() {
            Some(first) if first.version == self.version => {
                let own = events.remove(0);
                if fingerprint.fits(&own.id) { Ok(()) } else { Err(diverged) }
            }
            _ if version < self.version => Err(diverged),
            _ => Ok(()),
        }
    }
}
