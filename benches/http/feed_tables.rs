//! The tables of feeds.

use std::time::Duration;

use crate::{
    feeds::{Latencies, count},
    load,
    report::line,
    rows::{Target, median},
};

/// A row, and what it gave in each round.
pub struct Row<S> {
    pub target: Target,
    pub followers: usize,
    /// Appends a second that were asked for.
    pub rate: u32,
    pub samples: Vec<S>,
}

/// Followers that are all given each event.
pub struct FanOut {
    /// Appends a second.
    pub rate: f64,
    pub deliveries: usize,
    /// Deliveries that never came.
    pub missing: u64,
    pub latency: Latencies,
    /// Processor time for each event, in microseconds: of the service, of Redis, of the generator.
    pub per_event: [f64; 3],
    /// Those of Redis, before and while they follow.
    pub connections: (u64, u64),
    /// KiB of the service for each follower that has nothing to do.
    pub memory: f64,
}

/// One follower and a reader without a service.
pub struct Latency {
    pub own: Latencies,
    pub raw: Latencies,
}

/// Those who append, while others follow.
pub struct Appends {
    pub load: load::Sample,
    /// How long it took until all were given all, after the last append.
    pub behind: Duration,
    pub deliveries: usize,
    pub missing: u64,
}

/// All that was measured.
pub struct Tables {
    /// Followers that were asked for.
    pub wanted: usize,
    pub fan_out: Vec<Row<FanOut>>,
    pub latency: Vec<Row<Latency>>,
    pub appends: Vec<Row<Appends>>,
}

impl<S> Row<S> {
    pub fn new(target: Target, followers: usize, rate: u32) -> Self {
        Self { target, followers, rate, samples: Vec::new() }
    }

    fn median(&self, of: impl Fn(&S) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }

    /// The row of the same target and rate that nobody follows.
    fn alone<'a>(&self, rows: &'a [Self]) -> Option<&'a Self> {
        rows.iter().find(|row| (row.target, row.followers, row.rate) == (self.target, 0, self.rate))
    }
}

impl Tables {
    /// Prints all.
    pub fn print(&self) {
        let most = self.fan_out.iter().map(|row| row.followers).max().unwrap_or_default();
        line("");
        if most < self.wanted {
            line(&format!("The limit of open files leaves {most} of {} followers.", self.wanted));
            line("");
        }
        self.print_fan_out();
        self.print_latency();
        self.print_appends();
    }

    fn print_fan_out(&self) {
        line(
            "| followers | target     | appends/s | deliveries | missing | p50 ms | p99 ms | server µs an event | a delivery | redis µs an event | generator µs a delivery | redis connections | KiB a follower |",
        );
        line("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|");
        for row in &self.fan_out {
            let alone = row.alone(&self.fan_out).map_or(0.0, |alone| alone.median(|sample| sample.per_event[0]));
            let followed = |text: String| if row.followers > 0 { text } else { String::new() };
            let each = |of: f64| followed(format!("{:.2}", of / count(row.followers)));
            let connections = row.samples.iter().map(|sample| sample.connections).max().unwrap_or_default();
            // Of few it would be that of something else.
            let memory = row.samples.first().filter(|_| row.rate == crate::feeds::CROWD_RATE);
            line(&format!(
                "| {:>9} | {:<10} | {:>9.0} | {:>10} | {:>7} | {:>6} | {:>6} | {:>18.0} | {:>10} | {:>17.0} | {:>23} | {:>17} | {:>14} |",
                row.followers,
                row.target.name(),
                row.median(|sample| sample.rate),
                row.samples.iter().map(|sample| sample.deliveries).sum::<usize>(),
                row.samples.iter().map(|sample| sample.missing).sum::<u64>(),
                followed(format!("{:.2}", row.median(|sample| sample.latency.p50) / 1e3)),
                followed(format!("{:.2}", row.median(|sample| sample.latency.p99) / 1e3)),
                row.median(|sample| sample.per_event[0]),
                each(row.median(|sample| sample.per_event[0]) - alone),
                row.median(|sample| sample.per_event[1]),
                each(row.median(|sample| sample.per_event[2])),
                format!("{} → {}", connections.0, connections.1),
                memory.map_or(String::new(), |sample| format!("{:.1}", sample.memory)),
            ));
        }
    }

    fn print_latency(&self) {
        line("");
        line("| reader     | appends/s | p50 µs | p99 µs | p50 of raw | p99 of raw |");
        line("|---|---:|---:|---:|---:|---:|");
        for row in &self.latency {
            let raw = "raw redis";
            let [p50, p99] = [|of: Latencies| of.p50, |of: Latencies| of.p99];
            let ratio = |of: fn(Latencies) -> f64| row.median(|sample| of(sample.own) / of(sample.raw));
            line(&format!(
                "| {raw:<10} | {:>9} | {:>6.0} | {:>6.0} | {:>10} | {:>10} |",
                row.rate,
                row.median(|sample| p50(sample.raw)),
                row.median(|sample| p99(sample.raw)),
                "",
                ""
            ));
            line(&format!(
                "| {:<10} | {:>9} | {:>6.0} | {:>6.0} | {:>10.2} | {:>10.2} |",
                row.target.name(),
                row.rate,
                row.median(|sample| p50(sample.own)),
                row.median(|sample| p99(sample.own)),
                ratio(p50),
                ratio(p99),
            ));
        }
    }

    fn print_appends(&self) {
        line("");
        line(
            "| followers | of            | target     | appends/s | of alone | p50 µs | p99 µs | deliveries | missing | behind ms | server µs an append | redis µs an append |",
        );
        line("|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
        for row in &self.appends {
            let of = if row.rate > 0 { format!("{} others/s", row.rate) } else { "all".to_owned() };
            let ratio = row.alone(&self.appends).filter(|_| row.followers > 0).map(|alone| {
                let pairs = row.samples.iter().zip(&alone.samples);
                format!("{:.2}", median(pairs.map(|(own, alone)| own.load.rate / alone.load.rate).collect()))
            });
            line(&format!(
                "| {:>9} | {of:<13} | {:<10} | {:>9.0} | {:>8} | {:>6.0} | {:>6.0} | {:>10} | {:>7} | {:>9.0} | {:>19.1} | {:>18.1} |",
                row.followers,
                row.target.name(),
                row.median(|sample| sample.load.rate),
                ratio.unwrap_or_default(),
                row.median(|sample| sample.load.p50),
                row.median(|sample| sample.load.p99),
                row.samples.iter().map(|sample| sample.deliveries).sum::<usize>(),
                row.samples.iter().map(|sample| sample.missing).sum::<u64>(),
                row.median(|sample| sample.behind.as_secs_f64() * 1e3),
                row.median(|sample| sample.load.server_cpu.unwrap_or_default()),
                row.median(|sample| sample.load.redis_cpu.unwrap_or_default()),
            ));
        }
    }
}
