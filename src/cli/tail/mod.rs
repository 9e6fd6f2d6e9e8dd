//! `streamkeep tail`
//!
//! Follows the service's feed of server-sent events. The place behind each message that came whole is kept, and a
//! connection that breaks is made anew from there: nothing is missed, and nothing shown twice.

mod show;
mod sse;

pub use show::TailFormat;

use std::{
    io::{self, Write as _},
    process,
    time::Duration,
};

use reqwest::{
    Method, Request, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::{
    show::Show,
    sse::{Message, Reader},
};
use super::{
    Failure, cancel_on_signal,
    client::{Backoff, Client, Trouble, problem},
};
use crate::{
    config::Tail,
    model::{Category, StreamId},
};

const EVENT_STREAM: &str = "text/event-stream";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Shows events as they come, until it is interrupted, has shown as many as were wanted, or its reader has enough.
///
/// # Errors
/// What the service refuses, or what ended its feed for good.
pub async fn tail(settings: Tail) -> Result<(), Failure> {
    let mut follower = Follower::new(&settings)?;
    let interrupted = CancellationToken::new();
    cancel_on_signal(interrupted.clone())?;
    tokio::spawn(async move {
        interrupted.cancelled().await;
        // Not by way of the loop below: it may stand in a write to a pipe that nobody reads.
        process::exit(0);
    });
    let mut backoff = Backoff::default();
    let mut told = false;
    loop {
        let (what, pause) = match follower.follow().await {
            Ok(Ended::Done) => return Ok(()),
            Ok(Ended::Broken { what, retry }) => {
                told &= retry.is_none();
                backoff = retry.map_or(backoff, Backoff::from);
                (what, backoff.pause(Duration::ZERO))
            }
            Err(Trouble::Passing { what, retry_after }) => (what, backoff.pause(retry_after)),
            Err(Trouble::Lasting(failure)) => return Err(failure),
        };
        if !told {
            told = true;
            // A closed standard error is no reason to stop.
            let _ = writeln!(io::stderr(), "streamkeep: {what}; trying again");
        }
        sleep(pause).await;
    }
}

/// How a connection ended where that is no failure.
enum Ended {
    /// All that was wanted is shown, or nobody looks any more.
    Done,
    /// The feed goes on for those who come back: after this pause, if the service got as far as to say so.
    Broken { what: String, retry: Option<Duration> },
}

/// Where a first connection begins.
enum Start {
    /// As this parameter says.
    At(&'static str, String),
    /// Behind the version that the stream has then.
    StreamEnd,
    /// As the header says.
    Cursor,
}

/// What is followed, and how far that is.
struct Follower {
    client: Client,
    address: Url,
    start: Start,
    /// The place behind what was shown or passed over.
    last: Option<String>,
    show: Show,
    /// How many events are still wanted; `None`: all.
    left: Option<u64>,
}

impl Follower {
    fn new(settings: &Tail) -> Result<Self, Failure> {
        let client = Client::new(&settings.service, Duration::ZERO)?;
        let read = |id: &String| StreamId::parse(id).ok_or_else(|| format!("{id:?} is no stream id"));
        let stream = settings.stream.as_ref().map(read).transpose()?;
        // A stream's own feed knows no types and times; that of the log finds one stream too.
        let own = stream.as_ref().filter(|_| settings.types.is_empty() && settings.since.is_none());
        let address = match own {
            Some(stream) => client.address(&format!("/streams/{stream}")),
            None => filtered(client.address("/events"), settings, stream.as_ref())?,
        };
        let start = start(settings, own.is_some());
        let last = matches!(start, Start::Cursor).then(|| settings.from.clone());
        Ok(Self { client, address, start, last, show: Show::new(settings.format), left: settings.count })
    }

    /// Connects, and shows what comes until the connection ends.
    async fn follow(&mut self) -> Result<Ended, Trouble> {
        let mut response = self.connect().await?;
        let (mut reader, mut lines, mut retry) = (Reader::default(), Vec::new(), None);
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(Ended::Broken { what: "the service has ended the feed".to_owned(), retry }),
                Err(error) => return Ok(Ended::Broken { what: self.client.describe(&error), retry }),
            };
            let (mut bytes, mut last) = (&chunk[..], None);
            lines.clear();
            while let Some(message) = reader.next(&mut bytes).filter(|_| self.left != Some(0)) {
                retry = message.retry.or(retry);
                last = self.take(message, &mut lines)?.or(last);
            }
            if !write(&lines)? || self.left == Some(0) {
                return Ok(Ended::Done);
            }
            self.last = last.or(self.last.take());
        }
    }

    async fn connect(&mut self) -> Result<Response, Trouble> {
        if matches!(self.start, Start::StreamEnd) {
            let version = self.version().await?;
            self.start = Start::At("from", (version + 1).to_string());
        }
        let mut request = Request::new(Method::GET, self.address.clone());
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static(EVENT_STREAM));
        if let Some(last) = &self.last {
            let last = HeaderValue::from_str(last).map_err(|_| format!("{last:?} is no cursor"))?;
            headers.insert(LAST_EVENT_ID, last);
        } else if let Start::At(name, value) = &self.start {
            request.url_mut().query_pairs_mut().append_pair(name, value);
        }
        let response = self.client.open(request).await?;
        let form = response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if form.starts_with(EVENT_STREAM.as_bytes()) {
            return Ok(response);
        }
        Err("the answer is no feed of Streamkeep; is --url right?".to_owned().into())
    }

    /// The stream's version; 0 where it is not there.
    async fn version(&self) -> Result<u64, Trouble> {
        let answer = self.client.attempt(Request::new(Method::HEAD, self.address.clone())).await?;
        match answer.status {
            StatusCode::OK => version(&answer.headers)
                .ok_or_else(|| "the answer is not that of Streamkeep; is --url right?".to_owned().into()),
            // The feed may begin before the stream; where that was deleted, it says so better than this can.
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(0),
            _ => Err(format!("the service refused with {}", answer.problem()).into()),
        }
    }

    /// Adds what is to be shown of a message to `lines`; gives the place behind it.
    fn take(&mut self, message: Message, lines: &mut Vec<u8>) -> Result<Option<String>, Failure> {
        match &*message.kind {
            "" if !message.data.is_empty() => {
                self.show.write(&message.data, lines)?;
                self.left = self.left.map(|left| left - 1);
            }
            "problem" => {
                let what = problem(&message.data).unwrap_or_default();
                write(lines)?;
                return Err(format!("the service has ended the feed: {what}").into());
            }
            // A place alone, or that this is the head; further kinds may come.
            _ => {}
        }
        Ok(message.id)
    }
}

/// The address of the log with what is wanted of it.
fn filtered(mut log: Url, settings: &Tail, stream: Option<&StreamId>) -> Result<Url, Failure> {
    let mut pairs = log.query_pairs_mut();
    if let Some(stream) = stream {
        pairs.append_pair("stream", stream.as_str());
    }
    for category in &settings.category {
        let category = Category::parse(category).ok_or_else(|| format!("{category:?} is no category"))?;
        pairs.append_pair("category", category.as_str());
    }
    for kind in &settings.types {
        pairs.append_pair("type", kind);
    }
    drop(pairs);
    Ok(log)
}

fn start(settings: &Tail, of_stream: bool) -> Start {
    match (&settings.since, settings.from.as_str()) {
        (Some(time), _) => Start::At("from_time", time.clone()),
        (None, "end") if of_stream => Start::StreamEnd,
        (None, "beginning") if of_stream => Start::At("from", "1".to_owned()),
        (None, place @ ("beginning" | "end")) => Start::At("after", place.to_owned()),
        (None, _) => Start::Cursor,
    }
}

/// The version that an `ETag` tells; a gateway that compresses may have made it weak.
fn version(headers: &HeaderMap) -> Option<u64> {
    let tag = headers.get(header::ETAG)?.to_str().ok()?;
    tag.trim_start_matches("W/").trim_matches('"').parse().ok()
}

/// Writes lines at once; false where nobody reads them any more. Without lines it finds out about that: a feed has a
/// heartbeat, and who waits behind `head` is not to wait for the next event.
fn write(lines: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(lines).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
        Err(error) => return Err(format!("cannot write to standard output: {error}").into()),
    }
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    let polled_ok = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok();
    Ok(!(polled_ok && polled[0].revents().contains(PollFlags::ERR)))
}
