//! The rows and the table of the open loop.

use crate::{
    bench::Bench,
    closed::Closed,
    load,
    open::{self, OpenSample},
    report::{durability, heading, line},
    rows::{CROWD, Row, Target, Work, in_turn, median},
};

/// Of the rate that the service reaches in the closed loop.
const SHARES: [f64; 3] = [0.3, 0.6, 0.8];

/// A rate, and what it gave in each round.
pub struct OpenRow {
    pub target: Target,
    /// Of the closed loop's rate of the service, and so many requests a second.
    pub share: f64,
    pub due: f64,
    pub samples: Vec<OpenSample>,
}

impl OpenRow {
    /// The median of the rounds' quantiles of latencies, in microseconds.
    pub fn latency(&self, quantile: f64) -> f64 {
        median(self.samples.iter().map(|sample| load::micros(&sample.latencies, quantile)).collect())
    }
}

/// Measures appends of one event at shares of the rate that the service reaches just before, and raw Redis at the same rates.
pub async fn run(bench: &Bench, closed: &Closed<'_>) -> Vec<OpenRow> {
    let fastest = closed.measure(&Row::new(Work::Append, 1, CROWD, Target::Http)).await.rate;
    let targets = [Target::Raw, Target::Http, Target::Against].into_iter().filter(|target| bench.has(*target));
    let row = |(share, target)| OpenRow { target, share, due: fastest * share, samples: Vec::new() };
    let mut rows: Vec<_> =
        SHARES.into_iter().flat_map(|share| targets.clone().map(move |target| (share, target))).map(row).collect();
    for round in 0..bench.arguments.rounds {
        for row in in_turn(&mut rows, round) {
            let clients = closed.appenders(row.target, 1, CROWD);
            // A row holds up the whole thread, which may have been told to end meanwhile.
            tokio::task::yield_now().await;
            row.samples.push(open::drive(&bench.target(row.target).0, clients, row.due, bench.arguments.duration()));
        }
    }
    rows
}

/// Prints all rows.
pub fn print(bench: &Bench, rows: &[OpenRow]) {
    let durability = durability(bench.arguments.fsync);
    heading(&format!(
        "Open loop, appends of one event over {CROWD} connections, latency from when each was due: {durability}, medians of {} rounds",
        bench.arguments.rounds
    ));
    line("| rate of the closed loop's | target     | due/s | answered/s | p50 µs | p99 µs | p99.9 µs |");
    line("|---:|---|---:|---:|---:|---:|---:|");
    for row in rows {
        line(&format!(
            "| {:>25} | {:<10} | {:>5.0} | {:>10.0} | {:>6.0} | {:>6.0} | {:>8.0} |",
            format!("{:.0} %", row.share * 100.0),
            row.target.name(),
            row.due,
            median(row.samples.iter().map(|sample| sample.rate).collect()),
            row.latency(0.5),
            row.latency(0.99),
            row.latency(0.999),
        ));
    }
}
