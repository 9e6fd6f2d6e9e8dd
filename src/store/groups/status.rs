//! How a group stands.

use std::sync::Arc;

use super::{Group, next::LOOK, random};
use crate::{
    model::{Error, GroupName, Partition},
    store::{Store, read::decode},
};

/// How a group stands, over all its partitions.
#[derive(Debug, Default)]
pub struct GroupStatus {
    /// Events at or behind the cursor's head: not yet looked at. Under filters, not all of them will be delivered.
    pub lag: u64,
    /// Leased to consumers.
    pub in_flight: u64,
    /// Waiting for a retry.
    pub waiting: u64,
    /// Passed over because their stream is busy, released, or to be replayed: to be delivered.
    pub held: u64,
    /// Streams that stand behind a parked event.
    pub stopped_streams: u64,
    /// Set aside.
    pub parked: u64,
    /// The oldest event that is not settled: when it was stored, in ms since 1970.
    pub oldest_ms: Option<u64>,
    /// When the first event that was not yet looked at was stored, in ms since 1970.
    pub behind_since_ms: Option<u64>,
    /// When somebody last asked for events, to within ten seconds, in ms since 1970.
    pub asked_ms: u64,
    /// Redis' clock, in ms since 1970.
    pub now_ms: u64,
    /// Its consumers.
    pub consumers: Vec<ConsumerStatus>,
}

/// A consumer of a group.
#[derive(Clone, Debug)]
pub struct ConsumerStatus {
    /// Its name.
    pub name: String,
    /// Events that it was handed and that are not settled, those that wait for a retry included.
    pub in_flight: u64,
    /// How long ago it was last handed something, in ms.
    pub idle_ms: u64,
}

impl Store {
    /// How a group stands. First parks what has used up its deliveries, so that the counts are exact.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn group_status(&self, name: &GroupName) -> Result<(Group, GroupStatus), Error> {
        let group = self.group(name).await?;
        let mut status = GroupStatus::default();
        for partition in self.partitions_of(&group) {
            self.expire(name, partition).await?;
            self.add_status(&group, partition, &mut status).await?;
        }
        Ok((group, status))
    }

    /// Parks what is due and has used up its deliveries: it is in flight no more, though nobody has asked since.
    async fn expire(&self, name: &GroupName, partition: Partition) -> Result<(), Error> {
        let mut left_out: i64 = 0;
        while left_out >= 0 {
            left_out = self
                .with_copy(name, partition, |group| async move {
                    let mut command = self.group_command("es_expire", &group, partition, []);
                    command.arg(&group.generation).arg(random()).arg(left_out).arg(LOOK);
                    let (left_out, chores): (i64, Vec<String>) = decode(Some(self.call(partition, command).await?))?;
                    self.do_chores(&group, partition, chores).await?;
                    Ok(left_out)
                })
                .await?;
        }
        Ok(())
    }

    async fn add_status(&self, group: &Group, partition: Partition, status: &mut GroupStatus) -> Result<(), Error> {
        let told = |group: Arc<Group>| async move {
            let mut command = self.group_command("es_status", &group, partition, []);
            command.arg(&group.generation);
            decode(Some(self.call(partition, command).await?))
        };
        let reply: Vec<u64> = self.with_copy(&group.name, partition, told).await?;
        let [lag, in_flight, waiting, held, stopped, parked, oldest, cursor, asked, now] = reply[..] else {
            return Err(Error::Corrupt("a group's status".to_owned()));
        };
        status.lag += lag;
        status.in_flight += in_flight;
        status.waiting += waiting;
        status.held += held;
        status.stopped_streams += stopped;
        status.parked += parked;
        status.asked_ms = status.asked_ms.max(asked);
        status.now_ms = now;
        let source = group.settings.stream.as_ref();
        let behind = if lag > 0 { self.time_after(partition, source, cursor).await? } else { None };
        let oldest = if oldest > 0 { self.time_after(partition, source, oldest - 1).await? } else { behind };
        status.behind_since_ms = [status.behind_since_ms, behind].into_iter().flatten().min();
        status.oldest_ms = [status.oldest_ms, oldest].into_iter().flatten().min();
        self.add_consumers(group, partition, status).await
    }

    /// Adds consumers, summed up by name.
    async fn add_consumers(&self, group: &Group, partition: Partition, status: &mut GroupStatus) -> Result<(), Error> {
        for consumer in self.consumers(group, partition).await? {
            match status.consumers.iter_mut().find(|known| known.name == consumer.name) {
                Some(known) => {
                    known.in_flight += consumer.in_flight;
                    known.idle_ms = known.idle_ms.min(consumer.idle_ms);
                }
                None => status.consumers.push(consumer),
            }
        }
        Ok(())
    }
}
