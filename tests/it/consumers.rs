//! Consumers of a group that check what they are handed, while whatever happens to the service happens; and the real log
//! that they drain.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use flate2::read::MultiGzDecoder;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    app::eventually,
    groups::{Taken, leases},
};

/// The real log as NDJSON: the whole, where it lies beside the project; else as many events made of the excerpt, each
/// time with streams of their own.
pub fn real_log() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let whole = root.join("../shared/data/receipt.ndjson.gz");
    if let Ok(file) = std::fs::File::open(&whole) {
        return std::io::read_to_string(MultiGzDecoder::new(file)).unwrap();
    }
    println!("{} is not there: the excerpt takes its place", whole.display());
    let excerpt = std::fs::read_to_string(root.join("examples/receipt.ndjson")).unwrap();
    let copy = |number: usize| excerpt.replace(r#"{"stream":"receipt-"#, &format!(r#"{{"stream":"receipt-{number}-"#));
    (0..57).map(copy).collect()
}

/// Stream and version of each event that an import of this NDJSON into an empty store adds.
pub fn names_of(log: &str) -> HashSet<String> {
    let mut versions = HashMap::<String, u64>::new();
    let streams = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["stream"].take());
    let name = |stream: Value| {
        let stream = stream.as_str().unwrap().to_owned();
        let version = versions.entry(stream.clone()).or_default();
        *version += 1;
        format!("{stream}@{version}")
    };
    streams.map(name).collect()
}

/// What is known of an event.
#[derive(Default)]
struct Known {
    /// The delivery counts that it came with.
    counts: HashSet<u64>,
    /// It is settled, and somebody was told so.
    settled: bool,
    /// The delivery that was told to have settled it. Not known where that answer was lost.
    acked: Option<u64>,
    /// The last delivery for which an ack was sent.
    asked: u64,
}

/// What all consumers saw.
#[derive(Default)]
struct Seen {
    events: HashMap<String, Known>,
    /// The last version of each stream for which an ack was sent.
    last: HashMap<String, u64>,
    settled: usize,
    /// How many acks were told to have settled an event.
    acks: u64,
    violations: Vec<String>,
    /// Order of each stream is promised.
    ordered: bool,
}

impl Seen {
    fn comes(&mut self, taken: &Taken) {
        let name = taken.name();
        let known = self.events.entry(name.clone()).or_default();
        if !known.counts.insert(taken.count) {
            self.violations.push(format!("delivery {} of {name} came twice", taken.count));
        }
        if known.acked.is_some_and(|acked| taken.count > acked) {
            self.violations.push(format!("{name} came again, acked as it was"));
        }
        let last = self.last.get(&taken.stream).copied().unwrap_or(0);
        if self.ordered && taken.version > last + 1 {
            self.violations.push(format!("{name} after {last}"));
        }
    }

    /// Noted before: as soon as the ack has arrived, what is behind may go to another consumer.
    fn acking(&mut self, taken: &Taken) {
        let last = self.last.entry(taken.stream.clone()).or_default();
        *last = taken.version.max(*last);
        let known = self.events.get_mut(&taken.name()).unwrap();
        known.asked = taken.count.max(known.asked);
    }

    /// An ack was answered.
    fn acked(&mut self, batch: &[Taken], answer: &Value) {
        // Where none holds, the answer is a problem that has but the last of the three.
        let count = |member: &str| answer[member].as_u64().unwrap_or(0);
        self.acks += count("acked");
        let lost: HashSet<&str> =
            answer["lost"].as_array().unwrap().iter().map(|one| one["lease"].as_str().unwrap()).collect();
        for taken in batch.iter().filter(|taken| !lost.contains(taken.lease.as_str())) {
            let known = self.events.get_mut(&taken.name()).unwrap();
            self.settled += usize::from(!std::mem::replace(&mut known.settled, true));
            // Where some had been settled before, it is not told which.
            if count("already") == 0 && known.acked.replace(taken.count).is_some() {
                self.violations.push(format!("{} was acked twice", taken.name()));
            }
        }
    }

    /// At the end: an answer may have been on its way when its event was settled, so only counts tell what came later.
    fn conclude(&mut self) {
        for (name, known) in &self.events {
            let (last, settled) = (known.counts.iter().max().unwrap(), known.acked.unwrap_or(known.asked));
            if *last > settled {
                self.violations.push(format!("delivery {last} of {name}, settled by {settled}"));
            }
        }
    }
}

/// Eight consumers of the group `g`, each of which takes what it gets, and forgets one event in a hundred.
pub struct Consumers {
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Consumers {
    /// Starts them at these instances in turn. Prints its seed, which a failed test shows.
    pub fn start(urls: &[&str], ordered: bool) -> Self {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let all = Arc::new(Mutex::new(Seen { ordered, ..Seen::default() }));
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for (number, url) in (0..8).zip(urls.iter().cycle()) {
            let group = format!("{url}/groups/g");
            let rng = Rng::with_seed(seed.wrapping_add(number));
            tasks.spawn(consume(group, format!("c{number}"), all.clone(), stop.clone(), rng));
        }
        Self { seen: all, stop, tasks }
    }

    fn settled(&self) -> usize {
        self.seen.lock().unwrap().settled
    }

    /// Waits until so many further events are settled, and then for a random moment: acks are under way.
    pub async fn settle_more(&self, count: usize) {
        self.settle(self.settled() + count).await;
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..20_000))).await;
    }

    /// Waits until so many events are settled, and on while they become more.
    async fn settle(&self, count: usize) {
        while self.settled() < count {
            let before = self.settled();
            eventually("more is acked", async || self.settled() > before).await;
        }
    }

    /// Waits until all these events are settled; that they came as promised.
    pub async fn finish(self, names: &HashSet<String>) {
        self.settle(names.len()).await;
        self.stop.cancel();
        self.tasks.join_all().await;
        let mut seen = Arc::into_inner(self.seen).unwrap().into_inner().unwrap();
        seen.conclude();
        assert_eq!(seen.violations, Vec::<String>::new());
        assert_eq!(seen.events.keys().cloned().collect::<HashSet<_>>(), *names);
        assert!(seen.acks <= names.len() as u64, "{} acks settled {} events", seen.acks, names.len());
        let again = seen.events.values().filter(|known| known.counts.len() > 1).count();
        let lost = seen.events.values().filter(|known| known.acked.is_none()).count();
        println!("{} events, {again} came more than once, {lost} were settled by nobody knows whom", names.len());
    }
}

/// Takes and acks until told to stop.
async fn consume(group: String, name: String, seen: Arc<Mutex<Seen>>, stop: CancellationToken, mut rng: Rng) {
    let client = Client::builder().no_proxy().build().unwrap();
    let limit = rng.usize(1..20);
    while !stop.is_cancelled() {
        let next = client.get(format!("{group}/next?consumer={name}&limit={limit}&wait=1"));
        let mut batch: Vec<Taken> =
            json_of(next).await["deliveries"].as_array().unwrap().iter().map(Taken::of).collect();
        for taken in &batch {
            seen.lock().unwrap().comes(taken);
        }
        batch.retain(|_| rng.u8(..100) > 0);
        if batch.is_empty() {
            continue;
        }
        for taken in &batch {
            seen.lock().unwrap().acking(taken);
        }
        let ack = client.post(format!("{group}/ack")).json(&json!({ "leases": leases(&batch) }));
        let answer = json_of(ack).await;
        seen.lock().unwrap().acked(&batch, &answer);
    }
}

/// The answer's JSON. Asks again while there is no service, or none that can do its work.
async fn json_of(request: reqwest::RequestBuilder) -> Value {
    loop {
        match request.try_clone().unwrap().send().await {
            Ok(response) if !response.status().is_server_error() => {
                if let Ok(answer) = response.json().await {
                    return answer;
                }
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
