//! The only code that speaks HTTP. A file a resource; this one joins their routers and lays the layers around them.

mod accept;
mod access;
mod addresses;
mod admin;
mod append;
mod body;
mod caller;
mod conditions;
mod cors;
mod document;
mod events;
mod extract;
mod feeds;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod groups;
mod json;
mod log;
mod metrics;
mod problem;
mod rates;
mod reload;
mod request;
mod server;
mod service;
mod stream_list;
mod streams;
mod trace;

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::HeaderValue;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

pub use access::{Access, AccessFiles, Grant, KeyLine, Pattern, Rights, Verb};
pub use caller::{Caller, parse_network};
pub use extract::DURABILITY;
pub use problem::{Code, Problem, ProblemDocument};
pub use rates::RateLimit;
pub use server::{ServerOptions, Tls, serve, serve_admin};

use extract::Query;
use metrics::Metrics;

use crate::{model::Version, store::Store};

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
    /// Bytes of the bodies of all requests under way.
    pub bodies_bytes: usize,
    /// Characters of an event's type.
    pub type_chars: usize,
    /// Events of a page.
    pub page_events: usize,
    /// Levels of nesting of data and metadata.
    pub json_depth: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Requests that follow or wait at once: feeds and long polls.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            data_bytes: 1024 * 1024,
            metadata_bytes: 64 * 1024,
            events: 1_000,
            body_bytes: 4 * 1024 * 1024,
            bodies_bytes: 256 * 1024 * 1024,
            type_chars: 256,
            page_events: 1_000,
            json_depth: 128,
            body_timeout: Duration::from_secs(30),
            waiting: 9_000,
        }
    }
}

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App {
    state: Arc<AppState>,
    room: body::Room,
    /// A permit for each request that follows or waits.
    waiting: Arc<Semaphore>,
    /// Told when what follows or waits is to end: after the shutdown is told, and gateways had time to notice.
    closing: CancellationToken,
    metrics: Arc<Metrics>,
}

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
    /// A group that nobody has asked for events for so long is marked as idle.
    pub group_idle: Duration,
    /// Every address begins with this; empty, or with a slash before and none behind.
    pub base_path: String,
    /// Pages of these origins may use the service; none: pages of its own only.
    pub cors_origins: Vec<HeaderValue>,
    /// Who may do what; `None`: anybody everything.
    pub access: Option<Arc<Access>>,
    /// How many requests a caller may make; empty: as many as it likes.
    pub rate_limits: Vec<RateLimit>,
    /// Told when the service is to end.
    pub shutdown: CancellationToken,
    /// Whether the metrics stand among the other addresses, not on one of their own.
    pub metrics_here: bool,
}

impl App {
    /// Shares a state.
    #[must_use]
    pub fn new(state: AppState) -> Self {
        let room = body::Room::new(state.limits.bodies_bytes);
        let waiting = Arc::new(Semaphore::new(state.limits.waiting));
        let metrics = Arc::new(Metrics::new(state.store.metrics()));
        Self { state: Arc::new(state), room, waiting, closing: CancellationToken::new(), metrics }
    }

    /// Lets a request follow, for as long as it holds this.
    ///
    /// # Errors
    /// `overloaded` where too many follow or wait already.
    fn wait_permit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| {
            let most = self.limits.waiting;
            let detail = format!("{most} requests follow or wait already. Try again soon, or do not wait.");
            Problem::new(Code::Overloaded, detail)
        })
    }

    /// The `wait` of a query; a request that does wait needs room.
    ///
    /// # Errors
    /// `invalid-parameter`, `overloaded`
    fn wait(&self, query: &Query) -> Result<Wait, Problem> {
        let wait = query.wait()?;
        let permit = if wait.is_zero() { None } else { Some(self.wait_permit()?) };
        Ok(Wait { until: Instant::now() + wait, permit })
    }

    /// `Cache-Control` of what never changes, where caches may keep it: shared ones only what anybody may have.
    fn kept(&self) -> Option<HeaderValue> {
        let seconds = self.cache_max_age.as_secs();
        let whose = if self.access.is_some() { "private" } else { "public" };
        let control = format!("{whose}, max-age={seconds}, immutable");
        (seconds > 0).then(|| HeaderValue::from_str(&control).expect("digits and names are ASCII"))
    }
}

/// How long a request may wait.
struct Wait {
    until: Instant,
    permit: Option<OwnedSemaphorePermit>,
}

impl Wait {
    /// Whether it may wait at all.
    fn is_some(&self) -> bool {
        self.permit.is_some()
    }
}

impl Deref for App {
    type Target = AppState;

    fn deref(&self) -> &AppState {
        &self.state
    }
}

/// Values of `include`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Include {
    /// The events that the caller has missed.
    Events,
}

/// Which way to read: versions rise or fall.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Direction)]
pub enum DirectionName {
    /// Versions rise.
    Forward,
    /// Versions fall.
    Backward,
}

/// The OpenAPI document, as it stands in `openapi.yaml` and at `/openapi.json`.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// All routes with their descriptions.
fn routes() -> OpenApiRouter<App> {
    let base = OpenApiRouter::with_openapi(document::base());
    let parts = [
        append::router(),
        streams::router(),
        stream_list::router(),
        log::router(),
        groups::router(),
        admin::router(),
        metrics::router(),
    ];
    let mut routes = parts.into_iter().fold(base, OpenApiRouter::merge);
    document::complete(routes.get_openapi_mut());
    routes
}

/// The routes of the address for operators.
fn admin_routes() -> OpenApiRouter<App> {
    admin::router().merge(metrics::admin_router())
}

/// The strong entity tag of a version.
fn etag(version: Version) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits and quotes are ASCII")
}
