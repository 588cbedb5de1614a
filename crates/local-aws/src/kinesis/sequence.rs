//! Sequence numbers: 56 decimal digits that begin with 49, as the service's do.
//!
//! `49` is followed by the creation time of the shard (14 digits), an index that counts every
//! record and every opening or closing of a shard of the stream (16), the arrival time (14) and the
//! shard (10). The index makes numbers strictly increasing over the whole stream, so that a child's
//! numbers follow its parents'; the creation time makes the numbers of a re-created stream follow
//! the old ones. Clients may only compare them; the service also parses them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The number of a shard in its stream; as text `shardId-000000000007`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct ShardNumber(pub u32);

impl fmt::Display for ShardNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shardId-{:012}", self.0)
    }
}

impl FromStr for ShardNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix("shardId-").ok_or(())?;
        if digits.len() != 12 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        digits.parse().map(Self).map_err(|_| ())
    }
}

/// A position in the order of a stream; each index is issued once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct Index(pub u64);

impl Index {
    /// Returns the place right after this one.
    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The parts of a sequence number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SequenceNumber {
    pub shard_created_ms: i64,
    pub index: Index,
    pub arrival_ms: i64,
    pub shard: ShardNumber,
}

const PREFIX: &str = "49";
const DIGITS: usize = 56;

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}{:014}{:016}{:014}{:010}",
            self.shard_created_ms, self.index.0, self.arrival_ms, self.shard.0
        )
    }
}

/// The text is not a sequence number of this service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotASequenceNumber;

impl FromStr for SequenceNumber {
    type Err = NotASequenceNumber;

    fn from_str(text: &str) -> Result<Self, NotASequenceNumber> {
        let digits = text.strip_prefix(PREFIX).ok_or(NotASequenceNumber)?;
        if text.len() != DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotASequenceNumber);
        }
        Ok(Self {
            shard_created_ms: number(&digits[..14])?,
            index: Index(number(&digits[14..30])?),
            arrival_ms: number(&digits[30..44])?,
            shard: ShardNumber(number(&digits[44..])?),
        })
    }
}

fn number<T: FromStr>(digits: &str) -> Result<T, NotASequenceNumber> {
    digits.parse().map_err(|_| NotASequenceNumber)
}

impl Serialize for SequenceNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number_of(created: i64, index: u64, arrival: i64, shard: u32) -> SequenceNumber {
        SequenceNumber {
            shard_created_ms: created,
            index: Index(index),
            arrival_ms: arrival,
            shard: ShardNumber(shard),
        }
    }

    proptest! {
        #[test]
        fn text_has_the_services_shape_and_reads_back(
            created in 0..99_999_999_999_999_i64, index in 0..9_999_999_999_999_999_u64,
            arrival in 0..99_999_999_999_999_i64, shard: u32,
        ) {
            let sequence = number_of(created, index, arrival, shard);
            let text = sequence.to_string();
            prop_assert_eq!(text.len(), 56);
            prop_assert!(text.starts_with("49"));
            prop_assert_eq!(text.parse(), Ok(sequence));
        }

        #[test]
        fn text_orders_as_the_index_within_a_shard(a in 0..u64::MAX / 2000, b in 0..u64::MAX / 2000) {
            let (x, y) = (number_of(5, a, 70, 3), number_of(5, b, 9, 3));
            prop_assert_eq!(x.to_string().cmp(&y.to_string()), (a, 70).cmp(&(b, 9)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,70}") {
            if let Ok(sequence) = text.parse::<SequenceNumber>() {
                prop_assert_eq!(sequence.to_string(), text);
            }
        }
    }

    #[test]
    fn letters_and_other_lengths_are_refused() {
        for text in ["", "abc", "49", &format!("49{}x", "0".repeat(53)), &"4".repeat(56)] {
            assert_eq!(text.parse::<SequenceNumber>(), Err(NotASequenceNumber), "{text}");
        }
    }
}
