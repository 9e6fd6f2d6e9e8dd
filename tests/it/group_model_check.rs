//! What is compared at a quiet point: the keys of the group, Redis' own view of it, and the status, with the model.

use std::collections::{BTreeMap, BTreeSet};

use redis::Value;
use streamkeep::model::Partition;

use crate::{
    group_model::World,
    group_model_state::{Place, State, ensure},
};

/// The keys of a group in a partition.
pub struct Raw {
    pub partition: u16,
    pub hash: BTreeMap<String, String>,
    pub due: Vec<String>,
    pub lease: BTreeMap<String, String>,
    pub ready: BTreeSet<String>,
    pub parked: BTreeSet<String>,
    pub info: BTreeMap<String, String>,
    pub busy: BTreeMap<String, String>,
    pub again: Vec<String>,
    pub todo: Vec<String>,
    pub error: BTreeSet<String>,
    pub pending: u64,
    pub lag: Option<u64>,
    pub delivered: String,
}

impl Raw {
    fn number(&self, name: &str) -> u64 {
        self.hash.get(name).map_or(0, |text| text.parse().unwrap())
    }

    /// from, to, held, block, position of a busy stream.
    fn busy(&self, stream: &str) -> Option<[u64; 5]> {
        let numbers: Vec<u64> = self.busy.get(stream)?.split(':').map(|text| text.parse().unwrap()).collect();
        Some([numbers[1], numbers[2], numbers[3], numbers[4], numbers[0]])
    }

    fn waits_in_line(&self, position: u64, version: u64, stream: &str) -> bool {
        self.ready.contains(&format!("{position}:{version}:{stream}"))
            || self.again.contains(&format!("{stream}|{position:016}|{version}"))
    }

    /// Whether an event was not looked at, or passed over.
    fn is_to_come(&self, position: u64, version: u64, stream: &str) -> bool {
        position > self.number("cursor")
            || self.busy(stream).is_some_and(|[from, to, ..]| version > from && version <= to)
    }
}

impl World {
    pub async fn raw(&mut self, partition: Partition) -> Raw {
        let keys = self.group_keys(partition);
        let mut pipe = redis::pipe();
        pipe.hgetall(&keys[1]).zrange(&keys[2], 0, -1).hgetall(&keys[3]).zrange(&keys[4], 0, -1);
        pipe.zrange(&keys[5], 0, -1).hgetall(&keys[6]).hgetall(&keys[7]).zrange(&keys[8], 0, -1);
        pipe.zrange(&keys[9], 0, -1).hkeys(&keys[10]);
        let (hash, due, lease, ready, parked, info, busy, again, todo, error) =
            pipe.query_async(&mut self.redis).await.unwrap();
        let mut pipe = redis::pipe();
        pipe.cmd("XPENDING").arg(&keys[0]).arg(self.name.as_str()).cmd("XINFO").arg("GROUPS").arg(&keys[0]);
        let (pending, groups): (Vec<Value>, Vec<BTreeMap<String, Value>>) =
            pipe.query_async(&mut self.redis).await.unwrap();
        let group = |field: &str| {
            let is_ours = |group: &&BTreeMap<String, Value>| {
                redis::from_redis_value::<String>(group["name"].clone()).unwrap() == self.name.as_str()
            };
            groups.iter().find(is_ours).unwrap()[field].clone()
        };
        let pending = redis::from_redis_value(pending[0].clone()).unwrap();
        let lag = redis::from_redis_value(group("lag")).unwrap();
        let delivered = redis::from_redis_value(group("last-delivered-id")).unwrap();
        let partition = partition.get();
        Raw { partition, hash, due, lease, ready, parked, info, busy, again, todo, error, pending, lag, delivered }
    }

    /// Everything is compared.
    pub async fn check(&mut self) -> Result<(), String> {
        self.sync().await?;
        let mut raws = Vec::new();
        for partition in self.partitions() {
            let raw = self.raw(partition).await;
            self.follow(&raw);
            self.check_events(&raw)?;
            self.check_sizes(&raw)?;
            check_shape(&raw)?;
            self.check_redis(&raw)?;
            raws.push(raw);
        }
        self.check_status(&raws).await
    }

    /// The status parks what has used up its deliveries, so afterwards the model knows.
    pub async fn sync(&mut self) -> Result<(), String> {
        self.store().group_status(&self.name).await.map_err(|error| format!("status: {error}"))?;
        for place in self.model.events.keys().copied().collect::<Vec<_>>() {
            self.model.park_used_up(place);
        }
        for partition in self.partitions() {
            let raw = self.raw(partition).await;
            self.follow(&raw);
        }
        Ok(())
    }

    /// Takes over what the model cannot know: where events were removed, and how far the cursor is in what was sought.
    fn follow(&mut self, raw: &Raw) {
        let cursor = raw.number("cursor");
        for ((_, position), event) in self.model.events.iter_mut().filter(|(place, _)| place.0 == raw.partition) {
            let text = position.to_string();
            if matches!(event.state, State::Parked { sought: true, .. }) && *position <= cursor {
                event.state = State::Fresh;
            }
            if !event.removed || raw.lease.contains_key(&text) {
                continue;
            }
            let comes = raw.is_to_come(*position, event.version, &event.stream);
            event.state = match &event.state {
                State::Parked { .. } if raw.parked.contains(&text) => event.state.clone(),
                _ if raw.parked.contains(&text) => State::Parked {
                    count: 0,
                    blocks: raw.info[&text].starts_with(&raw.hash["generation"]),
                    sought: false,
                    reason: "removed",
                },
                State::Settled => State::Settled,
                state if raw.waits_in_line(*position, event.version, &event.stream) => match state {
                    State::Again { .. } | State::Fresh => state.clone(),
                    _ => State::Again { batch: 0 },
                },
                State::Fresh | State::Parked { .. } if comes => event.state.clone(),
                _ => State::Settled,
            };
        }
    }

    fn check_events(&self, raw: &Raw) -> Result<(), String> {
        for ((_, position), event) in self.model.events.iter().filter(|(place, _)| place.0 == raw.partition) {
            let text = position.to_string();
            let (lease, parked) = (raw.lease.get(&text), raw.parked.contains(&text));
            let line = raw.waits_in_line(*position, event.version, &event.stream);
            let comes = raw.is_to_come(*position, event.version, &event.stream);
            let holds = match &event.state {
                _ if event.removed && event.state != State::Settled => continue,
                _ if !event.matches => lease.is_none() && !parked && !line,
                State::Leased { text, .. } => lease == Some(text) && !parked && !line,
                State::Waiting { count, .. } => {
                    let wanted = format!("0:{count}:{}:{}", event.version, event.stream);
                    lease == Some(&wanted) && !parked && !line
                }
                State::Parked { .. } => lease.is_none() && parked && !line,
                State::Again { .. } => lease.is_none() && !parked && line,
                State::Fresh => lease.is_none() && !parked && (line || comes),
                State::Settled => lease.is_none() && !parked && !line,
            };
            ensure!(
                holds,
                "{position} of partition {} is {:?}, but in Redis: lease {lease:?}, parked {parked}, in line \
                {line}, to come {comes}, busy {:?}",
                raw.partition,
                event,
                raw.busy.get(&event.stream)
            );
        }
        Ok(())
    }

    fn check_sizes(&self, raw: &Raw) -> Result<(), String> {
        let of = |wanted: fn(&State) -> bool| {
            let events = self.model.events.iter().filter(|(place, event)| place.0 == raw.partition && event.matches);
            events.filter(|(_, event)| wanted(&event.state)).count()
        };
        let leases = of(|state| matches!(state, State::Leased { .. } | State::Waiting { .. }));
        ensure!(raw.lease.len() == leases, "{} leases, {leases} by the model", raw.lease.len());
        ensure!(raw.due.len() == leases, "{} due times, {leases} by the model", raw.due.len());
        let parked = of(|state| matches!(state, State::Parked { .. }));
        ensure!(raw.parked.len() == parked, "{} parked, {parked} by the model", raw.parked.len());
        ensure!(raw.info.keys().eq(&raw.parked), "parked {:?}, of which is known {:?}", raw.parked, raw.info);
        let stray = raw.error.iter().find(|position| !raw.lease.contains_key(*position));
        ensure!(stray.is_none(), "the reason of {stray:?} was left behind");
        Ok(())
    }

    /// What redis-cli shows.
    fn check_redis(&self, raw: &Raw) -> Result<(), String> {
        let cursor = raw.number("cursor");
        ensure!(raw.delivered == format!("0-{cursor}"), "the cursor is {cursor}, Redis says {}", raw.delivered);
        let of = |(place, _): &(&Place, _)| place.0 == raw.partition;
        let source_is_whole = self.model.settings.stream.is_none() || !self.model.events.values().any(|e| e.removed);
        let leases = raw.lease.len() as u64;
        if source_is_whole {
            ensure!(raw.pending == leases, "{} pending, {leases} leases", raw.pending);
            let head = self.model.events.iter().filter(of).count() as u64;
            ensure!(raw.lag == Some(head - cursor), "lag {:?}, cursor {cursor}, head {head}", raw.lag);
        } else {
            ensure!(raw.pending <= leases, "{} pending, {leases} leases", raw.pending);
        }
        if self.model.is_filtered() || !source_is_whole {
            return Ok(());
        }
        let comes =
            |state: &State| matches!(state, State::Fresh | State::Again { .. } | State::Parked { sought: true, .. });
        let removed = self.model.events.iter().filter(of).filter(|(_, event)| event.removed).count() as u64;
        let wanted = self.model.events.iter().filter(of).filter(|(_, event)| comes(&event.state)).count() as u64;
        let told = raw.lag.unwrap_or(0) + raw.number("held") + (raw.ready.len() + raw.again.len()) as u64;
        ensure!(told.abs_diff(wanted) <= removed, "{told} not yet delivered, {wanted} by the model");
        Ok(())
    }

    async fn check_status(&mut self, raws: &[Raw]) -> Result<(), String> {
        let (_, status) = self.store().group_status(&self.name).await.map_err(|error| format!("status: {error}"))?;
        let count = |wanted: fn(&State) -> bool| {
            let events = self.model.events.values().filter(|event| event.matches);
            events.filter(|event| wanted(&event.state)).count() as u64
        };
        let told = [status.in_flight, status.waiting, status.parked, status.stopped_streams];
        let wanted = [
            count(|state| matches!(state, State::Leased { .. })),
            count(|state| matches!(state, State::Waiting { .. })),
            count(|state| matches!(state, State::Parked { .. })),
            self.stopped(),
        ];
        ensure!(told == wanted, "status: in flight, waiting, parked, stopped {told:?}, by the model {wanted:?}");
        let lines: u64 = raws.iter().map(|raw| raw.number("held") + (raw.ready.len() + raw.again.len()) as u64).sum();
        ensure!(status.held == lines, "status: {} held, {lines} by the keys", status.held);
        let by_consumer: u64 = status.consumers.iter().map(|consumer| consumer.in_flight).sum();
        let pending: u64 = raws.iter().map(|raw| raw.pending).sum();
        ensure!(by_consumer == pending, "status: {by_consumer} by consumers, {pending} pending");
        Ok(())
    }

    fn stopped(&self) -> u64 {
        let stands = |places: &&Vec<Place>| {
            let states = || places.iter().map(|place| &self.model.events[place].state);
            states().any(|state| matches!(state, State::Parked { blocks: true, .. }))
                && !states()
                    .any(|state| matches!(state, State::Leased { .. } | State::Waiting { .. } | State::Again { .. }))
        };
        self.model.streams.values().filter(stands).count() as u64
    }

    /// Everything is settled: the group's keys hold nothing but what it is.
    pub async fn check_empty(&mut self) -> Result<(), String> {
        for partition in self.partitions() {
            let keys = self.group_keys(partition);
            let left: u64 = redis::cmd("EXISTS").arg(&keys[2..11]).query_async(&mut self.redis).await.unwrap();
            let raw = self.raw(partition).await;
            ensure!(left == 0, "{left} keys are left: {:?} {:?} {:?}", raw.lease, raw.busy, raw.parked);
            ensure!(raw.pending == 0, "{} are pending", raw.pending);
            for counter in ["held", "waiting", "stopped"] {
                ensure!(raw.number(counter) == 0, "{counter} is {}", raw.number(counter));
            }
        }
        Ok(())
    }
}

/// That the keys fit each other.
fn check_shape(raw: &Raw) -> Result<(), String> {
    let held: u64 = raw.busy.keys().filter_map(|stream| raw.busy(stream)).map(|busy| busy[2]).sum();
    ensure!(held == raw.number("held"), "held is {}, the streams say {held}", raw.number("held"));
    for stream in raw.busy.keys() {
        let Some([from, to, held, block, position]) = raw.busy(stream) else { continue };
        let ready = raw.ready.iter().any(|member| member.starts_with(&format!("{position}:")));
        let holds = if position == 0 {
            block > 0 || raw.todo.contains(stream)
        } else {
            ready || raw.lease.contains_key(&position.to_string())
        };
        ensure!(holds, "{stream} is busy with nothing: {:?}", raw.busy[stream]);
        ensure!(from <= to && held <= to - from, "{stream} holds too many: {:?}", raw.busy[stream]);
    }
    let lost = raw.again.iter().find(|member| !raw.busy.contains_key(member.split('|').next().unwrap()));
    ensure!(lost.is_none(), "nothing will release {lost:?}");
    Ok(())
}
