//! `streamkeep health`

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use super::{Failure, client};
use crate::config::Health;

/// How long the service may take to answer, a little over the default of `--redis-timeout-ms`.
const PATIENCE: Duration = Duration::from_secs(8);

/// Asks `/readyz`.
///
/// # Errors
/// The service is not ready, or does not answer.
pub async fn health(settings: Health) -> Result<(), Failure> {
    let Health { url, credentials, mut listen, tls_cert } = settings;
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let (url, builder) = match (url, tls_cert) {
        // Its certificate has another name than this address. So no token is shown; probes need none.
        (None, Some(_)) => {
            (format!("https://{listen}"), reqwest::Client::builder().tls_danger_accept_invalid_certs(true))
        }
        (url, _) => {
            let url = url.unwrap_or_else(|| format!("http://{listen}"));
            let builder = client::builder(&url, &credentials)?;
            (url, builder)
        }
    };
    // A container's health is not to depend on the proxies that its environment names.
    let client = builder.no_proxy().timeout(PATIENCE).build()?;
    let response = client.get(format!("{}/readyz", url.trim_end_matches('/'))).send().await?;
    if response.status().is_success() { Ok(()) } else { Err(response.text().await?.into()) }
}
