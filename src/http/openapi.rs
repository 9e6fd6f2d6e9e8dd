//! What the OpenAPI document says beyond the routes themselves.

use serde::Serialize;
use utoipa::{
    OpenApi, ToResponse, ToSchema,
    openapi::{
        Content, HeaderBuilder, ObjectBuilder, OpenApi as Document, Ref, RefOr, Response, ResponseBuilder, Schema,
        Type, schema::SchemaType,
    },
};

use super::{
    admin::Check,
    problem::{FieldError, ProblemDocument},
    routes,
    streams::EventDocument,
};

/// The document, as it stands in `openapi.yaml` and at `/openapi.json`.
#[must_use]
pub fn document() -> Document {
    routes().into_openapi()
}

/// All but the routes.
pub fn base() -> Document {
    // Nobody is asked for credentials: said by an empty list, for without one a reader cannot know.
    let mut document = Base::openapi();
    document.security = Some(Vec::new());
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

macro_rules! problems {
    ($($name:ident $schema:literal $description:literal;)*) => {
        $(
            /// A reusable response.
            pub struct $name;

            impl<'r> ToResponse<'r> for $name {
                fn response() -> (&'r str, RefOr<Response>) {
                    (stringify!($name), problem($schema, $description).into())
                }
            }
        )*

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
                (name = "operations", description = "Probes for orchestrators and gateways"),
            ),
            components(
                schemas(ProblemDocument, FieldError, ConflictDocument, DivergedDocument, NotReadyDocument),
                responses($($name),*),
            ),
        )]
        struct Base;
    };
}

problems! {
    BadRequest "Problem" "Malformed: `invalid-json`, `invalid-stream-id`, `invalid-path`, `invalid-parameter`, `invalid-precondition`, `invalid-request`";
    NotFound "Problem" "`stream-not-found`, `event-not-found`";
    NotAcceptable "Problem" "`not-acceptable`";
    RequestTimeout "Problem" "`request-timeout`";
    Conflict "ConflictProblem" "`version-conflict`, `duplicate-event-id`: nothing was written";
    Diverged "DivergedProblem" "`history-diverged`: the cursor is from another history of the store";
    Gone "Problem" "`stream-deleted`";
    PreconditionFailed "Problem" "`precondition-failed`: the stream is at another version";
    TooLarge "Problem" "`payload-too-large`";
    UnsupportedMediaType "Problem" "`unsupported-media-type`; `Accept-Post` lists what is read";
    Unprocessable "Problem" "`invalid-event`, `too-deep`, `event-id-reused`, `idempotency-key-reused`";
    PreconditionRequired "Problem" "`precondition-required`";
    Unavailable "Problem" "`storage-unavailable`, `storage-busy`, `overloaded`: nothing was written; `Retry-After` says when to try again";
    NotReady "NotReadyProblem" "`not-ready`; `checks` says why";
    OutcomeUnknown "Problem" "`outcome-unknown`: repeat the request with the same ids or key";
    StorageFull "Problem" "`storage-full`: nothing was written, reads go on";
}

fn problem(schema: &str, description: &str) -> Response {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let header = |description: &str| HeaderBuilder::new().schema(Some(text())).description(Some(description)).build();
    let mut response = ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", Content::new(Some(Ref::from_schema_name(schema))))
        .header("X-Request-Id", header("Id of this request"));
    if schema == "ConflictProblem" {
        response = response.header("ETag", header("With `version-conflict`: the stream's version, quoted"));
    }
    if description.contains("another version") {
        response = response.header("ETag", header("The stream's version, quoted"));
    }
    if description.contains("Accept-Post") {
        response = response.header("Accept-Post", header("The media types that are read"));
        response = response
            .header("Accept-Encoding", header("The codings that are read, where `Content-Encoding` is at fault"));
    }
    if description.contains("Retry-After") || schema == "NotReadyProblem" {
        response = response.header("Retry-After", header("Seconds to wait"));
    }
    response.build()
}

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

/// Why the service is not ready.
#[derive(Serialize, ToSchema)]
#[schema(as = NotReadyProblem)]
pub struct NotReadyDocument {
    #[serde(flatten)]
    problem: ProblemDocument,
    /// Each check by its name.
    checks: Vec<Check>,
}
