//! The consumer groups of a store that was copied.
//!
//! A group's leases, retries and parked events name positions in the source's logs, and what it settled ahead of others
//! stands in no list. So in the target it begins before the first event that it has not settled: what is leased, waits or
//! is parked comes again, and what was settled behind that too.

use std::iter::zip;

use super::{Copier, CopyError};
use crate::{
    model::{Error, Fingerprint, GroupName, GroupSettings, Partition, Position, Start, StreamId, Version},
    store::{Direction, Group, Store},
};

/// A group in the target.
#[derive(Debug)]
pub struct CopiedGroup {
    /// Its name.
    pub name: GroupName,
    /// Events of its source behind its place. Under filters, not all of them will be delivered.
    pub to_come: u64,
    /// How many of these it had settled, at most.
    pub again: u64,
}

/// Log entries looked at in one step.
const STEP: usize = 500;

impl Copier {
    /// Makes the source's groups in the target, or moves them where they are there already.
    ///
    /// # Errors
    /// [`CopyError`]
    pub async fn copy_groups(&self) -> Result<Vec<CopiedGroup>, CopyError> {
        let mut copied = Vec::new();
        for group in self.from.groups().await.map_err(CopyError::Source)? {
            match self.copy_group(&group).await {
                Ok(group) => copied.push(group),
                // Deleted meanwhile.
                Err(Error::GroupNotFound) => {}
                Err(error) => return Err(CopyError::Group { name: group.name.to_string(), error }),
            }
        }
        Ok(copied)
    }

    async fn copy_group(&self, group: &Group) -> Result<CopiedGroup, Error> {
        let (_, status) = self.from.group_status(&group.name).await?;
        let open = status.lag + status.in_flight + status.waiting + status.held + status.parked;
        let mut floors = Vec::new();
        for (partition, start) in zip(self.from.partitions_of(group), &group.places) {
            floors.push(self.from.floor(group, partition).await?.max(*start));
        }
        let source = group.settings.stream.as_ref();
        let mut heads = Vec::new();
        for partition in self.to.partitions_of(group) {
            heads.push(self.to.source_head(partition, source).await?);
        }
        let places: Vec<u64> = match source {
            Some(_) => zip(&heads, floors).map(|(head, floor)| floor.min(*head)).collect(),
            None => self.places_behind(&floors, &heads).await?,
        };
        let to_come: u64 = zip(&heads, &places).map(|(head, place)| head - place).sum();
        let settings = GroupSettings { start: self.start(&group.settings, &places), ..group.settings.clone() };
        self.to.put_group(&group.name, &settings).await?;
        self.to.seek(&group.name, &Start::After(places)).await?;
        self.to.pause(&group.name, group.paused).await?;
        Ok(CopiedGroup { name: group.name.clone(), to_come, again: to_come.saturating_sub(open) })
    }

    /// Where the group says that it began. Positions are those of a layout.
    fn start(&self, settings: &GroupSettings, places: &[u64]) -> Start {
        let same = settings.stream.is_some() || self.from.partitions().count() == self.to.partitions().count();
        match &settings.start {
            Start::After(_) if !same => Start::After(places.to_vec()),
            start => start.clone(),
        }
    }

    /// The last positions of the target before the first event that is behind one of these of the source.
    async fn places_behind(&self, floors: &[u64], heads: &[u64]) -> Result<Vec<u64>, Error> {
        let mut places = heads.to_vec();
        for (partition, floor) in zip(self.from.partitions().all(), floors) {
            for (place, first) in zip(&mut places, self.firsts_behind(partition, *floor).await?) {
                *place = first.map_or(*place, |first| (*place).min(first - 1));
            }
        }
        Ok(places)
    }

    /// Where the first event of each of the target's partitions is of those that are behind a position of the source.
    async fn firsts_behind(&self, partition: Partition, floor: u64) -> Result<Vec<Option<u64>>, Error> {
        let mut firsts = vec![None; usize::from(self.to.partitions().count())];
        let copied = self.cursor.places[usize::from(partition.get())].map_or(0, |(position, _)| position.get());
        let mut at = floor;
        while at < copied && firsts.contains(&None) {
            let place = Position::new(at).filter(|at| *at > Position::ZERO).map(|at| (at, Fingerprint::REMOVED));
            let pointers = self.from.pointers(partition, place, STEP, Direction::Forward).await?;
            for pointer in pointers.iter().filter(|pointer| pointer.position.get() <= copied) {
                let first = &mut firsts[usize::from(self.to.partition(&pointer.stream).get())];
                if first.is_none() {
                    *first = position_in(&self.to, &pointer.stream, pointer.version).await?.map(Position::get);
                }
            }
            match pointers.last() {
                Some(last) => at = last.position.get(),
                None => break,
            }
        }
        Ok(firsts)
    }
}

/// The position of an event in the target, where it was not removed.
async fn position_in(to: &Store, stream: &StreamId, version: Version) -> Result<Option<Position>, Error> {
    match to.read_event(to.partition(stream), stream, version).await {
        Ok(event) => Ok(Some(event.position)),
        Err(Error::EventNotFound | Error::StreamNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
