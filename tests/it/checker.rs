//! The history checker: what clients were told against what is stored.
//!
//! Every event's content is unique, so the stored streams are the witness of the order in which appends took effect,
//! and the check is one pass over the calls.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::record::{Call, Condition, End, Operation, Outcome, Partition, Pointer, Stored, Told};

/// What must not be. Operations go by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The versions of a stream are not 1, 2, 3 …
    Gap { stream: String, expected: u64, found: u64 },
    /// Two operations were told the same version.
    TwoWinners { stream: String, version: u64, operations: [usize; 2] },
    /// An acknowledged event is nowhere.
    Lost { operation: usize, stream: String, event: usize, version: u64 },
    /// An event is elsewhere than told.
    Misplaced { operation: usize, stream: String, event: usize, told: u64, found: u64 },
    /// An event is there more than once.
    Double { operation: usize, stream: String, event: usize, versions: Vec<u64> },
    /// An event of an append that was told to have written nothing.
    RefusedButThere { operation: usize, stream: String, version: u64, outcome: Outcome },
    /// Some events of an append are there, others are not.
    HalfBatch { operation: usize, stream: String, there: usize, of: usize },
    /// The events of an append do not follow one another.
    Scattered { operation: usize, stream: String, versions: Vec<u64> },
    /// An event that nobody sent.
    Stranger { stream: String, version: u64 },
    /// An append took effect where its condition did not hold.
    ConditionBroken { operation: usize, stream: String, condition: Condition, first_version: u64 },
    /// An append took effect before versions that were known when it was called.
    BackInTime { operation: usize, stream: String, first_version: u64, known: u64 },
    /// Two answers to the same append differ, or both say to have been the first.
    AnswersDiffer { operation: usize, one: Told, other: Told },
    /// An answer does not fit itself, or what is stored.
    WrongAnswer { operation: usize, told: Told, stored: Option<u64> },
    /// The positions of a log are not 1, 2, 3 …
    LogGap { partition: usize, expected: u64, found: u64 },
    /// An event without a pointer.
    NotInLog { stream: String, version: u64 },
    /// A pointer without an event, or the second one to it.
    DanglingPointer { partition: usize, pointer: Pointer },
    /// The log has a stream's versions in another order than the stream.
    LogOrder { partition: usize, stream: String, version: u64, after: u64 },
    /// The `position` of an event is not that of its pointer.
    WrongPosition { stream: String, version: u64, position: u64, log: u64 },
    /// The service shows a stream otherwise than Redis has it.
    ShownStreamDiffers { stream: String, version: u64 },
    /// The service shows a log otherwise than Redis has it.
    ShownLogDiffers { partition: usize, position: u64 },
}

/// Everything that is wrong with a history.
pub fn check(calls: &[Call], end: &End) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, partition) in end.partitions.iter().enumerate() {
        check_streams(partition, &mut violations);
        check_log(number, partition, &mut violations);
        check_shown(number, partition, end, &mut violations);
    }
    let witness = Witness::of(end);
    let mut operations: BTreeMap<usize, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        operations.entry(call.operation.number).or_default().push(call);
    }
    let known = Known::of(calls);
    let mut sent = HashSet::new();
    for calls in operations.values() {
        let operation = &*calls[0].operation;
        sent.extend(operation.events.iter().map(String::as_str));
        let places = witness.places(operation);
        check_places(operation, &places, &mut violations);
        check_told(operation, calls, &places, &witness, &mut violations);
        check_refused(operation, calls, &places, &mut violations);
        check_order(operation, calls, &places, &known, &mut violations);
    }
    check_winners(&operations, &mut violations);
    let strangers = witness.0.iter().filter(|(content, _)| !sent.contains(**content));
    violations.extend(strangers.flat_map(|(_, places)| {
        places.iter().map(|at| Violation::Stranger { stream: at.stream.clone(), version: at.version })
    }));
    violations
}

/// Where each content is.
struct Witness<'a>(HashMap<&'a str, Vec<&'a Stored>>);

impl<'a> Witness<'a> {
    fn of(end: &'a End) -> Self {
        let mut places: HashMap<&str, Vec<&Stored>> = HashMap::new();
        for stored in end.partitions.iter().flat_map(|partition| partition.streams.values().flatten()) {
            places.entry(&stored.content).or_default().push(stored);
        }
        Self(places)
    }

    /// The versions at which each event of an operation is.
    fn places(&self, operation: &Operation) -> Vec<Vec<u64>> {
        let of = |content: &String| {
            let stored = self.0.get(content.as_str()).into_iter().flatten();
            stored.filter(|stored| stored.stream == operation.stream).map(|stored| stored.version).collect()
        };
        operation.events.iter().map(of).collect()
    }

    fn position(&self, content: &str) -> Option<u64> {
        self.0.get(content).map(|stored| stored[0].position)
    }
}

/// The versions of each stream that were known to somebody, by the time from when on.
struct Known(HashMap<String, Vec<(u64, u64)>>);

impl Known {
    fn of(calls: &[Call]) -> Self {
        let mut known: HashMap<String, Vec<(u64, u64)>> = HashMap::new();
        for call in calls {
            let version = match &call.outcome {
                Outcome::Ok(told) => Some(told.version),
                Outcome::Refused { current, .. } => *current,
                Outcome::Unknown => None,
            };
            if let Some(version) = version {
                known.entry(call.operation.stream.clone()).or_default().push((call.returned, version));
            }
        }
        for versions in known.values_mut() {
            versions.sort_unstable();
            let mut newest = 0;
            for (_, version) in versions {
                newest = newest.max(*version);
                *version = newest;
            }
        }
        Self(known)
    }

    fn before(&self, stream: &str, time: u64) -> u64 {
        let versions = self.0.get(stream).map_or(&[][..], Vec::as_slice);
        let count = versions.partition_point(|(returned, _)| *returned < time);
        count.checked_sub(1).map_or(0, |last| versions[last].1)
    }
}

fn check_streams(partition: &Partition, violations: &mut Vec<Violation>) {
    for (stream, events) in &partition.streams {
        for (expected, event) in (1..).zip(events) {
            if event.version != expected {
                violations.push(Violation::Gap { stream: stream.clone(), expected, found: event.version });
                break;
            }
        }
    }
}

fn check_log(number: usize, partition: &Partition, violations: &mut Vec<Violation>) {
    let mut positions: HashMap<(&str, u64), u64> = HashMap::new();
    let mut newest: HashMap<&str, u64> = HashMap::new();
    let events: HashMap<(&str, u64), &Stored> =
        partition.streams.values().flatten().map(|event| ((event.stream.as_str(), event.version), event)).collect();
    for (expected, pointer) in (1..).zip(&partition.log) {
        let Pointer { position, stream, version } = pointer;
        if *position != expected {
            violations.push(Violation::LogGap { partition: number, expected, found: *position });
        }
        let first = positions.insert((stream, *version), *position).is_none();
        if !first || !events.contains_key(&(stream.as_str(), *version)) {
            violations.push(Violation::DanglingPointer { partition: number, pointer: pointer.clone() });
        }
        let after = newest.insert(stream, *version).unwrap_or(0);
        if *version <= after {
            let (stream, version) = (stream.clone(), *version);
            violations.push(Violation::LogOrder { partition: number, stream, version, after });
        }
    }
    for ((stream, version), event) in events {
        let (stream, position) = (stream.to_owned(), event.position);
        match positions.get(&(event.stream.as_str(), version)).copied() {
            None => violations.push(Violation::NotInLog { stream, version }),
            Some(log) if log == position => {}
            Some(log) => violations.push(Violation::WrongPosition { stream, version, position, log }),
        }
    }
}

fn check_shown(number: usize, partition: &Partition, end: &End, violations: &mut Vec<Violation>) {
    for (stream, events) in &partition.streams {
        let shown = end.shown_streams.get(stream).map_or(&[][..], Vec::as_slice);
        if let Some(version) = first_difference(events, shown) {
            violations.push(Violation::ShownStreamDiffers { stream: stream.clone(), version });
        }
    }
    let all: HashMap<(&str, u64), &Stored> =
        partition.streams.values().flatten().map(|event| ((event.stream.as_str(), event.version), event)).collect();
    let logged: Vec<&Stored> = partition
        .log
        .iter()
        .filter_map(|pointer| all.get(&(pointer.stream.as_str(), pointer.version)).copied())
        .collect();
    let shown: Vec<&Stored> =
        end.shown_log.iter().filter(|event| partition.streams.contains_key(&event.stream)).collect();
    if let Some(position) = first_difference(&logged, &shown) {
        violations.push(Violation::ShownLogDiffers { partition: number, position });
    }
}

/// From 1; `None` where the two are equal.
fn first_difference<T: PartialEq>(one: &[T], other: &[T]) -> Option<u64> {
    let longest = one.len().max(other.len());
    (0..longest).zip(1..).find(|(index, _)| one.get(*index) != other.get(*index)).map(|(_, place)| place)
}

/// An append is there whole or not at all, once, its events one after the other.
fn check_places(operation: &Operation, places: &[Vec<u64>], violations: &mut Vec<Violation>) {
    let Operation { number, stream, .. } = operation;
    let (operation, stream) = (*number, stream.clone());
    for (event, versions) in places.iter().enumerate().filter(|(_, versions)| versions.len() > 1) {
        let (stream, versions) = (stream.clone(), versions.clone());
        violations.push(Violation::Double { operation, stream, event, versions });
    }
    let firsts: Vec<u64> = places.iter().filter_map(|versions| versions.first().copied()).collect();
    if (1..places.len()).contains(&firsts.len()) {
        violations.push(Violation::HalfBatch { operation, stream, there: firsts.len(), of: places.len() });
    } else if firsts.windows(2).any(|pair| pair[1] != pair[0] + 1) {
        violations.push(Violation::Scattered { operation, stream, versions: firsts });
    }
}

/// What was acknowledged is where the answer says, and all answers agree.
fn check_told(
    operation: &Operation,
    calls: &[&Call],
    places: &[Vec<u64>],
    witness: &Witness<'_>,
    violations: &mut Vec<Violation>,
) {
    let told: Vec<&Told> =
        calls.iter().filter_map(|call| if let Outcome::Ok(told) = &call.outcome { Some(told) } else { None }).collect();
    let Some(first) = told.first() else { return };
    let number = operation.number;
    for other in &told[1..] {
        let same = (first.first_version, first.version, first.position)
            == (other.first_version, other.version, other.position);
        if !same || !(first.duplicate || other.duplicate) {
            let (one, other) = ((*first).clone(), (*other).clone());
            violations.push(Violation::AnswersDiffer { operation: number, one, other });
        }
    }
    for (event, (versions, version)) in places.iter().zip(first.first_version..).enumerate() {
        let stream = operation.stream.clone();
        match versions.first() {
            None => violations.push(Violation::Lost { operation: number, stream, event, version }),
            Some(found) if *found == version => {}
            Some(found) => {
                let (told, found) = (version, *found);
                violations.push(Violation::Misplaced { operation: number, stream, event, told, found });
            }
        }
    }
    let count = u64::try_from(operation.events.len()).unwrap();
    let stored = operation.events.last().and_then(|content| witness.position(content));
    let fits = first.version + 1 == first.first_version + count
        && first.etag == format!("\"{}\"", first.version)
        && stored.is_none_or(|position| position == first.position);
    if !fits {
        violations.push(Violation::WrongAnswer { operation: number, told: (*first).clone(), stored });
    }
}

/// Nothing is there of what was told to have written nothing. Where an earlier call of the same operation is unknown, a
/// refusal speaks for it too, unless its condition may have come to hold later.
fn check_refused(operation: &Operation, calls: &[&Call], places: &[Vec<u64>], violations: &mut Vec<Violation>) {
    let ok = calls.iter().any(|call| matches!(call.outcome, Outcome::Ok(_)));
    let unknown = calls.iter().any(|call| call.outcome == Outcome::Unknown);
    let refusal = calls.iter().rev().find(|call| match &call.outcome {
        Outcome::Refused { current: Some(current), .. } => !unknown || !operation.condition.may_hold_from(*current),
        Outcome::Refused { .. } => !unknown,
        _ => false,
    });
    if let (false, Some(call), Some(version)) = (ok, refusal, places.iter().flatten().next()) {
        let (operation, stream) = (operation.number, operation.stream.clone());
        let (version, outcome) = (*version, call.outcome.clone());
        violations.push(Violation::RefusedButThere { operation, stream, version, outcome });
    }
}

/// What took effect did so where its condition held, and after all that was known when it was called.
fn check_order(
    operation: &Operation,
    calls: &[&Call],
    places: &[Vec<u64>],
    known: &Known,
    violations: &mut Vec<Violation>,
) {
    let Some(first_version) = places.first().and_then(|versions| versions.first().copied()) else { return };
    let Operation { number, stream, condition, .. } = operation;
    let (operation, stream) = (*number, stream.clone());
    let called = calls.iter().map(|call| call.called).min().unwrap_or_default();
    let newest = known.before(&stream, called);
    if first_version <= newest {
        let stream = stream.clone();
        violations.push(Violation::BackInTime { operation, stream, first_version, known: newest });
    }
    if !condition.holds(first_version - 1) {
        let condition = condition.clone();
        violations.push(Violation::ConditionBroken { operation, stream, condition, first_version });
    }
}

fn check_winners(operations: &BTreeMap<usize, Vec<&Call>>, violations: &mut Vec<Violation>) {
    let mut winners: HashMap<(&str, u64), usize> = HashMap::new();
    for call in operations.values().flatten() {
        let (operation, Outcome::Ok(told)) = (&call.operation, &call.outcome) else { continue };
        for version in told.first_version..=told.version {
            let winner = *winners.entry((&operation.stream, version)).or_insert(operation.number);
            if winner != operation.number {
                let (stream, operations) = (operation.stream.clone(), [winner, operation.number]);
                violations.push(Violation::TwoWinners { stream, version, operations });
            }
        }
    }
}
