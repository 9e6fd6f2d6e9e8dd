//! Finding places by time. A source is a partition's log, or one stream of it; times rise along both.

use redis::{Pipeline, Value};

use crate::{
    model::{Error, Partition, StreamId},
    store::{
        Store,
        read::{decode, entries, entry_number},
    },
};

impl Store {
    /// The clock of a partition's Redis, in ms since 1970.
    pub(super) async fn clock(&self, partition: Partition) -> Result<u64, Error> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("TIME");
        let time = self.0.connections.read(partition, &commands).await?.pop();
        let (seconds, micros): (u64, u64) = decode(time)?;
        Ok(seconds * 1_000 + micros / 1_000)
    }

    /// The place before the first event stored at or after `time`, in ms since 1970.
    pub(super) async fn before_time(
        &self,
        partition: Partition,
        source: Option<&StreamId>,
        time: u64,
    ) -> Result<u64, Error> {
        let (mut low, mut high) = (0, self.source_head(partition, source).await?);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.time_after(partition, source, middle).await? {
                Some(at) if at < time => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// When the first event behind this place that was not removed was stored, in ms since 1970.
    pub(super) async fn time_after(
        &self,
        partition: Partition,
        source: Option<&StreamId>,
        place: u64,
    ) -> Result<Option<u64>, Error> {
        let Some(stream) = source else {
            return Ok(self.first_after(partition, place).await?.map(|event| event.timestamp_ms));
        };
        let mut commands = Pipeline::with_capacity(1);
        let from = format!("0-{}", place + 1);
        commands.cmd("XRANGE").arg(self.0.keys.events(partition, stream)).arg(from).arg("+").arg("COUNT").arg(1);
        let found = entries(stream, self.0.connections.read(partition, &commands).await?.first())?;
        Ok(found.first().map(|event| event.timestamp_ms))
    }

    /// The place of the last entry.
    pub(super) async fn source_head(&self, partition: Partition, source: Option<&StreamId>) -> Result<u64, Error> {
        let key = source.map_or_else(|| self.0.keys.log(partition), |stream| self.0.keys.events(partition, stream));
        Ok(entry_number(&self.last_id(partition, &key).await?).unwrap_or(0))
    }

    /// The id of the last entry of a Redis stream; `0-0` where there is none.
    pub(super) async fn last_id(&self, partition: Partition, key: &str) -> Result<String, Error> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1);
        let entries: Vec<(String, Value)> = decode(self.0.connections.read(partition, &commands).await?.pop())?;
        Ok(entries.into_iter().next().map_or_else(|| "0-0".to_owned(), |(id, _)| id))
    }
}
