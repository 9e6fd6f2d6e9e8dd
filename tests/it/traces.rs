//! Traces: what reaches an OpenTelemetry collector, and what events keep.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value as Any,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::app::{TestRedis, eventually, free_address};
use crate::program::{Service, serve};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A collector: keeps the spans that come, with the name of the service that sent them.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let take = collector.clone();
        let routes = Router::new().route("/v1/traces", post(async move |body| take.take(body)));
        tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
        (collector, address)
    }

    fn take(&self, body: Bytes) {
        for resource in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
            let service = attribute(&resource.resource.unwrap().attributes, "service.name");
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().iter().map(|(_, span)| span.clone()).collect()
    }
}

fn attribute(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{key}: {other:?} in {attributes:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// The service, which tells a collector.
async fn start(redis: &TestRedis, folder: &TempDir, collector: &str, variables: &[(&str, &str)]) -> Service {
    let address = free_address();
    let mut command = serve(redis, &address.to_string(), &["--log", "trace", "--otlp-endpoint", collector]);
    command.envs(variables.iter().copied()).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    Service::start(command, address, folder.path()).await
}

async fn append(service: &Service, headers: &[(&str, &str)]) {
    let mut request = service.client.post(format!("{}/streams/order-1/events", service.url));
    for (name, value) in headers.iter().chain(&[("content-type", "application/json"), ("x-request-id", "the-append")]) {
        request = request.header(*name, *value);
    }
    assert_eq!(request.body(r#"{"events":[{"type":"placed","data":1}]}"#).send().await.unwrap().status(), 201);
}

async fn metadata(service: &Service) -> Value {
    let answer =
        service.client.get(format!("{}/streams/order-1?direction=backward", service.url)).send().await.unwrap();
    answer.json::<Value>().await.unwrap()["events"][0]["metadata"].clone()
}

#[tokio::test]
async fn a_request_goes_on_with_its_callers_trace() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let (collector, address) = Collector::start().await;
    let mut service = start(&redis, &folder, &address, &[]).await;
    append(&service, &[("traceparent", &format!("00-{TRACE}-{CALLER}-01")), ("tracestate", "vendor=1")]).await;
    // Ended, it has sent all that it had.
    service.signal("TERM");
    assert!(service.ended().await.success());
    let spans: HashMap<String, Span> = collector
        .spans()
        .into_iter()
        .filter(|span| hex(&span.trace_id) == TRACE)
        .map(|span| (span.name.clone(), span))
        .collect();
    let request = &spans["POST /streams/{id}/events"];
    assert_eq!((hex(&request.parent_span_id).as_str(), request.kind), (CALLER, SpanKind::Server as i32));
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/streams/{id}/events"),
        ("url.path", "/streams/order-1/events"),
        ("http.response.status_code", "201"),
        ("streamkeep.request_id", "the-append"),
    ] {
        assert_eq!(attribute(&request.attributes, key), value);
    }
    let name = spans.keys().find(|name| *name == "es_append").expect("the call of the function");
    let call = &spans[name];
    assert_eq!((&call.parent_span_id, call.kind), (&request.span_id, SpanKind::Client as i32));
    assert_eq!(attribute(&call.attributes, "db.system.name"), "redis");
    assert!(
        request.start_time_unix_nano <= call.start_time_unix_nano
            && call.end_time_unix_nano <= request.end_time_unix_nano
    );
    assert_eq!(collector.0.lock().unwrap()[0].0, "streamkeep");
    // Spans are not for the log, whatever that is asked for.
    let log = service.log();
    assert!(log.contains("request_id=\"the-append\"") && !log.contains("http.route"), "{log}");
}

#[tokio::test]
async fn events_keep_the_span_that_appended_them() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let (collector, address) = Collector::start().await;
    let name = [("OTEL_SERVICE_NAME", "orders")];
    let service = start(&redis, &folder, &address, &name).await;
    let appends = || collector.spans().into_iter().filter(|span| span.name == "POST /streams/{id}/events");
    // Without a trace of the caller's own a new one begins.
    append(&service, &[]).await;
    eventually("the span comes", async || appends().count() == 1).await;
    let span = appends().next().unwrap();
    assert_eq!(
        metadata(&service).await["traceparent"],
        format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
    );
    assert_eq!(collector.0.lock().unwrap()[0].0, "orders");
    // A trace that its caller does not record is not recorded here, but kept all the same.
    append(&service, &[("traceparent", &format!("00-{TRACE}-{CALLER}-00")), ("tracestate", "vendor=1")]).await;
    let kept = metadata(&service).await;
    let parent = kept["traceparent"].as_str().unwrap();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-00"), "{parent}");
    assert_eq!(kept["tracestate"], "vendor=1");
    append(&service, &[]).await;
    eventually("the next span comes", async || appends().count() == 2).await;
    assert!(collector.spans().iter().all(|span| hex(&span.trace_id) != TRACE));
}

/// A collector that is away costs spans, never requests; a failure is marked.
#[tokio::test]
async fn nothing_waits_for_the_collector() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", nobody.local_addr().unwrap());
    let mut service = start(&redis, &folder, &silent, &[]).await;
    append(&service, &[]).await;
    assert!(metadata(&service).await["traceparent"].is_string());
    service.signal("TERM");
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), service.ended()).await.expect("it ends");
    assert!(ended.success());

    let (collector, address) = Collector::start().await;
    let impatient = [("STREAMKEEP_REDIS_TIMEOUT_MS", "200")];
    let service = start(&redis, &folder, &address, &impatient).await;
    redis.signal("STOP");
    let failed = service.client.get(format!("{}/streams/order-1", service.url)).send().await.unwrap();
    assert!(failed.status().is_server_error());
    let marked = |span: &Span| span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32);
    eventually("the failure comes", async || {
        collector.spans().iter().any(|span| span.name == "GET /streams/{id}" && marked(span))
    })
    .await;
    redis.signal("CONT");
}

#[test]
fn a_collector_that_cannot_be_is_refused() {
    for bad in ["https://collector:4318", "127.0.0.1:4318", "collector", "http://"] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_streamkeep"));
        let output = command.args(["serve", "--otlp-endpoint", bad]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
}
