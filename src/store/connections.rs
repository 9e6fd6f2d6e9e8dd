//! The connections to Redis: shared ones for reads, exclusive ones from a pool, and new ones for the writers.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, Pipeline, RedisError, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpStream, UnixStream},
};
use tracing::Instrument as _;

use crate::{
    model::Error,
    store::{
        errors::{self, StartError},
        metrics::{StoreMetrics, operation},
    },
    telemetry::traces,
};

/// Shared connections for reads: enough that one busy core of Redis is the limit, not the connection's own task.
const SHARED: usize = 2;
/// Exclusive connections: migrations, loading and checks, none of them on the way of a request.
const EXCLUSIVE: usize = 4;
/// Pause before a read is repeated.
const REPEAT_PAUSE: Duration = Duration::from_millis(20);
/// How long Redis may take to say why it refuses a connection, and how much it may say.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);
const REFUSAL_BYTES_MAX: u64 = 4096;

/// Opens and keeps the connections to one Redis. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    client: Client,
    shared: Vec<ConnectionManager>,
    next: AtomicUsize,
    pool: Pool,
    timeout: Duration,
    metrics: StoreMetrics,
}

impl Connections {
    /// Connections that give up on connecting and on a reply after `timeout`. Connects when first used.
    ///
    /// # Errors
    /// Where the address does not make sense.
    pub fn new(address: ConnectionInfo, timeout: Duration) -> Result<Self, StartError> {
        let client = Client::open(address.clone())?;
        let manager = Manager::new_with_config(address, connection_config(timeout))?;
        let pool = Pool::builder(manager)
            .max_size(EXCLUSIVE)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(timeout))
            .create_timeout(Some(timeout))
            .recycle_timeout(Some(timeout))
            .build()
            .map_err(|error| RedisError::from((redis::ErrorKind::Client, "pool", error.to_string())))?;
        let manager_config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_number_of_retries(2)
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(500));
        let shared = (0..SHARED)
            .map(|_| ConnectionManager::new_lazy_with_config(client.clone(), manager_config.clone()))
            .collect::<redis::RedisResult<_>>()?;
        let metrics = StoreMetrics::default();
        Ok(Self(Arc::new(Inner { client, shared, next: AtomicUsize::new(0), pool, timeout, metrics })))
    }

    /// A connection of one's own, given back when dropped. Costs a round trip (deadpool asks whether it still lives).
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses, or all are in use for longer than the timeout.
    pub async fn exclusive(&self) -> Result<deadpool_redis::Connection, PoolError> {
        match self.0.pool.get().await {
            Err(PoolError::Backend(error)) => {
                let said = if error.is_connection_dropped() { refusal(&self.0.client).await } else { None };
                Err(PoolError::Backend(said.unwrap_or(error)))
            }
            got => got,
        }
    }

    /// What is counted of round trips.
    #[must_use]
    pub fn metrics(&self) -> &StoreMetrics {
        &self.0.metrics
    }

    /// How many exclusive connections are in use, and idle, and how many callers wait for one.
    pub(super) fn pool(&self) -> (usize, usize, usize) {
        let status = self.0.pool.status();
        (status.size.saturating_sub(status.available), status.available, status.waiting)
    }

    /// A new connection for a task that keeps it.
    pub(super) async fn open(&self) -> redis::RedisResult<MultiplexedConnection> {
        self.0.client.get_multiplexed_async_connection_with_config(&connection_config(self.0.timeout)).await
    }

    /// A new connection for blocking commands, each of which may take as long as `patience`.
    pub(super) async fn open_blocking(&self, patience: Duration) -> redis::RedisResult<MultiplexedConnection> {
        let config = connection_config(self.0.timeout).set_response_timeout(Some(patience));
        self.0.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Sends commands that only read over a shared connection, in one round trip, and gives one reply for each. While
    /// Redis is away or starting they are repeated, which is harmless for reads, for as long as there is time.
    ///
    /// # Errors
    /// The first error reply, or that Redis does not answer within the timeout.
    pub(super) async fn read(&self, commands: &Pipeline) -> Result<Vec<Value>, Error> {
        let replies = self.ask(commands).await?;
        match replies.iter().find_map(|reply| if let Value::ServerError(error) = reply { Some(error) } else { None }) {
            Some(error) => Err(errors::from_reply(error)),
            None => Ok(replies),
        }
    }

    /// The same, with each error reply in its place among the others.
    ///
    /// # Errors
    /// Redis does not answer within the timeout.
    pub(super) async fn ask(&self, commands: &Pipeline) -> Result<Vec<Value>, Error> {
        let span = traces::round_trip(operation_of(commands), commands.len());
        self.exchange(commands).instrument(span).await
    }

    /// As `ask`, for a task of its own, of which no request's trace tells.
    pub(super) async fn exchange(&self, commands: &Pipeline) -> Result<Vec<Value>, Error> {
        let Inner { shared, next, timeout, metrics, .. } = &*self.0;
        let began = Instant::now();
        let mut connection = shared[next.fetch_add(1, Ordering::Relaxed) % shared.len()].clone();
        let calls = async {
            loop {
                match connection.req_packed_commands(commands, 0, commands.len()).await {
                    Err(error) if error.code().is_none() => tokio::time::sleep(REPEAT_PAUSE).await,
                    Ok(replies) if replies.iter().any(is_loading) => tokio::time::sleep(REPEAT_PAUSE).await,
                    answered => return answered,
                }
            }
        };
        let replies = tokio::time::timeout(*timeout, calls).await;
        metrics.round_trip(operation_of(commands), began.elapsed(), matches!(replies, Ok(Ok(_))));
        match replies {
            Ok(replies) => replies.map_err(|error| errors::from_call(&error)),
            Err(_) => Err(Error::Unavailable("no answer in time".to_owned())),
        }
    }
}

fn operation_of(commands: &Pipeline) -> &'static str {
    commands.cmd_iter().next().map_or("other", operation)
}

fn is_loading(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "LOADING")
}

/// What Redis says to whoever connects and asks nothing. In protected mode, or with `maxclients` connections, it tells why it
/// refuses and closes; whoever asks at once, as redis-rs does, only finds that the connection broke.
async fn refusal(client: &Client) -> Option<RedisError> {
    let said = async {
        match client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) => first_words(TcpStream::connect((host.as_str(), *port)).await?).await,
            ConnectionAddr::Unix(path) => first_words(UnixStream::connect(path).await?).await,
            _ => Ok(Vec::new()),
        }
    };
    let said = tokio::time::timeout(REFUSAL_WAIT, said).await.ok()?.ok()?;
    match redis::parse_redis_value(&said) {
        Ok(Value::ServerError(error)) => Some(error.into()),
        _ => None,
    }
}

async fn first_words(connection: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    connection.take(REFUSAL_BYTES_MAX).read_to_end(&mut said).await?;
    Ok(said)
}

/// redis-rs gives up after 500 ms unless told otherwise; a slow fsync takes longer.
fn connection_config(timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout))
}
