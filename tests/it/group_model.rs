//! Consumer groups against a model: random steps on a real Redis, each through one of two instances, every answer
//! compared, and every key at quiet points.
//!
//! `STREAMKEEP_MODEL_STEPS` sets the number of steps, `STREAMKEEP_MODEL_SEED` the seed of the first episode: an episode
//! is a group of random settings from its creation until everything is settled.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use streamkeep::{
    model::{GroupName, GroupSettings, LeaseToken, OnExhausted, Ordering, Partition, Partitions, Start, StreamId},
    store::{DurabilityConfig, Keys, Library, Store, StoreConfig, Which},
};

use crate::{
    app::TestRedis,
    group_model_state::{Model, Place, ensure},
    group_model_steps::{FAR, STREAMS},
};

/// Steps of an episode, before it is brought to its end.
const EPISODE: usize = 400;
/// Steps that are shown with a failure.
const SHOWN: usize = 60;

pub struct World {
    /// Two instances, each with what it knows of groups.
    pub stores: [Store; 2],
    pub redis: redis::aio::MultiplexedConnection,
    pub keys: Keys,
    pub library: Library,
    pub name: GroupName,
    pub model: Model,
    pub rng: fastrand::Rng,
    /// Leases that consumers hold, good or not.
    pub held: Vec<LeaseToken>,
    /// Leases that were settled, lost or forgotten.
    pub old: Vec<LeaseToken>,
    /// The events that are there: place in the log -> stream and version.
    pub written: BTreeMap<Place, (StreamId, u64)>,
    pub log: VecDeque<String>,
    pub steps: usize,
}

impl World {
    pub fn note(&mut self, step: String) {
        self.log.push_back(step);
        if self.log.len() > SHOWN {
            self.log.pop_front();
        }
    }

    /// One of the instances.
    pub fn store(&mut self) -> Store {
        self.stores[self.rng.usize(..2)].clone()
    }

    /// The partitions that the group reads.
    pub fn partitions(&self) -> Vec<Partition> {
        match &self.model.settings.stream {
            Some(stream) => vec![self.stores[0].partition(stream)],
            None => self.stores[0].partitions().all().collect(),
        }
    }

    pub fn group_keys(&self, partition: Partition) -> Vec<String> {
        self.keys.group(partition, &self.name, self.model.settings.stream.as_ref())
    }

    async fn episode(&mut self) -> Result<(), String> {
        self.create().await?;
        for _ in 0..EPISODE {
            self.steps += 1;
            self.step().await?;
        }
        self.check().await?;
        self.drain().await
    }

    async fn create(&mut self) -> Result<(), String> {
        let settings = self.random_settings();
        self.note(format!("create {settings:?}"));
        self.model = Model::new(settings);
        let new = self.store().put_group(&self.name, &self.model.settings).await.map_err(|error| error.to_string())?;
        ensure!(new, "it was there");
        let group = self.store().group(&self.name).await.map_err(|error| error.to_string())?;
        self.model.sought(&group.generation, &BTreeMap::new());
        Ok(())
    }

    fn random_settings(&mut self) -> GroupSettings {
        let rng = &mut self.rng;
        let one = (rng.u32(..4) == 0).then(|| StreamId::parse(STREAMS[rng.usize(..3)]).unwrap());
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        let categories = if one.is_none() && rng.u32(..4) == 0 { list(&["a"]) } else { vec![] };
        let types = if rng.u32(..3) == 0 { list(&["placed", "sent"]) } else { vec![] };
        let ordering = if rng.u32(..3) == 0 { Ordering::None } else { Ordering::Stream };
        let park_stream = ordering == Ordering::Stream && rng.bool();
        GroupSettings {
            stream: one,
            categories,
            types,
            start: Start::Beginning,
            ordering,
            lease_ms: FAR,
            max_deliveries: rng.u64(1..5),
            backoff_ms: if rng.bool() { vec![] } else { vec![0, FAR] },
            max_in_flight: [2, 5, 1000][rng.usize(..3)],
            on_exhausted: if park_stream { OnExhausted::ParkStream } else { OnExhausted::Park },
        }
    }

    /// Everything comes to its end: all is due, all is acked, all that is parked is replayed.
    async fn drain(&mut self) -> Result<(), String> {
        self.store().pause(&self.name, false).await.map_err(|error| error.to_string())?;
        self.model.paused = false;
        loop {
            self.ack_everything().await?;
            self.check().await?;
            if self.model.parked().is_empty() {
                break;
            }
            self.replay_which(&Which::All, false).await?;
        }
        self.check_empty().await?;
        self.store().delete_group(&self.name).await.map_err(|error| error.to_string())
    }

    async fn ack_everything(&mut self) -> Result<(), String> {
        for _ in 0..10_000 {
            let pending = self.model.events.iter().filter(|(_, event)| event.is_pending());
            let places: Vec<Place> = pending.map(|(place, _)| *place).collect();
            self.make_due(&places).await;
            let (count, more) = self.next_up_to(50).await?;
            if count == 0 && !more {
                return Ok(());
            }
            self.ack_held().await?;
        }
        Err("it never ends".to_owned())
    }
}

/// A Redis for the model: durable enough for a test of what it does, not of what it keeps.
pub async fn quick_redis() -> Arc<TestRedis> {
    TestRedis::start_with(|config| config.settings.push(("appendonly".to_owned(), "no".to_owned()))).await
}

pub async fn open(redis: &TestRedis, partitions: u16, library: &Library) -> Store {
    let config = StoreConfig {
        address: redis.server.address(),
        namespace: String::new(),
        partitions: Partitions::new(partitions).unwrap(),
        writers: 1,
        queued_max: 10_000,
        timeout: Duration::from_secs(5),
        migrate: true,
        durability: DurabilityConfig::default(),
        library: library.clone(),
    };
    Store::open(config).await.unwrap()
}

pub fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs episodes until so many steps were made; the first violation, with all that is needed to see it again.
async fn run(partitions: u16, library: Library, steps: usize) -> Result<usize, String> {
    let redis = quick_redis().await;
    let stores = [open(&redis, partitions, &library).await, open(&redis, partitions, &library).await];
    let mut seed = variable("STREAMKEEP_MODEL_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut done = 0;
    while done < steps {
        let mut world = World {
            stores: stores.clone(),
            redis: redis.connection().await,
            keys: Keys::new("", Partitions::new(partitions).unwrap()),
            library: library.clone(),
            name: GroupName::parse("g").unwrap(),
            model: Model::new(GroupSettings {
                stream: None,
                categories: vec![],
                types: vec![],
                start: Start::Beginning,
                ordering: Ordering::None,
                lease_ms: FAR,
                max_deliveries: 1,
                backoff_ms: vec![],
                max_in_flight: 1,
                on_exhausted: OnExhausted::Park,
            }),
            rng: fastrand::Rng::with_seed(seed),
            held: vec![],
            old: vec![],
            written: BTreeMap::new(),
            log: VecDeque::new(),
            steps: 0,
        };
        if let Err(violation) = world.episode().await {
            let (steps, shown) = (world.steps, Vec::from(world.log).join("\n"));
            return Err(format!(
                "{shown}\nafter {steps} steps of seed {seed}, with {:?}: {violation}",
                world.model.settings
            ));
        }
        done += world.steps;
        seed = fastrand::Rng::with_seed(seed).u64(..);
        redis::cmd("FLUSHALL").exec_async(&mut world.redis).await.unwrap();
    }
    Ok(done)
}

async fn run_and_report(partitions: u16, library: Library) {
    let began = std::time::Instant::now();
    let steps = variable("STREAMKEEP_MODEL_STEPS").unwrap_or(34_000);
    match run(partitions, library, usize::try_from(steps).unwrap()).await {
        Ok(done) => println!("{done} steps in {:?}", began.elapsed()),
        Err(violation) => panic!("{violation}"),
    }
}

#[tokio::test]
async fn random_steps_in_1_partition() {
    run_and_report(1, Library::default()).await;
}

#[tokio::test]
async fn random_steps_in_4_partitions() {
    run_and_report(4, Library::default()).await;
}

/// Releases are done in several steps where streams are long: here they are from the third entry on.
#[tokio::test]
async fn random_steps_where_releases_take_several_calls() {
    let (source, entries) = (Library::source(), "local RELEASE_ENTRIES = 100\n");
    assert!(source.contains(entries));
    let library = Library::from_source(&source.replace(entries, "local RELEASE_ENTRIES = 2\n"));
    run_and_report(1, library).await;
}

/// A library with this bug, that the model must find. A bug shows itself in several ways, and which one comes first is
/// chance: the model gets a while to find it in these words too.
async fn find(from: &str, to: &str, wanted: &str) {
    let source = Library::source();
    assert_eq!(source.matches(from).count(), 1, "the place of the bug");
    let library = Library::from_source(&source.replace(from, to));
    let mut found = Vec::new();
    for _ in 0..50 {
        found.extend(run(1, library.clone(), 20_000).await.err());
        if found.last().is_some_and(|violation| violation.contains(wanted)) {
            return;
        }
    }
    assert!(!found.is_empty(), "never found");
    println!("found {} times, but never in the words «{wanted}»: {}", found.len(), found[0]);
}

#[tokio::test]
async fn an_acked_event_that_comes_again_is_found() {
    let (right, wrong) = ("busy.from = tonumber(version) - 1\n  end\n  busy.to", "busy.from = 0\n  end\n  busy.to");
    find(right, wrong, "was handed out, but is Settled").await;
}

#[tokio::test]
async fn two_of_a_stream_in_flight_are_found() {
    find("  passed[stream] = busy\n  return true", "  passed[stream] = busy\n  return false", "(Fresh) before").await;
    find("if not busy or busy.position ~= position then", "if not busy then", "(Fresh) before").await;
}

#[tokio::test]
async fn a_stale_token_that_acks_is_found() {
    find("if current == text then", "if current then", "Done, not Lost").await;
}
