//! Where events are kept.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use crate::{
    model::Partitions,
    redis_server::{AppendFsync, RedisServerConfig},
    store::{DurabilityConfig, Library, RedisAddress, RedisSecrets, StoreConfig},
};

/// Where events are kept: in a Redis of one's own, or in one that is there.
#[derive(Args, Debug)]
pub struct Storage {
    /// Redis or Valkey 7.0 or newer: redis://[user:password@]host:port[/db], redis+unix:///path,
    /// redis+sentinel://[user:password@]host:port,host:port/name[/db] with the sentinels and what they call it, or
    /// redis+cluster://[user:password@]host:port,host:port with some of the cluster; rediss in place of redis for TLS.
    /// Without it the service starts and supervises one itself
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<String>,

    /// File with the password of Redis, which others on the machine would see in the address
    #[arg(long, env = "STREAMKEEP_REDIS_PASSWORD_FILE", value_name = "FILE", requires = "redis_url")]
    pub redis_password_file: Option<PathBuf>,

    /// User of the sentinels themselves, where they have users
    #[arg(long, env = "STREAMKEEP_SENTINEL_USER", value_name = "USER", requires = "sentinel_password_file")]
    pub sentinel_user: Option<String>,

    /// File with the password of the sentinels themselves, where they ask for one
    #[arg(long, env = "STREAMKEEP_SENTINEL_PASSWORD_FILE", value_name = "FILE", requires = "redis_url")]
    pub sentinel_password_file: Option<PathBuf>,

    /// With rediss: trust the CAs in this file (PEM) in place of the system's
    #[arg(long, env = "STREAMKEEP_REDIS_CA_CERT", value_name = "FILE", requires = "redis_url")]
    pub redis_ca_cert: Option<PathBuf>,

    /// With rediss: file with the certificate to show to Redis, and those between it and its CA, in PEM
    #[arg(long, env = "STREAMKEEP_REDIS_TLS_CERT", value_name = "FILE", requires = "redis_tls_key")]
    pub redis_tls_cert: Option<PathBuf>,

    /// With rediss: file with the key of that certificate, in PEM
    #[arg(long, env = "STREAMKEEP_REDIS_TLS_KEY", value_name = "FILE", requires = "redis_tls_cert")]
    pub redis_tls_key: Option<PathBuf>,

    /// Data folder of the service's own Redis
    #[arg(long, env = "STREAMKEEP_DATA", default_value = "./streamkeep-data")]
    pub data: PathBuf,

    /// Program of the service's own Redis; otherwise valkey-server or redis-server from PATH
    #[arg(long, env = "STREAMKEEP_REDIS_SERVER")]
    pub redis_server: Option<PathBuf>,

    /// When the service's own Redis syncs to disk: always (nothing acknowledged is lost) or everysec (faster)
    #[arg(long, env = "STREAMKEEP_APPENDFSYNC", value_enum, default_value_t)]
    pub appendfsync: AppendFsync,

    /// Bytes of a node of a stream in the service's own Redis; 512 saves memory where streams have one or two events
    #[arg(long, env = "STREAMKEEP_STREAM_NODE_MAX_BYTES", default_value_t = 3072, value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    pub stream_node_max_bytes: u32,

    /// Partitions of the store, 1 to 128; fixed when it is created
    #[arg(long, env = "STREAMKEEP_PARTITIONS", default_value = "1", value_parser = parse_partitions)]
    pub partitions: Partitions,

    /// Stands before every key, so that several stores may share one Redis
    #[arg(long, env = "STREAMKEEP_NAMESPACE", default_value = "", value_parser = parse_namespace)]
    pub namespace: String,

    /// How long a call of Redis may take, waiting and reconnecting included, in milliseconds
    #[arg(long, env = "STREAMKEEP_REDIS_TIMEOUT_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    pub redis_timeout_ms: u32,
}

impl Storage {
    /// How the service's own Redis is run.
    #[must_use]
    pub fn server_config(&self) -> RedisServerConfig {
        RedisServerConfig {
            binary: self.redis_server.clone(),
            append_fsync: self.appendfsync,
            stream_node_max_bytes: self.stream_node_max_bytes,
            ..RedisServerConfig::new(&self.data)
        }
    }

    /// The address of `--redis-url`, if there is one, with what stands in files.
    ///
    /// # Errors
    /// Where it is no address, or which file cannot be read; in one sentence without a secret.
    pub fn address(&self) -> Result<Option<RedisAddress>, String> {
        let Some(url) = &self.redis_url else { return Ok(None) };
        RedisAddress::parse(url, &self.secrets(self.redis_password_file.as_deref())?).map(Some)
    }

    /// Whether Redis is on this machine for sure. Reads no file, for one may be read only once, as a pipe. What is wrong with
    /// an address is said when it is used.
    #[must_use]
    pub fn is_here(&self) -> bool {
        let parse = |url: &String| RedisAddress::parse(url, &RedisSecrets::default());
        self.redis_url.as_ref().map(parse).is_none_or(|address| address.is_ok_and(|address| address.is_here()))
    }

    fn secrets(&self, password_file: Option<&Path>) -> Result<RedisSecrets, String> {
        Ok(RedisSecrets {
            password: password_file.map(read_password).transpose()?,
            sentinel_user: self.sentinel_user.clone(),
            sentinel_password: self.sentinel_password_file.as_deref().map(read_password).transpose()?,
            ca_cert: self.redis_ca_cert.as_deref().map(read).transpose()?,
            client_cert: match (&self.redis_tls_cert, &self.redis_tls_key) {
                (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
                _ => None,
            },
        })
    }

    /// How the store at `address` is used.
    #[must_use]
    pub fn store_config(&self, address: RedisAddress) -> StoreConfig {
        StoreConfig {
            address,
            namespace: self.namespace.clone(),
            partitions: self.partitions,
            writers: 2,
            queued_max: 10_000,
            timeout: Duration::from_millis(self.redis_timeout_ms.into()),
            migrate: true,
            durability: DurabilityConfig::default(),
            library: Library::default(),
        }
    }
}

/// The store that is copied.
#[derive(Args, Debug)]
pub struct Source {
    /// Redis of the store that is copied, in the forms of --redis-url
    #[arg(long, env = "STREAMKEEP_FROM", value_name = "URL", hide_env_values = true)]
    pub from: String,

    /// File with its password
    #[arg(long, env = "STREAMKEEP_FROM_PASSWORD_FILE", value_name = "FILE")]
    pub from_password_file: Option<PathBuf>,

    /// What stands before every key there
    #[arg(long, env = "STREAMKEEP_FROM_NAMESPACE", default_value = "", value_parser = parse_namespace)]
    pub from_namespace: String,
}

impl Source {
    /// How the store is used that is copied into `target`, whose other settings count for both.
    ///
    /// # Errors
    /// Where it is no address, or which file cannot be read; in one sentence without a secret.
    pub fn store_config(&self, target: &Storage) -> Result<StoreConfig, String> {
        let address = RedisAddress::parse(&self.from, &target.secrets(self.from_password_file.as_deref())?)?;
        Ok(StoreConfig { namespace: self.from_namespace.clone(), ..target.store_config(address) })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

/// What stands in a file, without the line break behind it.
fn read_password(file: &Path) -> Result<String, String> {
    let text = String::from_utf8(read(file)?).map_err(|_| format!("the password in {} is no UTF-8", file.display()))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        Err(format!("there is no password in {}", file.display()))
    } else {
        Ok(password.to_owned())
    }
}

fn parse_partitions(text: &str) -> Result<Partitions, String> {
    text.parse().ok().and_then(Partitions::new).ok_or_else(|| format!("a number from 1 to {}", Partitions::MAX))
}

/// What may stand in a key without moving it to another slot or hiding its parts.
fn parse_namespace(text: &str) -> Result<String, String> {
    let good = text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if good { Ok(text.to_owned()) } else { Err("at most 64 characters of A-Z a-z 0-9 . _ -".to_owned()) }
}
