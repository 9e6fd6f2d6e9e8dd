//! A closed loop of little cost: each connection sends a request of ready bytes, waits for the reply, sends the next.
//! One thread, so that the generator takes as little as possible of what the measured processes need.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::process;

/// Room for a reply: a page of 100 events in one read.
const INPUT: usize = 64 * 1024;

/// What one connection says and hears.
pub trait Client: Send + 'static {
    /// Writes the next request behind what is there.
    fn request(&mut self, out: &mut Vec<u8>);

    /// The length of the reply at the beginning of `input`, once it is all there. Panics where it is no success.
    fn reply(&mut self, input: &[u8]) -> Option<usize>;

    /// What the last reply means.
    fn turn(&self) -> Turn {
        Turn::Over(1)
    }
}

impl Client for Box<dyn Client> {
    fn request(&mut self, out: &mut Vec<u8>) {
        (**self).request(out);
    }

    fn reply(&mut self, input: &[u8]) -> Option<usize> {
        (**self).reply(input)
    }

    fn turn(&self) -> Turn {
        (**self).turn()
    }
}

/// A turn is one request with its reply, or several that belong together: its latency is noted, its events are counted.
pub enum Turn {
    /// It takes another request.
    GoesOn,
    /// It is over, and was about so many events.
    Over(usize),
    /// The same, and there is nothing left to ask for: the row ends.
    Last(usize),
}

/// Where to connect.
#[derive(Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What a row gave in one round.
pub struct Sample {
    /// Events a second.
    pub rate: f64,
    /// Medians and tails of turns, in microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Processor time for each event, in microseconds; of the HTTP server and of Redis where the row has one.
    pub server_cpu: Option<f64>,
    pub redis_cpu: Option<f64>,
    pub generator_cpu: f64,
}

/// The processes that a row keeps busy.
#[derive(Clone, Copy)]
pub struct Pids {
    pub server: Option<u32>,
    pub redis: Option<u32>,
}

/// What the connections of a row share: turns count from `from` until it is stopped.
#[derive(Clone)]
struct Window {
    from: Instant,
    stop: CancellationToken,
    counted: Arc<Mutex<Counted>>,
}

/// Latencies of turns, in nanoseconds, and events.
struct Counted {
    turns: Histogram<u32>,
    events: usize,
}

/// Drives all clients for `duration`, or until one says that nothing is left, after a tenth of it for warming up.
pub async fn drive<C: Client>(address: &Address, clients: Vec<C>, duration: Duration, pids: Pids) -> Sample {
    let mut connections = Vec::with_capacity(clients.len());
    for client in clients {
        connections.push((connect(address).await, client));
    }
    let turns = histogram();
    let (from, stop) = (Instant::now() + duration / 10, CancellationToken::new());
    let window = Window { from, stop: stop.clone(), counted: Arc::new(Mutex::new(Counted { turns, events: 0 })) };
    let mut tasks = JoinSet::new();
    for (stream, client) in connections {
        tasks.spawn(converse(stream, client, window.clone()));
    }
    tokio::time::sleep_until(from.into()).await;
    let before = pids.cpu();
    let _ = tokio::time::timeout_at((from + duration).into(), stop.cancelled()).await;
    stop.cancel();
    let (after, took) = (pids.cpu(), from.elapsed());
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a connection failed");
    }

    let Counted { turns, events } = &*window.counted.lock().expect("no holder panics");
    assert!(*events > 0, "nothing was left to be measured");
    #[expect(clippy::cast_precision_loss, reason = "a count is far below 2^52")]
    let count = *events as f64;
    let spent = |index: usize| Some(after[index]?.saturating_sub(before[index]?).as_secs_f64() * 1e6 / count);
    Sample {
        rate: count / took.as_secs_f64(),
        p50: micros(turns, 0.5),
        p99: micros(turns, 0.99),
        server_cpu: spent(0),
        redis_cpu: spent(1),
        generator_cpu: spent(2).unwrap_or_default(),
    }
}

/// Room for latencies up to a minute, in nanoseconds.
pub fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are good")
}

/// A quantile of latencies, in microseconds.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a minute are far below 2^52")]
pub fn micros(latencies: &Histogram<u32>, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile) as f64 / 1000.0
}

/// Sends one request.
pub async fn ask(address: &Address, mut client: impl Client) {
    let mut stream = connect(address).await;
    exchange(&mut stream, &mut client, &mut Vec::new(), &mut Vec::new()).await;
}

/// Sends all that a client has to say.
pub async fn ask_all(address: &Address, mut client: impl Client) {
    let (mut stream, mut output, mut input) = (connect(address).await, Vec::new(), Vec::new());
    while !matches!(client.turn(), Turn::Last(_)) {
        exchange(&mut stream, &mut client, &mut output, &mut input).await;
    }
}

impl Pids {
    /// Processor time so far: of the server, of Redis, of this process.
    pub fn cpu(self) -> [Option<Duration>; 3] {
        [self.server.map(process::cpu_of_all), self.redis.map(process::cpu), Some(process::cpu(std::process::id()))]
    }
}

/// A connection over TCP or a unix socket.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

pub async fn connect(address: &Address) -> Box<dyn Connection> {
    match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await.expect("the service accepts connections");
            stream.set_nodelay(true).expect("TCP has this option");
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(UnixStream::connect(path).await.expect("Redis accepts connections")),
    }
}

async fn converse(mut stream: Box<dyn Connection>, mut client: impl Client, window: Window) {
    let (mut output, mut input) = (Vec::with_capacity(1024), Vec::with_capacity(INPUT));
    let mut began = Instant::now();
    while !window.stop.is_cancelled() {
        exchange(&mut stream, &mut client, &mut output, &mut input).await;
        let (Turn::Over(events) | Turn::Last(events)) = client.turn() else { continue };
        let now = Instant::now();
        if now >= window.from && !window.stop.is_cancelled() {
            let took = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
            let mut counted = window.counted.lock().expect("no holder panics");
            counted.turns.saturating_record(took);
            counted.events += events;
        }
        if let Turn::Last(_) = client.turn() {
            window.stop.cancel();
        }
        began = now;
    }
}

/// Sends a request, and reads its reply into `input`.
pub async fn exchange(
    stream: &mut Box<dyn Connection>,
    client: &mut impl Client,
    output: &mut Vec<u8>,
    input: &mut Vec<u8>,
) {
    output.clear();
    client.request(output);
    stream.write_all(output).await.expect("the connection stays open");
    input.clear();
    while client.reply(input).is_none() {
        input.reserve(INPUT / 2);
        let count = stream.read_buf(input).await.expect("the connection stays open");
        assert!(count > 0, "the connection was closed");
    }
}
