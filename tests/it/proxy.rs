//! A proxy between the service and Redis that can lose things on the way.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use redis::{ConnectionInfo, IntoConnectionInfo as _};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::app::TestRedis;

/// Passes everything on, until told otherwise.
pub struct Proxy {
    folder: TempDir,
    lose: Arc<Lose>,
    cut: CancellationToken,
    _accepting: AbortOnDropHandle<()>,
}

/// What is to be lost: counted down by the connections as they lose it.
#[derive(Default)]
struct Lose {
    replies: AtomicUsize,
    requests: AtomicUsize,
}

impl Lose {
    fn take(count: &AtomicUsize) -> bool {
        count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok()
    }
}

impl Proxy {
    pub fn start(redis: &TestRedis) -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join("p.sock")).unwrap();
        let behind = redis.data.path().join("redis.sock");
        let (lose, cut) = (Arc::new(Lose::default()), CancellationToken::new());
        let (losing, cutting) = (Arc::clone(&lose), cut.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((front, _)) = listener.accept().await {
                tokio::spawn(carry(front, behind.clone(), Arc::clone(&losing), cutting.clone()));
            }
        });
        Self { folder, lose, cut, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn address(&self) -> ConnectionInfo {
        format!("redis+unix://{}/p.sock", self.folder.path().display()).into_connection_info().unwrap()
    }

    /// The next calls of a function are carried out, their replies lost, and their connections closed.
    pub fn lose_replies(&self, count: usize) {
        self.lose.replies.store(count, Ordering::Release);
    }

    /// The next calls of a function are lost on the way to Redis, and their connections closed.
    pub fn lose_requests(&self, count: usize) {
        self.lose.requests.store(count, Ordering::Release);
    }

    /// How many replies and requests are still to be lost.
    pub fn left(&self) -> (usize, usize) {
        (self.lose.replies.load(Ordering::Acquire), self.lose.requests.load(Ordering::Acquire))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

async fn carry(mut front: UnixStream, behind: PathBuf, lose: Arc<Lose>, cut: CancellationToken) {
    let Ok(mut back) = UnixStream::connect(behind).await else { return };
    let (mut upward, mut downward) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut loses_reply = false;
    loop {
        tokio::select! {
            () = cut.cancelled() => return,
            read = front.read(&mut upward) => {
                let Some(bytes) = read.ok().filter(|count| *count > 0).map(|count| &upward[..count]) else { return };
                if bytes.windows(5).any(|window| window == b"FCALL") {
                    if Lose::take(&lose.requests) {
                        return;
                    }
                    loses_reply = Lose::take(&lose.replies);
                }
                if back.write_all(bytes).await.is_err() { return }
            }
            read = back.read(&mut downward) => {
                let Some(bytes) = read.ok().filter(|count| *count > 0).map(|count| &downward[..count]) else { return };
                if loses_reply { return }
                if front.write_all(bytes).await.is_err() { return }
            }
        }
    }
}
