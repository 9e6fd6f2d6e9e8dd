//! Every command and every setting. The comments are `--help`, and the table in the README.

mod clients;
mod durability;
mod storage;
mod tls;

pub use clients::{Completions, Credentials, Export, Health, Import, KeyCommand, Man, NewKey, Service, Tail};
pub use durability::DurabilityArgs;
pub use storage::{Source, Storage};
pub use tls::TlsArgs;

use std::{net::SocketAddr, num::NonZero, path::PathBuf, thread, time::Duration};

use axum::http::{HeaderValue, Uri};
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::{
    http::{AccessFiles, Limits, RateLimit, ServerOptions, parse_network},
    telemetry::{LogFormat, check_filter},
};

/// An event store over plain HTTP on ordinary Redis Streams.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service; without --redis-url with a Redis of its own
    Serve(Box<Serve>),
    /// Run due migrations of stored data, and end
    Migrate(Migrate),
    /// Prove that what is stored fits together; also beside a running service
    Verify(Verify),
    /// Look at a deployment: what is wrong, and what to do
    Doctor(Doctor),
    /// Copy a store into another Redis, or another number of partitions
    #[command(mut_arg("redis_url", |argument| argument.visible_alias("to")))]
    Copy(Copy),
    /// Append events from a file of NDJSON to a running service
    Import(Import),
    /// Write the events of a running service as NDJSON
    Export(Export),
    /// Show the events of a running service as they come
    Tail(Tail),
    /// Ask a running service whether it is ready; for container health checks
    Health(Health),
    /// Make API keys
    Key {
        /// What to do with them.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Print the OpenAPI document
    Openapi,
    /// Print what a shell completes: streamkeep completions bash > /etc/bash_completion.d/streamkeep
    Completions(Completions),
    /// Write the manual's pages
    Man(Man),
}

/// Settings of `serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// Address to listen on
    #[arg(long, env = "STREAMKEEP_LISTEN", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,

    /// TLS
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Who may do what
    #[command(flatten)]
    pub access: AccessArgs,

    /// Where events are kept
    #[command(flatten)]
    pub storage: Storage,

    /// What appends must survive
    #[command(flatten)]
    pub durability: DurabilityArgs,

    /// Do not run due migrations, refuse to start instead
    #[arg(long, env = "STREAMKEEP_NO_MIGRATE")]
    pub no_migrate: bool,

    /// Threads that answer requests; by default as many as there are cores, less one for a Redis on this machine. More where
    /// very many follow
    #[arg(long, env = "STREAMKEEP_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Tasks that append, each with a connection to Redis of its own; as many again for what replicas confirm
    #[arg(long, env = "STREAMKEEP_WRITERS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub writers: u8,

    /// Most appends that wait for a writer; further ones are answered 503
    #[arg(long, env = "STREAMKEEP_QUEUED_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub queued_max: u32,

    /// Refuse appends without If-Match or If-None-Match (428)
    #[arg(long, env = "STREAMKEEP_REQUIRE_CONDITION")]
    pub require_condition: bool,

    /// Let caches keep full pages below the head, and events, for this many seconds; 0: not at all. Shared ones too, unless
    /// credentials are needed
    #[arg(long, env = "STREAMKEEP_CACHE_MAX_AGE_SECS", default_value_t = 0)]
    pub cache_max_age_secs: u32,

    /// Mark a consumer group as idle that nobody has asked for events for this many seconds
    #[arg(long, env = "STREAMKEEP_GROUP_IDLE_SECS", default_value_t = 86_400, value_parser = clap::value_parser!(u32).range(60..))]
    pub group_idle_secs: u32,

    /// Put every address below this path, as in /events-store; a gateway is to pass paths on unchanged
    #[arg(long, env = "STREAMKEEP_BASE_PATH", default_value = "", value_parser = parse_base_path)]
    pub base_path: String,

    /// Let pages of this origin use the service, as in https://app.example.com, or * for any; several with commas
    #[arg(long, env = "STREAMKEEP_CORS_ORIGINS", value_delimiter = ',', value_parser = parse_origin)]
    pub cors_origins: Vec<HeaderValue>,

    /// Believe gateways at these addresses, as in 10.0.0.7,10.1.0.0/16, when X-Forwarded-For or Forwarded tell who called
    #[arg(long, env = "STREAMKEEP_TRUSTED_PROXIES", value_delimiter = ',', value_parser = parse_network)]
    pub trusted_proxies: Vec<IpNet>,

    /// Limits of requests
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Most requests a second of one caller, a credential or an address, by what they do: read, append, consume, manage; as
    /// in append=1000,read=5000. Further ones are answered 429
    #[arg(long, env = "STREAMKEEP_RATE_LIMITS", value_delimiter = ',', value_name = "VERB=RATE")]
    pub rate_limits: Vec<RateLimit>,

    /// Most connections at once
    #[arg(long, env = "STREAMKEEP_CONNECTIONS_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_max: u32,

    /// Most requests that follow or wait at once, live feeds and long polls; further ones are answered 503. Below
    /// --connections-max, so that others get through; by default nine tenths of it
    #[arg(long, env = "STREAMKEEP_WAITING_MAX", value_parser = clap::value_parser!(u32).range(0..))]
    pub waiting_max: Option<u32>,

    /// How long the head of a request may take, from its first byte, in seconds
    #[arg(long, env = "STREAMKEEP_HEADER_TIMEOUT_SECS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub header_timeout_secs: u32,

    /// How long a connection is kept between requests, and a client may take no byte of its answer, in seconds; longer
    /// than the gateway in front keeps its own
    #[arg(long, env = "STREAMKEEP_IDLE_TIMEOUT_SECS", default_value_t = 75, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub idle_timeout_secs: u32,

    /// How long the service goes on after SIGTERM with /readyz answering 503, so that gateways notice, in seconds
    #[arg(long, env = "STREAMKEEP_DRAIN_DELAY_SECS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub drain_delay_secs: u32,

    /// How long requests under way may take to end after that, in seconds
    #[arg(long, env = "STREAMKEEP_DRAIN_TIMEOUT_SECS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub drain_timeout_secs: u32,

    /// Serve /metrics, /livez and /readyz at this address too, without credentials; /metrics then there alone
    #[arg(long, env = "STREAMKEEP_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,

    /// Form of log lines
    #[arg(long, env = "STREAMKEEP_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// What to log: error, warn, info, debug, trace, or by module as in streamkeep=debug
    #[arg(long, env = "STREAMKEEP_LOG", default_value = "info", value_parser = check_filter)]
    pub log: String,

    /// Send traces to the OpenTelemetry collector here, as in http://127.0.0.1:4318 (OTLP over HTTP)
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = parse_collector)]
    pub otlp_endpoint: Option<String>,
}

/// Who may do what.
#[derive(Args, Debug)]
pub struct AccessArgs {
    /// File of API keys, as streamkeep key new writes them; read again when it changes. With it, or --jwt-keys, every
    /// request needs a credential
    #[arg(long, env = "STREAMKEEP_KEYS")]
    pub keys: Option<PathBuf>,

    /// File with the keys of JWTs: a JWKS, a public key in PEM (RS256, EdDSA), or a secret of 32 characters or more
    /// (HS256); read again when it changes
    #[arg(long, env = "STREAMKEEP_JWT_KEYS")]
    pub jwt_keys: Option<PathBuf>,

    /// The iss that every JWT must have
    #[arg(long, env = "STREAMKEEP_JWT_ISSUER", requires = "jwt_keys")]
    pub jwt_issuer: Option<String>,

    /// The aud that every JWT must have; without this setting JWTs that have one are refused
    #[arg(long, env = "STREAMKEEP_JWT_AUDIENCE", requires = "jwt_keys")]
    pub jwt_audience: Option<String>,

    /// Listen on other addresses than loopback without --keys or --jwt-keys: whoever gets there may do everything
    #[arg(long, env = "STREAMKEEP_INSECURE_LISTEN")]
    pub insecure_listen: bool,
}

/// Settings of `migrate`.
#[derive(Args, Debug)]
pub struct Migrate {
    /// Where events are kept
    #[command(flatten)]
    pub storage: Storage,

    /// Afterwards remove function libraries of other versions; only once no older instance runs
    #[arg(long)]
    pub prune: bool,
}

/// Settings of `doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Where events are kept
    #[command(flatten)]
    pub storage: Storage,

    /// What appends must survive
    #[command(flatten)]
    pub durability: DurabilityArgs,
}

/// Settings of `verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// Where events are kept
    #[command(flatten)]
    pub storage: Storage,
}

/// Settings of `copy`.
#[derive(Args, Debug)]
pub struct Copy {
    /// Where events are copied from
    #[command(flatten)]
    pub source: Source,

    /// Where they are copied to
    #[command(flatten)]
    pub storage: Storage,

    /// Go on with what comes, until SIGINT or SIGTERM; then copy what is left, and the groups
    #[arg(long, env = "STREAMKEEP_FOLLOW")]
    pub follow: bool,
}

/// Limits of requests.
#[derive(Args, Debug)]
pub struct LimitArgs {
    /// Bytes of an event's data
    #[arg(long, env = "STREAMKEEP_DATA_BYTES_MAX", default_value_t = 1_048_576, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub data_bytes_max: u32,

    /// Bytes of an event's metadata
    #[arg(long, env = "STREAMKEEP_METADATA_BYTES_MAX", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(2..=16_777_216))]
    pub metadata_bytes_max: u32,

    /// Events of a request
    #[arg(long, env = "STREAMKEEP_EVENTS_MAX", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub events_max: u32,

    /// Bytes of a request's body, after decompression
    #[arg(long, env = "STREAMKEEP_BODY_BYTES_MAX", default_value_t = 4_194_304, value_parser = clap::value_parser!(u32).range(1..=67_108_864))]
    pub body_bytes_max: u32,

    /// Bytes of the bodies of all requests under way; further ones wait a moment, then are answered 503
    #[arg(long, env = "STREAMKEEP_BODIES_BYTES_MAX", default_value_t = 268_435_456, value_parser = clap::value_parser!(u32).range(1..))]
    pub bodies_bytes_max: u32,

    /// Characters of an event's type
    #[arg(long, env = "STREAMKEEP_TYPE_CHARS_MAX", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub type_chars_max: u32,

    /// Events of a page
    #[arg(long, env = "STREAMKEEP_PAGE_EVENTS_MAX", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub page_events_max: u32,

    /// Levels of nesting of data and metadata
    #[arg(long, env = "STREAMKEEP_JSON_DEPTH_MAX", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub json_depth_max: u32,

    /// How long a body may take to arrive, in seconds
    #[arg(long, env = "STREAMKEEP_BODY_TIMEOUT_SECS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub body_timeout_secs: u32,
}

impl AccessArgs {
    /// The files of credentials; `None` where access is off.
    ///
    /// # Errors
    /// One sentence for the operator, where the service would then be open to others than this machine.
    pub fn files(&self, listen: SocketAddr) -> Result<Option<AccessFiles>, String> {
        let Self { keys, jwt_keys, jwt_issuer, jwt_audience, insecure_listen } = self;
        if keys.is_none() && jwt_keys.is_none() {
            if listen.ip().to_canonical().is_loopback() || *insecure_listen {
                return Ok(None);
            }
            return Err(format!(
                "on {listen} whoever gets there could do everything: give --keys or --jwt-keys, or say \
                 --insecure-listen where something else keeps others out"
            ));
        }
        Ok(Some(AccessFiles {
            keys: keys.clone(),
            jwt_keys: jwt_keys.clone(),
            jwt_issuer: jwt_issuer.clone(),
            jwt_audience: jwt_audience.clone(),
        }))
    }
}

impl LimitArgs {
    /// That the limits do not contradict one another.
    fn check(&self) -> Result<(), String> {
        let largest = self.data_bytes_max.max(self.metadata_bytes_max);
        if self.body_bytes_max > self.bodies_bytes_max {
            return Err("one body may be larger than all together (--body-bytes-max, --bodies-bytes-max)".to_owned());
        }
        if largest <= self.body_bytes_max {
            return Ok(());
        }
        Err(format!("an event may have {largest} bytes, but a body only {} (--body-bytes-max)", self.body_bytes_max))
    }

    /// As the handlers use them.
    fn limits(&self, waiting: usize) -> Limits {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Limits {
            waiting,
            data_bytes: size(self.data_bytes_max),
            metadata_bytes: size(self.metadata_bytes_max),
            events: size(self.events_max),
            body_bytes: size(self.body_bytes_max),
            bodies_bytes: size(self.bodies_bytes_max),
            type_chars: size(self.type_chars_max),
            page_events: size(self.page_events_max),
            json_depth: size(self.json_depth_max),
            body_timeout: Duration::from_secs(self.body_timeout_secs.into()),
        }
    }
}

impl Serve {
    /// How many threads answer requests. One core fewer than there are is used beside a Redis on this machine: two threads
    /// that wake each other on cores which Redis wants too cost more than the second one brings.
    #[must_use]
    pub fn threads(&self) -> usize {
        if let Some(threads) = self.threads {
            return threads.into();
        }
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        if self.storage.is_here() { (cores - 1).max(1) } else { cores }
    }

    /// What requests may bring.
    ///
    /// # Errors
    /// One sentence for the operator, where settings contradict one another.
    pub fn limits(&self) -> Result<Limits, String> {
        self.limits.check()?;
        let most = self.connections_max;
        let waiting = self.waiting_max.unwrap_or(most - most.div_ceil(10));
        if waiting >= most {
            return Err(format!(
                "{waiting} requests may wait, but only {most} connect: nobody else would get through (--waiting-max, \
                 --connections-max)"
            ));
        }
        Ok(self.limits.limits(usize::try_from(waiting).unwrap_or(usize::MAX)))
    }

    /// How connections are treated; without TLS, whose files are read once.
    #[must_use]
    pub fn server_options(&self) -> ServerOptions {
        ServerOptions {
            connections_max: usize::try_from(self.connections_max).unwrap_or(usize::MAX),
            header_timeout: Duration::from_secs(self.header_timeout_secs.into()),
            idle_timeout: Duration::from_secs(self.idle_timeout_secs.into()),
            drain_delay: Duration::from_secs(self.drain_delay_secs.into()),
            drain_timeout: Duration::from_secs(self.drain_timeout_secs.into()),
            trusted_proxies: self.trusted_proxies.clone().into(),
            tls: None,
        }
    }
}

fn parse_collector(text: &str) -> Result<String, String> {
    let good = text.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
    if good { Ok(text.to_owned()) } else { Err("an address such as http://127.0.0.1:4318".to_owned()) }
}

/// A path of characters that need no escapes, without a slash at its end.
fn parse_base_path(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(allowed);
    let path = text.strip_suffix('/').unwrap_or(text);
    let good = path.is_empty() || path.strip_prefix('/').is_some_and(|parts| parts.split('/').all(part));
    if good {
        Ok(path.to_owned())
    } else {
        Err("a path such as /events-store, of A-Z a-z 0-9 . _ ~ - and /".to_owned())
    }
}

/// An origin as browsers send it (RFC 6454 §6.1).
fn parse_origin(text: &str) -> Result<HeaderValue, String> {
    let good = text == "*"
        || text.split_once("://").is_some_and(|(scheme, host)| {
            matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains(['/', '?', '#', '@', '*'])
        });
    let value = HeaderValue::from_str(&text.to_ascii_lowercase()).ok().filter(|_| good);
    value.ok_or_else(|| "an origin such as https://app.example.com, without a path, or *".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(arguments: &[&str]) -> usize {
        let cli = Cli::try_parse_from(["streamkeep", "serve"].iter().chain(arguments)).expect("good arguments");
        let Command::Serve(settings) = cli.command else { panic!("another command") };
        settings.threads()
    }

    #[test]
    fn a_redis_of_this_machine_is_left_a_core() {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        assert_eq!(threads(&["--redis-url", "redis://10.0.0.1"]), cores);
        assert_eq!(threads(&["--redis-url", "redis://127.0.0.1"]), (cores - 1).max(1));
        assert_eq!(threads(&["--redis-url", "redis://127.0.0.1", "--threads", "7"]), 7);
        // What stands in a file may be read only once: it may be a pipe.
        let password = ["--redis-url", "redis://127.0.0.1", "--redis-password-file", "/is/not/read"];
        assert_eq!(threads(&password), (cores - 1).max(1));
    }
}
