//! What the OpenAPI document says beyond the routes themselves.

use serde::Serialize;
use utoipa::{
    OpenApi, ToSchema,
    openapi::{OpenApi as Document, RefOr, Schema, Type, schema::SchemaType},
};

use super::{
    events::EventDocument,
    problem::{FieldError, ProblemDocument},
    responses,
    settle::LostLease,
};
use crate::store::Check;

/// All but the routes.
pub fn base() -> Document {
    // Nobody is asked for credentials: said by an empty list, for without one a reader cannot know.
    let mut document = Base::openapi();
    document.security = Some(Vec::new());
    let components = document.components.get_or_insert_default();
    components.responses.extend(responses::all().into_iter().map(|(name, response)| (name.to_owned(), response)));
    document
}

/// Mends what the macros cannot say: a header that is optional may be absent, but is not `null`.
pub fn complete(document: &mut Document) {
    for item in document.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.head, &mut item.post, &mut item.put, &mut item.delete, &mut item.patch];
        let operations = operations.into_iter().flatten();
        for parameter in operations.flat_map(|operation| operation.parameters.iter_mut().flatten()) {
            let RefOr::T(parameter) = parameter else { continue };
            if let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema {
                without_null(&mut schema.schema_type);
            }
        }
    }
}

fn without_null(kind: &mut SchemaType) {
    if let SchemaType::Array(types) = kind {
        types.retain(|one| *one != Type::Null);
        if let [only] = types.as_slice() {
            *kind = SchemaType::Type(only.clone());
        }
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Streamkeep",
        description = "An event store over plain HTTP on ordinary Redis Streams.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "/", description = "This service")),
    tags(
        (name = "streams", description = "The events of one aggregate, by version"),
        (name = "log", description = "All events, in commit order"),
        (name = "groups", description = "Consumer groups: every event to one of many workers, at least once"),
        (name = "operations", description = "Probes for orchestrators and gateways"),
    ),
    components(schemas(ProblemDocument, FieldError, ConflictDocument, DivergedDocument, LeaseLostDocument, LostLease, NotReadyDocument)),
)]
struct Base;

/// A conflict; with `version-conflict` it says what the caller needs to decide again.
#[derive(Serialize, ToSchema)]
#[schema(as = ConflictProblem)]
pub struct ConflictDocument {
    #[serde(flatten)]
    problem: ProblemDocument,
    /// The stream's id.
    #[schema(required = false, example = "order-12345")]
    stream: String,
    /// The versions that would have done; null where the condition named none.
    #[schema(required = false, nullable = true)]
    expected_version: Vec<i64>,
    /// The stream's version.
    #[schema(required = false, minimum = 0, example = 8)]
    current_version: i64,
    /// With `?include=events`: the events after the expected version, 100 at most.
    #[schema(required = false)]
    events: Vec<EventDocument>,
}

/// A cursor that does not fit.
#[derive(Serialize, ToSchema)]
#[schema(as = DivergedProblem)]
pub struct DivergedDocument {
    #[serde(flatten)]
    problem: ProblemDocument,
    /// The newest position of the partition whose history differs.
    #[schema(minimum = 0, example = 73)]
    head: i64,
}

/// Leases that do not hold.
#[derive(Serialize, ToSchema)]
#[schema(as = LeaseLostProblem)]
pub struct LeaseLostDocument {
    #[serde(flatten)]
    problem: ProblemDocument,
    /// Each with the reason.
    lost: Vec<LostLease>,
}

/// Why the service is not ready.
#[derive(Serialize, ToSchema)]
#[schema(as = NotReadyProblem)]
pub struct NotReadyDocument {
    #[serde(flatten)]
    problem: ProblemDocument,
    /// Each check by its name.
    checks: Vec<Check>,
}
