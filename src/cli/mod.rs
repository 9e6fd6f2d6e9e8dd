//! The commands. `main` parses the settings and calls one of these.

mod export;
mod health;
mod import;
mod serve;

pub use export::export;
pub use health::health;
pub use import::import;
pub use serve::{migrate, serve};

/// What a command failed of, in one sentence for the operator.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
