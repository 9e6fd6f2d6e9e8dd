//! Streams, their versions, and where they live.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest stream id, in characters (all of them ASCII).
pub const STREAM_ID_MAX: usize = 200;

/// Largest version or position: 2^53-1, the largest integer that every JSON reader holds exactly (RFC 8259 §6).
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// The id of a stream: 1 to 200 characters of `A-Z a-z 0-9 . _ ~ : @ + -`, but not `.` or `..`.
///
/// The grammar holds only what stays itself in a URL, in a Redis key and behind a gateway. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct StreamId(Arc<str>);

impl TryFrom<String> for StreamId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a stream id")
    }
}

impl StreamId {
    /// The grammar in words, to go behind «a stream id has».
    pub const RULE: &str = "1 to 200 characters of A-Z a-z 0-9 . _ ~ : @ + - and is not . or ..";

    /// The id, or `None` where `text` breaks the grammar.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~:@+-".contains(&byte);
        let good =
            (1..=STREAM_ID_MAX).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != "..";
        good.then(|| Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first `-`; the whole id where there is none.
    #[must_use]
    pub fn category(&self) -> &str {
        self.0.split_once('-').map_or(&self.0, |(category, _)| category)
    }

    /// What decides the partition: the part after the first `-`, up to a `+`; the whole id where there is no `-`.
    ///
    /// So `order-17`, `payment-17` and `order-17+notes` live together.
    #[must_use]
    pub fn partition_key(&self) -> &str {
        let Some((_, key)) = self.0.split_once('-') else { return &self.0 };
        key.split_once('+').map_or(key, |(key, _)| key)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A category: what stands before the first `-` of a stream id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category(String);

impl Category {
    /// The category, or `None` where no stream id could begin with it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (!text.contains('-') && StreamId::parse(text).is_some()).then(|| Self(text.to_owned()))
    }

    /// The category as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Before the first.
            pub const ZERO: Self = Self(0);
            /// The first.
            pub const FIRST: Self = Self(1);
            /// The largest there can be: 2^53-1.
            pub const MAX: Self = Self(NUMBER_MAX);

            /// The number, or `None` beyond [`Self::MAX`].
            #[must_use]
            pub fn new(number: u64) -> Option<Self> {
                (number <= NUMBER_MAX).then_some(Self(number))
            }

            /// Reads plain decimal digits: no sign, point, exponent, space or leading zero.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                let plain = digits && (text == "0" || !text.starts_with('0'));
                plain.then(|| text.parse().ok()).flatten().and_then(Self::new)
            }

            /// The number itself.
            #[must_use]
            pub fn get(self) -> u64 {
                self.0
            }

            /// `count` further on, at most [`Self::MAX`].
            #[must_use]
            pub fn plus(self, count: u64) -> Self {
                Self(self.0.saturating_add(count).min(NUMBER_MAX))
            }

            /// `count` back, at least zero.
            #[must_use]
            pub fn minus(self, count: u64) -> Self {
                Self(self.0.saturating_sub(count))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }
    };
}

number! {
    /// The number of an event in its stream: 1, 2, 3 … without gaps. A stream's version is that of its newest event;
    /// 0 where there is none.
    Version
}

number! {
    /// The number of an event in its partition's log: 1, 2, 3 … without gaps.
    Position
}

/// A share of all streams with a log of its own: 0 up to the number of partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Partition(u16);

impl Partition {
    /// The first one, which every store has.
    pub const FIRST: Self = Self(0);

    /// The partition's number, from 0.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

/// How many partitions a store has: 1 to 128, fixed when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Partitions(u16);

impl Partitions {
    /// The largest number of partitions.
    pub const MAX: u16 = 128;

    /// The number, or `None` outside 1 to 128.
    #[must_use]
    pub fn new(count: u16) -> Option<Self> {
        (1..=Self::MAX).contains(&count).then_some(Self(count))
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u16 {
        self.0
    }

    /// Every partition, in order.
    pub fn all(self) -> impl Iterator<Item = Partition> {
        (0..self.0).map(Partition)
    }

    /// The partition of a stream: CRC16 (XMODEM, as in the Redis Cluster specification) of its partition key, modulo
    /// the number of partitions.
    #[must_use]
    pub fn of(self, stream: &StreamId) -> Partition {
        const CRC16: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);
        Partition(CRC16.checksum(stream.partition_key().as_bytes()) % self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_ids_keep_to_the_grammar() {
        for good in ["a", "order-12345", "A.b_c~d:e@f+g-h", &"x".repeat(200)] {
            assert!(StreamId::parse(good).is_some(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "{a}", "ä", "a\0", "a%2F", "a\n", &"x".repeat(201)] {
            assert!(StreamId::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn the_partition_key_keeps_related_streams_together() {
        let key = |id: &str| StreamId::parse(id).expect("a good id").partition_key().to_owned();
        assert_eq!(key("order-17"), "17");
        assert_eq!(key("payment-17+eu"), "17");
        assert_eq!(key("a-b-c"), "b-c");
        assert_eq!(key("settings"), "settings");
        assert_eq!(key("settings+x"), "settings+x");
    }

    #[test]
    fn the_partition_is_that_of_redis_cluster() {
        // `CLUSTER KEYSLOT 123456789` is 12739 = 0x31C3, the check value of CRC-16/XMODEM.
        let partitions = Partitions::new(128).expect("in range");
        assert_eq!(partitions.of(&StreamId::parse("order-123456789").expect("good")).get(), 0x31C3 % 128);
    }

    #[test]
    fn numbers_are_plain_digits() {
        assert_eq!(Version::parse("9007199254740991"), Some(Version::MAX));
        for bad in ["", "-1", "+1", "01", "00", "1.0", "1e3", " 1", "9007199254740992", "99999999999999999999"] {
            assert_eq!(Version::parse(bad), None, "{bad:?}");
        }
    }
}
