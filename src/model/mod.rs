//! The words of the field. No input or output: whoever reads this folder knows what Streamkeep speaks about.

mod condition;
mod cursor;
mod error;
mod event;
mod json;
mod stream;

pub use condition::Condition;
pub use cursor::{Cursor, Fingerprint, Place};
pub use error::Error;
pub use event::{Event, EventId, NewEvent, Retry, check_type};
pub use json::{JsonFault, check_opaque_json};
pub use stream::{Category, Partition, Partitions, Position, StreamId, Version};
