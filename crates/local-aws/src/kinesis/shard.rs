//! A shard's place in its stream: number, hash range, parents, start and end.
//!
//! Plain data. Its records are in `log.rs`; `lineage.rs` decides which shards a split, a merge or
//! an update creates.

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use crate::kinesis::sequence::{Index, SequenceNumber, ShardNumber};

/// The hash keys of a shard, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct HashRange {
    pub start: u128,
    pub end: u128,
}

impl HashRange {
    pub(super) const WHOLE: Self = Self { start: 0, end: u128::MAX };

    /// Returns part `part` of `parts` equal parts of the whole; the last part takes the remainder.
    pub(super) fn uniform(part: u32, parts: u32) -> Self {
        if parts <= 1 {
            return Self::WHOLE;
        }
        // 2^128 / parts without a wider integer: exact for powers of two, otherwise rounded down.
        let (part, parts) = (u128::from(part), u128::from(parts));
        let width = u128::MAX / parts + u128::from(u128::MAX % parts == parts - 1);
        let end = if part + 1 == parts { u128::MAX } else { (part + 1) * width - 1 };
        Self { start: part * width, end }
    }

    /// Returns both ranges as one, if the other begins where this one ends.
    pub(super) fn joined(self, next: Self) -> Option<Self> {
        (self.end.checked_add(1) == Some(next.start))
            .then_some(Self { start: self.start, end: next.end })
    }
}

/// Returns the hash key of a record without an explicit one: the MD5 of its partition key.
pub(super) fn hash_key(partition_key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key.as_bytes()).into())
}

/// The end of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Closed {
    /// After every record of the shard, before everything of its children.
    pub index: Index,
    pub at_ms: i64,
}

/// The metadata of a shard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Shard {
    pub number: ShardNumber,
    pub range: HashRange,
    pub parent: Option<ShardNumber>,
    pub adjacent_parent: Option<ShardNumber>,
    pub created_ms: i64,
    pub starting_index: Index,
    pub closed: Option<Closed>,
}

impl Shard {
    pub(super) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// Returns its parents, the first before the adjacent one.
    pub(super) fn parents(&self) -> impl Iterator<Item = ShardNumber> {
        self.parent.into_iter().chain(self.adjacent_parent)
    }

    /// Returns whether the shard could accept records at a moment.
    pub(super) fn was_open_at(&self, ms: i64) -> bool {
        self.created_ms <= ms && self.closed.is_none_or(|closed| closed.at_ms > ms)
    }

    /// Returns the sequence number at `index` of the stream, if that is in this shard.
    pub(super) fn sequence(&self, index: Index, arrival_ms: i64) -> SequenceNumber {
        SequenceNumber { shard_created_ms: self.created_ms, index, arrival_ms, shard: self.number }
    }

    pub(super) fn starting_sequence(&self) -> SequenceNumber {
        self.sequence(self.starting_index, self.created_ms)
    }

    pub(super) fn ending_sequence(&self) -> Option<SequenceNumber> {
        self.closed.map(|closed| self.sequence(closed.index, closed.at_ms))
    }
}

/// A hash range in the form of the API: decimal text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HashRangeView {
    starting_hash_key: String,
    ending_hash_key: String,
}

impl From<HashRange> for HashRangeView {
    fn from(range: HashRange) -> Self {
        Self { starting_hash_key: range.start.to_string(), ending_hash_key: range.end.to_string() }
    }
}

/// A shard in the form of the API's listings.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ShardView {
    shard_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_shard_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adjacent_parent_shard_id: Option<String>,
    hash_key_range: HashRangeView,
    sequence_number_range: SequenceRangeView,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SequenceRangeView {
    starting_sequence_number: SequenceNumber,
    #[serde(skip_serializing_if = "Option::is_none")]
    ending_sequence_number: Option<SequenceNumber>,
}

impl From<&Shard> for ShardView {
    fn from(shard: &Shard) -> Self {
        Self {
            shard_id: shard.number.to_string(),
            parent_shard_id: shard.parent.map(|parent| parent.to_string()),
            adjacent_parent_shard_id: shard.adjacent_parent.map(|parent| parent.to_string()),
            hash_key_range: shard.range.into(),
            sequence_number_range: SequenceRangeView {
                starting_sequence_number: shard.starting_sequence(),
                ending_sequence_number: shard.ending_sequence(),
            },
        }
    }
}

/// A child in the form that a reader gets at the end of a parent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ChildShardView {
    shard_id: String,
    parent_shards: Vec<String>,
    hash_key_range: HashRangeView,
}

impl From<&Shard> for ChildShardView {
    fn from(shard: &Shard) -> Self {
        Self {
            shard_id: shard.number.to_string(),
            parent_shards: shard.parents().map(|parent| parent.to_string()).collect(),
            hash_key_range: shard.range.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_parts_cover_the_space_once() {
        for parts in [1, 2, 3, 4, 5, 7, 1_000, 20_000] {
            let mut next = Some(0);
            for part in 0..parts {
                let range = HashRange::uniform(part, parts);
                assert_eq!(Some(range.start), next, "part {part} of {parts}");
                next = range.end.checked_add(1);
            }
            assert_eq!(next, None, "the last of {parts} parts ends the space");
        }
        assert_eq!(HashRange::uniform(1, 4).start, 1 << 126);
    }

    #[test]
    fn shard_ids_read_back_and_other_text_is_refused() {
        assert_eq!("shardId-000000000012".parse(), Ok(ShardNumber(12)));
        for text in ["", "12", "shardId-12", "shardId-00000000001x", "shardId-999999999999"] {
            assert_eq!(text.parse::<ShardNumber>(), Err(()), "{text}");
        }
    }

    #[test]
    fn the_hash_key_is_the_md5_of_the_partition_key() {
        assert_eq!(hash_key(""), 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e);
    }
}
