//! Why Redis refuses a connection.

use std::{io, time::Duration};

use redis::{ConnectionAddr, RedisError, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpStream, UnixStream},
};

/// How long Redis may take to say it, and how much it may say.
const WAIT: Duration = Duration::from_secs(1);
const BYTES_MAX: u64 = 4096;

/// What Redis says to whoever connects and asks nothing. In protected mode, or with `maxclients` connections, it tells why it
/// refuses and closes; whoever asks at once, as redis-rs does, only finds that the connection broke.
pub(super) async fn of(addr: &ConnectionAddr) -> Option<RedisError> {
    let said = async {
        match addr {
            ConnectionAddr::Tcp(host, port) => first_words(TcpStream::connect((host.as_str(), *port)).await?).await,
            ConnectionAddr::Unix(path) => first_words(UnixStream::connect(path).await?).await,
            _ => Ok(Vec::new()),
        }
    };
    let said = tokio::time::timeout(WAIT, said).await.ok()?.ok()?;
    match redis::parse_redis_value(&said) {
        Ok(Value::ServerError(error)) => Some(error.into()),
        _ => None,
    }
}

async fn first_words(connection: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    connection.take(BYTES_MAX).read_to_end(&mut said).await?;
    Ok(said)
}
