//! `GET` and `HEAD /streams/{id}`, `GET /streams/{id}/events/{version}`

use std::time::Instant;

use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App, Wait,
    accept::{Form, accepts_json, form},
    conditions::Conditions,
    etag,
    events::{EventDocument, json_response, write_events},
    extract::{EventPath, Headers, Query, StreamPath, forward_only},
    feeds::{Follower, feed, feed_headers, feed_options, last_event_id, no_feed},
    problem::{Code, Problem},
};
use crate::{
    model::{StreamCursor, StreamId, Version},
    store::{Direction, PAGE_BYTES, Page, PageRequest, bytes_of},
};

/// What a read of a stream knows.
const QUERY: &[&str] = &["from", "to", "limit", "direction", "wait", "follow"];

/// The routes of one stream.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(read_stream, head_stream)).routes(routes!(read_event))
}

/// A page of a stream.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamPage)]
pub struct StreamPageDocument {
    /// The stream's id.
    #[schema(example = "order-12345")]
    stream: String,
    /// The stream's version; 0 where a request waited for a stream that did not come. Absent from full pages below the
    /// head where shared caches may keep them.
    #[schema(minimum = 0, required = false, example = 1)]
    version: i64,
    /// The events, in the order asked for.
    events: Vec<EventDocument>,
    /// `from` of the next page; null at the end.
    #[schema(minimum = 1, required = true)]
    next: Option<i64>,
}

/// Read a stream
///
/// By version, in pages. `If-None-Match` with the current version answers 304 without a body. With `wait` the request
/// waits for events, or for another version, where there is nothing new; a stream that is not there yet is empty then.
/// With `Accept: text/event-stream` or `application/x-ndjson` the answer is a feed, as that of the log; the stream need
/// not be there yet.
#[utoipa::path(
    get, path = "/streams/{id}", operation_id = "readStream", tag = "streams",
    params(
        ("id" = String, Path, description = "The stream", example = "order-12345", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("from" = inline(Option<i64>), Query, description = "First version wanted (default: the first; backward: the newest)", minimum = 1, maximum = 9_007_199_254_740_991_i64),
        ("to" = inline(Option<i64>), Query, description = "Last version wanted (default: the newest; backward: the first)", minimum = 1, maximum = 9_007_199_254_740_991_i64),
        ("limit" = inline(Option<i32>), Query, description = "Most events wanted (default 100); ends a feed, which otherwise has no limit", minimum = 1, maximum = 1000),
        ("direction" = Option<super::DirectionName>, Query, description = "`forward` (default) or `backward`"),
        ("wait" = inline(Option<i32>), Query, description = "How many seconds to wait where there is nothing new (default 0)", minimum = 0, maximum = 60),
        ("follow" = inline(Option<bool>), Query, description = "Whether lines go on at the head; server-sent events always do"),
        ("Last-Event-ID" = inline(Option<String>), Header, description = "Of a feed: the id of the last event that was seen; wins over `from`", pattern = "^[0-9]+-[0-9a-f]{8}$"),
        ("If-None-Match" = inline(Option<String>), Header, description = "A version that the caller has: answered 304", example = "\"7\""),
        ("If-Match" = inline(Option<String>), Header, description = "Versions that will do; 412 otherwise"),
    ),
    responses(
        (status = 200, description = "A page, or a feed",
            content((StreamPageDocument = "application/json"), (String = "text/event-stream"), (String = "application/x-ndjson")), headers(
            ("ETag" = String, description = "Of pages: the stream's version, quoted"), ("Cache-Control" = String, description = "`private, no-cache`, unless the service lets full pages be kept; of feeds `no-cache, no-transform`"),
            ("Link" = String, description = "Of pages: `next`, `prev`, `first` and `last`, relative (RFC 8288)"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 304, description = "The caller has the current version", headers(("ETag" = String, description = "The stream's version, quoted"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 404, response = super::document::NotFound),
        (status = 406, response = super::document::NotAcceptable), (status = 409, response = super::document::Diverged), (status = 410, response = super::document::Gone),
        (status = 412, response = super::document::PreconditionFailed), (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn read_stream(
    State(app): State<App>,
    StreamPath(stream): StreamPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    let query = Query::parse(&query, QUERY)?;
    let form = form(&headers, Form::ALL)?;
    let request = page_request(&query, &app)?;
    if form != Form::Json {
        let options = feed_options(&app, &query, form)?;
        let last = last_event_id(&headers, StreamCursor::parse)?;
        let (version, fingerprint) = match last {
            Some(last) => (last.version, Some(last.fingerprint)),
            None => (request.from.unwrap_or(Version::FIRST).minus(1), None),
        };
        let permit = app.wait_permit()?;
        let follower = app.store.follow_stream(&stream, version, fingerprint);
        return feed(&app, permit, Follower::Stream(Box::new(follower)), options).await;
    }
    no_feed(&query)?;
    let (conditions, wait) = (Conditions::of(&headers)?, app.wait(&query)?);
    if wait.is_some() {
        forward_only(request.direction)?;
    }
    let news = read_page(&app, &stream, request, &conditions).await;
    if !wait.is_some() {
        return news.map(News::into_response);
    }
    await_news(&app, &stream, request, &conditions, &wait, news).await
}

/// A page, as far as it says anything new.
enum News {
    Some(Response),
    /// Nothing behind this version.
    None(Version, Response),
}

impl News {
    fn into_response(self) -> Response {
        let (Self::Some(response) | Self::None(_, response)) = self;
        response
    }
}

async fn read_page(
    app: &App,
    stream: &StreamId,
    request: PageRequest,
    conditions: &Conditions,
) -> Result<News, Problem> {
    let partition = app.store.partition(stream);
    if conditions.any() {
        let version = app.store.version(partition, stream).await?;
        if let Some(unchanged) = conditions.judge(version, fresh_headers(Some(version)))? {
            return Ok(News::None(version, unchanged));
        }
    }
    let page = app.store.read(partition, stream, request).await?;
    let answer = page_answer(app, stream, request, &page);
    Ok(if page.events.is_empty() { News::None(page.version, answer) } else { News::Some(answer) })
}

/// Waits until a page says something new; at the end of the wait it is what it is. A stream that is not there is an
/// empty one, for it may come.
async fn await_news(
    app: &App,
    stream: &StreamId,
    request: PageRequest,
    conditions: &Conditions,
    wait: &Wait,
    mut news: Result<News, Problem>,
) -> Result<Response, Problem> {
    let before = request.from.unwrap_or(Version::FIRST).minus(1);
    loop {
        let known = match &news {
            Ok(News::None(version, _)) => *version,
            Err(problem) if problem.code() == Code::StreamNotFound && !conditions.expect_something() => Version::ZERO,
            _ => return news.map(News::into_response),
        };
        if Instant::now() >= wait.until || app.closing.is_cancelled() {
            let Err(_) = news else { return news.map(News::into_response) };
            let unchanged = conditions.judge(Version::ZERO, fresh_headers(Some(Version::ZERO)))?;
            let nothing = Page { version: Version::ZERO, events: Vec::new(), next: None };
            return Ok(unchanged.unwrap_or_else(|| page_answer(app, stream, request, &nothing)));
        }
        let mut follower = Follower::Stream(Box::new(app.store.follow_stream(stream, known.max(before), None)));
        follower.poll(app, 1, wait.until).await?;
        news = read_page(app, stream, request, conditions).await;
    }
}

/// Look up a stream's version
///
/// Answers with the headers of a read, and looks up nothing but the version.
#[utoipa::path(
    head, path = "/streams/{id}", operation_id = "headStream", tag = "streams",
    params(
        ("id" = String, Path, description = "The stream", example = "order-12345", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("If-None-Match" = inline(Option<String>), Header, description = "A version that the caller has: answered 304", example = "\"7\""),
        ("If-Match" = inline(Option<String>), Header, description = "Versions that will do; 412 otherwise"),
    ),
    responses(
        (status = 200, description = "The stream exists", headers(
            ("ETag" = String, description = "The stream's version, quoted"), ("Cache-Control" = String, description = "`private, no-cache`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 304, description = "The caller has the current version", headers(("ETag" = String, description = "The stream's version, quoted"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, description = "Malformed"), (status = 404, description = "No such stream"), (status = 406, description = "Not acceptable"),
        (status = 410, description = "Deleted for ever"), (status = 412, description = "The stream is at another version"), (status = 503, description = "The storage is not available"),
    )
)]
pub async fn head_stream(
    State(app): State<App>,
    StreamPath(stream): StreamPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    let query = Query::parse(&query, QUERY)?;
    page_request(&query, &app)?;
    let form = form(&headers, Form::ALL)?;
    if form != Form::Json {
        feed_options(&app, &query, form)?;
        return Ok(feed_headers(form).into_response());
    }
    no_feed(&query)?;
    query.wait()?;
    let conditions = Conditions::of(&headers)?;
    let version = app.store.version(app.store.partition(&stream), &stream).await?;
    if let Some(answer) = conditions.judge(version, fresh_headers(Some(version)))? {
        return Ok(answer);
    }
    Ok((fresh_headers(Some(version)), json_response(Vec::new())).into_response())
}

/// Read one event
#[utoipa::path(
    get, path = "/streams/{id}/events/{version}", operation_id = "readEvent", tag = "streams",
    params(
        ("id" = String, Path, description = "The stream", example = "order-12345", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("version" = i64, Path, description = "The event's version", minimum = 1, maximum = 9_007_199_254_740_991_i64),
        ("If-None-Match" = inline(Option<String>), Header, description = "The event's version, where the caller has it: answered 304", example = "\"7\""),
        ("If-Match" = inline(Option<String>), Header, description = "Versions that will do; 412 otherwise"),
    ),
    responses(
        (status = 200, description = "The event", body = EventDocument, headers(
            ("ETag" = String, description = "The event's version, quoted"), ("Cache-Control" = String, description = "`private, no-cache`, unless the service lets events be kept"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 304, description = "The caller has it", headers(("ETag" = String, description = "The event's version, quoted"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 404, response = super::document::NotFound),
        (status = 406, response = super::document::NotAcceptable), (status = 410, response = super::document::Gone),
        (status = 412, response = super::document::PreconditionFailed), (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn read_event(
    State(app): State<App>,
    EventPath(stream, version): EventPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    Query::parse(&query, &[])?;
    accepts_json(&headers)?;
    let conditions = Conditions::of(&headers)?;
    let event = app.store.read_event(app.store.partition(&stream), &stream, version).await?;
    let mut fresh = fresh_headers(Some(version));
    if let Some(kept) = app.kept() {
        fresh.insert(header::CACHE_CONTROL, kept);
    }
    // A 304 has the headers of the 200 (RFC 9110 §15.4.5): a cache takes them over.
    if let Some(answer) = conditions.judge(version, fresh.clone())? {
        return Ok(answer);
    }
    let mut body = Vec::with_capacity(event.data.len() + event.metadata.len() + 256);
    event.write_json(&mut body);
    Ok((fresh, json_response(body)).into_response())
}

fn page_request(query: &Query, app: &App) -> Result<PageRequest, Problem> {
    Ok(PageRequest {
        from: query.version("from")?,
        to: query.version("to")?,
        limit: query.limit(100, app.limits.page_events)?,
        bytes: PAGE_BYTES,
        direction: query.direction()?,
    })
}

fn page_answer(app: &App, stream: &StreamId, request: PageRequest, page: &Page) -> Response {
    let forward = request.direction == Direction::Forward;
    // A full page below the head never changes; one that a shared cache may keep carries nothing that does.
    let kept = app.kept().filter(|_| forward && page.next.is_some());
    let version = kept.is_none().then_some(page.version);
    let mut body = Vec::with_capacity(256 + bytes_of(&page.events));
    body.extend_from_slice(format!("{{\"stream\":\"{stream}\",").as_bytes());
    if let Some(version) = version {
        body.extend_from_slice(format!("\"version\":{version},").as_bytes());
    }
    body.extend_from_slice(b"\"events\":");
    write_events(&mut body, &page.events);
    let next = page.next.map_or("null".to_owned(), |next| next.to_string());
    body.extend_from_slice(format!(",\"next\":{next}}}").as_bytes());
    let mut response = (fresh_headers(version), json_response(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::LINK, links(request, page, version.is_some()));
    if let Some(kept) = kept {
        headers.insert(header::CACHE_CONTROL, kept);
    }
    response
}

/// `Link` (RFC 8288), relative, so that it is right behind any prefix.
fn links(request: PageRequest, page: &Page, with_last: bool) -> HeaderValue {
    let PageRequest { from, to, limit, direction, .. } = request;
    let size = u64::try_from(limit).unwrap_or(u64::MAX);
    let mut links = Vec::with_capacity(4);
    let mut link = |rel: &str, from: Option<Version>, to: Option<Version>| {
        let direction = if direction == Direction::Backward { "direction=backward&" } else { "" };
        let from = from.map(|from| format!("from={from}&")).unwrap_or_default();
        let to = to.map(|to| format!("to={to}&")).unwrap_or_default();
        links.push(format!("<?{direction}{from}{to}limit={limit}>; rel=\"{rel}\""));
    };
    if let Some(next) = page.next {
        link("next", Some(next), to);
    }
    match direction {
        Direction::Forward => {
            if let Some(from) = from.filter(|from| *from > Version::FIRST) {
                // A whole page ends before this one by its size; a smaller one, at the beginning, has to be told.
                let to = (from.get() <= size).then(|| from.minus(1));
                link("prev", Some(from.minus(size).max(Version::FIRST)), to);
            }
            link("first", None, None);
            if with_last {
                link("last", Some(page.version.plus(1).minus(size).max(Version::FIRST)), None);
            }
        }
        Direction::Backward => {
            if let Some(from) = from.filter(|from| *from < page.version) {
                let whole = from.plus(size) <= page.version;
                link("prev", Some(from.plus(size).min(page.version)), (!whole).then(|| from.plus(1)));
            }
            link("first", None, None);
            if with_last {
                link("last", Some(Version::FIRST.plus(size - 1).min(page.version)), None);
            }
        }
    }
    HeaderValue::from_str(&links.join(", ")).expect("digits and names are ASCII")
}

fn fresh_headers(version: Option<Version>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(2);
    if let Some(version) = version {
        headers.insert(header::ETAG, etag(version));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers
}
