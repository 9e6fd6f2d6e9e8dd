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
use crate::{
    model::Durability,
    store::{Check, CheckStatus, judge},
};

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
    /// What an acknowledged append survives that asks for nothing.
    #[schema(value_type = super::document::DurabilityLevel)]
    durability: Durability,
    /// Number of partitions.
    partitions: u16,
    /// Those of them whose Redis does not answer: requests for them are answered 503, others are not touched.
    unavailable: Vec<u16>,
    /// Each check by its name.
    checks: Vec<Check>,
}

/// Is the process alive?
#[utoipa::path(get, path = "/livez", operation_id = "livez", tag = "operations", responses(
    (status = 200, description = "Yes", body = Alive, headers(
        ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
    (status = 400, response = super::document::BadRequest),
))]
pub async fn livez() -> Response {
    ([NO_STORE], Json(Alive { status: "alive", version: env!("CARGO_PKG_VERSION") })).into_response()
}

/// Is the service ready?
///
/// 503 while Redis does not answer, the functions cannot be loaded, or the service drains; the member `checks` of the
/// problem then names each check, as does the body of a 200. In a cluster it is 200 as long as one primary answers, and
/// `unavailable` names the partitions of those that do not.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "operations", responses(
    (status = 200, description = "Ready", body = Readiness, headers(
        ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
    (status = 400, response = super::document::BadRequest),
    (status = 503, response = super::document::NotReady),
))]
pub async fn readyz(State(app): State<App>) -> Response {
    let seen = app.store.check_health().await;
    let mut checks = judge(&seen);
    let draining = app.shutdown.is_cancelled();
    checks.push(if draining {
        Check::fail("drain", "the service drains")
    } else {
        Check::ok("drain", "takes requests")
    });
    if checks.iter().any(|check| check.status == CheckStatus::Fail) {
        let checks = serde_json::to_string(&checks).expect("plain members are JSON");
        return Problem::new(Code::NotReady, "See checks.").with("checks", checks).into_response();
    }
    let (durability, partitions) = (app.store.standing().level(), app.store.partitions().count());
    let away = seen.iter().filter(|seen| seen.health.is_none()).flat_map(|seen| &seen.partitions);
    let unavailable = away.map(|partition| partition.get()).collect();
    let readiness = Readiness { status: "ready", durability, partitions, unavailable, checks };
    ([NO_STORE], Json(readiness)).into_response()
}
