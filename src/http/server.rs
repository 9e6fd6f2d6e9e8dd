//! The accept loop: limits and timeouts that `axum::serve` does not have, and an orderly end.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::HttpBody, http::Request};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use pin_project_lite::pin_project;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use super::{
    App,
    caller::Caller,
    connection::{Busy, Phase, Watched},
    head::TwoLengths,
    metrics::Held,
    service::{Answers, admin_service, service},
};

/// Pause after accepting failed for want of descriptors: connections have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Most bytes of a connection that wait to be written, or of a head that wait to be read.
const BUFFER_MAX: usize = 64 * 1024;

/// How connections are treated.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Most connections at once; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// How long the head of a request may take, from its first byte.
    pub header_timeout: Duration,
    /// How long a connection is kept between requests, and a client may take no byte of its answer.
    pub idle_timeout: Duration,
    /// How long the service goes on, with `/readyz` answering 503, once it is to end: gateways need a moment to notice.
    pub drain_delay: Duration,
    /// How long requests under way may take to end, after that.
    pub drain_timeout: Duration,
    /// Gateways that are believed when they tell who called.
    pub trusted_proxies: Arc<[IpNet]>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            header_timeout: Duration::from_secs(10),
            // Longer than gateways keep theirs (60 s is common), so that it is never ours that closes under a request.
            idle_timeout: Duration::from_secs(75),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(8),
            trusted_proxies: Arc::default(),
        }
    }
}

/// Serves until the app's shutdown is told, then lets requests under way end.
pub async fn serve(listener: TcpListener, app: App, options: ServerOptions) {
    let shutdown = app.shutdown.clone();
    let closing = app.closing.clone();
    let _watching = app.access.clone().map(|access| AbortOnDropHandle::new(tokio::spawn(access.watch())));
    let connections = TaskTracker::new();
    let open = app.metrics.connections.clone();
    let accept = accept_all(&listener, service(app), &options, &closing, &connections, &open);
    let told = async {
        shutdown.cancelled().await;
        tokio::time::sleep(options.drain_delay).await;
    };
    tokio::select! {
        () = accept => {}
        () = told => {}
    }
    closing.cancel();
    // Whoever connects from now on is refused at once, and goes to another instance.
    drop(listener);
    info!(connections = connections.len(), "draining");
    connections.close();
    if tokio::time::timeout(options.drain_timeout, connections.wait()).await.is_err() {
        warn!(connections = connections.len(), "connections were still busy at the end of the drain");
    }
}

/// Serves what operators alone may reach, until it is dropped.
pub async fn serve_admin(listener: TcpListener, app: App, options: ServerOptions) {
    let open = app.metrics.connections.clone();
    accept_all(&listener, admin_service(app), &options, &CancellationToken::new(), &TaskTracker::new(), &open).await;
}

/// Accepts connections and serves each in a task of its own; never ends.
async fn accept_all(
    listener: &TcpListener,
    service: impl Answers<Incoming> + 'static,
    options: &ServerOptions,
    closing: &CancellationToken,
    connections: &TaskTracker,
    open: &Gauge,
) {
    let free = Arc::new(Semaphore::new(options.connections_max));
    loop {
        let permit = Arc::clone(&free).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = accept(listener).await;
        let connection = connection(stream, peer, service.clone(), options.clone(), closing.clone());
        let held = (permit, Held::of(open));
        connections.spawn(async move {
            connection.await;
            drop(held);
        });
    }
}

/// Serves one connection to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: impl Answers<Incoming>,
    options: ServerOptions,
    closing: CancellationToken,
) {
    let phase = Phase::default();
    let stream = Watched::new(stream, phase.clone(), options.header_timeout, options.idle_timeout);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (busy, service) = (phase.busy(), service.clone());
        if busy.has_two_lengths() {
            request.extensions_mut().insert(TwoLengths);
        }
        let caller = Caller::of(peer.ip(), request.headers(), &options.trusted_proxies);
        request.extensions_mut().insert(caller);
        let has_body = !request.body().is_end_stream();
        // hyper keeps room for this as long as the connection lives: of each feed, and of each idle connection.
        Box::pin(async move {
            let response = service.oneshot(request).await.unwrap_or_else(|never| match never {});
            if has_body && response.status().is_client_error() {
                busy.leaves_body_unread();
            }
            Ok::<_, Infallible>(response.map(|body| AtWork { body, _busy: busy }))
        })
    });
    let mut builder = http1::Builder::new();
    // For hyper the time between requests belongs to the head; the head itself is timed by `Watched`.
    builder.timer(TokioTimer::new()).header_read_timeout(options.idle_timeout.max(options.header_timeout));
    // What a feed may have on its way to a client that reads slowly.
    builder.max_buf_size(BUFFER_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small and complete: waiting to fill a packet only delays them.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) => {
                // Once, not at every attempt: whoever is short of descriptors may be short of disk for logs next.
                if !std::mem::replace(&mut told, true) {
                    warn!(%error, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

pin_project! {
    /// The body of an answer: the request is at work until it is dropped.
    struct AtWork<B> {
        #[pin]
        body: B,
        _busy: Busy,
    }
}

impl<B: HttpBody> HttpBody for AtWork<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
