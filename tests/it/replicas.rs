//! A primary with replicas, and addresses that can be led to another Redis: what a virtual IP does, or a Sentinel's answer.

use std::{path::PathBuf, sync::Arc};

use redis::{InfoDict, IntoConnectionInfo as _};
use streamkeep::redis_server::AppendFsync;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
    sync::Mutex,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::app::{TestRedis, eventually};

/// Where the connections go now, and what closes those that are open.
type Target = Arc<Mutex<(Option<PathBuf>, CancellationToken)>>;

/// An address that leads to a Redis, and may lead to another one later, or to none.
pub struct Address {
    host: String,
    port: u16,
    target: Target,
    _accepting: AbortOnDropHandle<()>,
}

impl Address {
    pub async fn of(redis: &TestRedis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target: Target = Arc::new(Mutex::new((Some(socket(redis)), CancellationToken::new())));
        let accepted = Arc::clone(&target);
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (path, closed) = accepted.lock().await.clone();
                let Some(path) = path else { continue };
                client.set_nodelay(true).unwrap();
                tokio::spawn(async move {
                    let Ok(mut redis) = UnixStream::connect(path).await else { return };
                    let relayed = copy_bidirectional(&mut client, &mut redis);
                    let _ = closed.run_until_cancelled(relayed).await;
                });
            }
        });
        let (host, port) = (address.ip().to_string(), address.port());
        Self { host, port, target, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn connection_info(&self) -> redis::ConnectionInfo {
        format!("redis://{}:{}", self.host, self.port).into_connection_info().unwrap()
    }

    /// Leads new connections there. Those that are open stay as they are.
    pub async fn lead_to(&self, redis: Option<&TestRedis>) {
        self.target.lock().await.0 = redis.map(socket);
    }

    /// Closes what is open.
    pub async fn cut(&self) {
        let closed = std::mem::take(&mut self.target.lock().await.1);
        closed.cancel();
    }
}

fn socket(redis: &TestRedis) -> PathBuf {
    redis.data.path().join("redis.sock")
}

/// A primary and its replicas, which follow it through an address.
pub struct Nodes {
    pub primary: Arc<TestRedis>,
    pub replicas: Vec<Arc<TestRedis>>,
    pub link: Address,
}

impl Nodes {
    pub async fn start(count: usize, fsync: AppendFsync) -> Self {
        let primary = start(fsync).await;
        let link = Address::of(&primary).await;
        let mut this = Self { primary, replicas: Vec::new(), link };
        for _ in 0..count {
            this.add(fsync).await;
        }
        this
    }

    /// A further replica, once it follows closely.
    pub async fn add(&mut self, fsync: AppendFsync) {
        let replica = start(fsync).await;
        follow(&replica, &self.link).await;
        self.replicas.push(replica);
        eventually("it follows", async || self.online().await == self.replicas.len()).await;
    }

    /// How many replicas are online, as the primary sees it.
    pub async fn online(&self) -> usize {
        let info = info(&self.primary).await;
        let replica = |number| info.get::<String>(&format!("slave{number}"));
        (0..)
            .map_while(replica)
            .filter(|replica| replica.contains("state=online,") && !replica.contains("lag=-1"))
            .count()
    }
}

async fn start(fsync: AppendFsync) -> Arc<TestRedis> {
    // A replica that comes is served at once, not with others that may come; and who ends waits for none to catch up.
    let at_once = [("repl-diskless-sync-delay", "0"), ("shutdown-timeout", "0")];
    TestRedis::start_with(|config| {
        config.append_fsync = fsync;
        config.settings.extend(at_once.map(|(name, value)| (name.to_owned(), value.to_owned())));
    })
    .await
}

/// Makes it a replica of what the address leads to.
pub async fn follow(replica: &TestRedis, address: &Address) {
    let mut command = redis::cmd("REPLICAOF");
    command.arg(&address.host).arg(address.port).exec_async(&mut replica.connection().await).await.unwrap();
}

/// Makes it a primary.
pub async fn promote(replica: &TestRedis) {
    let mut command = redis::cmd("REPLICAOF");
    command.arg("NO").arg("ONE").exec_async(&mut replica.connection().await).await.unwrap();
}

/// `INFO replication`
pub async fn info(redis: &TestRedis) -> InfoDict {
    redis::cmd("INFO").arg("replication").query_async(&mut redis.connection().await).await.unwrap()
}

/// How many events its log has.
pub async fn log_length(redis: &TestRedis) -> usize {
    redis::cmd("XLEN").arg("log").query_async(&mut redis.connection().await).await.unwrap()
}
