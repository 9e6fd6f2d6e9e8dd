//! Where Redis is: one server, one that Sentinel watches, or a cluster; and who to be there.

use std::{fmt, net::IpAddr};

use percent_encoding::percent_decode_str;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo,
    TlsCertificates, io::tcp::TcpSettings,
};

/// Ports where none is given.
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// What there is, for those who wrote something else.
const FORMS: &str = "the address of Redis is one of redis://host:port, rediss://host:port, redis+unix:///path, \
                     redis+sentinel://host:port,host:port/name and redis+cluster://host:port,host:port";

/// Where Redis is. What shows it shows no password.
#[derive(Clone)]
pub struct RedisAddress {
    pub(super) set: Set,
    login: RedisConnectionInfo,
    sentinel_login: RedisConnectionInfo,
    /// Of any server, with TLS or without; its host and port mean nothing.
    like: ConnectionAddr,
}

/// How servers belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// One, for ever.
    Single(ConnectionAddr),
    /// One of several, which sentinels name.
    Sentinel {
        /// Where they are asked.
        sentinels: Vec<ConnectionAddr>,
        /// What they call it.
        name: String,
    },
    /// Several, each with a share of the slots; any one names all.
    Cluster(Vec<ConnectionAddr>),
}

/// What does not stand in an address: secrets, which others on the machine would see there, and certificates.
#[derive(Clone, Default)]
pub struct RedisSecrets {
    /// Password of Redis.
    pub password: Option<String>,
    /// User of the sentinels, where they know users.
    pub sentinel_user: Option<String>,
    /// Password of the sentinels, where they ask for one.
    pub sentinel_password: Option<String>,
    /// The CAs that are trusted in place of the system's, in PEM.
    pub ca_cert: Option<Vec<u8>>,
    /// The certificate to show to Redis, and its key, in PEM.
    pub client_cert: Option<(Vec<u8>, Vec<u8>)>,
}

impl RedisAddress {
    /// Reads an address:
    ///
    /// - `redis://[user:password@]host[:port][/db]`, `rediss://` the same by TLS;
    /// - `redis+unix:///path[?db=0&user=…&pass=…]`, or `unix:///path`;
    /// - `redis+sentinel://[user:password@]host[:port],host[:port]/name[/db]`, where the hosts are sentinels, and user,
    ///   password and db those of the Redis that they call `name`; `rediss+sentinel://` by TLS to both;
    /// - `redis+cluster://[user:password@]host[:port],host[:port]`, where the hosts are some of the cluster's;
    ///   `rediss+cluster://` by TLS.
    ///
    /// `valkey` may stand for `redis`. User and password are percent-encoded.
    ///
    /// # Errors
    /// What is wrong, in one sentence that shows nothing of the address, for there may be a password in it.
    pub fn parse(text: &str, secrets: &RedisSecrets) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(FORMS)?;
        let (scheme, rest) = (scheme.replace("valkey", "redis"), rest.split('#').next().unwrap_or_default());
        if rest.len() + 3 + text.find("://").unwrap_or(0) < text.len() {
            return Err("the address of Redis has a #, which stands for nothing; write %23 in a password".to_owned());
        }
        let (server, of) = scheme.split_once('+').unwrap_or((&scheme, ""));
        let like = like(server == "rediss", secrets)?;
        let (set, mut login) = match (server, of) {
            ("redis" | "rediss" | "unix", "") | ("redis", "unix") => single(text, &like)?,
            ("redis" | "rediss", "sentinel") => sentinel(rest, &like)?,
            ("redis" | "rediss", "cluster") => cluster(rest, &like)?,
            _ => return Err(FORMS.to_owned()),
        };
        if let Some(password) = &secrets.password {
            if login.password().is_some() {
                return Err("the password of Redis stands both in its address and in a file".to_owned());
            }
            login = login.set_password(password);
        }
        let mut sentinel_login = RedisConnectionInfo::default();
        if let Some(user) = &secrets.sentinel_user {
            sentinel_login = sentinel_login.set_username(user);
        }
        if let Some(password) = &secrets.sentinel_password {
            sentinel_login = sentinel_login.set_password(password);
        }
        Ok(Self { set, login, sentinel_login, like })
    }

    /// Whether its keys are spread over the slots of a cluster.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.set, Set::Cluster(_))
    }

    /// Whether it is one server, on this machine for sure.
    #[must_use]
    pub fn is_here(&self) -> bool {
        match &self.set {
            Set::Single(ConnectionAddr::Unix(_)) => true,
            Set::Single(ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => {
                host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
            }
            _ => false,
        }
    }

    /// How to get to one of its servers.
    pub(super) fn server(&self, addr: &ConnectionAddr) -> ConnectionInfo {
        info(addr.clone(), &self.login)
    }

    /// How to get to one of its sentinels.
    pub(super) fn sentinel(&self, addr: &ConnectionAddr) -> ConnectionInfo {
        info(addr.clone(), &self.sentinel_login)
    }

    /// The address of one of its servers.
    pub(super) fn at(&self, host: &str, port: u16) -> ConnectionAddr {
        at(&self.like, host, port)
    }
}

impl From<ConnectionInfo> for RedisAddress {
    fn from(info: ConnectionInfo) -> Self {
        let (addr, login) = (info.addr().clone(), info.redis_settings().clone());
        Self { set: Set::Single(addr.clone()), login, sentinel_login: RedisConnectionInfo::default(), like: addr }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addrs: &[ConnectionAddr]| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match &self.set {
            Set::Single(addr) => addr.fmt(out),
            Set::Sentinel { sentinels, name } => write!(out, "{name} of the sentinels {}", list(sentinels)),
            Set::Cluster(nodes) => write!(out, "the cluster of {}", list(nodes)),
        }
    }
}

/// Small commands are not to wait for company (Nagle): pipelines are what gathers them.
fn info(addr: ConnectionAddr, login: &RedisConnectionInfo) -> ConnectionInfo {
    let info = addr.into_connection_info().expect("an address is one");
    info.set_redis_settings(login.clone()).set_tcp_settings(TcpSettings::default().set_nodelay(true))
}

fn like(tls: bool, secrets: &RedisSecrets) -> Result<ConnectionAddr, String> {
    let RedisSecrets { ca_cert, client_cert, .. } = secrets;
    if !tls {
        if ca_cert.is_some() || client_cert.is_some() {
            return Err("certificates for Redis are given, but its address does not begin with rediss".to_owned());
        }
        return Ok(ConnectionAddr::Tcp(String::new(), 0));
    }
    let client_tls = client_cert.clone().map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    let certificates = TlsCertificates { client_tls, root_cert: ca_cert.clone() };
    let client = Client::build_with_tls("rediss://any", certificates);
    let client = client.map_err(|error| format!("the certificates for Redis cannot be read: {error}"))?;
    Ok(client.get_connection_info().addr().clone())
}

fn at(like: &ConnectionAddr, host: &str, port: u16) -> ConnectionAddr {
    let host = host.to_owned();
    match like.clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

type Parsed = (Set, RedisConnectionInfo);

fn single(text: &str, like: &ConnectionAddr) -> Result<Parsed, String> {
    let info = text.into_connection_info();
    let info = info.map_err(|error| format!("the address of Redis cannot be read: {}", reason(&error)))?;
    let addr = match info.addr() {
        ConnectionAddr::TcpTls { host, port, .. } => at(like, host, *port),
        other => other.clone(),
    };
    Ok((Set::Single(addr), info.redis_settings().clone()))
}

/// What the library says, without what it was said of.
fn reason(error: &redis::RedisError) -> String {
    match error.detail() {
        None => error.to_string(),
        Some(_) => "it is no URL".to_owned(),
    }
}

fn sentinel(rest: &str, like: &ConnectionAddr) -> Result<Parsed, String> {
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (sentinels, login) = hosts_and_login(hosts, SENTINEL_PORT, like)?;
    let (name, db) = path.split_once('/').unwrap_or((path, ""));
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(good) {
        return Err("the address of the sentinels must end in the name of their primary, as in \
                    redis+sentinel://host:26379/mymaster"
            .to_owned());
    }
    let db = match db {
        "" => 0,
        digits => digits.parse::<u16>().map_err(|_| "the database behind the name of the primary is no number")?,
    };
    Ok((Set::Sentinel { sentinels, name: name.to_owned() }, login.set_db(db.into())))
}

fn cluster(rest: &str, like: &ConnectionAddr) -> Result<Parsed, String> {
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !matches!(path, "" | "0") {
        return Err("a cluster has database 0 only: its address ends with its hosts".to_owned());
    }
    let (nodes, login) = hosts_and_login(hosts, REDIS_PORT, like)?;
    Ok((Set::Cluster(nodes), login))
}

/// `[user:password@]host[:port],host[:port]`
fn hosts_and_login(
    text: &str,
    port: u16,
    like: &ConnectionAddr,
) -> Result<(Vec<ConnectionAddr>, RedisConnectionInfo), String> {
    let (credentials, hosts) = text.rsplit_once('@').unwrap_or(("", text));
    let mut login = RedisConnectionInfo::default();
    let (user, password) = credentials.split_once(':').map_or((credentials, None), |(user, of)| (user, Some(of)));
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8();
        text.map(String::from).map_err(|_| "user and password of Redis are UTF-8, percent-encoded".to_owned())
    };
    if !user.is_empty() {
        login = login.set_username(decoded(user)?);
    }
    if let Some(password) = password {
        login = login.set_password(decoded(password)?);
    }
    let hosts: Option<Vec<_>> = hosts.split(',').map(|host| host_and_port(host, port)).collect();
    let hosts = hosts.ok_or("the hosts in the address of Redis are host:port, several with commas")?;
    Ok((hosts.into_iter().map(|(host, port)| at(like, host, port)).collect(), login))
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`
fn host_and_port(text: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default), |port| port.parse().ok().filter(|port| *port > 0))?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    (!host.is_empty() && host.bytes().all(good)).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedisAddress, String> {
        RedisAddress::parse(text, &RedisSecrets::default())
    }

    #[test]
    fn every_form_is_read() {
        for (text, shown) in [
            ("redis://localhost", "localhost:6379"),
            ("redis://user:pass@10.0.0.1:7000/3", "10.0.0.1:7000"),
            ("valkeys://host:1", "host:1"),
            ("redis+unix:///run/redis.sock?db=2", "/run/redis.sock"),
            ("unix:///run/redis.sock", "/run/redis.sock"),
            ("redis+sentinel://a,b:1,[::1]:2/main", "main of the sentinels a:26379,b:1,::1:2"),
            ("rediss+sentinel://u:p@a/main/4", "main of the sentinels a:26379"),
            ("redis+cluster://a,[fe80::1],c:7/", "the cluster of a:6379,fe80::1:6379,c:7"),
            ("valkeys+cluster://:p@a", "the cluster of a:6379"),
        ] {
            assert_eq!(parse(text).map(|address| address.to_string()), Ok(shown.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_server_of_this_machine_is_known() {
        for text in ["redis://localhost", "rediss://127.0.0.1:1", "redis://[::1]", "unix:///run/redis.sock"] {
            assert!(parse(text).is_ok_and(|address| address.is_here()), "{text}");
        }
        for text in ["redis://10.0.0.1", "redis://localhost.example", "redis+cluster://localhost"] {
            assert!(parse(text).is_ok_and(|address| !address.is_here()), "{text}");
        }
    }

    #[test]
    fn credentials_and_database_are_read() {
        let address = parse("redis+sentinel://us%40er:p%3Aw%2C%2F@a/main/4").expect("a good address");
        let addr = address.at("b", 1);
        let redis = address.server(&addr);
        let login = redis.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("us@er"), Some("p:w,/"), 4));
        assert_eq!(address.sentinel(&addr).redis_settings().password(), None, "not for the sentinels");
        assert!(redis.tcp_settings().nodelay());
        let tls = parse("rediss+cluster://a").expect("a good address").at("b", 1);
        assert!(matches!(tls, ConnectionAddr::TcpTls { insecure: false, .. }), "{tls:?}");
        let secrets = RedisSecrets {
            password: Some("one".to_owned()),
            sentinel_user: Some("who".to_owned()),
            sentinel_password: Some("two".to_owned()),
            ..RedisSecrets::default()
        };
        let address = RedisAddress::parse("redis+sentinel://user@a/main", &secrets).expect("a good address");
        let (redis, sentinel) = (address.server(&addr), address.sentinel(&addr));
        let login = redis.redis_settings();
        assert_eq!((login.username(), login.password()), (Some("user"), Some("one")));
        let login = sentinel.redis_settings();
        assert_eq!((login.username(), login.password()), (Some("who"), Some("two")));
    }

    #[test]
    fn a_refusal_tells_nothing_of_the_address() {
        for (text, says) in [
            ("s3cret", "is one of"),
            ("http://u:s3cret@a", "is one of"),
            ("rediss+unix:///s3cret", "is one of"),
            ("redis://u:s3cret@", "cannot be read"),
            ("redis://u:s3cret@a/db", "cannot be read"),
            ("redis://u:s3#cret@a", "has a #"),
            ("rediss://u:s3cret@a/#insecure", "has a #"),
            ("redis+sentinel://u:s3cret@a", "the name of their primary"),
            ("redis+sentinel://u:s3cret@a/", "the name of their primary"),
            ("redis+sentinel://u:s3cret@a/main/x", "is no number"),
            ("redis+cluster://u:s3cret@a/1", "database 0 only"),
            ("redis+cluster://u:s3cret@", "host:port"),
            ("redis+cluster://u:s3cret@a:0", "host:port"),
            ("redis+cluster://u:s3cret@a,,b", "host:port"),
            ("redis+cluster://u:s3cret@a:b:c", "host:port"),
            ("redis+cluster://[s3cret]", "host:port"),
            ("redis+cluster://u:s3cret%FF@a", "percent-encoded"),
        ] {
            let refusal = parse(text).expect_err(text);
            assert!(refusal.contains(says) && !refusal.contains("s3cret"), "{text}: {refusal}");
        }
        let twice = RedisSecrets { password: Some("s3cret".to_owned()), ..RedisSecrets::default() };
        let refusal = RedisAddress::parse("redis://u:s3cret@a", &twice).expect_err("twice");
        assert_eq!(refusal, "the password of Redis stands both in its address and in a file");
        let shown = format!("{:?}", RedisAddress::parse("redis://a", &twice).expect("a good address"));
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn certificates_belong_to_tls() {
        let secrets = RedisSecrets { ca_cert: Some(b"x".to_vec()), ..RedisSecrets::default() };
        let refusal = RedisAddress::parse("redis://a", &secrets).expect_err("no TLS");
        assert!(refusal.contains("rediss"), "{refusal}");
    }
}
