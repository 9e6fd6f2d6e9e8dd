//! Everything that can go wrong with a good request, in the field's words. What it means in HTTP is said in one
//! place, `http/problem.rs`.

use super::{Durability, Position, Version};

/// Why the store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stream stands at another version than expected; nothing was written.
    #[error("the stream is at version {current}")]
    WrongVersion {
        /// The stream's version.
        current: Version,
    },
    /// No event was ever appended to the stream.
    #[error("there is no such stream")]
    StreamNotFound,
    /// The stream has no such event.
    #[error("there is no such event")]
    EventNotFound,
    /// The stream was deleted for ever.
    #[error("the stream was deleted")]
    StreamDeleted,
    /// The id of the event at `index` of the request stands in the stream with another type or other data.
    #[error("the id of event {index} is that of another event")]
    EventIdReused {
        /// Index in the request, from 0.
        index: usize,
    },
    /// Some ids of the request are in the stream already (that at `index` is one), others are not, or in another order.
    #[error("event {index} is in the stream already, others of the request are not")]
    DuplicateEventId {
        /// Index in the request, from 0.
        index: usize,
    },
    /// A cursor names an event that is not, or no longer, at its place.
    #[error("the store's history is not the one that the cursor was taken from")]
    HistoryDiverged {
        /// The newest position of the cursor's partition.
        head: Position,
    },
    /// There is no such consumer group.
    #[error("there is no such group")]
    GroupNotFound,
    /// The group exists with another fixed setting.
    #[error("the group has another {setting}")]
    GroupExists {
        /// The setting that differs.
        setting: String,
    },
    /// The call was sent, and no answer came: the append is whole or absent.
    #[error("the outcome is unknown")]
    OutcomeUnknown,
    /// The events are in the stream, but fewer replicas have them, as far as is known, than the level demands.
    #[error("versions {first_version} to {version} are not confirmed by enough replicas")]
    DurabilityUnconfirmed {
        /// Version of the first event.
        first_version: Version,
        /// Version of the last.
        version: Version,
    },
    /// The deployment cannot give the level just now; nothing was written.
    #[error("the level {0} cannot be reached just now")]
    DurabilityUnavailable(Durability),
    /// The deployment does not give the level that was asked for; nothing was written.
    #[error("this deployment does not give the level {0}")]
    DurabilityUnsupported(Durability),
    /// Redis cannot be reached, or is starting; nothing was written.
    #[error("the storage is not available: {0}")]
    Unavailable(String),
    /// Redis refuses writes (disk full, too few replicas); nothing was written.
    #[error("the storage takes no writes: {0}")]
    StorageUnavailable(String),
    /// Redis is busy with a long-running command; nothing was written.
    #[error("the storage is busy")]
    StorageBusy,
    /// Redis is at its memory limit; nothing was written.
    #[error("the storage is full")]
    StorageFull,
    /// More calls wait than the service takes on; nothing was written.
    #[error("too many calls are waiting")]
    Overloaded,
    /// The functions library is not loaded; nothing was done.
    #[error("the functions are not loaded")]
    FunctionMissing,
    /// What stands in Redis is not what Streamkeep writes.
    #[error("the stored data is not in the layout of this service: {0}")]
    Corrupt(String),
}

impl Error {
    /// Whether the same call may succeed a little later, without anybody doing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::StorageUnavailable(_)
                | Self::StorageBusy
                | Self::Overloaded
                | Self::FunctionMissing
        )
    }
}
