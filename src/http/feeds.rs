//! Feeds: answers that go on. What is there first, then what comes, as server-sent events or as lines of JSON.

use std::{
    io, mem,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::{
    App,
    accept::Form,
    extract::Query,
    metrics::Held,
    problem::{Code, Problem},
};
use crate::{
    model::{Cursor, Error, StreamCursor},
    store::{Batch, LiveEvent, LogFollower, StreamFollower},
};

/// Most events of a piece of a feed.
const PIECE: usize = 256;
/// After so long without an event a feed says that it still lives; proxies and clients allow 15 s and more.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Pause before Redis, which is away, is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// First of all a client hears how soon it may come back, in ms, and something that passes on the headers at once.
const PREAMBLE: &[u8] = b"retry: 2000\n:\n\n";
/// What a client that comes back has seen last; wins over the query.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// nginx passes on what comes as it comes.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What is followed.
pub enum Follower {
    /// The log.
    Log(Box<LogFollower>),
    /// One stream.
    Stream(Box<StreamFollower>),
}

/// Where a follower is: what its tokens are made of.
enum Place {
    Log(Cursor),
    Stream(Option<StreamCursor>),
}

impl Follower {
    /// Gives what is there.
    ///
    /// # Errors
    /// Those of the followers of the store.
    pub async fn look(&mut self, most: usize) -> Result<Batch, Error> {
        match self {
            Self::Log(log) => log.look(most).await,
            Self::Stream(stream) => stream.look(most).await,
        }
    }

    /// Waits until there may be more.
    pub async fn changed(&mut self) {
        match self {
            Self::Log(log) => log.changed().await,
            Self::Stream(stream) => stream.changed().await,
        }
    }

    /// As `look`, but waits for at least one event until `until`, or until the service drains.
    ///
    /// # Errors
    /// Those of `look`.
    pub async fn poll(&mut self, app: &App, most: usize, until: Instant) -> Result<Batch, Error> {
        loop {
            let batch = self.look(most).await?;
            let over = Instant::now() >= until || app.closing.is_cancelled();
            if !batch.events.is_empty() || over {
                return Ok(batch);
            }
            if batch.caught_up {
                tokio::select! {
                    () = self.changed() => {}
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = app.closing.cancelled() => {}
                }
            }
        }
    }

    /// Where it is, as clients are told; `None` before the first event of a stream.
    pub fn token(&self) -> Option<String> {
        match self {
            Self::Log(log) => Some(log.cursor().token()),
            Self::Stream(stream) => stream.cursor().as_ref().map(StreamCursor::token),
        }
    }

    fn place(&self) -> Place {
        match self {
            Self::Log(log) => Place::Log(log.cursor().clone()),
            Self::Stream(stream) => Place::Stream(stream.cursor()),
        }
    }
}

impl Place {
    fn pass(&mut self, app: &App, live: &LiveEvent) {
        match self {
            Self::Log(cursor) => {
                cursor.pass(app.store.partition(&live.event.stream), Some((live.event.position, live.fingerprint)));
            }
            Self::Stream(place) => {
                *place = Some(StreamCursor { version: live.event.version, fingerprint: live.fingerprint });
            }
        }
    }

    /// As [`Follower::token`].
    fn token(&self) -> Option<String> {
        match self {
            Self::Log(cursor) => Some(cursor.token()),
            Self::Stream(place) => place.as_ref().map(StreamCursor::token),
        }
    }
}

/// Where a client that comes back wants to go on; `None` where it does not.
///
/// # Errors
/// `invalid-request`
pub fn last_event_id<T>(headers: &HeaderMap, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Problem> {
    let Some(last) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let last = last.to_str().ok().and_then(parse);
    last.map(Some)
        .ok_or_else(|| Problem::new(Code::InvalidRequest, "Last-Event-ID is the id of an event of this feed."))
}

/// How a feed goes.
#[derive(Clone, Copy, Debug)]
pub struct FeedOptions {
    /// Server-sent events or lines.
    pub form: Form,
    /// Whether it stays open at the head.
    pub follow: bool,
    /// Ends it after so many events.
    pub limit: Option<usize>,
}

impl FeedOptions {
    /// Most events of the next piece.
    fn piece(self) -> usize {
        self.limit.map_or(PIECE, |left| left.min(PIECE))
    }
}

struct Feed {
    app: App,
    follower: Follower,
    options: FeedOptions,
    /// Read before the answer began, so that what is wrong got a status; and where it began.
    first: Option<(Batch, Place)>,
    /// Whether it stands at the head: there is nothing more by now.
    resting: bool,
    /// Whether the client was told so.
    told: bool,
    ended: bool,
    wrote: Instant,
    chunk: Chunk,
    _permit: OwnedSemaphorePermit,
    _open: Held,
}

/// What goes out next: one event as others are sent it too, or what was written for this client alone.
#[derive(Default)]
struct Chunk {
    shared: Bytes,
    own: Vec<u8>,
}

impl Chunk {
    fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.own.is_empty()
    }

    /// Adds what others are sent too: by itself it is not copied.
    fn share(&mut self, frame: &Bytes) {
        if self.is_empty() {
            self.shared = frame.clone();
        } else {
            self.own().extend_from_slice(frame);
        }
    }

    /// To be written at the end of.
    fn own(&mut self) -> &mut Vec<u8> {
        self.own.extend_from_slice(&mem::take(&mut self.shared));
        &mut self.own
    }

    fn take(&mut self) -> Bytes {
        if self.shared.is_empty() { mem::take(&mut self.own).into() } else { mem::take(&mut self.shared) }
    }
}

/// How a feed is to go, and that nothing is asked of it that only pages have.
///
/// # Errors
/// `invalid-parameter`
pub fn feed_options(app: &App, query: &Query, form: Form) -> Result<FeedOptions, Problem> {
    if let Some(key) = ["wait", "direction", "to"].into_iter().find(|key| query.get(key).is_some()) {
        let detail = format!("The parameter {key} is for pages; a feed goes forward as far as there are events.");
        return Err(Problem::new(Code::InvalidParameter, detail));
    }
    let limit = query.get("limit").map(|_| query.limit(1, app.limits.page_events)).transpose()?;
    Ok(FeedOptions { form, follow: query.flag("follow")? || form == Form::EventStream, limit })
}

/// That nothing is asked of a page that only feeds have.
///
/// # Errors
/// `invalid-parameter`
pub fn no_feed(query: &Query) -> Result<(), Problem> {
    match query.get("follow") {
        Some(_) => Err(Problem::new(Code::InvalidParameter, "The parameter follow goes with application/x-ndjson.")),
        None => Ok(()),
    }
}

/// Answers with a feed.
///
/// # Errors
/// What the first look finds wrong.
pub async fn feed(
    app: &App,
    permit: OwnedSemaphorePermit,
    mut follower: Follower,
    options: FeedOptions,
) -> Result<Response, Problem> {
    let place = follower.place();
    let first = follower.look(options.piece()).await?;
    let shared = Bytes::from_static(if options.form == Form::EventStream { PREAMBLE } else { b"" });
    let feed = Feed {
        app: app.clone(),
        follower,
        options,
        first: Some((first, place)),
        resting: false,
        told: false,
        ended: false,
        wrote: Instant::now(),
        chunk: Chunk { shared, own: Vec::new() },
        _permit: permit,
        _open: Held::of(&app.metrics.feeds),
    };
    let chunks = stream::unfold(Box::new(feed), |mut feed| async move {
        let chunk = feed.next().await?;
        Some((chunk, feed))
    });
    Ok((feed_headers(options.form), Body::from_stream(chunks)).into_response())
}

/// The headers of a feed.
pub fn feed_headers(form: Form) -> [(HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static(form.media_type())),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
        (UNBUFFERED, HeaderValue::from_static("no")),
    ]
}

impl Feed {
    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.ended {
            if self.resting {
                self.rest().await;
            } else if self.app.closing.is_cancelled() && self.options.follow {
                // It could go on for long: whoever comes back goes on elsewhere.
                self.ended = true;
            }
            if self.chunk.is_empty() && !self.ended {
                match self.look().await {
                    Ok((batch, place)) => self.take(&batch, place),
                    Err(error) if error.is_passing() && !self.app.closing.is_cancelled() => self.pause().await,
                    Err(error) => {
                        self.ended = true;
                        match self.options.form {
                            Form::EventStream => self.write_problem(error),
                            // Without its end marker: whoever reads lines must not take these for all.
                            _ => return Some(Err(io::Error::other(error))),
                        }
                    }
                }
            }
            if self.chunk.is_empty() && !self.ended && self.wrote.elapsed() > HEARTBEAT {
                self.write_heartbeat();
            }
            if !self.chunk.is_empty() {
                self.wrote = Instant::now();
                return Some(Ok(self.chunk.take()));
            }
        }
        None
    }

    async fn look(&mut self) -> Result<(Batch, Place), Error> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let place = self.follower.place();
        // In a box: a feed that waits, as nearly all do, is not to have room for a look.
        Ok((Box::pin(self.follower.look(self.options.piece())).await?, place))
    }

    /// At the head: until there may be more, or something is to be said.
    async fn rest(&mut self) {
        tokio::select! {
            () = self.follower.changed() => self.resting = false,
            () = tokio::time::sleep_until((self.wrote + HEARTBEAT).into()) => self.write_heartbeat(),
            () = self.app.closing.cancelled() => self.ended = true,
        }
    }

    /// Redis is away: the feed stays open, for its client could do nothing better.
    async fn pause(&mut self) {
        self.resting = false;
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = self.app.closing.cancelled() => {}
        }
    }

    /// Writes what came.
    fn take(&mut self, batch: &Batch, mut place: Place) {
        let partitions = self.app.store.partitions().count();
        let same = batch.shared && partitions == 1 && self.options.form == Form::EventStream;
        for live in &batch.events {
            place.pass(&self.app, live);
            if same {
                // With one partition the place behind an event does not depend on where a follower came from.
                self.chunk.share(live.frame(|| {
                    let mut frame = Vec::new();
                    write_event(self.options.form, live, &place, &mut frame);
                    frame.into()
                }));
            } else {
                write_event(self.options.form, live, &place, self.chunk.own());
            }
        }
        if let Some(left) = &mut self.options.limit {
            *left = left.saturating_sub(batch.events.len());
            self.ended = *left == 0;
        }
        self.resting = batch.caught_up;
        self.told &= !batch.behind;
        if self.ended {
            return;
        }
        if !batch.caught_up && batch.events.is_empty() {
            // Under a filter there may be long stretches without an event: who comes back need not look again.
            self.write_id();
        }
        if batch.caught_up && !self.told {
            self.told = true;
            self.write_caught_up();
        }
        self.ended = batch.caught_up && !self.options.follow;
    }

    /// A line that moves the place of whoever comes back, and is no event.
    fn write_id(&mut self) {
        if let (Form::EventStream, Some(token)) = (self.options.form, self.follower.token()) {
            self.chunk.own().extend_from_slice(format!("id: {token}\n\n").as_bytes());
        }
    }

    fn write_heartbeat(&mut self) {
        let chunk = self.chunk.own();
        match (self.options.form, self.follower.token()) {
            (Form::EventStream, Some(token)) => chunk.extend_from_slice(format!(":\nid: {token}\n\n").as_bytes()),
            (Form::EventStream, None) => chunk.extend_from_slice(b":\n\n"),
            _ => chunk.push(b'\n'),
        }
    }

    fn write_caught_up(&mut self) {
        if self.options.form != Form::EventStream {
            return;
        }
        if let Some(token) = self.follower.token() {
            self.chunk.own().extend_from_slice(format!("id: {token}\n").as_bytes());
        }
        self.chunk.own().extend_from_slice(b"event: caught-up\ndata: {}\n\n");
    }

    fn write_problem(&mut self, error: Error) {
        let id = Uuid::now_v7();
        let problem = Problem::from(error);
        tracing::warn!(problem = %id, code = problem.code().facts().1, "a feed ended");
        self.chunk.own().extend_from_slice(b"event: problem\ndata: ");
        self.chunk.own().extend_from_slice(&problem.document(id));
        self.chunk.own().extend_from_slice(b"\n\n");
    }
}

fn write_event(form: Form, live: &LiveEvent, place: &Place, out: &mut Vec<u8>) {
    let token = place.token().unwrap_or_default();
    let parts: [&[u8]; 5] = match form {
        Form::EventStream => [b"id: ", token.as_bytes(), b"\ndata: ", &live.line, b"\n\n"],
        // The event is an object, and not an empty one.
        _ => [b"{\"cursor\":\"", token.as_bytes(), b"\",", live.line.get(1..).unwrap_or_default(), b"\n"],
    };
    out.reserve(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        out.extend_from_slice(part);
    }
}
