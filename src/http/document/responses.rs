//! The problems that operations answer with, described once for the OpenAPI document.

use utoipa::{
    ToResponse,
    openapi::{Content, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Type},
};

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

        /// All of them, by name.
        pub fn all() -> Vec<(&'static str, RefOr<Response>)> {
            vec![$(<$name as ToResponse<'static>>::response()),*]
        }
    };
}

problems! {
    BadRequest "Problem" "Malformed: `invalid-json`, `invalid-stream-id`, `invalid-group-name`, `invalid-lease`, `invalid-path`, `invalid-parameter`, `invalid-precondition`, `invalid-request`; for appends also `durability-unsupported`";
    Unauthorized "Problem" "`unauthorized`; where the service has access control: `WWW-Authenticate` says why (RFC 6750)";
    Forbidden "Problem" "`forbidden`: the credentials do not allow this; `WWW-Authenticate` names the verb that is needed";
    NotFound "Problem" "`stream-not-found`, `event-not-found`";
    GroupNotFound "Problem" "`group-not-found`";
    GroupExists "Problem" "`group-exists`, `history-diverged`";
    LeaseLost "LeaseLostProblem" "`lease-lost`: none of the leases holds; nothing was done";
    BadGroup "Problem" "`invalid-group`";
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
    QuotaExceeded "QuotaProblem" "`quota-exceeded`, where the service has limits of rates: nothing was done; `Retry-After` says when to try again";
    Unavailable "Problem" "`storage-unavailable`, `storage-busy`, `overloaded`, for appends also `durability-unavailable`: nothing was written; `Retry-After` says when to try again";
    NotReady "NotReadyProblem" "`not-ready`; `checks` says why";
    Unsettled "UnsettledProblem" "`outcome-unknown`, `durability-unconfirmed`: repeat the request with the same ids or key";
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
    if schema == "UnsettledProblem" {
        response = response.header("ETag", header("With `durability-unconfirmed`: version of the last event, quoted"));
    }
    if description.contains("another version") {
        response = response.header("ETag", header("The stream's version, quoted"));
    }
    if description.contains("Accept-Post") {
        response = response.header("Accept-Post", header("The media types that are read"));
        response = response
            .header("Accept-Encoding", header("The codings that are read, where `Content-Encoding` is at fault"));
    }
    if description.contains("WWW-Authenticate") {
        response = response.header("WWW-Authenticate", header("The scheme Bearer, and what is wrong"));
    }
    if schema == "QuotaProblem" {
        response = response
            .header("RateLimit-Policy", header("The limit, as in `\"append\";q=1000;w=1`: requests in so many seconds"))
            .header("RateLimit", header("What is left of it, as in `\"append\";r=0;t=1`, and for how many seconds"));
    }
    if description.contains("Retry-After") || schema == "NotReadyProblem" {
        response = response.header("Retry-After", header("Seconds to wait"));
    }
    response.build()
}
