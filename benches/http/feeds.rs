//! Feeds: how many may follow the log at once, what a delivery costs, how long it takes, and what it costs those who
//! append. Each measure with a service of its own, so that memory is told of one that has done nothing else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::task::{AbortHandle, JoinSet};

use crate::{
    bench::Bench,
    clients::HttpAppend,
    feed_tables::{Appends, FanOut, Latency, Row, Tables},
    followers::{Arrival, Followed, Followers},
    load::{self, Address, Client, Pids},
    process::{self, Server},
    rows::{Target, in_turn},
    streams::Streams,
    wire::{command, resp_replies},
};

/// Followers, and appends a second, in rows of several rounds; those without followers are what the others compare to.
const FAN_OUT: [(usize, u32); 7] = [(0, 100), (1, 100), (10, 100), (100, 100), (1_000, 100), (0, 1_000), (100, 1_000)];
/// Appends a second while as many follow as can.
pub const CROWD_RATE: u32 = 10;
/// Appends a second where latencies are compared.
const LATENCY_RATE: u32 = 1_000;
/// Followers beside those who append as fast as they can: of all that these append, or of a category that gets so many
/// events a second meanwhile.
const APPEND_FOLLOWERS: [(usize, u32); 5] = [(0, 0), (10, 0), (100, 0), (0, 1_000), (100, 1_000)];
/// How many connections append.
const APPEND_CONNECTIONS: usize = 8;
/// Connections of an open loop: each may take so many appends a second.
const RATE_OF_CONNECTION: u32 = 125;
/// Files that the generator and the service need beside those of the followers.
const FILES: usize = 500;
/// Streams that are appended to.
const STREAMS: usize = 1_000;
/// The category that is followed by itself.
const CATEGORY: &str = "tick";
/// Followers before anything is measured.
const WARM_UP: usize = 4;
/// How long a service may take until it has nothing to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is measured, and on what.
pub struct Feeds<'a> {
    bench: &'a Bench,
    services: Vec<(Target, Server)>,
    streams: Arc<Streams>,
    category: Arc<Streams>,
    followers: usize,
}

impl<'a> Feeds<'a> {
    /// Starts the services.
    pub fn start(bench: &'a Bench) -> Self {
        let files = process::raise_descriptor_limit();
        let followers = bench.arguments.followers.min(files.saturating_sub(FILES));
        let room =
            [format!("--connections-max={}", followers + FILES), format!("--waiting-max={}", followers + FILES / 2)];
        let service = bench.arguments.service(&bench.data, &room);
        let against = bench.arguments.against(&bench.data, &room);
        let services = [(Target::Http, Some(service)), (Target::Against, against)];
        let services = services.into_iter().filter_map(|(target, server)| Some((target, server?))).collect();
        let [streams, category] = ["feed", CATEGORY].map(|prefix| Streams::new(prefix, STREAMS));
        Self { bench, services, streams, category, followers }
    }

    /// Measures all.
    pub async fn run(&self) -> Tables {
        let rounds = self.bench.arguments.rounds;
        let mut fan_out = Vec::new();
        for service in &self.services {
            self.warm_up(&service.1).await;
            let mut row = Row::new(service.0, self.followers, CROWD_RATE);
            // Once: it takes long, and has very many deliveries.
            row.samples.push(self.fan_out(&service.1, &row, 2 * self.bench.arguments.duration()).await);
            fan_out.push(row);
        }
        let mut small: Vec<_> = self.rows(&FAN_OUT.map(|(followers, rate)| (followers.min(self.followers), rate)));
        let mut latency: Vec<Row<Latency>> = self.rows(&[(1, LATENCY_RATE)]);
        let mut appends: Vec<Row<Appends>> = self.rows(&APPEND_FOLLOWERS);
        for round in 0..rounds {
            for row in in_turn(&mut small, round) {
                let sample = self.fan_out(self.service(row.target), row, self.bench.arguments.duration()).await;
                row.samples.push(sample);
            }
            for row in in_turn(&mut latency, round) {
                let sample = self.latency(self.service(row.target)).await;
                row.samples.push(sample);
            }
            for row in in_turn(&mut appends, round) {
                let sample = self.appends(self.service(row.target), row).await;
                row.samples.push(sample);
            }
        }
        fan_out.extend(small);
        Tables { wanted: self.bench.arguments.followers, fan_out, latency, appends }
    }

    fn rows<S>(&self, rows: &[(usize, u32)]) -> Vec<Row<S>> {
        let row = |(followers, rate): &(usize, u32)| {
            let (followers, rate) = (*followers, *rate);
            self.services.iter().map(move |(target, _)| Row::new(*target, followers, rate))
        };
        rows.iter().flat_map(row).collect()
    }

    fn service(&self, target: Target) -> &Server {
        let found = self.services.iter().find(|(of, _)| *of == target);
        &found.expect("rows are those of services").1
    }

    /// Has all connections to Redis opened that open when they are needed.
    async fn warm_up(&self, service: &Server) {
        let address = Address::Tcp(service.address);
        let followers = Followers::connect(&address, Followed::All, WARM_UP, false).await;
        let starts = self.append_steadily(&address, &self.streams, LATENCY_RATE, Duration::from_millis(100)).await;
        assert_eq!(followers.all_given(starts.len()).await, 0, "followers see all");
    }

    async fn fan_out(&self, service: &Server, row: &Row<FanOut>, duration: Duration) -> FanOut {
        quiet(service.pid()).await;
        let (idle, connections) = (process::memory(service.pid()), self.redis_connections());
        let address = Address::Tcp(service.address);
        let followers = Followers::connect(&address, Followed::All, row.followers, true).await;
        quiet(service.pid()).await;
        let followed = process::memory(service.pid());
        let (cpu, from) = (self.cpu(service), self.head());
        let appending = Instant::now();
        let starts = self.append_steadily(&address, &self.streams, row.rate, duration).await;
        let took = appending.elapsed();
        let during = self.redis_connections();
        let events = usize::try_from(self.head() - from).expect("a count is not that large");
        assert_eq!(events, starts.len(), "nobody else appends");
        let missing = followers.all_given(events).await;
        let spent = self.cpu(service).into_iter().zip(cpu).map(|(after, before)| micros(after.saturating_sub(before)));
        let per_event: Vec<f64> = spent.map(|spent| spent / count(events)).collect();
        FanOut {
            rate: count(events) / took.as_secs_f64(),
            deliveries: events * row.followers,
            missing,
            latency: Latencies::of(&starts, &followers.arrivals()),
            per_event: [per_event[0], per_event[1], per_event[2]],
            connections: (connections, during),
            memory: count(usize::try_from(followed.saturating_sub(idle)).unwrap_or_default()) / count(row.followers),
        }
    }

    /// One follower beside a raw reader, who see the same events.
    async fn latency(&self, service: &Server) -> Latency {
        let address = Address::Tcp(service.address);
        quiet(service.pid()).await;
        let followers = Followers::connect(&address, Followed::All, 1, true).await;
        let redis = Address::Unix(self.bench.data.path().join("redis.sock"));
        let raw = RawTail::start(&redis, self.head()).await;
        let starts = self.append_steadily(&address, &self.streams, LATENCY_RATE, self.bench.arguments.duration()).await;
        let missing = followers.all_given(starts.len()).await;
        assert_eq!(missing, 0, "a follower sees all");
        let seen = raw.seen.lock().expect("no holder panics").clone();
        raw.task.abort();
        Latency { own: Latencies::of(&starts, &followers.arrivals()), raw: Latencies::of(&starts, &seen) }
    }

    /// Those who append as fast as they can, while so many follow.
    async fn appends(&self, service: &Server, row: &Row<Appends>) -> Appends {
        let (address, duration) = (Address::Tcp(service.address), self.bench.arguments.duration());
        let followed = if row.rate > 0 { Followed::Category(CATEGORY) } else { Followed::All };
        quiet(service.pid()).await;
        let followers = Followers::connect(&address, followed, row.followers, false).await;
        let from = self.head();
        let pids = Pids { server: Some(service.pid()), redis: self.bench.redis.pid() };
        let clients = self.streams.share_out(APPEND_CONNECTIONS).map(|share| HttpAppend::new(share, 1)).collect();
        let load = load::drive(&address, clients, duration, pids);
        let (load, steady) = if row.rate > 0 {
            tokio::join!(load, self.append_steadily(&address, &self.category, row.rate, duration))
        } else {
            (load.await, Vec::new())
        };
        let (ended, all) = (Instant::now(), usize::try_from(self.head() - from).expect("not that large"));
        let events = if row.rate > 0 { steady.len() } else { all };
        let missing = followers.all_given(events).await;
        Appends { load, behind: ended.elapsed(), deliveries: events * followers.count(), missing }
    }

    /// An open loop: appends at a fixed rate, whatever the answers take. Says when each was sent.
    async fn append_steadily(
        &self,
        address: &Address,
        streams: &Arc<Streams>,
        rate: u32,
        duration: Duration,
    ) -> Vec<Arrival> {
        let connections = rate.div_ceil(RATE_OF_CONNECTION);
        let step = Duration::from_secs(1) * connections / rate;
        let from = Instant::now() + Duration::from_millis(10);
        let mut tasks = JoinSet::new();
        for (index, share) in (0..connections).zip(streams.share_out(connections as usize)) {
            let address = address.clone();
            tasks.spawn(async move {
                let (mut stream, mut client) = (load::connect(&address).await, HttpAppend::new(share, 1));
                let (mut output, mut input, mut starts) = (Vec::new(), Vec::new(), Vec::new());
                let mut due = from + Duration::from_secs(1) * index / rate;
                while due < from + duration {
                    tokio::time::sleep_until(due.into()).await;
                    let start = Instant::now();
                    load::exchange(&mut stream, &mut client, &mut output, &mut input).await;
                    starts.push((position(&input), start));
                    due += step;
                }
                starts
            });
        }
        tasks.join_all().await.concat()
    }

    /// The position of the last event.
    fn head(&self) -> u64 {
        let mut command = redis::cmd("XREVRANGE");
        let entries: Vec<(String, Vec<String>)> =
            self.bench.ask(command.arg("log").arg("+").arg("-").arg("COUNT").arg(1));
        entries.first().map_or(0, |(id, _)| id["0-".len()..].parse().expect("a position"))
    }

    /// Connections to Redis but this one.
    fn redis_connections(&self) -> u64 {
        let info: String = self.bench.ask(redis::cmd("INFO").arg("clients"));
        let count = info.lines().find_map(|line| line.strip_prefix("connected_clients:"));
        count.and_then(|count| count.parse::<u64>().ok()).expect("Redis counts them") - 1
    }

    /// Processor time so far: of the service, of Redis, of this process.
    fn cpu(&self, service: &Server) -> [Duration; 3] {
        let pids = Pids { server: Some(service.pid()), redis: self.bench.redis.pid() };
        pids.cpu().map(Option::unwrap_or_default)
    }
}

/// Waits until a process has next to nothing to do.
async fn quiet(pid: u32) {
    const WINDOW: Duration = Duration::from_millis(50);
    let until = Instant::now() + PATIENCE;
    loop {
        let before = process::cpu(pid);
        tokio::time::sleep(WINDOW).await;
        if process::cpu(pid).saturating_sub(before) < WINDOW / 10 || Instant::now() > until {
            return;
        }
    }
}

/// The position in the answer to an append.
fn position(answer: &[u8]) -> u64 {
    let text = std::str::from_utf8(answer).expect("an answer is text");
    let (_, rest) = text.split_once("\"position\":").expect("an append has a position");
    rest.split(|end: char| !end.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("a number")
}

/// The median and the tail of the time from an append to its arrival, in microseconds.
#[derive(Clone, Copy)]
pub struct Latencies {
    pub p50: f64,
    pub p99: f64,
}

impl Latencies {
    fn of(starts: &[Arrival], arrivals: &[Arrival]) -> Self {
        let starts: HashMap<u64, Instant> = starts.iter().copied().collect();
        let took = |(position, when): &Arrival| Some(micros(*when - *starts.get(position)?));
        let mut took: Vec<f64> = arrivals.iter().filter_map(took).collect();
        took.sort_by(f64::total_cmp);
        let at = |of_thousand: usize| took.get(took.len() * of_thousand / 1_000).copied().unwrap_or(f64::NAN);
        Self { p50: at(500), p99: at(990) }
    }
}

/// A reader of the log without a service: it blocks in XREAD, and is told pointers to the events.
struct RawTail {
    seen: Arc<Mutex<Vec<Arrival>>>,
    task: AbortHandle,
}

impl RawTail {
    /// Reads what comes after a position.
    async fn start(address: &Address, after: u64) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut reader = RawReader { after, seen: Arc::clone(&seen) };
        let mut stream = load::connect(address).await;
        let task = tokio::spawn(async move {
            let (mut output, mut input) = (Vec::new(), Vec::new());
            loop {
                load::exchange(&mut stream, &mut reader, &mut output, &mut input).await;
            }
        });
        Self { seen, task: task.abort_handle() }
    }
}

struct RawReader {
    after: u64,
    seen: Arc<Mutex<Vec<Arrival>>>,
}

impl Client for RawReader {
    fn request(&mut self, out: &mut Vec<u8>) {
        command(out, &["XREAD", "BLOCK", "0", "STREAMS", "log", &format!("0-{}", self.after)]);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        let (length, now) = (resp_replies(input, 1)?, Instant::now());
        // Nothing else in the log begins like an id.
        let ids = input[..length].split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"0-"));
        for id in ids {
            self.after += 1;
            assert_eq!(id.trim_ascii_end(), self.after.to_string().as_bytes(), "every event once, in order");
            self.seen.lock().expect("no holder panics").push((self.after, now));
        }
        Some(length)
    }
}

/// In microseconds.
fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn count(number: usize) -> f64 {
    number as f64
}
