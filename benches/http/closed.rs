//! The rows of the closed loop: appends, reads and consumer groups.

use std::sync::{Arc, atomic::AtomicUsize};

use streamkeep::store::Library;

use crate::{
    bench::{Arguments, Bench, What},
    clients::{HttpAppend, HttpFill, HttpRead, PAGE, Pipelined, RawAppend, RawRead, Xadd},
    groups::{Fill, HttpConsumer, HttpGroup, RawConsumer, RawGroup},
    load::{self, Client, Sample},
    peers::{self, JetStreamConsumer},
    rows::{CROWD, PIPELINE, Row, Target, Work, in_turn},
    streams::{Share, Streams},
};

/// Streams that are appended to.
pub const STREAMS: usize = 10_000;
/// Events of an append with several.
pub const BATCH: usize = 10;
/// Consumers of a group, and how many events each asks for at once.
const CONSUMERS: [(usize, usize); 3] = [(8, 1), (1, 100), (8, 100)];

/// The streams of each target.
pub struct Closed<'a> {
    bench: &'a Bench,
    streams: Vec<Arc<Streams>>,
}

impl<'a> Closed<'a> {
    pub fn new(bench: &'a Bench) -> Self {
        let streams = Target::ALL.into_iter().map(|target| Streams::new(target.prefix(), STREAMS)).collect();
        Self { bench, streams }
    }

    /// Measures such rows, in rounds.
    pub async fn run(&self, mut rows: Vec<Row>) -> Vec<Row> {
        self.fill(&rows).await;
        for round in 0..self.bench.arguments.rounds {
            for row in in_turn(&mut rows, round) {
                let sample = self.measure(row).await;
                row.samples.push(sample);
            }
        }
        rows
    }

    /// All that is wanted.
    pub fn rows(&self) -> Vec<Row> {
        let Arguments { connections, readers, .. } = &self.bench.arguments;
        let mut wanted = Vec::new();
        if self.bench.arguments.wants(What::Append) {
            wanted.extend(connections.iter().map(|connections| (Work::Append, 1, *connections)));
            wanted.push((Work::Append, BATCH, CROWD));
        }
        if self.bench.arguments.wants(What::Read) {
            wanted.extend(readers.iter().map(|connections| (Work::Read, PAGE, *connections)));
        }
        if self.bench.arguments.wants(What::Groups) {
            let row = |(connections, events)| [Work::Next, Work::Ordered].map(|work| (work, events, connections));
            wanted.extend(CONSUMERS.into_iter().flat_map(row));
        }
        let rows = wanted.into_iter().flat_map(|(work, events, connections)| {
            let targets = work.targets(events, connections).into_iter();
            targets.map(move |target| Row::new(work, events, connections, target))
        });
        rows.filter(|row| self.bench.has(row.target)).collect()
    }

    /// What is there before anything is measured. What groups hand out comes first in the log, for they begin at the
    /// beginning.
    async fn fill(&self, rows: &[Row]) {
        let (redis, service) = (self.bench.target(Target::Raw).0, self.bench.target(Target::Http).0);
        for row in rows.iter().filter(|row| row.work.ordering().is_some() && row.target.is_service()) {
            let group = HttpGroup::create(&row.group(), row.work.ordering().unwrap_or_default());
            load::ask(&self.bench.target(row.target).0, group).await;
        }
        if rows.iter().any(|row| row.work.ordering().is_some()) {
            load::ask_all(&redis, Fill::new(self.bench.arguments.group_events)).await;
        }
        let readers = rows.iter().filter(|row| row.work == Work::Read).map(|row| row.connections).max();
        for index in 0..readers.unwrap_or_default() {
            load::ask(&service, HttpFill { index }).await;
        }
        for peer in &self.bench.peers {
            peer.fill(rows, self.bench.arguments.group_events).await;
        }
    }

    /// One round of a row.
    pub async fn measure(&self, row: &Row) -> Sample {
        let (address, pids) = self.bench.target(row.target);
        let clients = match row.work {
            Work::Append => self.appenders(row.target, row.events, row.connections),
            Work::Read => (0..row.connections).map(|index| reader(row.target, index)).collect(),
            Work::Next | Work::Ordered => self.consumers(row).await,
        };
        load::drive(&address, clients, self.bench.arguments.duration(), pids).await
    }

    /// Those who append so many events at a time to the target's own streams.
    pub fn appenders(&self, target: Target, events: usize, connections: usize) -> Vec<Box<dyn Client>> {
        let function = Library::default().function("es_append");
        let appender = |share: Share| -> Box<dyn Client> {
            match target {
                Target::Echo | Target::Http | Target::Against => Box::new(HttpAppend::new(share, events)),
                Target::Raw => Box::new(RawAppend::new(share, &function, events)),
                Target::RawPipelined => Box::new(Pipelined::new(RawAppend::new(share, &function, events), PIPELINE)),
                Target::Xadd => Box::new(Xadd::new(share)),
                Target::XaddPipelined => Box::new(Pipelined::new(Xadd::new(share), PIPELINE)),
                _ => peers::appender(target, share, events),
            }
        };
        self.streams[target as usize].share_out(connections).map(appender).collect()
    }

    async fn consumers(&self, row: &Row) -> Vec<Box<dyn Client>> {
        let (address, group) = (self.bench.target(row.target).0, row.group());
        let (left, consumers) = (Arc::new(AtomicUsize::new(self.bench.arguments.group_events)), 0..row.connections);
        if row.target == Target::Raw {
            load::ask(&address, RawGroup).await;
            return consumers.map(|index| boxed(RawConsumer::new(index, row.events, &left))).collect();
        }
        if row.target == Target::JetStream {
            peers::seek_jetstream(&address).await;
            return consumers.map(|index| boxed(JetStreamConsumer::new(index, row.events, &left))).collect();
        }
        load::ask(&address, HttpGroup::seek(&group)).await;
        consumers.map(|index| boxed(HttpConsumer::new(&group, index, row.events, &left))).collect()
    }
}

fn reader(target: Target, index: usize) -> Box<dyn Client> {
    match target {
        Target::Raw => boxed(RawRead::new(index)),
        Target::Http | Target::Against => boxed(HttpRead::new(&format!("page-{index:08}"), PAGE)),
        _ => peers::reader(target, index),
    }
}

fn boxed(client: impl Client) -> Box<dyn Client> {
    Box::new(client)
}
