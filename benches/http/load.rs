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

use crate::process;

/// Room for a reply: a page of 100 events in one read.
const INPUT: usize = 64 * 1024;

/// What one connection says and hears.
pub trait Client: Send + 'static {
    /// Writes the next request into an empty buffer.
    fn request(&mut self, out: &mut Vec<u8>);

    /// The length of the reply at the beginning of `input`, once it is all there. Panics where it is no success.
    fn reply(&mut self, input: &[u8]) -> Option<usize>;
}

/// Where to connect.
#[derive(Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What a row gave in one round.
pub struct Sample {
    /// Replies a second.
    pub rate: f64,
    /// Medians and tails, in microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Processor time for each reply, in microseconds; of the HTTP server and of Redis where the row has one.
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

/// The time in which replies count.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
}

/// Drives all clients for `duration`, after a tenth of it for warming up.
pub async fn drive<C: Client>(address: &Address, clients: Vec<C>, duration: Duration, pids: Pids) -> Sample {
    let mut connections = Vec::with_capacity(clients.len());
    for client in clients {
        connections.push((connect(address).await, client));
    }
    let from = Instant::now() + duration / 10;
    let window = Window { from, until: from + duration };
    let histogram = Histogram::<u32>::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are good");
    let histogram = Arc::new(Mutex::new(histogram));
    let mut tasks = JoinSet::new();
    for (stream, client) in connections {
        tasks.spawn(converse(stream, client, window, Arc::clone(&histogram)));
    }
    tokio::time::sleep_until(from.into()).await;
    let before = pids.cpu();
    tokio::time::sleep_until(window.until.into()).await;
    let after = pids.cpu();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a connection failed");
    }

    let histogram = histogram.lock().expect("no holder panics");
    #[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds are far below 2^52")]
    let (count, us) = (histogram.len() as f64, |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0);
    let spent = |index: usize| Some(after[index]?.saturating_sub(before[index]?).as_secs_f64() * 1e6 / count);
    Sample {
        rate: count / duration.as_secs_f64(),
        p50: us(0.5),
        p99: us(0.99),
        server_cpu: spent(0),
        redis_cpu: spent(1),
        generator_cpu: spent(2).unwrap_or_default(),
    }
}

/// Sends one request.
pub async fn ask(address: &Address, mut client: impl Client) {
    let mut stream = connect(address).await;
    exchange(&mut stream, &mut client, &mut Vec::new(), &mut Vec::new()).await;
}

impl Pids {
    /// Processor time so far: of the server, of Redis, of this process.
    fn cpu(self) -> [Option<Duration>; 3] {
        [self.server, self.redis, Some(std::process::id())].map(|pid| pid.map(process::cpu))
    }
}

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

async fn connect(address: &Address) -> Box<dyn Connection> {
    match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await.expect("the service accepts connections");
            stream.set_nodelay(true).expect("TCP has this option");
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(UnixStream::connect(path).await.expect("Redis accepts connections")),
    }
}

async fn converse(
    mut stream: Box<dyn Connection>,
    mut client: impl Client,
    window: Window,
    histogram: Arc<Mutex<Histogram<u32>>>,
) {
    let (mut output, mut input) = (Vec::with_capacity(1024), Vec::with_capacity(INPUT));
    let mut began = Instant::now();
    while began < window.until {
        exchange(&mut stream, &mut client, &mut output, &mut input).await;
        let now = Instant::now();
        if now >= window.from && now < window.until {
            let took = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
            histogram.lock().expect("no holder panics").saturating_record(took);
        }
        began = now;
    }
}

async fn exchange(
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
