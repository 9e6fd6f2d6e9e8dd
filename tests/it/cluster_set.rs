//! The fixture of a cluster: primaries, with a replica each or none, all real.

use std::{net::SocketAddr, sync::Arc};

use futures::future::join_all;
use redis::{Value, aio::MultiplexedConnection};
use streamkeep::model::StreamId;

use crate::{
    app::{TestApp, TestRedis, eventually, free_address},
    nodes::Node,
};

/// Slots of a cluster.
const SLOTS: usize = 16_384;
/// How long a server may be silent before the others take it for dead, in ms.
const NODE_TIMEOUT_MS: usize = 1_500;

/// An address, and another port for the bus.
fn place() -> (SocketAddr, String) {
    let address = free_address();
    let mut others = std::iter::repeat_with(|| free_address().port());
    (address, others.find(|port| *port != address.port()).unwrap().to_string())
}

/// A cluster. The first of the servers are its primaries, each with an equal share of the slots.
pub struct Cluster {
    pub servers: Vec<Node>,
    primaries: usize,
}

impl Cluster {
    /// Starts one with so many primaries, and as many replicas if these are wanted.
    pub async fn start(primaries: usize, replicas: bool) -> Self {
        let count = if replicas { 2 * primaries } else { primaries };
        let places: Vec<_> = (0..count).map(|_| place()).collect();
        let servers = join_all(places.iter().map(async |(address, bus)| {
            let timeout = NODE_TIMEOUT_MS.to_string();
            let settings = [
                ("cluster-enabled", "yes"),
                ("cluster-node-timeout", &timeout),
                ("cluster-port", bus),
                // One shard that is down is to touch nobody else.
                ("cluster-require-full-coverage", "no"),
            ];
            Node::start_at(*address, &settings).await
        }));
        let cluster = Self { servers: servers.await, primaries };
        for (place, server) in cluster.servers.iter().enumerate() {
            server.ask::<()>(&format!("CLUSTER SET-CONFIG-EPOCH {}", place + 1)).await;
            if place < primaries {
                let (from, to) = (SLOTS * place / primaries, SLOTS * (place + 1) / primaries - 1);
                server.ask::<()>(&format!("CLUSTER ADDSLOTSRANGE {from} {to}")).await;
            }
        }
        for server in &cluster.servers {
            for (other, (_, bus)) in cluster.servers.iter().zip(&places) {
                let (ip, port) = (other.address.ip(), other.address.port());
                server.ask::<()>(&format!("CLUSTER MEET {ip} {port} {bus}")).await;
            }
        }
        cluster.all_say("cluster_known_nodes", &count.to_string()).await;
        for (place, replica) in cluster.servers.iter().enumerate().skip(primaries) {
            let of: String = cluster.servers[place - primaries].ask("CLUSTER MYID").await;
            replica.ask::<()>(&format!("CLUSTER REPLICATE {of}")).await;
        }
        cluster.all_say("cluster_state", "ok").await;
        eventually("the replicas have all", async || {
            let of_each = cluster.servers[primaries..].iter().map(|replica| replica.info("master_link_status"));
            join_all(of_each).await.iter().all(|status| status == "up")
        })
        .await;
        cluster
    }

    /// Waits until all servers say this in `CLUSTER INFO`.
    pub async fn all_say(&self, field: &str, value: &str) {
        let line = format!("{field}:{value}\r\n");
        eventually(&line, async || {
            let said = self.servers.iter().map(|server| server.try_ask::<String>("CLUSTER INFO"));
            join_all(said).await.iter().all(|said| said.as_ref().is_ok_and(|said| said.contains(&line)))
        })
        .await;
    }

    /// Of the first two only: they know the others.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.servers[..2].iter().map(|server| server.address.to_string()).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    pub fn redis(&self) -> Arc<TestRedis> {
        TestRedis::of_set(&self.url())
    }

    pub async fn app(&self, partitions: u16) -> TestApp {
        TestApp::start_on(self.redis(), partitions).await
    }

    /// The place of the server that has a partition now, as a server says that answers.
    pub async fn home(&self, partition: u16) -> usize {
        let mut home = None;
        eventually("a partition is with somebody", async || {
            for server in &self.servers {
                let slot: redis::RedisResult<u16> = server.try_ask(&format!("CLUSTER KEYSLOT {{{partition}}}")).await;
                let shares: redis::RedisResult<Vec<Vec<Value>>> = server.try_ask("CLUSTER SLOTS").await;
                let (Ok(slot), Ok(shares)) = (slot, shares) else { continue };
                home = shares.into_iter().find_map(|share| self.server_of(share, slot));
                return home.is_some();
            }
            false
        })
        .await;
        home.unwrap()
    }

    fn server_of(&self, share: Vec<Value>, slot: u16) -> Option<usize> {
        let mut share = share.into_iter();
        let mut number = || redis::from_redis_value::<u16>(share.next().unwrap()).unwrap();
        let (from, to) = (number(), number());
        let (_, port, _, _): (Value, u16, Value, Value) = redis::from_redis_value(share.next()?).ok()?;
        let found = self.servers.iter().position(|server| server.address.port() == port);
        found.filter(|_| (from..=to).contains(&slot))
    }

    /// Of each partition what stands before its keys, and a connection to where it is.
    pub async fn homes(&self, partitions: u16) -> Vec<(String, MultiplexedConnection)> {
        let mut homes = Vec::new();
        for partition in 0..partitions {
            let home = &self.servers[self.home(partition).await];
            homes.push((format!("{{{partition}}}:"), home.connection().await));
        }
        homes
    }

    /// The partitions that a primary has at the beginning.
    pub async fn partitions_of(&self, place: usize, partitions: u16) -> Vec<u16> {
        let mut has = Vec::new();
        for partition in 0..partitions {
            if self.home(partition).await == place {
                has.push(partition);
            }
        }
        has
    }

    /// The replica of one of the first primaries.
    pub fn replica_of(&self, place: usize) -> usize {
        assert!(self.servers.len() > self.primaries, "there are none");
        place + self.primaries
    }
}

/// A stream in a partition.
pub fn stream_in(app: &TestApp, partition: u16) -> String {
    let of = |id: &str| app.store.partition(&StreamId::parse(id).unwrap()).get();
    (0..10_000).map(|number| format!("order-{number}")).find(|id| of(id) == partition).unwrap()
}
