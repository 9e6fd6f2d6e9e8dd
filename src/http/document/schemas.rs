//! Schemas of the OpenAPI document that our own types do not show. Each has a name, for generated clients to use it.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type,
        schema::{AdditionalProperties, OneOfBuilder},
    },
};

use crate::model::Durability;

/// What a client keeps beside the data of an event.
pub enum Metadata {}

impl ToSchema for Metadata {}
impl PartialSchema for Metadata {
    fn schema() -> RefOr<Schema> {
        let object = ObjectBuilder::new().schema_type(Type::Object).description(Some("A JSON object of any members."));
        object.additional_properties(Some(AdditionalProperties::FreeForm(true))).into()
    }
}

/// Where a consumer group begins, or goes to.
pub enum Start {}

impl ToSchema for Start {}
impl PartialSchema for Start {
    fn schema() -> RefOr<Schema> {
        let text = "`beginning`, `end`, a cursor, or a time (RFC 3339)";
        let text = ObjectBuilder::new().schema_type(Type::String).description(Some(text)).min_length(Some(1));
        let number = ObjectBuilder::new().schema_type(Type::Integer).description(Some("Behind this position"));
        let number = number
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(0))
            .maximum(Some(9_007_199_254_740_991_i64));
        OneOfBuilder::new().item(text).item(number).description(Some("A place in a log, or in one stream.")).into()
    }
}

/// What a stream id has before its first `-`.
pub enum Category {}

impl ToSchema for Category {}
impl PartialSchema for Category {
    fn schema() -> RefOr<Schema> {
        let description = "What a stream id has before its first `-`.";
        text(description, 200, r"^[A-Za-z0-9._~:@+]+$", "order")
    }
}

/// What happened.
pub enum EventType {}

impl ToSchema for EventType {}
impl PartialSchema for EventType {
    fn schema() -> RefOr<Schema> {
        text("What happened.", 256, r"^[^\x00-\x1f\x7f-\x9f]+$", "order-placed")
    }
}

/// A lease, as it came with a delivery.
pub enum Lease {}

impl ToSchema for Lease {}
impl PartialSchema for Lease {
    fn schema() -> RefOr<Schema> {
        let example = "MC5hMWIyYzNkNGU1ZjYwNzE4LjczLmI3YzhkOWUwZjFhMjM0NTY6MToxOm9yZGVyLTEyMzQ1";
        text("Opaque: an event in the hands of a consumer.", 400, "^[A-Za-z0-9_-]+$", example)
    }
}

/// What events survive.
pub enum DurabilityLevel {}

impl ToSchema for DurabilityLevel {}
impl PartialSchema for DurabilityLevel {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).description(Some("What events survive."));
        text.enum_values(Some(Durability::ALL.map(Durability::as_str))).examples(["fsync"]).into()
    }
}

/// How long to wait before a retry, in ms.
pub enum Delay {}

impl ToSchema for Delay {}
impl PartialSchema for Delay {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new().schema_type(Type::Integer).description(Some("A wait before a retry, in ms."));
        let number = number.format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)));
        number.minimum(Some(0)).maximum(Some(604_800_000)).into()
    }
}

fn text(description: &str, longest: usize, pattern: &str, example: &str) -> RefOr<Schema> {
    let text = ObjectBuilder::new().schema_type(Type::String).description(Some(description));
    let text = text.min_length(Some(1)).max_length(Some(longest)).pattern(Some(pattern));
    text.examples([example]).into()
}
