//! `POST /streams/{id}/events`

use std::{borrow::Cow, collections::HashSet, mem};

use axum::{
    Json,
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App, Limits,
    accept::accepts_json,
    body::json_body,
    conditions::condition,
    etag,
    events::write_events,
    extract::{DURABILITY, Headers, Query, StreamPath, durability, idempotency_key},
    json::{self, Object},
    problem::{Code, Problem},
    trace::Trace,
};
use crate::{
    model::{
        Condition, Cursor, Error, EventId, JsonFault, NewEvent, Partition, Position, Retry, StreamId, Version,
        check_opaque_json, check_type, present,
    },
    store::{Appended, Direction, PAGE_BYTES, PageRequest},
};

/// The route of appends.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(append_events))
}

/// Most events that a conflict carries with `?include=events`.
const MISSED_MAX: usize = 100;
/// How a body looks.
const FORM: &str = r#"{"events":[{"id"?,"type","data","metadata"?}]}"#;

/// Events to be appended, all or none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AppendRequest)]
pub struct AppendRequest<'a> {
    /// 1 to 1,000 events.
    #[serde(borrow)]
    #[schema(min_items = 1, max_items = 1000, value_type = Vec<EventRequest>)]
    events: Vec<Object<EventRequest<'a>>>,
}

/// An event to be appended.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewEvent)]
pub struct EventRequest<'a> {
    /// Unique in its stream for ever; a repeated request with the same ids adds nothing. Made by the service if absent.
    #[serde(borrow, default, deserialize_with = "present")]
    #[schema(min_length = 1, max_length = 128, pattern = "^[ -~]+$", value_type = String, required = false,
        example = "01890a5d-ac96-774b-bcce-b302099a8057")]
    id: Option<Cow<'a, str>>,
    /// What happened.
    #[serde(rename = "type", borrow)]
    #[schema(value_type = super::document::EventType)]
    kind: Cow<'a, str>,
    /// Any JSON up to 1 MiB; comes back byte for byte.
    #[serde(borrow)]
    #[schema(value_type = Value, example = json!({"total": 42}))]
    data: &'a RawValue,
    /// A JSON object up to 64 KiB; comes back byte for byte, `{}` if absent. With a `traceparent` the request's trace
    /// comes behind.
    #[serde(borrow, default, deserialize_with = "present")]
    #[schema(value_type = super::document::Metadata, required = false)]
    metadata: Option<&'a RawValue>,
}

/// Where the appended events are.
#[derive(Serialize, ToSchema)]
pub struct AppendResult {
    /// The stream's id.
    #[schema(value_type = String, example = "order-12345")]
    stream: StreamId,
    /// Version of the first event.
    #[schema(value_type = i64, minimum = 1, example = 8)]
    first_version: Version,
    /// Version of the last event.
    #[schema(value_type = i64, minimum = 1, example = 8)]
    version: Version,
    /// The stream's partition.
    #[schema(value_type = i32, minimum = 0, example = 0)]
    partition: Partition,
    /// Position of the last event in the partition's log.
    #[schema(value_type = i64, minimum = 1, example = 73)]
    position: Position,
    /// How many events.
    #[schema(value_type = i32, minimum = 1, example = 1)]
    count: usize,
    /// Opaque: after the last event, in its partition alone. `GET /groups/{group}?acked=` tells with it whether a group
    /// has settled everything up to here.
    #[schema(example = "MDo3My0wZjFhMmIzYw")]
    cursor: String,
    /// Whether they were there already, from an earlier request with the same ids or key.
    duplicate: bool,
}

/// Append events to a stream
///
/// All or none, in order. `If-Match: "7"` demands that the stream is at version 7 (several versions, with commas:
/// one of them; `"0"`: no events yet; `*`: some event), `If-None-Match: *` that it has no events yet; without a
/// condition the events are appended whatever is there. A condition that does not hold answers 409 and writes nothing.
///
/// Repeating is safe for ever where the events carry ids, or the request an `Idempotency-Key`: the repeat answers 200
/// with the first result. After 504 or a broken connection the outcome is unknown; repeat the request as it was.
///
/// `Streamkeep-Durability` says what the events survive: `memory` (nothing for sure), `fsync` (a crash of Redis or its
/// machine), `replicated` (the loss of the primary), `replicated-fsync` (both at once). A request may ask for more than the
/// service demands, never for less. Where replicas do not confirm in time the answer is 504 `durability-unconfirmed`: the
/// events are in the stream, and the same request with the same ids or key answers 200 once they are confirmed.
///
/// Bodies may be compressed (`Content-Encoding: gzip` or `zstd`).
#[utoipa::path(
    post, path = "/streams/{id}/events", operation_id = "appendEvents", tag = "streams",
    params(
        ("id" = String, Path, description = "The stream", example = "order-12345", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("include" = inline(Option<super::Include>), Query, description = "`events`: a version conflict carries the events that the caller has missed, 100 at most"),
        ("If-Match" = inline(Option<String>), Header, description = "Versions that will do, or `*`", example = "\"7\""),
        ("If-None-Match" = inline(Option<String>), Header, description = "`*`: no events yet. Not together with `If-Match`", pattern = r"^\*$"),
        ("Idempotency-Key" = inline(Option<String>), Header, description = "1 to 255 characters, in quotes or bare; makes a request without event ids repeatable", example = "\"8e03978e-40d5\"", min_length = 1, max_length = 257, pattern = r#"^("[ !#-\[\]-~]+"|[!#-\[\]-~]([ !#-\[\]-~]*[!#-\[\]-~])?)$"#),
        ("Streamkeep-Durability" = inline(Option<String>), Header, pattern = r"^(memory|fsync|replicated|replicated-fsync)$", description = "What the events must survive, where that is more than the service demands of every append anyway; what they survive is in the same header of the answer", example = "replicated"),
        ("traceparent" = inline(Option<String>), Header, description = "The trace that the events belong to (W3C Trace Context). Kept in the metadata of each, as `traceparent`, unless that has one already; what breaks the rules is ignored", example = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate" = inline(Option<String>), Header, description = "Kept beside it, as `tracestate`; up to 512 bytes", example = "vendor=value"),
    ),
    request_body(content = AppendRequest, description = "The events",
        example = json!({"events": [{"type": "order-placed", "data": {"total": 42}, "metadata": {"user": "ada"}}]})),
    responses(
        (status = 201, description = "Appended", body = AppendResult, headers(
            ("ETag" = String, description = "The stream's version, quoted"), ("Location" = String, description = "The first event, relative"),
            ("Streamkeep-Durability" = String, description = "What the events survive: `memory`, `fsync`, `replicated` or `replicated-fsync`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 200, description = "They were there already", body = AppendResult, headers(
            ("ETag" = String, description = "Version of the last of them, quoted"), ("Location" = String, description = "The first event, relative"),
            ("Streamkeep-Durability" = String, description = "What the events survive: `memory`, `fsync`, `replicated` or `replicated-fsync`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 409, response = super::document::Conflict),
        (status = 400, response = super::document::BadRequest), (status = 406, response = super::document::NotAcceptable),
        (status = 408, response = super::document::RequestTimeout), (status = 410, response = super::document::Gone),
        (status = 413, response = super::document::TooLarge), (status = 415, response = super::document::UnsupportedMediaType),
        (status = 422, response = super::document::Unprocessable), (status = 428, response = super::document::PreconditionRequired),
        (status = 503, response = super::document::Unavailable), (status = 504, response = super::document::Unsettled),
        (status = 507, response = super::document::StorageFull),
    )
)]
pub async fn append_events(
    State(app): State<App>,
    StreamPath(stream): StreamPath,
    query: RawQuery,
    Headers(headers): Headers,
    body: Body,
) -> Result<Response, Problem> {
    let include = Query::parse(&query, &["include"])?
        .parsed("include", "events, or absent", |text| (text == "events").then_some(()))?
        .is_some();
    accepts_json(&headers)?;
    let condition = demanded(condition(&headers)?, &app)?;
    let (key, asked) = (idempotency_key(&headers)?, durability(&headers)?);
    let body = json_body(&headers, body, &app.limits, &app.room).await?;
    let request = json::parse(&body, FORM)?;
    let (mut events, retry) = new_events(&stream, request, key.as_deref(), &app.limits)?;
    if let Some(trace) = Trace::of(&headers) {
        for NewEvent { metadata, .. } in &mut events {
            *metadata = trace.within(mem::take(metadata), app.limits.metadata_bytes);
        }
    }
    let partition = app.store.partition(&stream);
    match app.store.append(partition, &stream, &condition, &retry, &events, asked).await {
        Ok(appended) => {
            let bytes = events.iter().map(NewEvent::bytes).sum();
            app.metrics.appended(events.len(), bytes, appended.duplicate);
            Ok(answer(&app, stream, partition, &events, appended))
        }
        Err(Error::WrongVersion { current }) => {
            // Boxed, as it is large and rare.
            Err(Box::pin(conflict(&app, partition, &stream, &condition, current, include)).await)
        }
        Err(Error::EventIdReused { index } | Error::DuplicateEventId { index })
            if is_from_key(&stream, &events[index].id, key.as_deref(), index) =>
        {
            Err(key_reused())
        }
        Err(error @ (Error::EventIdReused { index } | Error::DuplicateEventId { index })) => {
            Err(Problem::from(error).at(format!("#/events/{index}/id"), "is in the stream already"))
        }
        Err(error @ Error::DurabilityUnconfirmed { first_version, version }) => {
            app.metrics.unconfirmed();
            Err(Problem::from(error)
                .header(header::ETAG, etag(version))
                .with("applied", "true".to_owned())
                .with("first_version", first_version.to_string())
                .with("version", version.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

fn demanded(condition: Option<Condition>, app: &App) -> Result<Condition, Problem> {
    match condition {
        Some(condition) => Ok(condition),
        None if app.require_condition => {
            let detail = "Say what you expect of the stream: If-Match with its version, or If-None-Match: *.";
            Err(Problem::new(Code::PreconditionRequired, detail))
        }
        None => Ok(Condition::Any),
    }
}

/// Checks the events and gives each its id.
///
/// # Errors
/// `invalid-event`, `invalid-json`, `payload-too-large`, `too-deep`
pub fn new_events<'a>(
    stream: &StreamId,
    request: AppendRequest<'a>,
    key: Option<&str>,
    limits: &Limits,
) -> Result<(Vec<NewEvent<'a>>, Retry), Problem> {
    let AppendRequest { events } = request;
    if events.is_empty() {
        return Err(Problem::new(Code::InvalidEvent, "A request has at least one event.").at("#/events", "is empty"));
    }
    if events.len() > limits.events {
        let detail = format!("A request has at most {} events.", limits.events);
        return Err(Problem::new(Code::PayloadTooLarge, detail));
    }
    let repeatable = key.is_some() || events.iter().any(|Object(event)| event.id.is_some());
    let mut seen = HashSet::new();
    let mut checked = Vec::with_capacity(events.len());
    for (index, Object(event)) in events.into_iter().enumerate() {
        let event = new_event(stream, index, event, key, limits)?;
        if repeatable && !seen.insert(event.id.clone()) {
            let problem = Problem::new(Code::InvalidEvent, "An id stands twice in the request.");
            return Err(problem.at(format!("#/events/{index}/id"), "is that of an earlier event of the request"));
        }
        checked.push(event);
    }
    let retry = match key {
        Some(key) => Retry::ByKey(EventId::from_key(stream, key, checked.len())),
        None if repeatable => Retry::ById,
        None => Retry::ByService,
    };
    Ok((checked, retry))
}

fn new_event<'a>(
    stream: &StreamId,
    index: usize,
    event: EventRequest<'a>,
    key: Option<&str>,
    limits: &Limits,
) -> Result<NewEvent<'a>, Problem> {
    let EventRequest { id, kind, data, metadata } = event;
    let refuse = |code, member: &str, detail: String| {
        Err(Problem::new(code, format!("Event {index}: {detail}.")).at(format!("#/events/{index}/{member}"), detail))
    };
    if let Err(detail) = check_type(&kind, limits.type_chars) {
        return refuse(Code::InvalidEvent, "type", detail);
    }
    let metadata_text = metadata.map_or("{}", RawValue::get);
    if !metadata_text.starts_with('{') {
        return refuse(Code::InvalidJson, "metadata", "metadata is a JSON object".to_owned());
    }
    for (member, json, max) in
        [("data", data.get(), limits.data_bytes), ("metadata", metadata_text, limits.metadata_bytes)]
    {
        if json.len() > max {
            return refuse(Code::PayloadTooLarge, member, format!("{member} has at most {max} bytes"));
        }
        match check_opaque_json(json, limits.json_depth) {
            Ok(()) => {}
            Err(JsonFault::TooDeep) => {
                return refuse(Code::TooDeep, member, format!("{member} is nested at most {} deep", limits.json_depth));
            }
            Err(JsonFault::LoneSurrogate) => {
                return refuse(Code::InvalidJson, member, format!("{member} has half of a surrogate pair"));
            }
        }
    }
    let id = match (id, key) {
        (Some(id), _) => match EventId::parse(&id) {
            Some(id) => id,
            None => {
                return refuse(Code::InvalidEvent, "id", "an id has 1 to 128 printable ASCII characters".to_owned());
            }
        },
        (None, Some(key)) => EventId::from_key(stream, key, index),
        (None, None) => EventId::new_v7(),
    };
    Ok(NewEvent { id, kind, data, metadata: metadata_text.into() })
}

fn answer(app: &App, stream: StreamId, partition: Partition, events: &[NewEvent<'_>], appended: Appended) -> Response {
    let Appended { first_version, version, position, duplicate, durability } = appended;
    let last_id = events.last().map_or("", |event| event.id.as_str());
    let cursor = Cursor::after(partition, position, last_id, app.store.partitions()).token();
    let status = if duplicate { StatusCode::OK } else { StatusCode::CREATED };
    // Relative to the address of the request (RFC 9110 §10.2.2), so that it is right behind any prefix.
    let location = HeaderValue::try_from(format!("events/{first_version}")).expect("digits are ASCII");
    let durability = HeaderValue::from_static(durability.as_str());
    let headers = [(header::ETAG, etag(version)), (header::LOCATION, location), (DURABILITY, durability)];
    let result =
        AppendResult { stream, first_version, version, partition, position, count: events.len(), cursor, duplicate };
    (status, headers, Json(result)).into_response()
}

/// The conflict, and on demand what the caller has missed, so that deciding again needs no further request.
async fn conflict(
    app: &App,
    partition: Partition,
    stream: &StreamId,
    condition: &Condition,
    current: Version,
    include: bool,
) -> Problem {
    let expected = condition.expected();
    let mut problem = Problem::from(Error::WrongVersion { current })
        .header(header::ETAG, etag(current))
        .with("stream", written(stream))
        .with("expected_version", written(&expected))
        .with("current_version", written(&current));
    if include && current > Version::ZERO {
        let known = expected.and_then(|versions| versions.into_iter().max()).unwrap_or_default();
        let page = PageRequest {
            from: Some(known.plus(1)),
            to: None,
            limit: MISSED_MAX,
            bytes: PAGE_BYTES,
            direction: Direction::Forward,
        };
        if let Ok(page) = app.store.read(partition, stream, page).await {
            let mut events = Vec::new();
            write_events(&mut events, &page.events);
            problem = problem.with("events", String::from_utf8(events).unwrap_or_default());
        }
    }
    problem
}

fn written(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values are JSON")
}

/// Whether it is the key that was used before; an id of the client's own beside it is another matter.
fn is_from_key(stream: &StreamId, id: &EventId, key: Option<&str>, index: usize) -> bool {
    key.is_some_and(|key| *id == EventId::from_key(stream, key, index))
}

fn key_reused() -> Problem {
    let detail = "This key was sent to this stream before, with other events. Give a new request a new key.";
    Problem::new(Code::IdempotencyKeyReused, detail)
}
