//! What the store counts of its round trips to Redis.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use redis::{Arg, Cmd};

/// Bounds of the buckets of durations, in seconds: from what a round trip takes on one machine to what nobody waits for.
pub const SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];
/// Bounds of the buckets of counts up to a thousand.
pub const COUNTS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0, 1_000.0];

/// What is told apart: functions of ours, and commands.
const OPERATIONS: &[&str] = &[
    "es_ack",
    "es_append",
    "es_delete_group",
    "es_drop_consumers",
    "es_expire",
    "es_extend",
    "es_nack",
    "es_next",
    "es_put_group",
    "es_register_group",
    "es_release",
    "es_replay",
    "es_settled",
    "es_status",
    "EXISTS",
    "HGET",
    "HGETALL",
    "HMGET",
    "XINFO",
    "XLEN",
    "XRANGE",
    "XREVRANGE",
    "ZRANGE",
];

/// The name of a command, or of the function that it calls; one of a few.
pub fn operation(command: &Cmd) -> &'static str {
    let mut words = command.args_iter().filter_map(|word| if let Arg::Simple(word) = word { Some(word) } else { None });
    let name = match words.next() {
        // Behind its name comes the version of the library.
        Some(b"FCALL") => words.next().map(|function| &function[..function.len().saturating_sub("_01234567".len())]),
        command => command,
    };
    OPERATIONS.iter().find(|known| name == Some(known.as_bytes())).copied().unwrap_or("other")
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPrimary {
    primary: String,
}

/// What is counted. Copies count together.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    round_trips: Family<Operation, Histogram, fn() -> Histogram>,
    failures: Family<Operation, Counter>,
    pipelines: Histogram,
    failovers: Family<OfPrimary, Counter>,
    reconnects: Counter,
    exhausted: Counter,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            round_trips: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            failures: Family::default(),
            pipelines: Histogram::new(COUNTS),
            failovers: Family::default(),
            reconnects: Counter::default(),
            exhausted: Counter::default(),
        }
    }
}

impl StoreMetrics {
    /// Adds all of them.
    pub fn register(&self, registry: &mut Registry) {
        // So that the first of each is seen as a rise, not as a beginning.
        for operation in OPERATIONS.iter().copied().chain(["other"]) {
            self.failures.get_or_create(&Operation { operation }).inc_by(0);
        }
        registry.register(
            "redis_round_trip_duration_seconds",
            "Time of round trips to Redis, waits for the disk, for replicas and repetitions included, by function or first command",
            self.round_trips.clone(),
        );
        registry.register("redis_failures", "Round trips to Redis that brought no reply", self.failures.clone());
        registry.register("append_pipeline_calls", "Appends that shared a round trip to Redis", self.pipelines.clone());
        registry.register(
            "failovers",
            "How often another Redis became primary, or the run id of one was another than before: a failover, or a restart",
            self.failovers.clone(),
        );
        registry.register(
            "redis_reconnects",
            "Connections of writers and of readers of the log that were opened again after they had failed",
            self.reconnects.clone(),
        );
        registry.register(
            "deliveries_exhausted",
            "Events that groups parked, for the last of their deliveries was not acked: its lease ran out, or a retry was asked for",
            self.exhausted.clone(),
        );
    }

    pub(super) fn round_trip(&self, operation: &'static str, took: Duration, replied: bool) {
        let operation = Operation { operation };
        self.round_trips.get_or_create(&operation).observe(took.as_secs_f64());
        if !replied {
            self.failures.get_or_create(&operation).inc();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a pipeline has some hundreds of calls")]
    pub(super) fn pipeline(&self, calls: usize) {
        self.pipelines.observe(calls as f64);
    }

    pub(super) fn failover(&self, primary: &str) {
        self.failovers.get_or_create(&OfPrimary { primary: primary.to_owned() }).inc();
    }

    /// There is this primary: so that its first failover is seen as a rise, not as a beginning.
    pub(super) fn primary(&self, primary: &str) {
        self.failovers.get_or_create(&OfPrimary { primary: primary.to_owned() }).inc_by(0);
    }

    pub(super) fn reconnect(&self) {
        self.reconnects.inc();
    }

    pub(super) fn exhausted(&self, events: usize) {
        self.exhausted.inc_by(events as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Library;

    #[test]
    fn operations_are_known_by_name() {
        let call = |function: &str| operation(redis::cmd("FCALL").arg(function).arg(0));
        assert_eq!(call(&Library::default().function("es_append")), "es_append");
        assert_eq!((call("es_append"), call("x"), call("es_append_1_01234567")), ("other", "other", "other"));
        assert_eq!(operation(redis::cmd("XRANGE").arg("x")), "XRANGE");
        assert_eq!(operation(&redis::cmd("PING")), "other");
        assert_eq!(operation(&Cmd::new()), "other");
        for function in OPERATIONS.iter().filter(|name| name.starts_with("es_")) {
            assert!(Library::source().contains(&format!("'{function}'")), "{function}");
        }
    }
}
