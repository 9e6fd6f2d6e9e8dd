//! What a follower takes of the service's memory.

use std::fs;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    app::{TestRedis, free_address},
    program::{Service, serve},
};

const FOLLOWERS: usize = 1_000;
/// Bytes for each. `make bench` states what the release build takes: 16 to 18 KiB; this one takes a little more.
const MOST: usize = 24 * 1024;

/// Bytes of a process that are in memory.
fn memory(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

async fn follow(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "GET /events?after=end HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut text, mut buffer) = (String::new(), [0; 1024]);
    while !text.contains("event: caught-up") {
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "the feed ended: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    stream
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_takes_little_memory() {
    let (redis, address, folder) = (TestRedis::start().await, free_address(), TempDir::new().unwrap());
    let listen = address.to_string();
    let service = Service::start(serve(&redis, &listen, &[]), address, folder.path()).await;
    let mut followers = Vec::new();
    // What is taken once for all, and by the first requests.
    for _ in 0..50 {
        followers.push(follow(&listen).await);
    }
    let before = memory(service.pid());
    for _ in 0..FOLLOWERS {
        followers.push(follow(&listen).await);
    }
    let each = memory(service.pid()).saturating_sub(before) / FOLLOWERS;
    println!("{each} bytes a follower");
    assert!(each > 1024 && each < MOST, "{each} bytes a follower");
}
