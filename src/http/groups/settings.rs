//! The settings of a consumer group in JSON, and their rules.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::http::problem::{Code, Problem};
use crate::model::{
    Category, Cursor, Fingerprint, GroupSettings, OnExhausted, Ordering, Partitions, Position, Start, StreamId, Whole,
    check_type, parse_rfc3339, present, rfc3339,
};

/// How a body looks.
pub const FORM: &str = r#"{"stream"?|"categories"?,"types"?,"start"?,"ordering"?,"lease_ms"?,"max_deliveries"?,"backoff_ms"?,"max_in_flight"?,"on_exhausted"?}"#;

/// A lease: from a second to 12 hours.
pub const LEASE_MS: RangeInclusive<u64> = 1_000..=12 * 3_600_000;
/// A wait before a retry: up to 7 days.
pub const DELAY_MS: RangeInclusive<u64> = 0..=7 * 24 * 3_600_000;
const MAX_DELIVERIES: RangeInclusive<u64> = 1..=1_000_000;
const MAX_IN_FLIGHT: RangeInclusive<u64> = 1..=10_000;
/// Most entries of a list.
const LIST_MAX: usize = 100;

/// The settings of a consumer group. What is absent has its default.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = GroupSettings)]
pub struct SettingsDocument {
    /// Only events of this stream. Goes without `categories`. Fixed.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 200, pattern = "^[A-Za-z0-9._~:@+-]+$")]
    stream: Option<String>,
    /// Only events of streams in these categories; empty: all. Fixed.
    #[serde(default)]
    #[schema(value_type = Vec<crate::http::document::Category>, required = false, max_items = 100, example = json!(["order"]))]
    categories: Vec<String>,
    /// Only events of these types; empty: all. Fixed.
    #[serde(default)]
    #[schema(value_type = Vec<crate::http::document::EventType>, required = false, max_items = 100)]
    types: Vec<String>,
    /// Where the group begins: `"beginning"` (default), `"end"`, after a position (of the log, where the store has one
    /// partition; of the stream, where the group has one), after a cursor, or at a time (RFC 3339). Fixed; seek moves a
    /// group.
    #[serde(default = "beginning")]
    #[schema(value_type = crate::http::document::Start, required = false)]
    start: Value,
    /// In which order the group hands out (default `none`). Fixed.
    #[serde(default)]
    #[schema(required = false)]
    ordering: Ordering,
    /// How long a lease lasts, in ms (default 30,000).
    #[serde(default = "thirty_seconds")]
    #[schema(value_type = i64, required = false, minimum = 1000, maximum = 43_200_000)]
    lease_ms: Whole,
    /// Deliveries before an event is parked (default 10).
    #[serde(default = "ten")]
    #[schema(value_type = i64, required = false, minimum = 1, maximum = 1_000_000)]
    max_deliveries: Whole,
    /// Waits before retries, in ms: after the first delivery, the second and so on; the last one repeats. Empty: none.
    #[serde(default)]
    #[schema(value_type = Vec<crate::http::document::Delay>, required = false, max_items = 100, example = json!([1000, 10_000, 60_000]))]
    backoff_ms: Vec<Whole>,
    /// Most events that are leased or wait for a retry, in each partition (default 10,000).
    #[serde(default = "ten_thousand")]
    #[schema(value_type = i64, required = false, minimum = 1, maximum = 10_000)]
    max_in_flight: Whole,
    /// What becomes of an event whose deliveries are used up (default `park`).
    #[serde(default)]
    #[schema(required = false)]
    on_exhausted: OnExhausted,
}

fn beginning() -> Value {
    Value::from("beginning")
}

fn thirty_seconds() -> Whole {
    Whole(30_000)
}

fn ten() -> Whole {
    Whole(10)
}

fn ten_thousand() -> Whole {
    Whole(10_000)
}

impl SettingsDocument {
    /// Checks the settings. The cursor comes too, where the group begins at one.
    ///
    /// # Errors
    /// `invalid-group`
    pub fn checked(self, partitions: Partitions) -> Result<(GroupSettings, Option<Cursor>), Problem> {
        let stream = self.stream.as_deref().map(|id| StreamId::parse(id).ok_or("is no stream id"));
        let stream = stream.transpose().map_err(|why| refuse("stream", why))?;
        self.check_lists(stream.is_some())?;
        for (member, number, range) in [
            ("lease_ms", self.lease_ms, LEASE_MS),
            ("max_deliveries", self.max_deliveries, MAX_DELIVERIES),
            ("max_in_flight", self.max_in_flight, MAX_IN_FLIGHT),
        ] {
            check_range(number.0, &range).map_err(|why| refuse(member, &why))?;
        }
        if self.on_exhausted == OnExhausted::ParkStream && self.ordering == Ordering::None {
            return Err(refuse("on_exhausted", "park_stream goes with \"ordering\":\"stream\" only"));
        }
        let (start, cursor) =
            parse_start(&self.start, stream.is_some(), partitions).map_err(|why| refuse("start", why))?;
        let Self { categories, types, ordering, lease_ms, max_deliveries, backoff_ms, max_in_flight, .. } = self;
        let (categories, types) = (sorted(categories), sorted(types));
        let on_exhausted = self.on_exhausted;
        let settings = GroupSettings {
            stream,
            categories,
            types,
            start,
            ordering,
            lease_ms: lease_ms.0,
            max_deliveries: max_deliveries.0,
            backoff_ms: backoff_ms.into_iter().map(|delay| delay.0).collect(),
            max_in_flight: max_in_flight.0,
            on_exhausted,
        };
        Ok((settings, cursor))
    }

    fn check_lists(&self, one_stream: bool) -> Result<(), Problem> {
        let Self { categories, types, backoff_ms, .. } = self;
        if one_stream && !categories.is_empty() {
            return Err(refuse("categories", "goes without stream"));
        }
        let lengths = [("categories", categories.len()), ("types", types.len()), ("backoff_ms", backoff_ms.len())];
        if let Some((member, _)) = lengths.into_iter().find(|(_, length)| *length > LIST_MAX) {
            return Err(refuse(member, &format!("has at most {LIST_MAX} entries")));
        }
        if let Some(at) = categories.iter().position(|category| Category::parse(category).is_none()) {
            return Err(refuse(&format!("categories/{at}"), "is not what a stream id has before its first -"));
        }
        for (at, kind) in types.iter().enumerate() {
            check_type(kind, 1_024).map_err(|why| refuse(&format!("types/{at}"), &why))?;
        }
        for (at, delay) in backoff_ms.iter().enumerate() {
            check_range(delay.0, &DELAY_MS).map_err(|why| refuse(&format!("backoff_ms/{at}"), &why))?;
        }
        Ok(())
    }

    /// As they stand in the store.
    #[must_use]
    pub fn of(settings: &GroupSettings, partitions: Partitions) -> Self {
        Self {
            stream: settings.stream.as_ref().map(ToString::to_string),
            categories: settings.categories.clone(),
            types: settings.types.clone(),
            start: written_start(&settings.start, partitions),
            ordering: settings.ordering,
            lease_ms: Whole(settings.lease_ms),
            max_deliveries: Whole(settings.max_deliveries),
            backoff_ms: settings.backoff_ms.iter().copied().map(Whole).collect(),
            max_in_flight: Whole(settings.max_in_flight),
            on_exhausted: settings.on_exhausted,
        }
    }
}

/// The order of a list says nothing: the same in another order is no other source.
fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list.dedup();
    list
}

/// That a number is in its range; what is wrong, otherwise.
///
/// # Errors
/// In words for the client.
pub fn check_range(number: u64, range: &RangeInclusive<u64>) -> Result<(), String> {
    let (first, last) = (range.start(), range.end());
    if range.contains(&number) { Ok(()) } else { Err(format!("is a whole number from {first} to {last}")) }
}

/// That a member of a body about groups cannot be used.
pub fn refuse(member: &str, why: &str) -> Problem {
    Problem::new(Code::InvalidGroup, format!("{member}: {why}.")).at(format!("#/{member}"), why)
}

/// Reads where a group is to begin, and the cursor if it is one.
///
/// # Errors
/// What is wrong, in words for the client.
pub fn parse_start(
    value: &Value,
    one_stream: bool,
    partitions: Partitions,
) -> Result<(Start, Option<Cursor>), &'static str> {
    const WHAT: &str = "is \"beginning\", \"end\", a position, a cursor, or a time as in RFC 3339";
    let text = match value {
        Value::Number(number) => {
            let position = Whole::of(number).and_then(|number| Position::new(number.0)).ok_or(WHAT)?;
            if partitions.count() > 1 && !one_stream {
                return Err("a position names no place in a store of several partitions: send a cursor");
            }
            return Ok((Start::After(vec![position.get()]), None));
        }
        Value::String(text) => text,
        _ => return Err(WHAT),
    };
    match text.as_str() {
        "beginning" => return Ok((Start::Beginning, None)),
        "end" => return Ok((Start::End, None)),
        _ => {}
    }
    if let Some(time) = parse_rfc3339(text) {
        return Ok((Start::Time(time), None));
    }
    let cursor = Cursor::parse(text, partitions).ok_or(WHAT)?;
    if one_stream {
        return Err("a cursor names no place in one stream: send a version");
    }
    let places = cursor.places.iter().map(|place| place.map_or(0, |(position, _)| position.get())).collect();
    Ok((Start::After(places), Some(cursor)))
}

/// As `parse_start` reads it.
fn written_start(start: &Start, partitions: Partitions) -> Value {
    match start {
        Start::Beginning => beginning(),
        Start::End => Value::from("end"),
        Start::Time(time) => Value::from(rfc3339(*time)),
        Start::After(places) if places.len() == 1 => Value::from(places[0]),
        Start::After(places) => {
            let place = |position: &u64| Position::new(*position).filter(|position| *position > Position::ZERO);
            let places = places.iter().map(|position| Some((place(position)?, Fingerprint::REMOVED))).collect();
            let cursor = Cursor { places, ..Cursor::beginning(partitions) };
            Value::from(cursor.token())
        }
    }
}
