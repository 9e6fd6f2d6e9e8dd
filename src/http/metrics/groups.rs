//! How the groups stand, asked of Redis at each look.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::Mutex;

use super::{PREFIX, number};
use crate::{
    model::GroupName,
    store::{GroupStatus, Store},
};

/// Most groups that are shown, the first by name.
const GROUPS_MAX: usize = 1_000;
/// Groups that are asked for at the same time.
const AT_ONCE: usize = 8;
/// How long it may take; groups that were not asked for by then are left out.
const TIME_MAX: Duration = Duration::from_secs(5);
/// How long an answer does for further looks, so that many who look cost as much as one.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    group: String,
}

/// The last answer, and when it was read.
#[derive(Debug, Default)]
pub struct Groups(Mutex<Option<(Instant, Arc<str>)>>);

impl Groups {
    /// The lines of all groups, as they stood at most a second before `now`.
    pub async fn read(&self, store: &Store, now: Instant) -> Arc<str> {
        let mut last = self.0.lock().await;
        match &*last {
            // Also where it was read while this look waited.
            Some((read, lines)) if *read + FRESH > now => Arc::clone(lines),
            _ => {
                let lines = lines(store).await;
                *last = Some((Instant::now(), Arc::clone(&lines)));
                lines
            }
        }
    }
}

async fn lines(store: &Store) -> Arc<str> {
    let mut registry = Registry::with_prefix(PREFIX);
    let gauges = Gauges::new(&mut registry);
    let reading = async {
        let mut names: Vec<GroupName> = store.groups().await?.into_iter().map(|group| group.name).collect();
        gauges.count.set(number(names.len()));
        names.sort_unstable();
        names.truncate(GROUPS_MAX);
        let asked = stream::iter(names).map(|name| async move { store.group_status(&name).await });
        let mut told = asked.buffer_unordered(AT_ONCE);
        while let Some(status) = told.next().await {
            // A group may be gone by now; of one that cannot be read the rest says enough.
            if let Ok((group, status)) = status {
                gauges.set(group.name.as_str(), group.paused, &status);
            }
        }
        Ok::<_, crate::model::Error>(())
    };
    if !matches!(tokio::time::timeout(TIME_MAX, reading).await, Ok(Ok(()))) {
        tracing::warn!("the metrics of groups are not complete");
    }
    let mut lines = String::new();
    text::encode_registry(&mut lines, &registry).expect("writing to memory cannot fail");
    lines.into()
}

#[derive(Default)]
struct Gauges {
    count: Gauge,
    lag: Family<Label, Gauge>,
    lag_ms: Family<Label, Gauge<f64, std::sync::atomic::AtomicU64>>,
    in_flight: Family<Label, Gauge>,
    waiting: Family<Label, Gauge>,
    held: Family<Label, Gauge>,
    stopped: Family<Label, Gauge>,
    parked: Family<Label, Gauge>,
    oldest: Family<Label, Gauge<f64, std::sync::atomic::AtomicU64>>,
    asked: Family<Label, Gauge<f64, std::sync::atomic::AtomicU64>>,
    paused: Family<Label, Gauge>,
    consumers: Family<Label, Gauge>,
}

impl Gauges {
    fn new(to: &mut Registry) -> Self {
        let gauges = Self::default();
        to.register("groups", "Consumer groups", gauges.count.clone());
        to.register("group_lag_events", "Events that the group has not looked at", gauges.lag.clone());
        to.register(
            "group_lag_seconds",
            "Age of the first event that the group has not looked at",
            gauges.lag_ms.clone(),
        );
        to.register("group_in_flight_events", "Events that are leased", gauges.in_flight.clone());
        to.register("group_waiting_events", "Events that wait for a retry", gauges.waiting.clone());
        to.register(
            "group_held_events",
            "Events that wait for others of their stream, or to be replayed",
            gauges.held.clone(),
        );
        to.register("group_stopped_streams", "Streams that stand behind a parked event", gauges.stopped.clone());
        to.register("group_parked_events", "Events that are parked", gauges.parked.clone());
        to.register(
            "group_oldest_unacked_seconds",
            "Age of the oldest event that is not settled",
            gauges.oldest.clone(),
        );
        to.register(
            "group_last_asked_seconds",
            "For how long nobody has asked the group for events",
            gauges.asked.clone(),
        );
        to.register("group_paused", "Whether the group is paused", gauges.paused.clone());
        to.register("group_consumers", "Consumers of the group", gauges.consumers.clone());
        gauges
    }

    fn set(&self, group: &str, paused: bool, status: &GroupStatus) {
        let label = Label { group: group.to_owned() };
        let whole = |gauges: &Family<Label, Gauge>, count: u64| {
            gauges.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        whole(&self.lag, status.lag);
        whole(&self.in_flight, status.in_flight);
        whole(&self.waiting, status.waiting);
        whole(&self.held, status.held);
        whole(&self.stopped, status.stopped_streams);
        whole(&self.parked, status.parked);
        whole(&self.paused, paused.into());
        whole(&self.consumers, status.consumers.len() as u64);
        let age = |since: Option<u64>| {
            since.map_or(0.0, |since| Duration::from_millis(status.now_ms.saturating_sub(since)).as_secs_f64())
        };
        self.lag_ms.get_or_create(&label).set(age(status.behind_since_ms));
        self.oldest.get_or_create(&label).set(age(status.oldest_ms));
        self.asked.get_or_create(&label).set(age(Some(status.asked_ms)));
    }
}
