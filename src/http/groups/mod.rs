//! `/groups`: consumer groups as resources.

mod deliveries;
mod parked;
pub mod settings;
pub mod settle;

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    accept::accepts_json,
    access::Grant,
    admin::NO_STORE,
    body::json_body,
    extract::{GroupPath, Headers, Query},
    json,
    problem::{Code, Problem},
};
use crate::{
    model::{Cursor, GroupName, Partitions, rfc3339},
    store::{Group, GroupStatus},
};
use settings::{FORM, SettingsDocument, parse_start, refuse};

/// The routes of consumer groups.
pub fn router() -> OpenApiRouter<App> {
    let resource = OpenApiRouter::new()
        .routes(routes!(list_groups))
        .routes(routes!(put_group, get_group, delete_group))
        .routes(routes!(seek_group))
        .routes(routes!(pause_group))
        .routes(routes!(resume_group));
    resource.merge(deliveries::router()).merge(settle::router()).merge(parked::router())
}

/// What the caller may do, where access is on.
type Granted = Option<Extension<Arc<Grant>>>;

/// A consumer group.
#[derive(Serialize, ToSchema)]
#[schema(as = Group)]
pub struct GroupDocument {
    /// Its name.
    #[schema(example = "mailer")]
    group: String,
    /// Its settings, as PUT takes them.
    settings: SettingsDocument,
    /// Whether it hands out nothing for now.
    paused: bool,
}

/// The consumer groups that there are.
#[derive(Serialize, ToSchema)]
#[schema(as = Groups)]
pub struct GroupsDocument {
    /// In order of their names.
    groups: Vec<GroupDocument>,
}

/// A consumer group, and how it stands.
#[derive(Serialize, ToSchema)]
#[schema(as = GroupStatus)]
pub struct StatusDocument {
    /// Its name.
    #[schema(example = "mailer")]
    group: String,
    /// Its settings, as PUT takes them.
    settings: SettingsDocument,
    /// Whether it hands out nothing for now.
    paused: bool,
    /// Whether nobody has asked for events for a time that the service is set to (a day, unless set otherwise).
    idle: bool,
    /// When somebody last asked for events, to within ten seconds.
    #[schema(format = DateTime, example = "2026-11-23T12:00:00.000Z")]
    last_asked: String,
    /// Events that the group has not yet looked at. Under `categories` and `types` not all of them will be delivered.
    #[schema(value_type = i64, minimum = 0)]
    lag: u64,
    /// For how long the first of them has been waiting; 0 where there is none.
    #[schema(minimum = 0)]
    lag_seconds: f64,
    /// Events leased to consumers.
    #[schema(value_type = i64, minimum = 0)]
    in_flight: u64,
    /// Events that wait for a retry.
    #[schema(value_type = i64, minimum = 0)]
    waiting: u64,
    /// Events that were looked at and are still to be delivered: their stream was busy, or they are replayed.
    #[schema(value_type = i64, minimum = 0)]
    held: u64,
    /// Streams that stand behind a parked event.
    #[schema(value_type = i64, minimum = 0)]
    stopped_streams: u64,
    /// Events set aside.
    #[schema(value_type = i64, minimum = 0)]
    parked: u64,
    /// Age of the oldest event that was delivered and is not settled, or not yet delivered; 0 where there is none.
    #[schema(minimum = 0)]
    oldest_unacked_seconds: f64,
    /// Those who were handed something. Who has had nothing in hand for an hour is forgotten sooner or later.
    consumers: Vec<ConsumerDocument>,
    /// With `?acked=`: whether everything up to that cursor is settled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    acked: Option<bool>,
}

/// A consumer of a group.
#[derive(Serialize, ToSchema)]
#[schema(as = Consumer)]
pub struct ConsumerDocument {
    /// Its name.
    #[schema(example = "default")]
    name: String,
    /// Events that it was handed last and that are not settled, those that wait for a retry included.
    #[schema(value_type = i64, minimum = 0)]
    in_flight: u64,
    /// When it was last handed something.
    #[schema(format = DateTime, example = "2026-11-23T12:00:00.000Z")]
    last_seen: String,
}

/// Where a group is to go.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Seek)]
pub struct SeekRequest {
    /// As `start` of the group: `"beginning"`, `"end"`, after a position, after a cursor, or a time.
    #[schema(value_type = super::document::Start)]
    to: Value,
}

/// List consumer groups
#[utoipa::path(
    get, path = "/groups", operation_id = "listGroups", tag = "groups",
    responses(
        (status = 200, description = "All of them", body = GroupsDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 406, response = super::document::NotAcceptable),
        (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn list_groups(
    State(app): State<App>,
    granted: Granted,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    Query::parse(&query, &[])?;
    accepts_json(&headers)?;
    let partitions = app.store.partitions();
    let groups = app.store.groups().await?;
    let seen =
        groups.iter().filter(|group| granted.as_ref().is_none_or(|grant| grant.rights.group(group.name.as_str())));
    let groups = seen.map(|group| GroupDocument::of(group, partitions)).collect();
    Ok((([NO_STORE]), Json(GroupsDocument { groups })).into_response())
}

/// Create a consumer group, or change its settings
///
/// The body holds all settings; what is absent has its default. `stream`, `categories`, `types`, `ordering` and `start`
/// are fixed when the group is created: another value answers 409. The other settings may be changed, and hold for what
/// is handed out from then on.
#[utoipa::path(
    put, path = "/groups/{group}", operation_id = "putGroup", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    request_body(content = SettingsDocument, description = "The settings", example = json!({"categories": ["order"], "ordering": "stream", "max_deliveries": 5})),
    responses(
        (status = 201, description = "Created", body = GroupDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 200, description = "It was there; its settings are now these", body = GroupDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 406, response = super::document::NotAcceptable),
        (status = 408, response = super::document::RequestTimeout), (status = 409, response = super::document::GroupExists),
        (status = 413, response = super::document::TooLarge), (status = 415, response = super::document::UnsupportedMediaType),
        (status = 422, response = super::document::BadGroup), (status = 503, response = super::document::Unavailable),
        (status = 507, response = super::document::StorageFull),
    )
)]
pub async fn put_group(
    State(app): State<App>,
    granted: Granted,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
    body: Body,
) -> Result<Response, Problem> {
    Query::parse(&query, &[])?;
    accepts_json(&headers)?;
    let body = json_body(&headers, body, &app.limits, &app.room).await?;
    let document: SettingsDocument = json::parse(&body, FORM)?;
    let (settings, cursor) = document.checked(app.store.partitions())?;
    if let Some(grant) = &granted {
        grant.check_source(&settings)?;
    }
    check_history(&app, cursor).await?;
    let new = app.store.put_group(&name, &settings).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, group_answer(&app, &app.store.group(&name).await?)).into_response())
}

/// Look at a consumer group
///
/// Its settings, and how it stands. With `acked`, a cursor as the answer of an append has it, the request waits until
/// the group has settled everything up to there, but at most `wait` seconds: the way to wait for a projection. `acked`
/// of the answer says whether it has; what was parked is not settled.
#[utoipa::path(
    get, path = "/groups/{group}", operation_id = "getGroup", tag = "groups",
    params(
        ("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("acked" = inline(Option<String>), Query, description = "A cursor: whether the group has settled everything up to there", min_length = 1, pattern = "^[A-Za-z0-9_-]+$"),
        ("wait" = inline(Option<i32>), Query, description = "With `acked`: how many seconds to wait for it (default 0)", minimum = 0, maximum = 60),
    ),
    responses(
        (status = 200, description = "The group", body = StatusDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 404, response = super::document::GroupNotFound),
        (status = 406, response = super::document::NotAcceptable), (status = 409, response = super::document::Diverged),
        (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn get_group(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    let query = Query::parse(&query, &["acked", "wait"])?;
    accepts_json(&headers)?;
    let wait = app.wait(&query)?;
    let partitions = app.store.partitions();
    let cursor = query.parsed("acked", "a cursor of this store", |text| Cursor::parse(text, partitions))?;
    if cursor.is_none() && query.get("wait").is_some() {
        return Err(Problem::new(Code::InvalidParameter, "The parameter wait goes with acked."));
    }
    let acked = match &cursor {
        Some(cursor) => Some(app.store.settled_until(&name, cursor, wait.until, &app.closing).await?),
        None => None,
    };
    let (group, status) = app.store.group_status(&name).await?;
    let status = StatusDocument { acked, ..StatusDocument::of(&app, &group, status) };
    Ok(([NO_STORE], Json(status)).into_response())
}

/// Delete a consumer group
///
/// With its leases and its parked events. The events themselves stay where they are.
#[utoipa::path(
    delete, path = "/groups/{group}", operation_id = "deleteGroup", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    responses(
        (status = 204, description = "It is gone", headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 404, response = super::document::GroupNotFound),
        (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn delete_group(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
) -> Result<Response, Problem> {
    Query::parse(&query, &[])?;
    app.store.delete_group(&name).await?;
    Ok((StatusCode::NO_CONTENT, [NO_STORE]).into_response())
}

/// Move a consumer group
///
/// To the beginning, the end, a position, a cursor or a time. Its leases are lost and its retries forgotten. Parked
/// events stay; one that is handed out again leaves the parked ones.
#[utoipa::path(
    post, path = "/groups/{group}/seek", operation_id = "seekGroup", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    request_body(content = SeekRequest, description = "Where to", example = json!({"to": "beginning"})),
    responses(
        (status = 200, description = "Moved", body = GroupDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 404, response = super::document::GroupNotFound),
        (status = 406, response = super::document::NotAcceptable), (status = 408, response = super::document::RequestTimeout),
        (status = 409, response = super::document::Diverged), (status = 413, response = super::document::TooLarge),
        (status = 415, response = super::document::UnsupportedMediaType), (status = 422, response = super::document::BadGroup),
        (status = 503, response = super::document::Unavailable), (status = 507, response = super::document::StorageFull),
    )
)]
pub async fn seek_group(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
    body: Body,
) -> Result<Response, Problem> {
    Query::parse(&query, &[])?;
    accepts_json(&headers)?;
    let body = json_body(&headers, body, &app.limits, &app.room).await?;
    let SeekRequest { to } = json::parse(&body, r#"{"to"}"#)?;
    let one_stream = app.store.group(&name).await?.settings.stream.is_some();
    let (to, cursor) = parse_start(&to, one_stream, app.store.partitions()).map_err(|why| refuse("to", why))?;
    check_history(&app, cursor).await?;
    let group = app.store.seek(&name, &to).await?;
    Ok(group_answer(&app, &group))
}

/// Pause a consumer group
///
/// It hands out nothing until it is resumed. Leases that are out stay as they are and may be settled.
#[utoipa::path(
    post, path = "/groups/{group}/pause", operation_id = "pauseGroup", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    responses(
        (status = 200, description = "Paused", body = GroupDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 404, response = super::document::GroupNotFound),
        (status = 406, response = super::document::NotAcceptable), (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn pause_group(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    set_paused(&app, &name, &query, &headers, true).await
}

/// Resume a consumer group
#[utoipa::path(
    post, path = "/groups/{group}/resume", operation_id = "resumeGroup", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    responses(
        (status = 200, description = "Resumed", body = GroupDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 404, response = super::document::GroupNotFound),
        (status = 406, response = super::document::NotAcceptable), (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn resume_group(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    set_paused(&app, &name, &query, &headers, false).await
}

async fn set_paused(
    app: &App,
    name: &GroupName,
    query: &RawQuery,
    headers: &axum::http::HeaderMap,
    paused: bool,
) -> Result<Response, Problem> {
    Query::parse(query, &[])?;
    accepts_json(headers)?;
    let group = app.store.pause(name, paused).await?;
    Ok(group_answer(app, &group))
}

/// Refuses a cursor from another history of the store.
async fn check_history(app: &App, cursor: Option<Cursor>) -> Result<(), Problem> {
    for (partition, place) in app.store.partitions().all().zip(cursor.into_iter().flat_map(|cursor| cursor.places)) {
        app.store.check_place(partition, place).await?;
    }
    Ok(())
}

fn group_answer(app: &App, group: &Group) -> Response {
    ([NO_STORE], Json(GroupDocument::of(group, app.store.partitions()))).into_response()
}

impl GroupDocument {
    fn of(group: &Group, partitions: Partitions) -> Self {
        let settings = SettingsDocument::of(&group.settings, partitions);
        Self { group: group.name.to_string(), settings, paused: group.paused }
    }
}

impl StatusDocument {
    fn of(app: &App, group: &Group, status: GroupStatus) -> Self {
        let now = status.now_ms;
        let since = |at: Option<u64>| at.map_or(0, |at| now.saturating_sub(at));
        let consumers = status.consumers.into_iter().map(|consumer| ConsumerDocument {
            last_seen: rfc3339(now.saturating_sub(consumer.idle_ms)),
            name: consumer.name,
            in_flight: consumer.in_flight,
        });
        let mut consumers: Vec<_> = consumers.collect();
        consumers.sort_by(|one, other| one.name.cmp(&other.name));
        let GroupDocument { group, settings, paused } = GroupDocument::of(group, app.store.partitions());
        Self {
            group,
            settings,
            paused,
            idle: u128::from(since(Some(status.asked_ms))) >= app.group_idle.as_millis(),
            last_asked: rfc3339(status.asked_ms),
            lag: status.lag,
            lag_seconds: seconds(since(status.behind_since_ms)),
            in_flight: status.in_flight,
            waiting: status.waiting,
            held: status.held,
            stopped_streams: status.stopped_streams,
            parked: status.parked,
            oldest_unacked_seconds: seconds(since(status.oldest_ms)),
            consumers,
            acked: None,
        }
    }
}

fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}
