//! The registry of groups, and how the partitions' copies follow it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use redis::{Cmd, Pipeline};
use serde::{Deserialize, Serialize};

use super::{consumers, desk::Desk, random, settled::Floors, wait::Line};
use crate::{
    model::{Error, GroupName, GroupSettings, Partition, Partitions, Start},
    store::{Store, read::decode, reply::Reply},
};

/// A group, as the registry says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    #[serde(skip)]
    pub name: GroupName,
    /// New at every creation.
    epoch: String,
    /// New at every creation and seek.
    pub generation: String,
    /// Whether it hands out nothing for now.
    pub paused: bool,
    /// Rises with every change of any group: a partition's copy takes no older one.
    revision: u64,
    /// It began, or was sought to, after these: one for each partition that it reads. What `end` and times meant at that
    /// moment, so that a copy that is made later begins at the same place.
    pub(in crate::store) places: Vec<u64>,
    /// Its settings.
    pub settings: GroupSettings,
}

/// Groups as last read from the registry. A copy may be old for this long: what it is used for is checked in Redis by the
/// generation, except that a deleted group may be served on for so long, should its deletion have broken off midway.
#[derive(Default)]
pub struct Cache {
    groups: Mutex<HashMap<GroupName, (Instant, Arc<Group>)>>,
    lines: Mutex<HashMap<GroupName, Line>>,
    floors: Mutex<HashMap<GroupName, Floors>>,
    desks: Mutex<HashMap<GroupName, Vec<Arc<Desk>>>>,
    tidied: Mutex<HashMap<GroupName, Instant>>,
}

impl Cache {
    /// The line of those who wait for a group.
    pub(super) fn line(&self, name: &GroupName) -> Line {
        Arc::clone(self.lines.lock().expect("no holder panics").entry(name.clone()).or_default())
    }

    /// Where those come together who use one partition of a group.
    pub(super) fn desk(&self, name: &GroupName, partitions: Partitions, partition: Partition) -> Arc<Desk> {
        let mut desks = self.desks.lock().expect("no holder panics");
        let index = usize::from(partition.get());
        if let Some(of_group) = desks.get(name) {
            return Arc::clone(&of_group[index]);
        }
        let of_group: Vec<Arc<Desk>> = partitions.all().map(|_| Arc::default()).collect();
        let desk = Arc::clone(&of_group[index]);
        desks.insert(name.clone(), of_group);
        desk
    }

    /// Whether idle consumers of a group are to be looked for. It is told once.
    fn is_tidy_due(&self, name: &GroupName) -> bool {
        let (mut tidied, now) = (self.tidied.lock().expect("no holder panics"), Instant::now());
        let due = tidied.get(name).is_none_or(|last| now - *last >= consumers::EVERY);
        if due {
            tidied.insert(name.clone(), now);
        }
        due
    }

    /// What those share who wait until a group has settled something.
    pub(super) fn floors(&self, name: &GroupName) -> Floors {
        Arc::clone(self.floors.lock().expect("no holder panics").entry(name.clone()).or_default())
    }
}

/// The registry's field of the newest revision: no name has a slash.
pub(in crate::store) const REVISION: &str = "/revision";
/// See [`Cache`].
const CACHED: Duration = Duration::from_secs(5);

/// What the registry holds of a group, and the text of it; and the revision that a change is to have.
type Entry = (Option<(Group, String)>, u64);

impl Store {
    /// Creates a group, or changes the settings that may change. `true` if it is new.
    ///
    /// # Errors
    /// [`Error::GroupExists`] where it has another source, ordering or start; or that Redis is not available.
    pub async fn put_group(&self, name: &GroupName, settings: &GroupSettings) -> Result<bool, Error> {
        loop {
            let (entry, revision) = self.registered(name).await?;
            let (group, before) = match entry {
                None => {
                    let group = Group::new(name, settings);
                    let places = self.places(&group, &settings.start).await?;
                    (Group { revision, places, ..group }, String::new())
                }
                Some((group, text)) => (Group { revision, ..group.with(settings)? }, text),
            };
            if self.register(&group, &before).await? {
                self.spread(&group).await?;
                return Ok(before.is_empty());
            }
        }
    }

    /// A group by its name.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn group(&self, name: &GroupName) -> Result<Group, Error> {
        self.registered(name).await?.0.map(|(group, _)| group).ok_or(Error::GroupNotFound)
    }

    /// All groups, by name.
    ///
    /// # Errors
    /// Redis is not available.
    pub async fn groups(&self) -> Result<Vec<Group>, Error> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("HGETALL").arg(self.0.keys.groups());
        let mut entries: Vec<(String, String)> = decode(self.registry(&commands).await?)?;
        entries.retain(|(name, _)| name != REVISION);
        let mut groups = entries.iter().map(|(name, text)| Group::parse(name, text)).collect::<Result<Vec<_>, _>>()?;
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(groups)
    }

    /// Moves a group to another place. Leases and retries are forgotten; parked events stay until they come again.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn seek(&self, name: &GroupName, to: &Start) -> Result<Group, Error> {
        let sought = |group: Group| async move {
            let places = self.places(&group, to).await?;
            Ok(Group { generation: random(), places, ..group })
        };
        self.change(name, sought).await
    }

    /// Stops or resumes handing out. Leases that are out stay as they are.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn pause(&self, name: &GroupName, paused: bool) -> Result<Group, Error> {
        self.change(name, |group| async move { Ok(Group { paused, ..group }) }).await
    }

    /// Removes a group with all that it holds, parked events too.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], or that Redis is not available.
    pub async fn delete_group(&self, name: &GroupName) -> Result<(), Error> {
        let mut tried = None;
        loop {
            let (entry, revision) = self.registered(name).await?;
            let Some((group, before)) = entry else {
                // Gone since we tried: a repeat after a lost reply finds what it did itself. Should it have been somebody
                // else, then removing the copies too does no harm.
                return self.delete_copies(&tried.ok_or(Error::GroupNotFound)?).await;
            };
            let command = self.register_command(name, &before, "", revision);
            if decode::<u8>(Some(self.call(Partition::FIRST, command).await?))? == 1 {
                return self.delete_copies(&group).await;
            }
            tried = Some(group);
        }
    }

    async fn delete_copies(&self, group: &Group) -> Result<(), Error> {
        self.forget_group(&group.name);
        for partition in self.partitions_of(group) {
            let mut command = self.group_command("es_delete_group", group, partition, []);
            command.arg(&group.epoch);
            self.call(partition, command).await?;
        }
        Ok(())
    }

    /// A group by its name, as of lately.
    pub(super) async fn cached_group(&self, name: &GroupName) -> Result<Arc<Group>, Error> {
        let cached = || {
            let groups = self.0.groups.groups.lock().expect("no holder panics");
            groups.get(name).filter(|(read, _)| read.elapsed() < CACHED).map(|(_, group)| Arc::clone(group))
        };
        if let Some(group) = cached() {
            return Ok(group);
        }
        let group = Arc::new(self.group(name).await?);
        if self.0.groups.is_tidy_due(name) {
            self.tidy(name);
        }
        let entry = (Instant::now(), Arc::clone(&group));
        self.0.groups.groups.lock().expect("no holder panics").insert(name.clone(), entry);
        Ok(group)
    }

    pub(super) fn forget_group(&self, name: &GroupName) {
        self.0.groups.groups.lock().expect("no holder panics").remove(name);
    }

    async fn change<F: Future<Output = Result<Group, Error>>>(
        &self,
        name: &GroupName,
        change: impl Fn(Group) -> F,
    ) -> Result<Group, Error> {
        loop {
            let (entry, revision) = self.registered(name).await?;
            let (group, before) = entry.ok_or(Error::GroupNotFound)?;
            let group = Group { revision, ..change(group).await? };
            if self.register(&group, &before).await? {
                self.spread(&group).await?;
                return Ok(group);
            }
        }
    }

    /// Asks the registry one thing.
    async fn registry(&self, commands: &Pipeline) -> Result<Option<Reply>, Error> {
        Ok(self.0.connections.read(Partition::FIRST, commands).await?.pop())
    }

    async fn registered(&self, name: &GroupName) -> Result<Entry, Error> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("HMGET").arg(self.0.keys.groups()).arg(name.as_str()).arg(REVISION);
        let (text, revision): (Option<String>, Option<u64>) = decode(self.registry(&commands).await?)?;
        let group = text.map(|text| Ok::<_, Error>((Group::parse(name.as_str(), &text)?, text))).transpose()?;
        Ok((group, revision.unwrap_or(0) + 1))
    }

    fn register_command(&self, name: &GroupName, before: &str, after: &str, revision: u64) -> Cmd {
        let mut command = redis::cmd("FCALL");
        command.arg(self.0.library.function("es_register_group")).arg(1).arg(self.0.keys.groups());
        command.arg(name.as_str()).arg(before).arg(after).arg(revision);
        command
    }

    async fn register(&self, group: &Group, before: &str) -> Result<bool, Error> {
        let text = serde_json::to_string(group).map_err(|error| Error::Corrupt(error.to_string()))?;
        let command = self.register_command(&group.name, before, &text, group.revision);
        match self.call(Partition::FIRST, command).await.and_then(|reply| decode::<u8>(Some(reply))) {
            Ok(1) => Ok(true),
            // A repeat after a lost reply finds what it wrote itself.
            Ok(_) => Ok(self.registered(&group.name).await?.0.is_some_and(|(_, stored)| stored == text)),
            Err(error) => Err(error),
        }
    }

    /// Brings the copies of all partitions up to date.
    async fn spread(&self, group: &Group) -> Result<(), Error> {
        self.forget_group(&group.name);
        for partition in self.partitions_of(group) {
            self.spread_to(group, partition).await?;
        }
        Ok(())
    }

    /// Brings the copy of one partition up to date.
    pub(super) async fn spread_to(&self, group: &Group, partition: Partition) -> Result<(), Error> {
        let index = if group.settings.stream.is_some() { 0 } else { usize::from(partition.get()) };
        let start = group.places.get(index).copied().unwrap_or(0);
        let GroupSettings { stream, categories, types, ordering, .. } = &group.settings;
        let GroupSettings { lease_ms, max_deliveries, backoff_ms, max_in_flight, on_exhausted, .. } = &group.settings;
        let backoff: Vec<String> = backoff_ms.iter().map(ToString::to_string).collect();
        let mut command = self.group_command("es_put_group", group, partition, []);
        command.arg(&group.epoch).arg(&group.generation).arg(group.revision).arg(start);
        command.arg("stamp").arg(random()).arg("paused").arg(u8::from(group.paused));
        command.arg("stream").arg(stream.as_ref().map_or("", |stream| stream.as_str()));
        command.arg("categories").arg(categories.join("\n")).arg("types").arg(types.join("\n"));
        command.arg("ordering").arg(ordering.as_str()).arg("on_exhausted").arg(on_exhausted.as_str());
        command.arg("lease_ms").arg(lease_ms).arg("max_deliveries").arg(max_deliveries);
        command.arg("max_in_flight").arg(max_in_flight).arg("backoff_ms").arg(backoff.join(","));
        self.call(partition, command).await.map(drop)
    }

    /// What a start means now, for each partition that a group reads.
    async fn places(&self, group: &Group, start: &Start) -> Result<Vec<u64>, Error> {
        let source = group.settings.stream.as_ref();
        let mut places = Vec::new();
        for (index, partition) in self.partitions_of(group).into_iter().enumerate() {
            places.push(match start {
                Start::Beginning => 0,
                Start::End => self.source_head(partition, source).await?,
                Start::After(places) => places.get(index).copied().unwrap_or(0),
                Start::Time(time) => self.before_time(partition, source, *time).await?,
            });
        }
        Ok(places)
    }
}

impl Group {
    fn new(name: &GroupName, settings: &GroupSettings) -> Self {
        let (epoch, generation) = (random(), random());
        let (revision, places, settings) = (0, Vec::new(), settings.clone());
        Self { name: name.clone(), epoch, generation, paused: false, revision, places, settings }
    }

    pub(in crate::store) fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let corrupt = || Error::Corrupt(format!("the registry's entry of group {name}"));
        let group: Self = serde_json::from_str(text).map_err(|_| corrupt())?;
        Ok(Self { name: GroupName::parse(name).ok_or_else(corrupt)?, ..group })
    }

    /// With other settings, of which source, ordering and start must be the same.
    fn with(self, settings: &GroupSettings) -> Result<Self, Error> {
        let now = &self.settings;
        let fixed = [
            ("stream", now.stream == settings.stream),
            ("categories", now.categories == settings.categories),
            ("types", now.types == settings.types),
            ("ordering", now.ordering == settings.ordering),
            ("start", now.start == settings.start),
        ];
        match fixed.into_iter().find(|(_, same)| !same) {
            Some((setting, _)) => Err(Error::GroupExists { setting: setting.to_owned() }),
            None => Ok(Self { settings: settings.clone(), ..self }),
        }
    }
}
