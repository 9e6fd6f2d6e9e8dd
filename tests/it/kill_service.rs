//! The service itself is killed, or ended, under load: its Redis goes with it, and nothing acknowledged is lost.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use fastrand::Rng;
use redis::{InfoDict, aio::MultiplexedConnection};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    app::{TestRedis, eventually, free_address},
    consumers::{Consumers, names_of, real_log},
    import_export::import,
    kill::{conclude, work},
    load::Load,
};

const ACKED: usize = 1_000;

/// The program `streamkeep serve` with a Redis of its own.
struct Service {
    child: Child,
    log: PathBuf,
    url: String,
}

impl Service {
    fn spawn(data: &TempDir, address: &str) -> Self {
        Self::spawn_with(data, address, &["--data", data.path().join("data").to_str().unwrap()])
    }

    fn spawn_with(data: &TempDir, address: &str, arguments: &[&str]) -> Self {
        let log = data.path().join(format!("{address}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_streamkeep"))
            .args(["serve", "--log", "warn", "--listen", address])
            .args(arguments)
            // Sockets of killed services stay in here.
            .env("TMPDIR", data.path())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log, url: format!("http://{address}") }
    }

    async fn start(data: &TempDir, address: &str) -> Self {
        Self::spawn(data, address).ready().await
    }

    async fn ready(mut self) -> Self {
        let ready = format!("{}/readyz", self.url);
        eventually("the service is ready", async || {
            assert!(self.child.try_wait().unwrap().is_none(), "{}", self.stderr());
            reqwest::get(&ready).await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        self
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut end = None;
        eventually("the service ends", async || {
            end = self.child.try_wait().unwrap();
            end.is_some()
        })
        .await;
        end.unwrap()
    }

    /// What it said.
    fn stderr(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Redis of the service, reached by the socket in the data folder.
async fn redis(data: &TempDir) -> MultiplexedConnection {
    let socket = data.path().join("data/redis.sock");
    let client = redis::Client::open(format!("redis+unix://{}", socket.display())).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn redis_pid(data: &TempDir) -> u32 {
    let info: InfoDict = redis::cmd("INFO").arg("server").query_async(&mut redis(data).await).await.unwrap();
    info.get("process_id").unwrap()
}

/// Whether a process runs; one that has ended but is not yet reaped does not.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, state)| !state.trim_start().starts_with(['Z', 'X']))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_service_is_killed() {
    let (data, address) = (TempDir::new().unwrap(), free_address().to_string());
    let mut service = Service::start(&data, &address).await;
    let load = Load::new(16, vec![service.url.clone()]);
    let mut rng = Rng::with_seed(load.seed);
    let writers = load.start();
    for _ in 0..20 {
        work(&load, ACKED, &mut rng).await;
        let pid = redis_pid(&data).await;
        assert!(runs(pid));
        service.child.kill().unwrap();
        let killed = Instant::now();
        service.ended().await;
        eventually("Redis ends with its service", async || !runs(pid)).await;
        println!("Redis ended {:?} after the service", killed.elapsed());
        service = Service::start(&data, &address).await;
    }
    work(&load, ACKED, &mut rng).await;
    conclude(&load, writers, &mut redis(&data).await).await;
    let names = fs::read_dir(data.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("streamkeep-")).count(), 1, "folders of killed services are gone");
}

/// Makes the group that consumers drain.
async fn create_group(url: &str) {
    let body = json!({"ordering": "stream", "lease_ms": 1000, "max_deliveries": 1_000});
    let answer = reqwest::Client::new().put(format!("{url}/groups/g")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 201);
}

/// That nothing is left to do.
async fn expect_drained(url: &str) {
    let status: Value = reqwest::get(format!("{url}/groups/g")).await.unwrap().json().await.unwrap();
    for member in ["lag", "in_flight", "waiting", "held", "stopped_streams", "parked"] {
        assert_eq!(status[member], 0, "{member}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_handed_everything_and_nothing_acked_again_when_the_service_is_killed() {
    let (data, address, log) = (TempDir::new().unwrap(), free_address().to_string(), real_log());
    let mut service = Service::start(&data, &address).await;
    create_group(&service.url).await;
    let (url, names) = (service.url.clone(), names_of(&log));
    let consumers = Consumers::start(&[&url], true);
    let mut kill = async || {
        for _ in 0..8 {
            consumers.settle_more(500).await;
            service.child.kill().unwrap();
            service.ended().await;
            service = Service::start(&data, &address).await;
        }
    };
    tokio::join!(import(&url, &log), kill());
    consumers.finish(&names).await;
    expect_drained(&url).await;
}

/// Redis lives on with all that it holds, and so does the other service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_handed_everything_when_one_of_two_services_is_killed() {
    let (data, log, redis) = (TempDir::new().unwrap(), real_log(), TestRedis::start().await);
    let addresses = [free_address().to_string(), free_address().to_string()];
    let redis_url = redis.url();
    let start = async |index: usize| {
        Service::spawn_with(&data, &addresses[index], &["--partitions", "4", "--redis-url", &redis_url]).ready().await
    };
    let mut services = [start(0).await, start(1).await];
    create_group(&services[0].url).await;
    let (urls, names) = (services.each_ref().map(|service| service.url.clone()), names_of(&log));
    let consumers = Consumers::start(&[&urls[0], &urls[1]], true);
    let mut kill = async || {
        for round in 0..8 {
            consumers.settle_more(500).await;
            services[round % 2].child.kill().unwrap();
            services[round % 2].ended().await;
            services[round % 2] = start(round % 2).await;
        }
    };
    tokio::join!(import(&urls[0], &log), kill());
    consumers.finish(&names).await;
    expect_drained(&urls[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_told_to_end_ends_what_is_under_way() {
    let (data, address) = (TempDir::new().unwrap(), free_address().to_string());
    let mut service = Service::start(&data, &address).await;
    let load = Load::new(16, vec![service.url.clone()]);
    let mut rng = Rng::with_seed(load.seed);
    let writers = load.start();
    for _ in 0..3 {
        work(&load, ACKED, &mut rng).await;
        let pid = redis_pid(&data).await;
        service.signal("TERM");
        let told = Instant::now();
        let status = service.ended().await;
        println!("ended in {:?}", told.elapsed());
        assert!(told.elapsed() < Duration::from_secs(10));
        assert!(status.success(), "{status} {}", service.stderr());
        assert!(!runs(pid));
        assert!(ended_cleanly(&data.path().join("data/redis.log")));
        service = Service::start(&data, &address).await;
    }
    work(&load, ACKED, &mut rng).await;
    conclude(&load, writers, &mut redis(&data).await).await;
}

/// Whether the last that Redis says in its log is goodbye.
fn ended_cleanly(log: &Path) -> bool {
    let text = fs::read_to_string(log).unwrap();
    text.lines().last().is_some_and(|line| line.contains("now ready to exit"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_in_use_is_refused() {
    let data = TempDir::new().unwrap();
    let first = Service::start(&data, &free_address().to_string()).await;
    let pid = redis_pid(&data).await;
    let mut second = Service::spawn(&data, &free_address().to_string());
    let status = second.ended().await;
    assert!(!status.success());
    let text = second.stderr();
    assert!(text.contains("in use by another service") && text.contains("data"), "{text}");
    assert_eq!(redis_pid(&data).await, pid, "the first goes on with its Redis");
    drop(first);
    eventually("Redis ends with its service", async || !runs(pid)).await;
}
