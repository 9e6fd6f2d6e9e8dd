//! What becomes of speed, memory and starts when a store grows: many events, in long streams and in short ones, and groups.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use streamkeep::store::Library;

use crate::{
    bench::{Arguments, Bench, start_redis},
    clients::{HttpAppend, HttpRead, PAGE, append_reply, call_append},
    closed::{BATCH, STREAMS},
    feeds::count,
    groups::HttpGroup,
    load::{self, Client, Turn},
    process,
    report::{durability, heading, line},
    rows::{CROWD, Target},
    streams::Streams,
};

/// Events of a store; those above `--events` are left out.
const SIZES: [usize; 3] = [10_000, 1_000_000, 10_000_000];
/// Events of a stream.
const LENGTHS: [usize; 2] = [1_000, 10];
const GROUPS: [usize; 3] = [0, 10, 100];
/// The category of the streams.
const PREFIX: &str = "grow";
/// Calls in a pipeline of the fill.
const PIPELINE: usize = 50;

/// Measures and prints stores of all sizes, each on a Redis of its own.
pub async fn run(arguments: &Arguments) {
    heading(&format!(
        "Growth, appends of one event and reads of up to {PAGE} over {CROWD} connections: {}",
        durability(arguments.fsync)
    ));
    line(
        "| events   | a stream | groups | append/s | read events/s | redis MiB | bytes an event | bytes a stream | service MiB | service starts ms | redis starts again s |",
    );
    line("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for events in SIZES.into_iter().filter(|events| *events <= arguments.events) {
        for length in LENGTHS {
            store(arguments, events, length).await;
        }
    }
}

async fn store(arguments: &Arguments, events: usize, length: usize) {
    let bench = Bench::start(Arguments { no_peers: true, ..arguments.clone() });
    let empty = memory(&bench, "used_memory_dataset");
    let fill = Fill {
        function: Library::default().function("es_append"),
        calls: 0..events / BATCH,
        streams: events / length,
        sent: 0,
    };
    load::ask_all(&bench.target(Target::Raw).0, fill).await;
    let an_event = (memory(&bench, "used_memory_dataset") - empty) / count(events);
    let a_stream: u64 = bench.ask(redis::cmd("MEMORY").arg("USAGE").arg(format!("events:{PREFIX}-{:08}", 0)));
    let streams = Streams::new("new", STREAMS);
    let mut groups = 0;
    let mut rows = Vec::new();
    for wanted in GROUPS {
        for index in groups..wanted {
            load::ask(&bench.target(Target::Http).0, HttpGroup::create(&format!("group-{index}"), "stream")).await;
        }
        groups = wanted;
        let (address, pids) = bench.target(Target::Http);
        let duration = bench.arguments.duration();
        let appenders = streams.share_out(CROWD).map(|share| HttpAppend::new(share, 1)).collect();
        let append = load::drive(&address, appenders, duration, pids).await.rate;
        let limit = length.min(PAGE);
        let readers = (0..CROWD)
            .map(|index| HttpRead::new(&format!("{PREFIX}-{:08}", index % (events / length)), limit))
            .collect();
        let read = load::drive(&address, readers, duration, pids).await.rate;
        let began = Instant::now();
        drop(arguments.service(&bench.data, &[]));
        let starts = began.elapsed();
        let service =
            count(usize::try_from(process::memory(pids.server.unwrap_or_default())).unwrap_or_default()) / 1024.0;
        let redis = memory(&bench, "used_memory") / 1024.0 / 1024.0;
        rows.push(format!(
            "| {events:>8} | {length:>8} | {groups:>6} | {append:>8.0} | {read:>13.0} | {redis:>9.1} | {an_event:>14.0} | {a_stream:>14} | {service:>11.1} | {:>17.0} |",
            starts.as_secs_f64() * 1e3
        ));
    }
    let again = restart(bench);
    for (index, row) in rows.iter().enumerate() {
        // Once a store, with all that is in it.
        let again = if index + 1 == rows.len() { format!("{:.1}", again.as_secs_f64()) } else { String::new() };
        line(&format!("{row} {again:>20} |"));
    }
}

/// How long Redis takes to start with all its data.
fn restart(bench: Bench) -> Duration {
    let (redis, data, arguments) = bench.without_services();
    drop(redis);
    let began = Instant::now();
    let redis = start_redis(&arguments, &data);
    let took = began.elapsed();
    drop(redis);
    took
}

/// A number of `INFO memory`, in bytes.
fn memory(bench: &Bench, name: &str) -> f64 {
    let info: String = bench.ask(redis::cmd("INFO").arg("memory"));
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|value| value.parse().ok()).expect("Redis says it")
}

/// Appends batches to the streams in turns, as the service does.
struct Fill {
    function: String,
    calls: Range<usize>,
    streams: usize,
    sent: usize,
}

impl Client for Fill {
    fn request(&mut self, out: &mut Vec<u8>) {
        let before = self.calls.len();
        for call in self.calls.by_ref().take(PIPELINE) {
            let (stream, version) = (format!("{PREFIX}-{:08}", call % self.streams), call / self.streams * BATCH);
            call_append(out, &self.function, &stream, version as u64, BATCH);
        }
        self.sent = before - self.calls.len();
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        (0..self.sent).try_fold(0, |at, _| Some(at + append_reply(&input[at..])?))
    }

    fn turn(&self) -> Turn {
        if self.calls.is_empty() { Turn::Last(self.sent) } else { Turn::Over(self.sent) }
    }
}
