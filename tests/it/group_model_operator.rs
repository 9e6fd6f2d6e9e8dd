//! The steps of an operator: replay, drop, seek, pause, settings.

use std::collections::BTreeMap;

use streamkeep::{
    model::{OnExhausted, Partition, Position, Start, StreamId},
    store::Which,
};

use crate::{
    group_model::World,
    group_model_state::{Place, ensure},
    group_model_steps::{FAR, STREAMS},
};

impl World {
    pub async fn replay(&mut self, drop: bool) -> Result<(), String> {
        self.sync().await?;
        let of = self.model.parked();
        let which = match self.rng.u32(..4) {
            0 => Which::All,
            1 => Which::First(self.rng.usize(1..4)),
            2 => Which::Stream(StreamId::parse(STREAMS[self.rng.usize(..STREAMS.len())]).unwrap()),
            _ => {
                let places: Vec<Place> = of.iter().filter(|_| self.rng.bool()).copied().collect();
                Which::These(places.into_iter().map(|place| self.place(place)).collect())
            }
        };
        self.replay_which(&which, drop).await
    }

    pub async fn replay_which(&mut self, which: &Which, drop: bool) -> Result<(), String> {
        let of = self.model.parked();
        let chosen: Vec<Place> = match &which {
            Which::All => of,
            Which::First(most) => of.into_iter().take(*most).collect(),
            Which::Stream(stream) => {
                of.into_iter().filter(|place| self.model.events[place].stream == stream.as_str()).collect()
            }
            Which::These(places) => places.iter().map(|(partition, at)| (partition.get(), at.get())).collect(),
        };
        let done = self.store().replay(&self.name, which, drop).await.map_err(|error| format!("replay: {error}"))?;
        self.note(format!("{} {which:?}: {done}", if drop { "drop" } else { "replay" }));
        ensure!(done == chosen.len(), "{done} of {chosen:?}");
        self.model.batch += 1;
        for place in chosen {
            self.model.unpark(place, drop);
        }
        Ok(())
    }

    fn place(&self, (partition, position): Place) -> (Partition, Position) {
        let partition = self.stores[0].partitions().all().nth(usize::from(partition)).unwrap();
        (partition, Position::new(position).unwrap())
    }

    pub async fn seek(&mut self) -> Result<(), String> {
        self.sync().await?;
        let (to, starts) = self.random_start();
        let group = self.store().seek(&self.name, &to).await.map_err(|error| format!("seek: {error}"))?;
        self.note(format!("seek {to:?}"));
        self.model.sought(&group.generation, &starts);
        self.old.append(&mut self.held);
        Ok(())
    }

    /// A place to start from, and what it means for each partition.
    fn random_start(&mut self) -> (Start, BTreeMap<u16, u64>) {
        let mut heads = BTreeMap::new();
        for partition in self.partitions() {
            let of = self.model.events.range((partition.get(), 0)..=(partition.get(), u64::MAX));
            heads.insert(partition.get(), of.last().map_or(0, |((_, position), _)| *position));
        }
        match self.rng.u32(..6) {
            0..2 => (Start::Beginning, BTreeMap::new()),
            2 => (Start::Time(0), BTreeMap::new()),
            3 => (Start::End, heads),
            _ => {
                let back = self.rng.u64(..12);
                let starts: BTreeMap<u16, u64> =
                    heads.into_iter().map(|(partition, head)| (partition, head.saturating_sub(back))).collect();
                (Start::After(starts.values().copied().collect()), starts)
            }
        }
    }

    pub async fn pause(&mut self) -> Result<(), String> {
        let paused = !self.model.paused && self.rng.bool();
        self.store().pause(&self.name, paused).await.map_err(|error| format!("pause: {error}"))?;
        self.note(format!("paused: {paused}"));
        self.model.paused = paused;
        Ok(())
    }

    /// Deletes the group, parked events and all, and makes it anew.
    pub async fn remake(&mut self) -> Result<(), String> {
        self.store().delete_group(&self.name).await.map_err(|error| format!("delete: {error}"))?;
        let new = self.store().put_group(&self.name, &self.model.settings).await;
        ensure!(new.map_err(|error| format!("make anew: {error}"))?, "it was still there");
        let group = self.store().group(&self.name).await.map_err(|error| error.to_string())?;
        self.note("deleted, and made anew".to_owned());
        self.model.remade(&group.generation);
        self.old.append(&mut self.held);
        Ok(())
    }

    pub async fn change_settings(&mut self) -> Result<(), String> {
        self.sync().await?;
        let mut settings = self.model.settings.clone();
        settings.max_deliveries = self.rng.u64(1..6);
        settings.backoff_ms = [0, FAR][..self.rng.usize(..3)].to_vec();
        settings.max_in_flight = [1, 3, 10, 1000][self.rng.usize(..4)];
        let park_stream = self.model.ordered() && self.rng.bool();
        settings.on_exhausted = if park_stream { OnExhausted::ParkStream } else { OnExhausted::Park };
        let new = self.store().put_group(&self.name, &settings).await.map_err(|error| format!("change: {error}"))?;
        ensure!(!new, "made anew");
        self.note(format!("settings {settings:?}"));
        self.model.settings = settings;
        Ok(())
    }
}
