//! Cursors: opaque tokens for «after here», safe against a store that went back in time.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::{Event, Partition, Partitions, Position, Version};

/// The first 4 bytes of the SHA-256 of an event's id. Ids are unique, so after a lost failover or a restored backup
/// another event at the same position shows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u32);

impl Fingerprint {
    /// The fingerprint of the event with this id.
    #[must_use]
    pub fn of(event_id: &str) -> Self {
        let hash = Sha256::digest(event_id.as_bytes());
        Self(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
    }

    /// Of an event that was removed while its log entry stands: nothing to compare with.
    pub const REMOVED: Self = Self(0);

    /// Whether the event with this id can be the one that was meant.
    #[must_use]
    pub fn fits(self, event_id: &str) -> bool {
        self == Self::REMOVED || self == Self::of(event_id)
    }
}

/// A place in one partition's log: after the event at `position`, which has this fingerprint. `None` at the beginning.
pub type Place = Option<(Position, Fingerprint)>;

/// A place in the log of every partition, and the partition whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// One place for each partition.
    pub places: Vec<Place>,
    /// The partition that the next page begins with.
    pub turn: usize,
}

impl Cursor {
    /// Before the first event of every partition.
    #[must_use]
    pub fn beginning(partitions: Partitions) -> Self {
        Self { places: vec![None; usize::from(partitions.count())], turn: 0 }
    }

    /// After one event, and in the other partitions before the first.
    #[must_use]
    pub fn after(partition: Partition, position: Position, event_id: &str, partitions: Partitions) -> Self {
        let mut cursor = Self::beginning(partitions);
        cursor.places[usize::from(partition.get())] = Some((position, Fingerprint::of(event_id)));
        cursor
    }

    /// Moves on to another place in a partition; then it is the next one's turn.
    pub fn pass(&mut self, partition: Partition, place: Place) {
        let index = usize::from(partition.get());
        self.places[index] = place;
        self.turn = (index + 1) % self.places.len();
    }

    /// Reads a token; `None` where it is not one of a store with that many partitions.
    #[must_use]
    pub fn parse(token: &str, partitions: Partitions) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let (turn, places) = text.split_once(':')?;
        let places: Vec<Place> = places.split(',').map(parse_place).collect::<Option<_>>()?;
        let turn: usize = turn.parse().ok()?;
        (places.len() == usize::from(partitions.count()) && turn < places.len()).then_some(Self { places, turn })
    }

    /// The token: URL-safe characters only.
    #[must_use]
    pub fn token(&self) -> String {
        let mut text = format!("{}:", self.turn);
        for (index, place) in self.places.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            text.push_str(comma);
            // With many partitions most are at their beginning in the cursor of an append: nothing stands for that.
            if let Some((position, Fingerprint(print))) = place {
                write!(text, "{position}-{print:08x}").expect("writing to memory cannot fail");
            }
        }
        URL_SAFE_NO_PAD.encode(text)
    }
}

fn parse_place(text: &str) -> Option<Place> {
    if text.is_empty() {
        return Some(None);
    }
    let (position, print) = text.split_once('-')?;
    let position = Position::parse(position)?;
    Some((position > Position::ZERO).then_some((position, parse_print(print)?)))
}

fn parse_print(text: &str) -> Option<Fingerprint> {
    let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten().map(Fingerprint)
}

/// A place in one stream: after the event at `version`, which has this fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamCursor {
    /// At least 1.
    pub version: Version,
    /// Of the event there.
    pub fingerprint: Fingerprint,
}

impl StreamCursor {
    /// After this event.
    #[must_use]
    pub fn after(event: &Event) -> Self {
        Self { version: event.version, fingerprint: Fingerprint::of(&event.id) }
    }

    /// Reads a token.
    #[must_use]
    pub fn parse(token: &str) -> Option<Self> {
        let (version, print) = token.split_once('-')?;
        let version = Version::parse(version).filter(|version| *version > Version::ZERO)?;
        Some(Self { version, fingerprint: parse_print(print)? })
    }

    /// The token: URL-safe characters only.
    #[must_use]
    pub fn token(&self) -> String {
        format!("{}-{:08x}", self.version, self.fingerprint.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_as_its_cursor() {
        let partitions = Partitions::new(2).expect("in range");
        let place = Some((Position::new(7).expect("in range"), Fingerprint::of("some-id")));
        let cursor = Cursor { places: vec![None, place], turn: 1 };
        assert_eq!(Cursor::parse(&cursor.token(), partitions), Some(cursor.clone()));
        assert_eq!(
            Cursor::parse(&Cursor::beginning(partitions).token(), partitions).map(|cursor| cursor.turn),
            Some(0)
        );
        let with_zero = URL_SAFE_NO_PAD.encode("0:0-00000000,");
        assert_eq!(Cursor::parse(&with_zero, partitions), Some(Cursor::beginning(partitions)), "as written before");
        assert_eq!(Cursor::parse(&cursor.token(), Partitions::new(4).expect("in range")), None);
        for bad in ["", "x", "MDox", "!!!!"] {
            assert_eq!(Cursor::parse(bad, partitions), None, "{bad:?}");
        }
    }
}
