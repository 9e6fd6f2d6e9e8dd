//! What the OpenAPI document says beyond the routes themselves.

mod responses;
mod schemas;

pub use responses::*;
pub use schemas::*;

use axum::http::Method;
use serde::Serialize;
use utoipa::{
    OpenApi, ToSchema,
    openapi::{
        OpenApi as Document, Ref, RefOr, Schema, Type,
        path::Operation,
        schema::SchemaType,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use super::{
    access,
    events::EventDocument,
    groups::settle::LostLease,
    problem::{FieldError, ProblemDocument},
};
use crate::store::Check;

/// The name of the one scheme of credentials.
const SCHEME: &str = "bearer";
const BEARER: &str = "An API key or a JWT (RFC 6750), where access control is on. It has verbs (`read`, `append`, \
                      `consume`, `manage`), each operation names the one that it needs, and patterns of the streams and \
                      groups that they hold for.";

/// Versions as entity tags, as `conditions.rs` reads them: weak ones and bare ones too.
const CONDITION: &str = r#"^(\*|((W/)?"(0|[1-9][0-9]{0,14})"|0|[1-9][0-9]{0,14})( *, *((W/)?"(0|[1-9][0-9]{0,14})"|0|[1-9][0-9]{0,14}))*)$"#;

/// All but the routes.
pub fn base() -> Document {
    let mut document = Base::openapi();
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(BEARER)).build();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(bearer));
    components.responses.extend(all().into_iter().map(|(name, response)| (name.to_owned(), response)));
    document
}

/// Mends what the macros cannot say: a header that is optional may be absent, but is not `null`. And says of every
/// operation what credentials it needs.
pub fn complete(document: &mut Document) {
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::HEAD, &mut item.head),
            (Method::POST, &mut item.post),
            (Method::PUT, &mut item.put),
            (Method::DELETE, &mut item.delete),
            (Method::PATCH, &mut item.patch),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            for parameter in operation.parameters.iter_mut().flatten() {
                let RefOr::T(parameter) = parameter else { continue };
                match &mut parameter.schema {
                    Some(RefOr::T(Schema::Object(schema))) => {
                        without_null(&mut schema.schema_type);
                        if matches!(parameter.name.as_str(), "If-Match" | "If-None-Match") {
                            schema.pattern.get_or_insert_with(|| CONDITION.to_owned());
                        }
                    }
                    Some(RefOr::T(Schema::OneOf(one_of))) => parameter.schema = one_of.items.pop(),
                    _ => {}
                }
            }
            secure(operation, &method, path);
        }
    }
}

/// Says what an operation needs. Without a rule for it the service does not start: nothing is served that nobody
/// thought of.
fn secure(operation: &mut Operation, method: &Method, path: &str) {
    if access::is_open(method, path) {
        operation.security = Some(Vec::new());
        return;
    }
    let need = access::need(method, path).unwrap_or_else(|| panic!("no rule says who may {method} {path}"));
    // Without any, where access is off; with one of the verbs, where it is on.
    let with = need.verbs.iter().map(|verb| SecurityRequirement::new(SCHEME, [verb.as_str()]));
    operation.security = Some([SecurityRequirement::default()].into_iter().chain(with).collect());
    for (status, name) in [("401", "Unauthorized"), ("403", "Forbidden"), ("429", "QuotaExceeded")] {
        operation.responses.responses.insert(status.to_owned(), Ref::from_response_name(name).into());
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
        description = "An event store over plain HTTP on ordinary Redis Streams.\n\nWhere the service is run without access control nobody is asked for credentials. Where it is on, everything but the probes and this documentation needs a bearer token.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "/", description = "This service")),
    tags(
        (name = "streams", description = "The events of one aggregate, by version"),
        (name = "log", description = "All events, in commit order"),
        (name = "groups", description = "Consumer groups: every event to one of many workers, at least once"),
        (name = "operations", description = "Probes for orchestrators and gateways"),
    ),
    components(schemas(super::DirectionName, ProblemDocument, FieldError, ConflictDocument, UnsettledDocument, DivergedDocument, LeaseLostDocument, LostLease, NotReadyDocument, QuotaDocument)),
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

/// An append that is not acknowledged; with `durability-unconfirmed` it says where the events are.
#[derive(Serialize, ToSchema)]
#[schema(as = UnsettledProblem)]
pub struct UnsettledDocument {
    #[serde(flatten)]
    problem: ProblemDocument,
    /// Whether the events are in the stream; absent where nobody knows.
    #[schema(required = false, example = true)]
    applied: bool,
    /// Version of the first event.
    #[schema(required = false, minimum = 1, example = 8)]
    first_version: i64,
    /// Version of the last event.
    #[schema(required = false, minimum = 1, example = 8)]
    version: i64,
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

/// More requests than a caller may make.
#[derive(Serialize, ToSchema)]
#[schema(as = QuotaProblem)]
pub struct QuotaDocument {
    #[serde(flatten)]
    problem: ProblemDocument,
    /// The limits that are used up, by name.
    #[serde(rename = "violated-policies")]
    #[schema(example = json!(["append"]))]
    violated_policies: Vec<String>,
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
