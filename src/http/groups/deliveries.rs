//! `GET` and `POST /groups/{group}/next`

use std::io::Write as _;

use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::http::{
    App,
    accept::accepts_json,
    admin::NO_STORE,
    events::{EventDocument, json_response},
    extract::{GroupPath, Headers, Query},
    problem::Problem,
};
use crate::{
    model::{Delivery, GroupName, rfc3339},
    store::Asked,
};

/// Who asks without a name.
const CONSUMER: &str = "default";
/// Most events of an answer.
const LIMIT_MAX: usize = 1_000;

/// The route that hands out. A HEAD that the framework answered with GET's handler would take events unseen: it is
/// refused, and not listed among the methods that fit.
pub fn router() -> OpenApiRouter<App> {
    let (schemas, paths, methods) = routes!(next, post_next);
    OpenApiRouter::new().routes((schemas, paths, methods.head(other_method).fallback(other_method)))
}

async fn other_method() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, POST")]).into_response()
}

/// What was handed out.
#[derive(Serialize, ToSchema)]
#[schema(as = Deliveries)]
pub struct DeliveriesDocument {
    /// The events with their leases; none where nothing came in time.
    deliveries: Vec<DeliveryDocument>,
}

/// An event that was handed out.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryDocument {
    /// Opaque: to be shown with ack, nack and extend.
    #[schema(example = "MC5hMWIyYzNkNGU1ZjYwNzE4LjczLmI3YzhkOWUwZjFhMjM0NTY6MToxOm9yZGVyLTEyMzQ1")]
    lease: String,
    /// When the event is handed out again, unless it is settled or the lease extended.
    #[schema(format = DateTime, example = "2026-11-23T12:00:30.000Z")]
    deadline: String,
    /// How many times it has been handed out, this one counted.
    #[schema(minimum = 1, example = 1)]
    delivery_count: i64,
    /// The event.
    event: EventDocument,
}

/// Take the next events
///
/// Hands events to a consumer, each with a lease: retries that are due and events whose lease has run out first, then
/// new ones. Where there is nothing, the answer waits up to `wait` seconds and is empty in the end. Delivery is at least
/// once: what is not acked comes again. HEAD is refused, for GET takes events; behind caches and prefetchers use POST.
#[utoipa::path(
    get, path = "/groups/{group}/next", operation_id = "takeNext", tag = "groups",
    params(
        ("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("consumer" = inline(Option<String>), Query, description = "Who asks (default `default`)", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("limit" = inline(Option<i32>), Query, description = "Most events wanted (default 1)", minimum = 1, maximum = 1000),
        ("wait" = inline(Option<i32>), Query, description = "How many seconds to wait where there is nothing (default 0)", minimum = 0, maximum = 60),
    ),
    responses(
        (status = 200, description = "What there was", body = DeliveriesDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = crate::http::document::BadRequest), (status = 404, response = crate::http::document::GroupNotFound),
        (status = 406, response = crate::http::document::NotAcceptable), (status = 503, response = crate::http::document::Unavailable),
        (status = 507, response = crate::http::document::StorageFull),
    )
)]
pub async fn next(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    hand_out(&app, &name, &query, &headers).await
}

/// Take the next events, by POST
///
/// As GET, for clients behind caches or prefetchers.
#[utoipa::path(
    post, path = "/groups/{group}/next", operation_id = "takeNextByPost", tag = "groups",
    params(
        ("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("consumer" = inline(Option<String>), Query, description = "Who asks (default `default`)", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("limit" = inline(Option<i32>), Query, description = "Most events wanted (default 1)", minimum = 1, maximum = 1000),
        ("wait" = inline(Option<i32>), Query, description = "How many seconds to wait where there is nothing (default 0)", minimum = 0, maximum = 60),
    ),
    responses(
        (status = 200, description = "What there was", body = DeliveriesDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = crate::http::document::BadRequest), (status = 404, response = crate::http::document::GroupNotFound),
        (status = 406, response = crate::http::document::NotAcceptable), (status = 503, response = crate::http::document::Unavailable),
        (status = 507, response = crate::http::document::StorageFull),
    )
)]
pub async fn post_next(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    hand_out(&app, &name, &query, &headers).await
}

async fn hand_out(app: &App, name: &GroupName, query: &RawQuery, headers: &HeaderMap) -> Result<Response, Problem> {
    let query = Query::parse(query, &["consumer", "limit", "wait"])?;
    accepts_json(headers)?;
    let consumer = query.parsed("consumer", "a name as that of a stream", GroupName::parse)?;
    let consumer = consumer.unwrap_or_else(|| GroupName::parse(CONSUMER).expect("a good name"));
    let wait = app.wait(&query)?;
    // Each request begins with another partition, so that none is served before the others.
    let turn = fastrand::usize(..usize::from(app.store.partitions().count()));
    let asked = Asked { consumer, limit: query.limit(1, LIMIT_MAX)?, turn };
    let deliveries = app.store.next_until(name, &asked, wait.until, &app.closing).await?;
    let again = deliveries.iter().filter(|delivery| delivery.delivery_count > 1).count();
    app.metrics.delivered(deliveries.len() - again, again);
    let mut body = Vec::with_capacity(32 + deliveries.iter().map(|d| d.event.data.len() + 512).sum::<usize>());
    body.extend_from_slice(b"{\"deliveries\":[");
    for (index, delivery) in deliveries.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        write_delivery(&mut body, delivery);
    }
    body.extend_from_slice(b"]}");
    Ok(([NO_STORE], json_response(body)).into_response())
}

fn write_delivery(out: &mut Vec<u8>, delivery: &Delivery) {
    let Delivery { lease, deadline_ms, delivery_count, event } = delivery;
    let (lease, deadline) = (lease.token(), rfc3339(*deadline_ms));
    write!(out, "{{\"lease\":\"{lease}\",\"deadline\":\"{deadline}\",\"delivery_count\":{delivery_count},\"event\":")
        .expect("writing to memory cannot fail");
    event.write_json(out);
    out.push(b'}');
}
