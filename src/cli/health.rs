//! `streamkeep health`

use super::Failure;
use crate::config::Health;

/// Asks `/readyz`.
///
/// # Errors
/// The service is not ready, or does not answer.
pub async fn health(settings: Health) -> Result<(), Failure> {
    let response = reqwest::get(format!("{}/readyz", settings.url.trim_end_matches('/'))).await?;
    if response.status().is_success() { Ok(()) } else { Err(response.text().await?.into()) }
}
