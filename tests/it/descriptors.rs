//! The service runs out of file descriptors.

use std::{fs, process::Stdio, time::Duration};

use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, net::TcpStream, process::Command};

use crate::{
    app::{TestRedis, eventually, free_address},
    input::GOOD,
};

const TOLD: &str = "cannot accept connections";

#[tokio::test]
async fn it_says_so_once_and_goes_on_when_there_are_some_again() {
    let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
    let log = folder.path().join("log");
    let address = free_address();
    let url = redis.url();
    let serve = "ulimit -n 64 && exec \"$0\" serve --log warn --listen \"$1\" --redis-url \"$2\"";
    let _service = Command::new("sh")
        .args(["-c", serve, env!("CARGO_BIN_EXE_streamkeep"), &address.to_string(), &url])
        .stderr(fs::File::create(&log).unwrap())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let append = async || {
        let request = reqwest::Client::new().post(format!("http://{address}/streams/order-1/events"));
        let answer = request.header("content-type", "application/json").body(GOOD).send().await;
        answer.map(|answer| answer.status().as_u16())
    };
    eventually("the service is ready", async || append().await.is_ok_and(|status| status == 201)).await;

    let told = || fs::read_to_string(&log).unwrap().matches(TOLD).count();
    let mut connections = Vec::new();
    for _ in 0..100 {
        connections.push(TcpStream::connect(address).await.unwrap());
    }
    eventually("it says so", async || told() == 1).await;
    // It tries again every 50 ms, and says no more: time is the condition here. (None of the heads is late yet.)
    let quiet = tokio::time::timeout(Duration::from_millis(500), connections[99].read(&mut [0; 1])).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(told(), 1);
    drop(connections);
    eventually("it goes on", async || append().await.is_ok_and(|status| status == 201)).await;
}
