//! What requests cost, in figures that are the same on every machine: commands of Redis, and memory that is asked for. Both
//! are most of what can be made slower without being noticed. Where a bound breaks for a good reason, it moves; `make bench`
//! says what that costs.

use allocation_counter::{AllocationInfo, measure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::{Builder, Runtime},
};

use crate::app::TestApp;

/// Requests that are counted.
const REQUESTS: u64 = 200;

/// A client that asks for next to no memory.
struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Client {
    async fn connect(app: &TestApp) -> Self {
        Self { stream: TcpStream::connect(app.address()).await.unwrap(), input: Vec::with_capacity(256 * 1024) }
    }

    /// Sends a request and waits for all of the answer, which tells its length and is a success. Gives its body.
    async fn ask(&mut self, request: &[u8]) -> &str {
        self.stream.write_all(request).await.unwrap();
        self.input.clear();
        loop {
            assert!(self.stream.read_buf(&mut self.input).await.unwrap() > 0, "closed");
            let text = str::from_utf8(&self.input).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            assert!(head.starts_with("HTTP/1.1 20"), "{text}");
            let length = head.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                let from = head.len() + 4;
                return str::from_utf8(&self.input[from..]).unwrap();
            }
        }
    }
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn append() -> Vec<u8> {
    post("/streams/order-1/events", r#"{"events":[{"type":"placed","data":{"total":42}}]}"#)
}

/// Client and service on this thread alone, whose memory is counted.
fn start() -> (Runtime, TestApp, Client) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (app, client) = runtime.block_on(async {
        let app = TestApp::start(1).await;
        let client = Client::connect(&app).await;
        (app, client)
    });
    (runtime, app, client)
}

/// What a request asks for, the first ones aside: how many pieces, and how many bytes in all.
fn each(runtime: &Runtime, mut request: impl AsyncFnMut()) -> (u64, u64) {
    let mut some = |count| {
        measure(|| {
            runtime.block_on(async {
                for _ in 0..count {
                    request().await;
                }
            });
        })
    };
    some(20);
    let AllocationInfo { count_total, bytes_total, .. } = some(REQUESTS);
    let each = (count_total / REQUESTS, bytes_total / REQUESTS);
    println!("{} pieces, {} bytes", each.0, each.1);
    each
}

#[track_caller]
fn at_most((pieces, bytes): (u64, u64), most: (u64, u64)) {
    assert!(
        pieces <= most.0 && bytes <= most.1,
        "{pieces} pieces and {bytes} bytes, {} and {} at most",
        most.0,
        most.1
    );
    assert!(pieces * 2 > most.0 && bytes * 2 > most.1, "{pieces} pieces and {bytes} bytes: the bounds can be lower");
}

#[test]
fn an_append_asks_for_little_memory() {
    let (runtime, _app, mut client) = start();
    let request = append();
    let cost = each(&runtime, async || {
        client.ask(&request).await;
    });
    at_most(cost, (76, 23_000));
}

#[test]
fn a_page_asks_for_little_memory() {
    let (runtime, _app, mut client) = start();
    let append = append();
    runtime.block_on(async {
        for _ in 0..100 {
            client.ask(&append).await;
        }
    });
    let request = b"GET /streams/order-1?limit=100 HTTP/1.1\r\nHost: x\r\n\r\n";
    let cost = each(&runtime, async || {
        client.ask(request).await;
    });
    at_most(cost, (102, 165_000));
}

#[test]
fn a_turn_of_a_consumer_asks_for_little_memory() {
    let (runtime, app, mut client) = start();
    let (append, next) = (append(), b"GET /groups/mailer/next?consumer=ada HTTP/1.1\r\nHost: x\r\n\r\n");
    runtime.block_on(async {
        app.put("/groups/mailer", "{}").await.expect(201);
        for _ in 0..REQUESTS + 20 {
            client.ask(&append).await;
        }
    });
    let cost = each(&runtime, async || {
        let delivery = client.ask(next).await;
        let lease = delivery.split_once(r#""lease":""#).unwrap().1.split('"').next().unwrap();
        let ack = post("/groups/mailer/ack", &format!(r#"{{"leases":["{lease}"]}}"#));
        client.ask(&ack).await;
    });
    at_most(cost, (275, 76_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_is_few_commands_of_redis() {
    let app = TestApp::start(1).await;
    app.append("order-1", r#"{"events":[{"type":"placed","data":1}]}"#).await.expect(201);
    let before = app.redis.calls().await;
    for version in 1..=REQUESTS {
        let stream = format!("order-{}", version % 7);
        app.append(&stream, r#"{"events":[{"type":"placed","data":1}]}"#).await.expect(201);
    }
    let mut after = app.redis.calls().await;
    after.retain(|name, count| {
        *count -= before.get(name).copied().unwrap_or_default();
        // What looks at Redis now and then.
        *count >= REQUESTS / 2
    });
    let each = [("exists", 1), ("fcall", 1), ("time", 1), ("xadd", 2), ("xlen", 2)];
    assert_eq!(after, each.map(|(name, count)| (name.to_owned(), count * REQUESTS)).into());
}
