//! What was asked for, and everything that runs: Redis, the service, the echo, the peers.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use streamkeep::redis_server::{AppendFsync, RedisServer, RedisServerConfig};
use tempfile::TempDir;

use crate::{
    load::{Address, Pids},
    peers::Peer,
    process::{Server, until},
    rows::Target,
};

/// Measures appends, reads, consumer groups and feeds over HTTP beside raw Redis, a bare HTTP server and other servers.
#[derive(Clone, Parser)]
pub struct Arguments {
    /// When Redis syncs to disk
    #[arg(long, value_enum, default_value = "everysec")]
    pub fsync: AppendFsync,

    /// Seconds that each row is measured in each round
    #[arg(long, default_value_t = 1.5)]
    pub seconds: f64,

    /// Rounds; the table shows their medians
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,

    /// Numbers of connections that append one event
    #[arg(long, value_delimiter = ',', default_value = "1,50,256")]
    pub connections: Vec<usize>,

    /// Numbers of connections that read
    #[arg(long, value_delimiter = ',', default_value = "1,50")]
    pub readers: Vec<usize>,

    /// Events that each row of consumer groups hands out in each round, at most
    #[arg(long, default_value_t = 200_000)]
    pub group_events: usize,

    /// Most followers of feeds; as far as the limit of open files allows
    #[arg(long, default_value_t = 10_000)]
    pub followers: usize,

    /// Events of the largest store of growth: 10 thousand, 1 million or 10 million
    #[arg(long, default_value_t = 1_000_000)]
    pub events: usize,

    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "append,read,groups,open,fsync,feeds")]
    pub only: Vec<What>,

    /// Where to write a picture of the appends, as SVG
    #[arg(long)]
    pub plot: Option<PathBuf>,

    /// One short round, to see that everything works
    #[arg(long)]
    pub quick: bool,

    /// Another build of the service, measured beside this one
    #[arg(long)]
    pub against: Option<PathBuf>,

    /// A further argument of the service, e.g. --service-arg=--writers=4
    #[arg(long)]
    pub service_arg: Vec<String>,

    /// The same for the build of --against
    #[arg(long)]
    pub against_arg: Vec<String>,

    /// The folder of Message DB's install.sh, to have it measured too
    #[arg(long)]
    pub message_db: Option<PathBuf>,

    /// Leave out the other servers that are installed
    #[arg(long)]
    pub no_peers: bool,

    /// Given by cargo bench; without it (cargo test) one short round will do
    #[arg(long, hide = true)]
    pub bench: bool,

    /// Be the bare HTTP server
    #[arg(long, hide = true)]
    pub echo: Option<SocketAddr>,
}

/// Rows that belong together.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Appends in a closed loop
    Append,
    /// Reads of a stream of 100 events
    Read,
    /// Consumer groups: next and ack
    Groups,
    /// Appends at fixed rates, in an open loop
    Open,
    /// One writer and many where every append is on disk before it is answered
    Fsync,
    /// Followers of the log
    Feeds,
    /// Stores of up to --events events; not measured unless it is asked for
    Growth,
}

impl Arguments {
    /// As given, or shorter where all that matters is whether it works.
    pub fn get() -> Self {
        let mut arguments = Self::parse();
        if arguments.quick || !arguments.bench {
            (arguments.seconds, arguments.rounds) = (0.3, 1);
            (arguments.group_events, arguments.followers, arguments.events) = (20_000, 1_000, 10_000);
        }
        arguments
    }

    pub fn wants(&self, what: What) -> bool {
        self.only.contains(&what)
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Starts the service, with further arguments.
    pub fn service(&self, data: &TempDir, further: &[String]) -> Server {
        serve(Path::new(env!("CARGO_BIN_EXE_streamkeep")), data, &[&self.service_arg, further].concat())
    }

    /// Starts the other build, where there is one.
    pub fn against(&self, data: &TempDir, further: &[String]) -> Option<Server> {
        Some(serve(self.against.as_deref()?, data, &[&self.against_arg, further].concat()))
    }
}

fn serve(program: &Path, data: &TempDir, further: &[String]) -> Server {
    let url = format!("redis+unix://{}", data.path().join("redis.sock").display());
    let server = Server::start(program, |address| {
        let address = address.to_string();
        let fixed = ["serve", "--redis-url", &url, "--listen", &address, "--log", "warn"].map(str::to_owned);
        fixed.into_iter().chain(further.iter().cloned()).collect()
    });
    let server = server.expect("the service starts");
    // It listens before Redis has its functions, and raw calls need them too.
    until("the service", || Ok(is_ready(server.address).unwrap_or_default())).expect("Redis is there");
    server
}

fn is_ready(address: SocketAddr) -> io::Result<bool> {
    let (mut stream, mut answer) = (TcpStream::connect(address)?, Vec::new());
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// Starts Redis with what is in the folder.
pub fn start_redis(arguments: &Arguments, data: &TempDir) -> RedisServer {
    let mut config = RedisServerConfig::new(data.path());
    config.append_fsync = arguments.fsync;
    // A rewrite would fall upon some row of some round.
    config.settings.push(("auto-aof-rewrite-percentage".to_owned(), "0".to_owned()));
    RedisServer::start(&config).expect("Redis starts")
}

/// Everything that runs. Ends with this, Redis last.
pub struct Bench {
    service: Server,
    against: Option<Server>,
    echo: Server,
    pub peers: Vec<Peer>,
    /// What is sure of what the peers have answered, and which are left out.
    pub notes: Vec<String>,
    pub redis: RedisServer,
    pub data: TempDir,
    pub arguments: Arguments,
}

impl Bench {
    pub fn start(arguments: Arguments) -> Self {
        let data = TempDir::new().expect("a temporary folder can be made");
        let redis = start_redis(&arguments, &data);
        let service = arguments.service(&data, &[]);
        let against = arguments.against(&data, &[]);
        let this = std::env::current_exe().expect("the program knows where it is");
        let echo = Server::start(&this, |address| vec!["--echo".to_owned(), address.to_string()]);
        let echo = echo.expect("this program starts");
        let compared = [What::Append, What::Read, What::Groups].into_iter().any(|what| arguments.wants(what));
        let started = (compared && !arguments.no_peers).then(|| Peer::start_all(&arguments, data.path()));
        let (peers, notes) = started.unwrap_or_default();
        Self { service, against, echo, peers, notes, redis, data, arguments }
    }

    /// Ends the peers, one of which has connections to Redis.
    pub fn without_peers(self) -> Self {
        Self { peers: Vec::new(), ..self }
    }

    /// Ends all but Redis.
    pub fn without_services(self) -> (RedisServer, TempDir, Arguments) {
        (self.redis, self.data, self.arguments)
    }

    pub fn has(&self, target: Target) -> bool {
        match target {
            Target::Against => self.against.is_some(),
            peer if peer.is_peer() => self.peer(peer).is_some(),
            _ => true,
        }
    }

    fn peer(&self, target: Target) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.target == target)
    }

    /// What Redis says to a command.
    pub fn ask<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        let client = redis::Client::open(self.redis.address()).expect("a good address");
        let mut connection = client.get_connection().expect("Redis accepts connections");
        command.query(&mut connection).expect("Redis answers")
    }

    /// Where a target is, and who works for it.
    pub fn target(&self, target: Target) -> (Address, Pids) {
        let redis = self.redis.pid();
        let (server, redis) = match target {
            Target::Echo => (&self.echo, None),
            Target::Http => (&self.service, redis),
            Target::Against => (self.against.as_ref().expect("it was started"), redis),
            Target::Raw | Target::RawPipelined | Target::Xadd | Target::XaddPipelined => {
                return (Address::Unix(self.data.path().join("redis.sock")), Pids { server: None, redis });
            }
            Target::Webdis => (&self.peer(target).expect("it was started").server, redis),
            Target::JetStream | Target::MessageDb | Target::UmaDb => {
                (&self.peer(target).expect("it was started").server, None)
            }
        };
        (Address::Tcp(server.address), Pids { server: Some(server.pid()), redis })
    }
}
