//! Histories: what clients asked and were told, and what is stored at the end.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Client, Response};
use serde_json::Value;

/// What an append demanded of its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Any,
    NoStream,
    Exists,
    OneOf(Vec<u64>),
}

impl Condition {
    /// Whether it holds at this version.
    pub fn holds(&self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::NoStream => version == 0,
            Self::Exists => version > 0,
            Self::OneOf(versions) => versions.contains(&version),
        }
    }

    /// Whether it could hold at or after this version.
    pub fn may_hold_from(&self, version: u64) -> bool {
        match self {
            Self::Any | Self::Exists => true,
            Self::NoStream => version == 0,
            Self::OneOf(versions) => versions.iter().any(|expected| *expected >= version),
        }
    }
}

/// What makes a repeated call harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    None,
    Ids(Vec<String>),
    Key(String),
}

/// An append that a process wants done. Its calls are all the same request.
#[derive(Debug)]
pub struct Operation {
    pub number: usize,
    pub stream: String,
    pub condition: Condition,
    pub identity: Identity,
    /// Of each event: type, data and metadata as sent, each on a line. Unique in the whole history.
    pub events: Vec<String>,
}

/// What a 2xx answer said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub first_version: u64,
    pub version: u64,
    pub position: u64,
    pub duplicate: bool,
    pub etag: String,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok(Told),
    /// Told that nothing was written; a conflict names the stream's version.
    Refused {
        status: u16,
        code: String,
        current: Option<u64>,
    },
    /// Cut, or told that nobody knows.
    Unknown,
}

/// One request of an operation. Times are in microseconds since the history began.
#[derive(Debug)]
pub struct Call {
    pub operation: Arc<Operation>,
    pub called: u64,
    pub returned: u64,
    pub outcome: Outcome,
}

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub stream: String,
    pub version: u64,
    pub position: u64,
    pub id: String,
    /// As in [`Operation::events`].
    pub content: String,
}

/// A pointer of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    pub position: u64,
    pub stream: String,
    pub version: u64,
}

/// Streams and logs as they are at the end: of each partition, as Redis has them.
#[derive(Debug, Default)]
pub struct Partition {
    pub streams: BTreeMap<String, Vec<Stored>>,
    pub log: Vec<Pointer>,
}

/// The end of a history: what Redis has, and what the service shows of it.
#[derive(Debug, Default)]
pub struct End {
    pub partitions: Vec<Partition>,
    pub shown_streams: BTreeMap<String, Vec<Stored>>,
    pub shown_log: Vec<Stored>,
}

impl Operation {
    /// Whether it may be called again.
    pub fn is_repeatable(&self) -> bool {
        self.identity != Identity::None
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        match &self.condition {
            Condition::Any => {}
            Condition::NoStream => headers.push(("if-none-match", "*".to_owned())),
            Condition::Exists => headers.push(("if-match", "*".to_owned())),
            Condition::OneOf(versions) => {
                let tags: Vec<String> = versions.iter().map(|version| format!("\"{version}\"")).collect();
                headers.push(("if-match", tags.join(", ")));
            }
        }
        if let Identity::Key(key) = &self.identity {
            headers.push(("idempotency-key", format!("\"{key}\"")));
        }
        headers
    }

    fn body(&self) -> String {
        let mut body = r#"{"events":["#.to_owned();
        for (index, event) in self.events.iter().enumerate() {
            let [kind, data, metadata] = event.split('\n').collect::<Vec<_>>()[..] else { panic!("three lines") };
            let comma = if index == 0 { "" } else { "," };
            write!(body, r#"{comma}{{"type":"{kind}","data":{data},"metadata":{metadata}"#).unwrap();
            if let Identity::Ids(ids) = &self.identity {
                write!(body, r#","id":"{}""#, ids[index]).unwrap();
            }
            body.push('}');
        }
        body + "]}"
    }
}

/// Sends appends and notes what becomes of them.
pub struct Recorder {
    began: Instant,
    client: Client,
    calls: Mutex<Vec<Call>>,
    /// The newest version of each stream that an answer named.
    versions: Mutex<HashMap<String, u64>>,
    acked: AtomicUsize,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            client: Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap(),
            calls: Mutex::default(),
            versions: Mutex::default(),
            acked: AtomicUsize::new(0),
        })
    }

    /// How many calls were acknowledged.
    pub fn acked(&self) -> usize {
        self.acked.load(Ordering::Relaxed)
    }

    /// A version that the stream had.
    pub fn version(&self, stream: &str) -> u64 {
        self.versions.lock().unwrap().get(stream).copied().unwrap_or(0)
    }

    /// All calls so far.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Calls an instance once; with `cut` the connection is closed after this time.
    pub async fn call(&self, url: &str, operation: &Arc<Operation>, cut: Option<Duration>) -> Outcome {
        let url = format!("{url}/streams/{}/events", operation.stream);
        let mut request = self.client.post(url).body(operation.body());
        for (name, value) in operation.headers() {
            request = request.header(name, value);
        }
        let called = self.now();
        let answered = async { outcome(request.send().await?).await };
        let outcome = match cut {
            // Dropping a request under way closes its connection.
            Some(cut) => tokio::time::timeout(cut, answered).await.unwrap_or(Ok(Outcome::Unknown)),
            None => answered.await,
        };
        let outcome = outcome.unwrap_or(Outcome::Unknown);
        let returned = self.now();
        let newest = match &outcome {
            Outcome::Ok(told) => Some(told.version),
            Outcome::Refused { current, .. } => *current,
            Outcome::Unknown => None,
        };
        if let Some(newest) = newest {
            let mut versions = self.versions.lock().unwrap();
            let known = versions.entry(operation.stream.clone()).or_default();
            *known = newest.max(*known);
        }
        if matches!(outcome, Outcome::Ok(_)) {
            self.acked.fetch_add(1, Ordering::Relaxed);
        }
        let call = Call { operation: Arc::clone(operation), called, returned, outcome: outcome.clone() };
        self.calls.lock().unwrap().push(call);
        outcome
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap()
    }
}

async fn outcome(response: Response) -> reqwest::Result<Outcome> {
    let status = response.status().as_u16();
    let etag = response.headers().get("etag").map_or("", |tag| tag.to_str().unwrap()).to_owned();
    let answer: Value = response.json().await?;
    let number = |name: &str| answer[name].as_u64();
    Ok(match status {
        200 | 201 => {
            let duplicate = answer["duplicate"].as_bool().unwrap();
            assert_eq!(duplicate, status == 200, "{answer}");
            let [first_version, version, position] =
                ["first_version", "version", "position"].map(|name| number(name).unwrap());
            Outcome::Ok(Told { first_version, version, position, duplicate, etag })
        }
        400..=499 | 503 | 507 => {
            let code = answer["code"].as_str().unwrap().to_owned();
            Outcome::Refused { status, code, current: number("current_version") }
        }
        504 => Outcome::Unknown,
        _ => panic!("{status} {answer}"),
    })
}
