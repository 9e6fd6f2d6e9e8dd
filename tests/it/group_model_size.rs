//! Consumer groups on many streams, and behind one that stands: what a call costs, and what a group keeps.
//!
//! `STREAMKEEP_MODEL_SIZE` sets the number of streams, or of events behind the one that stands; 100,000 in long runs.

use redis::aio::MultiplexedConnection;
use streamkeep::{
    model::{GroupName, GroupSettings, LeaseToken, OnExhausted, Ordering, Partition, Start},
    store::{Keys, Library, Nack, Store, Which},
};

use crate::{
    app::TestRedis,
    group_model::{open, quick_redis, variable},
};

/// Writes events as an append does, many in one call. ARGV: name of the streams, first and last number of them, version,
/// type, the position before.
const WRITE: &str = "
    for i = ARGV[2], ARGV[3] do
      local stream, position = ARGV[1] .. i, ARGV[6] + i - ARGV[2] + 1
      redis.call('XADD', 'events:' .. stream, '0-' .. ARGV[4], 'id', 'e', 'type', ARGV[5], 'data', '1', 'metadata', '{}',
        'timestamp', '1', 'version', ARGV[4], 'position', string.format('%d', position))
      redis.call('XADD', 'log', '0-' .. string.format('%d', position), 's', stream, 'v', ARGV[4], 't', ARGV[5])
    end";

/// As `WRITE`, but many versions of one stream. ARGV: stream, first and last version, type, the position before.
const WRITE_ONE: &str = "
    for i = ARGV[2], ARGV[3] do
      local version, position = string.format('%d', i), string.format('%d', ARGV[5] + i - ARGV[2] + 1)
      redis.call('XADD', 'events:' .. ARGV[1], '0-' .. version, 'id', 'e', 'type', ARGV[4], 'data', '1', 'metadata',
        '{}', 'timestamp', '1', 'version', version, 'position', position)
      redis.call('XADD', 'log', '0-' .. position, 's', ARGV[1], 'v', version, 't', ARGV[4])
    end";

struct Sized {
    store: Store,
    name: GroupName,
    redis: MultiplexedConnection,
    /// Held while the test runs.
    _server: std::sync::Arc<TestRedis>,
    written: u64,
    what: &'static str,
}

/// An event in each of many streams, behind a position of the log.
pub async fn write(redis: &mut MultiplexedConnection, name: &str, streams: u64, version: u64, before: u64) {
    for first in (1..=streams).step_by(1_000) {
        let (last, before) = (streams.min(first + 999), before + first - 1);
        let mut command = redis::cmd("EVAL");
        command.arg(WRITE).arg(0).arg(name).arg(first).arg(last).arg(version).arg("placed").arg(before);
        command.exec_async(redis).await.unwrap();
    }
}

impl Sized {
    async fn start(what: &'static str) -> Self {
        let server = quick_redis().await;
        let store = open(&server, 1, &Library::default()).await;
        let (name, redis) = (GroupName::parse("g").unwrap(), server.connection().await);
        Self { store, name, redis, _server: server, written: 0, what }
    }

    async fn create(&self, types: &[&str]) {
        let settings = GroupSettings {
            stream: None,
            categories: vec![],
            types: types.iter().map(|kind| (*kind).to_owned()).collect(),
            start: Start::Beginning,
            ordering: Ordering::Stream,
            lease_ms: 600_000,
            max_deliveries: 3,
            backoff_ms: vec![],
            max_in_flight: 10_000,
            on_exhausted: OnExhausted::ParkStream,
        };
        assert!(self.store.put_group(&self.name, &settings).await.unwrap());
    }

    async fn write(&mut self, name: &str, streams: u64, version: u64) {
        write(&mut self.redis, name, streams, version, self.written).await;
        self.written += streams;
    }

    async fn write_one(&mut self, stream: &str, from: u64, to: u64, kind: &str) {
        for first in (from..=to).step_by(1_000) {
            let last = to.min(first + 999);
            let mut command = redis::cmd("EVAL");
            command.arg(WRITE_ONE).arg(0).arg(stream).arg(first).arg(last).arg(kind).arg(self.written);
            command.exec_async(&mut self.redis).await.unwrap();
            self.written += last - first + 1;
        }
    }

    async fn next(&self, limit: usize) -> (Vec<LeaseToken>, Vec<String>, bool) {
        let next = self.store.next(&self.name, &self.name, limit, 0).await.unwrap();
        let shown =
            next.deliveries.iter().map(|delivery| format!("{} {}", delivery.event.stream, delivery.event.version));
        let shown = shown.collect();
        (next.deliveries.into_iter().map(|delivery| delivery.lease).collect(), shown, next.more)
    }

    async fn ack(&self, leases: &[LeaseToken]) {
        self.store.ack(&self.name, leases).await.unwrap();
    }

    /// Takes and acks until there is no more; how many came.
    async fn drain(&self, limit: usize) -> u64 {
        let mut count = 0;
        loop {
            let (leases, _, more) = self.next(limit).await;
            if leases.is_empty() && !more {
                return count;
            }
            count += leases.len() as u64;
            self.ack(&leases).await;
        }
    }

    async fn memory(&mut self) -> u64 {
        let mut bytes = 0;
        for key in &Keys::new("", self.store.partitions()).group(Partition::FIRST, &self.name, None)[1..11] {
            let mut command = redis::cmd("MEMORY");
            command.arg("USAGE").arg(key).arg("SAMPLES").arg(0);
            bytes += command.query_async::<Option<u64>>(&mut self.redis).await.unwrap().unwrap_or(0);
        }
        bytes
    }

    /// Has Redis note what its calls take, where it is more than 50 µs: not each read of an event.
    async fn watch(&mut self) {
        let settings = ["SET", "slowlog-log-slower-than", "50", "slowlog-max-len", "20000"];
        redis::cmd("CONFIG").arg(&settings).exec_async(&mut self.redis).await.unwrap();
    }

    /// That the noted calls of a function are short, by Redis' own time: every append waits for it. In long runs their
    /// 99th percentile, else, on machines that are busy with other tests, the median.
    async fn expect_short(&mut self, function: &str) {
        let mut command = redis::cmd("SLOWLOG");
        let rows: Vec<Vec<redis::Value>> = command.arg("GET").arg(-1).query_async(&mut self.redis).await.unwrap();
        let mut times = Vec::new();
        for row in rows {
            let words: Vec<String> = redis::from_redis_value(row[3].clone()).unwrap();
            if words.iter().any(|word| word.starts_with(function)) {
                times.push(redis::from_redis_value::<u64>(row[2].clone()).unwrap());
            }
        }
        times.sort_unstable();
        let of = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(0);
        println!("{}: {function} took {} µs, p99 {} µs of {} calls", self.what, of(50), of(99), times.len());
        let slow = if variable("STREAMKEEP_MODEL_SIZE").is_some() { of(99) } else { of(50) };
        assert!(slow < 10_000, "{function} took {slow} µs");
    }
}

fn size(usual: u64) -> u64 {
    variable("STREAMKEEP_MODEL_SIZE").unwrap_or(usual)
}

#[tokio::test]
async fn many_streams_of_two_events() {
    let mut sized = Sized::start("many streams").await;
    let streams = size(10_000);
    sized.create(&[]).await;
    sized.write("s-", streams, 1).await;
    sized.write("s-", streams, 2).await;
    sized.watch().await;
    // Thousands are in flight all the time, so that what comes is passed over, and released by acks.
    let mut held = Vec::new();
    for _ in 0..50 {
        held.extend(sized.next(100).await.0);
    }
    assert_eq!(held.len(), 5_000);
    let count = sized.drain(100).await;
    for leases in held.chunks(500) {
        sized.ack(leases).await;
    }
    let rest = sized.drain(500).await;
    assert_eq!(count + rest + 5_000, 2 * streams);
    for function in ["es_next", "es_ack"] {
        sized.expect_short(function).await;
    }
    let (_, status) = sized.store.group_status(&sized.name).await.unwrap();
    assert_eq!([status.lag, status.in_flight, status.held, status.parked], [0; 4]);
    assert!(sized.memory().await < 4_096, "the group keeps {} bytes", sized.memory().await);
}

/// One event at a time, and the time that Redis itself needs: every append waits for it.
#[tokio::test]
async fn a_call_is_short_whatever_lies_behind_it() {
    let mut sized = Sized::start("far behind").await;
    let later = size(10_000);
    sized.create(&["placed"]).await;
    sized.write_one("s-1", 1, 1, "placed").await;
    sized.write_one("s-1", 2, 2, "placed").await;
    sized.write_one("s-1", 3, later, "other").await;
    sized.write_one("s-1", later + 1, later + 1, "placed").await;
    sized.watch().await;
    let (leases, shown, _) = sized.next(1).await;
    assert_eq!(shown, ["s-1 1"]);
    // Everything behind it is looked at, and the next one is passed over.
    assert_eq!(sized.drain(1).await, 0);
    sized.ack(&leases).await;
    let (leases, shown, _) = sized.next(1).await;
    assert_eq!(shown, ["s-1 2"]);
    sized.ack(&leases).await;
    // It is found in steps of 100.
    let mut found = Vec::new();
    for _ in 0..later {
        let (_, shown, more) = sized.next(1).await;
        found.extend(shown);
        if !more || !found.is_empty() {
            break;
        }
    }
    assert_eq!(found, [format!("s-1 {}", later + 1)]);
    for function in ["es_next", "es_ack", "es_release"] {
        sized.expect_short(function).await;
    }
}

#[tokio::test]
async fn one_stream_that_stands() {
    let mut sized = Sized::start("one stands").await;
    let later = size(20_000);
    sized.create(&[]).await;
    sized.write_one("bad-1", 1, 1, "placed").await;
    sized.write("s-", 999, 1).await;
    let (leases, shown, _) = sized.next(1).await;
    assert_eq!(shown, ["bad-1 1"]);
    sized.store.nack(&sized.name, &Nack::park("poisoned"), &leases).await.unwrap();
    sized.write_one("bad-1", 2, later, "placed").await;
    sized.write("s-", 999, 2).await;
    let count = sized.drain(100).await;
    assert_eq!(count, 2 * 999, "the other streams flow");
    let bytes = sized.memory().await;
    println!("{later} events behind a parked one: the group keeps {bytes} bytes");
    assert!(bytes < 16_384, "the group keeps {bytes} bytes");
    let (_, status) = sized.store.group_status(&sized.name).await.unwrap();
    assert_eq!([status.held, status.stopped_streams, status.parked, status.lag], [later - 1, 1, 1, 0]);
    assert_eq!(sized.store.replay(&sized.name, &Which::All, false).await.unwrap(), 1);
    for version in 1..=500 {
        let (leases, shown, _) = sized.next(10).await;
        assert_eq!(shown, [format!("bad-1 {version}")], "in order, one at a time");
        sized.ack(&leases).await;
    }
    let (_, status) = sized.store.group_status(&sized.name).await.unwrap();
    // The next one is ready, and counted with those held.
    assert_eq!([status.held, status.stopped_streams], [later - 500, 0]);
}
