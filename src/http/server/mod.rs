//! The accept loop: limits and timeouts that `axum::serve` does not have, and an orderly end.

mod connection;
mod head;
mod http2;
mod tls;

pub use head::TwoLengths;
pub use tls::Tls;

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::{Method, Request, Version},
};
use futures::FutureExt as _;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use ipnet::IpNet;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{debug, info, warn};

use super::{
    App,
    caller::Caller,
    metrics::{Held, Metrics},
    service::{Answers, admin_service, service},
};
use connection::{Busy, Client, Phase, Watched};
use http2::{Pieces, Requests, Shared, Tasks};

/// Pause after accepting failed for want of descriptors: connections have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Most bytes of a connection that wait to be written, or of a head that wait to be read.
const BUFFER_MAX: usize = 64 * 1024;

/// Most requests at once on a connection of HTTP/2.
const REQUESTS_MAX: u32 = 128;
/// Most requests on one that the client takes back before they are begun ("rapid reset", CVE-2023-44487).
const TAKEN_BACK_MAX: usize = 20;
/// Bytes of bodies that a client of HTTP/2 may send before they are read: of one request, and of a connection.
const WINDOWS: (u32, u32) = (256 * 1024, 1024 * 1024);
/// How often it is asked on a connection of HTTP/2 whether the client is still there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// How connections are treated.
#[derive(Clone)]
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
    /// Speak TLS, with this certificate.
    pub tls: Option<Arc<Tls>>,
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
            tls: None,
        }
    }
}

/// Serves until the app's shutdown is told, then lets requests under way end.
pub async fn serve(listener: TcpListener, app: App, options: ServerOptions) {
    let shutdown = app.shutdown.clone();
    let closing = app.closing.clone();
    let _watching = app.access.clone().map(|access| AbortOnDropHandle::new(tokio::spawn(access.watch())));
    let _watching_too = options.tls.clone().map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.watch())));
    let connections = TaskTracker::new();
    let metrics = Arc::clone(&app.metrics);
    let accept = accept_all(&listener, service(app), &options, &closing, &connections, &metrics);
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

/// Serves what operators alone may reach, without TLS, until it is dropped.
pub async fn serve_admin(listener: TcpListener, app: App, options: ServerOptions) {
    let (metrics, options) = (Arc::clone(&app.metrics), ServerOptions { tls: None, ..options });
    accept_all(&listener, admin_service(app), &options, &CancellationToken::new(), &TaskTracker::new(), &metrics).await;
}

/// Accepts connections and serves each in a task of its own; never ends.
async fn accept_all(
    listener: &TcpListener,
    service: impl Answers<Incoming> + 'static,
    options: &ServerOptions,
    closing: &CancellationToken,
    connections: &TaskTracker,
    metrics: &Metrics,
) {
    let free = Arc::new(Semaphore::new(options.connections_max));
    loop {
        let permit = Arc::clone(&free).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = accept(listener).await;
        let client = Client { address: peer, stalled: metrics.stalled.clone() };
        let connection = connection(stream, client, service.clone(), options.clone(), closing.clone());
        let held = (permit, Held::of(&metrics.connections));
        // As an async block it would have room for the connection twice.
        connections.spawn(connection.map(|()| drop(held)));
    }
}

/// Serves one connection to its end.
async fn connection(
    stream: TcpStream,
    client: Client,
    service: impl Answers<Incoming> + 'static,
    options: ServerOptions,
    closing: CancellationToken,
) {
    let Some(tls) = options.tls.clone() else {
        let Some(version) = version(&stream, &options, &closing).await else { return };
        return serve_on(stream, version, client, service, options, closing).await;
    };
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(options.header_timeout, tls.accept(stream)) => accepted,
        () = closing.cancelled() => return,
    };
    match accepted {
        // In a box: what TLS needs is large, and connections without it are not to have room for it.
        Ok(Ok(stream)) => Box::pin(serve_on(stream, Version::HTTP_2, client, service, options, closing)).await,
        Ok(Err(error)) => debug!(client = %client.address, %error, "no TLS"),
        Err(_) => debug!(client = %client.address, "no TLS in time"),
    }
}

/// The latest version that a client without TLS may speak, by the first byte that it sends: connections of HTTP/2 begin
/// with `PRI` (RFC 9113 §3.4). Where hyper is to find out by itself, it keeps room for two heads as long as the connection
/// lives. `None` where no byte comes.
async fn version(stream: &TcpStream, options: &ServerOptions, closing: &CancellationToken) -> Option<Version> {
    let mut first = [0];
    tokio::select! {
        peeked = tokio::time::timeout(options.header_timeout, stream.peek(&mut first)) => peeked.ok()?.ok()?,
        () = closing.cancelled() => return None,
    };
    Some(if first == *b"P" { Version::HTTP_2 } else { Version::HTTP_11 })
}

/// Serves HTTP up to a version on a stream to its end.
async fn serve_on(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    version: Version,
    client: Client,
    service: impl Answers<Incoming> + 'static,
    options: ServerOptions,
    closing: CancellationToken,
) {
    let (phase, requests) = (Phase::default(), Requests::default());
    let peer = client.address;
    let (builder, idle) = (builder(version, &options, client.clone()), requests.clone());
    let stream = Watched::new(stream, client, phase.clone(), options.header_timeout, options.idle_timeout);
    let (idle_timeout, end_timeout) = (options.idle_timeout, options.header_timeout);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let work = Work::begin(&request, &phase, &requests);
        if work.has_two_lengths() {
            request.extensions_mut().insert(TwoLengths);
        }
        let caller = Caller::of(peer.ip(), request.headers(), &options.trusted_proxies);
        request.extensions_mut().insert(caller);
        let has_body = !request.body().is_end_stream();
        // hyper leaves out the body of an answer to HEAD in HTTP/1 alone.
        let without_body = request.version() == Version::HTTP_2 && request.method() == Method::HEAD;
        // hyper keeps room for this as long as the connection lives: of each feed, and of each idle connection. As an async
        // block it would have room for the request twice.
        Box::pin(service.clone().call(request).map(move |response| {
            let mut response = response.unwrap_or_else(|never| match never {});
            if without_body {
                *response.body_mut() = Body::empty();
            }
            if has_body && response.status().is_client_error() {
                work.leaves_body_unread();
            }
            Ok::<_, Infallible>(response.map(|body| AtWork { body, pieces: Pieces::of_task(), _work: work }))
        }))
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = idle.idle(idle_timeout) => {
            connection.as_mut().graceful_shutdown();
            // The client is asked whether it has noticed; it may be dead.
            tokio::time::timeout(end_timeout, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(error, "connection ended");
    }
}

/// How hyper treats a connection.
fn builder(version: Version, options: &ServerOptions, client: Client) -> Builder<Tasks> {
    let mut builder = Builder::new(Tasks { stall_timeout: options.idle_timeout, client });
    if version < Version::HTTP_2 {
        builder = builder.http1_only();
    }
    // For hyper the time between requests belongs to the head; the head itself is timed by `Watched`.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.idle_timeout.max(options.header_timeout));
    // What a feed may have on its way to a client that reads slowly.
    builder.http1().max_buf_size(BUFFER_MAX);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(PING.0).keep_alive_timeout(PING.1);
    http2.max_concurrent_streams(REQUESTS_MAX).max_pending_accept_reset_streams(TAKEN_BACK_MAX);
    http2.initial_stream_window_size(WINDOWS.0).initial_connection_window_size(WINDOWS.1);
    http2.max_send_buf_size(BUFFER_MAX / 4);
    // Above the limit of `request.rs`, which answers with a document.
    http2.max_header_list_size(64 * 1024);
    builder
}

/// A request at work on its connection.
enum Work {
    Alone(Busy),
    Among { _others: Shared },
}

impl Work {
    fn begin<B>(request: &Request<B>, phase: &Phase, requests: &Requests) -> Self {
        if request.version() == Version::HTTP_2 {
            phase.shared();
            return Self::Among { _others: requests.begin() };
        }
        Self::Alone(phase.busy())
    }

    fn has_two_lengths(&self) -> bool {
        matches!(self, Self::Alone(busy) if busy.has_two_lengths())
    }

    fn leaves_body_unread(&self) {
        if let Self::Alone(busy) = self {
            busy.leaves_body_unread();
        }
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
        pieces: Option<Pieces>,
        _work: Work,
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for AtWork<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        match this.pieces {
            Some(pieces) => pieces.next(|| this.body.poll_frame(context)),
            None => this.body.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.as_ref().is_none_or(Pieces::is_empty) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
