//! Reading the log: all events of a partition in commit order.

use redis::{Pipeline, Value};

use crate::{
    model::{Category, Error, Event, Fingerprint, Partition, Place, StreamId, Version},
    store::{
        Connections, Direction, Keys, StartError, Store,
        pointers::{LOOKED_AT_MAX, Pointer},
        primary::Primary,
        read::head,
    },
};

/// Which events of the log are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Only those of streams in one of these categories; empty: in any.
    pub categories: Vec<Category>,
    /// Only those of one of these types; empty: of any.
    pub types: Vec<String>,
    /// Only those of this stream.
    pub stream: Option<StreamId>,
}

impl LogFilter {
    /// Whether an event is wanted.
    #[must_use]
    pub fn wants(&self, stream: &StreamId, kind: &str) -> bool {
        let category = stream.category();
        (self.categories.is_empty() || self.categories.iter().any(|wanted| wanted.as_str() == category))
            && (self.types.is_empty() || self.types.iter().any(|wanted| wanted == kind))
            && self.stream.as_ref().is_none_or(|wanted| wanted == stream)
    }

    /// Whether every event is.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.categories.is_empty() && self.types.is_empty() && self.stream.is_none()
    }
}

/// What a page of the log is to hold.
#[derive(Clone, Debug)]
pub struct LogRequest {
    /// Most events wanted.
    pub limit: usize,
    /// A page that would be larger is cut short: roughly so many bytes.
    pub bytes: usize,
    /// Which way.
    pub direction: Direction,
    /// Which events.
    pub filter: LogFilter,
}

/// A page of a partition's log.
#[derive(Debug)]
pub struct LogPage {
    /// The events that the filter wants, in the order asked for.
    pub events: Vec<Event>,
    /// After the last entry looked at; going backward, before it.
    pub place: Place,
    /// Whether that is the head; going backward, the beginning.
    pub caught_up: bool,
}

/// A page of the streams of a partition, in the order of their first events.
#[derive(Debug)]
pub struct StreamsPage {
    /// Each with its version.
    pub streams: Vec<(StreamId, Version)>,
    /// After the last log entry looked at.
    pub place: Place,
    /// Whether that is the head.
    pub caught_up: bool,
}

/// Entries of the log as far as they were looked at.
struct Scan {
    /// Those that are wanted, and behind them the last one where it is not.
    pointers: Vec<Pointer>,
    caught_up: bool,
}

impl Store {
    /// Reads a page of a partition's log behind `place`, or going backward before it. Looks at a bounded number of
    /// entries: a page may be empty and not yet caught up. Entries whose event was removed are passed over.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`] where another event, or none, is at `place`; or that Redis is not available.
    pub async fn read_log(&self, partition: Partition, place: Place, request: &LogRequest) -> Result<LogPage, Error> {
        let LogRequest { limit, bytes, direction, filter } = request;
        let wants = |pointer: &Pointer| filter.wants(&pointer.stream, &pointer.kind);
        let asked = if filter.is_open() { *limit } else { LOOKED_AT_MAX.max(*limit) };
        let scan = self.scan(partition, place, asked, *limit, *direction, wants).await?;
        let (mut caught_up, mut last) = (scan.caught_up, scan.pointers.last().map(|pointer| pointer.position));
        let (mut events, seen) = self.resolve_within(partition, &scan.pointers, *bytes).await?;
        if seen < scan.pointers.len() {
            caught_up = false;
            last = scan.pointers[..seen].last().map(|pointer| pointer.position);
        }
        // The last entry names the cursor, also where the filter does not want it.
        let print = |position| match events.last() {
            Some(event) if event.position == position => Fingerprint::of(&event.id),
            _ => Fingerprint::REMOVED,
        };
        let place = last.map_or(place, |position| Some((position, print(position))));
        events.retain(|event| filter.wants(&event.stream, &event.kind));
        Ok(LogPage { events, place, caught_up })
    }

    /// Lists at most `limit` streams behind `place`: the log's entries of version 1. Looks at a bounded number of
    /// entries. Streams that were deleted for ever are left out.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`] where another event, or none, is at `place`; or that Redis is not available.
    pub async fn read_streams(
        &self,
        partition: Partition,
        place: Place,
        limit: usize,
        filter: &LogFilter,
    ) -> Result<StreamsPage, Error> {
        let wants =
            |pointer: &Pointer| pointer.version == Version::FIRST && filter.wants(&pointer.stream, &pointer.kind);
        let asked = LOOKED_AT_MAX.max(limit);
        let Scan { pointers, caught_up } = self.scan(partition, place, asked, limit, Direction::Forward, wants).await?;
        let place = match pointers.last() {
            Some(last) => self.place_at(partition, Some(last.position.get())).await?,
            None => place,
        };
        let found: Vec<StreamId> = pointers.into_iter().filter(wants).map(|pointer| pointer.stream).collect();
        let mut commands = Pipeline::with_capacity(2 * found.len());
        for stream in &found {
            self.add_head(&mut commands, partition, stream);
        }
        let mut streams = Vec::with_capacity(found.len());
        if !found.is_empty() {
            let mut replies = self.0.connections.read(partition, &commands).await?.into_iter();
            for stream in found {
                match head(&mut replies) {
                    Ok(version) => streams.push((stream, version)),
                    Err(Error::StreamDeleted) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(StreamsPage { streams, place, caught_up })
    }

    /// Looks at `asked` entries, and keeps at most `limit` of those that are wanted.
    async fn scan(
        &self,
        partition: Partition,
        place: Place,
        asked: usize,
        limit: usize,
        direction: Direction,
        wants: impl Fn(&Pointer) -> bool,
    ) -> Result<Scan, Error> {
        let mut pointers = self.pointers(partition, place, asked, direction).await?;
        let mut caught_up = pointers.len() < asked;
        let mut wanted = 0;
        let cut = pointers.iter().position(|pointer| {
            wanted += usize::from(wants(pointer));
            wanted > limit
        });
        if let Some(cut) = cut {
            pointers.truncate(cut);
            caught_up = false;
        }
        let last = pointers.last().map(|pointer| pointer.position);
        pointers.retain(|pointer| wants(pointer) || Some(pointer.position) == last);
        Ok(Scan { pointers, caught_up })
    }

    /// The place before the first event of a partition stored at or after `time`, in ms since 1970.
    ///
    /// # Errors
    /// Redis is not available.
    pub async fn log_place_before(&self, partition: Partition, time: u64) -> Result<Place, Error> {
        match self.before_time(partition, None, time).await? {
            0 => Ok(None),
            position => self.place_at(partition, Some(position)).await,
        }
    }

    /// The place after the newest event of a partition.
    ///
    /// # Errors
    /// Redis is not available.
    pub async fn log_end(&self, partition: Partition) -> Result<Place, Error> {
        self.place_at(partition, None).await
    }

    /// That the event which a cursor names is still at its place.
    ///
    /// # Errors
    /// [`Error::HistoryDiverged`], or that Redis is not available.
    pub async fn check_place(&self, partition: Partition, place: Place) -> Result<(), Error> {
        match place {
            Some(_) => self.pointers(partition, place, 0, Direction::Forward).await.map(drop),
            None => Ok(()),
        }
    }
}

/// That nobody else writes to the keys of the log: a stream called `log` is not that rare. Of a primary that is away
/// nobody can say.
pub(super) async fn check_log(connections: &Connections, keys: &Keys) -> Result<(), StartError> {
    for (primary, partitions) in connections.primaries() {
        match check_logs(&primary, keys, partitions).await {
            Err(error) if error.is_away() => {}
            checked => checked?,
        }
    }
    Ok(())
}

async fn check_logs(primary: &Primary, keys: &Keys, partitions: Vec<Partition>) -> Result<(), StartError> {
    let mut redis = primary.exclusive().await?;
    for partition in partitions {
        let log = keys.log(partition);
        let mut newest = redis::cmd("XREVRANGE");
        newest.arg(&log).arg("+").arg("-").arg("COUNT").arg(1);
        let newest: redis::RedisResult<Vec<(String, Value)>> = newest.query_async(&mut redis).await;
        let foreign = match newest {
            Ok(newest) => newest.first().is_some_and(|(id, _)| !id.starts_with("0-")),
            Err(error) if error.code() == Some("WRONGTYPE") => true,
            Err(error) => return Err(error.into()),
        };
        if foreign {
            return Err(StartError::ForeignLog(log));
        }
    }
    Ok(())
}
