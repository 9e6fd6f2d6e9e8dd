//! What surrounds every request: its id, the rules that hold on every route, and the problem document of what failed.

use std::{cmp::Ordering, sync::Arc, time::Instant};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header, uri::Authority},
    response::{IntoResponse as _, Response},
};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{
    accept::weighted,
    access::Grant,
    addresses::Addresses,
    caller::Caller,
    extract::{ACCEPT_POST, JSON},
    metrics::Metrics,
    problem::{Code, Problem},
    server::TwoLengths,
};
use crate::telemetry::traces;

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
    mut request: Request<B>,
    addresses: &Addresses,
    metrics: &Metrics,
    next: impl FnOnce(Request<B>) -> N,
) -> Response {
    let (began, under_way) = (Instant::now(), metrics.begin());
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
    let caller = request.extensions().get::<Caller>().map(|caller| tracing::field::display(caller.0));
    let template = addresses.template(&path);
    let span = traces::request(&method, &path, template, &id, request.headers_mut());
    let mut response = match refusal(&request).or_else(|| content_coding(request.headers_mut()).err()) {
        Some(problem) => problem.closing().into_response(),
        None => next(request).instrument(span.clone()).await,
    };
    allow_options(&method, &mut response);
    let (mut response, code) = with_document(response, uuid);
    without_wrong_length(&method, &mut response);
    vary(&method, response.headers_mut());
    response.headers_mut().insert(REQUEST_ID, request_id(&id));
    traces::answered(&span, response.status());
    under_way.answered(&method, template, response.status(), code, began.elapsed());
    let status = response.status().as_u16();
    let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    if status >= 500 {
        tracing::warn!(request_id = id, %method, path, status, took_us, caller, by = by(&response), "request failed");
    } else {
        tracing::debug!(request_id = id, %method, path, status, took_us, caller, by = by(&response), "request");
    }
    response
}

/// Who asked, where that is known.
fn by(response: &Response) -> Option<&str> {
    response.extensions().get::<Arc<Grant>>().map(|grant| grant.who.as_str())
}

/// The answer to what hyper could not read as a request, and refused with this status.
pub fn unreadable(status: StatusCode) -> Option<Response<Vec<u8>>> {
    let problem = match status {
        StatusCode::URI_TOO_LONG => uri_too_long(),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => headers_too_large(),
        StatusCode::BAD_REQUEST => {
            Problem::new(Code::InvalidRequest, "What came cannot be read as a request (RFC 9112).")
        }
        _ => return None,
    };
    let id = Uuid::now_v7();
    let mut response = with_document_of(&problem, problem.clone().closing().into_response(), id);
    response.headers_mut().insert(REQUEST_ID, request_id(&id.to_string()));
    tracing::debug!(request_id = %id, status = status.as_u16(), "no request");
    Some(response)
}

fn uri_too_long() -> Problem {
    Problem::new(Code::UriTooLong, format!("An address has at most {URI_MAX} bytes."))
}

fn headers_too_large() -> Problem {
    let detail = format!("A request has at most {HEADERS_MAX} header fields, of {HEADER_BYTES_MAX} bytes in all.");
    Problem::new(Code::HeadersTooLarge, detail)
}

/// What is wrong with a request on any route.
pub fn refusal<B>(request: &Request<B>) -> Option<Problem> {
    let headers = request.headers();
    let header_bytes = |headers: &HeaderMap| -> usize {
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
    };
    if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > URI_MAX) {
        return Some(uri_too_long());
    }
    if headers.len() > HEADERS_MAX || header_bytes(headers) > HEADER_BYTES_MAX {
        return Some(headers_too_large());
    }
    if request.extensions().get::<TwoLengths>().is_some() {
        let detail =
            "A request says once how long its body is: by Content-Length or by Transfer-Encoding (RFC 9112 §6).";
        return Some(Problem::new(Code::InvalidRequest, detail));
    }
    if has_host(request) {
        return None;
    }
    Some(Problem::new(Code::InvalidRequest, "A request has one Host field, with a host in it (RFC 9112 §3.2)."))
}

/// Whether a request says which host it is for, once. In HTTP/2 `:authority` does, or `Host`, or both alike (RFC 9113
/// §8.3.1).
fn has_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let authority = request.uri().authority().filter(|_| request.version() == Version::HTTP_2);
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let same = |authority: &Authority| authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes());
            is_host(host.as_bytes()) && authority.is_none_or(same)
        }
        (None, _) => {
            request.version() < Version::HTTP_11 || authority.is_some_and(|host| is_host(host.as_str().as_bytes()))
        }
        (Some(_), Some(_)) => false,
    }
}

/// A host and its port, or nothing (RFC 9110 §7.2).
fn is_host(text: &[u8]) -> bool {
    text.is_empty() || (!text.contains(&b'@') && Authority::try_from(text).is_ok())
}

/// That the coding of the body is one that is read, and written as `body.rs` knows it: without capitals, and `gzip` for
/// `x-gzip` (RFC 9110 §8.4.1).
///
/// # Errors
/// `unsupported-media-type`
pub fn content_coding(headers: &mut HeaderMap) -> Result<(), Problem> {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    let known = match coding.as_bytes().to_ascii_lowercase().as_slice() {
        b"gzip" | b"x-gzip" => Some("gzip"),
        b"zstd" => Some("zstd"),
        b"identity" => Some("identity"),
        _ => None,
    };
    let Some(coding) = known.filter(|_| codings.next().is_none()) else {
        let detail = "Bodies are read plain, or with Content-Encoding gzip or zstd, not both.";
        return Err(Problem::new(Code::UnsupportedMediaType, detail)
            .header(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, zstd"))
            .header(ACCEPT_POST, JSON));
    };
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    Ok(())
}

/// What a cache may keep depends on what the client takes.
fn vary(method: &Method, headers: &mut HeaderMap) {
    let kept = headers.get(header::CACHE_CONTROL).is_none_or(|control| control != "no-store");
    if kept && matches!(*method, Method::GET | Method::HEAD) {
        headers.append(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    }
}

/// Every address answers OPTIONS; the router knows the other methods.
fn allow_options(method: &Method, response: &mut Response) {
    if let Some(allow) = response.headers_mut().get_mut(header::ALLOW) {
        let methods = allow.to_str().unwrap_or_default().split(',').map(str::trim).chain(["OPTIONS"]);
        let methods: Vec<_> = methods.filter(|method| !method.is_empty()).collect();
        *allow = HeaderValue::from_str(&methods.join(", ")).expect("method names are ASCII");
    }
    if method == Method::OPTIONS && response.status() == StatusCode::METHOD_NOT_ALLOWED {
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
}

/// Removes a length that is not that of the answer to GET: our 304, and HEAD of a stream, do not know it, and a 204 has
/// none (RFC 9110 §8.6).
fn without_wrong_length(method: &Method, response: &mut Response) {
    let bodyless = matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let headers = response.headers_mut();
    if bodyless || (method == Method::HEAD && headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0")) {
        headers.remove(header::CONTENT_LENGTH);
    }
}

/// Forgets an `Accept-Encoding` that refuses the plain form (`identity;q=0`, `*;q=0`). Where that leaves no coding of
/// ours, the compressing layer would turn the answer of an append that has been written into a 406.
pub fn without_refused_identity<B>(mut request: Request<B>) -> Request<B> {
    let refused = |(coding, weight): (String, f32)| {
        matches!(coding.as_str(), "identity" | "*") && weight.partial_cmp(&0.0) != Some(Ordering::Greater)
    };
    if weighted(request.headers(), &header::ACCEPT_ENCODING).any(refused) {
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    request
}

/// Gives a failed response its problem document: that of our handlers, or one for what the framework refused.
fn with_document(mut response: Response, id: Uuid) -> (Response, Option<Code>) {
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None => match of_framework(response.status()) {
            Some(problem) => problem,
            None => return (response, None),
        },
    };
    (with_document_of(&problem, response, id).map(Body::from), Some(problem.code()))
}

fn with_document_of(problem: &Problem, mut response: Response, id: Uuid) -> Response<Vec<u8>> {
    let document = problem.document(id);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(document.len()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let (mut parts, _) = response.into_parts();
    parts.status = problem.code().facts().0;
    Response::from_parts(parts, document)
}

fn of_framework(status: StatusCode) -> Option<Problem> {
    let (code, detail) = match status {
        StatusCode::NOT_FOUND => (Code::NotFound, "The addresses that there are stand in /openapi.json."),
        StatusCode::METHOD_NOT_ALLOWED => (Code::MethodNotAllowed, "The Allow header lists the methods that fit."),
        StatusCode::PAYLOAD_TOO_LARGE => (Code::PayloadTooLarge, "The body is over the limit."),
        status if status.is_server_error() => (Code::Internal, "The failure was logged under this request's id."),
        status if status.is_client_error() => (Code::InvalidRequest, "The request was refused."),
        _ => return None,
    };
    Some(Problem::new(code, detail))
}

fn request_id(id: &str) -> HeaderValue {
    HeaderValue::from_str(id).expect("its characters were checked")
}

fn is_request_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
