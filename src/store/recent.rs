//! The newest events of a partition, taken in once for all who follow it: fetched, or kept since this instance itself
//! appended them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use crate::{
    model::{Event, Fingerprint, Position, StreamId, Version, put_on_one_line},
    store::pointers::Pointer,
};

/// Most events that are kept.
const EVENTS_MAX: usize = 4_096;
/// Most events that wait until the log tells of them; further ones are fetched.
const OWN_MAX: usize = 512;

/// An event on its way to those who follow.
#[derive(Debug)]
pub struct LiveEvent {
    /// The event.
    pub event: Event,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// The event as one line of JSON, without a line break: those between its parts became spaces.
    pub line: Vec<u8>,
    frame: OnceLock<Bytes>,
}

impl LiveEvent {
    pub(super) fn new(event: Event) -> Arc<Self> {
        let mut line = Vec::with_capacity(event.data.len() + event.metadata.len() + 256);
        event.write_json(&mut line);
        put_on_one_line(&mut line);
        Arc::new(Self { fingerprint: Fingerprint::of(&event.id), event, line, frame: OnceLock::new() })
    }

    /// The event as all are sent it who follow the log: made by the first of them, the same for every other.
    pub fn frame(&self, make: impl FnOnce() -> Bytes) -> &Bytes {
        self.frame.get_or_init(make)
    }
}

/// The events of a partition with positions in `(from, to]`, as far as they were not removed.
#[derive(Debug)]
pub(super) struct Recent {
    /// New with every connection of the reader: what lies between two sessions was seen by nobody, and may even be
    /// another history.
    session: u64,
    from: Position,
    to: Position,
    events: VecDeque<Arc<LiveEvent>>,
    bytes: usize,
    bytes_max: usize,
    /// What this instance itself has appended, and the log has not told of yet.
    own: BTreeMap<Position, Arc<LiveEvent>>,
}

impl Recent {
    /// Keeps events of at most so many bytes in all.
    pub(super) fn new(bytes_max: usize) -> Self {
        let (from, to) = (Position::ZERO, Position::ZERO);
        Self { session: 0, from, to, events: VecDeque::new(), bytes: 0, bytes_max, own: BTreeMap::new() }
    }

    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// The last position that was looked at.
    pub(super) fn to(&self) -> Position {
        self.to
    }

    /// Begins anew behind this position.
    pub(super) fn begin_session(&mut self, at: Position) {
        self.session += 1;
        self.skip(at);
    }

    /// The reader reads no more: what it saw proves nothing of what comes.
    pub(super) fn end_session(&mut self) {
        self.begin_session(Position::ZERO);
    }

    /// Forgets all up to this position: nobody follows.
    pub(super) fn skip(&mut self, at: Position) {
        (self.from, self.to, self.bytes) = (at, at, 0);
        // Also gives the memory back.
        self.events = VecDeque::new();
        self.own = BTreeMap::new();
    }

    /// Keeps an event that was appended in a session, so that it need not be fetched.
    pub(super) fn offer(&mut self, session: u64, live: Arc<LiveEvent>) {
        let wanted = session == self.session && live.event.position > self.to;
        if wanted && self.own.len() < OWN_MAX {
            self.own.insert(live.event.position, live);
        }
    }

    /// The events that pointers name; `None` unless all of them were offered.
    pub(super) fn offered(&self, pointers: &[Pointer]) -> Option<Vec<Arc<LiveEvent>>> {
        let found =
            |pointer: &Pointer| self.own.get(&pointer.position).filter(|live| pointer.names(&live.event)).cloned();
        pointers.iter().map(found).collect()
    }

    /// Takes in what comes next, up to this position.
    pub(super) fn extend(&mut self, events: impl IntoIterator<Item = Arc<LiveEvent>>, to: Position) {
        for event in events {
            self.bytes += size_of(&event);
            self.events.push_back(event);
        }
        while self.events.len() > EVENTS_MAX || (self.bytes > self.bytes_max && self.events.len() > 1) {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= size_of(&oldest);
            self.from = oldest.event.position;
        }
        self.to = to;
        self.own = self.own.split_off(&to.plus(1));
    }

    /// Whether all that came after this position in this session is here.
    pub(super) fn covers(&self, session: u64, position: Position) -> bool {
        session == self.session && position >= self.from
    }

    /// The events behind a position.
    pub(super) fn after(&self, position: Position) -> impl Iterator<Item = &Arc<LiveEvent>> {
        let first = self.events.partition_point(|live| live.event.position <= position);
        self.events.range(first..)
    }

    /// The events of a stream behind a version, of those behind a position. Looks from the newest on, and no further than
    /// the one that comes next.
    pub(super) fn of_stream(&self, stream: &StreamId, version: Version, after: Position) -> Vec<Arc<LiveEvent>> {
        let mut found = Vec::new();
        for live in self.events.iter().rev().take_while(|live| live.event.position > after) {
            if live.event.stream == *stream {
                if live.event.version <= version {
                    break;
                }
                found.push(Arc::clone(live));
                if live.event.version == version.plus(1) {
                    break;
                }
            }
        }
        found.reverse();
        found
    }
}

/// Roughly what an event takes in memory: its parts, its line, and what all are sent.
fn size_of(live: &LiveEvent) -> usize {
    3 * live.line.len() + 256
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: u64, stream: &str, version: u64) -> Arc<LiveEvent> {
        let (id, kind, data, metadata) = (position.to_string().into(), "t".into(), "1".into(), "{}".into());
        let stream = StreamId::parse(stream).expect("a good id");
        let (version, position) = (Version::ZERO.plus(version), Position::ZERO.plus(position));
        LiveEvent::new(Event { stream, version, position, id, kind, timestamp_ms: 0, data, metadata })
    }

    #[test]
    fn a_session_that_has_ended_proves_nothing() {
        let mut recent = Recent::new(1_000_000);
        recent.begin_session(Position::ZERO.plus(3));
        recent.extend([event(4, "a", 1), event(5, "b", 1)], Position::ZERO.plus(5));
        let session = recent.session();
        assert!(recent.covers(session, Position::ZERO.plus(3)) && !recent.covers(session, Position::ZERO.plus(2)));
        recent.end_session();
        assert!(!recent.covers(session, Position::ZERO.plus(5)));
        assert_eq!(recent.after(Position::ZERO).count(), 0, "nobody is given what was seen then");
    }

    #[test]
    fn what_was_offered_is_given_to_its_own_pointer() {
        let mut recent = Recent::new(1_000_000);
        recent.begin_session(Position::ZERO.plus(3));
        let session = recent.session();
        let [old, one, two, other] = [event(3, "a", 1), event(4, "a", 2), event(5, "b", 1), event(5, "c", 1)];
        for live in [&old, &one, &two] {
            recent.offer(session, Arc::clone(live));
        }
        let offered = |recent: &Recent, events: &[&Arc<LiveEvent>]| {
            let pointer = |live: &&Arc<LiveEvent>| {
                let Event { position, stream, version, kind, .. } = live.event.clone();
                Pointer { position, stream, version, kind: kind.to_string() }
            };
            let pointers: Vec<_> = events.iter().map(pointer).collect();
            recent.offered(&pointers).map(|events| events.len())
        };
        assert_eq!(offered(&recent, &[&one, &two]), Some(2));
        assert_eq!(offered(&recent, &[&old]), None, "it was told before");
        assert_eq!(offered(&recent, &[&one, &other]), None, "an event of another stream is there");
        recent.extend([one.clone()], Position::ZERO.plus(4));
        assert_eq!((offered(&recent, &[&one]), offered(&recent, &[&two])), (None, Some(1)));
        recent.end_session();
        recent.offer(session, two.clone());
        assert_eq!(offered(&recent, &[&two]), None, "it may be of another history");
    }

    #[test]
    fn the_next_of_a_stream_is_found_among_others() {
        let mut recent = Recent::new(1_000_000);
        recent.begin_session(Position::ZERO);
        let events = (1..=9).map(|n| event(n, if n % 3 == 0 { "a" } else { "b" }, n.div_ceil(3)));
        recent.extend(events, Position::ZERO.plus(9));
        let stream = StreamId::parse("a").expect("a good id");
        let versions = |version, after| {
            let found = recent.of_stream(&stream, Version::ZERO.plus(version), Position::ZERO.plus(after));
            found.iter().map(|live| live.event.version.get()).collect::<Vec<_>>()
        };
        assert_eq!(versions(0, 0), [1, 2, 3]);
        assert_eq!(versions(1, 0), [2, 3]);
        assert_eq!(versions(0, 6), [3], "not those before");
        assert_eq!(versions(3, 0), [] as [u64; 0]);
    }
}
