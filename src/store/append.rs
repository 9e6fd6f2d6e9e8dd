//! Appending events.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::{
    model::{Condition, Durability, Error, Event, NewEvent, Partition, Position, Retry, StreamId, Version},
    store::{
        StartError, Store,
        append_call::{Answer, AppendCall},
        connections::Pauses,
        errors,
        writers::{Answered, NoReply},
    },
};

/// How much older than the call an event may seem, by Redis' clock, and still be that of the call. More would make a
/// busy stream's events of that time too many to look through.
const CLOCK_SLACK: Duration = Duration::from_secs(10);

/// Where the events of a request are in their stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Version of the first.
    pub first_version: Version,
    /// Version of the last.
    pub version: Version,
    /// Position of the last in the log of its partition.
    pub position: Position,
    /// They were there already, from an earlier request with the same ids.
    pub duplicate: bool,
    /// What they survive.
    pub durability: Durability,
}

struct Append<'a> {
    partition: Partition,
    stream: &'a StreamId,
    condition: String,
    retry: &'a Retry,
    events: &'a [NewEvent<'a>],
}

impl Append<'_> {
    /// Its events, as they were added at this time.
    fn stored(&self, appended: &Appended, time: u64) -> impl Iterator<Item = Event> {
        let Appended { first_version, position, .. } = *appended;
        let first = position.minus(self.events.len() as u64).plus(1);
        (0..)
            .zip(self.events)
            .map(move |(step, event)| event.stored(self.stream, first_version.plus(step), first.plus(step), time))
    }
}

impl Store {
    /// Appends events, all or none, if the condition holds. `asked` may raise the level of durability that every append
    /// reaches.
    ///
    /// The call is sent once. Where its reply was lost, it is repeated as a question that cannot add anything twice:
    /// by the ids in the index, or, where the service made them, by looking back for the first. The lost call may also
    /// arrive after its repeat, from the buffer of a connection that only this side gave up, and adds nothing then.
    ///
    /// # Errors
    /// After [`Error::OutcomeUnknown`] the events are there, whole, or not at all; after
    /// [`Error::DurabilityUnconfirmed`] they are there; after any other, not.
    pub async fn append(
        &self,
        partition: Partition,
        stream: &StreamId,
        condition: &Condition,
        retry: &Retry,
        events: &[NewEvent<'_>],
        asked: Option<Durability>,
    ) -> Result<Appended, Error> {
        let append = Append { partition, stream, condition: condition_text(condition), retry, events };
        let bytes = events.iter().map(|event| event.bytes() + 256).sum();
        let began = Instant::now();
        let deadline = began + self.0.timeout;
        let (mut lost, mut pauses) = (false, Pauses::until(deadline));
        let tail = &self.0.tails[usize::from(partition.get())];
        let followed = tail.session(bytes);
        loop {
            let again = lost.then(|| began.elapsed() + CLOCK_SLACK);
            let primary = self.0.connections.primary(partition);
            let plan = match primary.standing.load().plan(asked) {
                Ok(plan) => plan,
                // Nothing was written by this call; what became of the lost one is open.
                Err(error) => return Err(if lost { Error::OutcomeUnknown } else { error }),
            };
            let writers = if plan.wait { &primary.waiting_writers } else { &primary.writers };
            let error = match writers.call(self.append_call(&append, again, bytes), deadline).await {
                Ok(Answered { answer: Answer::Refused(reply), .. }) => match errors::from_reply(&reply) {
                    Error::FunctionMissing => match self.reload(partition, deadline).await {
                        Ok(()) => continue,
                        Err(error) => error,
                    },
                    error @ Error::Unavailable(_) => {
                        self.0.connections.failed(partition, &reply.into(), &primary);
                        error
                    }
                    error => error,
                },
                Ok(Answered { answer: Answer::Strange(reply), .. }) => Error::Corrupt(format!("es_append: {reply:?}")),
                Ok(Answered { answer: Answer::Line(line), confirmed }) => match appended(&line, plan.reached) {
                    Ok((appended, added)) if confirmed => {
                        if let (Some(session), Some(time)) = (followed, added) {
                            tail.offer(session, append.stored(&appended, time));
                        }
                        return Ok(appended);
                    }
                    Ok((Appended { first_version, version, .. }, _)) => {
                        primary.server.look_again();
                        return Err(Error::DurabilityUnconfirmed { first_version, version });
                    }
                    Err(error) => error,
                },
                Err(NoReply::Lost) => {
                    lost = true;
                    if Instant::now() < deadline {
                        continue;
                    }
                    Error::OutcomeUnknown
                }
                Err(NoReply::NotSent) => Error::Unavailable("cannot be reached".to_owned()),
                Err(NoReply::QueueFull) => Error::Overloaded,
            };
            // Nothing was done: another server may take it, or the same one a moment later.
            if matches!(error, Error::Unavailable(_)) && pauses.pause().await {
                continue;
            }
            // Nothing was written by this call; what became of the lost one may still be open.
            return Err(if lost && !is_verdict(&error, condition) { Error::OutcomeUnknown } else { error });
        }
    }

    fn append_call(&self, append: &Append<'_>, again: Option<Duration>, bytes: usize) -> AppendCall {
        let Append { partition, stream, condition, retry, events } = append;
        let index = match retry {
            Retry::ByService => Vec::new(),
            Retry::ById => b"1".to_vec(),
            Retry::ByKey(one_more) => one_more.index_key(),
        };
        let keys = &self.0.keys;
        let keys = [
            keys.log(*partition),
            keys.events(*partition, stream),
            keys.ids(*partition, stream),
            keys.stream(*partition, stream),
        ];
        let mut call = AppendCall::new(*partition, &keys, bytes);
        call.arg(itoa::Buffer::new().format(events.len()))
            .arg(condition)
            .arg(index)
            .arg(again.map(|age| age.as_millis().to_string()).unwrap_or_default())
            .arg(stream.as_str());
        for event in *events {
            call.arg(event.id.as_str())
                .arg(event.id.index_key())
                .arg(event.kind.as_bytes())
                .arg(event.data.get())
                .arg(event.metadata.as_bytes());
        }
        call
    }

    /// Loads the functions again: Redis came back empty, or somebody flushed them.
    pub(super) async fn reload(&self, partition: Partition, deadline: Instant) -> Result<(), Error> {
        let primary = self.0.connections.primary(partition);
        warn!(primary = primary.name(), "the functions are not loaded; loading them again");
        let load = async {
            let mut redis = primary.exclusive().await?;
            Ok::<_, StartError>(self.0.library.load(&mut redis).await?)
        };
        match tokio::time::timeout_at(deadline.into(), load).await {
            Ok(loaded) => loaded.map_err(|error| Error::Unavailable(error.to_string())),
            Err(_) => Err(Error::Unavailable("no answer in time".to_owned())),
        }
    }
}

/// Whether an error of the repeat also says what became of the first call: the function looked for its events before
/// it judged the condition, and should the first call still arrive, it will be judged the same.
fn is_verdict(error: &Error, condition: &Condition) -> bool {
    match error {
        Error::WrongVersion { current } => !condition.can_hold_after(*current),
        Error::StreamDeleted | Error::EventIdReused { .. } | Error::DuplicateEventId { .. } | Error::OutcomeUnknown => {
            true
        }
        _ => false,
    }
}

fn condition_text(condition: &Condition) -> String {
    match condition {
        Condition::Any => String::new(),
        Condition::NoStream => "none".to_owned(),
        Condition::Exists => "exists".to_owned(),
        Condition::OneOf(versions) => {
            let (mut text, mut number) = (String::new(), itoa::Buffer::new());
            for version in versions {
                if !text.is_empty() {
                    text.push(',');
                }
                text.push_str(number.format(version.get()));
            }
            text
        }
    }
}

/// A line of the answer: numbers, or an error. Where the call added the events, the last number is their time.
fn appended(line: &str, durability: Durability) -> Result<(Appended, Option<u64>), Error> {
    let mut numbers = line.split(' ').map(|word| word.parse().ok());
    let mut number = || numbers.next().flatten();
    let (Some(first), Some(last), Some(position), Some(duplicate)) = (number(), number(), number(), number()) else {
        let (code, details) = line.split_once(' ').unwrap_or((line, ""));
        return Err(errors::meaning(code, details));
    };
    let appended = Appended {
        first_version: Version::new(first).unwrap_or_default(),
        version: Version::new(last).unwrap_or_default(),
        position: Position::new(position).unwrap_or_default(),
        duplicate: duplicate == 1,
        durability,
    };
    Ok((appended, number()))
}
