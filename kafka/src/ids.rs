//! The numbers of the protocol as types, so that an offset is never taken for an epoch.
//!
//! Each holds exactly what the wire holds, including the protocol's sentinels (`-1` for "none"),
//! which are named constants here: decoding never fails on a number, only its use may. In JSON each
//! is its number, and a topic's identity its UUID, as text.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the number as the wire carries it.
            #[must_use]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The number as the wire carries it.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// Where a record stands in its partition. The first record of a partition has offset 0.
    Offset(i64)
}

number! {
    /// The reign of a partition's leader; rises with each election.
    LeaderEpoch(i32)
}

number! {
    /// A partition's number within its topic, from 0.
    PartitionId(i32)
}

number! {
    /// Who wrote a batch, as InitProducerId assigned it.
    ProducerId(i64)
}

number! {
    /// The generation of a producer id; a newer one fences the older.
    ProducerEpoch(i16)
}

number! {
    /// The number of a producer's record within one partition; wraps from `i32::MAX` to 0.
    Sequence(i32)
}

number! {
    /// A broker of the cluster.
    BrokerId(i32)
}

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Self = Self(0);

    /// This offset moved by `records`, or `None` past the end of the number.
    #[must_use]
    pub const fn checked_add(self, records: i64) -> Option<Self> {
        match self.0.checked_add(records) {
            Some(offset) => Some(Self(offset)),
            None => None,
        }
    }

    /// The offset after this one; stays at the greatest offset there is.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl LeaderEpoch {
    /// The wire's "not known": the receiver checks nothing.
    pub const NONE: Self = Self(-1);
}

impl ProducerId {
    /// A batch of a producer without idempotence.
    pub const NONE: Self = Self(-1);
}

impl ProducerEpoch {
    /// A batch of a producer without idempotence.
    pub const NONE: Self = Self(-1);
}

impl Sequence {
    /// A batch of a producer without idempotence.
    pub const NONE: Self = Self(-1);
    /// The first sequence of a producer epoch.
    pub const ZERO: Self = Self(0);

    /// The sequence `records` later: `i32::MAX` is followed by 0, as Kafka counts.
    #[must_use]
    pub const fn advance(self, records: u32) -> Self {
        // 31 bits: dropping the sign bit of the wrapped sum is Kafka's wrap-around.
        Self((self.0.cast_unsigned().wrapping_add(records) & 0x7fff_ffff).cast_signed())
    }
}

/// A topic's identity: a topic deleted and created anew under its name has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicId(Uuid);

impl TopicId {
    /// Wraps the identity as the wire carries it.
    #[must_use]
    pub const fn new(value: Uuid) -> Self {
        Self(value)
    }

    /// The identity as the wire carries it.
    #[must_use]
    pub const fn get(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A partition of a named topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// The partition within it.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Names a partition.
    #[must_use]
    pub fn new(topic: impl Into<String>, partition: PartitionId) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_wraps_to_zero_after_the_greatest() {
        assert_eq!(Sequence::new(i32::MAX).advance(1), Sequence::ZERO);
        assert_eq!(Sequence::new(i32::MAX - 2).advance(5), Sequence::new(2));
        assert_eq!(Sequence::ZERO.advance(7), Sequence::new(7));
    }

    #[test]
    fn in_json_an_id_is_its_number_also_as_a_key() {
        let owners = std::collections::BTreeMap::from([(BrokerId::new(3), Offset::new(-1))]);
        let json = serde_json::to_string(&owners).unwrap();
        assert_eq!(json, r#"{"3":-1}"#);
        let read: std::collections::BTreeMap<BrokerId, Offset> =
            serde_json::from_str(&json).unwrap();
        assert_eq!(read, owners);

        let id = TopicId::new(Uuid::from_u128(7));
        assert_eq!(
            serde_json::to_string(&id).unwrap(),
            r#""00000000-0000-0000-0000-000000000007""#
        );
    }

    #[test]
    fn an_offset_does_not_wrap() {
        assert_eq!(Offset::new(i64::MAX).checked_add(1), None);
        assert_eq!(Offset::new(i64::MAX).next(), Offset::new(i64::MAX));
    }
}
