//! Events as they stand in answers.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::model::Event;

/// Of what changes: a cache asks again each time.
pub const NO_CACHE: [(HeaderName, HeaderValue); 1] =
    [(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"))];

/// A stored event. Never changes.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventDocument {
    /// The stream that it belongs to.
    #[schema(example = "order-12345")]
    stream: String,
    /// Its number in the stream, from 1, without gaps.
    #[schema(minimum = 1, example = 1)]
    version: i64,
    /// Its number in the log of the stream's partition, from 1, without gaps.
    #[schema(minimum = 1, example = 73)]
    position: i64,
    /// Unique in the stream.
    #[schema(example = "01890a5d-ac96-774b-bcce-b302099a8057")]
    id: String,
    /// What happened.
    #[schema(rename = "type", example = "order-placed")]
    r#type: String,
    /// When it was stored, by Redis' clock: RFC 3339 in UTC with milliseconds.
    #[schema(format = DateTime, example = "2026-11-23T12:00:00.000Z")]
    time: String,
    /// As it was sent, byte for byte.
    #[schema(value_type = Value, example = json!({"total": 42}))]
    data: (),
    /// As it was sent, byte for byte.
    #[schema(value_type = super::document::Metadata)]
    metadata: (),
}

/// Writes events as a JSON array.
pub fn write_events<'a>(out: &mut Vec<u8>, events: impl IntoIterator<Item = &'a Event>) {
    out.push(b'[');
    for (index, event) in events.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        event.write_json(out);
    }
    out.push(b']');
}

/// A body that is JSON already.
pub fn json_response(body: Vec<u8>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], Body::from(body)).into_response()
}
