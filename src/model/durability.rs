//! What an acknowledged append survives.

use std::fmt;

use serde::Serialize;

/// What an acknowledged append survives, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Redis has it in memory; with `appendfsync everysec` about the last two seconds may be lost.
    Memory,
    /// It is on the primary's disk (`appendfsync always`): the process or the operating system there may crash.
    Fsync,
    /// Replicas have it too: the primary may fail, and a replica take its place.
    Replicated,
    /// It is on the disks of the primary and of replicas (`appendfsync always` on all of them).
    ReplicatedFsync,
}

impl Durability {
    /// All of them, in rising order.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Fsync, Self::Replicated, Self::ReplicatedFsync];

    /// The level's name, as in the `Streamkeep-Durability` header.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Fsync => "fsync",
            Self::Replicated => "replicated",
            Self::ReplicatedFsync => "replicated-fsync",
        }
    }

    /// The level of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == text)
    }

    /// Whether replicas must have the append.
    #[must_use]
    pub fn is_replicated(self) -> bool {
        self >= Self::Replicated
    }

    /// Whether every node that must have the append must have it on disk.
    #[must_use]
    pub fn is_synced(self) -> bool {
        matches!(self, Self::Fsync | Self::ReplicatedFsync)
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}
