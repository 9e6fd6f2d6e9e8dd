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
    store::{CopiedGroup, Copier, CopyError, Step},
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
    let progress = Progress::start(Some(copier.left(&copier.ends().await?)));
    let copying = Copying { before: copier.done(), copier, interrupted, progress: &progress };
    let ended = copying.run(follow).await;
    let so_far = format!("{} events copied, {}", progress.events(), progress.pace());
    drop(progress);
    match ended {
        Ok(Some(groups)) => Ok(write(&so_far, &groups)?),
        Ok(None) => Err(format!("interrupted: {so_far}. Run it again: it goes on where it stopped.").into()),
        Err(error) => Err(format!("{error}\nStopped: {so_far}.").into()),
    }
}

struct Copying<'a> {
    copier: &'a mut Copier,
    /// What was copied before this run.
    before: u64,
    interrupted: &'a CancellationToken,
    progress: &'a Progress,
}

impl Copying<'_> {
    /// Copies what there is, or where it is to follow, what comes until it is told to end; then the groups, with which it
    /// answers. `None` where it was interrupted before.
    async fn run(mut self, follow: bool) -> Result<Option<Vec<CopiedGroup>>, CopyError> {
        if follow && !self.follow().await? {
            return Ok(None);
        }
        // Beside writers there is always more.
        let ends = self.copier.ends().await?;
        while !self.step().await?.all && self.copier.left(&ends) > 0 {
            if !follow && self.interrupted.is_cancelled() {
                return Ok(None);
            }
        }
        self.copier.check().await?;
        self.copier.copy_groups().await.map(Some)
    }

    /// Copies what comes. Answers with whether it had caught up before it was told to end.
    async fn follow(&mut self) -> Result<bool, CopyError> {
        // Beside writers it is behind again at once, which is no reason not to end.
        let mut caught_up = false;
        while !self.interrupted.is_cancelled() {
            let all = self.step().await?.all;
            if !caught_up && self.copier.has_caught_up() {
                caught_up = true;
                self.progress.say("caught up: what comes is copied too, until this is interrupted");
            }
            if all {
                tokio::select! {
                    () = self.copier.more() => {}
                    () = self.interrupted.cancelled() => {}
                }
            }
        }
        Ok(caught_up)
    }

    async fn step(&mut self) -> Result<Step, CopyError> {
        let step = self.copier.step().await?;
        self.progress.add(step.added, self.copier.done().saturating_sub(self.before));
        Ok(step)
    }
}

fn write(so_far: &str, groups: &[CopiedGroup]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for CopiedGroup { name, to_come, again } in groups {
        writeln!(out, "group {name}: {to_come} events to come, {again} of them at most settled before")?;
    }
    writeln!(out, "{so_far}; {} groups", groups.len())
}
