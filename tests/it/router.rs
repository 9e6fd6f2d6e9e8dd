//! A connection to a cluster for tests that know nothing of clusters: sends each command to where its key is, and those
//! without a key to all.

use std::sync::Arc;

use redis::{Cmd, Value, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

/// Slots of a cluster.
const SLOTS: usize = 16_384;

/// Takes connections of clients, and gives each connections of its own to all primaries. The slots are shared out equally.
pub struct Router {
    pub address: String,
    _accepting: AbortOnDropHandle<()>,
}

impl Router {
    pub async fn start(primaries: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("redis://{}", listener.local_addr().unwrap());
        let primaries = Arc::new(primaries);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(route(client, Arc::clone(&primaries)));
            }
        });
        Self { address, _accepting: AbortOnDropHandle::new(accepting) }
    }
}

async fn route(client: TcpStream, primaries: Arc<Vec<String>>) {
    let mut nodes = Vec::new();
    for url in primaries.iter() {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let client = redis::Client::open(url.as_str()).unwrap();
        nodes.push(client.get_multiplexed_async_connection_with_config(&config).await.unwrap());
    }
    let mut client = BufReader::new(client);
    while let Some(words) = read_command(&mut client).await {
        let mut reply = Vec::new();
        write_value(&ask(&mut nodes, &words).await, &mut reply);
        if client.write_all(&reply).await.is_err() {
            return;
        }
    }
}

async fn ask(nodes: &mut [MultiplexedConnection], words: &[Vec<u8>]) -> Value {
    let mut command = Cmd::new();
    for word in words {
        command.arg(word);
    }
    if let Some(key) = key(words) {
        let slot = usize::from(redis_slot(key));
        let count = nodes.len();
        let node = (0..count).find(|node| slot < SLOTS * (node + 1) / count).unwrap();
        return reply(&mut nodes[node], &command).await;
    }
    let mut replies = Vec::new();
    for node in nodes {
        replies.push(reply(node, &command).await);
    }
    if words[0].eq_ignore_ascii_case(b"KEYS") {
        let lists = replies.into_iter().flat_map(|reply| match reply {
            Value::Array(keys) => keys,
            other => vec![other],
        });
        return Value::Array(lists.collect());
    }
    replies.swap_remove(0)
}

async fn reply(node: &mut MultiplexedConnection, command: &Cmd) -> Value {
    let mut pipeline = redis::Pipeline::with_capacity(1);
    pipeline.add_command(command.clone());
    node.send_packed_commands(&pipeline, 0, 1).await.unwrap().remove(0)
}

/// The first key of a command.
fn key(words: &[Vec<u8>]) -> Option<&[u8]> {
    let name = String::from_utf8_lossy(&words[0]).to_ascii_uppercase();
    let at = match name.as_str() {
        "PING" | "CLIENT" | "CONFIG" | "FUNCTION" | "SCRIPT" | "INFO" | "FLUSHALL" | "KEYS" | "DEBUG" | "TIME" => None,
        "FCALL" | "EVAL" => Some(3),
        "XINFO" | "XGROUP" | "OBJECT" | "MEMORY" => Some(2),
        "XREAD" | "XREADGROUP" => words.iter().position(|word| word.eq_ignore_ascii_case(b"STREAMS")).map(|at| at + 1),
        _ => Some(1),
    };
    words.get(at?).map(Vec::as_slice)
}

fn redis_slot(key: &[u8]) -> u16 {
    let key = String::from_utf8_lossy(key);
    let braces = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let tag = braces.filter(|tag| !tag.is_empty()).unwrap_or(&key);
    crc::Crc::<u16>::new(&crc::CRC_16_XMODEM).checksum(tag.as_bytes()) % 16_384
}

async fn read_command(client: &mut BufReader<TcpStream>) -> Option<Vec<Vec<u8>>> {
    let count = read_number(client, '*').await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; read_number(client, '$').await? + 2];
        client.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Some(words)
}

async fn read_number(client: &mut BufReader<TcpStream>, kind: char) -> Option<usize> {
    let mut line = String::new();
    client.read_line(&mut line).await.ok()?;
    line.trim_end().strip_prefix(kind)?.parse().ok()
}

fn write_value(value: &Value, to: &mut Vec<u8>) {
    match value {
        Value::Nil => to.extend(b"$-1\r\n"),
        Value::Int(number) => to.extend(format!(":{number}\r\n").bytes()),
        Value::Okay => to.extend(b"+OK\r\n"),
        Value::SimpleString(text) => to.extend(format!("+{text}\r\n").bytes()),
        Value::BulkString(bytes) => {
            to.extend(format!("${}\r\n", bytes.len()).bytes());
            to.extend(bytes);
            to.extend(b"\r\n");
        }
        Value::Array(values) => {
            to.extend(format!("*{}\r\n", values.len()).bytes());
            for value in values {
                write_value(value, to);
            }
        }
        Value::ServerError(error) => {
            to.extend(format!("-{} {}\r\n", error.code(), error.details().unwrap_or_default()).bytes());
        }
        other => panic!("no reply of RESP2: {other:?}"),
    }
}
