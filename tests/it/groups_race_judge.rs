//! What consumers that race were told, and whether it can be true.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Instant,
};

use streamkeep::model::{Delivery, LeaseToken, Settled};

/// Partition, and position in the log.
pub type Place = (u16, u64);

/// A generation of the group, and an event.
type Of<'a> = (&'a str, Place);

pub fn place(lease: &LeaseToken) -> Place {
    (lease.partition.get(), lease.position.get())
}

/// An event that a consumer was handed.
pub struct Handed {
    pub lease: LeaseToken,
    count: u64,
    /// When the consumer asked, and when it got it.
    asked: Instant,
    got: Instant,
}

impl Handed {
    pub fn new(delivery: &Delivery, asked: Instant) -> Self {
        Self { lease: delivery.lease.clone(), count: delivery.delivery_count, asked, got: Instant::now() }
    }

    fn of(&self) -> Of<'_> {
        (&self.lease.generation, place(&self.lease))
    }
}

/// How a consumer settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Ack,
    Skip,
    Park,
    Retry,
}

impl Action {
    fn is_final(self) -> bool {
        matches!(self, Self::Ack | Self::Skip)
    }
}

/// An answer to a consumer that settled.
pub struct Answered {
    pub lease: LeaseToken,
    pub action: Action,
    pub answer: Settled,
    pub sent: Instant,
    pub told: Instant,
}

/// All that consumers were told.
#[derive(Default)]
pub struct Told {
    pub handed: Vec<Handed>,
    pub answered: Vec<Answered>,
}

impl Told {
    fn done(&self) -> impl Iterator<Item = &Answered> {
        self.answered.iter().filter(|answered| answered.answer == Settled::Done)
    }

    /// The events settled for good in a generation.
    pub fn settled(&self, generation: &str) -> HashSet<Place> {
        let done = self.done().filter(|answered| answered.action.is_final() && answered.lease.generation == generation);
        done.map(|answered| place(&answered.lease)).collect()
    }

    /// What cannot be.
    pub fn judge(&self, ordered: bool) -> Vec<String> {
        [self.comes_again(), self.stale(), self.overlaps(ordered)].concat()
    }

    /// What is settled is not handed out again, nor settled again, as long as the group is not moved.
    fn comes_again(&self) -> Vec<String> {
        let (mut violations, mut settled) = (Vec::new(), HashMap::<Of<'_>, Instant>::new());
        for answered in self.done().filter(|answered| answered.action.is_final()) {
            let of = (answered.lease.generation.as_str(), place(&answered.lease));
            if settled.insert(of, answered.told).is_some() {
                violations.push(format!("{of:?} was settled twice"));
            }
        }
        for handed in &self.handed {
            if settled.get(&handed.of()).is_some_and(|told| *told < handed.asked) {
                violations.push(format!("{:?} was handed out again, settled as it was", handed.of()));
            }
        }
        violations
    }

    /// A lease settles nothing once its event was handed out again. What was parked counts anew: left out.
    fn stale(&self) -> Vec<String> {
        let parked: HashSet<Place> = self
            .done()
            .filter(|answered| answered.action == Action::Park)
            .map(|answered| place(&answered.lease))
            .collect();
        let (mut handed, mut counts) = (HashMap::<Of<'_>, Vec<&Handed>>::new(), HashMap::new());
        for one in self.handed.iter().filter(|one| !parked.contains(&place(&one.lease))) {
            handed.entry(one.of()).or_default().push(one);
            counts.insert(&one.lease.text, one.count);
        }
        let mut violations = Vec::new();
        for answered in self.done() {
            let of = (answered.lease.generation.as_str(), place(&answered.lease));
            let Some(count) = counts.get(&answered.lease.text) else { continue };
            let newer = |one: &&&Handed| one.count > *count && one.got < answered.sent;
            if let Some(newer) = handed[&of].iter().find(newer) {
                violations.push(format!("{of:?}: delivery {count} settled it after delivery {}", newer.count));
            }
        }
        violations
    }

    /// A lease that was good in the end was good all the time: no other of the same event, and in ordered groups none of
    /// the same stream, was held meanwhile that was good too.
    fn overlaps(&self, ordered: bool) -> Vec<String> {
        let got: HashMap<&str, Instant> = self.handed.iter().map(|one| (one.lease.text.as_str(), one.got)).collect();
        let mut held = BTreeMap::<_, Vec<_>>::new();
        for answered in self.done() {
            let lease = &answered.lease;
            let place = (!ordered).then(|| place(lease));
            let of = (lease.generation.as_str(), lease.stream().unwrap().to_string(), place);
            held.entry(of).or_default().push((got[lease.text.as_str()], answered.sent, &lease.text));
        }
        let mut violations = Vec::new();
        for (of, mut times) in held {
            times.sort();
            for pair in times.windows(2).filter(|pair| pair[1].0 < pair[0].1) {
                violations.push(format!("{of:?}: {} and {} were held at once", pair[0].2, pair[1].2));
            }
        }
        violations
    }
}
