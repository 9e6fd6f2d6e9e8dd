//! The table of the closed loop.

use std::io::{self, Write as _};

use streamkeep::redis_server::AppendFsync;

use crate::{
    load::Sample,
    rows::{Row, Target, Work},
};

/// What is sure of an append that was answered, and how Redis is set for it.
pub fn durability(fsync: AppendFsync) -> &'static str {
    match fsync {
        AppendFsync::Always => "durability fsync (appendfsync always)",
        AppendFsync::Everysec => "durability memory (appendfsync everysec)",
    }
}

/// Prints all rows; `notes` say more about who was asked.
pub fn print(title: &str, rows: &[Row], fsync: AppendFsync, notes: &[String]) {
    let Some(first) = rows.first() else { return };
    heading(&format!("{title}: {}, medians of {} rounds", durability(fsync), first.samples.len()));
    for note in notes {
        line(&format!("- {note}"));
    }
    if !notes.is_empty() {
        line("");
    }
    line(
        "| work    | events | conns | target                | events/s | p50 µs | p99 µs | of raw | of echo | of next | server µs | redis µs | generator µs |",
    );
    line("|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for row in rows {
        let cpu = |of: fn(&Sample) -> Option<f64>| {
            let known = row.samples.iter().all(|sample| of(sample).is_some());
            if known { format!("{:.1}", row.median(|sample| of(sample).unwrap_or_default())) } else { String::new() }
        };
        let compared = |work: Work, target: Target, wanted: bool| {
            row.ratio(rows, work, target).filter(|_| wanted).map_or(String::new(), |ratio| format!("{ratio:.2}"))
        };
        let raw = !matches!(row.target, Target::Raw | Target::Echo);
        line(&format!(
            "| {:<7} | {:>6} | {:>5} | {:<21} | {:>8.0} | {:>6.0} | {:>6.0} | {:>6} | {:>7} | {:>7} | {:>9} | {:>8} | {:>12} |",
            row.work.name(),
            row.events,
            row.connections,
            row.target.name(),
            row.median(|sample| sample.rate),
            row.median(|sample| sample.p50),
            row.median(|sample| sample.p99),
            compared(row.work.raw(), Target::Raw, raw),
            compared(row.work, Target::Echo, row.target.is_service()),
            compared(Work::Next, row.target, row.work == Work::Ordered),
            cpu(|sample| sample.server_cpu),
            cpu(|sample| sample.redis_cpu),
            cpu(|sample| Some(sample.generator_cpu)),
        ));
    }
}

/// Begins a table.
pub fn heading(text: &str) {
    line("");
    line(text);
    line("");
}

pub fn line(text: &str) {
    writeln!(io::stdout(), "{text}").expect("standard output takes it");
}
