//! What a group has in a partition at one moment, and whether it fits together.

use std::collections::{BTreeMap, BTreeSet};

use super::Lines;
use crate::{model::Ordering, store::groups::Group};

/// What stands in a group's keys, as `migrations-lua/functions/groups.lua` has it, and Redis' own view of it.
pub(super) struct Snapshot {
    pub(super) hash: BTreeMap<String, String>,
    pub(super) due: BTreeSet<String>,
    pub(super) lease: BTreeMap<String, String>,
    pub(super) ready: Vec<(String, f64)>,
    pub(super) busy: BTreeMap<String, String>,
    pub(super) again: Vec<String>,
    pub(super) todo: BTreeSet<String>,
    /// The native group's cursor.
    pub(super) delivered: Option<String>,
    pub(super) pending: BTreeSet<String>,
    /// Entries of `/parked` and of `/parked/info`.
    pub(super) parked: (u64, u64),
}

/// What is kept of a parked event.
pub(super) struct Info;

impl Info {
    /// Version and stream.
    pub(super) fn parse(text: &str) -> Option<(&str, &str)> {
        let mut parts = text.split_once('\n')?.0.splitn(6, ':').skip(1);
        let version = parts.next()?;
        let stream = parts.nth(3)?;
        version.parse::<u64>().ok().map(|_| (version, stream))
    }
}

/// A busy stream.
struct Busy<'a> {
    position: &'a str,
    from: u64,
    to: u64,
    held: u64,
    block: u64,
}

impl<'a> Busy<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let position = parts.next()?;
        let mut number = || parts.next()?.parse().ok();
        Some(Self { position, from: number()?, to: number()?, held: number()?, block: number()? })
    }
}

impl Snapshot {
    /// Says what does not fit. Answers with the leases that Redis has no pending entry of: whether that is wrong, only
    /// the source tells.
    pub(super) fn judge(&self, group: &Group, place: &str, wrong: &mut Lines) -> BTreeSet<String> {
        let mut tell = |what: String| {
            wrong.insert(format!("{place}: {what}"));
        };
        if self.hash.get("generation") != Some(&group.generation) {
            tell("its copy is not of the generation that the registry says".to_owned());
            return BTreeSet::new();
        }
        let cursor = self.number("cursor");
        if self.delivered.as_deref() != Some(&format!("0-{cursor}")) {
            let delivered = self.delivered.as_deref().unwrap_or("nothing");
            tell(format!("its cursor is {cursor}, but Redis' own group is at {delivered}"));
        }
        if self.parked.0 != self.parked.1 {
            tell(format!("{} are parked, but {} are known as parked", self.parked.0, self.parked.1));
        }
        self.judge_leases(cursor, &mut tell);
        self.judge_lines(cursor, &mut tell);
        if group.settings.ordering == Ordering::Stream {
            self.judge_order(&mut tell);
        }
        self.judge_counters(&mut tell);
        self.lease.keys().filter(|position| !self.pending.contains(*position)).cloned().collect()
    }

    fn number(&self, name: &str) -> u64 {
        self.hash.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn judge_leases(&self, cursor: u64, tell: &mut impl FnMut(String)) {
        for position in self.due.iter().filter(|position| !self.lease.contains_key(*position)) {
            tell(format!("position {position} is due, but has no lease"));
        }
        for position in self.pending.iter().filter(|position| !self.lease.contains_key(*position)) {
            tell(format!("position {position} is pending in Redis, but has no lease"));
        }
        for (position, text) in &self.lease {
            if !self.due.contains(position) {
                tell(format!("position {position} has a lease, but is never due"));
            }
            if position.parse::<u64>().is_ok_and(|position| position > cursor) {
                tell(format!("position {position} has a lease, but lies behind the cursor {cursor}"));
            }
            if stream_of(text).is_none() {
                tell(format!("the lease of position {position} cannot be read: {text}"));
            }
        }
    }

    /// What was released, or is to be replayed.
    fn judge_lines(&self, cursor: u64, tell: &mut impl FnMut(String)) {
        for (member, score) in &self.ready {
            let position = member.split(':').next().unwrap_or_default();
            if position.parse::<f64>().ok().is_none_or(|number| number.to_bits() != score.to_bits()) {
                tell(format!("{member} is ready in the place of position {score}"));
            }
            if self.lease.contains_key(position) {
                tell(format!("position {position} is ready and leased"));
            }
            if position.parse::<u64>().is_ok_and(|position| position > cursor) {
                tell(format!("position {position} is ready, but lies behind the cursor {cursor}"));
            }
        }
        let ready: BTreeSet<&str> = self.ready.iter().filter_map(|(member, _)| member.split(':').next()).collect();
        for member in &self.again {
            let mut parts = member.split('|');
            let (stream, position) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let position = position.trim_start_matches('0');
            if self.lease.contains_key(position) || ready.contains(position) {
                tell(format!("position {position} is to be replayed, and ready or leased"));
            }
            if !self.busy.contains_key(stream) {
                tell(format!("position {position} is to be replayed, but nothing releases its stream {stream}"));
            }
        }
    }

    /// That at most one event of a stream is under way, and every busy stream has something that it is busy with.
    fn judge_order(&self, tell: &mut impl FnMut(String)) {
        let ready: BTreeSet<&str> = self.ready.iter().filter_map(|(member, _)| member.split(':').next()).collect();
        for (stream, text) in &self.busy {
            let Some(Busy { position, from, to, held, block }) = Busy::parse(text) else {
                tell(format!("what is kept of stream {stream} cannot be read: {text}"));
                continue;
            };
            let under_way = self.lease.contains_key(position) || ready.contains(position);
            let stands = position == "0" && (block > 0 || self.todo.contains(stream));
            if !under_way && !stands {
                tell(format!("stream {stream} is busy with nothing: {text}"));
            }
            if from > to || held > to - from {
                tell(format!("stream {stream} holds more than it passed over: {text}"));
            }
        }
        let leased = self.lease.iter().filter_map(|(position, text)| Some((position.as_str(), stream_of(text)?)));
        let released = self.ready.iter().filter_map(|(member, _)| {
            let mut parts = member.splitn(3, ':');
            Some((parts.next()?, parts.nth(1)?))
        });
        for (position, stream) in leased.chain(released) {
            if self.busy.get(stream).and_then(|text| text.split(':').next()) != Some(position) {
                tell(format!("position {position} is under way, but its stream {stream} is not busy with it"));
            }
        }
    }

    fn judge_counters(&self, tell: &mut impl FnMut(String)) {
        let busy = || self.busy.values().filter_map(|text| Busy::parse(text));
        let stored = [
            ("waiting", self.lease.values().filter(|text| text.starts_with("0:")).count() as u64),
            ("held", busy().map(|busy| busy.held).sum()),
            ("stopped", busy().filter(|busy| busy.position == "0" && busy.block > 0).count() as u64),
        ];
        for (counter, stored) in stored.into_iter().filter(|(counter, stored)| self.number(counter) != *stored) {
            tell(format!("{counter} counts {}, but {stored} are stored", self.number(counter)));
        }
    }
}

/// The stream of a lease, `nonce:count:version:stream`.
fn stream_of(text: &str) -> Option<&str> {
    let mut parts = text.splitn(4, ':');
    let nonce = parts.next()?;
    let good = nonce.bytes().all(|byte| byte.is_ascii_hexdigit())
        && parts.next()?.parse::<u64>().is_ok()
        && parts.next()?.parse::<u64>().is_ok();
    parts.next().filter(|_| good)
}
