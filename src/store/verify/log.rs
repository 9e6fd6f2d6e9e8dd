//! The log: positions without a gap, each the place of one event.

use redis::Pipeline;

use super::{Lines, PIECE, Verifier, refusal};
use crate::{
    model::{Error, Event, Partition},
    store::{
        pointers::{self, Entries, Pointer},
        read::{bytes_of, decode, entries, entry_number},
    },
};

/// A piece of the log, as far as it was looked at.
#[derive(Default)]
struct Piece {
    /// Id of its last entry; `None` where there was none.
    last: Option<String>,
    looked_at: u64,
    removed: u64,
    /// The first position, where the entry before it is not there.
    begins: Option<u64>,
}

impl Verifier {
    pub(super) async fn walk_log(&self, partition: Partition) -> Result<(), Error> {
        self.judge(async || self.look_at_end(partition).await).await?;
        let mut after = None;
        loop {
            let piece = self.judge(async || self.look_at_log(partition, after.as_deref()).await).await?;
            if let Some(begins) = piece.begins.filter(|begins| *begins > 1) {
                self.tell(format!(
                    "the log of partition {} begins at position {begins}: it was trimmed",
                    partition.get()
                ));
            }
            self.note(|report| {
                report.pointers += piece.looked_at;
                report.removed += piece.removed;
            });
            (self.looked_at)(piece.looked_at);
            if piece.last.is_none() {
                return Ok(());
            }
            after = piece.last;
        }
    }

    /// That no entry is missing at the end.
    async fn look_at_end(&self, partition: Partition) -> Result<(Lines, ()), Error> {
        let mut wrong = Lines::new();
        let Some(info) = self.stream_info(partition, &self.keys.log(partition)).await? else { return Ok((wrong, ())) };
        let (given, last) = (info.last_given, info.last);
        if last.as_ref().is_some_and(|last| *last != given) {
            let last = last.unwrap_or_default();
            wrong.insert(format!("log of partition {}: ends at {last}, but {given} was written", partition.get()));
        }
        Ok((wrong, ()))
    }

    /// Looks at the entries behind the id `after`, which is read too: should it be gone, the log was trimmed meanwhile.
    async fn look_at_log(&self, partition: Partition, after: Option<&str>) -> Result<(Lines, Piece), Error> {
        let (mut wrong, mut piece) = (Lines::new(), Piece::default());
        let mut commands = Pipeline::with_capacity(1);
        let from = after.unwrap_or("-");
        commands.cmd("XRANGE").arg(self.keys.log(partition)).arg(from).arg("+").arg("COUNT").arg(PIECE + 1);
        let replies = self.connections.ask(partition, &commands).await?;
        if refusal(replies.first()).is_some() {
            wrong.insert(format!("the log of partition {} is no stream", partition.get()));
            return Ok((wrong, piece));
        }
        let mut entries: Entries = decode(replies.into_iter().next())?;
        let mut previous = None;
        if after.is_some() && entries.first().map(|(id, _)| id.as_str()) == after {
            previous = entry_number(&entries.remove(0).0);
        }
        piece.last = entries.last().map(|(id, _)| id.clone());
        piece.looked_at = entries.len() as u64;
        let mut good = Vec::with_capacity(entries.len());
        for (id, fields) in entries {
            if let Some(position) = entry_number(&id) {
                match previous {
                    Some(previous) if position > previous + 1 => {
                        wrong.insert(gap(partition, previous + 1, position - 1));
                    }
                    None => piece.begins = piece.begins.or(Some(position)),
                    Some(_) => {}
                }
                previous = Some(position);
            }
            match pointers::pointers(vec![(id.clone(), fields)]) {
                Ok(pointer) => good.extend(pointer),
                Err(_) => {
                    wrong.insert(format!("log of partition {}: entry {id} is none of ours", partition.get()));
                }
            }
        }
        let mut rest = good.as_slice();
        while !rest.is_empty() {
            let (some, others) = rest.split_at(self.piece().min(rest.len()));
            piece.removed += self.compare(partition, some, &mut wrong).await?;
            rest = others;
        }
        Ok((wrong, piece))
    }

    /// Compares log entries with their events. Answers with how many of those were removed.
    async fn compare(&self, partition: Partition, pointers: &[Pointer], wrong: &mut Lines) -> Result<u64, Error> {
        let mut commands = Pipeline::with_capacity(2 * pointers.len());
        for Pointer { stream, version, .. } in pointers {
            let id = format!("0-{version}");
            commands.cmd("XRANGE").arg(self.keys.events(partition, stream)).arg(&id).arg(&id);
            commands.cmd("HMGET").arg(self.keys.stream(partition, stream)).arg("removed").arg("tombstone");
        }
        let mut replies = self.connections.ask(partition, &commands).await?.into_iter();
        let mut removed = 0;
        for pointer in pointers {
            let Pointer { position, stream, version, kind } = pointer;
            let place = format!("log of partition {}: position {position}", partition.get());
            // What cannot be read is told by the walk through its stream.
            let found = entries(stream, replies.next().as_ref()).map(|mut events| events.pop());
            let facts: (Option<u64>, Option<String>) = decode(replies.next()).unwrap_or_default();
            if self.partitions.of(stream) != partition {
                wrong.insert(format!(
                    "{place} names stream {stream}, which belongs to partition {}",
                    self.partitions.of(stream).get()
                ));
            }
            match found {
                Ok(None) if facts.1.is_some() || facts.0.is_some_and(|gone| version.get() <= gone) => removed += 1,
                Ok(None) => {
                    wrong.insert(format!("{place} names {stream}@{version}, which is not there"));
                }
                Ok(Some(event)) => {
                    self.met(bytes_of([&event]));
                    let Event { position: own, kind: own_kind, .. } = &event;
                    if own != position {
                        wrong
                            .insert(format!("{place} names {stream}@{version}, which says that its position is {own}"));
                    }
                    if own_kind != kind {
                        wrong.insert(format!("{place} names {stream}@{version} as {kind}, but its type is {own_kind}"));
                    }
                }
                Err(_) => {}
            }
        }
        Ok(removed)
    }
}

fn gap(partition: Partition, from: u64, to: u64) -> String {
    let partition = partition.get();
    if from == to {
        format!("log of partition {partition}: position {from} is missing")
    } else {
        format!("log of partition {partition}: positions {from} to {to} are missing")
    }
}
