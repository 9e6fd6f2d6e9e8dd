//! Handing out.

use std::{mem, sync::Arc, time::Duration};

use tracing::debug;

use super::{Group, settle::Nack};
use crate::{
    model::{Delivery, Error, GroupName, LeaseToken, Partition, Position, StreamId, Version},
    store::{Store, errors, read::entries, reply::Reply},
};

/// Most entries looked at in one call of a function: Redis does nothing else meanwhile.
pub(super) const LOOK: usize = 250;
/// Most calls of the function for one partition in one request.
const ROUNDS: usize = 40;
/// How often a partition's copy is brought up to date in one call: it is behind again only where somebody moves the
/// group again.
const HEALS: usize = 5;

/// What was handed out.
#[derive(Debug, Default)]
pub struct Next {
    /// The events with their leases.
    pub deliveries: Vec<Delivery>,
    /// Whether asking again at once may bring more.
    pub more: bool,
    /// In how long a lease may end or a retry may be due; `None` while the group is paused.
    pub due_in: Option<Duration>,
}

/// What one who asked got in a call of the function, and what the call found.
pub(super) struct Handed {
    /// Whether asking again at once may bring more.
    pub(super) more: bool,
    /// Whether the group is paused.
    pub(super) paused: bool,
    /// When the next lease ends or retry is due, 0 where none waits; Redis' clock; when these leases end: ms since 1970.
    pub(super) due_ms: u64,
    pub(super) now_ms: u64,
    pub(super) deadline_ms: u64,
    /// The leases, with the delivery's count, and version and stream of the event.
    pub(super) leases: Vec<(LeaseToken, u64, Version, StreamId)>,
    /// The entry of each, as XRANGE replies.
    pub(super) events: Vec<Reply>,
    /// What the function left to the service.
    pub(super) chores: Vec<String>,
}

impl Store {
    /// Hands at most `limit` events to a consumer: due retries and expired leases first, then new ones. The partitions
    /// take turns, from `turn` on.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available. What was handed out all the same comes again when its
    /// lease has run out.
    pub async fn next(&self, name: &GroupName, consumer: &GroupName, limit: usize, turn: usize) -> Result<Next, Error> {
        for _ in 0..HEALS {
            let partitions = self.partitions_of(&*self.cached_group(name).await?);
            let next = self.next_of(name, &partitions, consumer, limit, turn).await?;
            // Made anew with another source, it has events elsewhere.
            let moved = self.partitions_of(&*self.cached_group(name).await?) != partitions;
            if !moved || !next.deliveries.is_empty() {
                return Ok(Next { more: next.more || moved, ..next });
            }
        }
        Err(moved())
    }

    async fn next_of(
        &self,
        name: &GroupName,
        partitions: &[Partition],
        consumer: &GroupName,
        limit: usize,
        turn: usize,
    ) -> Result<Next, Error> {
        let (mut next, mut fault) = (Next::default(), None);
        for step in 0..partitions.len() {
            let partition = partitions[(turn + step) % partitions.len()];
            let room = limit - next.deliveries.len();
            if room == 0 {
                next.more = true;
                break;
            }
            let found = match self.next_in(name, partition, consumer, room).await {
                Ok(found) => found,
                // What others have is handed out all the same.
                Err(error) if error.is_passing() => {
                    fault = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            next.more |= found.more;
            next.due_in = [next.due_in, found.due_in].into_iter().flatten().min();
            next.deliveries.extend(found.deliveries);
        }
        match fault {
            Some(error) if next.deliveries.is_empty() => Err(error),
            _ => Ok(next),
        }
    }

    /// As `next`, of one partition: asks until something is found, or there is no more by now; and on while a call found
    /// as much as it may.
    pub(super) async fn next_in(
        &self,
        name: &GroupName,
        partition: Partition,
        consumer: &GroupName,
        limit: usize,
    ) -> Result<Next, Error> {
        if self.0.connections.is_away(partition) {
            return Err(Error::Unavailable("its Redis does not answer".to_owned()));
        }
        let mut next = Next { more: true, ..Next::default() };
        let mut round = 0;
        while next.more && next.deliveries.len() < limit && round < ROUNDS {
            let room = limit - next.deliveries.len();
            let ask = |group: Arc<Group>| async move {
                // Deleted, and made anew with another source, it may not read this partition any more.
                if !self.partitions_of(&group).contains(&partition) {
                    return Ok(Next::default());
                }
                self.next_once(&group, partition, consumer, room).await
            };
            let found = self.with_copy(name, partition, ask).await?;
            let cut_short = found.deliveries.len() == LOOK;
            next.more = found.more;
            next.due_in = found.due_in;
            next.deliveries.extend(found.deliveries);
            if !next.deliveries.is_empty() && !cut_short {
                break;
            }
            round += 1;
        }
        Ok(next)
    }

    /// Calls a function of a group in a partition whose copy of the group, or our own, may be behind the registry: then
    /// both are brought up to date.
    /// The call owns its group, for futures that borrow from their arguments are not Send.
    pub(super) async fn with_copy<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &GroupName,
        partition: Partition,
        call: impl Fn(Arc<Group>) -> F,
    ) -> Result<T, Error> {
        for _ in 0..HEALS {
            match call(self.cached_group(name).await?).await {
                Err(Error::GroupNotFound) => {
                    self.forget_group(name);
                    let group = self.cached_group(name).await?;
                    if self.partitions_of(&group).contains(&partition) {
                        self.spread_to(&group, partition).await?;
                    }
                }
                answered => return answered,
            }
        }
        Err(moved())
    }

    async fn next_once(
        &self,
        group: &Arc<Group>,
        partition: Partition,
        consumer: &GroupName,
        limit: usize,
    ) -> Result<Next, Error> {
        let mut handed = self.take(group, partition, consumer, limit).await?;
        // What is parked or skipped here makes room, and lets its stream go on.
        self.do_chores(group, partition, mem::take(&mut handed.chores)).await?;
        let Handed { more, paused, due_ms, now_ms, .. } = handed;
        let wanted = handed.leases.len();
        let deliveries = self.deliveries(group, partition, handed).await?;
        let more = more || deliveries.len() < wanted;
        let due_in = (!paused).then(|| {
            // A lease that another instance gives after this look ends no earlier than one that it gives now.
            let due = if due_ms > 0 { due_ms.saturating_sub(now_ms) } else { u64::MAX };
            Duration::from_millis(due.min(group.settings.lease_ms))
        });
        Ok(Next { deliveries, more, due_in })
    }

    /// The events that were handed out. Those that were removed meanwhile are skipped for good.
    async fn deliveries(&self, group: &Group, partition: Partition, handed: Handed) -> Result<Vec<Delivery>, Error> {
        let Handed { deadline_ms, leases, events, .. } = handed;
        let (mut deliveries, mut gone) = (Vec::with_capacity(leases.len()), Vec::new());
        for ((lease, delivery_count, _, stream), reply) in leases.into_iter().zip(events) {
            if let Some(error) = reply.error() {
                return Err(errors::from_reply(&error));
            }
            match entries(&stream, Some(&reply))?.pop() {
                Some(event) => deliveries.push(Delivery { lease, deadline_ms, delivery_count, event }),
                None => gone.push(lease),
            }
        }
        if !gone.is_empty() {
            debug!(group = %group.name, events = gone.len(), "skipped events that were removed");
            self.nack_in(group, partition, &Nack::SKIP, &gone).await?;
        }
        Ok(deliveries)
    }

    /// Does what the function left to us: it must not touch a stream's events that it was not given the key of.
    pub(super) async fn do_chores(
        &self,
        group: &Group,
        partition: Partition,
        chores: Vec<String>,
    ) -> Result<(), Error> {
        for chore in chores.chunks_exact(3) {
            let [what, of, text] = [&chore[0], &chore[1], &chore[2]];
            if what == "release" {
                let stream = StreamId::parse(of).ok_or_else(|| Error::Corrupt(format!("stream {of} in a group")))?;
                let mut command = self.group_command("es_release", group, partition, [stream]);
                command.arg(of);
                self.call(partition, command).await?;
                continue;
            }
            let position = Position::parse(of).unwrap_or_default();
            let lease = LeaseToken { partition, generation: group.generation.clone(), position, text: text.to_owned() };
            let nack = if what == "gone" { Nack::SKIP } else { Nack::EXHAUSTED };
            self.nack_in(group, partition, &nack, &[lease]).await?;
            if what != "gone" {
                self.metrics().exhausted(1);
            }
        }
        Ok(())
    }
}

fn moved() -> Error {
    Error::Unavailable("the group is being moved again and again".to_owned())
}
