//! Traces, in OpenTelemetry's form: a span for every request, and one for every round trip to Redis within it.
//!
//! Spans are those of the crate `tracing`, with a target of their own. Without an exporter nobody wants that target, and
//! each costs a look at one flag.

use std::{env, error::Error, sync::Arc, thread, time::Duration};

use axum::http::{HeaderMap, Method, StatusCode};
use opentelemetry::{global, trace::TracerProvider as _};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use reqwest::blocking::Client;
use tracing::{Span, Subscriber, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

/// The target of all spans.
pub const TARGET: &str = "streamkeep::traces";
/// How long the collector may take for a batch, and the last one at the end.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// What sends the spans.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends to the collector at `endpoint`, by OTLP over HTTP (`/v1/traces`). Which traces are kept, and what else is said
    /// of the service, is up to the variables `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
    ///
    /// # Errors
    /// An endpoint that cannot be used.
    pub fn to(endpoint: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .with_http_client(client()?)
            .build()?;
        let resource = Resource::builder();
        let resource = match env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => resource,
            None => resource.with_service_name("streamkeep"),
        };
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(provider))
    }

    /// What hands the spans over.
    #[must_use]
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let layer = tracing_opentelemetry::layer().with_tracer(self.0.tracer("streamkeep"));
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false).with_target(false);
        layer.with_filter(Targets::new().with_target(TARGET, tracing::Level::INFO))
    }

    /// Sends what is left; waits for the collector for a few seconds.
    pub async fn end(self) {
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(EXPORT_TIMEOUT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// What asks the collector. The exporter's own would look for the system's CAs, which a container may not have, and which
/// plain HTTP does not need. It is made on a thread, for it blocks.
fn client() -> reqwest::Result<Client> {
    let build = || Client::builder().timeout(EXPORT_TIMEOUT).tls_certs_only([]).build();
    thread::scope(|scope| scope.spawn(build).join().expect("it does not panic"))
}

/// The span of a request, which goes on with the trace of its `traceparent`; the request's header is then the span itself,
/// so that what keeps it keeps where it came from.
pub fn request(method: &Method, path: &str, template: Option<&Arc<str>>, id: &str, headers: &mut HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: TARGET, "request",
        otel.name = %method, otel.kind = "server", otel.status_code = Empty, http.request.method = %method,
        http.route = Empty, url.path = path, http.response.status_code = Empty, streamkeep.request_id = id,
    );
    if !span.is_disabled() {
        if let Some(template) = template {
            span.record("http.route", &**template);
            span.record("otel.name", format!("{method} {template}"));
        }
        global::get_text_map_propagator(|propagator| {
            // It can only fail where no layer knows the span, or after it was entered.
            let _ = span.set_parent(propagator.extract(&HeaderExtractor(headers)));
            propagator.inject_context(&span.context(), &mut HeaderInjector(headers));
        });
    }
    span
}

/// How a request ended.
pub fn answered(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
}

/// The span of a round trip to Redis with `count` commands: named by the first, for there are several only where they are
/// the same or read what belongs together.
pub fn round_trip(first: &str, count: usize) -> Span {
    tracing::info_span!(
        target: TARGET, "redis",
        otel.name = first, otel.kind = "client", db.system.name = "redis",
        db.operation.batch.size = count,
    )
}
