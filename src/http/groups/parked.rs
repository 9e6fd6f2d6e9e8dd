//! `GET` and `DELETE /groups/{group}/parked`, `POST /groups/{group}/parked/replay`

use axum::{
    Json,
    body::Body,
    extract::{RawQuery, State},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::settings::refuse;
use crate::http::{
    App,
    accept::accepts_json,
    admin::NO_STORE,
    body::json_body,
    events::{EventDocument, json_response},
    extract::{GroupPath, Headers, Query},
    json,
    problem::{Code, Problem},
};
use crate::{
    model::{LeaseToken, Partition, Partitions, Position, StreamId, Version, Whole, present, rfc3339},
    store::{Parked, Which},
};

/// Most events that a list names.
const IDS_MAX: usize = 1_000;

/// The routes of parked events.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_parked, drop_parked)).routes(routes!(replay_parked))
}

/// A page of parked events.
#[derive(Serialize, ToSchema)]
#[schema(as = ParkedPage)]
pub struct ParkedPageDocument {
    /// The events, in the order of the log within each partition.
    parked: Vec<ParkedDocument>,
    /// `after` of the next page; null at the end.
    #[schema(required = true, example = "0-73")]
    next: Option<String>,
}

/// A parked event.
#[derive(Serialize, ToSchema)]
#[schema(as = Parked)]
pub struct ParkedDocument {
    /// Names it in a replay or a drop.
    #[schema(example = "0-73")]
    id: String,
    /// Why it was parked: `exhausted` (its deliveries were used up) or `nack`.
    #[schema(example = "exhausted")]
    reason: String,
    /// The reason that its last nack gave.
    #[schema(value_type = String, required = false, example = "mail server does not answer")]
    last_error: Option<String>,
    /// How many times it was handed out.
    #[schema(minimum = 1, example = 10)]
    delivery_count: i64,
    /// When it was parked.
    #[schema(format = DateTime, example = "2026-11-23T12:00:00.000Z")]
    parked_at: String,
    /// Its stream.
    #[schema(example = "order-12345")]
    stream: String,
    /// Its version.
    #[schema(minimum = 1, example = 1)]
    version: i64,
    /// The event; absent where it was removed.
    #[schema(required = false)]
    event: EventDocument,
}

/// Which parked events are meant: one of these members; none: all.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WhichParked, max_properties = 1)]
pub struct WhichRequest {
    /// The first so many.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    count: Option<Whole>,
    /// Those of this stream.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")]
    stream: Option<String>,
    /// These: ids of parked events, or leases that they were handed out with; at most 1,000.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Vec<String>, required = false, max_items = 1000)]
    ids: Option<Vec<String>>,
}

/// What became of a replay.
#[derive(Serialize, ToSchema)]
pub struct ReplayResult {
    /// How many events will be handed out again.
    #[schema(value_type = i64, minimum = 0)]
    replayed: usize,
}

/// What became of a drop.
#[derive(Serialize, ToSchema)]
pub struct DropResult {
    /// How many events were dropped.
    #[schema(value_type = i64, minimum = 0)]
    dropped: usize,
}

/// List parked events
#[utoipa::path(
    get, path = "/groups/{group}/parked", operation_id = "listParked", tag = "groups",
    params(
        ("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("after" = inline(Option<String>), Query, description = "`next` of the page before; absent: from the first", min_length = 1, pattern = "^[0-9]+-[0-9]+$"),
        ("limit" = inline(Option<i32>), Query, description = "Most events wanted (default 100)", minimum = 1, maximum = 1000),
    ),
    responses(
        (status = 200, description = "A page", body = ParkedPageDocument, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = crate::http::document::BadRequest), (status = 404, response = crate::http::document::GroupNotFound),
        (status = 406, response = crate::http::document::NotAcceptable), (status = 503, response = crate::http::document::Unavailable),
    )
)]
pub async fn list_parked(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    let query = Query::parse(&query, &["after", "limit"])?;
    accepts_json(&headers)?;
    let partitions = app.store.partitions();
    let after = query.parsed("after", "next of the page before", |text| place(text, partitions))?;
    let limit = query.limit(100, app.limits.page_events)?;
    let from = after.map(|(partition, position)| (partition, position.plus(1)));
    let page = app.store.parked(&name, from, limit).await?;
    let mut body = b"{\"parked\":[".to_vec();
    for (index, parked) in page.parked.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        write_parked(&mut body, parked);
    }
    let last = page.parked.last().filter(|_| page.next.is_some()).map(id);
    let next = last.map_or("null".to_owned(), |id| format!("\"{id}\""));
    body.extend_from_slice(format!("],\"next\":{next}}}").as_bytes());
    Ok(([NO_STORE], json_response(body)).into_response())
}

/// Replay parked events
///
/// Hands them out again: in order, in ordered groups before newer events of their streams, with their delivery counts
/// reset. Without a member in the body: all.
#[utoipa::path(
    post, path = "/groups/{group}/parked/replay", operation_id = "replayParked", tag = "groups",
    params(("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")),
    request_body(content = WhichRequest, description = "Which ones", example = json!({"count": 10})),
    responses(
        (status = 200, description = "Replayed", body = ReplayResult, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = crate::http::document::BadRequest), (status = 404, response = crate::http::document::GroupNotFound),
        (status = 406, response = crate::http::document::NotAcceptable), (status = 408, response = crate::http::document::RequestTimeout),
        (status = 413, response = crate::http::document::TooLarge), (status = 415, response = crate::http::document::UnsupportedMediaType),
        (status = 422, response = crate::http::document::BadGroup), (status = 503, response = crate::http::document::Unavailable),
        (status = 507, response = crate::http::document::StorageFull),
    )
)]
pub async fn replay_parked(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
    body: Body,
) -> Result<Response, Problem> {
    Query::parse(&query, &[])?;
    accepts_json(&headers)?;
    let body = json_body(&headers, body, &app.limits, &app.room).await?;
    let request: WhichRequest = json::parse(&body, r#"{"count"?|"stream"?|"ids"?}"#)?;
    let which = which(request, app.store.partitions()).map_err(|(member, why)| refuse(member, why))?;
    let replayed = app.store.replay(&name, &which, false).await?;
    Ok(([NO_STORE], Json(ReplayResult { replayed })).into_response())
}

/// Drop parked events
///
/// For good, as if they had been acked. Without a parameter: all.
#[utoipa::path(
    delete, path = "/groups/{group}/parked", operation_id = "dropParked", tag = "groups",
    params(
        ("group" = String, Path, description = "The group", example = "mailer", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("count" = inline(Option<i64>), Query, description = "The first so many", minimum = 1, maximum = 9_007_199_254_740_991_i64),
        ("stream" = inline(Option<String>), Query, description = "Those of this stream", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("ids" = inline(Option<String>), Query, description = "These: ids of parked events, or leases that they were handed out with, with commas between them", min_length = 1),
    ),
    responses(
        (status = 200, description = "Dropped", body = DropResult, headers(
            ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = crate::http::document::BadRequest), (status = 404, response = crate::http::document::GroupNotFound),
        (status = 406, response = crate::http::document::NotAcceptable), (status = 503, response = crate::http::document::Unavailable),
    )
)]
pub async fn drop_parked(
    State(app): State<App>,
    GroupPath(name): GroupPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    let query = Query::parse(&query, &["count", "stream", "ids"])?;
    accepts_json(&headers)?;
    let number = |text: &str| Version::parse(text).map(|number| Whole(number.get()));
    let request = WhichRequest {
        count: query.parsed("count", "a whole number from 1 to 2^53-1", number)?,
        stream: query.get("stream").map(ToOwned::to_owned),
        ids: query.get("ids").map(|ids| ids.split(',').map(ToOwned::to_owned).collect()),
    };
    let which = which(request, app.store.partitions())
        .map_err(|(name, why)| Problem::new(Code::InvalidParameter, format!("The parameter {name} {why}.")))?;
    let dropped = app.store.replay(&name, &which, true).await?;
    Ok(([NO_STORE], Json(DropResult { dropped })).into_response())
}

/// Which events a request means; otherwise the member that is wrong, and why.
fn which(request: WhichRequest, partitions: Partitions) -> Result<Which, (&'static str, &'static str)> {
    match request {
        WhichRequest { count: None, stream: None, ids: None } => Ok(Which::All),
        WhichRequest { count: Some(count), stream: None, ids: None } => {
            let count = Version::new(count.0).and_then(|count| usize::try_from(count.get()).ok());
            count.filter(|count| *count > 0).map(Which::First).ok_or(("count", "is a whole number from 1 to 2^53-1"))
        }
        WhichRequest { count: None, stream: Some(stream), ids: None } => {
            StreamId::parse(&stream).map(Which::Stream).ok_or(("stream", "is a stream id"))
        }
        WhichRequest { count: None, stream: None, ids: Some(ids) } if ids.len() <= IDS_MAX => {
            let of_lease = |text: &String| LeaseToken::parse(text, partitions).map(|it| (it.partition, it.position));
            let places = ids.iter().map(|text| place(text, partitions).or_else(|| of_lease(text)));
            places.collect::<Option<_>>().map(Which::These).ok_or(("ids", "has ids of parked events, or leases"))
        }
        WhichRequest { count: None, stream: None, ids: Some(_) } => Err(("ids", "has at most 1,000 entries")),
        WhichRequest { count: Some(_), .. } => Err(("count", "goes without the others")),
        WhichRequest { .. } => Err(("stream", "goes without the others")),
    }
}

fn id(parked: &Parked) -> String {
    format!("{}-{}", parked.partition.get(), parked.position)
}

/// Reads what `id` writes.
fn place(text: &str, partitions: Partitions) -> Option<(Partition, Position)> {
    let (partition, position) = text.split_once('-')?;
    let partition = Version::parse(partition).and_then(|number| usize::try_from(number.get()).ok())?;
    Some((partitions.all().nth(partition)?, Position::parse(position)?))
}

fn write_parked(out: &mut Vec<u8>, parked: &Parked) {
    let written = |text: &str| serde_json::to_string(text).expect("text is JSON");
    let Parked { stream, version, delivery_count, reason, error, parked_ms, .. } = parked;
    let last_error = if error.is_empty() { String::new() } else { format!("\"last_error\":{},", written(error)) };
    let text = format!(
        "{{\"id\":\"{}\",\"reason\":{},{last_error}\"delivery_count\":{delivery_count},\"parked_at\":\"{}\",\
         \"stream\":\"{stream}\",\"version\":{version}",
        id(parked),
        written(reason),
        rfc3339(*parked_ms),
    );
    out.extend_from_slice(text.as_bytes());
    if let Some(event) = &parked.event {
        out.extend_from_slice(b",\"event\":");
        event.write_json(out);
    }
    out.push(b'}');
}
