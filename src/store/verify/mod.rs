//! Proof that a store is sound: a walk through all of it by plain reads, in pieces that are bounded in number and bytes.
//!
//! The log and the streams are walked once each and compared entry by entry, in both directions: that they agree in
//! number follows. A service may be at work meanwhile. What an append or a call of a group changes is one step, so most
//! of what is read in one call fits together at any moment; where something seems wrong, it is looked at again, and only
//! what stays wrong is told.

mod entry;
mod group;
mod groups;
mod log;
mod streams;

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Connections, Keys, Migrations, StartError, StoreConfig, health, migrations, reply::Reply};
use crate::model::{Error, Partitions};

/// Most findings and notes that are kept; further ones are counted.
const LINES: usize = 100;
/// Log entries of a piece.
const PIECE: usize = 250;
/// Bytes of events that one call may bring, roughly.
const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// How often is looked again before something is told, and after what pause.
const AGAIN: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);

/// What a walk found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong, a line each; the first 100.
    pub findings: Vec<String>,
    /// How many things are wrong.
    pub wrong: u64,
    /// What is worth knowing, and not wrong.
    pub notes: Vec<String>,
    /// Entries of the logs.
    pub pointers: u64,
    /// Entries of the logs whose event was removed, as its stream says.
    pub removed: u64,
    /// Streams.
    pub streams: u64,
    /// Events in them.
    pub events: u64,
    /// Consumer groups.
    pub groups: u64,
}

/// Walks through a store.
pub struct Verifier {
    connections: Connections,
    keys: Keys,
    partitions: Partitions,
    report: Mutex<Report>,
    /// Told how many further events were looked at.
    looked_at: Box<dyn Fn(u64) + Send + Sync>,
    /// Bytes of the largest event so far.
    largest: AtomicUsize,
}

/// What is wrong with a part of the store.
type Lines = BTreeSet<String>;

impl Verifier {
    /// Connects, and checks version and layout. Changes nothing. `looked_at` hears how many further events were looked
    /// at, twice for each: once from the log, once in its stream.
    ///
    /// # Errors
    /// [`StartError`], in one sentence each.
    pub async fn open(config: StoreConfig, looked_at: Box<dyn Fn(u64) + Send + Sync>) -> Result<Self, StartError> {
        let (connections, keys, partitions) = (Connections::open(&config).await?, config.keys(), config.partitions);
        for (primary, _) in connections.primaries() {
            health::check_version(&primary).await?;
        }
        Migrations::default().check(&connections, &keys).await?;
        migrations::check_partitions(&connections, &keys, partitions).await?;
        let (report, largest) = (Mutex::default(), AtomicUsize::new(0));
        Ok(Self { connections, keys, partitions, report, looked_at, largest })
    }

    /// Walks through everything.
    ///
    /// # Errors
    /// Redis does not answer, or not as Redis does. What is wrong with the store is no error, but in the report.
    pub async fn verify(self) -> Result<Report, Error> {
        for partition in self.partitions.all() {
            self.walk_log(partition).await?;
        }
        self.walk_streams().await?;
        self.walk_groups().await?;
        Ok(self.report.into_inner().expect("no holder panics"))
    }

    /// Looks at a part, and where something seems wrong again. Tells what every look showed, and answers with what the
    /// last one brought.
    async fn judge<T>(&self, look: impl AsyncFn() -> Result<(Lines, T), Error>) -> Result<T, Error> {
        let (mut wrong, mut brought) = look().await?;
        for _ in 0..AGAIN {
            if wrong.is_empty() {
                return Ok(brought);
            }
            tokio::time::sleep(PAUSE).await;
            let (still, now) = look().await?;
            wrong.retain(|line| still.contains(line));
            brought = now;
        }
        self.note(|report| {
            report.wrong += wrong.len() as u64;
            report.findings.extend(wrong);
            report.findings.truncate(LINES);
        });
        Ok(brought)
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().expect("no holder panics"));
    }

    /// Tells something that is not wrong.
    fn tell(&self, line: String) {
        self.note(|report| {
            report.notes.push(line);
            report.notes.truncate(LINES);
        });
    }

    /// How many events may be fetched at once.
    fn piece(&self) -> usize {
        (PIECE_BYTES / self.largest.load(Ordering::Relaxed).max(1)).clamp(1, PIECE)
    }

    /// Takes note of how large events are.
    fn met(&self, bytes: usize) {
        self.largest.fetch_max(bytes, Ordering::Relaxed);
    }
}

/// What an error reply says; `None` for any other reply.
fn refusal(reply: Option<&Reply>) -> Option<String> {
    Some(reply?.error()?.details().unwrap_or_default().to_owned())
}
