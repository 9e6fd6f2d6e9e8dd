//! `GET /streams`: which streams there are.

use std::io::Write as _;

use axum::{
    extract::{RawQuery, State},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    accept::accepts_json,
    events::{NO_CACHE, json_response},
    extract::{Headers, Query},
    problem::Problem,
};
use crate::{
    model::{Category, Cursor},
    store::LogFilter,
};

/// The route of the list.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_streams))
}

/// A stream that there is.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamSummary)]
pub struct StreamSummaryDocument {
    /// Its id.
    #[schema(example = "order-12345")]
    stream: String,
    /// Its version.
    #[schema(minimum = 1, example = 3)]
    version: i64,
}

/// A page of the list of streams.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamList)]
pub struct StreamListDocument {
    /// The streams, in the order of their first events within each partition.
    streams: Vec<StreamSummaryDocument>,
    /// `after` of the next page: an opaque token.
    #[schema(example = "MDo3My0wZjFhMmIzYw")]
    next: String,
    /// Whether these were all by now. A page may be short, or empty, and not yet caught up.
    caught_up: bool,
}

/// List streams
///
/// Every stream with its version, in the order in which they began, page by page: pass `next` as `after`, until
/// `caught_up`. Later the same `after` finds those that are new. The list is read from the log, a bounded part of it for
/// each page: pages may be short, and in a store of many events a whole list takes many.
#[utoipa::path(
    get, path = "/streams", operation_id = "listStreams", tag = "streams",
    params(
        ("after" = inline(Option<String>), Query, description = "`next` of the page before; absent: from the beginning", min_length = 1, pattern = "^[A-Za-z0-9_-]+$"),
        ("limit" = inline(Option<i32>), Query, description = "Most streams wanted (default 100)", minimum = 1, maximum = 1000),
        ("category" = inline(Option<Vec<super::document::Category>>), Query, description = "Only streams in one of these categories", example = json!(["order"])),
    ),
    responses(
        (status = 200, description = "A page", body = StreamListDocument, headers(
            ("Cache-Control" = String, description = "`private, no-cache`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 406, response = super::document::NotAcceptable),
        (status = 409, response = super::document::Diverged), (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn list_streams(
    State(app): State<App>,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    let query = Query::parse_with_lists(&query, &["after", "limit"], &["category"])?;
    accepts_json(&headers)?;
    let partitions = app.store.partitions();
    let cursor = query.parsed("after", "a cursor of this store", |text| Cursor::parse(text, partitions))?;
    let mut cursor = cursor.unwrap_or_else(|| Cursor::beginning(partitions));
    let categories = query.list("category", "the part of a stream id before its first -", Category::parse)?;
    let filter = LogFilter { categories, ..LogFilter::default() };
    let mut left = query.limit(100, app.limits.page_events)?;
    let (mut body, mut caught_up) = (b"{\"streams\":[".to_vec(), true);
    for (partition, place) in partitions.all().zip(&mut cursor.places) {
        if left == 0 {
            caught_up = false;
            break;
        }
        let page = app.store.read_streams(partition, *place, left, &filter).await?;
        *place = page.place;
        caught_up &= page.caught_up;
        left -= page.streams.len();
        for (stream, version) in page.streams {
            let comma = if body.ends_with(b"[") { "" } else { "," };
            write!(body, "{comma}{{\"stream\":\"{stream}\",\"version\":{version}}}")
                .expect("writing to memory cannot fail");
        }
    }
    write!(body, "],\"next\":\"{}\",\"caught_up\":{caught_up}}}", cursor.token())
        .expect("writing to memory cannot fail");
    Ok((NO_CACHE, json_response(body)).into_response())
}
