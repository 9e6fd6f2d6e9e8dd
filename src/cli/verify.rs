//! `streamkeep verify`

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use super::{
    Failure,
    progress::Progress,
    serve::{redis, stop},
};
use crate::{
    config::Verify,
    store::{Report, Verifier},
};

/// Walks through a store, and says what does not fit together: a line each on standard output, then a summary.
///
/// # Errors
/// Something does not fit; or Redis cannot be reached, or is none of ours.
pub async fn verify(settings: Verify) -> Result<(), Failure> {
    let (server, address) = redis(&settings.storage).await?;
    let progress = Arc::new(Progress::start(None));
    let counted = Arc::clone(&progress);
    let looked_at = Box::new(move |events| counted.add(events, 0));
    let verifier = Verifier::open(settings.storage.store_config(address), looked_at).await?;
    let walked = verifier.verify().await;
    let pace = progress.pace();
    drop(progress);
    stop(server).await?;
    let report = walked?;
    write(&report, &pace)?;
    if report.wrong == 0 { Ok(()) } else { Err(format!("{} finding(s): the store is not sound", report.wrong).into()) }
}

fn write(report: &Report, pace: &str) -> io::Result<()> {
    let Report { findings, wrong, notes, pointers, removed, streams, events, groups } = report;
    let mut out = io::stdout().lock();
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    for finding in findings {
        writeln!(out, "wrong: {finding}")?;
    }
    let further = wrong - findings.len() as u64;
    if further > 0 {
        writeln!(out, "wrong: {further} further finding(s)")?;
    }
    writeln!(
        out,
        "{pointers} log entries, {removed} of them of removed events; {events} events in {streams} streams; {groups} \
         groups; {pace}"
    )
}
