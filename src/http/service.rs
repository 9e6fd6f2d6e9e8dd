//! The routes with all layers around them.

use std::{any::Any, convert::Infallible, future, net::Ipv4Addr, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;
use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};
use tower_http::{
    CompressionLevel,
    compression::{
        Compression,
        predicate::{NotForContentType, Predicate, SizeAbove},
    },
    cors::CorsLayer,
};
use utoipa::openapi::{OpenApi, Server};
use utoipa_swagger_ui::SwaggerUi;

use super::{
    App,
    accept::Form,
    access::{self, Access, Grant},
    addresses::Addresses,
    admin_routes,
    caller::Caller,
    cors,
    metrics::Metrics,
    problem::Problem,
    rates::{self, Counted, Rates},
    request, routes,
};

/// Answers below this size are not worth compressing.
const COMPRESS_FROM: u64 = 1024;

/// Answers every request whose body is a `B`.
pub trait Answers<B>:
    Service<Request<B>, Response = Response, Error = Infallible, Future: Send> + Clone + Send
{
}

impl<B, S> Answers<B> for S where
    S: Service<Request<B>, Response = Response, Error = Infallible, Future: Send> + Clone + Send
{
}

/// The service.
pub fn service<B: RequestBody>(app: App) -> impl Answers<B> {
    let (routes, mut document) = routes().split_for_parts();
    let (base, origins) = (app.base_path.clone(), cors::layer(&app.cors_origins));
    let guard = Guard {
        access: app.access.clone(),
        addresses: Addresses::new(&base, &document),
        metrics: Arc::clone(&app.metrics),
        rates: Rates::new(&app.rate_limits),
    };
    let routes = routes.with_state(app);
    if base.is_empty() {
        return layered(routes.merge(docs(&base, document)), guard, origins);
    }
    document.servers = Some(vec![Server::new(&base)]);
    layered(Router::new().nest(&base, routes).merge(docs(&base, document)), guard, origins)
}

/// What operators alone may reach: the metrics, and the probes.
pub fn admin_service<B: RequestBody>(app: App) -> impl Answers<B> {
    let (routes, document) = admin_routes().split_for_parts();
    let addresses = Addresses::new("", &document);
    let guard = Guard { access: None, addresses, metrics: Arc::clone(&app.metrics), rates: None };
    layered(routes.with_state(app), guard, None)
}

/// The page that shows the document. It asks nobody else: by default it would have a validator on the internet look at
/// the document, and tell it this service's address.
fn docs(base: &str, document: OpenApi) -> SwaggerUi {
    let config = utoipa_swagger_ui::Config::default().validator_url("none");
    SwaggerUi::new(format!("{base}/docs")).url(format!("{base}/openapi.json"), document).config(config)
}

/// A body that the router reads.
pub trait RequestBody: HttpBody<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static {}

impl<B: HttpBody<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static> RequestBody for B {}

/// Lays the layers around the whole router. With [`Router::layer`] they would lie around each route: the router would
/// add `Allow` and `Content-Length` to what the envelope has finished, and each layer would cost every request a boxed
/// service and a boxed future.
fn layered<B: RequestBody>(router: Router, guard: Guard, cors: Option<CorsLayer>) -> impl Answers<B> {
    // One count of users for all of it: counts that the processor's cores share are dear.
    let guard = Arc::new(guard);
    let around = Arc::clone(&guard);
    let guarded = service_fn(move |request: Request<B>| {
        let (router, guard) = (router.clone(), Arc::clone(&guard));
        // Boxed, or each layer would hold it once more and move it.
        Box::pin(guarded(router, guard, request).map(Ok::<_, Infallible>))
    });
    // A page may see that it was refused, and asks without credentials what it may. Shared, for a request is not to have
    // room for all that the layer knows.
    let router = Arc::new(ServiceBuilder::new().option_layer(cors).service(guarded));
    let answered = service_fn(move |request: Request<B>| {
        let (router, around) = (Arc::clone(&router), Arc::clone(&around));
        async move {
            let accepted = request.headers().get_all(header::ACCEPT_ENCODING).iter().cloned().collect();
            let response =
                request::envelope(request, &around.addresses, &around.metrics, |request| routed(&*router, request))
                    .await;
            let compresses = compress().should_compress(&response);
            // Boxed: few answers need the room.
            Ok(if compresses { Box::pin(compressed(response, accepted)).await } else { response })
        }
    });
    ServiceBuilder::new().map_request(request::without_refused_identity).service(answered)
}

/// Which answers are compressed, for clients that accept it.
fn compress() -> impl Predicate {
    // A coder would hold back what should go out at once.
    let feeds = NotForContentType::SSE.and(NotForContentType::const_new(Form::Ndjson.media_type()));
    SizeAbove::new(COMPRESS_FROM).and(feeds)
}

/// Compresses an answer. Around all of them the layer would give each the room of an encoder (6 KB that every answer moves
/// several times, and hyper keeps for as long as a connection lives), used or not.
async fn compressed(response: Response, accepted: Vec<HeaderValue>) -> Response {
    let mut request = Request::new(());
    request.headers_mut().extend(accepted.into_iter().map(|coding| (header::ACCEPT_ENCODING, coding)));
    let mut response = Some(response);
    let answer = service_fn(move |_: Request<()>| {
        future::ready(Ok::<_, Infallible>(response.take().expect("it is asked once")))
    });
    let layer = Compression::new(answer).quality(CompressionLevel::Fastest).compress_when(compress());
    layer.oneshot(request).await.unwrap_or_else(|never| match never {}).map(Body::new)
}

/// The router's answer; that to a panic, where a handler panicked.
fn routed<B: RequestBody, R: Answers<B>>(
    router: &R,
    request: Request<B>,
) -> impl Future<Output = Response> + use<B, R> {
    let answer = AssertUnwindSafe(answered(router.clone(), request)).catch_unwind();
    answer.map(|answer| answer.unwrap_or_else(panicked))
}

/// The router's answer. (An async function would keep the request beside what becomes of it. Routers are always ready.)
fn answered<B: RequestBody>(mut router: impl Answers<B>, request: Request<B>) -> impl Future<Output = Response> {
    router.call(request).map(|answer| answer.unwrap_or_else(|never| match never {}))
}

/// Who lets requests in, to what, and how many, and counts them.
struct Guard {
    access: Option<Arc<Access>>,
    addresses: Addresses,
    metrics: Arc<Metrics>,
    rates: Option<Rates>,
}

impl Guard {
    /// Who asks, where that has to be known.
    fn admit<B>(&self, request: &mut Request<B>) -> Result<Option<Arc<Grant>>, Problem> {
        self.access.as_ref().map_or(Ok(None), |access| access.admit(request, &self.addresses))
    }

    /// That they may do this, and have not done it too often; what the answer is to say of that.
    fn judge<B>(&self, request: &Request<B>, grant: Option<&Grant>) -> Result<Option<rates::Headers>, Problem> {
        if grant.is_none() && self.rates.is_none() {
            return Ok(None);
        }
        // Where there is no such operation, the router says so.
        let uri = request.uri();
        let Some(need) = access::need(request.method(), self.addresses.beneath(uri.path())) else { return Ok(None) };
        if let Some(grant) = grant {
            grant.check(&need, uri.query())?;
        }
        let Some(rates) = &self.rates else { return Ok(None) };
        let address = request.extensions().get::<Caller>().map_or(Ipv4Addr::UNSPECIFIED.into(), |caller| caller.0);
        let caller = grant.map_or_else(|| address.into(), |grant| Counted::Credential(grant.who.clone()));
        rates.admit(need.verbs[0], &caller)
    }
}

/// The router's answer to whoever may have it; who asked comes with it, for the log.
async fn guarded<B: RequestBody>(router: Router, guard: Arc<Guard>, mut request: Request<B>) -> Response {
    let grant = match guard.admit(&mut request) {
        Ok(grant) => grant,
        Err(problem) => return problem.into_response(),
    };
    let mut response = match guard.judge(&request, grant.as_deref()) {
        Ok(limit) => {
            let mut response = answered(router, request).await;
            response.headers_mut().extend(limit.into_iter().flatten());
            response
        }
        Err(problem) => problem.into_response(),
    };
    if let Some(grant) = grant {
        response.extensions_mut().insert(grant);
    }
    response
}

#[expect(clippy::needless_pass_by_value, reason = "the form that the layer asks for")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    tracing::error!(panic = text, "a handler panicked");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

#[cfg(test)]
mod tests {
    use axum::{http::header, routing::get};
    use http_body_util::BodyExt as _;
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::*;
    use crate::store::StoreMetrics;

    #[tokio::test]
    async fn a_panic_is_a_problem_that_says_nothing_of_the_inside() {
        let metrics = Arc::new(Metrics::new(&StoreMetrics::default()));
        let guard = Guard { access: None, addresses: Addresses::default(), metrics, rates: None };
        let service = layered(Router::new().route("/", get(|| async { panic!("secret") as &str })), guard, None);
        let request = Request::builder().header(header::HOST, "x").body(Body::empty()).expect("a good request");
        let response = service.oneshot(request).await.unwrap_or_else(|never| match never {});
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        let body = response.into_body().collect().await.expect("the body is in memory").to_bytes();
        assert!(!String::from_utf8_lossy(&body).contains("secret"));
        let problem: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((&problem["code"], &problem["retryable"]), (&"internal".into(), &false.into()));
    }
}
