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

    pub fn name(self) -> &'static str {
        ["echo", "raw redis", "streamkeep", "against"][self as usize]
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Append,
    Read,
    /// Take and ack, in a group without order.
    Next,
    /// The same in an ordered group over many streams.
    Ordered,
}

impl Work {
    fn name(self) -> &'static str {
        ["append", "read", "next", "ordered"][self as usize]
    }

    /// Who can be asked.
    pub fn targets(self) -> &'static [Target] {
        match self {
            Self::Append => &Target::ALL,
            Self::Read | Self::Next => &[Target::Raw, Target::Http, Target::Against],
            Self::Ordered => &[Target::Http, Target::Against],
        }
    }

    /// The ordering of its group, where it has one.
    pub fn ordering(self) -> Option<&'static str> {
        match self {
            Self::Append | Self::Read => None,
            Self::Next => Some("none"),
            Self::Ordered => Some("stream"),
        }
    }

    /// What raw Redis does instead: it has no order.
    fn raw(self) -> Self {
        if self == Self::Ordered { Self::Next } else { self }
    }
}

/// A row, and what it gave in each round.
pub struct Row {
    pub work: Work,
    /// Of a request.
    pub events: usize,
    pub connections: usize,
    pub target: Target,
    pub samples: Vec<Sample>,
}

impl Row {
    pub fn new(work: Work, events: usize, connections: usize, target: Target) -> Self {
        Self { work, events, connections, target, samples: Vec::new() }
    }

    /// The group that its consumers share.
    pub fn group(&self) -> String {
        format!("{}-{}-{}-{}", self.target.prefix(), self.work.name(), self.events, self.connections)
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }

    /// The median of the rounds' ratios to the row like this one, but of other work or another target.
    fn ratio(&self, rows: &[Self], work: Work, target: Target) -> String {
        let wanted = (work, self.events, self.connections, target);
        let found = |row: &&Self| (row.work, row.events, row.connections, row.target) == wanted;
        match rows.iter().find(found) {
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
    let Some(first) = rows.first() else { return };
    let durability = match fsync {
        AppendFsync::Always => "fsync (appendfsync always)",
        AppendFsync::Everysec => "memory (appendfsync everysec)",
    };
    line(&format!("durability: {durability}; medians of {} rounds", first.samples.len()));
    line("");
    line(
        "| work    | events | conns | target     | events/s | p50 µs | p99 µs | of raw | of echo | of next | server µs | redis µs | generator µs |",
    );
    line("|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for row in rows {
        let cpu = |of: fn(&Sample) -> Option<f64>| {
            let known = row.samples.iter().all(|sample| of(sample).is_some());
            if known { format!("{:.1}", row.median(|sample| of(sample).unwrap_or_default())) } else { String::new() }
        };
        let unordered = if row.work == Work::Ordered { row.ratio(rows, Work::Next, row.target) } else { String::new() };
        line(&format!(
            "| {:<7} | {:>6} | {:>5} | {:<10} | {:>8.0} | {:>6.0} | {:>6.0} | {:>6} | {:>7} | {:>7} | {:>9} | {:>8} | {:>12} |",
            row.work.name(),
            row.events,
            row.connections,
            row.target.name(),
            row.median(|sample| sample.rate),
            row.median(|sample| sample.p50),
            row.median(|sample| sample.p99),
            row.ratio(rows, row.work.raw(), Target::Raw),
            row.ratio(rows, row.work, Target::Echo),
            unordered,
            cpu(|sample| sample.server_cpu),
            cpu(|sample| sample.redis_cpu),
            cpu(|sample| Some(sample.generator_cpu)),
        ));
    }
}

pub fn line(text: &str) {
    writeln!(io::stdout(), "{text}").expect("standard output takes it");
}

/// The middle one; of two, the mean.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => f64::midpoint(values[(count - 1) / 2], values[count / 2]),
    }
}
