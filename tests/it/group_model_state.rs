//! The model of a consumer group: what every event's state must be, and which answers are right.

use std::collections::BTreeMap;

use streamkeep::model::{GroupSettings, LeaseToken, OnExhausted, Ordering, StreamId};

/// Fails a step with a sentence.
macro_rules! ensure {
    ($holds:expr, $($text:tt)*) => {
        if !$holds {
            return Err(format!($($text)*));
        }
    };
}
pub(crate) use ensure;

/// Partition, and position in the group's source.
pub type Place = (u16, u64);

/// What an event is, exactly one at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not handed out since the group began, or was sought.
    Fresh,
    /// Handed out. `due`: the lease has run out.
    Leased { text: String, count: u64, due: bool },
    /// Waits for a retry.
    Waiting { count: u64, due: bool },
    /// Set aside. `blocks`: its stream stands behind it. `sought`: the group was sought before it, so it comes again.
    Parked { count: u64, blocks: bool, sought: bool, reason: &'static str },
    /// To be handed out again, asked for in this call.
    Again { batch: u64 },
    /// Acked, skipped or dropped; or before the group's beginning.
    Settled,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub stream: String,
    pub version: u64,
    pub matches: bool,
    /// Its entry is gone. Whether the group has noticed is not followed exactly.
    pub removed: bool,
    pub state: State,
}

impl Event {
    fn is_due(&self) -> bool {
        matches!(self.state, State::Leased { due: true, .. } | State::Waiting { due: true, .. })
    }

    /// As far as the group knows: where it was sought, parked events come again like others.
    pub fn is_fresh(&self) -> bool {
        matches!(self.state, State::Fresh | State::Parked { sought: true, .. })
    }

    pub fn is_pending(&self) -> bool {
        matches!(self.state, State::Leased { .. } | State::Waiting { .. })
    }
}

/// What an ack, nack or extend may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    Already,
    Lost,
    /// Its deliveries are used up, and it may have been parked already.
    DoneOrLost,
    /// Its event was removed.
    Any,
}

pub struct Model {
    pub settings: GroupSettings,
    pub generation: String,
    pub paused: bool,
    pub events: BTreeMap<Place, Event>,
    /// The places of each stream, by version.
    pub streams: BTreeMap<String, Vec<Place>>,
    pub batch: u64,
}

impl Model {
    pub fn new(settings: GroupSettings) -> Self {
        let (generation, events, streams) = (String::new(), BTreeMap::new(), BTreeMap::new());
        Self { settings, generation, paused: false, events, streams, batch: 0 }
    }

    pub fn ordered(&self) -> bool {
        self.settings.ordering == Ordering::Stream
    }

    pub fn is_filtered(&self) -> bool {
        !self.settings.categories.is_empty() || !self.settings.types.is_empty()
    }

    pub fn added(&mut self, place: Place, stream: &StreamId, version: u64, kind: &str) {
        let GroupSettings { categories, types, .. } = &self.settings;
        let matches = (categories.is_empty() || categories.iter().any(|category| category == stream.category()))
            && (types.is_empty() || types.iter().any(|known| known == kind));
        let stream = stream.as_str().to_owned();
        self.streams.entry(stream.clone()).or_default().push(place);
        self.events.insert(place, Event { stream, version, matches, removed: false, state: State::Fresh });
    }

    fn used_up(&self, event: &Event) -> bool {
        let most = self.settings.max_deliveries;
        match event.state {
            State::Leased { count, due: true, .. } | State::Waiting { count, due: true } => count >= most,
            _ => false,
        }
    }

    pub fn parked_now(&self, count: u64, reason: &'static str) -> State {
        let blocks = self.ordered() && self.settings.on_exhausted == OnExhausted::ParkStream;
        State::Parked { count, blocks, sought: false, reason }
    }

    /// An event whose deliveries are used up is parked by now.
    pub fn park_used_up(&mut self, place: Place) {
        if self.used_up(&self.events[&place]) {
            let (State::Leased { count, .. } | State::Waiting { count, .. }) = self.events[&place].state else {
                return;
            };
            let state = self.parked_now(count, "exhausted");
            self.set(place, state);
        }
    }

    pub fn set(&mut self, place: Place, state: State) {
        self.events.get_mut(&place).unwrap().state = state;
    }

    /// An event came out of `next`.
    pub fn hand_out(&mut self, lease: &LeaseToken, count: u64) -> Result<(), String> {
        let place = (lease.partition.get(), lease.position.get());
        let event = self.events.get(&place).ok_or_else(|| format!("{place:?} was never appended"))?.clone();
        ensure!(lease.generation == self.generation, "{place:?} of another generation");
        ensure!(event.matches, "{place:?} does not match");
        let stream = lease.stream().ok_or("a lease without stream")?;
        ensure!(stream.as_str() == event.stream, "{place:?} is of {}, not of {stream}", event.stream);
        let wanted = match event.state {
            State::Fresh | State::Again { .. } | State::Parked { sought: true, .. } => 1,
            State::Leased { count, due: true, .. } | State::Waiting { count, due: true } => count + 1,
            _ => return Err(format!("{place:?} was handed out, but is {:?}", event.state)),
        };
        ensure!(count == wanted, "{place:?} is delivery {count}, not {wanted}");
        let most = self.settings.max_deliveries.max(1);
        ensure!(count <= most, "{place:?} has used up its deliveries: {count}");
        if self.ordered() {
            self.check_order(place, &event)?;
        }
        self.set(place, State::Leased { text: lease.text.clone(), count, due: false });
        Ok(())
    }

    /// That nothing of its stream stands before an event that was handed out.
    fn check_order(&mut self, place: Place, event: &Event) -> Result<(), String> {
        let retried = event.is_due();
        for other_place in self.streams[&event.stream].clone() {
            if other_place == place || !self.events[&other_place].matches {
                continue;
            }
            self.park_used_up(other_place);
            let other = &self.events[&other_place];
            let before = other.version < event.version;
            let came_first = match (&other.state, &event.state) {
                (State::Parked { sought: false, .. }, _) => false,
                (State::Again { batch }, State::Again { batch: of }) => before && batch == of,
                (State::Again { .. }, _) => before && event.is_fresh(),
                _ => before || other.is_due(),
            };
            if other.removed && came_first {
                // It was looked for, and is gone.
                ensure!(!other.is_pending() || other.is_due(), "{place:?} before {other_place:?} ({:?})", other.state);
                self.set(other_place, State::Settled);
                continue;
            }
            let wrong = match (&other.state, &event.state) {
                (State::Leased { .. } | State::Waiting { .. }, _) => true,
                _ if other.is_fresh() && before => !retried,
                (State::Again { batch }, State::Again { batch: of }) => before && batch == of,
                (State::Again { .. }, _) if event.is_fresh() => before && !other.removed,
                (State::Parked { blocks: true, .. }, _) => event.is_fresh(),
                _ => false,
            };
            ensure!(!wrong, "{place:?} ({:?}) before {other_place:?} ({:?})", event.state, other.state);
        }
        Ok(())
    }

    /// How many events of a partition are surely in flight.
    pub fn in_flight(&self, partition: u16) -> u64 {
        let of = self.events.iter().filter(|((at, _), _)| *at == partition);
        of.filter(|(_, event)| event.is_pending() && !event.removed && !self.used_up(event)).count() as u64
    }

    /// `next` said that there is no more by now.
    pub fn nothing_left(&mut self) -> Result<(), String> {
        if self.paused {
            return Ok(());
        }
        let places: Vec<Place> = self.events.iter().filter(|(_, event)| event.is_due()).map(|(at, _)| *at).collect();
        for place in places {
            let used_up = self.used_up(&self.events[&place]);
            self.park_used_up(place);
            if self.events[&place].removed && !used_up {
                self.set(place, State::Settled);
            } else {
                ensure!(used_up, "{place:?} is due, and was left out");
            }
        }
        for (place, event) in &self.events {
            let full = || self.in_flight(place.0) + self.removed_pending(place.0) >= self.settings.max_in_flight;
            if !event.matches || event.removed || !self.may_come(event) || full() {
                continue;
            }
            return Err(format!("{place:?} ({:?}) was left out", event.state));
        }
        Ok(())
    }

    fn removed_pending(&self, partition: u16) -> u64 {
        let of = self.events.iter().filter(|((at, _), _)| *at == partition);
        of.filter(|(_, event)| event.is_pending() && event.removed).count() as u64
    }

    fn may_come(&self, event: &Event) -> bool {
        let waits = event.is_fresh() || matches!(event.state, State::Again { .. });
        waits && (!self.ordered() || !self.is_stopped_or_busy(&event.stream, event))
    }

    fn is_stopped_or_busy(&self, stream: &str, event: &Event) -> bool {
        self.streams[stream].iter().map(|place| &self.events[place]).any(|other| match other.state {
            State::Leased { .. } | State::Waiting { .. } => true,
            State::Parked { blocks, .. } => blocks && event.is_fresh(),
            _ => false,
        })
    }

    /// What settling with this lease must answer.
    pub fn judge(&self, lease: &LeaseToken) -> Verdict {
        let Some(event) = self.events.get(&(lease.partition.get(), lease.position.get())) else { return Verdict::Lost };
        if lease.generation != self.generation {
            return Verdict::Lost;
        }
        match &event.state {
            State::Leased { due: false, text, .. } if *text == lease.text => Verdict::Done,
            _ if event.removed => Verdict::Any,
            State::Leased { text, .. } if *text == lease.text && self.used_up(event) => Verdict::DoneOrLost,
            State::Leased { text, .. } if *text == lease.text => Verdict::Done,
            State::Settled => Verdict::Already,
            _ => Verdict::Lost,
        }
    }

    /// Whether the event of a lease that does not hold any more waits, or is parked, after as many deliveries.
    pub fn was_given_back(&self, lease: &LeaseToken) -> bool {
        let Some(event) = self.events.get(&(lease.partition.get(), lease.position.get())) else { return false };
        let (State::Leased { count, .. } | State::Waiting { count, .. } | State::Parked { count, .. }) = event.state
        else {
            return false;
        };
        lease.generation == self.generation && lease.delivery_count() == Some(count)
    }

    /// The group was moved: these positions, one a partition, are the last not to come.
    pub fn sought(&mut self, generation: &str, starts: &BTreeMap<u16, u64>) {
        generation.clone_into(&mut self.generation);
        for ((partition, position), event) in &mut self.events {
            let comes = *position > starts.get(partition).copied().unwrap_or(0);
            event.state = match event.state {
                State::Parked { count, reason, .. } => State::Parked { count, reason, blocks: false, sought: comes },
                _ if comes => State::Fresh,
                _ => State::Settled,
            };
        }
    }

    /// The group was deleted, and made anew.
    pub fn remade(&mut self, generation: &str) {
        for event in self.events.values_mut() {
            event.state = State::Settled;
        }
        self.paused = false;
        self.sought(generation, &BTreeMap::new());
    }

    /// A parked event was replayed or dropped.
    pub fn unpark(&mut self, place: Place, drop: bool) {
        let batch = self.batch;
        self.set(
            place,
            match self.events[&place].state {
                State::Parked { sought: true, .. } => State::Fresh,
                _ if drop => State::Settled,
                _ => State::Again { batch },
            },
        );
    }

    pub fn parked(&self) -> Vec<Place> {
        let parked = self.events.iter().filter(|(_, event)| matches!(event.state, State::Parked { .. }));
        parked.map(|(place, _)| *place).collect()
    }
}
