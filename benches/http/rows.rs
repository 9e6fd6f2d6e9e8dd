//! What is measured, and on whom.

use crate::load::Sample;

/// Requests that a pipelined client sends at once.
pub const PIPELINE: usize = 10;
/// Connections of the rows with further targets.
pub const CROWD: usize = 50;

/// Who is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An HTTP server that does nothing.
    Echo,
    /// Redis, without a service: the function that the service calls, one call at a time on each connection.
    Raw,
    /// The same calls in pipelines.
    RawPipelined,
    /// Redis, without a service and without the function.
    Xadd,
    XaddPipelined,
    /// The service.
    Http,
    /// Another build of the service.
    Against,
    /// Other servers that are used for the same.
    Webdis,
    JetStream,
    MessageDb,
    UmaDb,
}

impl Target {
    pub const ALL: [Self; 11] = [
        Self::Echo,
        Self::Raw,
        Self::RawPipelined,
        Self::Xadd,
        Self::XaddPipelined,
        Self::Http,
        Self::Against,
        Self::Webdis,
        Self::JetStream,
        Self::MessageDb,
        Self::UmaDb,
    ];

    /// The category of the streams that are the target's own, and its name in tables.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Echo => ("echo", "echo"),
            Self::Raw => ("bare", "raw redis"),
            Self::RawPipelined => ("pipe", "raw, pipelines of 10"),
            Self::Xadd => ("xadd", "XADD"),
            Self::XaddPipelined => ("xpipe", "XADD, pipelines of 10"),
            Self::Http => ("http", "streamkeep"),
            Self::Against => ("host", "against"),
            Self::Webdis => ("webdis", "webdis"),
            Self::JetStream => ("jet", "JetStream"),
            Self::MessageDb => ("mdb", "Message DB"),
            Self::UmaDb => ("uma", "UmaDB"),
        }
    }

    pub fn prefix(self) -> &'static str {
        self.names().0
    }

    pub fn name(self) -> &'static str {
        self.names().1
    }

    /// Whether it is another server that is used for the same.
    pub fn is_peer(self) -> bool {
        matches!(self, Self::Webdis | Self::JetStream | Self::MessageDb | Self::UmaDb)
    }

    pub fn is_service(self) -> bool {
        matches!(self, Self::Http | Self::Against)
    }

    /// Whether it is asked in each row of appends, or only in those that compare many.
    pub fn everywhere(self) -> bool {
        matches!(self, Self::Echo | Self::Raw | Self::Http | Self::Against)
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Append,
    Read,
    /// Take and ack, in a group without order.
    Next,
    /// The same in an ordered group over many streams.
    Ordered,
}

impl Work {
    pub fn name(self) -> &'static str {
        ["append", "read", "next", "ordered"][self as usize]
    }

    /// Who can be asked for so many events at once, over so many connections.
    pub fn targets(self, events: usize, connections: usize) -> Vec<Target> {
        let can = |target: &Target| match self {
            Self::Append => {
                let batch = !matches!(target, Target::RawPipelined | Target::Xadd | Target::XaddPipelined);
                (connections == CROWD || target.everywhere()) && (events == 1 || batch)
            }
            Self::Read => {
                let peer = target.is_peer() && *target != Target::Webdis;
                *target == Target::Raw || target.is_service() || (peer && connections == CROWD)
            }
            Self::Next => matches!(target, Target::Raw | Target::Http | Target::Against | Target::JetStream),
            Self::Ordered => matches!(target, Target::Http | Target::Against),
        };
        Target::ALL.into_iter().filter(can).collect()
    }

    /// The ordering of its group, where it has one.
    pub fn ordering(self) -> Option<&'static str> {
        match self {
            Self::Append | Self::Read => None,
            Self::Next => Some("none"),
            Self::Ordered => Some("stream"),
        }
    }

    /// What raw Redis does instead: it has no order.
    pub fn raw(self) -> Self {
        if self == Self::Ordered { Self::Next } else { self }
    }
}

/// A row, and what it gave in each round.
pub struct Row {
    pub work: Work,
    /// Of a request.
    pub events: usize,
    pub connections: usize,
    pub target: Target,
    pub samples: Vec<Sample>,
}

impl Row {
    pub fn new(work: Work, events: usize, connections: usize, target: Target) -> Self {
        Self { work, events, connections, target, samples: Vec::new() }
    }

    /// The group that its consumers share.
    pub fn group(&self) -> String {
        format!("{}-{}-{}-{}", self.target.prefix(), self.work.name(), self.events, self.connections)
    }

    pub fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }

    /// Its rate beside that of the row like this one, but of other work or another target.
    pub fn ratio(&self, rows: &[Self], work: Work, target: Target) -> Option<f64> {
        let wanted = (work, self.events, self.connections, target);
        let other = rows.iter().find(|row| (row.work, row.events, row.connections, row.target) == wanted)?;
        Some(self.rate_of(other))
    }

    /// The median of the rounds' ratios of its rate to another row's.
    pub fn rate_of(&self, other: &Self) -> f64 {
        let pairs = self.samples.iter().zip(&other.samples);
        median(pairs.map(|(own, other)| own.rate / other.rate).collect())
    }
}

/// Backward in every second round, so that what drifts (a growing log, a busy neighbour) does not fall on the same rows
/// each time.
pub fn in_turn<T>(rows: &mut [T], round: usize) -> Vec<&mut T> {
    let mut order: Vec<&mut T> = rows.iter_mut().collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// The middle one; of two, the mean.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => f64::midpoint(values[(count - 1) / 2], values[count / 2]),
    }
}
