//! `streamkeep doctor`

use std::io::{self, Write as _};

use super::{
    Failure,
    serve::{redis, stop},
};
use crate::{
    config::Doctor,
    store::{Check, CheckStatus, StoreConfig, examine},
};

/// Looks at a deployment, and says what is wrong and what to do: a line a check.
///
/// # Errors
/// A check fails.
pub async fn doctor(settings: Doctor) -> Result<(), Failure> {
    let (server, address) = redis(&settings.storage).await?;
    let config = StoreConfig { durability: settings.durability.config(), ..settings.storage.store_config(address) };
    let checks = examine(config).await;
    stop(server).await?;
    let mut out = io::stdout().lock();
    for Check { name, status, detail } in &checks {
        let word = match status {
            CheckStatus::Ok => "ok",
            CheckStatus::Warn => "warn",
            CheckStatus::Fail => "fail",
        };
        writeln!(out, "{word:4}  {name:21}  {detail}")?;
    }
    match checks.iter().filter(|check| check.status == CheckStatus::Fail).count() {
        0 => Ok(()),
        failed => Err(format!("{failed} check(s) failed").into()),
    }
}
