//! The entries of a partition's log: pointers to events.

use redis::Pipeline;

use crate::{
    model::{Error, Event, Fingerprint, Partition, Place, Position, StreamId, Version},
    store::{
        Direction, Store,
        read::{bytes_of, decode, entries, entry_number},
        reply::{Parts, Reply},
    },
};

/// Commands of a proof that a mark still stands.
const PROOF: usize = 2;
/// Log entries that are looked at together for the first event that was not removed.
const FIRST_PIECE: usize = 20;
/// Most log entries looked at in one call, whatever a filter leaves of them: Redis does nothing else meanwhile.
pub(super) const LOOKED_AT_MAX: usize = 1_000;

/// An entry of the log.
#[derive(PartialEq, Eq)]
pub(super) struct Pointer {
    pub(super) position: Position,
    pub(super) stream: StreamId,
    pub(super) version: Version,
    pub(super) kind: String,
}

impl Pointer {
    /// Whether it is that of an event.
    pub(super) fn names(&self, event: &Event) -> bool {
        let Self { position, stream, version, kind } = self;
        (*position, *version) == (event.position, event.version) && *stream == event.stream && **kind == *event.kind
    }
}

/// An entry of the log with the fingerprint of its event: while it stands there, so does all before it.
pub(super) struct Mark {
    pointer: Pointer,
    fingerprint: Fingerprint,
}

impl Mark {
    /// Of the last of these pointers. The last of their events that was not removed is given too.
    pub(super) fn of(pointers: Vec<Pointer>, event: Option<&Event>) -> Option<Self> {
        let pointer = pointers.into_iter().next_back()?;
        let event = event.filter(|event| event.position == pointer.position);
        Some(Self { fingerprint: event.map_or(Fingerprint::REMOVED, |event| Fingerprint::of(&event.id)), pointer })
    }

    pub(super) fn position(&self) -> Position {
        self.pointer.position
    }
}

/// Entries of XRANGE or XREVRANGE: id, fields and values.
pub(super) type Entries = Vec<(String, Vec<String>)>;

/// Reads entries of the log.
pub(super) fn pointers(entries: Entries) -> Result<Vec<Pointer>, Error> {
    let of = |(id, fields): (String, Vec<String>)| pointer(&id, fields.iter().map(String::as_str));
    entries.into_iter().map(of).collect()
}

/// Reads the reply of XRANGE on the log.
fn log_entries(reply: Option<&Reply>) -> Result<Vec<Pointer>, Error> {
    let mut parts = reply.map(Reply::parts).ok_or_else(|| Error::Corrupt("the log is silent".to_owned()))?;
    listed(&mut parts)
}

/// Reads a list of entries of the log.
pub(super) fn listed(parts: &mut Parts<'_>) -> Result<Vec<Pointer>, Error> {
    let corrupt = || Error::Corrupt("the log has no entries".to_owned());
    let count = parts.list().ok_or_else(corrupt)?;
    let mut next = || {
        let (id, fields) = parts.entry().ok_or_else(corrupt)?;
        pointer(id, (0..fields).map_while(|_| parts.text()))
    };
    (0..count).map(|_| next()).collect()
}

fn pointer<'a>(id: &str, mut fields: impl Iterator<Item = &'a str>) -> Result<Pointer, Error> {
    let corrupt = || Error::Corrupt(format!("log entry {id}"));
    let (mut stream, mut version, mut kind) = (None, None, None);
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match name {
            "s" => stream = StreamId::parse(value),
            "v" => version = Version::parse(value),
            "t" => kind = Some(value.to_owned()),
            _ => {}
        }
    }
    let position = entry_number(id).and_then(Position::new).ok_or_else(corrupt)?;
    match (stream, version, kind) {
        (Some(stream), Some(version), Some(kind)) => Ok(Pointer { position, stream, version, kind }),
        _ => Err(corrupt()),
    }
}

impl Store {
    /// At most `limit` entries of the log behind `place`, or going backward before it. The event at `place` is compared
    /// with its fingerprint first.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`] where another event, or none, is there; or that Redis is not available.
    pub(super) async fn pointers(
        &self,
        partition: Partition,
        place: Place,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<Pointer>, Error> {
        let log = self.0.keys.log(partition);
        let count = limit + usize::from(place.is_some());
        let mut commands = Pipeline::with_capacity(2);
        let (command, open, end) = match direction {
            Direction::Forward => ("XRANGE", "-", "+"),
            Direction::Backward => ("XREVRANGE", "+", "-"),
        };
        let from = place.map_or(open.to_owned(), |(position, _)| format!("0-{position}"));
        commands.cmd(command).arg(&log).arg(from).arg(end).arg("COUNT").arg(count);
        commands.cmd("XLEN").arg(&log);
        let mut replies = self.0.connections.read(partition, &commands).await?.into_iter();
        let mut pointers = log_entries(replies.next().as_ref())?;
        let head = Position::new(decode(replies.next())?).unwrap_or_default();
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
    pub(super) async fn resolve(&self, partition: Partition, pointers: &[Pointer]) -> Result<Vec<Event>, Error> {
        if pointers.is_empty() {
            return Ok(Vec::new());
        }
        let mut commands = Pipeline::with_capacity(pointers.len());
        self.add_events(&mut commands, partition, pointers);
        self.events_of(pointers, &self.0.connections.read(partition, &commands).await?)
    }

    /// The same, as far as they fit into so many bytes, roughly, but at least one. Answers also with how many pointers
    /// those are.
    pub(super) async fn resolve_within(
        &self,
        partition: Partition,
        pointers: &[Pointer],
        bytes: usize,
    ) -> Result<(Vec<Event>, usize), Error> {
        let (mut events, mut left) = (Vec::with_capacity(pointers.len()), pointers);
        while !left.is_empty() && bytes_of(&events) <= bytes {
            let piece;
            (piece, left) = left.split_at(self.piece(bytes, &events).clamp(1, left.len()));
            events.extend(self.resolve(partition, piece).await?);
        }
        Ok((events, pointers.len() - left.len()))
    }

    /// Fetches the events that pointers name, and finds out in the same round trip that a mark still stands.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`] where it does not; or that Redis is not available.
    pub(super) async fn resolve_behind(
        &self,
        partition: Partition,
        mark: &Mark,
        pointers: &[Pointer],
    ) -> Result<Vec<Event>, Error> {
        let mut commands = Pipeline::with_capacity(pointers.len() + PROOF);
        self.add_proof(&mut commands, partition, mark);
        self.add_events(&mut commands, partition, pointers);
        let replies = self.0.connections.read(partition, &commands).await?;
        let (proof, rest) = replies.split_at(replies.len().min(PROOF));
        self.check_proof(mark, proof)?;
        self.events_of(pointers, rest)
    }

    /// Adds the commands whose replies tell whether a mark still stands.
    pub(super) fn add_proof(&self, commands: &mut Pipeline, partition: Partition, mark: &Mark) {
        let id = format!("0-{}", mark.pointer.position);
        commands.cmd("XRANGE").arg(self.0.keys.log(partition)).arg(&id).arg(&id);
        self.add_events(commands, partition, std::slice::from_ref(&mark.pointer));
    }

    /// That a mark still stands, by these replies.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`] where it does not.
    pub(super) fn check_proof(&self, mark: &Mark, replies: &[Reply]) -> Result<(), Error> {
        let there = log_entries(replies.first())?.pop();
        let event = self.events_of(std::slice::from_ref(&mark.pointer), replies.get(1..).unwrap_or_default())?.pop();
        if there.as_ref() == Some(&mark.pointer) && event.is_none_or(|event| mark.fingerprint.fits(&event.id)) {
            return Ok(());
        }
        Err(Error::HistoryDiverged { head: there.map_or(Position::ZERO, |pointer| pointer.position) })
    }

    fn add_events(&self, commands: &mut Pipeline, partition: Partition, pointers: &[Pointer]) {
        for Pointer { stream, version, .. } in pointers {
            let id = format!("0-{version}");
            commands.cmd("XRANGE").arg(self.0.keys.events(partition, stream)).arg(&id).arg(&id);
        }
    }

    fn events_of(&self, pointers: &[Pointer], replies: &[Reply]) -> Result<Vec<Event>, Error> {
        let mut events = Vec::with_capacity(pointers.len());
        for (pointer, reply) in pointers.iter().zip(replies) {
            let found = entries(&pointer.stream, Some(reply))?;
            events.extend(found.into_iter().map(|event| Event { position: pointer.position, ..event }));
        }
        Ok(self.met(events))
    }

    /// The mark of the last log entry at or before a position; without one, of the newest.
    pub(super) async fn mark_at(&self, partition: Partition, position: Option<u64>) -> Result<Option<Mark>, Error> {
        let from = position.map_or("+".to_owned(), |position| format!("0-{position}"));
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("XREVRANGE").arg(self.0.keys.log(partition)).arg(from).arg("-").arg("COUNT").arg(1);
        let pointers = log_entries(self.0.connections.read(partition, &commands).await?.first())?;
        let events = self.resolve(partition, &pointers).await?;
        Ok(Mark::of(pointers, events.last()))
    }

    /// The place of the same.
    pub(super) async fn place_at(&self, partition: Partition, position: Option<u64>) -> Result<Place, Error> {
        let mark = self.mark_at(partition, position).await?;
        Ok(mark.map(|mark| (mark.pointer.position, mark.fingerprint)))
    }

    /// The first event behind a position that was not removed. Looks at a bounded number of entries; `None` where all of
    /// them are gone, or there are none.
    pub(super) async fn first_after(&self, partition: Partition, position: u64) -> Result<Option<Event>, Error> {
        let (mut next, mut seen) = (position + 1, 0);
        while seen < LOOKED_AT_MAX {
            let mut commands = Pipeline::with_capacity(1);
            let from = format!("0-{next}");
            commands.cmd("XRANGE").arg(self.0.keys.log(partition)).arg(from).arg("+").arg("COUNT").arg(FIRST_PIECE);
            let pointers = log_entries(self.0.connections.read(partition, &commands).await?.first())?;
            let Some(last) = pointers.last().map(|pointer| pointer.position.get()) else { return Ok(None) };
            (next, seen) = (last + 1, seen + pointers.len());
            if let Some(event) = self.resolve(partition, &pointers).await?.into_iter().next() {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}
