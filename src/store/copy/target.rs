//! Adding to a partition of the target.

use std::iter::zip;

use redis::Pipeline;

use super::{CopyError, source::Entry};
use crate::{
    model::{Error, Partition, StreamId, Version},
    store::{Store, errors, pointers::Pointer, read::decode, reply::Reply},
};

/// Calls that add events, in their order.
#[derive(Default)]
pub struct Calls {
    commands: Pipeline,
    /// The stream of each.
    of: Vec<StreamId>,
}

impl Calls {
    /// Adds an event, or that there was one which was removed.
    pub fn add(&mut self, to: &Store, partition: Partition, entry: Entry) {
        let Entry { pointer: Pointer { stream, version, kind, .. }, event, kept } = entry;
        let keys = &to.0.keys;
        let mut call = redis::cmd("FCALL");
        call.arg(to.0.library.function("es_copy")).arg(3);
        call.arg(keys.events(partition, &stream)).arg(keys.log(partition)).arg(keys.ids(partition, &stream));
        call.arg(version.get());
        match event {
            Some(event) => {
                call.arg(event.timestamp_ms).arg(kept.unwrap_or_default()).arg(stream.as_str());
                call.arg(&*event.id).arg(&*event.kind).arg(&*event.data).arg(&*event.metadata)
            }
            None => call.arg(0).arg("").arg(stream.as_str()).arg("").arg(kind).arg("").arg(""),
        };
        self.commands.add_command(call);
        self.of.push(stream);
    }

    /// Carries them out. Answers with how many events were not there yet.
    ///
    /// # Errors
    /// [`CopyError`]
    pub async fn send(&self, to: &Store, partition: Partition) -> Result<u64, CopyError> {
        if self.of.is_empty() {
            return Ok(0);
        }
        let ask = || async {
            let replies = to.0.connections.ask(partition, &self.commands).await?;
            if replies.iter().any(misses_function) { Err(Error::FunctionMissing) } else { Ok(replies) }
        };
        let replies = to.with_functions(partition, ask).await.map_err(CopyError::Target)?;
        let mut added = 0;
        for (reply, stream) in zip(replies, &self.of) {
            added += match reply.error() {
                Some(error) => {
                    let stream = stream.clone();
                    let version = error.details().and_then(|text| Version::parse(text.trim())).unwrap_or_default();
                    return Err(match error.code() {
                        "OTHEREVENT" => CopyError::OtherEvent { stream, version },
                        "GAP" => CopyError::Gap { stream, version },
                        _ => CopyError::Target(errors::from_reply(&error)),
                    });
                }
                None => decode::<u64>(Some(reply)).map_err(CopyError::Target)?,
            };
        }
        Ok(added)
    }
}

fn misses_function(reply: &Reply) -> bool {
    reply.error().is_some_and(|error| errors::from_reply(&error) == Error::FunctionMissing)
}
