//! The consumers that Redis knows of a group: one for every name that ever took an event, until it is dropped.

use std::time::Duration;

use redis::{Pipeline, Value};
use tracing::debug;

use super::{ConsumerStatus, Group};
use crate::{
    model::{Error, GroupName, Partition},
    store::{Store, read::decode},
};

/// A consumer with nothing in flight that was handed nothing for this long is dropped: workers that name themselves by
/// process id would pile up.
const IDLE: Duration = Duration::from_hours(1);
/// How often an instance looks for such consumers of a group that it serves.
pub(super) const EVERY: Duration = Duration::from_mins(10);
/// Most consumers dropped in one call of the function, and in all: Redis does nothing else meanwhile.
const PIECE: usize = 100;
const MOST: usize = 1_000;

impl Store {
    /// `XINFO CONSUMERS`
    pub(super) async fn consumers(&self, group: &Group, partition: Partition) -> Result<Vec<ConsumerStatus>, Error> {
        let source = self.0.keys.group(partition, &group.name, group.settings.stream.as_ref()).swap_remove(0);
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("XINFO").arg("CONSUMERS").arg(source).arg(group.name.as_str());
        let rows: Vec<Vec<(String, Value)>> = decode(self.0.connections.read(partition, &commands).await?.pop())?;
        let mut consumers = Vec::with_capacity(rows.len());
        for row in rows {
            let mut consumer = ConsumerStatus { name: String::new(), in_flight: 0, idle_ms: 0 };
            for (field, value) in row {
                match field.as_str() {
                    "name" => consumer.name = decode(Some(value))?,
                    "pending" => consumer.in_flight = decode(Some(value))?,
                    "idle" => consumer.idle_ms = decode(Some(value))?,
                    _ => {}
                }
            }
            consumers.push(consumer);
        }
        Ok(consumers)
    }

    /// Drops the consumers with nothing in flight that were handed nothing for `idle`, at most a thousand in each
    /// partition; how many they were.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn drop_idle_consumers(&self, name: &GroupName, idle: Duration) -> Result<u64, Error> {
        let group = self.group(name).await?;
        let mut dropped = 0;
        for partition in self.partitions_of(&group) {
            let mut idle_ones = self.consumers(&group, partition).await?;
            idle_ones.retain(|one| one.in_flight == 0 && Duration::from_millis(one.idle_ms) >= idle);
            idle_ones.truncate(MOST);
            for piece in idle_ones.chunks(PIECE) {
                let mut command = self.group_command("es_drop_consumers", &group, partition, []);
                command.arg(piece.iter().map(|consumer| consumer.name.as_str()).collect::<Vec<_>>());
                dropped += decode::<u64>(Some(self.call(partition, command).await?))?;
            }
        }
        Ok(dropped)
    }

    /// Drops idle consumers in the background, so that no request waits for it.
    pub(super) fn tidy(&self, name: &GroupName) {
        let (store, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            match store.drop_idle_consumers(&name, IDLE).await {
                Ok(0) => {}
                Ok(consumers) => debug!(group = %name, consumers, "dropped idle consumers"),
                Err(error) => debug!(group = %name, %error, "idle consumers stay for now"),
            }
        });
    }
}
