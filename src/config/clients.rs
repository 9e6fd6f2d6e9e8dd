//! Settings of the commands that ask a running service, or need none.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand};
use clap_complete::Shell;

use super::durability::parse_level;
use crate::{
    cli::TailFormat,
    http::{Pattern, Verb},
    model::{Durability, parse_rfc3339},
};

/// What a client shows, and whom it trusts.
#[derive(Args, Debug)]
pub struct Credentials {
    /// API key or JWT to show to the service; the variable is better, since others on the machine see options
    #[arg(long, env = "STREAMKEEP_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// Where the address is https://, trust the CAs in this file (PEM) in place of the system's
    #[arg(long, env = "STREAMKEEP_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
}

/// The service that a client asks.
#[derive(Args, Debug)]
pub struct Service {
    /// Where the service is
    #[arg(long, env = "STREAMKEEP_URL", default_value = "http://127.0.0.1:7070")]
    pub url: String,

    /// Who asks
    #[command(flatten)]
    pub credentials: Credentials,
}

/// What `key` does.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make an API key, and its line for the file of the service
    New(NewKey),
}

/// Settings of `key new`.
#[derive(Args, Debug)]
pub struct NewKey {
    /// Names the key, in the file and in logs; every key has an id of its own
    pub id: String,

    /// What it may do, with commas between
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    pub verbs: Vec<Verb>,

    /// With which streams: names, or beginnings of names with a * behind, with commas between; without it none
    #[arg(long, value_delimiter = ',')]
    pub streams: Vec<Pattern>,

    /// With which consumer groups, in the same form; without it none
    #[arg(long, value_delimiter = ',')]
    pub groups: Vec<Pattern>,

    /// Until when it holds (RFC 3339); without it for ever
    #[arg(long)]
    pub expires: Option<String>,

    /// File to add the line to, instead of printing it behind the key
    #[arg(long)]
    pub file: Option<PathBuf>,
}

/// Settings of `import`.
#[derive(Args, Debug)]
pub struct Import {
    /// NDJSON, plain or gzip; - for standard input. One event a line: stream, type, data, and optional metadata and id
    pub file: PathBuf,

    /// Whom to ask
    #[command(flatten)]
    pub service: Service,

    /// Streams that are appended to at the same time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,

    /// Names where the events come from. Lines without an id get one from this name, their number and their content, so
    /// that another import of the same file adds nothing; give files their own names if equal lines in them mean
    /// different events
    #[arg(long, default_value = "")]
    pub source: String,

    /// What every event must survive before it counts as appended: memory, fsync, replicated or replicated-fsync; without
    /// it, what the service demands of every append
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    pub durability: Option<Durability>,

    /// How long one event is tried again while the service cannot be reached or has no time, in seconds
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub retry_secs: u32,
}

/// Settings of `export`.
#[derive(Args, Debug)]
pub struct Export {
    /// File to write, compressed where it ends in .gz; - for standard output
    #[arg(default_value = "-")]
    pub file: PathBuf,

    /// Whom to ask
    #[command(flatten)]
    pub service: Service,

    /// Only this stream
    #[arg(long, conflicts_with = "category")]
    pub stream: Option<String>,

    /// Only streams in this category
    #[arg(long)]
    pub category: Option<String>,

    /// How long one page is asked for again while the service cannot be reached or has no time, in seconds
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub retry_secs: u32,
}

/// Settings of `tail`.
#[derive(Args, Debug)]
pub struct Tail {
    /// Whom to ask
    #[command(flatten)]
    pub service: Service,

    /// Only this stream, which need not be there yet
    #[arg(long, conflicts_with = "category")]
    pub stream: Option<String>,

    /// Only streams in this category; may stand several times
    #[arg(long)]
    pub category: Vec<String>,

    /// Only events of this type; may stand several times
    #[arg(long = "type", value_name = "TYPE")]
    pub types: Vec<String>,

    /// Where to begin: beginning, end (only what comes), or a cursor that a page or a feed told
    #[arg(long, default_value = "end")]
    pub from: String,

    /// Begin with the first event stored at or after this time (RFC 3339), as in 2026-11-23T12:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "from", value_parser = parse_time)]
    pub since: Option<String>,

    /// End after so many events
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// How events are shown
    #[arg(long, value_enum, default_value_t)]
    pub format: TailFormat,
}

/// Settings of `health`.
#[derive(Args, Debug)]
pub struct Health {
    /// Where the service is; by default on this machine, as STREAMKEEP_LISTEN and STREAMKEEP_TLS_CERT say
    #[arg(long, env = "STREAMKEEP_URL")]
    pub url: Option<String>,

    /// As the service has it
    #[arg(long, env = "STREAMKEEP_LISTEN", default_value = "127.0.0.1:7070", hide = true)]
    pub listen: SocketAddr,

    /// As the service has it
    #[arg(long, env = "STREAMKEEP_TLS_CERT", hide = true)]
    pub tls_cert: Option<PathBuf>,

    /// Who asks
    #[command(flatten)]
    pub credentials: Credentials,
}

/// Settings of `completions`.
#[derive(Args, Debug)]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

/// Settings of `man`.
#[derive(Args, Debug)]
pub struct Man {
    /// Folder to write them to, as in /usr/local/share/man/man1
    pub folder: PathBuf,
}

fn parse_time(text: &str) -> Result<String, String> {
    let good = parse_rfc3339(text).is_some();
    if good { Ok(text.to_owned()) } else { Err("a time as in 2026-11-23T12:00:00Z".to_owned()) }
}
