//! Load: writers that append with conditions of every kind, alone and in batches, and repeat what they may.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::record::{Condition, Identity, Operation, Outcome, Recorder};

/// How long an operation is repeated whose outcome is not known.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause before a call is repeated that the service could not carry out.
const PAUSE: Duration = Duration::from_millis(10);

/// What is done to whom.
#[derive(Clone)]
pub struct Load {
    pub recorder: Arc<Recorder>,
    /// Addresses of the instances.
    pub urls: Vec<String>,
    writers: usize,
    streams: usize,
    /// Most operations in all.
    pub operations: usize,
    /// Share of the calls whose connection is closed midway.
    pub cut: f64,
    pub seed: u64,
    /// Ends the load before that.
    pub stop: CancellationToken,
    started: Arc<AtomicUsize>,
}

impl Load {
    /// These writers on 20 streams, until stopped, none of them cut. Prints its seed, which a failed test shows.
    pub fn new(writers: usize, urls: Vec<String>) -> Self {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let (recorder, stop, started) = (Recorder::new(), CancellationToken::new(), Arc::default());
        Self { recorder, urls, writers, streams: 20, operations: usize::MAX, cut: 0.0, seed, stop, started }
    }

    /// Starts the writers. They end with the last operation, or once stopped.
    pub fn start(&self) -> JoinSet<()> {
        (0..self.writers).map(|process| self.clone().write(process)).collect()
    }

    async fn write(self, process: usize) {
        let mut rng = Rng::with_seed(self.seed.wrapping_add(u64::try_from(process).unwrap()));
        let mut first = true;
        while !self.stop.is_cancelled() {
            let number = self.started.fetch_add(1, Ordering::Relaxed);
            if number >= self.operations {
                return;
            }
            let operation = Arc::new(self.operation(&mut rng, process, number, std::mem::take(&mut first)));
            let instance = rng.usize(..self.urls.len());
            let cut = (rng.f64() < self.cut).then(|| Duration::from_micros(rng.u64(0..20_000)));
            let outcome = self.recorder.call(&self.urls[instance], &operation, cut).await;
            self.settle(&operation, instance, outcome).await;
        }
    }

    /// Repeats through the other instances what is not known.
    async fn settle(&self, operation: &Arc<Operation>, mut instance: usize, mut outcome: Outcome) {
        let until = Instant::now() + PATIENCE;
        while is_open(&outcome) && Instant::now() < until {
            if matches!(outcome, Outcome::Refused { .. }) {
                tokio::time::sleep(PAUSE).await;
            }
            if !operation.is_repeatable() {
                return;
            }
            instance = (instance + 1) % self.urls.len();
            outcome = self.recorder.call(&self.urls[instance], operation, None).await;
            if outcome == Outcome::Unknown {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn operation(&self, rng: &mut Rng, process: usize, number: usize, first: bool) -> Operation {
        let stream = if first { process % self.streams } else { rng.usize(..self.streams) };
        let stream = format!("load-{stream}");
        let condition = if first { creating(rng) } else { condition(rng, self.recorder.version(&stream)) };
        let count = if rng.bool() { 1 } else { rng.usize(2..=5) };
        let identity = match rng.u8(..4) {
            0 => Identity::Key(format!("key {number} {:x}", self.seed)),
            1 => Identity::Ids((0..count).map(|index| id(rng, number, index)).collect()),
            _ => Identity::None,
        };
        let events = (0..count).map(|index| content(rng, process, number, index)).collect();
        Operation { number, stream, condition, identity, events }
    }
}

/// Whether nobody knows, or a repeat may do.
pub fn is_open(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Unknown | Outcome::Refused { status: 500.., .. })
}

fn creating(rng: &mut Rng) -> Condition {
    if rng.bool() { Condition::NoStream } else { Condition::OneOf(vec![0]) }
}

fn condition(rng: &mut Rng, known: u64) -> Condition {
    let stale = known.saturating_sub(rng.u64(1..=3));
    match rng.u8(..20) {
        0..8 => Condition::Any,
        8..14 => Condition::OneOf(vec![known]),
        14 => Condition::OneOf(vec![stale]),
        15 => Condition::OneOf(vec![known, stale]),
        16 => Condition::OneOf((known..known + 20).collect()),
        17 | 18 => Condition::Exists,
        _ => creating(rng),
    }
}

/// A UUID or some other text.
fn id(rng: &mut Rng, number: usize, index: usize) -> String {
    if rng.bool() { Uuid::from_u128(rng.u128(..)).to_string() } else { format!("id {number}/{index}") }
}

/// Bytes that a service would change that reads them: spaces, zeros at the end of a number, a name twice.
fn content(rng: &mut Rng, process: usize, number: usize, index: usize) -> String {
    let filler = "x".repeat(rng.usize(..200));
    let data =
        format!(r#"{{ "operation":{number}, "event":{index}, "sum":0.{number}0, "a":"{filler}", "a":"\u00e4ä" }}"#);
    let metadata = if rng.bool() { format!(r#"{{"by" : "process {process}"}}"#) } else { "{}".to_owned() };
    format!("type-{}\n{data}\n{metadata}", rng.u8(..5))
}
