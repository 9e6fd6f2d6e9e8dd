//! What a credential may do, in the form of the keys file and of the claim in a JWT.

use serde::{Deserialize, Serialize};

use crate::model::{GroupSettings, StreamId};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Read streams and the log, and follow them.
    Read,
    /// Append events.
    Append,
    /// Take events of a group, and settle them.
    Consume,
    /// Create, change, move and delete groups, and replay or drop what they parked.
    Manage,
}

impl Verb {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Append => "append",
            Self::Consume => "consume",
            Self::Manage => "manage",
        }
    }
}

/// Names of streams or groups: one name, or with a `*` behind it all that begin with what stands before.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    is_prefix: bool,
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(pattern: String) -> Result<Self, String> {
        let (text, is_prefix) = match pattern.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (pattern.as_str(), false),
        };
        // Names of groups keep to the rules of stream ids; a beginning is good if something can follow.
        let good = if is_prefix { StreamId::parse(&format!("{text}x")) } else { StreamId::parse(text) };
        if good.is_none() {
            return Err(format!("{pattern:?} is no name, and no beginning of one with a * behind"));
        }
        Ok(Self { text: text.to_owned(), is_prefix })
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        let Pattern { mut text, is_prefix } = pattern;
        if is_prefix {
            text.push('*');
        }
        text
    }
}

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl Pattern {
    fn covers(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

/// Verbs, and the names that they hold for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rights {
    /// What may be done.
    pub verbs: Vec<Verb>,
    /// With which streams; empty: none.
    #[serde(default)]
    pub streams: Vec<Pattern>,
    /// With which groups; empty: none.
    #[serde(default)]
    pub groups: Vec<Pattern>,
}

impl Rights {
    /// Whether this stream is among them.
    #[must_use]
    pub fn stream(&self, id: &str) -> bool {
        self.streams.iter().any(|pattern| pattern.covers(id))
    }

    /// Whether this group is among them.
    #[must_use]
    pub fn group(&self, name: &str) -> bool {
        self.groups.iter().any(|pattern| pattern.covers(name))
    }

    /// Whether every stream is among them.
    #[must_use]
    pub fn all_streams(&self) -> bool {
        self.streams.iter().any(|pattern| pattern.is_prefix && pattern.text.is_empty())
    }

    /// Whether every group is among them.
    #[must_use]
    pub fn all_groups(&self) -> bool {
        self.groups.iter().any(|pattern| pattern.is_prefix && pattern.text.is_empty())
    }

    /// Whether every stream of a category is among them: that which is called as the category, and all that have a `-`
    /// behind it.
    #[must_use]
    pub fn category(&self, category: &str) -> bool {
        let members = format!("{category}-");
        self.stream(category)
            && self.streams.iter().any(|pattern| pattern.is_prefix && members.starts_with(&pattern.text))
    }

    /// Whether every event that a group with these settings hands out is of a stream among them.
    #[must_use]
    pub fn source(&self, settings: &GroupSettings) -> bool {
        match &settings.stream {
            Some(stream) => self.stream(stream.as_str()),
            None if settings.categories.is_empty() => self.all_streams(),
            None => settings.categories.iter().all(|category| self.category(category)),
        }
    }
}

/// Who asks, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The id of the key, or the subject of the JWT; for logs.
    pub who: String,
    /// What they may do.
    pub rights: Rights,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(streams: &[&str]) -> Rights {
        let streams = streams.iter().map(|pattern| pattern.parse().expect("a pattern")).collect();
        Rights { verbs: Vec::new(), streams, groups: Vec::new() }
    }

    #[test]
    fn patterns_are_names_or_beginnings() {
        assert!(rights(&["order-1"]).stream("order-1"));
        assert!(!rights(&["order-1"]).stream("order-12"));
        assert!(rights(&["order-*"]).stream("order-12"));
        assert!(!rights(&["order-*"]).stream("orders"));
        assert!(!rights(&[]).stream("order-1"));
        assert!(rights(&["*"]).all_streams() && !rights(&["a*"]).all_streams() && !rights(&[]).all_streams());
        for bad in ["", "**", "a*b", "order/1", "Ä*", "a b"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(201).parse::<Pattern>().is_err());
    }

    #[test]
    fn a_category_is_covered_only_as_a_whole() {
        assert!(rights(&["order*"]).category("order"));
        assert!(rights(&["order", "order-*"]).category("order"));
        assert!(rights(&["*"]).category("order"));
        assert!(!rights(&["order-*"]).category("order"), "the stream `order` is in the category too");
        assert!(!rights(&["order"]).category("order"));
        assert!(!rights(&["order", "order-1*"]).category("order"));
    }
}
