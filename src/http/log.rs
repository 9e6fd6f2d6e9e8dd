//! `GET /events`: the log.

use axum::{
    extract::{RawQuery, State},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    extract::{Headers, Query, accepts_json, stream_id},
    problem::Problem,
    streams::{EventDocument, json_response, write_events},
};
use crate::{
    model::{Category, Cursor, Event},
    store::{LogFilter, bytes_of},
};

/// The routes of the log.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(read_log))
}

/// A page of the log.
#[derive(Serialize, ToSchema)]
#[schema(as = LogPage)]
pub struct LogPageDocument {
    /// The events, in commit order within each partition.
    events: Vec<EventDocument>,
    /// `after` of the next page: an opaque token.
    #[schema(example = "MDo3My0wZjFhMmIzYw")]
    next: String,
    /// Whether this was all there is by now. Under a filter a page may be short, or empty, and not yet caught up.
    caught_up: bool,
}

/// Read the log
///
/// The events of all streams in commit order, page by page: pass `next` as `after`. With several partitions the order
/// holds within each, and the pages take them in turn. A cursor from another history of the store (a restored backup,
/// a lost failover) is refused with 409.
#[utoipa::path(
    get, path = "/events", operation_id = "readLog", tag = "log",
    params(
        ("after" = inline(Option<String>), Query, description = "`next` of the page before; absent: from the beginning", min_length = 1, pattern = "^[A-Za-z0-9_-]+$"),
        ("limit" = inline(Option<i32>), Query, description = "Most events wanted (default 100)", minimum = 1, maximum = 1000),
        ("category" = inline(Option<String>), Query, description = "Only events of streams in this category", example = "order", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+]+$"),
        ("stream" = inline(Option<String>), Query, description = "Only events of this stream", example = "order-12345", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
    ),
    responses(
        (status = 200, description = "A page", body = LogPageDocument, headers(
            ("Cache-Control" = String, description = "`private, no-cache`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::responses::BadRequest), (status = 406, response = super::responses::NotAcceptable),
        (status = 409, response = super::responses::Diverged), (status = 503, response = super::responses::Unavailable),
    )
)]
pub async fn read_log(State(app): State<App>, query: RawQuery, Headers(headers): Headers) -> Result<Response, Problem> {
    let partitions = app.store.partitions();
    let query = Query::parse(&query, &["after", "limit", "category", "stream"])?;
    accepts_json(&headers)?;
    let limit = query.limit(100, app.limits.page_events)?;
    let cursor = query.parsed("after", "a cursor of this store", |text| Cursor::parse(text, partitions))?;
    let filter = LogFilter {
        category: query.parsed("category", "the part of a stream id before its first -", Category::parse)?,
        stream: query.get("stream").map(stream_id).transpose()?,
    };
    let cursor = cursor.unwrap_or_else(|| Cursor::beginning(partitions));
    let (events, cursor, caught_up) = read_in_turn(&app, cursor, limit, &filter).await?;
    let mut body = Vec::with_capacity(256 + bytes_of(&events));
    body.extend_from_slice(b"{\"events\":");
    write_events(&mut body, &events);
    body.extend_from_slice(format!(",\"next\":\"{}\",\"caught_up\":{caught_up}}}", cursor.token()).as_bytes());
    let no_cache = [(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"))];
    Ok((no_cache, json_response(body)).into_response())
}

/// Fills a page from the partitions, beginning with the one whose turn it is. Each is asked once.
async fn read_in_turn(
    app: &App,
    mut cursor: Cursor,
    limit: usize,
    filter: &LogFilter,
) -> Result<(Vec<Event>, Cursor, bool), Problem> {
    let partitions: Vec<_> = app.store.partitions().all().collect();
    let first = cursor.turn;
    let mut events = Vec::new();
    let mut caught_up = true;
    for step in 0..partitions.len() {
        let index = (first + step) % partitions.len();
        if events.len() == limit {
            // The page is full: whether this partition has more is for the next page to say.
            caught_up = false;
            break;
        }
        let left = limit - events.len();
        let page = app.store.read_log(partitions[index], cursor.places[index], left, filter).await?;
        cursor.places[index] = page.place;
        cursor.turn = (index + 1) % partitions.len();
        caught_up &= page.caught_up;
        events.extend(page.events);
    }
    Ok((events, cursor, caught_up))
}
