//! The only code that speaks HTTP. A file a resource; this one joins their routers and lays the layers around them.

mod admin;
mod append;
mod extract;
mod log;
mod openapi;
mod problem;
mod request;
mod server;
mod streams;

use std::{any::Any, convert::Infallible, ops::Deref, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;
use hyper::body::Incoming;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionBody, CompressionLayer,
        predicate::{Predicate as _, SizeAbove},
    },
    decompression::RequestDecompressionLayer,
};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

pub use openapi::document;
pub use problem::{Code, Problem, ProblemDocument};
pub use server::{ServerOptions, serve};

use crate::{model::Version, store::Store};

/// Answers below this size are not worth compressing.
const COMPRESS_FROM: u64 = 1024;

/// What requests may bring.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of an event's data.
    pub data_bytes: usize,
    /// Bytes of an event's metadata.
    pub metadata_bytes: usize,
    /// Events of a request.
    pub events: usize,
    /// Bytes of a body, after decompression.
    pub body_bytes: usize,
    /// Characters of an event's type.
    pub type_chars: usize,
    /// Events of a page.
    pub page_events: usize,
    /// Levels of nesting of data and metadata.
    pub json_depth: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            data_bytes: 1024 * 1024,
            metadata_bytes: 64 * 1024,
            events: 1_000,
            body_bytes: 4 * 1024 * 1024,
            type_chars: 256,
            page_events: 1_000,
            json_depth: 128,
            body_timeout: Duration::from_secs(30),
        }
    }
}

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<AppState>);

/// See [`App`].
pub struct AppState {
    /// The events.
    pub store: Store,
    /// What requests may bring.
    pub limits: Limits,
    /// Whether an append must carry a condition.
    pub require_condition: bool,
    /// How long shared caches may keep full pages below the head, and events; zero: not at all.
    pub cache_max_age: Duration,
    /// Told when the service is to end.
    pub shutdown: CancellationToken,
}

impl App {
    /// Shares a state.
    #[must_use]
    pub fn new(state: AppState) -> Self {
        Self(Arc::new(state))
    }

    /// `Cache-Control` of what never changes, where caches may keep it.
    fn kept(&self) -> Option<HeaderValue> {
        let seconds = self.cache_max_age.as_secs();
        let control = format!("public, max-age={seconds}, immutable");
        (seconds > 0).then(|| HeaderValue::from_str(&control).expect("digits and names are ASCII"))
    }
}

impl Deref for App {
    type Target = AppState;

    fn deref(&self) -> &AppState {
        &self.0
    }
}

/// Values of `include`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Include {
    /// The events that the caller has missed.
    Events,
}

/// Values of `direction`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DirectionName {
    /// Versions rise.
    Forward,
    /// Versions fall.
    Backward,
}

/// All routes with their descriptions.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base()).merge(streams::router()).merge(log::router()).merge(admin::router())
}

/// The service. The layers stand around the router, not in it: there, each would cost every request a boxed service and
/// a boxed future.
fn service(
    app: App,
) -> impl Service<Request<Incoming>, Response = Response<CompressionBody<Body>>, Error = Infallible, Future: Send> + Clone
{
    let (described, document) = routes().split_for_parts();
    let router = described.with_state(app).merge(SwaggerUi::new("/docs").url("/openapi.json", document));
    let compress = SizeAbove::new(COMPRESS_FROM).and(tower_http::compression::predicate::NotForContentType::SSE);
    let compression = CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(compress);
    // The router drops the body of an answer to HEAD, whose headers must be those of GET: compressed before that.
    let for_head = router.clone().layer(compression.clone());
    let answering = service_fn(move |request: Request<Incoming>| {
        let router = if request.method() == Method::HEAD { for_head.clone() } else { router.clone() };
        async move { Ok(request::envelope(request, |request| answer(router, request)).await) }
    });
    compression.layer(answering)
}

/// The router's answer, or that to a panic.
async fn answer(router: Router, request: Request<Incoming>) -> Response {
    let compressed = request.headers().contains_key(header::CONTENT_ENCODING);
    let answered = async {
        if compressed {
            let Ok(response) = RequestDecompressionLayer::new().layer(router).oneshot(request).await;
            response.map(Body::new)
        } else {
            let Ok(response) = router.oneshot(request).await;
            response
        }
    };
    AssertUnwindSafe(answered).catch_unwind().await.unwrap_or_else(panicked)
}

#[expect(clippy::needless_pass_by_value, reason = "the form that the layer asks for")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    tracing::error!(panic = text, "a handler panicked");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

/// The strong entity tag of a version.
fn etag(version: Version) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).expect("digits and quotes are ASCII")
}
