//! Logs.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Checks a filter.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<String, String> {
    EnvFilter::try_new(filter).map(|_| filter.to_owned()).map_err(|error| error.to_string())
}

/// Starts logging to standard error, in colour on a terminal unless `NO_COLOR` says no. `filter` is that of `tracing-subscriber`, e.g. `info` or `streamkeep=debug`.
pub fn start(format: LogFormat, filter: &str) {
    let filter = EnvFilter::new(filter);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}
