//! `cargo bench --bench http`: appends and reads over HTTP, beside raw calls of the same Redis and an HTTP server that
//! does nothing, in turns, so that the ratios say something where the numbers do not. See `docs/bench.md`.

mod clients;
mod echo;
mod load;
mod process;
mod report;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use clients::{HttpAppend, HttpFill, HttpRead, PAGE, RawAppend, RawRead, Streams};
use load::{Address, Pids, Sample};
use process::Server;
use report::{Row, Target};
use streamkeep::{
    redis_server::{AppendFsync, RedisServer, RedisServerConfig},
    store::Library,
};
use tempfile::TempDir;

/// Streams that are appended to.
const STREAMS: usize = 10_000;

/// Measures appends and reads over HTTP beside raw Redis and a bare HTTP server.
#[derive(Parser)]
struct Arguments {
    /// When Redis syncs to disk
    #[arg(long, value_enum, default_value = "everysec")]
    fsync: AppendFsync,

    /// Seconds that each row is measured in each round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,

    /// Rounds; the table shows their medians
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// Numbers of connections that append
    #[arg(long, value_delimiter = ',', default_value = "1,50,256")]
    connections: Vec<usize>,

    /// Numbers of connections that read
    #[arg(long, value_delimiter = ',', default_value = "1,50")]
    readers: Vec<usize>,

    /// One short round, to see that everything works
    #[arg(long)]
    quick: bool,

    /// Another build of the service, measured beside this one
    #[arg(long)]
    against: Option<PathBuf>,

    /// A further argument of the service, e.g. --service-arg=--writers=4
    #[arg(long)]
    service_arg: Vec<String>,

    /// The same for the build of --against
    #[arg(long)]
    against_arg: Vec<String>,

    /// Given by cargo bench; without it (cargo test) one short round will do
    #[arg(long, hide = true)]
    bench: bool,

    /// Be the bare HTTP server
    #[arg(long, hide = true)]
    echo: Option<SocketAddr>,
}

fn main() {
    let mut arguments = Arguments::parse();
    if let Some(address) = arguments.echo {
        return echo::serve(address);
    }
    if arguments.quick || !arguments.bench {
        (arguments.seconds, arguments.rounds) = (0.3, 1);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let bench = Bench::start(arguments);
    let rows = runtime.block_on(bench.run());
    report::print(&rows, bench.arguments.fsync);
}

/// Everything that runs. Ends with this, Redis last.
struct Bench {
    service: Server,
    against: Option<Server>,
    echo: Server,
    redis: RedisServer,
    data: TempDir,
    arguments: Arguments,
}

impl Bench {
    fn start(arguments: Arguments) -> Self {
        let data = TempDir::new().expect("a temporary folder can be made");
        let mut config = RedisServerConfig::new(data.path());
        config.append_fsync = arguments.fsync;
        // A rewrite would fall upon some row of some round.
        config.settings.push(("auto-aof-rewrite-percentage".to_owned(), "0".to_owned()));
        let redis = RedisServer::start(&config).expect("Redis starts");
        let url = format!("redis+unix://{}", data.path().join("redis.sock").display());
        let serve = |further: &[String], address: SocketAddr| {
            let address = address.to_string();
            let fixed = ["serve", "--redis-url", &url, "--listen", &address, "--log", "warn"].map(str::to_owned);
            fixed.into_iter().chain(further.iter().cloned()).collect()
        };
        let service = PathBuf::from(env!("CARGO_BIN_EXE_streamkeep"));
        let service = Server::start(&service, |address| serve(&arguments.service_arg, address));
        let against = arguments.against.as_deref();
        let against = against.map(|program| Server::start(program, |address| serve(&arguments.against_arg, address)));
        let this = std::env::current_exe().expect("the program knows where it is");
        let echo = Server::start(&this, |address| vec!["--echo".to_owned(), address.to_string()]);
        Self { service, against, echo, redis, data, arguments }
    }

    async fn run(&self) -> Vec<Row> {
        for index in 0..self.arguments.readers.iter().max().copied().unwrap_or_default() {
            load::ask(&Address::Tcp(self.service.address), HttpFill { index }).await;
        }
        let mut rows = Vec::new();
        let targets = [Target::Echo, Target::Raw, Target::Http, Target::Against];
        let wanted = |target: &Target| self.against.is_some() || *target != Target::Against;
        for connections in &self.arguments.connections {
            let row = |target| Row::new("append", 1, *connections, target);
            rows.extend(targets.into_iter().filter(wanted).map(row));
        }
        for connections in &self.arguments.readers {
            let row = |target| Row::new("read", PAGE, *connections, target);
            rows.extend(targets.into_iter().skip(1).filter(wanted).map(row));
        }
        let streams = Target::ALL.map(|target| Streams::new(target.prefix(), STREAMS));
        for round in 0..self.arguments.rounds {
            let mut order: Vec<&mut Row> = rows.iter_mut().collect();
            if round % 2 == 1 {
                // What drifts (a growing log, a busy neighbour) must not fall on the same rows each time.
                order.reverse();
            }
            for row in order {
                let sample = match row.what {
                    "append" => self.append(row, &streams[row.target as usize]).await,
                    _ => self.read(row).await,
                };
                row.samples.push(sample);
            }
        }
        rows
    }

    async fn append(&self, row: &Row, streams: &Arc<Streams>) -> Sample {
        let (address, pids) = self.target(row.target);
        let shares = streams.share_out(row.connections);
        match row.target {
            Target::Raw => {
                let function = Library::default().function("es_append");
                let clients = shares.map(|share| RawAppend::new(share, &function)).collect();
                load::drive(&address, clients, self.duration(), pids).await
            }
            _ => load::drive(&address, shares.map(HttpAppend::new).collect(), self.duration(), pids).await,
        }
    }

    async fn read(&self, row: &Row) -> Sample {
        let (address, pids) = self.target(row.target);
        let indices = 0..row.connections;
        match row.target {
            Target::Raw => load::drive(&address, indices.map(RawRead::new).collect(), self.duration(), pids).await,
            _ => load::drive(&address, indices.map(HttpRead::new).collect(), self.duration(), pids).await,
        }
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.arguments.seconds)
    }

    fn target(&self, target: Target) -> (Address, Pids) {
        let (server, redis) = match target {
            Target::Echo => (&self.echo, None),
            Target::Http => (&self.service, self.redis.pid()),
            Target::Against => (self.against.as_ref().expect("it was started"), self.redis.pid()),
            Target::Raw => {
                let socket = Address::Unix(self.data.path().join("redis.sock"));
                return (socket, Pids { server: None, redis: self.redis.pid() });
            }
        };
        (Address::Tcp(server.address), Pids { server: Some(server.pid()), redis })
    }
}
