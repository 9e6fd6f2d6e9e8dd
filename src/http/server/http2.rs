//! What hyper does not watch over in HTTP/2, where requests share a connection: a client that takes nothing of one answer,
//! and one that has nothing more to ask.

use std::{
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use hyper::{body::Frame, rt::Executor};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::connection::Client;

/// Most bytes of an answer that are handed on at once: h2 keeps whatever it is handed until the client makes room.
const PIECE_MAX: usize = 16 * 1024;

tokio::task_local! {
    static TAKEN: Taken;
}

/// Runs each request in a task of its own, and ends it where the client takes nothing of its answer: the others on the
/// connection go on.
#[derive(Clone)]
pub struct Tasks {
    /// How long a client may take nothing. It is noticed after twice as long at the latest.
    pub stall_timeout: Duration,
    /// Who it is.
    pub client: Client,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, request: F) {
        let (taken, timeout, client) = (Taken::default(), self.stall_timeout, self.client.clone());
        let stalled = taken.clone();
        tokio::spawn(TAKEN.scope(taken, async move {
            tokio::select! {
                biased;
                () = request => {}
                // A request that is dropped in the middle of its answer is reset.
                () = stalled.stalled(timeout) => {
                    client.stalls();
                    tracing::info!(client = %client.address, "reset: the client takes nothing of an answer");
                }
            }
        }));
    }
}

/// Since when a piece of an answer waits for the client to make room; `None` while the client waits for us.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Option<Instant>>>);

impl Taken {
    fn since(&self) -> Option<Instant> {
        *self.0.lock().expect("nobody panics while it is locked")
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().expect("nobody panics while it is locked") = since;
    }

    async fn stalled(&self, timeout: Duration) {
        loop {
            let before = self.since();
            sleep(timeout).await;
            if before.is_some() && before == self.since() {
                return;
            }
        }
    }
}

/// Hands an answer on in pieces, so that it is seen whether the client takes them, and little is kept for one that does
/// not.
pub struct Pieces {
    taken: Taken,
    rest: Bytes,
}

impl Pieces {
    /// For the request whose task this is; `None` in HTTP/1, where requests have none.
    pub fn of_task() -> Option<Self> {
        TAKEN.try_with(|taken| Self { taken: taken.clone(), rest: Bytes::new() }).ok()
    }

    /// Whether nothing is left of what was polled.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next piece of an answer whose frames `poll` gives.
    pub fn next<E>(
        &mut self,
        poll: impl FnOnce() -> Poll<Option<Result<Frame<Bytes>, E>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        if self.rest.is_empty() {
            match poll() {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                none => {
                    self.taken.set(None);
                    return none;
                }
            }
        }
        self.taken.set(Some(Instant::now()));
        let piece = self.rest.split_to(self.rest.len().min(PIECE_MAX));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

/// How many requests a connection of HTTP/2 has at work; `None` before its first, and in HTTP/1.
#[derive(Clone, Default)]
pub struct Requests(Arc<watch::Sender<Option<usize>>>);

/// One of them.
pub struct Shared(Requests);

impl Requests {
    /// One more, until the guard is dropped.
    pub fn begin(&self) -> Shared {
        self.0.send_modify(|count| *count = Some(count.unwrap_or(0) + 1));
        Shared(self.clone())
    }

    /// Waits until there has been none for this long.
    pub async fn idle(&self, timeout: Duration) {
        let mut count = self.0.subscribe();
        loop {
            let none = count.wait_for(|count| *count == Some(0)).await.map(drop);
            none.expect("the sender is held here");
            if tokio::time::timeout(timeout, count.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count = count.map(|count| count - 1));
    }
}
