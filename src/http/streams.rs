//! `GET` and `HEAD /streams/{id}`, `GET /streams/{id}/events/{version}`

use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App, etag,
    extract::{EventPath, Headers, Query, StreamPath, Tags, accepts_json, tags_of},
    problem::{Code, Problem},
};
use crate::{
    model::{Event, StreamId, Version},
    store::{Direction, Page, PageRequest, bytes_of},
};

/// The routes of one stream.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(read_stream, head_stream)).routes(routes!(read_event))
}

/// A stored event. Never changes.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventDocument {
    /// The stream that it belongs to.
    #[schema(example = "order-12345")]
    stream: String,
    /// Its number in the stream, from 1, without gaps.
    #[schema(minimum = 1, example = 1)]
    version: i64,
    /// Its number in the log of the stream's partition, from 1, without gaps.
    #[schema(minimum = 1, example = 73)]
    position: i64,
    /// Unique in the stream.
    #[schema(example = "01890a5d-ac96-774b-bcce-b302099a8057")]
    id: String,
    /// What happened.
    #[schema(rename = "type", example = "order-placed")]
    r#type: String,
    /// When it was stored, by Redis' clock: RFC 3339 in UTC with milliseconds.
    #[schema(format = DateTime, example = "2026-11-23T12:00:00.000Z")]
    time: String,
    /// As it was sent, byte for byte.
    #[schema(value_type = Value, example = json!({"total": 42}))]
    data: (),
    /// As it was sent, byte for byte.
    #[schema(value_type = Object, example = json!({"user": "ada"}))]
    metadata: (),
}

/// A page of a stream.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamPage)]
pub struct StreamPageDocument {
    /// The stream's id.
    #[schema(example = "order-12345")]
    stream: String,
    /// The stream's version. Absent from full pages below the head where shared caches may keep them.
    #[schema(minimum = 1, required = false, example = 1)]
    version: i64,
    /// The events, in the order asked for.
    events: Vec<EventDocument>,
    /// `from` of the next page; null at the end.
    #[schema(minimum = 1, required = true)]
    next: Option<i64>,
}

/// Read a stream
///
/// By version, in pages. `If-None-Match` with the current version answers 304 without a body.
#[utoipa::path(
    get, path = "/streams/{id}", operation_id = "readStream", tag = "streams",
    params(
        ("id" = String, Path, description = "The stream", example = "order-12345", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("from" = inline(Option<i64>), Query, description = "First version wanted (default: the first; backward: the newest)", minimum = 1, maximum = 9_007_199_254_740_991_i64),
        ("to" = inline(Option<i64>), Query, description = "Last version wanted (default: the newest; backward: the first)", minimum = 1, maximum = 9_007_199_254_740_991_i64),
        ("limit" = inline(Option<i32>), Query, description = "Most events wanted (default 100)", minimum = 1, maximum = 1000),
        ("direction" = inline(Option<super::DirectionName>), Query, description = "`forward` (default) or `backward`"),
        ("If-None-Match" = inline(Option<String>), Header, description = "A version that the caller has: answered 304", example = "\"7\"", pattern = r#"^(\*|"[0-9]{1,15}"(, ?"[0-9]{1,15}")*)$"#),
        ("If-Match" = inline(Option<String>), Header, description = "Versions that will do; 412 otherwise", pattern = r#"^(\*|"[0-9]{1,15}"(, ?"[0-9]{1,15}")*)$"#),
    ),
    responses(
        (status = 200, description = "A page", body = StreamPageDocument, headers(
            ("ETag" = String, description = "The stream's version, quoted"), ("Cache-Control" = String, description = "`private, no-cache`, unless the service lets full pages be kept"),
            ("Link" = String, description = "`next`, `prev`, `first` and `last`, relative (RFC 8288)"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 304, description = "The caller has the current version", headers(("ETag" = String, description = "The stream's version, quoted"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::responses::BadRequest), (status = 404, response = super::responses::NotFound),
        (status = 406, response = super::responses::NotAcceptable), (status = 410, response = super::responses::Gone),
        (status = 412, response = super::responses::PreconditionFailed), (status = 503, response = super::responses::Unavailable),
    )
)]
pub async fn read_stream(
    State(app): State<App>,
    StreamPath(stream): StreamPath,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    let request = page_request(&query, &app)?;
    accepts_json(&headers)?;
    let partition = app.store.partition(&stream);
    let conditions = Conditions::of(&headers)?;
    if conditions.any() {
        let version = app.store.version(partition, &stream).await?;
        if let Some(answer) = conditions.judge(version, fresh_headers(Some(version)))? {
            return Ok(answer);
        }
    }
    let page = app.store.read(partition, &stream, request).await?;
    Ok(page_answer(&app, &stream, request, &page))
}

/// Look up a stream's version
///
/// Answers with the headers of a read, and looks up nothing but the version.
#[utoipa::path(
    head, path = "/streams/{id}", operation_id = "headStream", tag = "streams",
    params(
        ("id" = String, Path, description = "The stream", example = "order-12345", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("If-None-Match" = inline(Option<String>), Header, description = "A version that the caller has: answered 304", example = "\"7\"", pattern = r#"^(\*|"[0-9]{1,15}"(, ?"[0-9]{1,15}")*)$"#),
        ("If-Match" = inline(Option<String>), Header, description = "Versions that will do; 412 otherwise", pattern = r#"^(\*|"[0-9]{1,15}"(, ?"[0-9]{1,15}")*)$"#),
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
    page_request(&query, &app)?;
    accepts_json(&headers)?;
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
        ("If-None-Match" = inline(Option<String>), Header, description = "The event's version, where the caller has it: answered 304", example = "\"7\"", pattern = r#"^(\*|"[0-9]{1,15}"(, ?"[0-9]{1,15}")*)$"#),
        ("If-Match" = inline(Option<String>), Header, description = "Versions that will do; 412 otherwise", pattern = r#"^(\*|"[0-9]{1,15}"(, ?"[0-9]{1,15}")*)$"#),
    ),
    responses(
        (status = 200, description = "The event", body = EventDocument, headers(
            ("ETag" = String, description = "The event's version, quoted"), ("Cache-Control" = String, description = "`private, no-cache`, unless the service lets events be kept"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 304, description = "The caller has it", headers(("ETag" = String, description = "The event's version, quoted"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::responses::BadRequest), (status = 404, response = super::responses::NotFound),
        (status = 406, response = super::responses::NotAcceptable), (status = 410, response = super::responses::Gone),
        (status = 412, response = super::responses::PreconditionFailed), (status = 503, response = super::responses::Unavailable),
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

fn page_request(query: &RawQuery, app: &App) -> Result<PageRequest, Problem> {
    let query = Query::parse(query, &["from", "to", "limit", "direction"])?;
    let direction = query.parsed("direction", "forward or backward", |text| match text {
        "forward" => Some(Direction::Forward),
        "backward" => Some(Direction::Backward),
        _ => None,
    })?;
    Ok(PageRequest {
        from: query.version("from")?,
        to: query.version("to")?,
        limit: query.limit(100, app.limits.page_events)?,
        direction: direction.unwrap_or(Direction::Forward),
    })
}

/// The conditions of a read (RFC 9110 §13.2.2).
struct Conditions {
    expected: Option<Tags>,
    known: Option<Tags>,
}

impl Conditions {
    /// Read before the store is asked, so that a bad one is refused whatever is there.
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(Self { expected: tags_of(headers, &header::IF_MATCH)?, known: tags_of(headers, &header::IF_NONE_MATCH)? })
    }

    fn any(&self) -> bool {
        self.expected.is_some() || self.known.is_some()
    }

    /// 304 with these headers where the caller has this version; 412 where it expects another.
    fn judge(&self, version: Version, headers: HeaderMap) -> Result<Option<Response>, Problem> {
        let names = |tags: &Tags| match tags {
            Tags::Any => true,
            Tags::Versions(versions) => versions.contains(&version),
        };
        if self.expected.as_ref().is_some_and(|tags| !names(tags)) {
            let detail =
                format!("What you ask for is at version {version}. Read without If-Match, or with that version.");
            return Err(Problem::new(Code::PreconditionFailed, detail).header(header::ETAG, etag(version)));
        }
        let unchanged = self.known.as_ref().is_some_and(names);
        Ok(unchanged.then(|| (StatusCode::NOT_MODIFIED, headers).into_response()))
    }
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

/// Writes events as a JSON array.
pub fn write_events(out: &mut Vec<u8>, events: &[Event]) {
    out.push(b'[');
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        event.write_json(out);
    }
    out.push(b']');
}

/// `Link` (RFC 8288), relative, so that it is right behind any prefix.
fn links(request: PageRequest, page: &Page, with_last: bool) -> HeaderValue {
    let PageRequest { from, to, limit, direction } = request;
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

/// A body that is JSON already.
pub fn json_response(body: Vec<u8>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], Body::from(body)).into_response()
}
