//! `GET /events`: the log, in pages or as a feed.

use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, Method},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App, Wait,
    accept::{Form, form},
    events::{EventDocument, NO_CACHE, json_response, write_events},
    extract::{Headers, Query, forward_only, stream_id},
    feeds::{Follower, feed, feed_headers, feed_options, last_event_id, no_feed},
    problem::{Code, Problem},
};
use crate::{
    model::{Category, Cursor, Event, Partition, Partitions, check_type, parse_rfc3339},
    store::{Direction, LogFilter, LogRequest, PAGE_BYTES, bytes_of},
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
    /// Whether this was all there is by now; going backward, whether it was the beginning. Under a filter a page may be
    /// short, or empty, and not yet caught up.
    caught_up: bool,
}

/// Read or follow the log
///
/// The events of all streams in commit order, page by page: pass `next` as `after`. With several partitions the order
/// holds within each, and the pages take them in turn. A cursor from another history of the store (a restored backup,
/// a lost failover) is refused with 409. With `wait` the request waits for events where there are none. With
/// `Accept: text/event-stream` the answer is a feed that goes on: an event each, whose id is a cursor, `caught-up` events
/// at the head, and the id alone where a filter passed over others. With `Accept: application/x-ndjson` it is a line for
/// each event, which has its `cursor`; with `follow=true` that goes on too.
#[utoipa::path(
    get, path = "/events", operation_id = "readLog", tag = "log",
    params(
        ("after" = inline(Option<String>), Query, description = "`next` of the page before, the id of an event of a feed, `beginning` (default) or `end`; going backward: the events before that one, by default from the end", min_length = 1, pattern = "^[A-Za-z0-9_-]+$"),
        ("from_time" = inline(Option<String>), Query, description = "Instead of `after`: from the first event stored at or after this time on (RFC 3339)", example = "2026-11-23T12:00:00Z", format = DateTime),
        ("limit" = inline(Option<i32>), Query, description = "Most events wanted (default 100); ends a feed, which otherwise has no limit", minimum = 1, maximum = 1000),
        ("category" = inline(Option<Vec<super::document::Category>>), Query, description = "Only events of streams in one of these categories", example = json!(["order"])),
        ("type" = inline(Option<Vec<super::document::EventType>>), Query, description = "Only events of one of these types", example = json!(["order-placed"])),
        ("stream" = inline(Option<String>), Query, description = "Only events of this stream", example = "order-12345", min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$"),
        ("partition" = inline(Option<i32>), Query, description = "Only this partition", minimum = 0, maximum = 127),
        ("direction" = Option<super::DirectionName>, Query, description = "`forward` (default) or `backward`; backward with several partitions needs `partition`"),
        ("wait" = inline(Option<i32>), Query, description = "How many seconds to wait where there is nothing (default 0)", minimum = 0, maximum = 60),
        ("follow" = inline(Option<bool>), Query, description = "Whether lines go on at the head; server-sent events always do"),
        ("Last-Event-ID" = inline(Option<String>), Header, description = "Of a feed: the id of the last event that was seen; wins over the query", pattern = "^[A-Za-z0-9_-]+$"),
    ),
    responses(
        (status = 200, description = "A page, or a feed",
            content((LogPageDocument = "application/json"), (String = "text/event-stream"), (String = "application/x-ndjson")), headers(
            ("Cache-Control" = String, description = "`private, no-cache`; of feeds `no-cache, no-transform`"), ("X-Request-Id" = String, description = "Id of this request"))),
        (status = 400, response = super::document::BadRequest), (status = 406, response = super::document::NotAcceptable),
        (status = 409, response = super::document::Diverged), (status = 503, response = super::document::Unavailable),
    )
)]
pub async fn read_log(
    State(app): State<App>,
    method: Method,
    query: RawQuery,
    Headers(headers): Headers,
) -> Result<Response, Problem> {
    const KNOWN: &[&str] = &["after", "from_time", "limit", "stream", "partition", "direction", "wait", "follow"];
    let query = Query::parse_with_lists(&query, KNOWN, &["category", "type"])?;
    let form = form(&headers, Form::ALL)?;
    let request = Request::parse(&app, &query, &headers, form)?;
    if form != Form::Json {
        let options = feed_options(&app, &query, form)?;
        if method == Method::HEAD {
            return Ok(feed_headers(form).into_response());
        }
        let permit = app.wait_permit()?;
        let cursor = request.cursor(&app).await?;
        let follower = app.store.follow_log(cursor, request.partition, request.filter);
        return feed(&app, permit, Follower::Log(Box::new(follower)), options).await;
    }
    no_feed(&query)?;
    if method == Method::HEAD {
        query.wait()?;
        return Ok((NO_CACHE, json_response(Vec::new())).into_response());
    }
    let wait = app.wait(&query)?;
    if wait.is_some() {
        forward_only(request.direction)?;
    }
    request.page(&app, &wait).await
}

/// What is asked of the log.
struct Request {
    from: From,
    partition: Option<Partition>,
    limit: usize,
    direction: Direction,
    filter: LogFilter,
}

/// Where to begin.
enum From {
    /// At the beginning; going backward, at the end.
    Outset,
    End,
    Time(u64),
    At(Cursor),
}

impl Request {
    fn parse(app: &App, query: &Query, headers: &HeaderMap, form: Form) -> Result<Self, Problem> {
        let partitions = app.store.partitions();
        let (direction, filter) = (query.direction()?, filter(app, query)?);
        // A stream is in one partition: the others need not be asked.
        let own = filter.stream.as_ref().map(|stream| app.store.partition(stream));
        let partition = partition(query, partitions)?.or(own);
        let limit = query.limit(100, app.limits.page_events)?;
        let mut from = From::parse(query, partitions)?;
        if direction == Direction::Backward {
            if partition.is_none() && partitions.count() > 1 {
                let detail = "There is no order across partitions: read each backward, with partition.";
                return Err(Problem::new(Code::InvalidParameter, detail));
            }
            from = match from {
                From::Outset if query.get("after").is_none() => From::Outset,
                From::End => From::Outset,
                From::At(cursor) => From::At(cursor),
                From::Outset | From::Time(_) => {
                    let detail = "Going backward, after is a cursor or end, and from_time does not go with it.";
                    return Err(Problem::new(Code::InvalidParameter, detail));
                }
            };
        }
        if form != Form::Json
            && let Some(cursor) = last_event_id(headers, |text| Cursor::parse(text, partitions))?
        {
            from = From::At(cursor);
        }
        Ok(Self { from, partition, limit, direction, filter })
    }

    /// The cursor to begin with.
    async fn cursor(&self, app: &App) -> Result<Cursor, Problem> {
        let partitions = app.store.partitions();
        let mut cursor = Cursor::beginning(partitions);
        for partition in partitions.all().filter(|one| self.partition.is_none_or(|wanted| wanted == *one)) {
            let place = match &self.from {
                From::Outset => break,
                From::At(cursor) => return Ok(cursor.clone()),
                From::End => app.store.log_end(partition).await?,
                From::Time(time) => app.store.log_place_before(partition, *time).await?,
            };
            cursor.places[usize::from(partition.get())] = place;
        }
        Ok(cursor)
    }

    async fn page(self, app: &App, wait: &Wait) -> Result<Response, Problem> {
        let cursor = self.cursor(app).await?;
        if wait.is_some() {
            let log = app.store.follow_log(cursor, self.partition, self.filter);
            let mut follower = Follower::Log(Box::new(log));
            let batch = follower.poll(app, self.limit, wait.until).await?;
            let next = follower.token().unwrap_or_default();
            return Ok(answer(batch.events.iter().map(|live| &live.event), &next, batch.caught_up));
        }
        let (events, cursor, caught_up) = self.read_in_turn(app, cursor).await?;
        Ok(answer(events.iter(), &cursor.token(), caught_up))
    }

    /// Fills a page from the partitions, beginning with the one whose turn it is. Each is asked once.
    async fn read_in_turn(self, app: &App, mut cursor: Cursor) -> Result<(Vec<Event>, Cursor, bool), Problem> {
        let Self { partition, limit, direction, filter, .. } = self;
        let partitions = partition.map_or_else(|| app.store.partitions().all().collect(), |one| vec![one]);
        let mut request = LogRequest { limit, bytes: PAGE_BYTES, direction, filter };
        let mut events = Vec::new();
        let mut caught_up = true;
        let first = cursor.turn % partitions.len();
        for step in 0..partitions.len() {
            let index = (first + step) % partitions.len();
            let (partition, number) = (partitions[index], usize::from(partitions[index].get()));
            request.limit = limit - events.len();
            if request.limit == 0 || request.bytes == 0 {
                // The page is full: whether this partition has more is for the next page to say.
                caught_up = false;
                break;
            }
            let page = app.store.read_log(partition, cursor.places[number], &request).await?;
            cursor.pass(partition, page.place);
            request.bytes = request.bytes.saturating_sub(bytes_of(&page.events));
            caught_up &= page.caught_up;
            events.extend(page.events);
        }
        Ok((events, cursor, caught_up))
    }
}

fn partition(query: &Query, partitions: Partitions) -> Result<Option<Partition>, Problem> {
    let what = format!("a number from 0 to {}", partitions.count() - 1);
    query.parsed("partition", &what, |text| partitions.all().find(|partition| partition.get().to_string() == text))
}

fn filter(app: &App, query: &Query) -> Result<LogFilter, Problem> {
    let kind = |text: &str| check_type(text, app.limits.type_chars).is_ok().then(|| text.to_owned());
    Ok(LogFilter {
        categories: query.list("category", "the part of a stream id before its first -", Category::parse)?,
        types: query.list("type", "the type of an event", kind)?,
        stream: query.get("stream").map(stream_id).transpose()?,
    })
}

impl From {
    fn parse(query: &Query, partitions: Partitions) -> Result<Self, Problem> {
        let time = query.parsed("from_time", "a time as in RFC 3339", parse_rfc3339)?;
        let read = |text: &str| match text {
            "beginning" => Some(Self::Outset),
            "end" => Some(Self::End),
            text => Cursor::parse(text, partitions).map(Self::At),
        };
        match (query.parsed("after", "a cursor of this store, beginning or end", read)?, time) {
            (Some(_), Some(_)) => Err(Problem::new(Code::InvalidParameter, "Send after or from_time, not both.")),
            (after, None) => Ok(after.unwrap_or(Self::Outset)),
            (None, Some(time)) => Ok(Self::Time(time)),
        }
    }
}

fn answer<'a>(events: impl Iterator<Item = &'a Event> + Clone, next: &str, caught_up: bool) -> Response {
    let mut body = Vec::with_capacity(256 + bytes_of(events.clone()));
    body.extend_from_slice(b"{\"events\":");
    write_events(&mut body, events);
    body.extend_from_slice(format!(",\"next\":\"{next}\",\"caught_up\":{caught_up}}}").as_bytes());
    (NO_CACHE, json_response(body)).into_response()
}
