//! Which server is the primary of what: always the same one, the one that sentinels name, or as the slots of a cluster lie.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use crc::{CRC_16_XMODEM, Crc};
use futures::{
    StreamExt as _,
    future::{join_all, select_ok},
};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, FromRedisValue, Pipeline, RedisResult, Value, aio::MultiplexedConnection,
};

use tokio::{sync::Notify, task::JoinSet};

use crate::store::{
    StartError,
    address::{RedisAddress, Set},
    primary::connection_config,
};

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;
/// How long one server may take to say what it knows: others know it too.
const ANSWER: Duration = Duration::from_secs(1);
/// How many servers are asked at a time; the first answer does.
const ASKED: usize = 3;

/// Which server is the primary of which slots, as somebody said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Each primary with its slots.
    pub primaries: Vec<(ConnectionAddr, Slots)>,
    /// Who else may be asked.
    pub others: Vec<ConnectionAddr>,
}

/// Ranges of slots.
type Slots = Vec<RangeInclusive<u16>>;

impl View {
    /// One primary of everything.
    fn of_one(addr: ConnectionAddr) -> Self {
        Self { primaries: vec![(addr, vec![0..=SLOTS - 1])], others: Vec::new() }
    }

    /// Whether a server is a primary.
    pub(super) fn has(&self, addr: &ConnectionAddr) -> bool {
        self.primaries.iter().any(|(primary, _)| primary == addr)
    }

    /// The place of the primary that has a slot. Where nobody has it, the first one will say so.
    pub(super) fn place_of(&self, slot: u16) -> usize {
        self.primaries.iter().position(|(_, slots)| slots.iter().any(|range| range.contains(&slot))).unwrap_or(0)
    }

    /// The same, but that this server has the slot.
    pub(super) fn moved(&self, slot: u16, to: ConnectionAddr) -> Self {
        let mut view = self.clone();
        for (_, slots) in &mut view.primaries {
            let without = |range: RangeInclusive<u16>| {
                let (from, to) = range.into_inner();
                let before = (slot > from).then(|| from..=to.min(slot.saturating_sub(1)));
                let behind = (slot < to).then(|| from.max(slot.saturating_add(1))..=to);
                [before, behind].into_iter().flatten()
            };
            *slots = std::mem::take(slots).into_iter().flat_map(without).collect();
        }
        match view.primaries.iter_mut().find(|(primary, _)| *primary == to) {
            Some((_, slots)) => slots.push(slot..=slot),
            None => view.primaries.push((to, vec![slot..=slot])),
        }
        view.primaries.retain(|(_, slots)| !slots.is_empty());
        view
    }
}

/// Asks who is primary. `known` are servers of a cluster that there were lately.
pub(super) async fn look(
    address: &RedisAddress,
    known: &[ConnectionAddr],
    timeout: Duration,
) -> Result<View, StartError> {
    let timeout = timeout.min(ANSWER);
    match &address.set {
        Set::Single(addr) => Ok(View::of_one(addr.clone())),
        Set::Sentinel { sentinels, name } => {
            let asks = sentinels.iter().map(|sentinel| ask_sentinel(address, sentinel, name, timeout));
            let answers = join_all(asks).await;
            // Those that heard of the last failover number it higher.
            let newest = answers.iter().flatten().max_by_key(|(epoch, _)| *epoch);
            let Some((_, addr)) = newest else {
                return Err(no_primary(address, answers.into_iter().find_map(Result::err)));
            };
            check_role(address, addr, timeout).await?;
            Ok(View::of_one(addr.clone()))
        }
        Set::Cluster(seeds) => {
            let mut nodes: Vec<_> = known.iter().chain(seeds).collect();
            fastrand::shuffle(&mut nodes);
            let mut said = None;
            for nodes in nodes.chunks(ASKED) {
                let asks = nodes.iter().map(|node| Box::pin(ask_node(address, node, timeout)));
                match select_ok(asks).await {
                    Ok((view, _)) => return Ok(view),
                    Err(error) => said = Some(error),
                }
            }
            Err(no_primary(address, said))
        }
    }
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
                    tokio::time::sleep(ANSWER.mul_f64(0.5 + fastrand::f64())).await;
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
    let is_primary = role(&mut connect(address.server(addr), timeout).await?).await?;
    if is_primary { Ok(()) } else { Err(StartError::NotPrimary(addr.to_string())) }
}

/// Whether a server is a primary (`ROLE`).
pub(super) async fn role(connection: &mut MultiplexedConnection) -> RedisResult<bool> {
    let role = ask_role();
    is_primary(connection.send_packed_commands(&role, 0, role.len()).await?.pop())
}

/// The question whose answer `is_primary` reads.
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
async fn ask_node(address: &RedisAddress, node: &ConnectionAddr, timeout: Duration) -> Result<View, StartError> {
    let mut connection = connect(address.server(node), timeout).await?;
    let mut commands = Pipeline::with_capacity(2);
    commands.cmd("CLUSTER").arg("SLOTS");
    commands.cmd("CLUSTER").arg("INFO");
    let (slots, info): (Vec<Vec<Value>>, String) = commands.query_async(&mut connection).await?;
    let view = view(address, node, slots)?;
    // One that was cut off from the others says so, and one that is new.
    if info.contains("cluster_state:ok") {
        return Ok(view);
    }
    Err(StartError::NoPrimary { of: node.to_string(), said: "it does not say cluster_state:ok".to_owned() })
}

/// `CLUSTER SLOTS`: first and last slot, the primary, its replicas.
fn view(address: &RedisAddress, asked: &ConnectionAddr, slots: Vec<Vec<Value>>) -> RedisResult<View> {
    let (mut primaries, mut others) = (Vec::<(ConnectionAddr, Vec<_>)>::new(), Vec::new());
    for share in slots {
        let mut share = share.into_iter();
        let mut number = || u16::from_redis_value(share.next().unwrap_or(Value::Nil));
        let range = number()?..=number()?;
        let mut nodes = share.filter_map(|node| server(address, asked, node));
        let Some(primary) = nodes.next() else { continue };
        match primaries.iter_mut().find(|(known, _)| *known == primary) {
            Some((_, ranges)) => ranges.push(range),
            None => primaries.push((primary, vec![range])),
        }
        others.extend(nodes);
    }
    // In an order of its own, so that the same from two servers is the same.
    primaries.sort_by_key(|(addr, _)| addr.to_string());
    for (_, slots) in &mut primaries {
        slots.sort_by_key(|range: &RangeInclusive<u16>| *range.start());
    }
    others.sort_by_key(ToString::to_string);
    others.dedup();
    Ok(View { primaries, others })
}

/// Host, or none where it is the one that was asked, and port; what follows is of no use here.
fn server(address: &RedisAddress, asked: &ConnectionAddr, node: Value) -> Option<ConnectionAddr> {
    let Value::Array(node) = node else { return None };
    let mut parts = node.into_iter();
    let host: Option<String> = redis::from_redis_value(parts.next()?).ok()?;
    let port: u16 = redis::from_redis_value(parts.next()?).ok()?;
    match host.as_deref() {
        Some("?") => None,
        None | Some("") => Some(address.at(host_of(asked)?, port)),
        Some(host) => Some(address.at(host, port)),
    }
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
    fn a_slot_that_was_moved_is_with_its_new_primary() {
        let at = |port| ConnectionAddr::Tcp("a".to_owned(), port);
        let view = View { primaries: vec![(at(1), vec![0..=9, 20..=20]), (at(2), vec![10..=19])], others: Vec::new() };
        let moved = view.moved(5, at(2)).moved(20, at(3)).moved(0, at(2)).moved(19, at(1));
        let slots = |place: usize| {
            let mut slots: Vec<u16> = moved.primaries[place].1.iter().cloned().flatten().collect();
            slots.sort_unstable();
            slots
        };
        assert_eq!(slots(0), [1, 2, 3, 4, 6, 7, 8, 9, 19]);
        assert_eq!(slots(1), [0, 5, 10, 11, 12, 13, 14, 15, 16, 17, 18]);
        assert_eq!((slots(2), moved.primaries.len()), (vec![20], 3));
        let places = [5, 20, 1, 100].map(|slot| moved.place_of(slot));
        assert_eq!(places, [1, 2, 0, 0]);
        let all = (10..=19).fold(view, |view, slot| view.moved(slot, at(1)));
        assert_eq!(all.primaries.len(), 1, "one without slots is no primary");
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
}
