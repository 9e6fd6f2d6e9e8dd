//! `streamkeep serve` and `streamkeep migrate`

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Failure, cancel_on_signal};
use crate::{
    config::{Migrate, Serve, Storage},
    http::{self, Access, App, AppState, Limits, ServerOptions},
    redis_server::RedisServer,
    store::{Connections, Library, Migrations, RedisAddress, Store, StoreConfig},
    telemetry,
};

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// What stopped the start.
pub async fn serve(settings: Serve) -> Result<(), Failure> {
    let traces = telemetry::start(settings.log_format, &settings.log, settings.otlp_endpoint.as_deref())?;
    let limits = settings.limits()?;
    let access = settings.access.files(settings.listen)?.map(Access::open).transpose()?;
    let tls = settings.tls.open()?;
    raise_descriptor_limit();
    let shutdown = CancellationToken::new();
    cancel_on_signal(shutdown.clone())?;
    // Before Redis is started: an address that is taken is the commonest mistake.
    let listener = listen(settings.listen).await?;
    let admin = match settings.admin_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let started = tokio::select! {
        started = start(&settings, limits, access, shutdown.clone()) => started?,
        () = shutdown.cancelled() => {
            // Whatever the start is waiting for; our own Redis, should there be one yet, ends with this process.
            info!("stopped before the service was ready");
            std::process::exit(0);
        }
    };
    let (server, app) = started;
    let (durability, partitions) = (app.store.standing().level(), app.store.partitions().count());
    let [access, tls_too] = [app.access.is_some(), tls.is_some()].map(|is| if is { "on" } else { "off" });
    info!(listen = %listener.local_addr()?, %durability, partitions, access, tls = tls_too, "ready");
    let admin = admin.map(|admin| tokio::spawn(http::serve_admin(admin, app.clone(), settings.server_options())));
    http::serve(listener, app, ServerOptions { tls, ..settings.server_options() }).await;
    // The probes tell of the drain to its end.
    admin.inspect(JoinHandle::abort);
    if let Some(traces) = traces {
        traces.end().await;
    }
    stop(server).await
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}").into())
}

/// Starts Redis if it is ours, and opens the store.
async fn start(
    settings: &Serve,
    limits: Limits,
    access: Option<Arc<Access>>,
    shutdown: CancellationToken,
) -> Result<(Option<RedisServer>, App), Failure> {
    let (server, address) = redis(&settings.storage).await?;
    let config = StoreConfig {
        writers: settings.writers.into(),
        queued_max: usize::try_from(settings.queued_max)?,
        migrate: !settings.no_migrate,
        durability: settings.durability.config(),
        ..settings.storage.store_config(address)
    };
    let app = App::new(AppState {
        store: Store::open(config).await?,
        limits,
        require_condition: settings.require_condition,
        cache_max_age: Duration::from_secs(settings.cache_max_age_secs.into()),
        group_idle: Duration::from_secs(settings.group_idle_secs.into()),
        base_path: settings.base_path.clone(),
        cors_origins: settings.cors_origins.clone(),
        access,
        rate_limits: settings.rate_limits.clone(),
        shutdown,
        metrics_here: settings.admin_listen.is_none(),
    });
    Ok((server, app))
}

/// As many descriptors as the system lets us have: the usual soft limit of 1,024 is for programs that use select(2).
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Runs due migrations and loads the functions.
///
/// # Errors
/// What stopped it.
pub async fn migrate(settings: Migrate) -> Result<(), Failure> {
    telemetry::start(telemetry::LogFormat::Text, "info", None)?;
    let (server, address) = redis(&settings.storage).await?;
    let config = settings.storage.store_config(address);
    let connections = Connections::open(&config).await?;
    let ran = Migrations::default().run(&connections, &config.keys(), config.partitions).await?;
    info!(?ran, "migrations are done");
    let library = Library::default();
    library.load_everywhere(&connections).await?;
    if settings.prune {
        let removed = library.prune(&connections).await?;
        info!(?removed, "libraries of other versions are removed");
    }
    drop(connections);
    stop(server).await
}

/// The Redis to use: that of the settings, or one of our own.
pub(super) async fn redis(storage: &Storage) -> Result<(Option<RedisServer>, RedisAddress), Failure> {
    if let Some(address) = storage.address()? {
        return Ok((None, address));
    }
    let config = storage.server_config();
    let server = tokio::task::spawn_blocking(move || RedisServer::start(&config)).await??;
    let address = server.address().into();
    Ok((Some(server), address))
}

/// Ends our own Redis, which syncs its files first.
pub(super) async fn stop(server: Option<RedisServer>) -> Result<(), Failure> {
    tokio::task::spawn_blocking(move || drop(server)).await?;
    info!("stopped");
    Ok(())
}
