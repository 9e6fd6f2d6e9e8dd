//! The routes with all layers around them.

use std::{any::Any, convert::Infallible};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::StatusCode,
    middleware,
    response::{IntoResponse as _, Response},
};
use tower::{ServiceBuilder, util::BoxCloneSyncService};
use tower_http::{
    CompressionLevel,
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer,
        predicate::{NotForContentType, Predicate as _, SizeAbove},
    },
    decompression::RequestDecompressionLayer,
};
use utoipa_swagger_ui::SwaggerUi;

use super::{App, request, routes};

/// Answers below this size are not worth compressing.
const COMPRESS_FROM: u64 = 1024;

/// Answers every request.
pub type Service = BoxCloneSyncService<Request, Response, Infallible>;

/// The service.
pub fn service(app: App) -> Service {
    let (routes, document) = routes().split_for_parts();
    layered(routes.with_state(app).merge(SwaggerUi::new("/docs").url("/openapi.json", document)))
}

/// Lays the layers around the whole router. With [`Router::layer`] they would lie around each route: the router then
/// adds `Allow` and `Content-Length` to what the envelope has finished.
fn layered(router: Router) -> Service {
    let compress = SizeAbove::new(COMPRESS_FROM).and(NotForContentType::SSE);
    BoxCloneSyncService::new(
        ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(Body::new))
            .map_request(request::without_refused_identity)
            .layer(CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(compress))
            .layer(middleware::from_fn(request::envelope))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(RequestDecompressionLayer::new())
            .service(router),
    )
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
        let service = layered(Router::new().route("/", get(|| async { panic!("secret") as &str })));
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
