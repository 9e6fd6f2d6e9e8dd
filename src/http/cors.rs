//! Pages of other origins (the CORS protocol, WHATWG Fetch §3.2): off unless origins are named.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{
    extract::{DURABILITY, IDEMPOTENCY_KEY},
    feeds::LAST_EVENT_ID,
    request::REQUEST_ID,
    trace::{TRACEPARENT, TRACESTATE},
};

/// How long a browser may keep what it was allowed.
const MAX_AGE: Duration = Duration::from_mins(10);

/// What pages of these origins may do; `*` is any. No cookies are ever used, so none are allowed.
pub fn layer(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origins = match origins {
        [] => return None,
        origins if origins.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().cloned()),
    };
    let named = HeaderName::from_static;
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            IDEMPOTENCY_KEY,
            LAST_EVENT_ID,
            DURABILITY,
            TRACEPARENT,
            TRACESTATE,
            REQUEST_ID,
        ])
        .expose_headers([
            header::ETAG,
            header::LINK,
            header::LOCATION,
            header::RETRY_AFTER,
            named("ratelimit"),
            named("ratelimit-policy"),
            REQUEST_ID,
            DURABILITY,
            named("deprecation"),
            named("sunset"),
        ])
        .max_age(MAX_AGE);
    Some(layer)
}
