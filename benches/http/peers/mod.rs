//! Other servers that are used for the same, where they are installed: started on loopback in the bench's temporary
//! folder, and asked by clients that speak their own protocols.

mod http2;
mod jetstream;
mod message_db;
mod nats;
mod umadb;
mod webdis;

use std::path::Path;

use streamkeep::redis_server::AppendFsync;

use crate::{
    bench::Arguments,
    load::{self, Address, Client},
    process::Server,
    rows::{Row, Target, Work},
    streams::{Share, Streams},
};

/// A server that runs. Ended when dropped.
pub struct Peer {
    pub target: Target,
    pub server: Server,
    /// What is sure of an append that it has answered.
    pub level: String,
}

/// What a peer is started with.
pub struct Wanted<'a> {
    /// A folder for its files.
    pub data: &'a Path,
    pub fsync: AppendFsync,
    pub message_db: Option<&'a Path>,
}

impl Peer {
    /// Starts all that can be; says which, and why others cannot.
    pub fn start_all(arguments: &Arguments, data: &Path) -> (Vec<Self>, Vec<String>) {
        let wanted = Wanted { data, fsync: arguments.fsync, message_db: arguments.message_db.as_deref() };
        let started =
            [webdis::start(&wanted), jetstream::start(&wanted), message_db::start(&wanted), umadb::start(&wanted)];
        let (mut peers, mut lines) = (Vec::new(), Vec::new());
        for started in started {
            match started {
                Ok(peer) => {
                    lines.push(format!("{}: {}", peer.target.name(), peer.level));
                    peers.push(peer);
                }
                Err(why) => lines.push(format!("left out: {}", why.lines().next().unwrap_or_default())),
            }
        }
        (peers, lines)
    }

    pub fn address(&self) -> Address {
        Address::Tcp(self.server.address)
    }

    /// What is there before anything is measured.
    pub async fn fill(&self, rows: &[Row], group_events: usize) {
        let own = |work| rows.iter().filter(move |row| (row.work, row.target) == (work, self.target));
        if self.target == Target::JetStream {
            let handed_out = own(Work::Next).next().map(|_| group_events);
            jetstream::fill(&self.address(), handed_out).await;
        }
        let readers = own(Work::Read).map(|row| row.connections).max().unwrap_or_default();
        for share in Streams::new("page", readers).share_out(readers) {
            load::ask(&self.address(), appender(self.target, share, crate::clients::PAGE)).await;
        }
    }
}

/// A client that appends so many events at once.
pub fn appender(target: Target, share: Share, events: usize) -> Box<dyn Client> {
    match target {
        Target::Webdis => Box::new(webdis::Append::new(share, events)),
        Target::JetStream => Box::new(jetstream::Append::new(share, events)),
        Target::MessageDb => Box::new(message_db::Append::new(share, events)),
        Target::UmaDb => Box::new(umadb::Append::new(share, events)),
        _ => unreachable!("{} is no peer", target.name()),
    }
}

/// A client that reads a stream of 100 events.
pub fn reader(target: Target, index: usize) -> Box<dyn Client> {
    match target {
        Target::JetStream => Box::new(jetstream::Read::new(index)),
        Target::MessageDb => Box::new(message_db::Read::new(index)),
        Target::UmaDb => Box::new(umadb::Read::new(index)),
        _ => unreachable!("{} is no peer", target.name()),
    }
}

pub use jetstream::{Consume as JetStreamConsumer, seek as seek_jetstream};
