//! The routes with all layers around them.

use std::{any::Any, convert::Infallible, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    http::{Request, StatusCode},
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;
use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionBody, CompressionLayer,
        predicate::{NotForContentType, Predicate as _, SizeAbove},
    },
};
use utoipa_swagger_ui::SwaggerUi;

use super::{App, accept::Form, access::Access, request, routes};

/// Answers below this size are not worth compressing.
const COMPRESS_FROM: u64 = 1024;

/// Answers every request whose body is a `B`.
pub trait Answers<B>:
    Service<Request<B>, Response = Response<CompressionBody<Body>>, Error = Infallible, Future: Send> + Clone + Send
{
}

impl<B, S> Answers<B> for S where
    S: Service<Request<B>, Response = Response<CompressionBody<Body>>, Error = Infallible, Future: Send> + Clone + Send
{
}

/// The service.
pub fn service<B: RequestBody>(app: App) -> impl Answers<B> {
    let (routes, document) = routes().split_for_parts();
    let access = app.access.clone();
    layered(routes.with_state(app).merge(docs(document)), access)
}

/// The page that shows the document. It asks nobody else: by default it would have a validator on the internet look at
/// the document, and tell it this service's address.
fn docs(document: utoipa::openapi::OpenApi) -> SwaggerUi {
    let config = utoipa_swagger_ui::Config::default().validator_url("none");
    SwaggerUi::new("/docs").url("/openapi.json", document).config(config)
}

/// A body that the router reads.
pub trait RequestBody: HttpBody<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static {}

impl<B: HttpBody<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static> RequestBody for B {}

/// Lays the layers around the whole router. With [`Router::layer`] they would lie around each route: the router would
/// add `Allow` and `Content-Length` to what the envelope has finished, and each layer would cost every request a boxed
/// service and a boxed future.
fn layered<B: RequestBody>(router: Router, access: Option<Arc<Access>>) -> impl Answers<B> {
    // A coder would hold back what should go out at once.
    let feeds = NotForContentType::SSE.and(NotForContentType::const_new(Form::Ndjson.media_type()));
    let compress = SizeAbove::new(COMPRESS_FROM).and(feeds);
    let enveloped = service_fn(move |request: Request<B>| {
        let (router, access) = (router.clone(), access.clone());
        async move { Ok(request::envelope(request, |request| routed(router, access, request)).await) }
    });
    ServiceBuilder::new()
        .map_request(request::without_refused_identity)
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(compress))
        .service(enveloped)
}

/// The router's answer; that to a panic, where a handler panicked.
async fn routed<B: RequestBody>(router: Router, access: Option<Arc<Access>>, request: Request<B>) -> Response {
    let answer = async {
        let Some(access) = access else { return answered(router, request).await };
        guarded(router, &access, request).await
    };
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(panicked)
}

async fn answered<B: RequestBody>(router: Router, request: Request<B>) -> Response {
    router.oneshot(request).await.unwrap_or_else(|never| match never {})
}

/// The router's answer to whoever may have it; who asked comes with it, for the log.
async fn guarded<B: RequestBody>(router: Router, access: &Access, mut request: Request<B>) -> Response {
    let grant = match access.admit(&mut request) {
        Ok(Some(grant)) => grant,
        Ok(None) => return answered(router, request).await,
        Err(problem) => return problem.into_response(),
    };
    let uri = request.uri();
    let mut response = match grant.check(request.method(), uri.path(), uri.query()) {
        Ok(()) => answered(router, request).await,
        Err(problem) => problem.into_response(),
    };
    response.extensions_mut().insert(grant);
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

    #[tokio::test]
    async fn a_panic_is_a_problem_that_says_nothing_of_the_inside() {
        let service = layered(Router::new().route("/", get(|| async { panic!("secret") as &str })), None);
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
