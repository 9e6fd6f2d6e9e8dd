//! Settling: ack, nack and extend.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::Group;
use crate::{
    model::{Error, GroupName, LeaseToken, Ordering, Partition, Settled, StreamId},
    store::{Store, read::decode},
};

/// Most events settled in one call of a function: Redis does nothing else meanwhile.
pub(super) const MOST: usize = 100;

/// How events are given back.
#[derive(Clone, Debug)]
pub struct Nack<'a> {
    action: &'static str,
    delay_ms: Option<u64>,
    reason: &'a str,
}

impl<'a> Nack<'a> {
    /// For good.
    pub(super) const SKIP: Nack<'static> = Nack { action: "skip", delay_ms: None, reason: "" };
    /// Their deliveries are used up.
    pub(super) const EXHAUSTED: Nack<'static> = Nack { action: "exhausted", delay_ms: None, reason: "" };

    /// To be handed out again after `delay_ms`, or after the group's backoff.
    #[must_use]
    pub fn retry(delay_ms: Option<u64>, reason: &'a str) -> Self {
        Self { action: "retry", delay_ms, reason }
    }

    /// To be set aside.
    #[must_use]
    pub fn park(reason: &'a str) -> Self {
        Self { action: "park", delay_ms: None, reason }
    }

    /// For good, as if acked.
    #[must_use]
    pub fn skip(reason: &'a str) -> Self {
        Self { action: "skip", delay_ms: None, reason }
    }
}

impl Store {
    /// Settles events for good.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn ack(&self, name: &GroupName, leases: &[LeaseToken]) -> Result<Vec<Settled>, Error> {
        let acks = |group: Arc<Group>, partition, leases: Arc<Vec<LeaseToken>>| async move {
            self.ack_in(&group, partition, &leases).await
        };
        self.settle(name, leases, sought(), acks).await
    }

    /// Gives events back.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn nack(&self, name: &GroupName, nack: &Nack<'_>, leases: &[LeaseToken]) -> Result<Vec<Settled>, Error> {
        let nacks = |group: Arc<Group>, partition, leases: Arc<Vec<LeaseToken>>| {
            let command = self.nack_command(&group, partition, nack, &leases);
            async move { answers(self.call(partition, command).await?, leases.len()) }
        };
        let answers = self.settle(name, leases, sought(), nacks).await?;
        if nack.action == "retry" {
            self.count_exhausted(name, leases, &answers).await;
        }
        Ok(answers)
    }

    /// Counts the retries that were to be those of a last delivery: the function parks instead.
    async fn count_exhausted(&self, name: &GroupName, leases: &[LeaseToken], answers: &[Settled]) {
        let Ok(group) = self.cached_group(name).await else { return };
        let last = |lease: &LeaseToken| lease.delivery_count() >= Some(group.settings.max_deliveries);
        let parked = leases.iter().zip(answers).filter(|(lease, settled)| **settled == Settled::Done && last(lease));
        self.metrics().exhausted(parked.count());
    }

    /// Lets leases end later: `lease_ms` from now, or as long as the group's leases last. With each that holds comes
    /// its new deadline, in ms since 1970.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn extend(
        &self,
        name: &GroupName,
        lease_ms: Option<u64>,
        leases: &[LeaseToken],
    ) -> Result<Vec<(Settled, u64)>, Error> {
        let extends = |group: Arc<Group>, partition, leases: Arc<Vec<LeaseToken>>| {
            let mut command = self.group_command("es_extend", &group, partition, []);
            command.arg(lease_ms.map(|ms| ms.to_string()).unwrap_or_default());
            let command = with_leases(command, leases.iter());
            async move {
                let (deadline, words): (u64, Value) = decode(Some(self.call(partition, command).await?))?;
                Ok(answers(words, leases.len())?.into_iter().map(|settled| (settled, deadline)).collect())
            }
        };
        self.settle(name, leases, (sought(), 0), extends).await
    }

    /// As `nack`, of one partition.
    pub(super) async fn nack_in(
        &self,
        group: &Group,
        partition: Partition,
        nack: &Nack<'_>,
        leases: &[LeaseToken],
    ) -> Result<(), Error> {
        self.call(partition, self.nack_command(group, partition, nack, leases)).await.map(drop)
    }

    fn nack_command(&self, group: &Group, partition: Partition, nack: &Nack<'_>, leases: &[LeaseToken]) -> Cmd {
        let mut command = self.group_command("es_nack", group, partition, streams(group, leases));
        command.arg(nack.action).arg(nack.delay_ms.map(|ms| ms.to_string()).unwrap_or_default()).arg(nack.reason);
        with_leases(command, leases)
    }

    /// Settles the leases of each partition in as few calls as may be, and puts the answers into the order of the leases.
    async fn settle<T: Clone, F: Future<Output = Result<Vec<T>, Error>>>(
        &self,
        name: &GroupName,
        leases: &[LeaseToken],
        sought: T,
        call: impl Fn(Arc<Group>, Partition, Arc<Vec<LeaseToken>>) -> F,
    ) -> Result<Vec<T>, Error> {
        let mut group = self.cached_group(name).await?;
        if leases.iter().any(|lease| lease.generation != group.generation) {
            // They are old, or our copy is: the group may even have been made anew, with another source or ordering.
            self.forget_group(name);
            group = self.cached_group(name).await?;
        }
        // A lease of another group may name a partition that this one does not read.
        let mut answers = vec![sought; leases.len()];
        for partition in self.partitions_of(&group) {
            let own = leases.iter().enumerate().filter(|(_, lease)| lease.partition == partition);
            let own: Vec<usize> = own.map(|(index, _)| index).collect();
            for indexes in own.chunks(MOST) {
                let of: Arc<Vec<LeaseToken>> = Arc::new(indexes.iter().map(|index| leases[*index].clone()).collect());
                let found = self.with_copy(name, partition, |group| call(group, partition, Arc::clone(&of))).await?;
                if found.len() != of.len() {
                    return Err(Error::Corrupt("an answer for each lease".to_owned()));
                }
                for (index, answer) in indexes.iter().zip(found) {
                    answers[*index] = answer;
                }
            }
        }
        Ok(answers)
    }
}

/// What a lease is that the group does not know.
fn sought() -> Settled {
    Settled::Lost("sought".to_owned())
}

/// Reads what became of `count` leases: a word for all, or one for each.
pub(super) fn answers(reply: impl Into<Value>, count: usize) -> Result<Vec<Settled>, Error> {
    match reply.into() {
        words @ Value::Array(_) => Ok(decode::<Vec<String>>(Some(words))?.into_iter().map(settled).collect()),
        word => Ok(vec![settled(decode(Some(word))?); count]),
    }
}

fn settled(word: String) -> Settled {
    match word.as_str() {
        "ok" => Settled::Done,
        "already" => Settled::Already,
        _ => Settled::Lost(word),
    }
}

/// An ordered group looks for the next event of each stream.
pub(super) fn streams<'a>(group: &Group, leases: impl IntoIterator<Item = &'a LeaseToken>) -> Vec<StreamId> {
    match group.settings.ordering {
        Ordering::Stream => leases.into_iter().filter_map(LeaseToken::stream).collect(),
        Ordering::None => Vec::new(),
    }
}

pub(super) fn with_leases<'a>(mut command: Cmd, leases: impl IntoIterator<Item = &'a LeaseToken>) -> Cmd {
    for lease in leases {
        command.arg(&lease.generation).arg(lease.position.get()).arg(&lease.text);
    }
    command
}
