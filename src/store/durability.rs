//! Which durability the deployment gives, what is demanded of it, and what an append therefore needs.

use super::{Seen, StartError, Store};
use crate::model::{Durability, Error};

/// What the operator demands of every append, and says of the deployment.
#[derive(Clone, Copy, Debug)]
pub struct DurabilityConfig {
    /// What every append must reach; `None`: the highest level that the deployment gives.
    pub floor: Option<Durability>,
    /// How many replicas must have an append for it to be replicated; 1 or more.
    pub replicas: u16,
    /// That nodes have `appendfsync always` of which that cannot be seen: replicas, and the primary where CONFIG is
    /// closed.
    pub assert_fsync: bool,
    /// That the engine answers only once a write is on disk in several places, as MemoryDB does.
    pub engine_durable: bool,
}

impl Default for DurabilityConfig {
    fn default() -> Self {
        Self { floor: None, replicas: 1, assert_fsync: false, engine_durable: false }
    }
}

/// What the deployment gives, as last seen.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    config: DurabilityConfig,
    /// The primary syncs before it answers.
    fsync: bool,
    /// The replicas do too.
    replicas_fsync: bool,
    /// Replicas that follow closely; `None` where nobody has looked yet.
    online: Option<usize>,
    /// Whether there were as many as needed at some time since this service started.
    had_replicas: bool,
}

/// What an append needs, and what it has reached then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Replicas have to confirm it.
    pub(super) wait: bool,
    pub(super) reached: Durability,
}

impl Standing {
    /// `fsync`: whether the primary has `appendfsync always`, `None` where that cannot be seen. `online`: replicas that
    /// follow closely, as far as WAIT may be asked of them.
    pub(super) fn new(config: DurabilityConfig, fsync: Option<bool>, online: usize) -> Self {
        let fsync = fsync.unwrap_or(config.assert_fsync);
        let had_replicas = online >= config.replicas.into();
        Self { config, fsync, replicas_fsync: fsync && config.assert_fsync, online: Some(online), had_replicas }
    }

    /// Of a primary that nobody has looked at yet. `had_replicas`: whether there were as many as needed before it.
    pub(super) fn unseen(config: DurabilityConfig, had_replicas: bool) -> Self {
        Self { had_replicas, online: None, ..Self::new(config, Some(false), 0) }
    }

    /// Whether there were as many replicas as needed at some time.
    pub(super) fn had_replicas(&self) -> bool {
        self.had_replicas
    }

    /// Whether somebody has looked.
    pub(super) fn was_seen(&self) -> bool {
        self.online.is_some()
    }

    /// Remembers what was so before.
    pub(super) fn after(self, before: &Self) -> Self {
        Self { had_replicas: self.had_replicas || before.had_replicas, ..self }
    }

    /// Whether the level can be reached now.
    fn gives(&self, level: Durability) -> bool {
        let replicated = self.online() >= self.config.replicas.into();
        self.config.engine_durable
            || match level {
                Durability::Memory => true,
                Durability::Fsync => self.fsync,
                Durability::Replicated => replicated,
                Durability::ReplicatedFsync => replicated && self.replicas_fsync,
            }
    }

    /// Whether the level can be reached at times. Nobody knows of replicas that never were; a floor vouches for them.
    fn may_give(&self, level: Durability) -> bool {
        let demands = |what: fn(Durability) -> bool| self.config.floor.is_some_and(what);
        let fsync = match level {
            Durability::Memory | Durability::Replicated => true,
            Durability::Fsync => self.fsync || demands(Durability::is_synced),
            Durability::ReplicatedFsync => self.replicas_fsync,
        };
        let replicas = !level.is_replicated() || self.had_replicas || demands(Durability::is_replicated);
        self.config.engine_durable || (fsync && replicas)
    }

    /// The highest level that can be reached now.
    fn highest(&self) -> Durability {
        Durability::ALL.into_iter().rev().find(|level| self.gives(*level)).unwrap_or(Durability::Memory)
    }

    /// What an append needs that asks for a level.
    ///
    /// # Errors
    /// [`Error::DurabilityUnsupported`], [`Error::DurabilityUnavailable`]
    pub(super) fn plan(&self, asked: Option<Durability>) -> Result<Plan, Error> {
        if let Some(asked) = asked.filter(|asked| !self.may_give(*asked)) {
            return Err(Error::DurabilityUnsupported(asked));
        }
        let floor = self.config.floor.unwrap_or_else(|| self.highest());
        let level = asked.map_or(floor, |asked| asked.max(floor));
        if !self.gives(level) {
            return Err(Error::DurabilityUnavailable(level));
        }
        let reached = match (level.is_replicated(), self.fsync) {
            _ if self.config.engine_durable => Durability::ReplicatedFsync,
            (true, _) if self.replicas_fsync => Durability::ReplicatedFsync,
            (true, _) => Durability::Replicated,
            (false, true) => Durability::Fsync,
            (false, false) => Durability::Memory,
        };
        Ok(Plan { wait: level.is_replicated() && !self.config.engine_durable, reached })
    }

    /// What an append reaches that asks for nothing; what it must reach, where it cannot.
    #[must_use]
    pub fn level(&self) -> Durability {
        self.plan(None).map_or_else(|_| self.config.floor.unwrap_or(Durability::Memory), |plan| plan.reached)
    }

    /// Whether what is acknowledged is on disk, at least on the primary.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.fsync || self.config.engine_durable
    }

    /// Replicas that follow closely.
    #[must_use]
    pub fn online(&self) -> usize {
        self.online.unwrap_or(0)
    }

    /// Why the floor cannot be reached; `None` where it can.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        let floor = self.config.floor.filter(|floor| !self.gives(*floor))?;
        let why = if floor.is_synced() && !self.fsync {
            "Redis does not have appendfsync always, or CONFIG is closed and --assert-fsync is not said".to_owned()
        } else if floor.is_replicated() && self.online() < self.config.replicas.into() {
            format!("{} of the {} replica(s) that must confirm are there", self.online(), self.config.replicas)
        } else {
            "that the replicas have appendfsync always is for --assert-fsync to say".to_owned()
        };
        Some(format!("the level {floor} is demanded and cannot be reached: {why}"))
    }
}

impl Store {
    /// What the deployment gives, as last seen: of its primaries that which gives the least.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let primaries = self.0.connections.primaries();
        let standings = primaries.iter().map(|(primary, _)| **primary.standing.load());
        let least = standings.min_by_key(|standing| (standing.level(), standing.is_synced(), standing.online()));
        least.expect("there is a primary")
    }
}

/// That the floor can be reached with each primary that answers.
///
/// # Errors
/// [`StartError::Durability`]
pub(super) fn check_floor(seen: &[Seen]) -> Result<(), StartError> {
    let mut healths = seen.iter().filter_map(|seen| seen.health.as_ref());
    healths.find_map(|health| health.standing.shortfall()).map_or(Ok(()), |why| Err(StartError::Durability(why)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Durability::{Fsync, Memory, Replicated, ReplicatedFsync};

    fn standing(floor: Option<Durability>, assert_fsync: bool, fsync: Option<bool>, online: usize) -> Standing {
        Standing::new(DurabilityConfig { floor, assert_fsync, ..DurabilityConfig::default() }, fsync, online)
    }

    fn plan(wait: bool, reached: Durability) -> Plan {
        Plan { wait, reached }
    }

    #[test]
    fn without_a_floor_the_highest_level_holds_that_there_is() {
        let reached = |assert, fsync, online| standing(None, assert, fsync, online).plan(None);
        assert_eq!(reached(false, Some(false), 0), Ok(plan(false, Memory)));
        assert_eq!(reached(false, None, 0), Ok(plan(false, Memory)));
        assert_eq!(reached(true, None, 0), Ok(plan(false, Fsync)));
        // What is seen is believed, whatever is asserted.
        assert_eq!(reached(true, Some(false), 1), Ok(plan(true, Replicated)));
        assert_eq!(reached(false, Some(true), 0), Ok(plan(false, Fsync)));
        assert_eq!(reached(false, Some(true), 2), Ok(plan(true, Replicated)));
        assert_eq!(reached(true, Some(true), 1), Ok(plan(true, ReplicatedFsync)));
    }

    #[test]
    fn a_floor_may_be_below_what_there_is_and_is_raised_by_who_asks() {
        let low = standing(Some(Memory), false, Some(true), 1);
        assert_eq!(low.plan(None), Ok(plan(false, Fsync)));
        assert_eq!(low.plan(Some(Replicated)), Ok(plan(true, Replicated)));
        let high = standing(Some(Replicated), false, Some(true), 1);
        for asked in [Memory, Fsync, Replicated] {
            assert_eq!(high.plan(Some(asked)), Ok(plan(true, Replicated)));
        }
    }

    #[test]
    fn what_is_never_given_and_what_is_not_given_now_are_told_apart() {
        let alone = standing(None, false, Some(false), 0);
        for asked in [Fsync, Replicated, ReplicatedFsync] {
            assert_eq!(alone.plan(Some(asked)), Err(Error::DurabilityUnsupported(asked)));
        }
        let left = alone.after(&standing(None, false, Some(false), 1));
        assert_eq!(left.plan(Some(Replicated)), Err(Error::DurabilityUnavailable(Replicated)));
        assert_eq!(left.plan(None), Ok(plan(false, Memory)));
        let demanded = standing(Some(Replicated), false, Some(true), 0);
        assert_eq!(demanded.plan(None), Err(Error::DurabilityUnavailable(Replicated)));
        assert_eq!(demanded.plan(Some(Memory)), Err(Error::DurabilityUnavailable(Replicated)));
        assert_eq!(demanded.level(), Replicated);
        // On disk says nothing of replicas, nor the other way round.
        let replicated = standing(None, false, Some(false), 1);
        assert_eq!(replicated.plan(Some(Fsync)), Err(Error::DurabilityUnsupported(Fsync)));
    }

    #[test]
    fn an_engine_that_is_durable_needs_no_replicas_to_confirm() {
        let config = DurabilityConfig { floor: Some(ReplicatedFsync), engine_durable: true, ..Default::default() };
        let standing = Standing::new(config, None, 0);
        assert_eq!(standing.plan(Some(Replicated)), Ok(plan(false, ReplicatedFsync)));
        assert_eq!(standing.shortfall(), None);
    }

    #[test]
    fn a_floor_that_cannot_be_reached_is_told() {
        let shortfall =
            |floor, fsync, online| standing(Some(floor), false, fsync, online).shortfall().unwrap_or_default();
        assert!(shortfall(Fsync, None, 1).contains("--assert-fsync"));
        assert!(shortfall(Replicated, Some(true), 0).contains("0 of the 1 replica(s)"));
        assert!(shortfall(ReplicatedFsync, Some(true), 1).contains("the replicas have appendfsync always"));
        assert_eq!(standing(Some(Replicated), false, Some(false), 1).shortfall(), None);
    }
}
