//! The commands. `main` parses the settings and calls one of these.

mod client;
mod copy;
mod doctor;
mod export;
mod health;
mod import;
mod key;
mod manual;
mod ndjson;
mod progress;
mod serve;
mod tail;
mod verify;

pub use copy::copy;
pub use doctor::doctor;
pub use export::export;
pub use health::health;
pub use import::import;
pub use key::key;
pub use manual::{completions, man};
pub use serve::{migrate, serve};
pub use tail::{TailFormat, tail};
pub use verify::verify;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a command failed of, in one sentence for the operator.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Cancels on SIGTERM and SIGINT, which from now on do not end the process by themselves.
fn cancel_on_signal(shutdown: CancellationToken) -> Result<(), Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}
