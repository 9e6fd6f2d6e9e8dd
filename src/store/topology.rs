//! Which server is the primary of what: always the same one, the one that sentinels name, or as the slots of a cluster lie.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crc::{CRC_16_XMODEM, Crc};
use futures::{
    StreamExt as _,
    future::{join_all, ready},
    stream,
};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, FromRedisValue, Pipeline, RedisResult, Value, aio::MultiplexedConnection,
};

use tokio::{sync::Notify, task::JoinSet, time::sleep};

use crate::store::{
    StartError,
    address::{RedisAddress, Set},
    primary::connection_config,
    view::{Claim, SLOTS, View},
};

/// How long one server may take to say what it knows: others know it too.
const ANSWER: Duration = Duration::from_secs(1);
/// How many servers of a cluster are asked at the same time, and heard at most.
const ASKED: usize = 3;
/// How long others are heard after the first has answered. Time enough for one that is well, and next to the pauses between
/// looks no wait for one that is dead.
const HEARD: Duration = Duration::from_millis(100);

/// Asks who is primary, and gives what each says that answers, one at least. `known` are servers of a cluster that there
/// were lately.
pub(super) async fn look(
    address: &RedisAddress,
    known: &[ConnectionAddr],
    timeout: Duration,
) -> Result<Vec<View>, StartError> {
    let timeout = timeout.min(ANSWER);
    match &address.set {
        Set::Single(addr) => Ok(vec![View::of_one(addr.clone())]),
        Set::Sentinel { sentinels, name } => {
            let asks = sentinels.iter().map(|sentinel| ask_sentinel(address, sentinel, name, timeout));
            let answers = join_all(asks).await;
            // Those that heard of the last failover number it higher.
            let newest = answers.iter().flatten().max_by_key(|(epoch, _)| *epoch);
            let Some((_, addr)) = newest else {
                return Err(no_primary(address, answers.into_iter().find_map(Result::err)));
            };
            check_role(address, addr, timeout).await?;
            Ok(vec![View::of_one(addr.clone())])
        }
        Set::Cluster(seeds) => {
            let others = seeds.iter().filter(|seed| !known.contains(seed));
            let mut nodes: Vec<_> = known.iter().chain(others).cloned().collect();
            fastrand::shuffle(&mut nodes);
            ask_cluster(address, nodes, timeout).await
        }
    }
}

/// What some servers of a cluster say. One would do, but it may be one that was away.
async fn ask_cluster(
    address: &RedisAddress,
    nodes: Vec<ConnectionAddr>,
    timeout: Duration,
) -> Result<Vec<View>, StartError> {
    let asks = nodes.into_iter().map(|node| ask_node(address, node, timeout));
    let mut answers = stream::iter(asks).buffer_unordered(ASKED);
    let mut said = None;
    let first = loop {
        match answers.next().await {
            Some(Ok(view)) => break view,
            Some(Err(error)) => said = Some(error),
            None => return Err(no_primary(address, said)),
        }
    };
    let others = answers.filter_map(|answer| ready(answer.ok())).take(ASKED - 1).take_until(sleep(HEARD));
    Ok(stream::iter([first]).chain(others).collect().await)
}

/// Nobody says who is primary; `said` is what one of them said instead.
fn no_primary(address: &RedisAddress, said: Option<impl ToString>) -> StartError {
    StartError::NoPrimary { of: address.to_string(), said: said.map(|error| error.to_string()).unwrap_or_default() }
}

/// Hears what sentinels tell of a failover, and says that another server may be primary: the old one may take writes for
/// seconds yet, which nobody will know of. Ends when dropped.
pub(super) fn listen(address: &RedisAddress, doubted: &Arc<Notify>) -> JoinSet<()> {
    let mut listeners = JoinSet::new();
    if let Set::Sentinel { sentinels, .. } = &address.set {
        for sentinel in sentinels {
            let (info, doubted) = (address.sentinel(sentinel), Arc::clone(doubted));
            listeners.spawn(async move {
                loop {
                    let _ = listen_to(info.clone(), &doubted).await;
                    sleep(ANSWER.mul_f64(0.5 + fastrand::f64())).await;
                }
            });
        }
    }
    listeners
}

async fn listen_to(info: ConnectionInfo, doubted: &Notify) -> RedisResult<()> {
    let mut events = Client::open(info)?.get_async_pubsub().await?;
    // The first comes from the sentinel that leads the failover, the second from each that has heard of it.
    events.subscribe("+promoted-slave").await?;
    events.subscribe("+switch-master").await?;
    let mut events = events.into_on_message();
    while events.next().await.is_some() {
        doubted.notify_one();
    }
    Ok(())
}

/// The slot of a key in a cluster: of what stands in its first braces, where something does.
pub(super) fn slot(key: &str) -> u16 {
    const CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);
    let braces = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    CRC16.checksum(braces.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes()) % SLOTS
}

/// Where a MOVED points: `3999 127.0.0.1:6381`. Without a host, at another port of the server that said so.
pub(super) fn moved_to(address: &RedisAddress, details: &str, by: &ConnectionAddr) -> Option<ConnectionAddr> {
    let (host, port) = details.split_whitespace().nth(1)?.rsplit_once(':')?;
    let host = if host.is_empty() { host_of(by)? } else { host };
    Some(address.at(host, port.parse().ok()?))
}

fn host_of(addr: &ConnectionAddr) -> Option<&str> {
    match addr {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => Some(host),
        _ => None,
    }
}

/// A connection for a question or two.
pub(super) async fn connect(info: ConnectionInfo, timeout: Duration) -> RedisResult<MultiplexedConnection> {
    Client::open(info)?.get_multiplexed_async_connection_with_config(&connection_config(timeout, timeout)).await
}

/// What a sentinel calls by this name, and the number of the failover that made it so.
async fn ask_sentinel(
    address: &RedisAddress,
    sentinel: &ConnectionAddr,
    name: &str,
    timeout: Duration,
) -> RedisResult<(u64, ConnectionAddr)> {
    let mut connection = connect(address.sentinel(sentinel), timeout).await?;
    let mut commands = Pipeline::with_capacity(2);
    commands.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    commands.cmd("SENTINEL").arg("MASTER").arg(name);
    let (addr, facts): (Option<(String, u16)>, Vec<String>) = commands.query_async(&mut connection).await?;
    let unknown = || redis::RedisError::from((redis::ErrorKind::Client, "a sentinel knows no primary of this name"));
    let (host, port) = addr.ok_or_else(unknown)?;
    let epoch = facts.chunks_exact(2).find(|pair| pair[0] == "config-epoch").and_then(|pair| pair[1].parse().ok());
    Ok((epoch.unwrap_or(0), address.at(&host, port)))
}

/// That a server is a primary: a sentinel may know of it from long ago.
async fn check_role(address: &RedisAddress, addr: &ConnectionAddr, timeout: Duration) -> Result<(), StartError> {
    let mut connection = connect(address.server(addr), timeout).await?;
    let role = connection.send_packed_commands(&ask_role(), 0, 1).await?.pop();
    let is_primary = is_primary(role)?;
    if is_primary { Ok(()) } else { Err(StartError::NotPrimary(addr.to_string())) }
}

/// The question whose answer `is_primary` reads (`ROLE`).
pub(super) fn ask_role() -> Pipeline {
    let mut role = Pipeline::with_capacity(1);
    role.cmd("ROLE");
    role
}

/// Whether that is the role of a primary.
pub(super) fn is_primary(reply: Option<impl Into<Value>>) -> RedisResult<bool> {
    let role: Vec<Value> = redis::from_redis_value(reply.map_or(Value::Nil, Into::into))?;
    let role: Option<String> = role.into_iter().next().map(redis::from_redis_value).transpose()?;
    Ok(role.as_deref() == Some("master"))
}

/// How the slots lie, as one server of a cluster knows.
async fn ask_node(address: &RedisAddress, node: ConnectionAddr, timeout: Duration) -> Result<View, StartError> {
    let mut connection = connect(address.server(&node), timeout).await?;
    let mut commands = Pipeline::with_capacity(3);
    // Only NODES tells epochs, and only SLOTS addresses as clients are to use them. In this order: should something change
    // in between, an owner's epoch is too low, which a later look mends.
    commands.cmd("CLUSTER").arg("NODES");
    commands.cmd("CLUSTER").arg("SLOTS");
    commands.cmd("CLUSTER").arg("INFO");
    let (nodes, slots, info): (String, Vec<Vec<Value>>, String) = commands.query_async(&mut connection).await?;
    let view = view(address, &node, &epochs(&nodes), slots)?;
    // One that was cut off from the others says so, and one that is new.
    if info.contains("cluster_state:ok") {
        return Ok(view);
    }
    Err(StartError::NoPrimary { of: node.to_string(), said: "it does not say cluster_state:ok".to_owned() })
}

/// `CLUSTER NODES`: a line a server, with its id first, and its config epoch as the seventh word.
fn epochs(nodes: &str) -> HashMap<&str, u64> {
    let epochs = nodes.lines().map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.nth(5)?.parse().ok()?))
    });
    epochs.flatten().collect()
}

/// `CLUSTER SLOTS`: first and last slot, the primary, its replicas.
fn view(
    address: &RedisAddress,
    asked: &ConnectionAddr,
    epochs: &HashMap<&str, u64>,
    slots: Vec<Vec<Value>>,
) -> RedisResult<View> {
    let (mut claims, mut others) = (Vec::new(), Vec::new());
    for share in slots {
        let mut share = share.into_iter();
        let mut number = || u16::from_redis_value(share.next().unwrap_or(Value::Nil));
        let slots = number()?..=number()?;
        let mut nodes = share.filter_map(|node| server(address, asked, node));
        let Some((owner, id)) = nodes.next() else { continue };
        claims.push(Claim { slots, owner, epoch: epochs.get(&*id).copied().unwrap_or(0), moved: false });
        others.extend(nodes.map(|(replica, _)| replica));
    }
    Ok(View::new(&claims, others))
}

/// Where a server is, and its id. `None` where it is not known where.
fn server(address: &RedisAddress, asked: &ConnectionAddr, node: Value) -> Option<(ConnectionAddr, String)> {
    let Value::Array(node) = node else { return None };
    let mut parts = node.into_iter();
    let host: Option<String> = redis::from_redis_value(parts.next()?).ok()?;
    let port: u16 = redis::from_redis_value(parts.next()?).ok()?;
    let id: String = redis::from_redis_value(parts.next()?).ok()?;
    let host = match host.as_deref() {
        Some("?") => return None,
        None | Some("") => host_of(asked)?,
        Some(host) => host,
    };
    Some((address.at(host, port), id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Partitions,
        store::{Keys, address::RedisSecrets},
    };

    fn address(text: &str) -> RedisAddress {
        RedisAddress::parse(text, &RedisSecrets::default()).expect("a good address")
    }

    #[test]
    fn slots_are_those_of_redis() {
        // From `CLUSTER KEYSLOT`.
        for (key, expected) in
            [("123456789", 12_739), ("{0}:log", 13_907), ("a{}b", 13_694), ("x{1}{2}", 9_842), ("{3", 4_755)]
        {
            assert_eq!(slot(key), expected, "{key}");
        }
        let partitions = Partitions::new(4).expect("in range");
        let keys = Keys::new("space", partitions).on_cluster();
        assert_eq!(slot(&keys.schema()), slot(&keys.groups()), "with the first partition");
        for partition in partitions.all() {
            assert_eq!(slot(&keys.log(partition)), slot(&partition.get().to_string()));
        }
    }

    #[test]
    fn moved_points_somewhere() {
        let by = ConnectionAddr::Tcp("a".to_owned(), 1);
        let to = |details| moved_to(&address("redis+cluster://a"), details, &by).map(|addr| addr.to_string());
        assert_eq!(to("3999 127.0.0.1:6381").as_deref(), Some("127.0.0.1:6381"));
        assert_eq!(to("3999 :6381").as_deref(), Some("a:6381"));
        assert_eq!(to("3999 ::1:6381").as_deref(), Some("::1:6381"));
        assert_eq!((to("3999"), to("3999 a:b"), to("")), (None, None, None));
    }
    #[test]
    fn epochs_are_read_whatever_else_stands_there() {
        let nodes = "\
            07c3 127.0.0.1:30004@31004,one.example,shard-id=ab slave e7d1 0 1426238317239 4 connected\n\
            67ed :6379@16379 master - 0 1426238316232 12 connected 0-92 94 [93-<-292f]\n\
            292f :0@0 master,noaddr - 1426238316232 1426238316232 7 disconnected\n\
            e7d1 ::1@0 myself,master,fail? - 0 0 1 connected 5461-10922 [93->-67ed]\n\
            \n";
        assert_eq!(epochs(nodes), HashMap::from([("07c3", 4), ("67ed", 12), ("292f", 7), ("e7d1", 1)]));
    }

    #[test]
    fn a_server_says_who_has_which_slots() {
        let text = |text: &str| Value::BulkString(text.into());
        let node = |host, port, id| Value::Array(vec![host, Value::Int(port), text(id), Value::Array(Vec::new())]);
        let share = |from, to, nodes: Vec<Value>| [vec![Value::Int(from), Value::Int(to)], nodes].concat();
        let slots = vec![
            share(0, 9, vec![node(text("one.example"), 1, "one"), node(text("10.0.0.9"), 9, "nine")]),
            // What was asked, and another one beside it where clients are to use the host that they know.
            share(10, 19, vec![node(Value::Nil, 2, "two"), node(text(""), 3, "three")]),
            share(20, 29, vec![node(text("?"), 4, "four")]),
        ];
        let epochs = HashMap::from([("one", 7), ("two", 3)]);
        let asked = ConnectionAddr::Tcp("asked".to_owned(), 1);
        let view = view(&address("redis+cluster://a"), &asked, &epochs, slots).expect("it can be read");
        let claim = |slots, owner: &str, port, epoch| Claim {
            slots,
            owner: ConnectionAddr::Tcp(owner.to_owned(), port),
            epoch,
            moved: false,
        };
        let claims = [claim(0..=9, "one.example", 1, 7), claim(10..=19, "asked", 2, 3)];
        assert!(view.is_like(&View::new(&claims, Vec::new())), "{view:?}");
        let servers: Vec<_> = view.servers().iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.9:9", "asked:2", "asked:3", "one.example:1"]);
    }
}
