//! The words of the field. No input or output: whoever reads this folder knows what Streamkeep speaks about.

mod condition;
mod cursor;
mod durability;
mod error;
mod event;
mod group;
mod json;
mod stream;
mod time;

pub use condition::Condition;
pub use cursor::{Cursor, Fingerprint, Place, StreamCursor};
pub use durability::Durability;
pub use error::Error;
pub use event::{Event, EventId, NewEvent, Retry, check_type};
pub use group::{Delivery, GroupName, GroupSettings, LeaseToken, OnExhausted, Ordering, Settled, Start};
pub use json::{JsonFault, Whole, check_opaque_json, present, put_on_one_line};
pub use stream::{Category, Partition, Partitions, Position, StreamId, Version};
pub use time::{parse_rfc3339, rfc3339, write_rfc3339};
