//! Parked events: list, replay, drop.

use std::sync::Arc;

use redis::Pipeline;

use super::{Group, settle::MOST};
use crate::{
    model::{Error, Event, GroupName, Ordering, Partition, Position, StreamId, Version},
    store::{
        Store,
        read::{decode, entries},
    },
};

/// Parked events looked at in one step.
const STEP: usize = 500;

/// An event that a group has set aside.
#[derive(Debug)]
pub struct Parked {
    /// Where it is.
    pub partition: Partition,
    /// Its place in the group's source.
    pub position: Position,
    /// The event; `None` if it was removed since.
    pub event: Option<Event>,
    /// Its stream.
    pub stream: StreamId,
    /// Its version.
    pub version: Version,
    /// `exhausted` or `nack`.
    pub reason: String,
    /// The reason that its last nack gave; empty for none.
    pub error: String,
    /// How many times it was handed out.
    pub delivery_count: u64,
    /// When it was parked, in ms since 1970.
    pub parked_ms: u64,
}

/// A page of parked events, in order of partition and position.
#[derive(Debug, Default)]
pub struct ParkedPage {
    /// The events.
    pub parked: Vec<Parked>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<(Partition, Position)>,
}

/// Which parked events are meant.
#[derive(Clone, Debug)]
pub enum Which {
    /// All.
    All,
    /// The first so many, in order of position.
    First(usize),
    /// Those of a stream.
    Stream(StreamId),
    /// These.
    These(Vec<(Partition, Position)>),
}

/// What the function wrote of a parked event.
struct Info {
    stream: StreamId,
    version: Version,
    delivery_count: u64,
    parked_ms: u64,
    reason: String,
    error: String,
}

impl Store {
    /// Lists parked events from a place on.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn parked(
        &self,
        name: &GroupName,
        from: Option<(Partition, Position)>,
        limit: usize,
    ) -> Result<ParkedPage, Error> {
        let group = self.group(name).await?;
        let (first, mut after) =
            from.map_or((Partition::FIRST, Position::ZERO), |(p, position)| (p, position.minus(1)));
        let mut page = ParkedPage::default();
        for partition in self.partitions_of(&group).into_iter().filter(|partition| partition.get() >= first.get()) {
            // One more than wanted tells where the next page begins.
            let room = limit + 1 - page.parked.len();
            let infos = self.parked_infos(&group, partition, after, room).await?;
            after = Position::ZERO;
            page.parked.extend(self.with_events(partition, infos).await?);
            if page.parked.len() > limit {
                page.next = page.parked.pop().map(|parked| (parked.partition, parked.position));
                break;
            }
        }
        Ok(page)
    }

    /// Hands parked events out again, in order and before newer ones of their streams, with their counts reset; or
    /// drops them for good. Returns how many.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn replay(&self, name: &GroupName, which: &Which, drop: bool) -> Result<usize, Error> {
        let group = self.group(name).await?;
        let mut count = 0;
        for partition in self.partitions_of(&group) {
            let most = if let Which::First(most) = which { most - count } else { usize::MAX };
            count += match which {
                Which::Stream(stream) if self.partition(stream) != partition => 0,
                Which::Stream(stream) => self.replay_in(&group, partition, most, Some(stream), drop).await?,
                Which::These(places) => self.replay_these(&group, partition, places, drop).await?,
                Which::All | Which::First(_) => self.replay_in(&group, partition, most, None, drop).await?,
            };
        }
        Ok(count)
    }

    /// Steps through the parked events of a partition, as they are now.
    async fn replay_in(
        &self,
        group: &Group,
        partition: Partition,
        most: usize,
        stream: Option<&StreamId>,
        drop: bool,
    ) -> Result<usize, Error> {
        let (mut count, mut after) = (0, Position::ZERO);
        while count < most {
            let infos = self.parked_infos(group, partition, after, STEP.min(most - count)).await?;
            let Some((last, _)) = infos.last() else { break };
            after = *last;
            let wanted = infos.into_iter().filter(|(_, info)| stream.is_none_or(|stream| *stream == info.stream));
            let chosen: Vec<_> = wanted.map(|(position, info)| (position, info.stream)).collect();
            count += self.replay_step(group, partition, &chosen, drop).await?;
        }
        Ok(count)
    }

    async fn replay_these(
        &self,
        group: &Group,
        partition: Partition,
        places: &[(Partition, Position)],
        drop: bool,
    ) -> Result<usize, Error> {
        let mut positions: Vec<_> = places.iter().filter(|(of, _)| *of == partition).map(|(_, at)| *at).collect();
        positions.sort_unstable();
        positions.dedup();
        let mut chosen = Vec::with_capacity(positions.len());
        for (position, info) in self.infos_of(group, partition, &positions).await? {
            chosen.push((position, info.stream));
        }
        self.replay_step(group, partition, &chosen, drop).await
    }

    async fn replay_step(
        &self,
        group: &Group,
        partition: Partition,
        chosen: &[(Position, StreamId)],
        drop: bool,
    ) -> Result<usize, Error> {
        let mut count = 0;
        for chosen in chosen.chunks(MOST) {
            let replay = |group: Arc<Group>| async move {
                let ordered = group.settings.ordering == Ordering::Stream;
                let streams = chosen.iter().filter(|_| ordered).map(|(_, stream)| stream.clone());
                let mut command = self.group_command("es_replay", &group, partition, streams);
                command.arg(&group.generation).arg(if drop { "drop" } else { "replay" });
                for (position, _) in chosen {
                    command.arg(position.get());
                }
                decode::<usize>(Some(self.call(partition, command).await?))
            };
            count += self.with_copy(&group.name, partition, replay).await?;
        }
        Ok(count)
    }

    async fn parked_infos(
        &self,
        group: &Group,
        partition: Partition,
        after: Position,
        limit: usize,
    ) -> Result<Vec<(Position, Info)>, Error> {
        let [.., parked, _] = self.parked_keys(group, partition);
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("ZRANGEBYSCORE").arg(parked).arg(format!("({after}")).arg("+inf").arg("LIMIT").arg(0).arg(limit);
        let positions: Vec<String> = decode(self.0.connections.read(partition, &commands).await?.pop())?;
        let positions: Vec<_> = positions.iter().filter_map(|text| Position::parse(text)).collect();
        self.infos_of(group, partition, &positions).await
    }

    async fn infos_of(
        &self,
        group: &Group,
        partition: Partition,
        positions: &[Position],
    ) -> Result<Vec<(Position, Info)>, Error> {
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        let [.., info] = self.parked_keys(group, partition);
        let mut commands = Pipeline::with_capacity(1);
        let numbers: Vec<u64> = positions.iter().map(|position| position.get()).collect();
        commands.cmd("HMGET").arg(info).arg(numbers);
        let texts: Vec<Option<String>> = decode(self.0.connections.read(partition, &commands).await?.pop())?;
        let found = positions.iter().zip(texts).filter_map(|(position, text)| Some((*position, text?)));
        found.map(|(position, text)| Ok((position, Info::parse(&text)?))).collect()
    }

    /// `parked` and `parked/info`.
    fn parked_keys(&self, group: &Group, partition: Partition) -> [String; 2] {
        let mut keys = self.0.keys.group(partition, &group.name, None).into_iter().skip(5);
        [keys.next().unwrap_or_default(), keys.next().unwrap_or_default()]
    }

    async fn with_events(&self, partition: Partition, infos: Vec<(Position, Info)>) -> Result<Vec<Parked>, Error> {
        if infos.is_empty() {
            return Ok(Vec::new());
        }
        let mut commands = Pipeline::with_capacity(infos.len());
        for (_, info) in &infos {
            let id = format!("0-{}", info.version);
            commands.cmd("XRANGE").arg(self.0.keys.events(partition, &info.stream)).arg(&id).arg(&id);
        }
        let replies = self.0.connections.read(partition, &commands).await?;
        let mut parked = Vec::with_capacity(infos.len());
        for ((position, info), reply) in infos.into_iter().zip(replies) {
            let event = entries(&info.stream, Some(&reply))?.pop();
            let Info { stream, version, delivery_count, parked_ms, reason, error } = info;
            parked.push(Parked {
                partition,
                position,
                event,
                stream,
                version,
                reason,
                error,
                delivery_count,
                parked_ms,
            });
        }
        Ok(parked)
    }
}

impl Info {
    /// `blocks:version:count:ms:reason:stream`, a line break, and the error.
    fn parse(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (head, error) = text.split_once('\n')?;
            let mut parts = head.splitn(6, ':').skip(1);
            let version = Version::parse(parts.next()?)?;
            let (delivery_count, parked_ms) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let reason = parts.next()?.to_owned();
            let stream = StreamId::parse(parts.next()?)?;
            Some(Self { stream, version, delivery_count, parked_ms, reason, error: error.to_owned() })
        };
        parse().ok_or_else(|| Error::Corrupt("a parked event".to_owned()))
    }
}
