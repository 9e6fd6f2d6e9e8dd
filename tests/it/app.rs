//! The fixture: a Redis of one's own, and instances of the service on it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use reqwest::{Method, RequestBuilder, Response, StatusCode, header::HeaderValue};
use serde_json::Value;
use streamkeep::{
    http::{Access, App, AppState, Limits, RateLimit, ServerOptions, serve},
    model::Partitions,
    redis_server::{RedisServer, RedisServerConfig},
    store::{DurabilityConfig, Library, RedisAddress, RedisSecrets, Store, StoreConfig},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{cluster_set::Cluster, nodes::Node, router::Router};

/// Declares a test that runs with one and with four partitions, each on a Redis and a service of its own.
macro_rules! test_app {
    ($(#[$meta:meta])* async fn $name:ident($app:ident) $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn run($app: $crate::app::TestApp) $body

            $(#[$meta])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn partitions_1() {
                run($crate::app::TestApp::start(1).await).await;
            }

            $(#[$meta])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn partitions_4() {
                run($crate::app::TestApp::start(4).await).await;
            }
        }
    };
}

/// How long Redis may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A Redis in a folder of its own.
pub struct TestRedis {
    pub server: TestServer,
    pub data: TempDir,
}

/// What a store is in.
pub enum TestServer {
    /// One server, supervised.
    Own(RedisServer),
    /// Several, as Sentinel or a cluster has them; the test looks after them.
    Set(Box<RedisAddress>),
    /// A cluster, for a test that need not know; and what makes one server of it for those who look.
    Cluster(Box<Cluster>, Router),
    /// A primary that a sentinel watches, likewise.
    Sentinel { primary: Box<Node>, sentinel: Box<Node> },
}

impl TestServer {
    /// Where to connect.
    pub fn address(&self) -> RedisAddress {
        match self {
            Self::Own(server) => server.address().into(),
            Self::Set(address) => RedisAddress::clone(address),
            Self::Cluster(cluster, _) => cluster.redis().server.address(),
            Self::Sentinel { sentinel, .. } => {
                RedisAddress::parse(&sentinel_url(sentinel), &RedisSecrets::default()).unwrap()
            }
        }
    }

    /// The process of the one server; `None` while it is being started again.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Own(server) => server.pid(),
            Self::Set(_) | Self::Cluster(..) | Self::Sentinel { .. } => panic!("there are several"),
        }
    }
}

fn sentinel_url(sentinel: &Node) -> String {
    format!("redis+sentinel://{}/store", sentinel.address)
}

impl TestRedis {
    /// Starts one; `change` may set what is not the default. `STREAMKEEP_REDIS_SERVER` names the program to test on.
    pub async fn start_with(change: impl FnOnce(&mut RedisServerConfig)) -> Arc<Self> {
        let data = TempDir::new().unwrap();
        let mut config = RedisServerConfig::new(data.path());
        config.binary = std::env::var_os("STREAMKEEP_REDIS_SERVER").map(Into::into);
        change(&mut config);
        let started = tokio::task::spawn_blocking(move || RedisServer::start(&config)).await.unwrap();
        Arc::new(Self { server: TestServer::Own(started.unwrap()), data })
    }

    /// A cluster of three primaries.
    pub async fn start_cluster() -> Arc<Self> {
        let cluster = Box::new(Cluster::start(3, false).await);
        for server in &cluster.servers {
            server.ask::<()>("CONFIG SET appendfsync always").await;
        }
        let router = Router::start(cluster.servers.iter().map(Node::url).collect()).await;
        Arc::new(Self { server: TestServer::Cluster(cluster, router), data: TempDir::new().unwrap() })
    }

    /// A primary that a sentinel watches.
    pub async fn start_sentinel() -> Arc<Self> {
        let settings = [("appendfsync", "always"), ("maxmemory-policy", "noeviction")];
        let primary = Box::new(Node::start(&settings).await);
        let of = format!("{} {}", primary.address.ip(), primary.address.port());
        let sentinel = Node::start_sentinel(free_address(), &format!("sentinel monitor store {of} 1\n")).await;
        let server = TestServer::Sentinel { primary, sentinel: Box::new(sentinel) };
        Arc::new(Self { server, data: TempDir::new().unwrap() })
    }

    /// Several servers, which the test looks after.
    pub fn of_set(address: &str) -> Arc<Self> {
        let address = RedisAddress::parse(address, &RedisSecrets::default()).unwrap();
        Arc::new(Self { server: TestServer::Set(Box::new(address)), data: TempDir::new().unwrap() })
    }

    pub async fn start() -> Arc<Self> {
        Self::start_with(|_| {}).await
    }

    /// Its address, for the program.
    pub fn url(&self) -> String {
        match &self.server {
            TestServer::Cluster(cluster, _) => cluster.url(),
            TestServer::Sentinel { sentinel, .. } => sentinel_url(sentinel),
            _ => format!("redis+unix://{}", self.data.path().join("redis.sock").display()),
        }
    }

    /// A plain connection, as a client has it that knows nothing of Streamkeep.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = match &self.server {
            TestServer::Own(server) => redis::Client::open(server.address()).unwrap(),
            TestServer::Set(_) => panic!("which of them?"),
            TestServer::Cluster(_, router) => redis::Client::open(router.address.as_str()).unwrap(),
            TestServer::Sentinel { primary, .. } => redis::Client::open(primary.url()).unwrap(),
        };
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    /// How often each command was called, by functions too (`INFO commandstats`).
    pub async fn calls(&self) -> BTreeMap<String, u64> {
        let mut redis = self.connection().await;
        let text: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.unwrap();
        calls_in(&text)
    }

    /// The same for one command.
    pub async fn calls_of(&self, command: &str) -> u64 {
        self.calls().await.remove(command).unwrap_or_default()
    }

    /// How many clients are connected, this one among them.
    pub async fn clients(&self) -> u64 {
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("clients").query_async(&mut self.connection().await).await.unwrap();
        info.get("connected_clients").unwrap()
    }

    /// Sends a signal, such as `KILL`, to the server's process.
    pub fn signal(&self, name: &str) {
        let pid = self.server.pid().expect("the server runs").to_string();
        let status = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(status.success());
    }
}

/// How often each command was called, as `INFO commandstats` says.
pub fn calls_in(commandstats: &str) -> BTreeMap<String, u64> {
    let count = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    commandstats.lines().filter_map(count).collect()
}

/// What a test may set.
pub struct TestConfig {
    pub store: StoreConfig,
    pub limits: Limits,
    pub server: ServerOptions,
    pub require_condition: bool,
    pub cache_max_age: Duration,
    pub group_idle: Duration,
    pub base_path: String,
    pub cors_origins: Vec<HeaderValue>,
    /// Where it listens; at port 0, on any that is free.
    pub listen: String,
    pub access: Option<Arc<Access>>,
    pub rate_limits: Vec<RateLimit>,
    /// What asks it.
    pub client: reqwest::ClientBuilder,
}

/// An instance of the service.
pub struct TestApp {
    pub redis: Arc<TestRedis>,
    pub url: String,
    pub client: reqwest::Client,
    pub store: Store,
    pub shutdown: CancellationToken,
    pub served: AbortOnDropHandle<()>,
}

impl TestApp {
    /// The service with this number of partitions, on a Redis of its own. With `STREAMKEEP_TEST_CLUSTER` set, several
    /// partitions are spread over a cluster of its own; with `STREAMKEEP_TEST_SENTINEL`, a sentinel tells where it is.
    pub async fn start(partitions: u16) -> Self {
        let set = |name| std::env::var_os(name).is_some();
        let redis = if partitions > 1 && set("STREAMKEEP_TEST_CLUSTER") {
            TestRedis::start_cluster().await
        } else if set("STREAMKEEP_TEST_SENTINEL") {
            TestRedis::start_sentinel().await
        } else {
            TestRedis::start().await
        };
        Self::start_on(redis, partitions).await
    }

    /// A further instance on a Redis that is there.
    pub async fn start_on(redis: Arc<TestRedis>, partitions: u16) -> Self {
        Self::start_with(redis, partitions, |_| {}).await
    }

    /// How the store on a Redis is used.
    pub fn store_config(redis: &TestRedis, partitions: u16) -> StoreConfig {
        StoreConfig {
            address: redis.server.address(),
            namespace: String::new(),
            partitions: Partitions::new(partitions).unwrap(),
            writers: 2,
            queued_max: 10_000,
            // Longer than users have it: machines that run tests are busy, and their disks slow.
            timeout: PATIENCE,
            migrate: true,
            durability: DurabilityConfig::default(),
            library: Library::default(),
        }
    }

    /// As [`TestApp::start_on`]; `change` may set what is not the default.
    pub async fn start_with(redis: Arc<TestRedis>, partitions: u16, change: impl FnOnce(&mut TestConfig)) -> Self {
        let mut config = TestConfig {
            store: Self::store_config(&redis, partitions),
            limits: Limits::default(),
            server: ServerOptions::default(),
            require_condition: false,
            cache_max_age: Duration::ZERO,
            group_idle: Duration::from_hours(24),
            base_path: String::new(),
            cors_origins: Vec::new(),
            listen: "127.0.0.1:0".to_owned(),
            access: None,
            rate_limits: Vec::new(),
            client: reqwest::Client::builder(),
        };
        change(&mut config);
        let TestConfig {
            store,
            limits,
            server,
            require_condition,
            cache_max_age,
            group_idle,
            base_path,
            cors_origins,
            listen,
            access,
            rate_limits,
            client,
        } = config;
        let store = Store::open(store).await.unwrap();
        let shutdown = CancellationToken::new();
        let (store_too, stop) = (store.clone(), shutdown.clone());
        let state = AppState {
            store: store_too,
            limits,
            require_condition,
            cache_max_age,
            group_idle,
            base_path,
            cors_origins,
            access,
            rate_limits,
            shutdown: stop,
            metrics_here: true,
        };
        let listener = TcpListener::bind(listen).await.unwrap();
        let scheme = if server.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let served: JoinHandle<()> = tokio::spawn(serve(listener, App::new(state), server));
        let client = client.no_proxy().build().unwrap();
        Self { redis, url, client, store, shutdown, served: AbortOnDropHandle::new(served) }
    }

    /// `host:port`, for raw sockets.
    pub fn address(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub async fn head(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::HEAD, path)).await
    }

    /// An append without a condition.
    pub async fn append(&self, stream: &str, body: &str) -> Answer {
        self.append_with(stream, &[], body).await
    }

    /// An append with further headers.
    pub async fn append_with(&self, stream: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.post(&format!("/streams/{stream}/events"), headers, body).await
    }

    pub async fn put(&self, path: &str, body: &str) -> Answer {
        let request = self.request(Method::PUT, path).header("content-type", "application/json");
        Answer::of(request.body(body.to_owned())).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Answer::of(request.body(body.to_owned())).await
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(request: RequestBuilder) -> Self {
        let response: Response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, text: response.text().await.unwrap() }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// That this is a success with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    /// That this is a complete problem document with this status and code (RFC 9457).
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
        let last = problem["type"].as_str().unwrap().rsplit(['/', '#']).next();
        assert_eq!(last, Some(code), "{self:?}");
        assert!(problem["instance"].as_str().unwrap().starts_with("urn:uuid:"), "{self:?}");
        for member in ["title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        }
        assert!(problem["retryable"].is_boolean(), "{self:?}");
        self
    }
}

/// An address that nobody else takes meanwhile: what is started listens only later, and tests run in parallel. Linux has
/// sixteen million addresses of loopback.
pub fn free_address() -> SocketAddr {
    let mut random = fastrand::Rng::new();
    let host = if cfg!(target_os = "linux") {
        Ipv4Addr::new(127, random.u8(1..255), random.u8(..), random.u8(1..255))
    } else {
        Ipv4Addr::LOCALHOST
    };
    std::net::TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}

/// Waits until `condition` holds; fails after 20 seconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
