//! Requests to a running service, repeated while that can help. Only requests that are safe to repeat go through here:
//! reads, and appends whose events carry ids.

use std::{error::Error, io, time::Duration};

use bytes::Bytes;
use reqwest::{
    Certificate, ClientBuilder, Request, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::Failure;
use crate::{
    config::{Credentials, Service},
    http::Code,
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the service may be silent within a request, well over the default of `--redis-timeout-ms`.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections are left before the service closes them (`--idle-timeout-secs`, 75 by default).
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Upper bound of the first pause; doubled with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Upper bound of every pause, and the most that `Retry-After` can ask for.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What is shown of an answer that is no problem document, in characters.
const EXCERPT_MAX: usize = 200;

/// A service, and how long one request to it is repeated.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    patience: Duration,
}

/// A whole answer.
pub struct Answer {
    /// Its status; never one that a repeat might change.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why a request had no success.
pub enum Trouble {
    /// The same request may succeed a little later, without anybody doing anything.
    Passing {
        /// What is wrong, in one line.
        what: String,
        /// The pause that the service asks for.
        retry_after: Duration,
    },
    /// It will not.
    Lasting(Failure),
}

impl<F: Into<Failure>> From<F> for Trouble {
    fn from(failure: F) -> Self {
        Self::Lasting(failure.into())
    }
}

/// Pauses between attempts: with exponential backoff and full jitter, so that many clients do not come back at the same
/// moment.
pub struct Backoff {
    bound: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { bound: PAUSE_FIRST }
    }
}

impl From<Duration> for Backoff {
    /// Whose first pause has this bound.
    fn from(bound: Duration) -> Self {
        Self { bound: bound.min(PAUSE_MAX) }
    }
}

impl Backoff {
    /// The next pause, where at least `asked` is asked for.
    pub fn pause(&mut self, asked: Duration) -> Duration {
        let pause = asked.min(PAUSE_MAX) + self.bound.mul_f64(fastrand::f64());
        self.bound = (self.bound * 2).min(PAUSE_MAX);
        pause
    }
}

/// The members of a problem document (RFC 9457) that a person needs.
#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
    #[serde(default)]
    errors: Vec<FieldProblem>,
}

#[derive(Deserialize)]
struct FieldProblem {
    detail: String,
}

impl Client {
    /// A client of a service; nothing is sent yet.
    ///
    /// # Errors
    /// Where there is no address of a service, or the token cannot be sent.
    pub fn new(service: &Service, patience: Duration) -> Result<Self, Failure> {
        let Service { url, credentials } = service;
        let base = Url::parse(url).map_err(|error| format!("the address {url:?} cannot be used: {error}"))?;
        match base.scheme() {
            "http" | "https" => {}
            other => return Err(format!("the address {url:?} begins with {other}: instead of http: or https:").into()),
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(format!("the address {url:?} has a ? or # in it; give the part before it").into());
        }
        let http = builder(url, credentials)?
            .user_agent(concat!("streamkeep/", env!("CARGO_PKG_VERSION")))
            // A redirected POST may become a GET, whose 200 would look like an append that was already there.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build()
            .map_err(|error| format!("there is nothing to check certificates with: {}", cause(&error)))?;
        Ok(Self { http, base, patience })
    }

    /// The address of `path`, which begins with a slash, below that of the service.
    #[must_use]
    pub fn address(&self, path: &str) -> Url {
        let mut address = self.base.clone();
        address.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        address
    }

    /// Sends a request, again and again while the service cannot be reached or says that it is a matter of time.
    ///
    /// # Errors
    /// Where it still is so when the patience is over; the last request may end up to 30 s later.
    pub async fn send(&self, request: Request) -> Result<Answer, Failure> {
        let until = Instant::now() + self.patience;
        let mut backoff = Backoff::default();
        loop {
            let again = request.try_clone().expect("bodies are bytes in memory");
            let (what, retry_after) = match self.attempt(again).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Lasting(failure)) => return Err(failure),
                Err(Trouble::Passing { what, retry_after }) => (what, retry_after),
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("gave up after {} s: {what}", self.patience.as_secs()).into());
            }
            sleep(backoff.pause(retry_after).min(left)).await;
        }
    }

    /// Sends a request once.
    ///
    /// # Errors
    /// [`Trouble`]
    pub async fn attempt(&self, request: Request) -> Result<Answer, Trouble> {
        let response = self.http.execute(request).await.map_err(|error| self.trouble(error))?;
        self.whole(response).await
    }

    /// Sends a request once whose answer goes on: its body is still to be read.
    ///
    /// # Errors
    /// [`Trouble`], also for whatever is no 200.
    pub async fn open(&self, request: Request) -> Result<Response, Trouble> {
        let response = self.http.execute(request).await.map_err(|error| self.trouble(error))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let answer = self.whole(response).await?;
        Err(format!("the service refused with {}", answer.problem()).into())
    }

    async fn whole(&self, mut response: Response) -> Result<Answer, Trouble> {
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let body = response.bytes().await.map_err(|error| self.trouble(error))?;
        let answer = Answer { status, headers, body };
        if passes(status) {
            return Err(Trouble::Passing { what: answer.problem(), retry_after: answer.retry_after() });
        }
        Ok(answer)
    }

    fn trouble(&self, error: reqwest::Error) -> Trouble {
        if error.is_builder() {
            return error.into();
        }
        if is_untrusted(&error) {
            return format!("{} (--ca-cert names a CA to trust)", self.describe(&error)).into();
        }
        Trouble::Passing { what: self.describe(&error), retry_after: Duration::ZERO }
    }

    /// Why the service did not answer, or not to the end, in one line.
    pub fn describe(&self, error: &reqwest::Error) -> String {
        let what = if error.is_timeout() { "does not answer" } else { "cannot be reached" };
        // The origin only: the address may hold a password.
        format!("the service at {} {what}: {}", self.base.origin().ascii_serialization(), cause(error))
    }
}

/// What stands at the bottom: what stands above repeats that a request failed.
fn cause(error: &dyn Error) -> &dyn Error {
    error.source().map_or(error, cause)
}

/// Whether the service's certificate is not to be trusted, which a repeat does not change.
fn is_untrusted(error: &reqwest::Error) -> bool {
    fn tls<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
        error.downcast_ref().or_else(|| inner.and_then(tls))
    }
    tls(error).is_some_and(|error| matches!(error, rustls::Error::InvalidCertificate(_)))
}

/// Whom a client trusts, and what it shows.
///
/// # Errors
/// Where the token cannot be sent, or the file of CAs cannot be read.
pub fn builder(url: &str, credentials: &Credentials) -> Result<ClientBuilder, Failure> {
    let builder = reqwest::Client::builder().default_headers(authorization(credentials)?);
    let Some(path) = &credentials.ca_cert else {
        // Those of the system are looked for only where they are needed: a container may have none.
        let is_plain = url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:"));
        return Ok(if is_plain { builder.tls_certs_only([]) } else { builder });
    };
    let read = std::fs::read(path).map_err(Failure::from);
    let certs = read.and_then(|text| Ok(Certificate::from_pem_bundle(&text)?));
    let certs = certs.map_err(|error| format!("{}: {error}", path.display()))?;
    if certs.is_empty() {
        return Err(format!("{}: there is no certificate in it (PEM)", path.display()).into());
    }
    Ok(builder.tls_certs_only(certs))
}

/// The header that shows the token, if there is one.
///
/// # Errors
/// Where it has characters that no token has. It is not repeated: it may be a real one with something behind it.
fn authorization(credentials: &Credentials) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    if let Some(token) = &credentials.token {
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut value = value.map_err(|_| "the token has characters that no token has (STREAMKEEP_TOKEN, --token)")?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

/// Whether the same request may succeed a little later, without anybody doing anything.
fn passes(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            // What a gateway says while the service starts anew.
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

impl Answer {
    /// What a failed request was answered, in one line.
    #[must_use]
    pub fn problem(&self) -> String {
        let status = self.status.as_u16();
        if let Some(problem) = problem(&self.body) {
            return format!("{status} {problem}");
        }
        if let Some(location) = self.header(header::LOCATION).filter(|_| self.status.is_redirection()) {
            return format!("{status}: the service is at {location}");
        }
        let text = String::from_utf8_lossy(&self.body);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{status}: {}", text.chars().take(EXCERPT_MAX).collect::<String>())
    }

    /// Whether it is a problem document with this code.
    #[must_use]
    pub fn is(&self, code: Code) -> bool {
        serde_json::from_slice(&self.body).is_ok_and(|problem: Problem| problem.code == code.facts().1)
    }

    fn retry_after(&self) -> Duration {
        let seconds = self.header(header::RETRY_AFTER).and_then(|text| text.parse().ok());
        Duration::from_secs(seconds.unwrap_or(0))
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What a problem document says, in one line; `None` where it is none.
#[must_use]
pub fn problem(document: &[u8]) -> Option<String> {
    let Problem { code, detail, errors } = serde_json::from_slice(document).ok()?;
    // "Event 0: …" says less than the error of its member.
    let what = match errors.first() {
        Some(error) if code != "invalid-json" => &error.detail,
        _ => &detail,
    };
    Some(format!("{code}: {what}"))
}

/// What follows from an answer that should be JSON of ours and is not.
pub fn foreign(error: &serde_json::Error) -> Failure {
    format!("the answer is not that of Streamkeep; is --url right? ({error})").into()
}
