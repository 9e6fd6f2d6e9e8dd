//! `streamkeep import`
//!
//! A thread reads lines; the dispatcher parses them and hands each to the worker of its stream; the workers append
//! over HTTP. Every event has an id, so everything may be sent twice, and an import that was stopped is run again.

mod source;
mod worker;

use std::{
    collections::HashSet,
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    source::{RawLine, Source},
    worker::{Job, Shared},
};
use super::{Failure, cancel_on_signal, client::Client, progress::Progress};
use crate::config::Import;

/// Events that wait for one worker. Enough that one long stream does not hold up the others at once.
const JOBS_WAITING: usize = 64;
/// Bytes of all events that wait.
const BYTES_WAITING: usize = 64 * 1024 * 1024;

/// Why an import stopped.
pub struct Stopped {
    /// The line that it stopped at.
    pub number: u64,
    /// What is wrong.
    pub problem: String,
    /// Whether it is the line that is wrong: then somebody has to change it.
    pub line_is_wrong: bool,
}

/// Appends the events of a file.
///
/// # Errors
/// The line that it stopped at and why, how far it was, and what to do.
pub async fn import(settings: Import) -> Result<(), Failure> {
    let client = Client::new(&settings.service, Duration::from_secs(settings.retry_secs.into()))?;
    let source = Source::open(&settings.file)?;
    let interrupted = CancellationToken::new();
    cancel_on_signal(interrupted.clone())?;
    let shared = Arc::new(Shared {
        client,
        durability: settings.durability,
        stop: interrupted.child_token(),
        progress: Progress::start(source.bytes_all),
        appended: AtomicU64::new(0),
        already: AtomicU64::new(0),
    });
    let mut workers = JoinSet::new();
    let mut dispatcher = Dispatcher::new(&settings, &shared, &mut workers);
    let handed_out = dispatcher.run(source.lines()?).await;
    let (read, streams) = (dispatcher.read, dispatcher.streams.len());
    // The workers end when there is nobody left to send.
    drop(dispatcher);
    let stopped = first(workers.join_all().await.into_iter().chain([handed_out]));

    let (appended, already) = (shared.appended.load(Ordering::Relaxed), shared.already.load(Ordering::Relaxed));
    let pace = shared.progress.pace();
    // Takes the bar away, for the last worker is gone.
    drop(shared);
    let so_far = format!("{appended} appended, {already} already there");
    match stopped {
        Some(stopped) => Err(failure(&stopped, &so_far).into()),
        None if interrupted.is_cancelled() => {
            Err(format!("interrupted: {so_far}. Run it again: it goes on where it stopped.").into())
        }
        None => {
            let summary = format!("{read} events read, {so_far}, {streams} streams, {pace}");
            Ok(writeln!(io::stdout(), "{summary}")?)
        }
    }
}

/// What is wrong in the earliest line of those that something is wrong with.
fn first(results: impl Iterator<Item = Result<(), Stopped>>) -> Option<Stopped> {
    results.filter_map(Result::err).min_by_key(|stopped| stopped.number)
}

fn failure(stopped: &Stopped, so_far: &str) -> String {
    let Stopped { number, problem, line_is_wrong } = stopped;
    // Ids are made of line numbers, and later lines may have been appended: they must keep their numbers.
    let advice = if *line_is_wrong {
        "Correct the line or leave it empty, but do not take it out, and run it again"
    } else {
        "Run it again"
    };
    format!("line {number}: {problem}\nStopped: {so_far}. {advice}: it goes on where it stopped.")
}

struct Dispatcher {
    workers: Vec<mpsc::Sender<Job>>,
    room: Arc<Semaphore>,
    stop: CancellationToken,
    source: String,
    /// Events read.
    read: u64,
    /// Hashes of the streams seen: their ids would take far more memory, and this is only for counting them.
    streams: HashSet<u64>,
}

impl Dispatcher {
    fn new(settings: &Import, shared: &Arc<Shared>, tasks: &mut JoinSet<Result<(), Stopped>>) -> Self {
        let mut start = || {
            let (sender, jobs) = mpsc::channel(JOBS_WAITING);
            tasks.spawn(worker::work(Arc::clone(shared), jobs));
            sender
        };
        Self {
            workers: (0..settings.concurrency).map(|_| start()).collect(),
            room: Arc::new(Semaphore::new(BYTES_WAITING)),
            stop: shared.stop.clone(),
            source: settings.source.clone(),
            read: 0,
            streams: HashSet::new(),
        }
    }

    /// Hands out lines until there are no more, one is bad, or the import stops.
    async fn run(&mut self, mut lines: mpsc::Receiver<Result<RawLine, Stopped>>) -> Result<(), Stopped> {
        let stop = self.stop.clone();
        while let Some(Some(line)) = stop.run_until_cancelled(lines.recv()).await {
            let line = line?;
            let number = line.number;
            match stop.run_until_cancelled(self.dispatch(line)).await {
                Some(Ok(())) => {}
                Some(Err(problem)) => return Err(Stopped { number, problem, line_is_wrong: true }),
                None => break,
            }
        }
        Ok(())
    }

    /// Hands a line to the worker of its stream, as soon as there is room.
    async fn dispatch(&mut self, line: RawLine) -> Result<(), String> {
        let RawLine { number, text, offset } = line;
        let (stream, body) = worker::parse(&self.source, number, &text)?;
        drop(text);
        self.read += 1;
        let hash = worker::hash(&stream);
        self.streams.insert(hash);
        let bytes = u32::try_from(body.len().min(BYTES_WAITING)).expect("64 MiB is a u32");
        let room = Arc::clone(&self.room).acquire_many_owned(bytes).await.expect("the semaphore is never closed");
        let worker = hash % u64::try_from(self.workers.len()).expect("a length is a u64");
        let worker = &self.workers[usize::try_from(worker).expect("less than a length")];
        // A worker is gone only where the import stops, and then it says why.
        let _ = worker.send(Job { number, offset, stream, body, room }).await;
        Ok(())
    }
}
