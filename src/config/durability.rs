//! Settings of durability.

use clap::Args;

use crate::{model::Durability, store::DurabilityConfig};

/// What appends must survive.
#[derive(Args, Clone, Copy, Debug)]
pub struct DurabilityArgs {
    /// What every append must survive: memory, fsync, replicated or replicated-fsync; without it, the most that Redis and
    /// its replicas give. If it cannot be reached the service does not start; later, appends are answered 503
    #[arg(long, env = "STREAMKEEP_DURABILITY", value_name = "LEVEL", value_parser = parse_level)]
    pub durability: Option<Durability>,

    /// How many replicas must confirm an append that is to be replicated
    #[arg(long, env = "STREAMKEEP_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub replicas: u16,

    /// Believe that appendfsync is always where that cannot be seen: on replicas, and where CONFIG is closed
    #[arg(long, env = "STREAMKEEP_ASSERT_FSYNC")]
    pub assert_fsync: bool,

    /// Believe that what Redis has answered is on several disks already, as in MemoryDB: every level is then reached
    #[arg(long, env = "STREAMKEEP_ENGINE_DURABLE")]
    pub engine_durable: bool,
}

impl DurabilityArgs {
    /// As the store takes it.
    #[must_use]
    pub fn config(self) -> DurabilityConfig {
        let Self { durability: floor, replicas, assert_fsync, engine_durable } = self;
        DurabilityConfig { floor, replicas, assert_fsync, engine_durable }
    }
}

/// Reads the name of a level.
pub(super) fn parse_level(text: &str) -> Result<Durability, String> {
    Durability::parse(text).ok_or_else(|| "memory, fsync, replicated or replicated-fsync".to_owned())
}
