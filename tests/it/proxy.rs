//! A proxy between the service and Redis that spoils one call of a function.

use std::sync::Arc;

use redis::{ConnectionInfo, IntoConnectionInfo as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{Mutex, oneshot},
};
use tokio_util::task::AbortOnDropHandle;

use crate::app::TestRedis;

/// What becomes of the next call. In every case the service sees its connection break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never reaches Redis.
    RequestLost,
    /// Redis carries it out, the reply goes astray.
    ReplyLost,
    /// The same, and the service learns of it when the call is dropped.
    ReplyHeld,
    /// It reaches Redis when it is told to.
    RequestLate,
}

type Armed = Arc<Mutex<Option<(&'static str, Fault, oneshot::Sender<Late>)>>>;

/// A call that was held, on its connection.
pub struct Late {
    request: Vec<u8>,
    redis: UnixStream,
    _client: Option<TcpStream>,
}

impl Late {
    /// Lets Redis carry it out, and gives its reply.
    pub async fn arrive(mut self) -> String {
        self.redis.write_all(&self.request).await.unwrap();
        read(&mut self.redis).await.map(|reply| String::from_utf8_lossy(&reply).into_owned()).unwrap()
    }
}

pub struct Proxy {
    address: String,
    armed: Armed,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    pub async fn start(redis: &TestRedis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("redis://{}", listener.local_addr().unwrap());
        let socket = redis.data.path().join("redis.sock");
        let armed = Armed::default();
        let arm = Arc::clone(&armed);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let redis = UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(relay(client, redis, Arc::clone(&arm)));
            }
        });
        Self { address, armed, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn address(&self) -> ConnectionInfo {
        self.address.as_str().into_connection_info().unwrap()
    }

    /// Spoils the next append. The receiver gets it where it is held or late, and is closed where it is lost.
    pub async fn spoil_next(&self, fault: Fault) -> oneshot::Receiver<Late> {
        self.spoil("es_append", fault).await
    }

    /// Spoils the next call of a function.
    pub async fn spoil(&self, function: &'static str, fault: Fault) -> oneshot::Receiver<Late> {
        let (sender, receiver) = oneshot::channel();
        *self.armed.lock().await = Some((function, fault, sender));
        receiver
    }
}

async fn relay(mut client: TcpStream, mut redis: UnixStream, armed: Armed) {
    loop {
        tokio::select! {
            request = read(&mut client) => {
                let Some(request) = request else { return };
                let calls = |function: &str| request.windows(function.len()).any(|bytes| bytes == function.as_bytes());
                let spoil = armed.lock().await.take_if(|(function, ..)| calls(function));
                match spoil.map(|(_, fault, sender)| (fault, sender)) {
                    None => redis.write_all(&request).await.unwrap(),
                    Some((Fault::RequestLost, _)) => return,
                    Some((Fault::ReplyLost, _)) => {
                        redis.write_all(&request).await.unwrap();
                        read(&mut redis).await;
                        return;
                    }
                    Some((Fault::ReplyHeld, sender)) => {
                        redis.write_all(&request).await.unwrap();
                        read(&mut redis).await;
                        let _ = sender.send(Late { request, redis, _client: Some(client) });
                        return;
                    }
                    Some((Fault::RequestLate, sender)) => {
                        let _ = sender.send(Late { request, redis, _client: None });
                        return;
                    }
                }
            }
            reply = read(&mut redis) => {
                let Some(reply) = reply else { return };
                if client.write_all(&reply).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What there is to read; `None` at the end.
pub async fn read(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 64 * 1024];
    let count = from.read(&mut bytes).await.unwrap_or(0);
    bytes.truncate(count);
    (count > 0).then_some(bytes)
}
