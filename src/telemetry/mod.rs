//! Logs and traces.

pub mod traces;

use std::{error::Error, io::IsTerminal as _};

use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _};

use traces::Traces;

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

/// Starts logging to standard error, in colour on a terminal unless `NO_COLOR` says no. `filter` is that of
/// `tracing-subscriber`, e.g. `info` or `streamkeep=debug`. Traces go to the collector at `otlp`, where there is one.
///
/// # Errors
/// An address of a collector that cannot be used.
pub fn start(
    format: LogFormat,
    filter: &str,
    otlp: Option<&str>,
) -> Result<Option<Traces>, Box<dyn Error + Send + Sync>> {
    let traces = otlp.map(Traces::to).transpose()?;
    tracing::subscriber::set_global_default(subscriber(format, filter, traces.as_ref()))?;
    Ok(traces)
}

/// What takes logs, and spans where they go somewhere.
fn subscriber(format: LogFormat, filter: &str, traces: Option<&Traces>) -> Box<dyn Subscriber + Send + Sync> {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    let logs = match format {
        LogFormat::Text => logs.with_target(false).boxed(),
        LogFormat::Json => logs.json().boxed(),
    };
    let no_spans = format!("{}=off", traces::TARGET).parse().expect("a target and a level");
    let logs = logs.with_filter(EnvFilter::new(filter).add_directive(no_spans));
    let subscriber = tracing_subscriber::registry().with(logs);
    match traces {
        Some(traces) => Box::new(subscriber.with(traces.layer())),
        // Not an absent layer: that would want every span, and each would be made.
        None => Box::new(subscriber),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_no_span_is_made() {
        for filter in ["info", "trace", "streamkeep=trace"] {
            tracing::subscriber::with_default(subscriber(LogFormat::Text, filter, None), || {
                assert!(traces::round_trip("es_append", 1).is_disabled(), "{filter}");
                assert!(tracing::enabled!(tracing::Level::INFO), "{filter}");
            });
        }
    }
}
