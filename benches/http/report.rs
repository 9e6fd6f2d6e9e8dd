//! The table.

use std::io::{self, Write as _};

use streamkeep::redis_server::AppendFsync;

use crate::load::Sample;

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An HTTP server that does nothing.
    Echo,
    /// Redis, without a service.
    Raw,
    /// The service.
    Http,
    /// Another build of the service.
    Against,
}

impl Target {
    pub const ALL: [Self; 4] = [Self::Echo, Self::Raw, Self::Http, Self::Against];

    /// The category of the streams that are the target's own.
    pub fn prefix(self) -> &'static str {
        ["echo", "bare", "http", "host"][self as usize]
    }

    fn name(self) -> &'static str {
        ["echo", "raw redis", "streamkeep", "against"][self as usize]
    }
}

/// A row, and what it gave in each round.
pub struct Row {
    pub what: &'static str,
    pub events: usize,
    pub connections: usize,
    pub target: Target,
    pub samples: Vec<Sample>,
}

impl Row {
    pub fn new(what: &'static str, events: usize, connections: usize, target: Target) -> Self {
        Self { what, events, connections, target, samples: Vec::new() }
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }

    /// The median of the rounds' ratios to another row.
    fn ratio(&self, rows: &[Self], target: Target) -> String {
        let same = |row: &&Self| (row.what, row.connections, row.target) == (self.what, self.connections, target);
        match rows.iter().find(same) {
            Some(other) if self.target == Target::Http || self.target == Target::Against => {
                let pairs = self.samples.iter().zip(&other.samples);
                format!("{:.2}", median(pairs.map(|(own, other)| own.rate / other.rate).collect()))
            }
            _ => String::new(),
        }
    }
}

/// Prints all rows.
pub fn print(rows: &[Row], fsync: AppendFsync) {
    let durability = match fsync {
        AppendFsync::Always => "fsync (appendfsync always)",
        AppendFsync::Everysec => "memory (appendfsync everysec)",
    };
    line(&format!("durability: {durability}; medians of {} rounds", rows.first().map_or(0, |row| row.samples.len())));
    line("");
    line(
        "| work   | conns | target     | events/s | p50 µs | p99 µs | of raw | of echo | server µs | redis µs | generator µs |",
    );
    line("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for row in rows {
        let cpu = |of: fn(&Sample) -> Option<f64>| {
            let known = row.samples.iter().all(|sample| of(sample).is_some());
            if known { format!("{:.1}", row.median(|sample| of(sample).unwrap_or_default())) } else { String::new() }
        };
        #[expect(clippy::cast_precision_loss, reason = "at most a thousand")]
        let events = row.events as f64;
        line(&format!(
            "| {:<6} | {:>5} | {:<10} | {:>8.0} | {:>6.0} | {:>6.0} | {:>6} | {:>7} | {:>9} | {:>8} | {:>12} |",
            row.what,
            row.connections,
            row.target.name(),
            row.median(|sample| sample.rate) * events,
            row.median(|sample| sample.p50),
            row.median(|sample| sample.p99),
            row.ratio(rows, Target::Raw),
            row.ratio(rows, Target::Echo),
            cpu(|sample| sample.server_cpu),
            cpu(|sample| sample.redis_cpu),
            cpu(|sample| Some(sample.generator_cpu)),
        ));
    }
}

fn line(text: &str) {
    writeln!(io::stdout(), "{text}").expect("standard output takes it");
}

/// The middle one; of two, the mean.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => f64::midpoint(values[(count - 1) / 2], values[count / 2]),
    }
}
