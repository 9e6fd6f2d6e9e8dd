//! Waiting for something to hand out.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::select_all;
use tokio::{sync::Mutex, time::timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{
    model::{Delivery, Error, GroupName, Partition},
    store::{Store, tail::Waiter},
};

/// Who asks, and for how many events.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The consumer.
    pub consumer: GroupName,
    /// Most events.
    pub limit: usize,
    /// The partition that comes first.
    pub turn: usize,
}

/// The line of those who wait for one group. Whoever holds the lock is the first, and the only one who asks Redis; what
/// he has learned is for the next one.
pub(super) type Line = Arc<Mutex<Known>>;

/// What is known of each partition. Holds for as long as the reader of the partition reads: it tells whenever something
/// becomes deliverable, and also when it begins to read anew.
#[derive(Default)]
pub(super) struct Known(HashMap<Partition, Looked>);

/// The last look at a partition.
struct Looked {
    /// The wake-ups that were counted before.
    wakes: u64,
    /// When the next look is due without one; `None`: not at all.
    again: Option<Instant>,
}

/// In how long it is looked again at a partition whose Redis did not answer.
const AWAY: Duration = Duration::from_secs(1);

/// One who waits for a partition.
type Waiters = Vec<(Partition, Waiter)>;

impl Store {
    /// As [`Store::next`], but where there is nothing waits for something until `until`, or until `stop` is told.
    ///
    /// Those who wait for a group stand in a line, and only the first of them asks: one event costs one or two calls,
    /// however many wait.
    ///
    /// # Errors
    /// Those of [`Store::next`].
    pub async fn next_until(
        &self,
        name: &GroupName,
        asked: &Asked,
        until: Instant,
        stop: &CancellationToken,
    ) -> Result<Vec<Delivery>, Error> {
        if Instant::now() >= until {
            return self.look(name, asked).await;
        }
        loop {
            if let Some(found) = self.wait_for(name, asked, until, stop).await? {
                return Ok(found);
            }
        }
    }

    /// Waits for what the group as it is now may hand out; `None` where it was made anew meanwhile, with another source.
    async fn wait_for(
        &self,
        name: &GroupName,
        asked: &Asked,
        until: Instant,
        stop: &CancellationToken,
    ) -> Result<Option<Vec<Delivery>>, Error> {
        let group = self.cached_group(name).await?;
        let mut partitions = self.partitions_of(&group);
        let turn = asked.turn % partitions.len();
        partitions.rotate_left(turn);
        // Before the first look, so that nothing which comes after it is missed.
        let waiters = partitions.into_iter().map(|partition| (partition, self.waiter(partition))).collect();
        let line = self.0.groups.line(name);
        if let Ok(mut known) = line.try_lock() {
            *known = Known::default();
            return self.wait_first(name, asked, &mut known, waiters, until, stop).await;
        }
        let found = match self.look(name, asked).await {
            Ok(found) if !found.is_empty() => return Ok(Some(found)),
            // Whoever is the first will know whether there is anything to wait for.
            Err(error) if !error.is_passing() => return Err(error),
            _ => Vec::new(),
        };
        let first = tokio::select! {
            first = timeout_at(until.into(), line.lock()) => first,
            () = stop.cancelled() => return Ok(Some(found)),
        };
        match first {
            Ok(mut known) => self.wait_first(name, asked, &mut known, waiters, until, stop).await,
            Err(_) => Ok(Some(found)),
        }
    }

    async fn look(&self, name: &GroupName, asked: &Asked) -> Result<Vec<Delivery>, Error> {
        Ok(self.next(name, &asked.consumer, asked.limit, asked.turn).await?.deliveries)
    }

    /// The first of the line: looks where something may have come, and waits, until there is something.
    async fn wait_first(
        &self,
        name: &GroupName,
        asked: &Asked,
        known: &mut Known,
        mut waiters: Waiters,
        until: Instant,
        stop: &CancellationToken,
    ) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            let found = self.look_where_needed(name, asked, known, &waiters).await?;
            if !found.is_empty() {
                return Ok(Some(found));
            }
            let reads = self.partitions_of(&*self.cached_group(name).await?);
            if reads.len() != waiters.len() || waiters.iter().any(|(partition, _)| !reads.contains(partition)) {
                return Ok(None);
            }
            let again = known.0.values().filter_map(|looked| looked.again).fold(until, Instant::min);
            tokio::select! {
                () = woken(&mut waiters) => {}
                () = tokio::time::sleep_until(again.into()) => {}
                () = stop.cancelled() => return Ok(Some(found)),
            }
            if Instant::now() >= until {
                return Ok(Some(found));
            }
        }
    }

    async fn look_where_needed(
        &self,
        name: &GroupName,
        asked: &Asked,
        known: &mut Known,
        waiters: &Waiters,
    ) -> Result<Vec<Delivery>, Error> {
        let (mut found, mut away) = (Vec::new(), 0);
        for (partition, waiter) in waiters {
            let (now, wakes) = (Instant::now(), waiter.wakes());
            let looked = known.0.entry(*partition).or_insert(Looked { wakes, again: Some(now) });
            if looked.wakes == wakes && looked.again.is_none_or(|again| again > now) {
                continue;
            }
            // Should this request end here, the next one looks again.
            *looked = Looked { wakes, again: Some(now) };
            let room = asked.limit - found.len();
            if room == 0 {
                continue;
            }
            let next = match self.next_in(name, *partition, &asked.consumer, room).await {
                Ok(next) => next,
                // Others may have something, now or soon.
                Err(error) if error.is_passing() && away + 1 < waiters.len() => {
                    away += 1;
                    looked.again = Some(Instant::now() + AWAY);
                    continue;
                }
                Err(error) => return Err(error),
            };
            looked.again = if next.more { Some(now) } else { next.due_in.map(|due| Instant::now() + due) };
            found.extend(next.deliveries);
        }
        Ok(found)
    }

    fn waiter(&self, partition: Partition) -> Waiter {
        self.0.tails[usize::from(partition.get())].waiter()
    }
}

async fn woken(waiters: &mut Waiters) {
    select_all(waiters.iter_mut().map(|(_, waiter)| Box::pin(waiter.woken()))).await;
}
