//! Where those come together who ask a group for events, or ack some, at the same time: what they want travels in one
//! round trip. Redis works for as long on a call for eight as on two calls for one.
//!
//! A round acks, hands out, and fetches the events that the round before handed out. Nobody waits for company: a round
//! begins as soon as the one before it is over, or at once where that one was full. It is a task of its own, so a request
//! that goes away breaks off nothing.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use redis::Pipeline;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::{
    Group,
    next::{Handed, LOOK},
    random,
    settle::{MOST, answers, streams, with_leases},
};
use crate::{
    model::{Error, GroupName, LeaseToken, Partition, Position, Settled},
    store::{
        Store, errors,
        reply::{Parts, Reply},
    },
    telemetry::traces,
};

/// Most rounds of a desk under way at the same time: while Redis works on one, another is written or read.
const LANES: usize = 2;

/// One partition of a group, as an instance sees it.
#[derive(Default)]
pub(super) struct Desk(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    asked: VecDeque<Asked>,
    /// Tasks that go through the queue.
    lanes: usize,
}

struct Asked {
    group: Arc<Group>,
    what: What,
}

enum What {
    Take(Take),
    Ack(Ack),
}

struct Take {
    consumer: GroupName,
    limit: usize,
    reply: oneshot::Sender<Result<Handed, Error>>,
}

struct Ack {
    leases: Arc<Vec<LeaseToken>>,
    reply: oneshot::Sender<Result<Vec<Settled>, Error>>,
}

/// What goes in one round. All of it is of the same generation of the group.
#[derive(Default)]
struct Round {
    group: Option<Arc<Group>>,
    takes: Vec<Take>,
    wanted: usize,
    acks: Vec<Ack>,
    acked: HashSet<Position>,
    /// Whether not all who wait fit in, and another task is to take them.
    opens_lane: bool,
}

impl Round {
    /// Whether this fits in. An event stands once in a round: of two who ack it, the second is to hear so.
    fn has_room_for(&self, asked: &Asked) -> bool {
        let same = self.group.as_ref().is_none_or(|group| group.generation == asked.group.generation);
        same && match &asked.what {
            What::Take(take) => self.takes.is_empty() || self.wanted + take.limit <= LOOK,
            What::Ack(ack) => {
                self.acks.is_empty()
                    || self.acked.len() + ack.leases.len() <= MOST
                        && !ack.leases.iter().any(|lease| self.acked.contains(&lease.position))
            }
        }
    }

    fn add(&mut self, asked: Asked) {
        self.group.get_or_insert(asked.group);
        match asked.what {
            What::Take(take) => {
                self.wanted += take.limit;
                self.takes.push(take);
            }
            What::Ack(ack) => {
                self.acked.extend(ack.leases.iter().map(|lease| lease.position));
                self.acks.push(ack);
            }
        }
    }
}

/// What was handed out to one who asked, and whose events are to be fetched.
struct Fetch {
    handed: Handed,
    reply: oneshot::Sender<Result<Handed, Error>>,
}

impl Desk {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next round; none where nobody waits any more and nothing is left to be fetched. Then the task is to end.
    fn next_round(&self, idle: bool) -> Option<Round> {
        let (mut queue, mut round) = (self.queue(), Round::default());
        while let Some(asked) = queue.asked.front() {
            // Whoever has gone would take events that nobody works on until their leases end.
            if matches!(&asked.what, What::Take(take) if take.reply.is_closed()) {
                queue.asked.pop_front();
            } else if round.has_room_for(asked) {
                round.add(queue.asked.pop_front().expect("it was looked at"));
            } else {
                break;
            }
        }
        if idle && round.group.is_none() {
            queue.lanes -= 1;
            return None;
        }
        round.opens_lane = !queue.asked.is_empty() && queue.lanes < LANES;
        queue.lanes += usize::from(round.opens_lane);
        Some(round)
    }
}

/// The task of a desk. Should it panic, the next one who asks begins another.
struct Serving(Arc<Desk>);

impl Drop for Serving {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.queue().lanes -= 1;
        }
    }
}

impl Store {
    /// Hands out at most `limit` events, at most [`LOOK`], and fetches them.
    pub(super) async fn take(
        &self,
        group: &Arc<Group>,
        partition: Partition,
        consumer: &GroupName,
        limit: usize,
    ) -> Result<Handed, Error> {
        self.ask("es_next", group, partition, |reply| {
            What::Take(Take { consumer: consumer.clone(), limit: limit.min(LOOK), reply })
        })
        .await
    }

    /// Settles leases for good, at most [`MOST`].
    pub(super) async fn ack_in(
        &self,
        group: &Arc<Group>,
        partition: Partition,
        leases: &Arc<Vec<LeaseToken>>,
    ) -> Result<Vec<Settled>, Error> {
        self.ask("es_ack", group, partition, |reply| What::Ack(Ack { leases: Arc::clone(leases), reply })).await
    }

    async fn ask<T>(
        &self,
        function: &'static str,
        group: &Arc<Group>,
        partition: Partition,
        what: impl Fn(oneshot::Sender<Result<T, Error>>) -> What,
    ) -> Result<T, Error> {
        self.with_functions(partition, || self.ask_once(function, group, partition, &what)).await
    }

    async fn ask_once<T>(
        &self,
        function: &'static str,
        group: &Arc<Group>,
        partition: Partition,
        what: impl Fn(oneshot::Sender<Result<T, Error>>) -> What,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let desk = self.0.groups.desk(&group.name, self.partitions(), partition);
        let begins = {
            let mut queue = desk.queue();
            queue.asked.push_back(Asked { group: Arc::clone(group), what: what(reply) });
            let begins = queue.lanes == 0;
            queue.lanes += usize::from(begins);
            begins
        };
        if begins {
            self.open_lane(desk, partition);
        }
        let answer = answer.instrument(traces::round_trip(function, 1)).await;
        answer.unwrap_or_else(|_| Err(Error::Unavailable("the group's queue broke off".to_owned())))
    }

    /// Not in `serve` itself, whose future would have to be Send before it is known.
    fn open_lane(&self, desk: Arc<Desk>, partition: Partition) {
        tokio::spawn(self.clone().serve(desk, partition));
    }

    async fn serve(self, desk: Arc<Desk>, partition: Partition) {
        let (mut fetches, desk) = (Vec::new(), Serving(desk));
        // Once round the runtime: requests that are ready to run come along. Nothing is awaited.
        tokio::task::yield_now().await;
        while let Some(round) = desk.0.next_round(fetches.is_empty()) {
            if round.opens_lane {
                self.open_lane(Arc::clone(&desk.0), partition);
            }
            fetches = self.go_round(round, partition, fetches).await;
        }
    }

    /// One round trip. Answers with what is to be fetched in the next one.
    async fn go_round(&self, round: Round, partition: Partition, fetches: Vec<Fetch>) -> Vec<Fetch> {
        let Round { group, takes, acks, .. } = round;
        let mut commands = Pipeline::new();
        if let Some(group) = &group {
            self.add_ack(&mut commands, group, partition, &acks);
            self.add_next(&mut commands, group, partition, &takes);
        }
        for (_, _, version, stream) in fetches.iter().flat_map(|fetch| &fetch.handed.leases) {
            let id = format!("0-{version}");
            commands.cmd("XRANGE").arg(self.0.keys.events(partition, stream)).arg(&id).arg(&id);
        }
        let mut replies = match self.0.connections.exchange(partition, &commands).await {
            Ok(replies) => replies.into_iter(),
            Err(error) => {
                let takers = takes.into_iter().map(|take| take.reply);
                tell(takers.chain(fetches.into_iter().map(|fetch| fetch.reply)), &error);
                tell(acks.into_iter().map(|ack| ack.reply), &error);
                return Vec::new();
            }
        };
        if !acks.is_empty() {
            tell_acked(acks, reply_of(replies.next()));
        }
        let handed = match (&group, takes.is_empty()) {
            (Some(group), false) => hand_over(group, partition, takes, reply_of(replies.next())),
            _ => Vec::new(),
        };
        for Fetch { mut handed, reply } in fetches {
            handed.events = replies.by_ref().take(handed.leases.len()).collect();
            let _ = reply.send(Ok(handed));
        }
        handed
    }

    fn add_ack(&self, commands: &mut Pipeline, group: &Group, partition: Partition, acks: &[Ack]) {
        if acks.is_empty() {
            return;
        }
        let leases = || acks.iter().flat_map(|ack| ack.leases.iter());
        let command = self.group_command("es_ack", group, partition, streams(group, leases()));
        commands.add_command(with_leases(command, leases()));
    }

    fn add_next(&self, commands: &mut Pipeline, group: &Group, partition: Partition, takes: &[Take]) {
        if takes.is_empty() {
            return;
        }
        let mut command = self.group_command("es_next", group, partition, []);
        command.arg(&group.generation).arg(random()).arg(LOOK);
        for take in takes {
            command.arg(take.consumer.as_str()).arg(take.limit);
        }
        commands.add_command(command);
    }
}

/// A client that has gone no longer listens, which is no fault.
fn tell<T>(replies: impl IntoIterator<Item = oneshot::Sender<Result<T, Error>>>, error: &Error) {
    for reply in replies {
        let _ = reply.send(Err(error.clone()));
    }
}

fn reply_of(reply: Option<Reply>) -> Result<Reply, Error> {
    let reply = reply.ok_or_else(|| Error::Corrupt("a reply for each command".to_owned()))?;
    match reply.error() {
        Some(error) => Err(errors::from_reply(&error)),
        None => Ok(reply),
    }
}

/// Each gets the answers to its own leases.
fn tell_acked(acks: Vec<Ack>, reply: Result<Reply, Error>) {
    let leases = acks.iter().map(|ack| ack.leases.len()).sum();
    match reply.and_then(|reply| answers(reply, leases)) {
        Ok(answers) => {
            let mut answers = answers.into_iter();
            for Ack { leases, reply } in acks {
                let _ = reply.send(Ok(answers.by_ref().take(leases.len()).collect()));
            }
        }
        Err(error) => tell(acks.into_iter().map(|ack| ack.reply), &error),
    }
}

/// Tells those who get nothing, and answers with what is to be fetched for the others.
fn hand_over(group: &Group, partition: Partition, takes: Vec<Take>, reply: Result<Reply, Error>) -> Vec<Fetch> {
    match reply.and_then(|reply| parts(group, partition, takes.len(), &reply)) {
        Ok(parts) => {
            let mut fetches = Vec::new();
            for (Take { reply, .. }, handed) in takes.into_iter().zip(parts) {
                if handed.leases.is_empty() {
                    let _ = reply.send(Ok(handed));
                } else {
                    fetches.push(Fetch { handed, reply });
                }
            }
            fetches
        }
        Err(error) => {
            tell(takes.into_iter().map(|take| take.reply), &error);
            Vec::new()
        }
    }
}

/// What each of those who asked gets. The chores are left to the first one. The function answers: state, next due time,
/// clock, when the leases end, events of each, events, chores.
fn parts(group: &Group, partition: Partition, takes: usize, reply: &Reply) -> Result<Vec<Handed>, Error> {
    let corrupt = || Error::Corrupt("a part for each one who asked".to_owned());
    let mut parts = reply.parts();
    let (Some(7), Some(state)) = (parts.list(), parts.text()) else { return Err(corrupt()) };
    let [due_ms, now_ms, deadline_ms] = [(); 3].map(|()| parts.number().unwrap_or_default());
    let counts: Vec<usize> = list(&mut parts, |parts| usize::try_from(parts.number()?).ok()).ok_or_else(corrupt)?;
    if counts.len() != takes || parts.list() != Some(counts.iter().sum::<usize>() * 2) {
        return Err(corrupt());
    }
    let mut handed = Vec::with_capacity(takes);
    for count in counts {
        let mut leases = Vec::with_capacity(count);
        for _ in 0..count {
            let (position, text) = (parts.text().unwrap_or_default(), parts.text().unwrap_or_default());
            let lease = LeaseToken::new(partition, &group.generation, position, text.to_owned());
            leases.push(lease.ok_or_else(|| Error::Corrupt(format!("position {position} of a group")))?);
        }
        let (more, paused, events, chores) = (state == "more", state == "paused", Vec::new(), Vec::new());
        handed.push(Handed { more, paused, due_ms, now_ms, deadline_ms, leases, events, chores });
    }
    let chores = list(&mut parts, |parts| parts.text().map(str::to_owned)).ok_or_else(corrupt)?;
    if let Some(first) = handed.first_mut().filter(|_| !chores.is_empty()) {
        first.chores = chores;
        for handed in &mut handed {
            handed.more = true;
        }
    }
    Ok(handed)
}

/// What stands in a list.
fn list<T>(parts: &mut Parts<'_>, read: impl Fn(&mut Parts<'_>) -> Option<T>) -> Option<Vec<T>> {
    (0..parts.list()?).map(|_| read(parts)).collect()
}
