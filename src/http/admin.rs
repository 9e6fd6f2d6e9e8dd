//! `/livez` and `/readyz`: for orchestrators and gateways.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    problem::{Code, Problem},
};
use crate::store::{Durability, Health};

/// The routes of the probes.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz))
}

/// Never kept by a cache.
pub const NO_STORE: (HeaderName, HeaderValue) = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));

/// That the process works.
#[derive(Serialize, ToSchema)]
pub struct Alive {
    /// `alive`
    status: &'static str,
    /// Version of the service.
    version: &'static str,
}

/// That the service can do its work.
#[derive(Serialize, ToSchema)]
pub struct Readiness {
    /// `ready`
    status: &'static str,
    /// What an acknowledged append survives: `memory` or `fsync`.
    #[schema(value_type = String, example = "fsync")]
    durability: Durability,
    /// Number of partitions.
    partitions: u16,
    /// Each check by its name.
    checks: Vec<Check>,
}

/// One check.
#[derive(Serialize, ToSchema)]
pub struct Check {
    /// What is looked at.
    name: &'static str,
    /// `ok`, `warn` (works, but should be mended) or `fail` (not ready).
    status: CheckStatus,
    /// What was seen.
    detail: String,
}

/// How a check went.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Works, but should be mended.
    Warn,
    /// Not ready.
    Fail,
}

/// Is the process alive?
#[utoipa::path(get, path = "/livez", operation_id = "livez", tag = "operations", responses(
    (status = 200, description = "Yes", body = Alive, headers(
        ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
    (status = 400, response = super::responses::BadRequest),
))]
pub async fn livez() -> Response {
    ([NO_STORE], Json(Alive { status: "alive", version: env!("CARGO_PKG_VERSION") })).into_response()
}

/// Is the service ready?
///
/// 503 while Redis does not answer, the functions cannot be loaded, or the service drains; the member `checks` of the
/// problem then names each check, as does the body of a 200.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "operations", responses(
    (status = 200, description = "Ready", body = Readiness, headers(
        ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
    (status = 400, response = super::responses::BadRequest),
    (status = 503, response = super::responses::NotReady),
))]
pub async fn readyz(State(app): State<App>) -> Response {
    let mut checks = match app.store.check_health().await {
        Ok(health) => redis_checks(&health),
        Err(_) => vec![check("redis", CheckStatus::Fail, "does not answer")],
    };
    let draining = app.shutdown.is_cancelled();
    let drain = if draining { (CheckStatus::Fail, "the service drains") } else { (CheckStatus::Ok, "takes requests") };
    checks.push(check("drain", drain.0, drain.1));
    if checks.iter().any(|check| check.status == CheckStatus::Fail) {
        let checks = serde_json::to_string(&checks).expect("plain members are JSON");
        return Problem::new(Code::NotReady, "See checks.").with("checks", checks).into_response();
    }
    let (durability, partitions) = (app.store.durability(), app.store.partitions().count());
    ([NO_STORE], Json(Readiness { status: "ready", durability, partitions, checks })).into_response()
}

fn redis_checks(health: &Health) -> Vec<Check> {
    let ok_or = |good: bool, otherwise: CheckStatus| if good { CheckStatus::Ok } else { otherwise };
    let primary = ok_or(health.role == "master", CheckStatus::Fail);
    let functions = ok_or(health.functions_loaded, CheckStatus::Fail);
    let log = match health.append_only {
        Some(true) => CheckStatus::Ok,
        Some(false) | None => CheckStatus::Warn,
    };
    let log_detail = match (health.append_only, health.append_fsync.as_deref()) {
        (Some(true), Some(fsync)) => format!("on, appendfsync {fsync}"),
        (Some(false), _) => "off: a restart of Redis loses every event; set appendonly yes".to_owned(),
        _ => "CONFIG is closed: not known".to_owned(),
    };
    let eviction = ok_or(health.eviction_policy == "noeviction", CheckStatus::Warn);
    let eviction_detail = match eviction {
        CheckStatus::Ok => "noeviction".to_owned(),
        _ => format!(
            "{}: Redis may drop events when it is full; set maxmemory-policy noeviction",
            health.eviction_policy
        ),
    };
    vec![
        check("redis", CheckStatus::Ok, &format!("answers, version {}", health.server_version)),
        check("role", primary, if primary == CheckStatus::Ok { "primary" } else { "a replica: takes no writes" }),
        check("functions", functions, &health.library),
        check("append-only-file", log, &log_detail),
        check("maxmemory-policy", eviction, &eviction_detail),
    ]
}

fn check(name: &'static str, status: CheckStatus, detail: &str) -> Check {
    Check { name, status, detail: detail.to_owned() }
}
