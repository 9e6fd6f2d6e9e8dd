//! `streamkeep health`

use std::time::Duration;

use super::{Failure, client::authorization};
use crate::config::Health;

/// How long the service may take to answer, a little over the default of `--redis-timeout-ms`.
const PATIENCE: Duration = Duration::from_secs(8);

/// Asks `/readyz`.
///
/// # Errors
/// The service is not ready, or does not answer.
pub async fn health(settings: Health) -> Result<(), Failure> {
    // A container's health is not to depend on the proxies that its environment names.
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .default_headers(authorization(&settings.credentials)?)
        .build()?;
    let response = client.get(format!("{}/readyz", settings.url.trim_end_matches('/'))).send().await?;
    if response.status().is_success() { Ok(()) } else { Err(response.text().await?.into()) }
}
