//! Problem documents (RFC 9457). The one place where a failure gets its status.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::model::Error;

/// Where the pages stand that explain each type; the code follows.
const TYPE_BASE: &str = "https://streamkeep.dev/problems/";
/// The one type that is registered for everybody (draft-ietf-httpapi-ratelimit-headers-11 §6.1).
const TYPE_QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
/// What `Retry-After` says, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $status:ident $code:literal $title:literal $retry:ident;)*) => {
        /// Every kind of problem. The code is part of the contract and never changes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Status, code, title, and whether the same request may succeed later.
            #[must_use]
            pub fn facts(self) -> (StatusCode, &'static str, &'static str, bool) {
                match self { $(Self::$variant => (StatusCode::$status, $code, $title, codes!(@$retry)),)* }
            }
        }
    };
    (@retryable) => { true };
    (@final) => { false };
}

codes! {
    /// The body is no JSON, or not of the form asked for.
    InvalidJson = BAD_REQUEST "invalid-json" "The body is not the JSON that is expected here" final;
    /// A stream id outside the grammar.
    InvalidStreamId = BAD_REQUEST "invalid-stream-id" "The stream id breaks the rules" final;
    /// The name of a group outside the grammar.
    InvalidGroupName = BAD_REQUEST "invalid-group-name" "The name of the consumer group breaks the rules" final;
    /// A lease that is no token of ours.
    InvalidLease = BAD_REQUEST "invalid-lease" "A lease cannot be read" final;
    /// The path is no UTF-8.
    InvalidPath = BAD_REQUEST "invalid-path" "The path cannot be read" final;
    /// A query parameter or number that does not parse, is unknown or out of range.
    InvalidParameter = BAD_REQUEST "invalid-parameter" "A parameter cannot be used" final;
    /// `If-Match` or `If-None-Match` that does not parse, or both.
    InvalidPrecondition = BAD_REQUEST "invalid-precondition" "The condition cannot be read" final;
    /// Another header, or the request as such, breaks HTTP's rules or ours.
    InvalidRequest = BAD_REQUEST "invalid-request" "The request cannot be read" final;
    /// The deployment does not give the level of durability that was asked for.
    DurabilityUnsupported = BAD_REQUEST "durability-unsupported" "The level of durability is not given here" final;
    /// No credentials, or none that hold.
    Unauthorized = UNAUTHORIZED "unauthorized" "Credentials are needed" final;
    /// The credentials do not allow this.
    Forbidden = FORBIDDEN "forbidden" "The credentials do not allow this" final;
    /// No such route.
    NotFound = NOT_FOUND "not-found" "There is nothing at this address" final;
    /// No event was ever appended to the stream.
    StreamNotFound = NOT_FOUND "stream-not-found" "There is no such stream" final;
    /// The stream has no such event.
    EventNotFound = NOT_FOUND "event-not-found" "There is no such event" final;
    /// There is no consumer group of this name.
    GroupNotFound = NOT_FOUND "group-not-found" "There is no such consumer group" final;
    /// Another method would do.
    MethodNotAllowed = METHOD_NOT_ALLOWED "method-not-allowed" "The method does not fit this address" final;
    /// `Accept` names nothing that there is.
    NotAcceptable = NOT_ACCEPTABLE "not-acceptable" "The answer cannot be given in that form" final;
    /// The body did not arrive in time.
    RequestTimeout = REQUEST_TIMEOUT "request-timeout" "The request took too long to arrive" retryable;
    /// The stream is at another version.
    VersionConflict = CONFLICT "version-conflict" "The stream is at another version" final;
    /// Some ids are in the stream already, others are not.
    DuplicateEventId = CONFLICT "duplicate-event-id" "Part of the events is in the stream already" final;
    /// The group exists with another source, ordering or start.
    GroupExists = CONFLICT "group-exists" "The consumer group exists with other settings" final;
    /// None of the leases holds.
    LeaseLost = CONFLICT "lease-lost" "The leases do not hold any more" final;
    /// The cursor comes from another history.
    HistoryDiverged = CONFLICT "history-diverged" "The store's history is not that of the cursor" final;
    /// The stream is gone for ever.
    StreamDeleted = GONE "stream-deleted" "The stream was deleted" final;
    /// `If-Match` on a read that does not hold.
    PreconditionFailed = PRECONDITION_FAILED "precondition-failed" "The stream is at another version" final;
    /// Over a limit.
    PayloadTooLarge = PAYLOAD_TOO_LARGE "payload-too-large" "The request is larger than allowed" final;
    /// The address is over 8 KiB.
    UriTooLong = URI_TOO_LONG "uri-too-long" "The address is too long" final;
    /// Only JSON is read.
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" "The body is in a form that is not read here" final;
    /// An event breaks the rules.
    InvalidEvent = UNPROCESSABLE_ENTITY "invalid-event" "An event breaks the rules" final;
    /// A setting of a group out of range, or two that do not go together.
    InvalidGroup = UNPROCESSABLE_ENTITY "invalid-group" "The settings of the consumer group break the rules" final;
    /// JSON nested deeper than allowed.
    TooDeep = UNPROCESSABLE_ENTITY "too-deep" "The JSON is nested too deep" final;
    /// An id was used before with another type or other data.
    EventIdReused = UNPROCESSABLE_ENTITY "event-id-reused" "The event id belongs to another event" final;
    /// A key was used before with another body.
    IdempotencyKeyReused = UNPROCESSABLE_ENTITY "idempotency-key-reused" "The idempotency key belongs to another request" final;
    /// The service demands a condition on every append.
    PreconditionRequired = PRECONDITION_REQUIRED "precondition-required" "A condition is required" final;
    /// Too many header fields, or over 16 KiB of them.
    HeadersTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE "headers-too-large" "The header fields are too large" final;
    /// More requests than a caller may make.
    QuotaExceeded = TOO_MANY_REQUESTS "quota-exceeded" "The caller makes too many requests" retryable;
    /// A fault of the service.
    Internal = INTERNAL_SERVER_ERROR "internal" "The service failed" final;
    /// What stands in Redis was not written by Streamkeep.
    StorageCorrupt = INTERNAL_SERVER_ERROR "storage-corrupt" "The stored data cannot be read" final;
    /// Too many requests at once.
    Overloaded = SERVICE_UNAVAILABLE "overloaded" "The service has too much to do" retryable;
    /// Redis takes no writes.
    StorageUnavailable = SERVICE_UNAVAILABLE "storage-unavailable" "The storage is not available" retryable;
    /// Redis is busy with a long command.
    StorageBusy = SERVICE_UNAVAILABLE "storage-busy" "The storage is busy" retryable;
    /// Replicas are missing without which the level of durability cannot be reached.
    DurabilityUnavailable = SERVICE_UNAVAILABLE "durability-unavailable" "The level of durability cannot be reached just now" retryable;
    /// The service cannot do its work.
    NotReady = SERVICE_UNAVAILABLE "not-ready" "The service is not ready" retryable;
    /// The call left, and no answer came.
    OutcomeUnknown = GATEWAY_TIMEOUT "outcome-unknown" "It is not known whether the events were appended" retryable;
    /// The events are there, and fewer replicas than must have confirmed them.
    DurabilityUnconfirmed = GATEWAY_TIMEOUT "durability-unconfirmed" "The events are appended, and not confirmed by enough replicas" retryable;
    /// Redis is at its memory limit.
    StorageFull = INSUFFICIENT_STORAGE "storage-full" "The storage is full" retryable;
}

impl Code {
    /// The `type` of the document.
    #[must_use]
    pub fn type_uri(self) -> String {
        match self {
            Self::QuotaExceeded => TYPE_QUOTA_EXCEEDED.to_owned(),
            _ => format!("{TYPE_BASE}{}", self.facts().1),
        }
    }
}

/// A part of the request that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// What is wrong with it.
    pub detail: String,
    /// Where it is: a JSON pointer as a fragment (RFC 6901 §6).
    #[schema(example = "#/events/0/type")]
    pub pointer: String,
}

/// A failure on its way to the client. The middleware in `request.rs` writes the document, for only there the request's
/// id is known.
#[derive(Clone, Debug)]
pub struct Problem {
    code: Code,
    detail: String,
    errors: Vec<FieldError>,
    members: Vec<(&'static str, String)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem of this kind; `detail` says what is wrong in this case, and what to do.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let headers = match code.facts().0 {
            StatusCode::SERVICE_UNAVAILABLE => vec![(header::RETRY_AFTER, RETRY_AFTER)],
            _ => Vec::new(),
        };
        Self { code, detail: detail.into(), errors: Vec::new(), members: Vec::new(), headers }
    }

    /// Names a part of the request as wrong.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        self.errors.push(FieldError { detail: detail.into(), pointer: pointer.into() });
        self
    }

    /// Adds a member of this type of problem; `json` is its value.
    #[must_use]
    pub fn with(mut self, name: &'static str, json: String) -> Self {
        self.members.push((name, json));
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Closes the connection: what is left of the request is not read.
    #[must_use]
    pub fn closing(self) -> Self {
        self.header(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// Its kind.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The document's bytes.
    #[must_use]
    pub fn document(&self, request: Uuid) -> Vec<u8> {
        let (status, code, title, retryable) = self.code.facts();
        let document = ProblemDocument {
            r#type: self.code.type_uri(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone(),
            instance: request.urn().to_string(),
            code: code.to_owned(),
            retryable,
            errors: self.errors.clone(),
        };
        let mut json = serde_json::to_vec(&document).expect("plain members are JSON");
        json.pop();
        for (name, value) in &self.members {
            json.extend_from_slice(format!(",\"{name}\":{value}").as_bytes());
        }
        json.push(b'}');
        json
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.facts().0.into_response();
        response.headers_mut().extend(self.headers.iter().cloned());
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::WrongVersion { .. } => Code::VersionConflict,
            Error::StreamNotFound => Code::StreamNotFound,
            Error::EventNotFound => Code::EventNotFound,
            Error::StreamDeleted => Code::StreamDeleted,
            Error::EventIdReused { .. } => Code::EventIdReused,
            Error::DuplicateEventId { .. } => Code::DuplicateEventId,
            Error::HistoryDiverged { .. } => Code::HistoryDiverged,
            Error::GroupNotFound => Code::GroupNotFound,
            Error::GroupExists { .. } => Code::GroupExists,
            Error::OutcomeUnknown => Code::OutcomeUnknown,
            Error::DurabilityUnconfirmed { .. } => Code::DurabilityUnconfirmed,
            Error::DurabilityUnavailable(_) => Code::DurabilityUnavailable,
            Error::DurabilityUnsupported(_) => Code::DurabilityUnsupported,
            Error::Unavailable(_) | Error::StorageUnavailable(_) | Error::FunctionMissing => Code::StorageUnavailable,
            Error::StorageBusy => Code::StorageBusy,
            Error::StorageFull => Code::StorageFull,
            Error::Overloaded => Code::Overloaded,
            Error::Corrupt(_) => Code::StorageCorrupt,
        };
        // Redis' own words are for the log, not for clients.
        match &error {
            Error::Unavailable(why) | Error::StorageUnavailable(why) => tracing::warn!(why, "storage unavailable"),
            Error::Corrupt(why) => tracing::error!(why, "stored data cannot be read"),
            _ => {}
        }
        let problem = Self::new(code, advice(&error));
        match error {
            Error::HistoryDiverged { head } => problem.with("head", head.to_string()),
            _ => problem,
        }
    }
}

/// What happened, and what to do next.
fn advice(error: &Error) -> String {
    match error {
        Error::WrongVersion { current } => {
            format!("The stream is at version {current}. Read what is new, decide again, and append with that version.")
        }
        Error::StreamNotFound => "No event was ever appended to this stream.".into(),
        Error::EventNotFound => "The stream has no event with this version.".into(),
        Error::StreamDeleted => "The stream was deleted for ever and takes no further events.".into(),
        Error::EventIdReused { index } => {
            format!(
                "The id of event {index} stands in the stream with another type or other data. Give a new event a new id."
            )
        }
        Error::DuplicateEventId { index } => format!(
            "Event {index} is in the stream already, but not all events of this request are, or not in this order. \
             Send the same events as the first time, or only new ones."
        ),
        Error::HistoryDiverged { head } => format!(
            "The event that the cursor names is not there any more; the newest that there is has number {head}. \
             The store was restored or lost its last events: read again from the beginning."
        ),
        Error::OutcomeUnknown => {
            "The events were appended whole or not at all. Repeat the request with the same ids or key to settle it."
                .into()
        }
        Error::DurabilityUnconfirmed { first_version, version } => format!(
            "The events are in the stream as versions {first_version} to {version}, but replicas did not confirm them in \
             time; a failover may undo them. Repeat the request with the same ids or key: it answers 200 once they are \
             confirmed. Without ids or a key, do not repeat it."
        ),
        Error::DurabilityUnavailable(level) => format!(
            "Replicas are missing, or a disk's setting was changed, so that {level} cannot be reached just now; nothing was \
             written. Try again soon."
        ),
        Error::DurabilityUnsupported(level) => format!(
            "This deployment does not give {level}; nothing was written. The header of an answer says what it gives; ask \
             for that, or for nothing."
        ),
        Error::GroupNotFound => "There is no consumer group of this name; PUT creates one.".into(),
        Error::GroupExists { setting } => format!(
            "The group exists with another value of {setting}, which cannot be changed. Seek moves a group; for another source or \
             order delete it and create it anew, or choose another name."
        ),
        Error::Unavailable(_) | Error::FunctionMissing => {
            "The storage does not answer just now; nothing was written. Try again soon.".into()
        }
        Error::StorageUnavailable(_) => {
            "The storage takes no writes just now, reads go on; nothing was written. Try again soon.".into()
        }
        Error::StorageBusy => "The storage is busy with a long command; nothing was written. Try again soon.".into(),
        Error::StorageFull => {
            "The storage is at its memory limit; nothing was written. Reads go on; the operator has to make room."
                .into()
        }
        Error::Overloaded => "Too many requests are waiting; nothing was written. Try again soon.".into(),
        Error::Corrupt(_) => {
            "What is stored here was not written by Streamkeep; the operator has to look at it.".into()
        }
    }
}

/// A problem document as clients see it (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument {
    /// Names the type of problem, and where it is explained.
    #[schema(format = "uri", example = "https://streamkeep.dev/problems/version-conflict")]
    pub r#type: String,
    /// The type in a few words.
    pub title: String,
    /// The HTTP status.
    #[schema(value_type = i32, minimum = 400, maximum = 599, example = 409)]
    pub status: u16,
    /// This case, and what to do next.
    pub detail: String,
    /// This request: `urn:uuid:` and its id.
    #[schema(format = "uri", example = "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057")]
    pub instance: String,
    /// The last part of `type`, for programs to decide by.
    #[schema(example = "version-conflict")]
    pub code: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The parts of the request that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<FieldError>,
}
