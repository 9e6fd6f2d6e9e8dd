//! The accept loop: limits and timeouts that `axum::serve` does not have, and an orderly end.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::{body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use super::{App, service::service};

/// Pause after accepting failed for want of descriptors: connections have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections are treated.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Most connections at once; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// How long a request's headers may take, and a connection may stay idle.
    pub header_timeout: Duration,
    /// How long requests under way may take to end, once the service is to end.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { connections_max: 10_000, header_timeout: Duration::from_secs(10), drain_timeout: Duration::from_secs(8) }
    }
}

/// Serves until the app's shutdown is told, then lets requests under way end.
pub async fn serve(listener: TcpListener, app: App, options: ServerOptions) {
    let shutdown = app.shutdown.clone();
    let router = service(app);
    let free = Arc::new(Semaphore::new(options.connections_max));
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            let permit = Arc::clone(&free).acquire_owned().await.expect("the semaphore is never closed");
            let stream = accept(&listener).await;
            let (router, shutdown) = (router.clone(), shutdown.clone());
            let header_timeout = options.header_timeout;
            connections.spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let router = router.clone();
                    async move {
                        Ok::<_, Infallible>(
                            router.oneshot(request.map(Body::new)).await.unwrap_or_else(|never| match never {}),
                        )
                    }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(header_timeout);
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
