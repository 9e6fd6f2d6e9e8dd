//! The only code that speaks HTTP. A file a resource; this one joins their routers and lays the layers around them.

mod admin;
mod append;
mod body;
mod connection;
mod deliveries;
mod extract;
mod group_settings;
mod groups;
mod head;
mod json;
mod log;
mod openapi;
mod parked;
mod problem;
mod request;
mod responses;
mod server;
mod service;
mod settle;
mod streams;

use std::{ops::Deref, sync::Arc, time::Duration};

use axum::http::HeaderValue;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

pub use problem::{Code, Problem, ProblemDocument};
pub use server::{ServerOptions, serve};

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
        }
    }
}

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App {
    state: Arc<AppState>,
    room: body::Room,
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
    /// Told when the service is to end.
    pub shutdown: CancellationToken,
}

impl App {
    /// Shares a state.
    #[must_use]
    pub fn new(state: AppState) -> Self {
        let room = body::Room::new(state.limits.bodies_bytes);
        Self { state: Arc::new(state), room }
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

/// Values of `direction`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
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
    let base = OpenApiRouter::with_openapi(openapi::base());
    let parts = [append::router(), streams::router(), log::router(), groups::router(), admin::router()];
    let mut routes = parts.into_iter().fold(base, OpenApiRouter::merge);
    openapi::complete(routes.get_openapi_mut());
    routes
}

/// The strong entity tag of a version.
fn etag(version: Version) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).expect("digits and quotes are ASCII")
}
