//! Consumer groups: each copy against the registry, Redis' own group and itself.

use std::collections::{BTreeSet, HashMap};

use redis::{Pipeline, Value};

use super::{
    Lines, Verifier,
    group::{Info, Snapshot},
};
use crate::{
    model::{Error, Partition},
    store::{
        groups::{Group, REVISION},
        pointers::{self, Pointer},
        read::{decode, entry_number},
    },
};

/// Most entries of a group's keys in a partition that are read in one step, parked ones aside: Redis does nothing else
/// meanwhile.
const STEP: u64 = 50_000;
/// Parked events of a piece.
const PARKED: usize = 200;

impl Verifier {
    pub(super) async fn walk_groups(&self) -> Result<(), Error> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("HKEYS").arg(self.keys.groups());
        let names: Vec<String> = decode(self.connections.read(Partition::FIRST, &commands).await?.pop())?;
        for name in names.iter().filter(|name| *name != REVISION) {
            self.note(|report| report.groups += 1);
            for partition in self.partitions.all() {
                self.judge(async || self.look_at_group(name, partition).await).await?;
                self.walk_parked(name, partition).await?;
            }
        }
        Ok(())
    }

    /// What the registry says of a group; `None` where it is not there, or does not read this partition.
    async fn registered(&self, name: &str, partition: Partition) -> Result<Option<Group>, Error> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("HGET").arg(self.keys.groups()).arg(name);
        let text: Option<String> = decode(self.connections.read(Partition::FIRST, &commands).await?.pop())?;
        let group = text.map(|text| Group::parse(name, &text)).transpose()?;
        Ok(group.filter(|group| match &group.settings.stream {
            Some(stream) => self.partitions.of(stream) == partition,
            None => true,
        }))
    }

    fn group_keys(&self, group: &Group, partition: Partition) -> Vec<String> {
        self.keys.group(partition, &group.name, group.settings.stream.as_ref())
    }

    async fn look_at_group(&self, name: &str, partition: Partition) -> Result<(Lines, ()), Error> {
        let mut wrong = Lines::new();
        let Some(group) = self.registered(name, partition).await? else { return Ok((wrong, ())) };
        let place = format!("group {name} in partition {}", partition.get());
        let keys = self.group_keys(&group, partition);
        let Some(pending) = self.native(partition, &keys[0], name).await? else {
            wrong.insert(format!("{place}: Redis has no consumer group of this name on {}", keys[0]));
            return Ok((wrong, ()));
        };
        let size = self.size(partition, &keys).await? + pending;
        if size > STEP {
            self.tell(format!("{place}: not compared, its {size} entries are too many for one step"));
            return Ok((wrong, ()));
        }
        let snapshot = self.snapshot(partition, &keys, name).await?;
        let suspects = snapshot.judge(&group, &place, &mut wrong);
        self.find_leased(&group, partition, &place, &snapshot, &suspects, &mut wrong).await?;
        Ok((wrong, ()))
    }

    /// How many entries Redis' own group has pending; `None` where there is no such group.
    async fn native(&self, partition: Partition, source: &str, name: &str) -> Result<Option<u64>, Error> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("XPENDING").arg(source).arg(name);
        let summary: Result<(u64, Value, Value, Value), _> =
            decode(self.connections.ask(partition, &commands).await?.pop());
        Ok(summary.ok().map(|(pending, ..)| pending))
    }

    /// Entries of all keys but those of what is parked.
    async fn size(&self, partition: Partition, keys: &[String]) -> Result<u64, Error> {
        let mut commands = Pipeline::with_capacity(6);
        for (command, key) in [("ZCARD", 2), ("HLEN", 3), ("ZCARD", 4), ("HLEN", 7), ("ZCARD", 8), ("ZCARD", 9)] {
            commands.cmd(command).arg(&keys[key]);
        }
        let sizes: Result<Vec<u64>, Error> =
            self.connections.read(partition, &commands).await?.into_iter().map(|reply| decode(Some(reply))).collect();
        Ok(sizes?.into_iter().sum())
    }

    /// All that a group has in a partition, but for what is parked, in one step.
    async fn snapshot(&self, partition: Partition, keys: &[String], name: &str) -> Result<Snapshot, Error> {
        let mut commands = Pipeline::with_capacity(9);
        commands.atomic();
        commands.cmd("HGETALL").arg(&keys[1]).cmd("ZRANGE").arg(&keys[2]).arg(0).arg(-1);
        commands.cmd("HGETALL").arg(&keys[3]).cmd("ZRANGE").arg(&keys[4]).arg(0).arg(-1).arg("WITHSCORES");
        commands.cmd("HGETALL").arg(&keys[7]).cmd("ZRANGE").arg(&keys[8]).arg(0).arg(-1);
        commands.cmd("ZRANGE").arg(&keys[9]).arg(0).arg(-1).cmd("XINFO").arg("GROUPS").arg(&keys[0]);
        commands.cmd("XPENDING").arg(&keys[0]).arg(name).arg("-").arg("+").arg(STEP);
        commands.cmd("ZCARD").arg(&keys[5]).cmd("HLEN").arg(&keys[6]);
        let redis = self.connections.exclusive(partition).await;
        let mut redis = redis.map_err(|error| Error::Unavailable(error.to_string()))?;
        let replies: Vec<Value> =
            commands.query_async(&mut redis).await.map_err(|error| Error::Corrupt(error.to_string()))?;
        let mut replies = replies.into_iter();
        let hash = decode(replies.next())?;
        let due: Vec<String> = decode(replies.next())?;
        let lease = decode(replies.next())?;
        let ready: Vec<(String, f64)> = decode(replies.next())?;
        let busy = decode(replies.next())?;
        let (again, todo): (Vec<String>, Vec<String>) = (decode(replies.next())?, decode(replies.next())?);
        let natives: Vec<HashMap<String, Value>> = decode(replies.next())?;
        let pending: Vec<(String, Value, Value, Value)> = decode(replies.next())?;
        let parked = (decode(replies.next())?, decode(replies.next())?);
        let delivered = natives.into_iter().find_map(|mut native| {
            let of: String = decode(native.remove("name")).ok()?;
            (of == name).then(|| decode(native.remove("last-delivered-id")).ok()).flatten()
        });
        let pending =
            pending.iter().filter_map(|(id, ..)| entry_number(id)).map(|position| position.to_string()).collect();
        let (due, todo) = (due.into_iter().collect(), todo.into_iter().collect());
        Ok(Snapshot { hash, due, lease, ready, busy, again, todo, delivered, pending, parked })
    }

    /// That the source has what the leases name. `suspects` are leases that Redis has no pending entry of: there are such
    /// only of what was removed.
    async fn find_leased(
        &self,
        group: &Group,
        partition: Partition,
        place: &str,
        snapshot: &Snapshot,
        suspects: &BTreeSet<String>,
        wrong: &mut Lines,
    ) -> Result<(), Error> {
        let source = &self.group_keys(group, partition)[0];
        let of_stream = group.settings.stream.is_some();
        let leases: Vec<_> =
            snapshot.lease.iter().filter(|(position, _)| !of_stream || suspects.contains(*position)).collect();
        for leases in leases.chunks(if of_stream { self.piece() } else { super::PIECE }) {
            let mut commands = Pipeline::with_capacity(leases.len());
            for (position, _) in leases {
                commands.cmd("XRANGE").arg(source).arg(format!("0-{position}")).arg(format!("0-{position}"));
            }
            for ((position, text), reply) in leases.iter().zip(self.connections.ask(partition, &commands).await?) {
                let entries: Vec<(String, Vec<String>)> = decode(Some(reply)).unwrap_or_default();
                if entries.is_empty() {
                    continue;
                }
                if suspects.contains(*position) {
                    wrong.insert(format!("{place}: position {position} has a lease, but no pending entry in Redis"));
                }
                let named = pointers::pointers(entries).unwrap_or_default().pop();
                if let Some(Pointer { stream, version, .. }) = named.filter(|_| !of_stream)
                    && text.splitn(3, ':').nth(2) != Some(&format!("{version}:{stream}"))
                {
                    wrong.insert(format!(
                        "{place}: the lease of position {position} is not of {stream}@{version}: {text}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// That what is parked is nothing else, and known.
    async fn walk_parked(&self, name: &str, partition: Partition) -> Result<(), Error> {
        let Some(group) = self.registered(name, partition).await? else { return Ok(()) };
        let keys = self.group_keys(&group, partition);
        let mut after = "-inf".to_owned();
        loop {
            let mut commands = Pipeline::with_capacity(1);
            commands.cmd("ZRANGEBYSCORE").arg(&keys[5]).arg(&after).arg("+inf").arg("LIMIT").arg(0).arg(PARKED);
            let positions: Vec<String> = decode(self.connections.read(partition, &commands).await?.pop())?;
            let Some(last) = positions.last() else { return Ok(()) };
            after = format!("({last}");
            self.judge(async || self.look_at_parked(name, partition, &keys, &positions).await).await?;
        }
    }

    async fn look_at_parked(
        &self,
        name: &str,
        partition: Partition,
        keys: &[String],
        positions: &[String],
    ) -> Result<(Lines, ()), Error> {
        let place = format!("group {name} in partition {}", partition.get());
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("HMGET").arg(&keys[6]).arg(positions);
        let infos: Vec<Option<String>> = decode(self.connections.read(partition, &commands).await?.pop())?;
        let mut commands = Pipeline::with_capacity(4 * positions.len());
        commands.atomic();
        for (position, info) in positions.iter().zip(&infos) {
            let (version, stream) = info.as_deref().and_then(Info::parse).unwrap_or(("0", ""));
            commands.cmd("ZSCORE").arg(&keys[5]).arg(position);
            commands.cmd("HEXISTS").arg(&keys[6]).arg(position).cmd("HEXISTS").arg(&keys[3]).arg(position);
            commands.cmd("ZSCORE").arg(&keys[4]).arg(format!("{position}:{version}:{stream}"));
            commands.cmd("ZSCORE").arg(&keys[8]).arg(format!("{stream}|{position:0>16}|{version}"));
        }
        let redis = self.connections.exclusive(partition).await;
        let mut redis = redis.map_err(|error| Error::Unavailable(error.to_string()))?;
        let replies: Vec<Value> =
            commands.query_async(&mut redis).await.map_err(|error| Error::Corrupt(error.to_string()))?;
        let mut wrong = Lines::new();
        for ((position, info), states) in positions.iter().zip(&infos).zip(replies.chunks(5)) {
            let is = |state: usize| !matches!(states[state], Value::Nil | Value::Int(0));
            if !is(0) {
                continue;
            }
            if !is(1) || info.as_deref().is_some_and(|info| Info::parse(info).is_none()) {
                wrong.insert(format!("{place}: position {position} is parked, but nothing good is known of it"));
            }
            let others = ["leased", "ready", "to be replayed"].into_iter().zip(2..);
            for (state, _) in others.filter(|(_, index)| is(*index)) {
                wrong.insert(format!("{place}: position {position} is parked and {state}"));
            }
        }
        Ok((wrong, ()))
    }
}
