//! What a follower takes of the service's memory.

use std::fs;

use tempfile::TempDir;

use crate::{
    app::{TestRedis, free_address},
    feed::Feed,
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

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_takes_little_memory() {
    let (redis, address, folder) = (TestRedis::start().await, free_address(), TempDir::new().unwrap());
    let service = Service::start(serve(&redis, &address.to_string(), &[]), address, folder.path()).await;
    let follow = async || {
        let mut feed =
            Feed::open_at(&service.client, &format!("{}/events?after=end", service.url), None).await.unwrap();
        feed.until_caught_up().await;
        feed
    };
    let mut followers = Vec::new();
    // What is taken once for all, and by the first requests.
    for _ in 0..50 {
        followers.push(follow().await);
    }
    let before = memory(service.pid());
    for _ in 0..FOLLOWERS {
        followers.push(follow().await);
    }
    let each = memory(service.pid()).saturating_sub(before) / FOLLOWERS;
    println!("{each} bytes a follower");
    assert!(each > 1024 && each < MOST, "{each} bytes a follower");
}
