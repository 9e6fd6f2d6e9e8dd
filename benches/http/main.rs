//! `cargo bench --bench http`: appends, reads, consumer groups and feeds over HTTP, beside raw calls of the same Redis and
//! an HTTP server that does nothing, in turns, so that the ratios say something where the numbers do not. See
//! `docs/bench.md`.

mod clients;
mod echo;
mod feed_tables;
mod feeds;
mod followers;
mod groups;
mod load;
mod process;
mod report;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use clap::Parser;
use clients::{HttpAppend, HttpFill, HttpRead, PAGE, RawAppend, RawRead, Streams};
use feeds::Feeds;
use groups::{Fill, HttpConsumer, HttpGroup, RawConsumer, RawGroup};
use load::{Address, Pids, Sample};
use process::Server;
use report::{Row, Target, Work};
use streamkeep::{
    redis_server::{AppendFsync, RedisServer, RedisServerConfig},
    store::Library,
};
use tempfile::TempDir;

/// Streams that are appended to.
const STREAMS: usize = 10_000;
/// Consumers of a group, and how many events each asks for at once.
const CONSUMERS: [(usize, usize); 3] = [(8, 1), (1, 100), (8, 100)];

/// Measures appends, reads, consumer groups and feeds over HTTP beside raw Redis and a bare HTTP server.
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

    /// Events that each row of consumer groups hands out in each round, at most
    #[arg(long, default_value_t = 200_000)]
    group_events: usize,

    /// Most followers of feeds; as far as the limit of open files allows
    #[arg(long, default_value_t = 10_000)]
    followers: usize,

    /// What to measure: append, read, groups, feeds
    #[arg(long, value_enum, value_delimiter = ',', default_value = "append,read,groups,feeds")]
    only: Vec<What>,

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

/// Rows that belong together.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    Append,
    Read,
    Groups,
    Feeds,
}

fn main() {
    let mut arguments = Arguments::parse();
    if let Some(address) = arguments.echo {
        return echo::serve(address);
    }
    if arguments.quick || !arguments.bench {
        (arguments.seconds, arguments.rounds, arguments.group_events, arguments.followers) = (0.3, 1, 20_000, 1_000);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let bench = Bench::start(arguments);
    let rows = runtime.block_on(bench.run());
    report::print(&rows, bench.arguments.fsync);
    if bench.arguments.only.contains(&What::Feeds) {
        runtime.block_on(Feeds::start(&bench).run()).print();
    }
}

impl Arguments {
    /// Starts the service, with further arguments.
    fn service(&self, data: &TempDir, further: &[String]) -> Server {
        serve(Path::new(env!("CARGO_BIN_EXE_streamkeep")), data, &[&self.service_arg, further].concat())
    }

    /// Starts the other build, where there is one.
    fn against(&self, data: &TempDir, further: &[String]) -> Option<Server> {
        Some(serve(self.against.as_deref()?, data, &[&self.against_arg, further].concat()))
    }
}

fn serve(program: &Path, data: &TempDir, further: &[String]) -> Server {
    let url = format!("redis+unix://{}", data.path().join("redis.sock").display());
    Server::start(program, |address| {
        let address = address.to_string();
        let fixed = ["serve", "--redis-url", &url, "--listen", &address, "--log", "warn"].map(str::to_owned);
        fixed.into_iter().chain(further.iter().cloned()).collect()
    })
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
        let service = arguments.service(&data, &[]);
        let against = arguments.against(&data, &[]);
        let this = std::env::current_exe().expect("the program knows where it is");
        let echo = Server::start(&this, |address| vec!["--echo".to_owned(), address.to_string()]);
        Self { service, against, echo, redis, data, arguments }
    }

    async fn run(&self) -> Vec<Row> {
        let mut rows = self.rows();
        self.fill(&rows).await;
        let streams = Target::ALL.map(|target| Streams::new(target.prefix(), STREAMS));
        for round in 0..self.arguments.rounds {
            let mut order: Vec<&mut Row> = rows.iter_mut().collect();
            if round % 2 == 1 {
                // What drifts (a growing log, a busy neighbour) must not fall on the same rows each time.
                order.reverse();
            }
            for row in order {
                let sample = match row.work {
                    Work::Append => self.append(row, &streams[row.target as usize]).await,
                    Work::Read => self.read(row).await,
                    Work::Next | Work::Ordered => self.consume(row).await,
                };
                row.samples.push(sample);
            }
        }
        rows
    }

    fn rows(&self) -> Vec<Row> {
        let Arguments { connections, readers, only, .. } = &self.arguments;
        let mut wanted = Vec::new();
        if only.contains(&What::Append) {
            wanted.extend(connections.iter().map(|connections| (Work::Append, 1, *connections)));
        }
        if only.contains(&What::Read) {
            wanted.extend(readers.iter().map(|connections| (Work::Read, PAGE, *connections)));
        }
        if only.contains(&What::Groups) {
            let row = |(connections, events)| [Work::Next, Work::Ordered].map(|work| (work, events, connections));
            wanted.extend(CONSUMERS.into_iter().flat_map(row));
        }
        let rows = wanted.into_iter().flat_map(|(work, events, connections)| {
            work.targets().iter().map(move |target| Row::new(work, events, connections, *target))
        });
        rows.filter(|row| self.against.is_some() || row.target != Target::Against).collect()
    }

    /// What is there before anything is measured. What groups hand out comes first in the log, for they begin at the
    /// beginning. Before that the service is asked: when it answers, its functions are loaded.
    async fn fill(&self, rows: &[Row]) {
        let (redis, service) = (self.target(Target::Raw).0, self.target(Target::Http).0);
        for row in rows.iter().filter(|row| row.work.ordering().is_some() && row.target != Target::Raw) {
            let group = HttpGroup::create(&row.group(), row.work.ordering().unwrap_or_default());
            load::ask(&self.target(row.target).0, group).await;
        }
        if self.arguments.only.contains(&What::Groups) {
            load::ask_all(&redis, Fill::new(self.arguments.group_events)).await;
        }
        let readers = rows.iter().filter(|row| row.work == Work::Read).map(|row| row.connections).max();
        for index in 0..readers.unwrap_or_default() {
            load::ask(&service, HttpFill { index }).await;
        }
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

    async fn consume(&self, row: &Row) -> Sample {
        let ((address, pids), group) = (self.target(row.target), row.group());
        let (left, consumers) = (Arc::new(AtomicUsize::new(self.arguments.group_events)), 0..row.connections);
        if row.target == Target::Raw {
            load::ask(&address, RawGroup).await;
            let clients = consumers.map(|index| RawConsumer::new(index, row.events, &left)).collect();
            return load::drive(&address, clients, self.duration(), pids).await;
        }
        load::ask(&address, HttpGroup::seek(&group)).await;
        let clients = consumers.map(|index| HttpConsumer::new(&group, index, row.events, &left)).collect();
        load::drive(&address, clients, self.duration(), pids).await
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
