//! `streamkeep copy`

use std::io::{self, Write as _};

use tokio_util::sync::CancellationToken;

use super::{
    Failure, cancel_on_signal,
    progress::Progress,
    serve::{redis, stop},
};
use crate::{
    config::Copy,
    store::{CopiedGroup, Copier, CopyError},
};

/// Copies a store into another one, with its consumer groups.
///
/// # Errors
/// Either cannot be opened, the target holds something else, or the copy was interrupted; how far it was.
pub async fn copy(settings: Copy) -> Result<(), Failure> {
    let from = settings.source.store_config(&settings.storage)?;
    let interrupted = CancellationToken::new();
    cancel_on_signal(interrupted.clone())?;
    let (server, address) = redis(&settings.storage).await?;
    let ended = match Copier::open(from, settings.storage.store_config(address)).await {
        Ok(mut opened) => run(&mut opened, &interrupted, settings.follow).await,
        Err(error) => Err(error.into()),
    };
    stop(server).await?;
    ended
}

async fn run(copier: &mut Copier, interrupted: &CancellationToken, follow: bool) -> Result<(), Failure> {
    let progress = Progress::start(Some(copier.left().await?));
    let ended = to_the_end(copier, interrupted, follow, &progress).await;
    let so_far = format!("{} events copied, {}", progress.events(), progress.pace());
    drop(progress);
    match ended {
        Ok(Some(groups)) => Ok(write(&so_far, &groups)?),
        Ok(None) => Err(format!("interrupted: {so_far}. Run it again: it goes on where it stopped.").into()),
        Err(error) => Err(format!("{error}\nStopped: {so_far}.").into()),
    }
}

/// Copies all, and what comes where it is to follow; then the groups, with which it answers. `None` where it was interrupted
/// before.
async fn to_the_end(
    copier: &mut Copier,
    interrupted: &CancellationToken,
    follow: bool,
    progress: &Progress,
) -> Result<Option<Vec<CopiedGroup>>, CopyError> {
    let before = copier.done();
    loop {
        let over = interrupted.is_cancelled();
        let step = copier.step().await?;
        progress.add(step.added, copier.done().saturating_sub(before));
        match step.all {
            true if over || !follow => break,
            true => tokio::select! {
                () = copier.more() => {}
                () = interrupted.cancelled() => {}
            },
            false if over => return Ok(None),
            false => {}
        }
    }
    copier.check().await?;
    copier.copy_groups().await.map(Some)
}

fn write(so_far: &str, groups: &[CopiedGroup]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for CopiedGroup { name, to_come, again } in groups {
        writeln!(out, "group {name}: {to_come} events to come, {again} of them at most settled before")?;
    }
    writeln!(out, "{so_far}; {} groups", groups.len())
}
