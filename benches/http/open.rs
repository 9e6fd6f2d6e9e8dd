//! The open loop: requests are due at a fixed rate, whatever the answers take, and a latency counts from when the request
//! was due. So one that had to wait for a connection, because others were slow, is told as slow as its user met it.
//!
//! A loop of its own over `poll`, for tokio's timers know only whole milliseconds.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::load::{Address, Client, histogram};

/// How long no answer may come.
const PATIENCE: Duration = Duration::from_secs(15);
/// Room for a reply.
const INPUT: usize = 16 * 1024;
/// The kernel may wake us so many nanoseconds late to save power; by default 50 times as many.
const TIMER_SLACK: &str = "1000";

/// What a rate gave in one round.
pub struct OpenSample {
    /// Answers a second.
    pub rate: f64,
    /// Latencies from when a request was due, in nanoseconds.
    pub latencies: Histogram<u32>,
}

trait Stream: Read + Write + AsFd {}

impl<T: Read + Write + AsFd> Stream for T {}

struct Connection {
    stream: Box<dyn Stream>,
    client: Box<dyn Client>,
    output: Vec<u8>,
    input: Vec<u8>,
    /// When the request was due whose answer is awaited.
    due: Option<Instant>,
}

/// Has `rate` requests a second sent, each over any connection that is free, for a tenth of `duration` to warm up and then
/// for all of it.
pub fn drive(address: &Address, clients: Vec<Box<dyn Client>>, rate: f64, duration: Duration) -> OpenSample {
    // Where this cannot be, requests are a little late, and told so.
    let _ = std::fs::write("/proc/self/timerslack_ns", TIMER_SLACK);
    let mut connections: Vec<_> = clients.into_iter().map(|client| Connection::new(address, client)).collect();
    let mut latencies = histogram();
    let begin = Instant::now();
    let (from, end) = (begin + duration / 10, begin + duration / 10 + duration);
    let due = |index: u32| begin + Duration::from_secs_f64(f64::from(index) / rate);
    let (mut sent, mut free): (u32, Vec<usize>) = (0, (0..connections.len()).collect());
    loop {
        while let Some(at) = free.pop_if(|_| due(sent) < end && due(sent) <= Instant::now()) {
            connections[at].send(due(sent));
            sent += 1;
        }
        let over = due(sent) >= end;
        if over && free.len() == connections.len() {
            break;
        }
        let wait = if over || free.is_empty() { PATIENCE } else { due(sent).saturating_duration_since(Instant::now()) };
        let readable = wait_for(&connections, wait);
        assert!(!readable.is_empty() || wait < PATIENCE, "an answer comes");
        for at in readable {
            let Some(was_due) = connections[at].receive() else { continue };
            free.push(at);
            if was_due >= from {
                let took = u64::try_from(was_due.elapsed().as_nanos()).unwrap_or(u64::MAX);
                latencies.saturating_record(took);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a count is far below 2^52")]
    let rate = latencies.len() as f64 / from.elapsed().as_secs_f64();
    OpenSample { rate, latencies }
}

/// The connections that have something to be read, after at most this time.
fn wait_for(connections: &[Connection], at_most: Duration) -> Vec<usize> {
    let mut polled: Vec<_> = connections.iter().map(|one| PollFd::new(&one.stream, PollFlags::IN)).collect();
    let at_most = Timespec::try_from(at_most).expect("a short time");
    if let Err(error) = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&at_most))) {
        panic!("{error}");
    }
    polled.iter().enumerate().filter(|(_, one)| !one.revents().is_empty()).map(|(at, _)| at).collect()
}

impl Connection {
    fn new(address: &Address, client: Box<dyn Client>) -> Self {
        let stream: Box<dyn Stream> = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).expect("connections are accepted");
                stream.set_nodelay(true).expect("TCP has this option");
                Box::new(stream)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).expect("connections are accepted")),
        };
        Self { stream, client, output: Vec::new(), input: Vec::with_capacity(INPUT), due: None }
    }

    fn send(&mut self, due: Instant) {
        self.output.clear();
        self.client.request(&mut self.output);
        self.stream.write_all(&self.output).expect("the connection stays open");
        self.input.clear();
        self.due = Some(due);
    }

    /// Reads once; when the answer is all there, says when its request was due.
    fn receive(&mut self) -> Option<Instant> {
        let mut room = [0; INPUT];
        let count = self.stream.read(&mut room).unwrap_or_else(|error: io::Error| panic!("{error}"));
        assert!(count > 0, "the connection was closed");
        self.input.extend_from_slice(&room[..count]);
        self.client.reply(&self.input)?;
        self.due.take()
    }
}
