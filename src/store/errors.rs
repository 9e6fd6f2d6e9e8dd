//! From Redis' errors to the field's words.

use redis::{RedisError, ServerError};

use crate::model::{Error, Version};

/// Why a store cannot be opened. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Redis cannot be reached, or refuses.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// No connection of the pool came free.
    #[error("Redis: {0}")]
    Pool(#[from] deadpool_redis::PoolError),
    /// Too old for Redis Functions and what stands on them.
    #[error("Redis or Valkey 7.0 or newer is needed, this one says {0}")]
    TooOld(String),
    /// The store was created with another number of partitions.
    #[error(
        "the store has {stored} partition(s), and this service was started for {asked}; the number is fixed for ever"
    )]
    Partitions {
        /// As kept in Redis.
        stored: u16,
        /// As configured.
        asked: u16,
    },
    /// A migration was changed after it had been applied.
    #[error(
        "migration {0} was applied with another text than this service has; this is not the service that made the store"
    )]
    ChangedMigration(u32),
    /// The store was made by a newer service.
    #[error("the store has migration {stored}, this service knows only up to {known}; use a newer service")]
    NewerStore {
        /// Newest applied.
        stored: u32,
        /// Newest known.
        known: u32,
    },
    /// Migrations are due, and the service was told not to run them.
    #[error("the store needs {0} migration(s) first: run `streamkeep migrate`")]
    MigrationsDue(usize),
    /// Somebody else uses the key of the log.
    #[error("the key {0} in Redis is not a log of Streamkeep; use another database, or a --namespace")]
    ForeignLog(String),
    /// What is demanded of every append cannot be reached.
    #[error("{0}")]
    Durability(String),
    /// Another instance held the lock all the time.
    #[error("another instance has been running migrations for too long; try again")]
    MigrationsLocked,
}

/// What an error reply means. `Error::Unavailable` and its kin say that nothing was written.
pub(super) fn meaning(code: &str, details: &str) -> Error {
    let index = || details.trim().parse().unwrap_or_default();
    match code {
        "WRONGVERSION" => Error::WrongVersion { current: Version::parse(details.trim()).unwrap_or_default() },
        "TOMBSTONED" => Error::StreamDeleted,
        "IDREUSED" => Error::EventIdReused { index: index() },
        "DUPLICATEID" => Error::DuplicateEventId { index: index() },
        "UNSETTLED" => Error::OutcomeUnknown,
        "NOGROUP" => Error::GroupNotFound,
        "GROUPEXISTS" => Error::GroupExists { setting: details.trim().to_owned() },
        "OOM" => Error::StorageFull,
        "BUSY" => Error::StorageBusy,
        "MISCONF" | "NOREPLICAS" => Error::StorageUnavailable(code.to_owned()),
        "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "NOAUTH" | "NOPERM" => {
            Error::Unavailable(code.to_owned())
        }
        _ if details.contains("Function not found") => Error::FunctionMissing,
        _ => Error::Corrupt(format!("{code} {details}")),
    }
}

/// What an error reply within a pipeline means.
pub(super) fn from_reply(reply: &ServerError) -> Error {
    meaning(reply.code(), reply.details().unwrap_or_default())
}

/// What the failure of a call means that wrote nothing.
pub(super) fn from_call(error: &RedisError) -> Error {
    match error.code() {
        Some(code) => meaning(code, error.detail().unwrap_or_default()),
        None => Error::Unavailable(error.to_string()),
    }
}
