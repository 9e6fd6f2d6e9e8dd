//! The accept loop: limits and timeouts that `axum::serve` does not have, and an orderly end.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody as _},
    extract::Request,
};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use super::{
    App,
    connection::{Phase, Watched},
    service::{Service, service},
};

/// Pause after accepting failed for want of descriptors: connections have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections are treated.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Most connections at once; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// How long the head of a request may take, from its first byte.
    pub header_timeout: Duration,
    /// How long a connection is kept between requests, and a client may take no byte of its answer.
    pub idle_timeout: Duration,
    /// How long requests under way may take to end, once the service is to end.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            header_timeout: Duration::from_secs(10),
            // Longer than gateways keep theirs (60 s is common), so that it is never ours that closes under a request.
            idle_timeout: Duration::from_secs(75),
            drain_timeout: Duration::from_secs(8),
        }
    }
}

/// Serves until the app's shutdown is told, then lets requests under way end.
pub async fn serve(listener: TcpListener, app: App, options: ServerOptions) {
    let shutdown = app.shutdown.clone();
    let service = service(app);
    let free = Arc::new(Semaphore::new(options.connections_max));
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            let permit = Arc::clone(&free).acquire_owned().await.expect("the semaphore is never closed");
            let stream = accept(&listener).await;
            let connection = connection(stream, service.clone(), options.clone(), shutdown.clone());
            connections.spawn(async move {
                connection.await;
                drop(permit);
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown.cancelled() => {}
    }
    info!(connections = connections.len(), "draining");
    connections.close();
    if tokio::time::timeout(options.drain_timeout, connections.wait()).await.is_err() {
        warn!(connections = connections.len(), "connections were still busy at the end of the drain");
    }
}

/// Serves one connection to its end.
async fn connection(stream: TcpStream, service: Service, options: ServerOptions, shutdown: CancellationToken) {
    let phase = Phase::default();
    let stream = Watched::new(stream, phase.clone(), options.header_timeout, options.idle_timeout);
    let service = service_fn(move |request: Request<Incoming>| {
        let (busy, service) = (phase.busy(), service.clone());
        let has_body = !request.body().is_end_stream();
        async move {
            let response = service.oneshot(request.map(Body::new)).await.unwrap_or_else(|never| match never {});
            if has_body && response.status().is_client_error() {
                busy.leaves_body_unread();
            }
            // The request is at work until its answer's body is dropped.
            Ok::<_, Infallible>(response.map(|body| {
                body.map_err(move |error| {
                    let _ = &busy;
                    error
                })
            }))
        }
    });
    let mut builder = http1::Builder::new();
    // For hyper the time between requests belongs to the head; the head itself is timed by `Watched`.
    builder.timer(TokioTimer::new()).header_read_timeout(options.idle_timeout.max(options.header_timeout));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and complete: waiting to fill a packet only delays them.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
