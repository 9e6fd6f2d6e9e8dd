//! Consumer groups: their settings, and the leases that they give.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Event, Partition, Partitions, Position, StreamId, Version};

/// The name of a consumer group, or of a consumer: the grammar of stream ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct GroupName(String);

impl GroupName {
    /// The name, or `None` where `text` breaks the grammar.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        StreamId::parse(text).map(|id| Self(id.as_str().to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// In which order a group hands out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// As Redis' own groups: roughly that of the log, and whoever asks gets the next.
    #[default]
    None,
    /// An event is not handed out while an earlier one of its stream is leased or waits for a retry.
    Stream,
}

impl Ordering {
    /// As it stands in Redis and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Stream => "stream",
        }
    }
}

/// What becomes of an event whose deliveries are used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExhausted {
    /// It is parked; its stream goes on.
    #[default]
    Park,
    /// It is parked, and its stream stands until it is replayed or dropped. Only in ordered groups.
    ParkStream,
}

impl OnExhausted {
    /// As it stands in Redis and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Park => "park",
            Self::ParkStream => "park_stream",
        }
    }
}

/// Where a group begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With the first event.
    Beginning,
    /// With what is appended from now on.
    End,
    /// After these positions, one for each partition that the group reads; versions in a group of one stream.
    After(Vec<u64>),
    /// With the first event stored at or after this time, in ms since 1970.
    Time(u64),
}

/// The settings of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSettings {
    /// Only events of this stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamId>,
    /// Only events of streams in these categories; empty: all.
    pub categories: Vec<String>,
    /// Only events of these types; empty: all.
    pub types: Vec<String>,
    /// Where it begins.
    pub start: Start,
    /// In which order it hands out.
    pub ordering: Ordering,
    /// How long a lease lasts, in ms.
    pub lease_ms: u64,
    /// Deliveries before an event is parked.
    pub max_deliveries: u64,
    /// Waits before retries, in ms; the last one repeats.
    pub backoff_ms: Vec<u64>,
    /// Most events leased or waiting for a retry, in each partition.
    pub max_in_flight: u64,
    /// What then.
    pub on_exhausted: OnExhausted,
}

/// What a consumer holds: proof that an event was handed out to it, and not since to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseToken {
    /// Where the event is.
    pub partition: Partition,
    /// The group's generation: new at every creation and seek.
    pub generation: String,
    /// The event's place in the group's source.
    pub position: Position,
    /// `nonce:count:version:stream`, as it stands in Redis while the lease holds.
    pub text: String,
}

impl LeaseToken {
    /// Reads a token; `None` where it is not one of a store with that many partitions.
    #[must_use]
    pub fn parse(token: &str, partitions: Partitions) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let mut parts = text.splitn(4, '.');
        let partition = parts.next()?.parse::<u16>().ok()?;
        let (generation, position, text) = (parts.next()?, Position::parse(parts.next()?)?, parts.next()?);
        let hex = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut words = text.splitn(4, ':');
        let nonce = words.next()?;
        let numbers =
            words.next().and_then(Version::parse).is_some() && words.next().and_then(Version::parse).is_some();
        let good = hex(generation) && hex(nonce) && numbers && words.next().and_then(StreamId::parse).is_some();
        let partition = partitions.all().nth(partition.into())?;
        good.then(|| Self { partition, generation: generation.to_owned(), position, text: text.to_owned() })
    }

    /// A lease as a group gives it, with the delivery's count, and version and stream of its event; `None` where the text
    /// is none of a lease.
    #[must_use]
    pub fn new(
        partition: Partition,
        generation: &str,
        position: &str,
        text: String,
    ) -> Option<(Self, u64, Version, StreamId)> {
        let mut words = text.splitn(4, ':').skip(1);
        let (count, version) = (words.next()?.parse().ok()?, Version::parse(words.next()?)?);
        let stream = StreamId::parse(words.next()?)?;
        let (generation, position) = (generation.to_owned(), Position::parse(position)?);
        Some((Self { partition, generation, position, text }, count, version, stream))
    }

    /// The token: URL-safe characters only.
    #[must_use]
    pub fn token(&self) -> String {
        let Self { partition, generation, position, text } = self;
        URL_SAFE_NO_PAD.encode(format!("{}.{generation}.{position}.{text}", partition.get()))
    }

    /// How many times its event had been handed out with this lease; `None` where the text is none of a lease.
    #[must_use]
    pub fn delivery_count(&self) -> Option<u64> {
        self.text.split(':').nth(1)?.parse().ok()
    }

    /// The stream of its event.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        self.text.splitn(4, ':').nth(3).and_then(StreamId::parse)
    }
}

/// An event handed out to a consumer.
#[derive(Debug)]
pub struct Delivery {
    /// To be shown with ack, nack and extend.
    pub lease: LeaseToken,
    /// When it is handed out again unless settled or extended: ms since 1970, by Redis' clock.
    pub deadline_ms: u64,
    /// How many times it has been handed out, this one counted.
    pub delivery_count: u64,
    /// The event.
    pub event: Event,
}

/// What became of a lease in an ack, nack or extend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Done.
    Done,
    /// Its event was settled before.
    Already,
    /// It does not hold any more; why, in a word.
    Lost(String),
}
