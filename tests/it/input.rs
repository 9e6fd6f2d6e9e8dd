//! Hostile and mistaken input. Whatever comes in: the answer is a complete problem document or a closed connection,
//! never a 500; nothing is written; and the service goes on. One partition: input is refused before the store is asked.

use std::time::Duration;

use reqwest::{
    Method, RequestBuilder, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::app::{Answer, TestApp, TestConfig, TestRedis};

/// A body that would be appended.
pub const GOOD: &str = r#"{"events":[{"type":"placed","data":{"total":1}}]}"#;
/// Where the bad requests go. It never comes to be.
pub const VICTIM: &str = "/streams/victim-1/events";
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A service, and what is in it.
pub struct Input {
    pub app: TestApp,
    redis: redis::aio::MultiplexedConnection,
    keys: u64,
    /// Events of the witness.
    pub appended: u64,
}

impl Input {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut TestConfig)) -> Self {
        let app = TestApp::start_with(TestRedis::start().await, 1, change).await;
        app.append("witness-1", GOOD).await.expect(201);
        let redis = app.redis.connection().await;
        let mut input = Self { app, redis, keys: 0, appended: 1 };
        input.keys = input.keys().await;
        input
    }

    async fn keys(&mut self) -> u64 {
        redis::cmd("DBSIZE").query_async(&mut self.redis).await.unwrap()
    }

    /// That nothing was written, and that an append still works.
    pub async fn untouched(&mut self, what: &str) {
        assert_eq!(self.app.head("/streams/victim-1").await.status, StatusCode::NOT_FOUND, "after {what}");
        let witness = self.app.head("/streams/witness-1").await;
        assert_eq!(witness.header("etag"), format!("\"{}\"", self.appended), "after {what}");
        assert_eq!(self.keys().await, self.keys, "after {what}");
        let answer = self.app.append("witness-1", GOOD).await;
        assert_eq!(answer.status, StatusCode::CREATED, "after {what}");
        self.appended += 1;
    }

    /// Sends a bad request, and looks that it is refused with this problem and did no harm.
    pub async fn refused(&mut self, what: &str, request: RequestBuilder, status: u16, code: &str) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, Answer::of(request)).await.unwrap_or_else(|_| panic!("{what}"));
        assert_eq!(answer.status.as_u16(), status, "{what}: {answer:?}");
        self.untouched(what).await;
        answer.expect_problem(status, code)
    }

    /// Appends to the victim with this body, which is refused.
    pub async fn refused_body(&mut self, body: impl Into<Vec<u8>>, status: u16, code: &str) -> Answer {
        let body: Vec<u8> = body.into();
        let what = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let request = self.append().body(body);
        self.refused(&what, request, status, code).await
    }

    /// Appends to the victim with these headers, which are refused.
    pub async fn refused_headers(&mut self, headers: &[(&str, &str)], status: u16, code: &str) -> Answer {
        let request = headers.iter().fold(self.append().body(GOOD), |request, (name, value)| {
            request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
        });
        self.refused(&format!("{headers:?}"), request, status, code).await
    }

    /// Reads an address, which is refused.
    pub async fn refused_get(&mut self, path: &str, status: u16, code: &str) -> Answer {
        let request = self.app.request(Method::GET, path);
        self.refused(path, request, status, code).await
    }

    /// An append to the victim, without a body yet.
    pub fn append(&self) -> RequestBuilder {
        self.app.request(Method::POST, VICTIM).header("content-type", "application/json")
    }

    /// A connection of one's own.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.app.address()).await.unwrap()
    }

    /// Sends bytes, and reads what comes back until the service closes the connection, as it must.
    pub async fn exchange(&self, bytes: &[u8]) -> String {
        let mut connection = self.connect().await;
        // The service may answer and close while bytes are still on their way.
        let _ = connection.write_all(bytes).await;
        read_to_close(&mut connection).await
    }

    /// Sends bytes that are refused: with `status` and a problem document, or by closing the connection without an answer
    /// where that is allowed (`status` 0). One answer, then the connection is closed.
    pub async fn refused_bytes(&mut self, bytes: &[u8], status: u16) -> String {
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let text = self.exchange(bytes).await;
        if status == 0 && text.is_empty() {
            self.untouched(&what).await;
            return text;
        }
        let answer = parse_answer(&text);
        let wanted = if status == 0 { 400 } else { status };
        assert_eq!(answer.status.as_u16(), wanted, "{what:?}: {text:?}");
        assert_eq!(text.matches("HTTP/1.").count(), 1, "{what:?}: {text:?}");
        if bytes.starts_with(b"HEAD ") && answer.text.is_empty() {
            self.untouched(&what).await;
            return text;
        }
        let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
        let answer = answer.expect_problem(wanted, &code);
        assert_eq!(answer.header("connection"), "close", "{what:?}: {text:?}");
        assert_eq!(answer.header("content-length"), answer.text.len().to_string(), "{what:?}: {text:?}");
        for name in ["x-request-id", "date"] {
            assert!(!answer.header(name).is_empty(), "{what:?}: {text:?}");
        }
        self.untouched(&what).await;
        text
    }

    /// The same, with a problem document of this code.
    pub async fn refused_line(&mut self, line: &str, status: u16, code: &str) -> Answer {
        let (method, target) = line.split_once(' ').unwrap();
        let bytes = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let text = self.refused_bytes(bytes.as_bytes(), status).await;
        parse_answer(&text).expect_problem(status, code)
    }
}

/// Reads until the other side closes, by the book or by a reset.
pub async fn read_to_close(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "still open after {:?}", String::from_utf8_lossy(&bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes the one answer of a closed connection apart.
pub fn parse_answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.parse::<HeaderName>().unwrap(), value.trim().parse::<HeaderValue>().unwrap())
    });
    let headers: HeaderMap = headers.collect();
    Answer { status: status.parse().unwrap(), headers, text: body.to_owned() }
}
