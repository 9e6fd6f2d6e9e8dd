//! Every key name. Nothing else in the crate, and nothing in Lua, makes one up.

use crate::model::{GroupName, Partition, Partitions, StreamId};

/// Makes the key names of one store.
///
/// A name is `<namespace:>{partition}:<what>`; with one partition, unless in a cluster, the braces are left out, so that
/// `XRANGE events:order-12345 - +` shows what people lay out by hand today. The braces are a hash tag: all keys of a
/// partition share a slot, so that one function call may touch them all.
#[derive(Clone, Debug)]
pub struct Keys {
    namespace: String,
    partitions: Partitions,
    tagged: bool,
    /// Stands before the names of what belongs to no partition.
    home: &'static str,
}

impl Keys {
    /// Names for a store with that many partitions; `namespace` may be empty.
    #[must_use]
    pub fn new(namespace: &str, partitions: Partitions) -> Self {
        let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}:") };
        Self { namespace, partitions, tagged: partitions.count() > 1, home: "" }
    }

    /// Names in a cluster: with braces, also where there is only one partition. What belongs to no partition is where the
    /// first one is.
    #[must_use]
    pub fn on_cluster(self) -> Self {
        Self { tagged: true, home: "{0}:", ..self }
    }

    fn of_store(&self, what: &str) -> String {
        [&self.namespace, self.home, what].concat()
    }

    fn name(&self, partition: Partition, what: &str, of: &str) -> String {
        let namespace = &self.namespace;
        if self.tagged {
            format!("{namespace}{{{}}}:{what}{of}", partition.get())
        } else {
            [namespace, what, of].concat()
        }
    }

    /// Stream: the events of `stream`, entry id `0-<version>`, fields `id type data metadata timestamp version
    /// position`. Lives until the events are removed.
    #[must_use]
    pub fn events(&self, partition: Partition, stream: &StreamId) -> String {
        self.name(partition, "events:", stream.as_str())
    }

    /// What the keys of events match, those of all streams in all partitions (`SCAN`).
    #[must_use]
    pub fn events_pattern(&self) -> String {
        let partition = if self.tagged { "{*}:" } else { "" };
        format!("{}{partition}events:*", self.namespace)
    }

    /// The partition and the stream that a key of events names; `None` where it is none of this store.
    #[must_use]
    pub fn parse_events(&self, key: &str) -> Option<(Partition, StreamId)> {
        let mut partitions = self.partitions.all();
        let of = |partition: Partition| key.strip_prefix(self.name(partition, "events:", "").as_str());
        let (partition, stream) = partitions.find_map(|partition| Some((partition, of(partition)?)))?;
        Some((partition, StreamId::parse(stream)?))
    }

    /// Stream: a pointer to every event of the partition in commit order, entry id `0-<position>`, fields `s` stream,
    /// `v` version, `t` type. Lives for ever.
    #[must_use]
    pub fn log(&self, partition: Partition) -> String {
        self.name(partition, "log", "")
    }

    /// Hash: event ids given by clients (UUIDs as 16 bytes) → version, and the first id of a call that was repeated
    /// because its reply was lost. Absent where there are none.
    #[must_use]
    pub fn ids(&self, partition: Partition, stream: &StreamId) -> String {
        self.name(partition, "ids:", stream.as_str())
    }

    /// Hash: facts about a stream that has something to say. `tombstone`: deleted for ever; `removed`: how many of its
    /// first events are gone.
    #[must_use]
    pub fn stream(&self, partition: Partition, stream: &StreamId) -> String {
        self.name(partition, "stream:", stream.as_str())
    }

    /// The twelve keys of a group in a partition, in the order that its functions take them; `migrations-lua/functions/
    /// groups.lua` says what each holds. They live as long as the group.
    #[must_use]
    pub fn group(&self, partition: Partition, group: &GroupName, source: Option<&StreamId>) -> Vec<String> {
        let source = source.map_or_else(|| self.log(partition), |stream| self.events(partition, stream));
        let of_group = |part: &str| self.name(partition, "group:", &format!("{group}{part}"));
        // No name has a slash: the keys of one group are never those of another.
        let parts = ["", "/due", "/lease", "/ready", "/parked", "/parked/info", "/busy", "/again", "/todo", "/error"];
        let mut keys = vec![source];
        keys.extend(parts.iter().map(|part| of_group(part)));
        keys.push(self.wake(partition));
        keys
    }

    /// Stream, about 1,000 entries: a line whenever a function makes something deliverable that is no new log entry.
    #[must_use]
    pub fn wake(&self, partition: Partition) -> String {
        self.name(partition, "wake", "")
    }

    /// Hash, the registry: name of a group → what it is, JSON. In the first partition.
    #[must_use]
    pub fn groups(&self) -> String {
        self.name(Partition::FIRST, "groups", "")
    }

    /// Hash: `partitions`, as fixed when the store was created.
    #[must_use]
    pub fn schema(&self) -> String {
        self.of_store("streamkeep:schema")
    }

    /// Hash: number of an applied migration → SHA-256 of its text.
    #[must_use]
    pub fn migrations(&self) -> String {
        self.of_store("streamkeep:migrations")
    }

    /// String: how far the logs of the store are copied that this one is, or was, a copy of; a cursor of that store.
    #[must_use]
    pub fn copied(&self) -> String {
        self.of_store("streamkeep:copied")
    }

    /// String: held by the instance that is running migrations; expires by itself.
    #[must_use]
    pub fn migrations_lock(&self) -> String {
        self.of_store("streamkeep:migrations:lock")
    }
}
