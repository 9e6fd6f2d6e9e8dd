//! What the HTTP stack costs by itself: axum and hyper as the service sets them, and an answer of the same size as that
//! of an append, without layers, parsing and Redis.

use std::net::SocketAddr;

use axum::{
    Router,
    body::Bytes,
    extract::Request,
    http::{HeaderName, StatusCode, header},
    response::IntoResponse,
    routing::post,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, runtime};
use tower::ServiceExt as _;

/// Serves until the process is ended.
pub fn serve(address: SocketAddr) {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be built");
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let router = Router::new().route("/streams/{id}/events", post(answer));
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let service = TowerToHyperService::new(
                router
                    .clone()
                    .map_request(|request: Request<hyper::body::Incoming>| request.map(axum::body::Body::new)),
            );
            tokio::spawn(async move {
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(10));
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

async fn answer(_: Bytes) -> impl IntoResponse {
    const BODY: &str = r#"{"stream":"order-00001234","first_version":12,"version":12,"partition":0,"position":123456,"count":1,"duplicate":false}"#;
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::ETAG, "\"12\""),
        (header::LOCATION, "events/12"),
        (header::VARY, "accept-encoding"),
        (HeaderName::from_static("streamkeep-durability"), "memory"),
        (HeaderName::from_static("x-request-id"), "01890a5d-ac96-774b-bcce-b302099a8057"),
    ];
    (StatusCode::CREATED, headers, BODY)
}
