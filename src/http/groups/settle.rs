//! `POST /groups/{group}/ack`, `/nack` and `/extend`

use std::collections::HashSet;

use axum::{
    Json,
    body::Body,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::settings::{DELAY_MS, LEASE_MS, check_range, refuse};
use crate::http::{
    App,
    accept::accepts_json,
    admin::NO_STORE,
    body::json_body,
    extract::{GroupPath, Headers, Query},
    json,
    problem::{Code, Problem},
};
use crate::{
    model::{LeaseToken, Partitions, Settled, Whole, present, rfc3339},
    store::Nack,
};

/// Most leases of a request.
const LEASES_MAX: usize = 1_000;
/// Longest reason, in characters.
const REASON_MAX: usize = 1_000;

/// The routes that settle.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(ack)).routes(routes!(nack)).routes(routes!(extend))
}

/// Leases.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Ack)]
pub struct AckRequest {
    /// 1 to 1,000, as they came with the deliveries.
    #[schema(value_type = Vec<crate::http::document::Lease>, min_items = 1, max_items = 1000)]
    leases: Vec<String>,
}

/// Leases, and what is to become of their events.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Nack)]
pub struct NackRequest {
    /// 1 to 1,000, as they came with the deliveries.
    #[schema(value_type = Vec<crate::http::document::Lease>, min_items = 1, max_items = 1000)]
    leases: Vec<String>,
    /// What is to become of the events.
    action: NackAction,
    /// With `retry`: how long to wait, instead of the group's `backoff_ms`.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 0, maximum = 604_800_000)]
    delay_ms: Option<Whole>,
    /// Why, for those who look at parked events.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, max_length = 1000, example = "mail server does not answer")]
    reason: Option<String>,
}

/// What is to become of events that are given back.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NackAction {
    /// They are handed out again after a wait; parked where their deliveries are used up.
    Retry,
    /// They are set aside.
    Park,
    /// They are settled for good, as if acked.
    Skip,
}

/// Leases, and how long they are to last.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Extend)]
pub struct ExtendRequest {
    /// 1 to 1,000, as they came with the deliveries.
    #[schema(value_type = Vec<crate::http::document::Lease>, min_items = 1, max_items = 1000)]
    leases: Vec<String>,
    /// How long from now on; absent: the group's `lease_ms`.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 1000, maximum = 43_200_000)]
    lease_ms: Option<Whole>,
}

/// What became of an ack.
#[derive(Serialize, ToSchema)]
pub struct AckResult {
    /// How many events are settled by this request.
    #[schema(value_type = i32, minimum = 0, example = 1)]
    acked: usize,
    /// How many had been settled before.
    #[schema(value_type = i32, minimum = 0, example = 0)]
    already: usize,
    /// Leases that do not hold any more; nothing was done for them.
    lost: Vec<LostLease>,
}

/// What became of a nack.
#[derive(Serialize, ToSchema)]
pub struct NackResult {
    /// How many events were given back by this request.
    #[schema(value_type = i32, minimum = 0, example = 1)]
    nacked: usize,
    /// How many had been settled before, or given back by the same nack: a repeated request finds what it did itself.
    #[schema(value_type = i32, minimum = 0, example = 0)]
    already: usize,
    /// Leases that do not hold any more; nothing was done for them.
    lost: Vec<LostLease>,
}

/// What became of an extend.
#[derive(Serialize, ToSchema)]
pub struct ExtendResult {
    /// The leases that hold, with their new deadlines.
    extended: Vec<ExtendedLease>,
    /// How many events had been settled before.
    #[schema(value_type = i32, minimum = 0, example = 0)]
    already: usize,
    /// Leases that do not hold any more; nothing was done for them.
    lost: Vec<LostLease>,
}

/// A lease that holds longer.
#[derive(Serialize, ToSchema)]
pub struct ExtendedLease {
    /// As it was sent.
    lease: String,
    /// When it ends now.
    #[schema(format = DateTime, example = "2026-11-23T12:00:30.000Z")]
    deadline: String,
}

/// A lease that does not hold.
#[derive(Serialize, ToSchema)]
pub struct LostLease {
    /// As it was sent.
    lease: String,
    /// Why: `handed-out-again`, `given-back`, `parked`, `sought` (also a lease of another group), `not-delivered`.
    #[schema(example = "handed-out-again")]
    reason: String,
}

/// Settle events for good
///
/// Each lease is judged by itself. Acking twice is no error. Where none of the leases holds, and none of their events
/// had been settled before, the answer is 409.
#[utoipa::path(
    post, path = "/groups/{group}/ack", operation_id = "ack", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    request_body(content = AckRequest, description = "The leases"),
    responses(
        (status = 200, description = "Settled", body = AckResult, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = crate::http::document::BadRequest), (status = 404, response = crate::http::document::GroupNotFound),
        (status = 406, response = crate::http::document::NotAcceptable), (status = 408, response = crate::http::document::RequestTimeout),
        (status = 409, response = crate::http::document::LeaseLost), (status = 413, response = crate::http::document::TooLarge),
        (status = 415, response = crate::http::document::UnsupportedMediaType), (status = 422, response = crate::http::document::BadGroup),
        (status = 503, response = crate::http::document::Unavailable),
    )
)]
pub async fn ack(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
    body: Body,
) -> Result<Response, Problem> {
    let AckRequest { leases } = read(&app, &query, &headers, body, r#"{"leases"}"#).await?;
    let (texts, leases) = tokens(leases, app.store.partitions())?;
    let Outcome { done, already, lost } = Outcome::of(&app, "acked", texts, app.store.ack(&name, &leases).await?)?;
    Ok(([NO_STORE], Json(AckResult { acked: done.len(), already, lost })).into_response())
}

/// Give events back
///
/// To be handed out again, after `delay_ms` or the group's backoff; to be parked; or to be skipped. A retry of the last
/// delivery parks.
#[utoipa::path(
    post, path = "/groups/{group}/nack", operation_id = "nack", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    request_body(content = NackRequest, description = "The leases, and what is to become of their events"),
    responses(
        (status = 200, description = "Given back", body = NackResult, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = crate::http::document::BadRequest), (status = 404, response = crate::http::document::GroupNotFound),
        (status = 406, response = crate::http::document::NotAcceptable), (status = 408, response = crate::http::document::RequestTimeout),
        (status = 409, response = crate::http::document::LeaseLost), (status = 413, response = crate::http::document::TooLarge),
        (status = 415, response = crate::http::document::UnsupportedMediaType), (status = 422, response = crate::http::document::BadGroup),
        (status = 503, response = crate::http::document::Unavailable),
    )
)]
pub async fn nack(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
    body: Body,
) -> Result<Response, Problem> {
    const FORM: &str = r#"{"leases","action":"retry"|"park"|"skip","delay_ms"?,"reason"?}"#;
    let request: NackRequest = read(&app, &query, &headers, body, FORM).await?;
    let reason = request.reason.as_deref().unwrap_or_default();
    if reason.chars().count() > REASON_MAX {
        return Err(refuse("reason", &format!("has at most {REASON_MAX} characters")));
    }
    if let Some(delay) = request.delay_ms {
        check_range(delay.0, &DELAY_MS).map_err(|why| refuse("delay_ms", &why))?;
    }
    let (nack, outcome) = match request.action {
        NackAction::Retry => (Nack::retry(request.delay_ms.map(|delay| delay.0), reason), "retried"),
        _ if request.delay_ms.is_some() => return Err(refuse("delay_ms", "goes with retry only")),
        NackAction::Park => (Nack::park(reason), "parked"),
        NackAction::Skip => (Nack::skip(reason), "skipped"),
    };
    let (texts, leases) = tokens(request.leases, app.store.partitions())?;
    let Outcome { done, already, lost } =
        Outcome::of(&app, outcome, texts, app.store.nack(&name, &nack, &leases).await?)?;
    Ok(([NO_STORE], Json(NackResult { nacked: done.len(), already, lost })).into_response())
}

/// Let leases end later
#[utoipa::path(
    post, path = "/groups/{group}/extend", operation_id = "extendLeases", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    request_body(content = ExtendRequest, description = "The leases"),
    responses(
        (status = 200, description = "Extended", body = ExtendResult, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = crate::http::document::BadRequest), (status = 404, response = crate::http::document::GroupNotFound),
        (status = 406, response = crate::http::document::NotAcceptable), (status = 408, response = crate::http::document::RequestTimeout),
        (status = 409, response = crate::http::document::LeaseLost), (status = 413, response = crate::http::document::TooLarge),
        (status = 415, response = crate::http::document::UnsupportedMediaType), (status = 422, response = crate::http::document::BadGroup),
        (status = 503, response = crate::http::document::Unavailable),
    )
)]
pub async fn extend(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
    body: Body,
) -> Result<Response, Problem> {
    let request: ExtendRequest = read(&app, &query, &headers, body, r#"{"leases","lease_ms"?}"#).await?;
    if let Some(lease) = request.lease_ms {
        check_range(lease.0, &LEASE_MS).map_err(|why| refuse("lease_ms", &why))?;
    }
    let (texts, leases) = tokens(request.leases, app.store.partitions())?;
    let (words, deadlines): (_, Vec<u64>) =
        app.store.extend(&name, request.lease_ms.map(|lease| lease.0), &leases).await?.into_iter().unzip();
    let Outcome { done, already, lost } = Outcome::of(&app, "extended", texts, words)?;
    let extended = done.into_iter().map(|(at, lease)| ExtendedLease { lease, deadline: rfc3339(deadlines[at]) });
    Ok(([NO_STORE], Json(ExtendResult { extended: extended.collect(), already, lost })).into_response())
}

async fn read<T: DeserializeOwned>(
    app: &App,
    query: &RawQuery,
    headers: &HeaderMap,
    body: Body,
    form: &str,
) -> Result<T, Problem> {
    Query::parse(query, &[])?;
    accepts_json(headers)?;
    json::parse(&json_body(headers, body, &app.limits, &app.room).await?, form)
}

/// Reads leases; one that stands twice counts once.
fn tokens(texts: Vec<String>, partitions: Partitions) -> Result<(Vec<String>, Vec<LeaseToken>), Problem> {
    if texts.is_empty() {
        return Err(refuse("leases", "has at least one lease"));
    }
    if texts.len() > LEASES_MAX {
        return Err(Problem::new(Code::PayloadTooLarge, format!("A request has at most {LEASES_MAX} leases.")));
    }
    let mut seen = HashSet::with_capacity(texts.len());
    let (mut kept, mut leases) = (Vec::with_capacity(texts.len()), Vec::with_capacity(texts.len()));
    for (index, text) in texts.into_iter().enumerate() {
        let Some(lease) = LeaseToken::parse(&text, partitions) else {
            let problem = Problem::new(Code::InvalidLease, "Send leases back as they came with their deliveries.");
            return Err(problem.at(format!("#/leases/{index}"), "is no lease of this store"));
        };
        if seen.insert(text.clone()) {
            kept.push(text);
            leases.push(lease);
        }
    }
    Ok((kept, leases))
}

/// What became of leases.
struct Outcome {
    /// Those that held, with their index.
    done: Vec<(usize, String)>,
    already: usize,
    lost: Vec<LostLease>,
}

impl Outcome {
    /// Sorts the answers, and counts them; those that held as `done`.
    ///
    /// # Errors
    /// `lease-lost` where all are lost.
    fn of(app: &App, done: &'static str, texts: Vec<String>, answers: Vec<Settled>) -> Result<Self, Problem> {
        let mut outcome = Self { done: Vec::with_capacity(texts.len()), already: 0, lost: Vec::new() };
        for (index, (lease, answer)) in texts.into_iter().zip(answers).enumerate() {
            match answer {
                Settled::Done => outcome.done.push((index, lease)),
                Settled::Already => outcome.already += 1,
                Settled::Lost(reason) => outcome.lost.push(LostLease { lease, reason }),
            }
        }
        let counts = [(done, outcome.done.len()), ("already", outcome.already), ("lost", outcome.lost.len())];
        for (outcome, leases) in counts {
            app.metrics.settled(outcome, leases);
        }
        if outcome.done.is_empty() && outcome.already == 0 {
            let lost = serde_json::to_string(&outcome.lost).expect("plain members are JSON");
            let detail = "None of the leases holds, and nothing was done; lost says why. The events are in the hands \
                          of the group.";
            return Err(Problem::new(Code::LeaseLost, detail).with("lost", lost));
        }
        Ok(outcome)
    }
}
