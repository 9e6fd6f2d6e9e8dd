//! Workers: each appends the events of its streams, one after another.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use reqwest::{
    Method, Request, StatusCode,
    header::{self, HeaderValue},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::Stopped;
use crate::{
    cli::{
        client::{Answer, Client, foreign},
        ndjson::Line,
        progress::Progress,
    },
    http::{Code, DURABILITY},
    model::{Durability, EventId, StreamId},
};

/// An event on its way to the service.
pub struct Job {
    /// Of its line.
    pub number: u64,
    /// How far the source was read by then, in bytes.
    pub offset: u64,
    /// The stream that it belongs to.
    pub stream: StreamId,
    /// The request.
    pub body: Bytes,
    /// Its share of the memory that waiting events may take.
    pub room: OwnedSemaphorePermit,
}

/// What the workers share.
pub struct Shared {
    /// Where the service is.
    pub client: Client,
    /// What an event must survive before it counts as appended, where that is asked for.
    pub durability: Option<Durability>,
    /// Told when no further event is to be appended.
    pub stop: CancellationToken,
    /// How far it is.
    pub progress: Progress,
    /// Events that were appended.
    pub appended: AtomicU64,
    /// Events that were there already.
    pub already: AtomicU64,
}

#[derive(Serialize)]
struct AppendBody<'a> {
    events: [EventBody<'a>; 1],
}

#[derive(Serialize)]
struct EventBody<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
}

/// What of an append's answer matters here.
#[derive(Deserialize)]
struct AppendAnswer {
    duplicate: bool,
}

/// Reads a line as the stream and the request of its event.
///
/// # Errors
/// What is wrong with it.
pub fn parse(source: &str, number: u64, text: &str) -> Result<(StreamId, Bytes), String> {
    let line = Line::parse(text)?;
    let stream = StreamId::parse(&line.stream).ok_or_else(|| format!("a stream id has {}", StreamId::RULE))?;
    let id = line.id.unwrap_or_else(|| EventId::from_line(source, number, text).as_str().to_owned().into());
    let event = EventBody { id: &id, kind: &line.kind, data: line.data, metadata: line.metadata };
    let body = serde_json::to_vec(&AppendBody { events: [event] }).expect("writing text to memory cannot fail");
    Ok((stream, body.into()))
}

/// The same number for the same stream, evenly spread.
#[must_use]
pub fn hash(stream: &StreamId) -> u64 {
    let mut hasher = DefaultHasher::new();
    stream.hash(&mut hasher);
    hasher.finish()
}

/// Appends what comes, in its order, until there is no more or the import stops.
///
/// # Errors
/// The event that could not be appended. The import is told to stop then.
pub async fn work(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>) -> Result<(), Stopped> {
    while let Some(Some(job)) = shared.stop.run_until_cancelled(jobs.recv()).await {
        match shared.stop.run_until_cancelled(append(&shared, &job)).await {
            Some(Ok(duplicate)) => {
                let count = if duplicate { &shared.already } else { &shared.appended };
                count.fetch_add(1, Ordering::Relaxed);
                shared.progress.add(1, job.offset);
            }
            Some(Err(stopped)) => {
                shared.stop.cancel();
                return Err(stopped);
            }
            None => return Ok(()),
        }
        drop(job.room);
    }
    Ok(())
}

/// Appends an event; true where it was there already.
async fn append(shared: &Shared, job: &Job) -> Result<bool, Stopped> {
    let number = job.number;
    let mut request = Request::new(Method::POST, shared.client.address(&format!("/streams/{}/events", job.stream)));
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(level) = shared.durability {
        request.headers_mut().insert(DURABILITY, HeaderValue::from_static(level.as_str()));
    }
    *request.body_mut() = Some(job.body.clone().into());
    let stopped = |problem: String| Stopped { number, problem, line_is_wrong: false };
    let answer = shared.client.send(request).await.map_err(|failure| stopped(failure.to_string()))?;
    if !matches!(answer.status, StatusCode::CREATED | StatusCode::OK) {
        return Err(refused(number, &answer));
    }
    // Also the status says so, but anybody can answer 200.
    let answer: AppendAnswer =
        serde_json::from_slice(&answer.body).map_err(|error| stopped(foreign(&error).to_string()))?;
    Ok(answer.duplicate)
}

fn refused(number: u64, answer: &Answer) -> Stopped {
    let line_is_wrong = matches!(
        answer.status,
        StatusCode::BAD_REQUEST
            | StatusCode::CONFLICT
            | StatusCode::GONE
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY
    ) && !answer.is(Code::DurabilityUnsupported);
    Stopped { number, problem: format!("the service refused the event with {}", answer.problem()), line_is_wrong }
}
