//! The random steps, each carried out on the store and on the model.

use serde_json::value::RawValue;
use streamkeep::{
    model::{Condition, EventId, GroupName, LeaseToken, NewEvent, Partition, Position, Retry, Settled, StreamId},
    store::Nack,
};

use crate::{
    group_model::World,
    group_model_state::{Place, State, Verdict, ensure},
};

/// Names that are prefixes of others, and that sort around the separators of the keys.
pub const STREAMS: [&str; 10] = ["a-1", "a-1~", "a-1+b", "a-10", "a-2", "b-1", "b-2", "b-2:3", "b-3", "b-4"];
const TYPES: [&str; 3] = ["placed", "paid", "sent"];
/// What `es_next` answers: state, next due time, clock, when the leases end, events of each, events, chores.
type NextReply = (String, u64, u64, u64, Vec<usize>, Vec<String>, Vec<String>);

/// No delay or lease of this many ms ends within a test.
pub const FAR: u64 = 600_000;

impl World {
    pub async fn step(&mut self) -> Result<(), String> {
        match self.rng.u32(0..1000) {
            0..190 => self.append().await,
            190..460 => self.next().await,
            460..660 => self.ack().await,
            660..760 => self.nack().await,
            760..790 => self.extend().await,
            790..860 => self.expire().await,
            860..890 => {
                self.crash();
                Ok(())
            }
            890..910 => self.next_and_die().await,
            910..935 => self.remove().await,
            935..955 => self.replay(false).await,
            955..963 => self.replay(true).await,
            963..971 => self.seek().await,
            971..981 => self.pause().await,
            981..987 => self.change_settings().await,
            987..989 => self.remake().await,
            _ => self.check().await,
        }
    }

    async fn append(&mut self) -> Result<(), String> {
        let stream = StreamId::parse(STREAMS[self.rng.usize(..STREAMS.len())]).unwrap();
        let kinds: Vec<&str> = (0..self.rng.usize(1..4)).map(|_| TYPES[self.rng.usize(..3)]).collect();
        let partition = self.stores[0].partition(&stream);
        let data: &RawValue = serde_json::from_str("1").unwrap();
        let event =
            |kind: &&'static str| NewEvent { id: EventId::new_v7(), kind: (*kind).into(), data, metadata: "{}".into() };
        let events: Vec<NewEvent<'_>> = kinds.iter().map(event).collect();
        let appended = self.store().append(partition, &stream, &Condition::Any, &Retry::ByService, &events, None).await;
        let appended = appended.map_err(|error| format!("append: {error}"))?;
        self.note(format!("append {stream} {kinds:?}: version {}", appended.version));
        let one = self.model.settings.stream.clone();
        for (index, kind) in (0..).zip(kinds) {
            let version = appended.first_version.plus(index).get();
            let position = appended.position.get() - (appended.version.get() - version);
            let place = (partition.get(), if one.is_some() { version } else { position });
            if one.as_ref().is_none_or(|one| *one == stream) {
                self.model.added(place, &stream, version, kind);
            }
            self.written.insert((partition.get(), position), (stream.clone(), version));
        }
        Ok(())
    }

    pub async fn next(&mut self) -> Result<(), String> {
        let limit = self.rng.usize(1..9);
        self.next_up_to(limit).await.map(drop)
    }

    /// Returns how many came, and whether there may be more at once.
    pub async fn next_up_to(&mut self, limit: usize) -> Result<(usize, bool), String> {
        let consumer = GroupName::parse(["c1", "c2", "c3"][self.rng.usize(..3)]).unwrap();
        let turn = self.rng.usize(..4);
        let next = self.store().next(&self.name, &consumer, limit, turn).await;
        let next = next.map_err(|error| format!("next: {error}"))?;
        let shown = |delivery: &streamkeep::model::Delivery| {
            format!("{}@{} {}", delivery.lease.position, delivery.lease.partition.get(), delivery.lease.text)
        };
        let shown: Vec<String> = next.deliveries.iter().map(shown).collect();
        self.note(format!("next {limit} by {consumer}: {shown:?} more {}", next.more));
        ensure!(next.deliveries.len() <= limit, "more than asked for");
        ensure!(!self.model.paused || next.deliveries.is_empty(), "handed out while paused");
        for delivery in &next.deliveries {
            let place = (delivery.lease.partition.get(), delivery.lease.position.get());
            let fresh = self.model.events.get(&place).is_some_and(|event| !event.is_pending());
            self.model.hand_out(&delivery.lease, delivery.delivery_count)?;
            let event = &self.model.events[&place];
            let told = (delivery.event.stream.as_str(), delivery.event.version.get());
            ensure!(!event.removed && told == (event.stream.as_str(), event.version), "{place:?} is another event");
            let most = self.model.settings.max_in_flight;
            ensure!(!fresh || self.model.in_flight(place.0) <= most, "more than {most} in flight");
            self.held.push(delivery.lease.clone());
        }
        if next.deliveries.len() < limit && !next.more {
            self.model.nothing_left()?;
        }
        Ok((next.deliveries.len(), next.more))
    }

    /// A service takes events and chores for several consumers, and dies before it does anything with them.
    async fn next_and_die(&mut self) -> Result<(), String> {
        let partitions = self.partitions();
        let partition = partitions[self.rng.usize(..partitions.len())];
        let keys = self.group_keys(partition);
        let nonce = format!("{:016x}", self.rng.u64(..));
        let mut command = redis::cmd("FCALL");
        command.arg(self.library.function("es_next")).arg(keys.len()).arg(&keys).arg(self.name.as_str());
        command.arg(&self.model.generation).arg(&nonce).arg(250);
        let limits: Vec<usize> = (0..self.rng.usize(1..4)).map(|_| self.rng.usize(1..5)).collect();
        for (index, limit) in limits.iter().enumerate() {
            command.arg(format!("dead-{index}")).arg(limit);
        }
        let reply: redis::RedisResult<NextReply> = command.query_async(&mut self.redis).await;
        let (_, _, _, _, counts, events, chores) = reply.map_err(|error| format!("es_next: {error}"))?;
        let fits = counts.len() == limits.len() && counts.iter().zip(&limits).all(|(count, limit)| count <= limit);
        ensure!(fits && 2 * counts.iter().sum::<usize>() == events.len(), "{counts:?} events of {limits:?}");
        self.note(format!("next, and die: {} events, {chores:?}", events.len() / 2));
        for event in events.chunks_exact(2) {
            let lease = self.lease(partition, &event[0], event[1].clone());
            let count = lease.text.split(':').nth(1).unwrap().parse().unwrap();
            self.model.hand_out(&lease, count)?;
            self.old.push(lease);
        }
        for chore in chores.chunks_exact(3).filter(|chore| chore[0] != "release") {
            let lease = self.lease(partition, &chore[1], chore[2].clone());
            let count = lease.text.split(':').nth(1).unwrap().parse().unwrap();
            let place = (partition.get(), lease.position.get());
            self.model.set(place, State::Leased { text: lease.text, count, due: true });
            self.make_due(&[place]).await;
        }
        Ok(())
    }

    fn lease(&self, partition: Partition, position: &str, text: String) -> LeaseToken {
        let position = Position::parse(position).unwrap();
        LeaseToken { partition, generation: self.model.generation.clone(), position, text }
    }

    /// Some leases, most of them good, none twice unless twice in a row.
    fn some_leases(&mut self) -> Vec<LeaseToken> {
        let mut leases = Vec::new();
        for _ in 0..self.rng.usize(1..5) {
            let good = !self.held.is_empty() && self.rng.u32(..10) < 8;
            if good {
                leases.push(self.held.swap_remove(self.rng.usize(..self.held.len())));
            } else if !self.old.is_empty() {
                leases.push(self.old[self.rng.usize(..self.old.len())].clone());
            }
        }
        if self.rng.u32(..10) == 0 {
            leases.extend(leases.first().cloned());
        }
        leases
    }

    /// Compares answers with the model, and calls `then` for what was done.
    fn judge(
        &mut self,
        leases: &[LeaseToken],
        answers: &[Settled],
        is_nack: bool,
        mut then: impl FnMut(&mut Self, Place),
    ) -> Result<(), String> {
        ensure!(leases.len() == answers.len(), "{} answers", answers.len());
        let mut judged: Vec<(&LeaseToken, Verdict)> = Vec::new();
        for (lease, answer) in leases.iter().zip(answers) {
            let place = (lease.partition.get(), lease.position.get());
            let before = judged.iter().find(|(known, _)| *known == lease).map(|(_, verdict)| *verdict);
            let verdict = before.unwrap_or_else(|| self.model.judge(lease));
            judged.push((lease, verdict));
            // To who gives the same delivery back once more, it is done already.
            let once_more = is_nack && *answer == Settled::Already && self.model.was_given_back(lease);
            let fits = match verdict {
                Verdict::Lost | Verdict::DoneOrLost if once_more => true,
                Verdict::Done => *answer == Settled::Done,
                Verdict::Already => *answer == Settled::Already,
                Verdict::Lost => matches!(answer, Settled::Lost(_)),
                Verdict::DoneOrLost => *answer != Settled::Already,
                Verdict::Any => true,
            };
            ensure!(fits, "{place:?} {}: {answer:?}, not {verdict:?}", lease.text);
            if *answer == Settled::Done && before.is_none() {
                then(self, place);
            } else if verdict == Verdict::DoneOrLost && *answer != Settled::Done {
                self.model.park_used_up(place);
            }
            self.old.push(lease.clone());
        }
        Ok(())
    }

    async fn ack(&mut self) -> Result<(), String> {
        let leases = self.some_leases();
        let answers = self.store().ack(&self.name, &leases).await.map_err(|error| format!("ack: {error}"))?;
        self.note_settled("ack", &leases, &answers);
        self.judge(&leases, &answers, false, |world, place| world.model.set(place, State::Settled))
    }

    pub async fn ack_held(&mut self) -> Result<(), String> {
        let leases = std::mem::take(&mut self.held);
        let answers = self.store().ack(&self.name, &leases).await.map_err(|error| format!("ack: {error}"))?;
        self.note_settled("ack", &leases, &answers);
        self.judge(&leases, &answers, false, |world, place| world.model.set(place, State::Settled))
    }

    async fn nack(&mut self) -> Result<(), String> {
        let leases = self.some_leases();
        let (what, delay_ms) = (self.rng.u32(..10), [None, Some(0), Some(FAR)][self.rng.usize(..3)]);
        let nack = match what {
            0..6 => Nack::retry(delay_ms, "a reason"),
            6..9 => Nack::park("no use"),
            _ => Nack::skip(""),
        };
        let answers = self.store().nack(&self.name, &nack, &leases).await.map_err(|error| format!("nack: {error}"))?;
        self.note_settled(&format!("nack {nack:?}"), &leases, &answers);
        let backoff = self.model.settings.backoff_ms.clone();
        let most = self.model.settings.max_deliveries;
        self.judge(&leases, &answers, true, |world, place| {
            let State::Leased { count, .. } = world.model.events[&place].state else { return };
            let index = usize::try_from(count).unwrap().min(backoff.len());
            let delay = delay_ms.unwrap_or_else(|| if index == 0 { 0 } else { backoff[index - 1] });
            let state = match what {
                0..6 if count < most => State::Waiting { count, due: delay == 0 },
                0..6 => world.model.parked_now(count, "exhausted"),
                6..9 => world.model.parked_now(count, "nack"),
                _ => State::Settled,
            };
            world.model.set(place, state);
        })
    }

    async fn extend(&mut self) -> Result<(), String> {
        let leases = self.some_leases();
        let answers =
            self.store().extend(&self.name, None, &leases).await.map_err(|error| format!("extend: {error}"))?;
        let answers: Vec<Settled> = answers.into_iter().map(|(answer, _)| answer).collect();
        self.note_settled("extend", &leases, &answers);
        let mut extended = Vec::new();
        self.judge(&leases, &answers, false, |world, place| {
            if let State::Leased { text, count, .. } = world.model.events[&place].state.clone() {
                world.model.set(place, State::Leased { text, count, due: false });
                extended.push(place);
            }
        })?;
        let holds = |lease: &LeaseToken| extended.contains(&(lease.partition.get(), lease.position.get()));
        self.held.extend(leases.into_iter().filter(holds));
        Ok(())
    }

    fn note_settled(&mut self, what: &str, leases: &[LeaseToken], answers: &[Settled]) {
        let shown = leases
            .iter()
            .zip(answers)
            .map(|(lease, answer)| format!("{}@{} {} {answer:?}", lease.position, lease.partition.get(), lease.text));
        let shown: Vec<String> = shown.collect();
        self.note(format!("{what}: {shown:?}"));
    }

    /// The consumers forget what they hold.
    fn crash(&mut self) {
        self.note("crash".to_owned());
        self.old.append(&mut self.held);
    }

    /// Time passes for some leases and retries: their times are set back.
    async fn expire(&mut self) -> Result<(), String> {
        let all = self.rng.bool();
        let pending: Vec<Place> =
            self.model.events.iter().filter(|(_, event)| event.is_pending()).map(|(place, _)| *place).collect();
        let some: Vec<Place> = pending.into_iter().filter(|_| all || self.rng.u32(..3) == 0).collect();
        self.note(format!("due: {some:?}"));
        self.make_due(&some).await;
        Ok(())
    }

    pub async fn make_due(&mut self, places: &[Place]) {
        if places.is_empty() {
            return;
        }
        let mut pipe = redis::pipe();
        for (partition, position) in places {
            let partition = self.stores[0].partitions().all().nth(usize::from(*partition)).unwrap();
            let score = self.rng.u32(1..100);
            pipe.cmd("ZADD").arg(&self.group_keys(partition)[2]).arg("XX").arg(score).arg(position).ignore();
            match &mut self.model.events.get_mut(&(partition.get(), *position)).unwrap().state {
                State::Leased { due, .. } | State::Waiting { due, .. } => *due = true,
                _ => {}
            }
        }
        let () = pipe.query_async(&mut self.redis).await.unwrap();
    }

    /// Entries of a stream's events are removed, in the middle or from the beginning.
    async fn remove(&mut self) -> Result<(), String> {
        let mut found: Vec<_> = self.written.values().cloned().collect();
        found.sort();
        if found.is_empty() {
            return Ok(());
        }
        let (stream, version) = found.swap_remove(self.rng.usize(..found.len()));
        let partition = self.stores[0].partition(&stream);
        let key = self.keys.events(partition, &stream);
        let trim = self.rng.u32(..4) == 0;
        let mut command = redis::cmd(if trim { "XTRIM" } else { "XDEL" });
        command.arg(key);
        if trim {
            command.arg("MINID").arg(format!("0-{}", version + 1));
        } else {
            command.arg(format!("0-{version}"));
        }
        command.exec_async(&mut self.redis).await.unwrap();
        self.note(format!("remove {stream} {}{version}", if trim { "up to " } else { "" }));
        let gone = |of: &str, at: u64| of == stream.as_str() && (at == version || trim && at < version);
        self.written.retain(|_, (of, at)| !gone(of.as_str(), *at));
        for event in self.model.events.values_mut() {
            event.removed |= gone(&event.stream, event.version);
        }
        Ok(())
    }
}
