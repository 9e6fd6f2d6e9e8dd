//! A client of feeds, as a browser's `EventSource` reads them.

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::Value;

use crate::app::TestApp;

/// How long a feed may say nothing at all: heartbeats come more often.
const PATIENCE: Duration = Duration::from_secs(20);

/// A feed of server-sent events.
pub struct Feed {
    response: Response,
    text: Vec<u8>,
    /// The id of the last block that had one.
    pub last_id: String,
}

/// What stands between two empty lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub id: Option<String>,
    pub event: Option<String>,
    pub data: Option<String>,
    pub comments: usize,
}

impl Block {
    fn parse(text: &str) -> Self {
        let mut block = Self::default();
        for line in text.split('\n') {
            let (field, value) = line.split_once(": ").or_else(|| line.split_once(':')).unwrap_or((line, ""));
            match field {
                "id" => block.id = Some(value.to_owned()),
                "event" => block.event = Some(value.to_owned()),
                "data" => {
                    assert_eq!(block.data, None, "one line of data: {text:?}");
                    block.data = Some(value.to_owned());
                }
                "" => block.comments += 1,
                "retry" => assert_eq!(value, "2000"),
                other => panic!("field {other:?} in {text:?}"),
            }
        }
        block
    }

    /// The event, where it is one.
    pub fn message(&self) -> Option<Value> {
        let data = self.data.as_ref().filter(|_| self.event.is_none())?;
        assert!(self.id.is_some(), "an event has an id: {self:?}");
        Some(serde_json::from_str(data).unwrap())
    }

    pub fn is_caught_up(&self) -> bool {
        self.event.as_deref() == Some("caught-up")
    }
}

impl Feed {
    /// Opens one; `last` is the id that a client which comes back sends.
    pub async fn open(app: &TestApp, path: &str, last: Option<&str>) -> Self {
        Self::open_at(&app.client, &format!("{}{path}", app.url), last).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, at an instance that may not be there.
    pub async fn open_at(client: &Client, url: &str, last: Option<&str>) -> Result<Self, String> {
        let request = client.get(url).header("accept", "text/event-stream");
        let request = last.into_iter().fold(request, |request, id| request.header("last-event-id", id));
        let response = request.send().await.map_err(|error| error.to_string())?;
        if response.status() != 200 {
            return Err(format!("{} {}", response.status(), response.text().await.unwrap_or_default()));
        }
        let header = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), "text/event-stream");
        assert_eq!(header("cache-control"), "no-cache, no-transform");
        // nginx keeps this for itself.
        let by_nginx = response.headers().get("server").is_some_and(|server| server.as_bytes().starts_with(b"nginx"));
        assert!(by_nginx || header("x-accel-buffering") == "no");
        assert!(response.headers().get("content-encoding").is_none());
        Ok(Self { response, text: Vec::new(), last_id: last.unwrap_or_default().to_owned() })
    }

    /// The next block; `None` at the end, `Err` where the feed broke off.
    pub async fn try_block(&mut self) -> Result<Option<Block>, String> {
        loop {
            if let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
                let rest = self.text.split_off(end + 2);
                let block = Block::parse(std::str::from_utf8(&self.text[..end]).unwrap());
                self.text = rest;
                if let Some(id) = &block.id {
                    self.last_id.clone_from(id);
                }
                return Ok(Some(block));
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await;
            match chunk.expect("a feed does not fall silent").map_err(|error| error.to_string())? {
                Some(bytes) => self.text.extend_from_slice(&bytes),
                None => {
                    assert!(self.text.is_empty(), "a feed ends with a whole block");
                    return Ok(None);
                }
            }
        }
    }

    pub async fn block(&mut self) -> Option<Block> {
        self.try_block().await.unwrap()
    }

    /// The next event.
    pub async fn event(&mut self) -> Value {
        loop {
            let block = self.block().await.expect("the feed goes on");
            if let Some(event) = block.message() {
                return event;
            }
        }
    }

    /// The next so many events.
    pub async fn events(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// All events up to where there are no more.
    pub async fn until_caught_up(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let block = self.block().await.expect("the feed goes on");
            if block.is_caught_up() {
                return events;
            }
            events.extend(block.message());
        }
    }
}

/// `stream@version` of an event.
pub fn name(event: &Value) -> String {
    format!("{}@{}", event["stream"].as_str().unwrap(), event["version"])
}
