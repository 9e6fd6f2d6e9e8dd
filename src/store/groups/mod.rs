//! Consumer groups: create, list, seek, pause, delete. Handing out is in `next`, settling in `settle`.
//!
//! The registry, a hash in the first partition, says what groups there are, and what each is. Every partition that a
//! group reads has a copy of it, with its own cursor and leases. A copy that missed a change answers «no such group»,
//! because its generation is another one; it is then brought up to date, and asked again.

mod consumers;
mod desk;
mod next;
mod parked;
mod registry;
mod settle;
mod settled;
mod status;
mod wait;

use std::time::Instant;

use redis::Cmd;
use uuid::Uuid;

pub use next::Next;
pub use parked::{Parked, ParkedPage, Which};
pub use registry::Group;
pub(super) use registry::{Cache, REVISION};
pub use settle::Nack;
pub use status::{ConsumerStatus, GroupStatus};
pub use wait::Asked;

use crate::{
    model::{Error, Partition, StreamId},
    store::{Store, reply::Reply},
};

impl Store {
    /// The partitions that a group reads.
    pub(super) fn partitions_of(&self, group: &Group) -> Vec<Partition> {
        match &group.settings.stream {
            Some(stream) => vec![self.partition(stream)],
            None => self.partitions().all().collect(),
        }
    }

    /// A call of a group's function, with the group's keys, and behind them `events:<stream>` of these streams.
    fn group_command(
        &self,
        function: &str,
        group: &Group,
        partition: Partition,
        streams: impl IntoIterator<Item = StreamId>,
    ) -> Cmd {
        let mut keys = self.0.keys.group(partition, &group.name, group.settings.stream.as_ref());
        keys.extend(streams.into_iter().map(|stream| self.0.keys.events(partition, &stream)));
        let mut command = redis::cmd("FCALL");
        command.arg(self.0.library.function(function)).arg(keys.len()).arg(keys).arg(group.name.as_str());
        command
    }

    /// Calls a function of a group that writes. Each is harmless to repeat: what was done already is found done.
    async fn call(&self, partition: Partition, command: Cmd) -> Result<Reply, Error> {
        let mut pipeline = redis::Pipeline::with_capacity(1);
        pipeline.add_command(command);
        let mut replies = self.with_functions(partition, || self.0.connections.read(partition, &pipeline)).await?;
        replies.pop().ok_or_else(|| Error::Corrupt("a reply for each command".to_owned()))
    }

    /// Loads the functions where they are missed, and calls once more.
    pub(super) async fn with_functions<T, F: Future<Output = Result<T, Error>>>(
        &self,
        partition: Partition,
        call: impl Fn() -> F,
    ) -> Result<T, Error> {
        match call().await {
            Err(Error::FunctionMissing) => {
                self.reload(partition, Instant::now() + self.0.timeout).await?;
                call().await
            }
            answered => answered,
        }
    }
}

/// 16 hex digits that nobody had before.
fn random() -> String {
    Uuid::new_v4().simple().to_string().split_off(16)
}
