//! `GET /metrics`: what the service counts, in the form of OpenMetrics 1.0 for Prometheus.
//!
//! Labels are bounded: routes are the templates of the document, methods and codes are lists, and of groups a thousand are
//! shown.

mod groups;
mod process;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    admin::NO_STORE,
    problem::{Code, Problem},
};
use crate::store::{COUNTS, SECONDS, StoreMetrics};
use groups::Groups;

/// Stands before every name.
const PREFIX: &str = "streamkeep";
/// The media type of OpenMetrics 1.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What becomes of appends whose events are in the stream.
const APPENDS: &[&str] = &["appended", "duplicate", "unconfirmed"];
/// What deliveries are.
const DELIVERIES: &[&str] = &["first", "again"];
/// What becomes of leases that are sent back.
const SETTLED: &[&str] = &["acked", "retried", "parked", "skipped", "extended", "already", "lost"];

/// The route of the metrics.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// The same at the address for operators.
pub fn admin_router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(admin_metrics))
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// How something ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// What the service counts.
pub struct Metrics {
    registry: Registry,
    in_flight: Gauge,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    problems: Family<CodeLabel, Counter>,
    gone: Counter,
    appends: Family<Outcome, Counter>,
    events: Counter,
    bytes: Counter,
    append_events: Histogram,
    deliveries: Family<Outcome, Counter>,
    settled: Family<Outcome, Counter>,
    /// Feeds that are open.
    pub feeds: Gauge,
    /// Connections that are open.
    pub connections: Gauge,
    /// Answers that were ended because their client took nothing of them.
    pub stalled: Counter,
    waiting: Gauge,
    pool: Family<InState, Gauge>,
    pool_waiting: Gauge,
    queued: Gauge,
    redis_up: Gauge,
    unavailable: Gauge,
    durable: Gauge,
    replicated: Gauge,
    replicas: Gauge,
    groups: Groups,
    process: process::Process,
    elsewhere: Arc<str>,
}

impl Metrics {
    /// Counts those of the store too.
    pub fn new(store: &StoreMetrics) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            in_flight: Gauge::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            problems: Family::default(),
            gone: Counter::default(),
            appends: Family::default(),
            events: Counter::default(),
            bytes: Counter::default(),
            append_events: Histogram::new(COUNTS),
            deliveries: Family::default(),
            settled: Family::default(),
            feeds: Gauge::default(),
            connections: Gauge::default(),
            stalled: Counter::default(),
            waiting: Gauge::default(),
            pool: Family::default(),
            pool_waiting: Gauge::default(),
            queued: Gauge::default(),
            redis_up: Gauge::default(),
            unavailable: Gauge::default(),
            durable: Gauge::default(),
            replicated: Gauge::default(),
            replicas: Gauge::default(),
            groups: Groups::default(),
            process: process::Process::default(),
            elsewhere: "".into(),
        };
        metrics.begin_at_zero();
        let mut registry = Registry::with_prefix(PREFIX);
        metrics.register(&mut registry);
        store.register(&mut registry);
        metrics.process.register(&mut registry);
        metrics.registry = registry;
        metrics
    }

    /// So that the first of each is seen as a rise, not as a beginning.
    fn begin_at_zero(&self) {
        for code in Code::ALL {
            self.problems.get_or_create(&CodeLabel { code: code.facts().1 }).inc_by(0);
        }
        for (family, outcomes) in [(&self.appends, APPENDS), (&self.deliveries, DELIVERIES), (&self.settled, SETTLED)] {
            for outcome in outcomes {
                family.get_or_create(&Outcome { outcome }).inc_by(0);
            }
        }
    }

    fn register(&self, to: &mut Registry) {
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        to.register("build", "The version of the service", version);
        to.register("http_requests", "Requests that were answered", self.requests.clone());
        to.register(
            "http_request_duration_seconds",
            "Time until a request's answer began; of requests with wait, the wait included",
            self.durations.clone(),
        );
        to.register("http_requests_in_flight", "Requests whose answer has not begun", self.in_flight.clone());
        to.register("http_problems", "Answers that were problems, by code", self.problems.clone());
        to.register("http_clients_gone", "Requests whose client left before the answer began", self.gone.clone());
        to.register(
            "http_clients_stalled",
            "Connections that were closed because the client took nothing of its answer, as slow followers do",
            self.stalled.clone(),
        );
        to.register("http_connections_open", "Connections that are open", self.connections.clone());
        to.register("appends", "Appends, by outcome: appended, there already (duplicate), or appended but not confirmed by enough replicas (unconfirmed)", self.appends.clone());
        to.register("events_appended", "Events that were appended", self.events.clone());
        to.register(
            "event_bytes_appended",
            "Bytes of the data and metadata of events that were appended",
            self.bytes.clone(),
        );
        to.register("append_events", "Events of an append", self.append_events.clone());
        to.register("append_queue_calls", "Appends that wait for a writer", self.queued.clone());
        to.register("deliveries", "Events handed out by groups: for the first time, or again", self.deliveries.clone());
        to.register("leases_settled", "Leases that were sent back, by what became of them", self.settled.clone());
        to.register("feeds_open", "Feeds that are open", self.feeds.clone());
        to.register("waiting_requests", "Feeds and long polls, which share a limit", self.waiting.clone());
        to.register(
            "redis_up",
            "Whether Redis answered when it was last looked at; in a cluster, each primary",
            self.redis_up.clone(),
        );
        to.register(
            "partitions_unavailable",
            "Partitions whose Redis did not answer when it was last looked at",
            self.unavailable.clone(),
        );
        to.register("durability_fsync", "Whether an acknowledged append is on disk", self.durable.clone());
        to.register(
            "durability_replicated",
            "Whether replicas confirm an append before it is acknowledged",
            self.replicated.clone(),
        );
        to.register("redis_replicas", "Replicas of Redis that follow closely", self.replicas.clone());
        to.register("redis_pool_connections", "Exclusive connections to Redis, in use or idle", self.pool.clone());
        to.register("redis_pool_waiting", "Callers that wait for an exclusive connection", self.pool_waiting.clone());
    }

    /// A request has come.
    pub fn begin(&self) -> UnderWay<'_> {
        self.in_flight.inc();
        UnderWay { metrics: self, answered: false }
    }

    /// An append has ended well.
    pub fn appended(&self, events: usize, bytes: usize, duplicate: bool) {
        add(&self.appends, if duplicate { "duplicate" } else { "appended" }, 1);
        if !duplicate {
            self.events.inc_by(events as u64);
            self.bytes.inc_by(bytes as u64);
            self.append_events.observe(f64::from(u32::try_from(events).unwrap_or(u32::MAX)));
        }
    }

    /// An append was carried out, and not confirmed by enough replicas.
    pub fn unconfirmed(&self) {
        add(&self.appends, "unconfirmed", 1);
    }

    /// A group has handed out so many events for the first time, and so many again.
    pub fn delivered(&self, first: usize, again: usize) {
        add(&self.deliveries, "first", first);
        add(&self.deliveries, "again", again);
    }

    /// So many leases came back, with this outcome.
    pub fn settled(&self, outcome: &'static str, leases: usize) {
        add(&self.settled, outcome, leases);
    }
}

fn add(to: &Family<Outcome, Counter>, outcome: &'static str, count: usize) {
    if count > 0 {
        to.get_or_create(&Outcome { outcome }).inc_by(count as u64);
    }
}

/// Counts as one for as long as it is held.
pub struct Held(Gauge);

impl Held {
    /// One more.
    pub fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request whose answer has not begun.
pub struct UnderWay<'m> {
    metrics: &'m Metrics,
    answered: bool,
}

impl UnderWay<'_> {
    /// The answer begins.
    pub fn answered(
        mut self,
        method: &Method,
        route: Option<&Arc<str>>,
        status: StatusCode,
        code: Option<Code>,
        took: Duration,
    ) {
        self.answered = true;
        let metrics = self.metrics;
        let (method, route) = (known(method), Arc::clone(route.unwrap_or(&metrics.elsewhere)));
        metrics.durations.get_or_create(&RouteLabels { method, route: Arc::clone(&route) }).observe(took.as_secs_f64());
        metrics.requests.get_or_create(&RequestLabels { method, route, status: status.as_u16() }).inc();
        if let Some(code) = code {
            metrics.problems.get_or_create(&CodeLabel { code: code.facts().1 }).inc();
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        if !self.answered {
            self.metrics.gone.inc();
        }
    }
}

/// A method by its name, as long as it is one that somebody may use.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// What the service counts
///
/// For Prometheus, in the form of OpenMetrics 1.0; docs/metrics.md lists all metrics. With `--admin-listen` only there; else
/// here, for credentials that may `manage` every group.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "operations", responses(
    (status = 200, description = "The metrics", body = String, content_type = "application/openmetrics-text", headers(
        ("Cache-Control" = String, description = "`no-store`"), ("X-Request-Id" = String, description = "Id of this request"))),
    (status = 400, response = super::document::BadRequest), (status = 404, response = super::document::NotFound),
))]
pub async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    if !app.metrics_here {
        return Err(Problem::new(Code::NotFound, "The metrics have an address of their own (--admin-listen)."));
    }
    Ok(scrape(&app).await)
}

#[utoipa::path(get, path = "/metrics", responses((status = 200)))]
async fn admin_metrics(State(app): State<App>) -> Response {
    scrape(&app).await
}

/// All metrics as they are now.
async fn scrape(app: &App) -> Response {
    let metrics = &app.metrics;
    let seen = app.store.check_health().await;
    let away: Vec<_> = seen.iter().filter(|seen| seen.health.is_none()).collect();
    let up = away.len() < seen.len();
    metrics.redis_up.set(away.is_empty().into());
    metrics.unavailable.set(number(away.iter().map(|seen| seen.partitions.len()).sum()));
    let standing = app.store.standing();
    metrics.durable.set(standing.is_synced().into());
    metrics.replicated.set(standing.level().is_replicated().into());
    metrics.replicas.set(number(standing.online()));
    let used = app.limits.waiting - app.waiting.available_permits().min(app.limits.waiting);
    metrics.waiting.set(number(used));
    let load = app.store.load();
    metrics.queued.set(number(load.queued));
    metrics.pool_waiting.set(number(load.pool_waiting));
    for (state, count) in [("in_use", load.pool_in_use), ("idle", load.pool_idle)] {
        metrics.pool.get_or_create(&InState { state }).set(number(count));
    }
    let mut text = String::new();
    let began = Instant::now();
    text::encode_registry(&mut text, &metrics.registry).expect("writing to memory cannot fail");
    if up {
        text.push_str(&metrics.groups.read(&app.store, began).await);
    }
    text::encode_eof(&mut text).expect("writing to memory cannot fail");
    ([NO_STORE, (header::CONTENT_TYPE, header::HeaderValue::from_static(OPENMETRICS))], text).into_response()
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
