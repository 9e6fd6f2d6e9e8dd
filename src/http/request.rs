//! What surrounds every request: its id, the rules that hold on every route, and the problem document of what failed.

use std::time::Instant;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header},
    response::{IntoResponse as _, Response},
};
use uuid::Uuid;

use super::problem::{Code, Problem};

/// `X-Request-Id`, kept or made, on every answer and log line.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The media type of every failure.
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Longest request target, in bytes.
const URI_MAX: usize = 8 * 1024;
/// Most header fields.
const HEADERS_MAX: usize = 64;
/// Largest header block, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Has `next` answer, unless the request is refused before.
pub async fn envelope<B, N: Future<Output = Response>>(
    request: Request<B>,
    next: impl FnOnce(Request<B>) -> N,
) -> Response {
    let began = Instant::now();
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_request_id(id));
    let (id, uuid) = match given {
        Some(id) => {
            (id.to_owned(), Uuid::try_parse(id).unwrap_or_else(|_| Uuid::new_v5(&Uuid::NAMESPACE_URL, id.as_bytes())))
        }
        None => {
            let uuid = Uuid::now_v7();
            (uuid.to_string(), uuid)
        }
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match refusal(&request) {
        Some(problem) => {
            let mut response = problem.into_response();
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
        None => next(request).await,
    };
    if method == Method::OPTIONS && response.status() == StatusCode::METHOD_NOT_ALLOWED {
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    let mut response = with_document(response, uuid);
    response.headers_mut().insert(REQUEST_ID, HeaderValue::from_str(&id).expect("its characters were checked"));
    let status = response.status().as_u16();
    let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    if status >= 500 {
        tracing::warn!(request_id = id, %method, path, status, took_us, "request failed");
    } else {
        tracing::debug!(request_id = id, %method, path, status, took_us, "request");
    }
    response
}

/// What is wrong with a request on any route.
fn refusal<B>(request: &Request<B>) -> Option<Problem> {
    let headers = request.headers();
    let header_bytes = |headers: &HeaderMap| -> usize {
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
    };
    if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > URI_MAX) {
        return Some(Problem::new(Code::UriTooLong, format!("An address has at most {URI_MAX} bytes.")));
    }
    if headers.len() > HEADERS_MAX || header_bytes(headers) > HEADER_BYTES_MAX {
        let detail = format!("A request has at most {HEADERS_MAX} header fields, of {HEADER_BYTES_MAX} bytes in all.");
        return Some(Problem::new(Code::HeadersTooLarge, detail));
    }
    if request.version() == Version::HTTP_11 && headers.get_all(header::HOST).iter().count() != 1 {
        return Some(Problem::new(Code::InvalidRequest, "An HTTP/1.1 request has one Host field (RFC 9112 §3.2)."));
    }
    None
}

/// Gives a failed response its problem document: that of our handlers, or one for what the framework refused.
fn with_document(mut response: Response, id: Uuid) -> Response {
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None => match of_framework(response.status()) {
            Some(problem) => problem,
            None => return response,
        },
    };
    let document = problem.document(id);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(document.len()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let (mut parts, _) = response.into_parts();
    parts.status = problem.code().facts().0;
    Response::from_parts(parts, Body::from(document))
}

fn of_framework(status: StatusCode) -> Option<Problem> {
    let (code, detail) = match status {
        StatusCode::NOT_FOUND => (Code::NotFound, "The addresses that there are stand in /openapi.json."),
        StatusCode::METHOD_NOT_ALLOWED => (Code::MethodNotAllowed, "The Allow header lists the methods that fit."),
        StatusCode::PAYLOAD_TOO_LARGE => (Code::PayloadTooLarge, "The body is over the limit."),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            (Code::UnsupportedMediaType, "Bodies are read plain, or with Content-Encoding gzip or zstd.")
        }
        status if status.is_server_error() => (Code::Internal, "The failure was logged under this request's id."),
        status if status.is_client_error() => (Code::InvalidRequest, "The request was refused."),
        _ => return None,
    };
    Some(Problem::new(code, detail))
}

fn is_request_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
