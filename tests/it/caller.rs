//! Whose address the log tells, directly and behind gateways.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command},
    sync::Arc,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    app::{TestRedis, eventually},
    gateway::{BASE, Gateway},
};

/// The program `streamkeep serve`, with a log of every request.
struct Service {
    child: Child,
    log: PathBuf,
    /// `host:port`
    address: String,
    _redis: Arc<TestRedis>,
    _folder: TempDir,
}

impl Service {
    async fn start(trusted: &[&str]) -> Self {
        let (redis, folder) = (TestRedis::start().await, TempDir::new().unwrap());
        let log = folder.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_streamkeep"))
            .args(["serve", "--listen", "127.0.0.1:0", "--base-path", BASE, "--log", "streamkeep=debug"])
            .args(["--log-format", "json", "--redis-url"])
            .arg(redis.url())
            .args(trusted)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut service = Self { child, log, address: String::new(), _redis: redis, _folder: folder };
        let line = service.line("message", "ready").await;
        line["listen"].as_str().unwrap().clone_into(&mut service.address);
        service
    }

    /// The line of the log that has this.
    async fn line(&self, member: &str, value: &str) -> Value {
        let mut found = Value::Null;
        eventually("the line is in the log", async || {
            let log = fs::read_to_string(&self.log).unwrap();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let line = lines.map(|mut line| line["fields"].take()).find(|fields| fields[member] == value);
            line.map(|line| found = line).is_some()
        })
        .await;
        found
    }

    /// The caller of a request from `from` with such headers, as the log tells it.
    async fn caller(&self, url: &str, from: &str, headers: &[(&str, &str)]) -> String {
        let from: std::net::IpAddr = from.parse().unwrap();
        let client = reqwest::Client::builder().no_proxy().local_address(from).build().unwrap();
        let id = fastrand::u64(..).to_string();
        let request = client.get(format!("{url}/streams/none-1")).header("x-request-id", &id);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        assert_eq!(request.send().await.unwrap().status(), 404);
        self.line("request_id", &id).await["caller"].as_str().unwrap().to_owned()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TOLD: &[(&str, &str)] = &[("x-forwarded-for", "203.0.113.9, 198.51.100.1")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_believed_by_default() {
    let service = Service::start(&[]).await;
    let url = format!("http://{}{BASE}", service.address);
    assert_eq!(service.caller(&url, "127.0.0.1", TOLD).await, "127.0.0.1");
    assert_eq!(service.caller(&url, "127.0.0.1", &[("forwarded", "for=198.51.100.1")]).await, "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_are_named_are_believed() {
    let service = Service::start(&["--trusted-proxies", "127.0.0.0/8,::1"]).await;
    let url = format!("http://{}{BASE}", service.address);
    assert_eq!(service.caller(&url, "127.0.0.1", &[]).await, "127.0.0.1");
    assert_eq!(service.caller(&url, "127.0.0.1", TOLD).await, "198.51.100.1");
    assert_eq!(service.caller(&url, "127.0.0.1", &[("forwarded", "for=\"[2001:db8::1]:80\"")]).await, "2001:db8::1");
    // What cannot be read is no reason to refuse a request.
    for text in ["unknown", ",,", "\"", "198.51.100.1.7", "\u{e9}"] {
        assert_eq!(service.caller(&url, "127.0.0.1", &[("x-forwarded-for", text)]).await, "127.0.0.1", "{text}");
        assert_eq!(service.caller(&url, "127.0.0.1", &[("forwarded", text)]).await, "127.0.0.1", "{text}");
    }
}

// Elsewhere there is but one address of loopback.
#[cfg(target_os = "linux")]
test_gateways! {
    /// Through a gateway the client is known, whatever it says of itself.
    async fn a_gateway_tells_who_called(gateway) {
        let service = Service::start(&["--trusted-proxies", "127.0.0.1"]).await;
        let gateway = Gateway::start(gateway, [&service.address; 2], |text| text).await;
        let made_up = [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=203.0.113.9")];
        for headers in [&[][..], &made_up[..], &made_up[..1], &made_up[1..]] {
            assert_eq!(service.caller(&gateway.url, "127.0.0.2", headers).await, "127.0.0.2", "{headers:?}");
        }
    }
}
