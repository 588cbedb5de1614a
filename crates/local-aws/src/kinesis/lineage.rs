//! The shards of a stream through resharding, and the counter that orders the stream.
//!
//! Pure: changes only its own value. Each step closes one or two shards and opens one or two that
//! cover the same hash keys, so that open shards always cover the hash space exactly once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kinesis::sequence::{Index, ShardNumber};
use crate::kinesis::shard::{Closed, HashRange, Shard};

/// Why a split or a merge is impossible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// The stream has no such shard.
    NoSuchShard(ShardNumber),
    /// The shard is already closed.
    Closed(ShardNumber),
    /// The new starting hash key would leave one of the two children empty.
    OutsideRange(HashRange),
    /// The two ranges are not adjacent.
    NotAdjacent,
}

/// The shards of a stream, open and closed, and the next place in its order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Lineage {
    shards: BTreeMap<ShardNumber, Shard>,
    next_number: u32,
    next_index: Index,
}

impl Lineage {
    /// Creates `count` shards that divide the hash space evenly.
    pub(super) fn uniform(count: u32, now_ms: i64) -> Self {
        let mut lineage = Self { shards: BTreeMap::new(), next_number: 0, next_index: Index(0) };
        for part in 0..count {
            lineage.open_shard(HashRange::uniform(part, count), None, None, now_ms);
        }
        lineage
    }

    /// Issues the next place in the order of the stream.
    pub(super) fn take_index(&mut self) -> Index {
        let index = self.next_index;
        self.next_index = index.next();
        index
    }

    /// Returns the place that will be issued next.
    pub(super) fn next_index(&self) -> Index {
        self.next_index
    }

    /// Skips the places up to `used`, which were issued before a restart.
    pub(super) fn skip_past(&mut self, used: Index) {
        self.next_index = self.next_index.max(used.next());
    }

    pub(super) fn get(&self, number: ShardNumber) -> Option<&Shard> {
        self.shards.get(&number)
    }

    /// Returns all shards by number.
    pub(super) fn all(&self) -> impl Iterator<Item = &Shard> {
        self.shards.values()
    }

    /// Returns the shards after this one, by number.
    pub(super) fn after(&self, number: ShardNumber) -> impl Iterator<Item = &Shard> {
        let later = (std::ops::Bound::Excluded(number), std::ops::Bound::Unbounded);
        self.shards.range(later).map(|(_, shard)| shard)
    }

    /// Returns the open shards by number.
    pub(super) fn open(&self) -> impl Iterator<Item = &Shard> {
        self.all().filter(|shard| shard.is_open())
    }

    pub(super) fn children(&self, parent: ShardNumber) -> impl Iterator<Item = &Shard> {
        self.after(parent).filter(move |shard| shard.parents().any(|number| number == parent))
    }

    /// Closes `parent` and opens two children; the second begins at `at`.
    pub(super) fn split(
        &mut self,
        parent: ShardNumber,
        at: u128,
        now_ms: i64,
    ) -> Result<[ShardNumber; 2], Refused> {
        let range = self.open_range(parent)?;
        if at <= range.start || at > range.end {
            return Err(Refused::OutsideRange(range));
        }
        self.close(parent, now_ms);
        let lower = HashRange { start: range.start, end: at - 1 };
        let upper = HashRange { start: at, end: range.end };
        Ok([
            self.open_shard(lower, Some(parent), None, now_ms),
            self.open_shard(upper, Some(parent), None, now_ms),
        ])
    }

    /// Closes two adjacent shards and opens one child of both.
    pub(super) fn merge(
        &mut self,
        first: ShardNumber,
        second: ShardNumber,
        now_ms: i64,
    ) -> Result<ShardNumber, Refused> {
        let (a, b) = (self.open_range(first)?, self.open_range(second)?);
        let range = a.joined(b).or_else(|| b.joined(a)).ok_or(Refused::NotAdjacent)?;
        self.close(first, now_ms);
        self.close(second, now_ms);
        Ok(self.open_shard(range, Some(first), Some(second), now_ms))
    }

    /// Reshards the stream to `count` even shards by splits and merges of two, so that every
    /// intermediate shard has at most two parents, which cover it.
    ///
    /// First every shard is split at each new border inside it, then the pieces between two new
    /// borders are merged. A shard that already matches stays open.
    pub(super) fn resize(&mut self, count: u32, now_ms: i64) -> Result<(), Refused> {
        for part in 1..count {
            let border = HashRange::uniform(part, count).start;
            let across = self.open().find(|s| s.range.start < border && border <= s.range.end);
            if let Some(across) = across.map(|shard| shard.number) {
                self.split(across, border, now_ms)?;
            }
        }
        let mut pieces: Vec<_> = self.open().map(|s| (s.range.start, s.number)).collect();
        pieces.sort_unstable();
        let mut pieces = pieces.into_iter().peekable();
        for part in 0..count {
            let end = HashRange::uniform(part, count).end;
            let Some((_, mut whole)) = pieces.next() else { break };
            while let Some((_, piece)) = pieces.next_if(|(start, _)| *start <= end) {
                whole = self.merge(whole, piece, now_ms)?;
            }
        }
        Ok(())
    }

    /// Removes the shards that closed before the retention period and returns their numbers.
    pub(super) fn forget_closed_before(&mut self, horizon_ms: i64) -> Vec<ShardNumber> {
        let expired = |shard: &Shard| shard.closed.is_some_and(|closed| closed.at_ms < horizon_ms);
        let numbers: Vec<_> = self.all().filter(|s| expired(s)).map(|s| s.number).collect();
        self.shards.retain(|_, shard| !expired(shard));
        numbers
    }

    fn open_range(&self, number: ShardNumber) -> Result<HashRange, Refused> {
        let shard = self.get(number).ok_or(Refused::NoSuchShard(number))?;
        if shard.is_open() { Ok(shard.range) } else { Err(Refused::Closed(number)) }
    }

    fn close(&mut self, number: ShardNumber, now_ms: i64) {
        // An index of its own, so that the end is after every record of the shard.
        let index = self.take_index();
        if let Some(shard) = self.shards.get_mut(&number) {
            shard.closed = Some(Closed { index, at_ms: now_ms });
        }
    }

    fn open_shard(
        &mut self,
        range: HashRange,
        parent: Option<ShardNumber>,
        adjacent_parent: Option<ShardNumber>,
        created_ms: i64,
    ) -> ShardNumber {
        let number = ShardNumber(self.next_number);
        self.next_number += 1;
        let starting_index = self.take_index();
        let closed = None;
        self.shards.insert(
            number,
            Shard { number, range, parent, adjacent_parent, created_ms, starting_index, closed },
        );
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Split(prop::sample::Index, u128),
        Merge(prop::sample::Index),
        Resize(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<prop::sample::Index>(), any::<u128>()).prop_map(|(i, at)| Step::Split(i, at)),
            any::<prop::sample::Index>().prop_map(Step::Merge),
            (1_u32..12).prop_map(Step::Resize),
        ]
    }

    fn open_by_range(lineage: &Lineage) -> Vec<Shard> {
        let mut open: Vec<_> = lineage.open().cloned().collect();
        open.sort_unstable_by_key(|shard| shard.range.start);
        open
    }

    fn apply(lineage: &mut Lineage, step: &Step, now_ms: i64) {
        let open = open_by_range(lineage);
        match step {
            Step::Split(which, at) => {
                let shard = which.get(&open);
                let width = shard.range.end - shard.range.start;
                if width > 0 {
                    let at = shard.range.start + 1 + at % width;
                    lineage.split(shard.number, at, now_ms).unwrap();
                }
            }
            Step::Merge(which) => {
                if open.len() > 1 {
                    let first = which.index(open.len() - 1);
                    lineage.merge(open[first].number, open[first + 1].number, now_ms).unwrap();
                }
            }
            Step::Resize(count) => lineage.resize(*count, now_ms).unwrap(),
        }
    }

    fn assert_whole(lineage: &Lineage) {
        let mut next = Some(0);
        for shard in open_by_range(lineage) {
            assert_eq!(Some(shard.range.start), next, "a gap or an overlap in {lineage:?}");
            next = shard.range.end.checked_add(1);
        }
        assert_eq!(next, None, "the space is not covered to its end");
        for shard in lineage.all() {
            let parents: Vec<_> = shard.parents().filter_map(|p| lineage.get(p)).collect();
            if !parents.is_empty() {
                assert!(parents.iter().map(|p| p.range.start).min() <= Some(shard.range.start));
                assert!(parents.iter().map(|p| p.range.end).max() >= Some(shard.range.end));
            }
            for parent in parents {
                let closed = parent.closed.expect("a parent is closed");
                assert!(parent.starting_index < closed.index);
                assert!(closed.index < shard.starting_index, "a child begins after its parents");
            }
        }
    }

    proptest! {
        #[test]
        fn open_shards_cover_the_space_once_after_any_steps(
            count in 1_u32..8, steps in prop::collection::vec(step(), 0..12),
        ) {
            let mut lineage = Lineage::uniform(count, 0);
            for (now_ms, step) in (1..).zip(&steps) {
                apply(&mut lineage, step, now_ms);
                assert_whole(&lineage);
                if let Step::Resize(count) = step {
                    let ranges: Vec<_> = open_by_range(&lineage).iter().map(|s| s.range).collect();
                    let even: Vec<_> = (0..*count).map(|i| HashRange::uniform(i, *count)).collect();
                    prop_assert_eq!(ranges, even);
                }
            }
        }
    }

    #[test]
    fn from_five_to_three_every_shard_has_at_most_two_parents_that_cover_it() {
        let mut lineage = Lineage::uniform(5, 0);
        lineage.resize(3, 1).unwrap();
        assert_whole(&lineage);
        assert_eq!(lineage.open().count(), 3);
    }

    #[test]
    fn resizing_to_the_present_count_changes_nothing() {
        let mut lineage = Lineage::uniform(4, 0);
        let before = lineage.clone();
        lineage.resize(4, 1).unwrap();
        assert_eq!(lineage, before);
    }

    #[test]
    fn closed_far_and_unknown_shards_are_refused() {
        let mut lineage = Lineage::uniform(3, 0);
        let [zero, one, two] = [ShardNumber(0), ShardNumber(1), ShardNumber(2)];
        assert_eq!(lineage.merge(zero, two, 1), Err(Refused::NotAdjacent));
        assert_eq!(lineage.merge(zero, zero, 1), Err(Refused::NotAdjacent));
        assert!(matches!(lineage.split(zero, 0, 1), Err(Refused::OutsideRange(_))));
        assert!(matches!(lineage.split(zero, u128::MAX, 1), Err(Refused::OutsideRange(_))));
        lineage.merge(one, zero, 1).unwrap();
        assert_eq!(lineage.split(zero, 5, 2), Err(Refused::Closed(zero)));
        assert_eq!(lineage.split(ShardNumber(9), 5, 2), Err(Refused::NoSuchShard(ShardNumber(9))));
    }

    #[test]
    fn a_closed_shard_is_forgotten_only_after_the_horizon_has_passed_its_end() {
        let mut lineage = Lineage::uniform(1, 0);
        lineage.split(ShardNumber(0), 5, 100).unwrap();
        assert_eq!(lineage.forget_closed_before(100), []);
        assert_eq!(lineage.forget_closed_before(101), [ShardNumber(0)]);
        assert_whole(&lineage);
    }
}
