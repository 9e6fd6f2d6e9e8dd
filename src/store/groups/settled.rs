//! Waiting until a group has settled everything up to a cursor.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::Group;
use crate::{
    model::{Cursor, Error, GroupName, Partition, Position, StreamId, Version},
    store::{Store, read::decode},
};

/// How long an answer of Redis does for all who wait for a group. An ack wakes nobody: the writes for that would cost
/// every ack more than these looks do.
const FRESH: Duration = Duration::from_millis(20);

/// Up to where a group has settled everything, in each partition that it reads, and when that was looked up.
pub(super) type Floors = Arc<Mutex<Option<(Instant, Vec<u64>)>>>;

impl Store {
    /// Whether a group has settled everything up to a cursor; waits for it until `until`, or until `stop` is told.
    /// Parked events are not settled.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::HistoryDiverged`], or that Redis is not available.
    pub async fn settled_until(
        &self,
        name: &GroupName,
        cursor: &Cursor,
        until: Instant,
        stop: &CancellationToken,
    ) -> Result<bool, Error> {
        let group = self.group(name).await?;
        let mut wanted = Vec::new();
        for partition in self.partitions_of(&group) {
            let place = cursor.places[usize::from(partition.get())];
            self.check_place(partition, place).await?;
            let position = place.map_or(0, |(position, _)| position.get());
            wanted.push(match &group.settings.stream {
                Some(stream) => self.version_at(partition, stream, position).await?,
                None => position,
            });
        }
        loop {
            let floors = self.floors(name).await?;
            if wanted.iter().zip(&floors).all(|(wanted, floor)| wanted <= floor) {
                return Ok(true);
            }
            if Instant::now() >= until || stop.is_cancelled() {
                return Ok(false);
            }
            tokio::select! {
                () = tokio::time::sleep_until(until.min(Instant::now() + FRESH).into()) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// One look serves all who wait for the group.
    async fn floors(&self, name: &GroupName) -> Result<Vec<u64>, Error> {
        let shared = self.0.groups.floors(name);
        let mut looked = shared.lock().await;
        if let Some((at, floors)) = looked.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(floors.clone());
        }
        let began = Instant::now();
        let group = self.group(name).await?;
        let mut floors = Vec::new();
        for partition in self.partitions_of(&group) {
            floors.push(self.floor(&group, partition).await?);
        }
        *looked = Some((began, floors.clone()));
        Ok(floors)
    }

    /// Up to where a group has settled everything in a partition; 0 where that is not known just now.
    pub(in crate::store) async fn floor(&self, group: &Group, partition: Partition) -> Result<u64, Error> {
        let mut command = self.group_command("es_settled", group, partition, []);
        command.arg(&group.generation);
        match self.call(partition, command).await {
            // This partition has not been asked yet.
            Err(Error::GroupNotFound) => Ok(0),
            answered => decode(Some(answered?)),
        }
    }

    /// The version of a stream when its partition's log was at this position.
    async fn version_at(&self, partition: Partition, stream: &StreamId, position: u64) -> Result<u64, Error> {
        let mut high = match self.version(partition, stream).await {
            Ok(version) => version.get(),
            Err(Error::StreamNotFound | Error::StreamDeleted) => 0,
            Err(error) => return Err(error),
        };
        let mut low = 0;
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.read_event(partition, stream, Version::ZERO.plus(middle)).await {
                Ok(event) if event.position > Position::ZERO.plus(position) => high = middle - 1,
                // Events are removed from the beginning on.
                Ok(_) | Err(Error::EventNotFound) => low = middle,
                Err(error) => return Err(error),
            }
        }
        Ok(low)
    }
}
