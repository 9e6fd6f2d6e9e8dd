//! From Redis' errors to the field's words.

use redis::{RedisError, ServerError};

use crate::{
    model::{Error, Version},
    store::reply::Reply,
};

/// Why a store cannot be opened. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Redis cannot be reached, or refuses.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// No connection of the pool came free.
    #[error("Redis: {0}")]
    Pool(#[from] deadpool_redis::PoolError),
    /// Neither sentinels nor servers of a cluster say who takes writes.
    #[error("{of}: nobody says who is primary ({said})")]
    NoPrimary {
        /// Who was asked.
        of: String,
        /// What the last one said.
        said: String,
    },
    /// Sentinels name a server that takes no writes.
    #[error("the sentinels name {0}, which is no primary")]
    NotPrimary(String),
    /// A server of a cluster, which has a share of the keys only.
    #[error("{0} is one server of a cluster: use redis+cluster://{0}")]
    OfCluster(String),
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
    /// Nothing was ever stored there.
    #[error("there is no store of Streamkeep in this Redis, or it has a --namespace")]
    NoStore,
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

impl StartError {
    /// Whether it is that Redis does not answer.
    pub(super) fn is_away(&self) -> bool {
        match self {
            Self::Redis(error) | Self::Pool(deadpool_redis::PoolError::Backend(error)) => error.code().is_none(),
            Self::Pool(_) => true,
            _ => false,
        }
    }
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
        "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "NOAUTH" | "NOPERM" => {
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

/// Why a server did not carry out what another, or the same one a moment later, will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal<'a> {
    /// Another primary has the slot: which, in Redis' words.
    Moved(&'a str),
    /// It takes no writes: it has become a replica.
    Demoted,
    /// Not now: it is loading, a slot is on its way to another server, or nobody has it.
    ///
    /// ASK is among these, and not followed: while a slot is on its way, no call with several keys is carried out by
    /// either server where one of the keys is not there (TRYAGAIN), and an append has such keys nearly always.
    NotNow,
}

/// Whether one of these replies says that the server has become a replica.
pub(super) fn are_demoted(replies: &[Reply]) -> bool {
    replies.iter().filter_map(Reply::error).any(|error| refusal(&error) == Some(Refusal::Demoted))
}

/// Whether an error reply is a refusal that passes. Nothing was done then.
pub(super) fn refusal(error: &ServerError) -> Option<Refusal<'_>> {
    match error.code() {
        "MOVED" => Some(Refusal::Moved(error.details().unwrap_or_default())),
        "READONLY" | "MASTERDOWN" => Some(Refusal::Demoted),
        "LOADING" | "CLUSTERDOWN" | "TRYAGAIN" | "ASK" => Some(Refusal::NotNow),
        _ => None,
    }
}
