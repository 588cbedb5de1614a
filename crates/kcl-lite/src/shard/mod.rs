//! Shards as the service lists them: IDs, hash ranges, parents.
//!
//! Owns the plain data. [`plan`](crate::shard::plan) decides what follows from a listing.

pub(crate) mod plan;

use std::collections::BTreeSet;
use std::fmt;

use crate::record::{ShardId, Timestamp};

/// The part of the hash-key space that a shard serves, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashRange {
    /// The lowest hash key.
    pub start: u128,
    /// The highest hash key; never below `start`.
    pub end: u128,
}

impl HashRange {
    /// The whole space, 0 to 2^128 − 1.
    pub const ALL: Self = Self { start: 0, end: u128::MAX };

    /// Parses the two decimal numbers of a listing or a lease row; `None` if they are not a range.
    #[must_use]
    pub fn parse(start: &str, end: &str) -> Option<Self> {
        let (start, end) = (start.parse().ok()?, end.parse().ok()?);
        (start <= end).then_some(Self { start, end })
    }
}

impl fmt::Display for HashRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// One shard of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The shard ID.
    pub id: ShardId,
    /// The parents: none for the first shards of a stream, one after a split, two after a merge.
    pub parents: BTreeSet<ShardId>,
    /// The range of hash keys that it serves.
    pub hash_range: HashRange,
    /// Whether it still accepts records: it has no ending sequence number.
    pub is_open: bool,
}

/// A child shard, as the last reply of its parent names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildShard {
    /// The shard ID.
    pub id: ShardId,
    /// The parents: one after a split, two after a merge.
    pub parents: BTreeSet<ShardId>,
    /// The range of hash keys that it serves, if the reply contains it.
    pub hash_range: Option<HashRange>,
}

impl ChildShard {
    /// Returns the children of `parent` in a listing.
    pub(crate) fn of(parent: &ShardId, shards: Vec<Shard>) -> Vec<Self> {
        let children = shards.into_iter().filter(|shard| shard.parents.contains(parent));
        children.map(Self::from).collect()
    }

    /// Returns whether the children cover the range of their parent. A stale listing may contain only some
    /// of them, or none.
    pub(crate) fn cover(children: &[Self], whole: HashRange) -> bool {
        covers(children.iter().filter_map(|child| child.hash_range), whole)
    }
}

/// Converts a listed shard to what the last reply of its parent contains.
impl From<Shard> for ChildShard {
    fn from(shard: Shard) -> Self {
        let Shard { id, parents, hash_range, is_open: _ } = shard;
        Self { id, parents, hash_range: Some(hash_range) }
    }
}

/// Which shards to list: all of them, or those that a reader starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFrom {
    /// Every shard that the service still knows.
    All,
    /// The shards that are open now.
    Latest,
    /// The shards that hold the oldest records.
    TrimHorizon,
    /// The shards that hold the records that arrived at this time, which has passed.
    AtTimestamp(Timestamp),
}

/// A complete listing of all pages. It is only a hint, because it may be stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The shards in the order of their IDs; a child's ID is greater than those of its parents.
    pub shards: Vec<Shard>,
    /// The service's clock *before* the listing was requested, a second or two early: the time to which
    /// `Latest` is resolved.
    pub at: Timestamp,
}

/// Returns whether the ranges together cover the hash space; overlaps are allowed.
pub(crate) fn covers_everything(ranges: impl Iterator<Item = HashRange>) -> bool {
    covers(ranges, HashRange::ALL)
}

/// Returns whether the ranges together cover `whole`; overlaps are allowed.
pub(crate) fn covers(ranges: impl Iterator<Item = HashRange>, whole: HashRange) -> bool {
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_unstable();
    cover(ranges.into_iter(), whole)
}

/// Returns whether sorted `ranges` together cover `whole`; overlaps are allowed.
pub(crate) fn cover(ranges: impl Iterator<Item = HashRange>, whole: HashRange) -> bool {
    let mut next = whole.start;
    for range in ranges {
        if range.start > next {
            return false;
        }
        if range.end >= whole.end {
            return true;
        }
        // The maximum, because a range that starts later can end earlier.
        next = next.max(range.end.saturating_add(1));
    }
    false
}
