//! `streamkeep export`

mod output;

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use reqwest::{Method, Request, StatusCode, Url};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use self::output::{Broken, Output};
use super::{
    Failure, cancel_on_signal,
    client::{Answer, Client, foreign},
    ndjson::Line,
    progress::Progress,
};
use crate::{
    config::Export,
    model::{Category, StreamId},
};

/// Events of a page.
const PAGE_EVENTS: &str = "1000";

/// Writes events as lines, in the order of the log or of one stream.
///
/// # Errors
/// What stopped it. A file is not there then, or as it was before.
pub async fn export(settings: Export) -> Result<(), Failure> {
    let client = Client::new(&settings.service, Duration::from_secs(settings.retry_secs.into()))?;
    let mut pages = Pages::new(client, &settings)?;
    let output = Output::open(&settings.file)?;
    let to_stdout = output.is_stdout();
    // A bar between lines on one terminal would spoil both.
    let shown = !to_stdout || (io::stderr().is_terminal() && !io::stdout().is_terminal());
    let progress = if shown { Progress::start(None) } else { Progress::hidden(None) };
    let interrupted = CancellationToken::new();
    if !to_stdout {
        // So that the temporary file is removed. Without one, ending at once is best.
        cancel_on_signal(interrupted.clone())?;
    }
    match interrupted.run_until_cancelled(write(&mut pages, output, &progress)).await {
        None => return Err(format!("interrupted; {} is not written", settings.file.display()).into()),
        Some(Err(Broken::Failure(failure))) => return Err(failure),
        Some(Err(Broken::Pipe)) => return Ok(()),
        Some(Ok(())) => {}
    }
    let summary = format!("{} events written, {}", progress.events(), progress.pace());
    drop(progress);
    match (to_stdout, shown) {
        (false, _) => writeln!(io::stdout(), "{summary}")?,
        (true, true) => writeln!(io::stderr(), "{summary}")?,
        (true, false) => {}
    }
    Ok(())
}

async fn write(pages: &mut Pages, mut output: Output, progress: &Progress) -> Result<(), Broken> {
    let mut lines = Vec::new();
    while let Some(body) = pages.next().await? {
        lines.clear();
        let page: Page<'_> = serde_json::from_slice(&body).map_err(|error| foreign(&error))?;
        for event in &page.events {
            event.line().write(&mut lines);
        }
        output.write(&lines)?;
        progress.add(page.events.len() as u64, 0);
        pages.turn(page.place()?);
    }
    output.finish()
}

/// A page of the log or of a stream; further members do not matter here.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    events: Vec<StoredEvent<'a>>,
    /// Of the log a token; of a stream a version, or null at its end.
    #[serde(borrow)]
    next: &'a RawValue,
    /// Pages of the log have this.
    caught_up: Option<bool>,
}

#[derive(Deserialize)]
struct StoredEvent<'a> {
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
    #[serde(borrow)]
    id: Cow<'a, str>,
}

impl StoredEvent<'_> {
    fn line(&self) -> Line<'_> {
        Line {
            stream: Cow::Borrowed(&self.stream),
            kind: Cow::Borrowed(&self.kind),
            data: self.data,
            metadata: Some(self.metadata),
            id: Some(Cow::Borrowed(&self.id)),
        }
    }
}

impl Page<'_> {
    /// Where the next page begins; `None` where this was the last.
    fn place(&self) -> Result<Option<String>, Failure> {
        match self.caught_up {
            Some(true) => Ok(None),
            Some(false) => serde_json::from_str(self.next.get()).map(Some).map_err(|error| foreign(&error)),
            None => {
                let version: Option<u64> = serde_json::from_str(self.next.get()).map_err(|error| foreign(&error))?;
                Ok(version.map(|version| version.to_string()))
            }
        }
    }
}

/// The pages of an export, one after another.
struct Pages {
    client: Client,
    first: Url,
    /// The parameter that says where a page begins.
    place_name: &'static str,
    place: Place,
    /// Whether to ask for large pages: a service may be set to allow only smaller ones.
    large: bool,
}

enum Place {
    Beginning,
    At(String),
    End,
}

impl Pages {
    fn new(client: Client, settings: &Export) -> Result<Self, Failure> {
        let (first, place_name) = match (&settings.stream, &settings.category) {
            (Some(stream), _) => {
                let id = StreamId::parse(stream).ok_or_else(|| format!("{stream:?} is no stream id"))?;
                (client.address(&format!("/streams/{id}")), "from")
            }
            (None, Some(category)) => {
                let category = Category::parse(category).ok_or_else(|| format!("{category:?} is no category"))?;
                let mut first = client.address("/events");
                first.query_pairs_mut().append_pair("category", category.as_str());
                (first, "after")
            }
            (None, None) => (client.address("/events"), "after"),
        };
        Ok(Self { client, first, place_name, place: Place::Beginning, large: true })
    }

    /// The next page's body; `None` after the last.
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, Failure> {
        if matches!(self.place, Place::End) {
            return Ok(None);
        }
        let mut answer = self.ask().await?;
        if answer.status == StatusCode::BAD_REQUEST && self.large {
            self.large = false;
            answer = self.ask().await?;
        }
        match answer.status {
            StatusCode::OK => Ok(Some(answer.body)),
            _ => Err(format!("the service refused the export with {}", answer.problem()).into()),
        }
    }

    async fn ask(&self) -> Result<Answer, Failure> {
        let mut url = self.first.clone();
        if let Place::At(place) = &self.place {
            url.query_pairs_mut().append_pair(self.place_name, place);
        }
        if self.large {
            url.query_pairs_mut().append_pair("limit", PAGE_EVENTS);
        }
        self.client.send(Request::new(Method::GET, url)).await
    }

    fn turn(&mut self, place: Option<String>) {
        self.place = place.map_or(Place::End, Place::At);
    }
}
