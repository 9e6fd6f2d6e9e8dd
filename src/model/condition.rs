//! What an append expects of its stream.

use super::Version;

/// The condition of an append, judged against the stream's current version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing is expected.
    Any,
    /// No event was ever appended.
    NoStream,
    /// Some event exists.
    Exists,
    /// The version is one of these.
    OneOf(Vec<Version>),
}

impl Condition {
    /// The versions that would have done; `None` where the condition names none.
    #[must_use]
    pub fn expected(&self) -> Option<Vec<Version>> {
        match self {
            Self::Any | Self::Exists => None,
            Self::NoStream => Some(vec![Version::ZERO]),
            Self::OneOf(versions) => Some(versions.clone()),
        }
    }

    /// Whether it can hold at a version above this one.
    #[must_use]
    pub fn can_hold_after(&self, version: Version) -> bool {
        match self {
            Self::Any | Self::Exists => true,
            Self::NoStream => false,
            Self::OneOf(versions) => versions.iter().any(|expected| *expected > version),
        }
    }
}
