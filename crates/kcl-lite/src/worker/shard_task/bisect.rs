//! Bisecting: which records have failed, how often, and in which parts they are delivered next.
//!
//! A failed part is retried unchanged until its attempts are used up; then it is halved, until a single
//! record is left. Identifies records by position only, so it outlives a processor that panics and a
//! reader that restarts with other batches. Pure: delivers and stores nothing.

use crate::error::Failure;
use crate::position::Position;
use crate::record::Record;

/// The parts of a shard that have failed and are not acknowledged yet.
#[derive(Debug, Default)]
pub(super) struct Bisection {
    /// In order. A part begins after the previous one, or with the batch.
    parts: Vec<Part>,
}

/// A part: the records up to and including `last`.
#[derive(Debug)]
struct Part {
    last: Position,
    /// How often this part has failed.
    failures: u32,
    allowed: u32,
    failure: Failure,
}

/// What to do with the next records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Deliver this many records.
    Deliver(usize),
    /// This many records have used up their attempts.
    Exhausted { records: usize, attempts: u32, failure: Failure },
}

impl Bisection {
    /// Returns what to do with the first of `records`, which are in order and not empty.
    pub(super) fn next(&self, records: &[Record]) -> Next {
        let Some(part) = records.first().and_then(|first| self.part_of(&Position::of(first)))
        else {
            return Next::Deliver(records.len());
        };
        let count = records.partition_point(|record| Position::of(record) <= part.last);
        if part.failures < part.allowed {
            return Next::Deliver(count);
        }
        let (attempts, failure) = (part.failures, part.failure.clone());
        Next::Exhausted { records: count, attempts, failure }
    }

    /// Records a failure of the part that ends with `last`, and returns its number of failures. A part
    /// that fails for the first time is allowed `attempts`.
    pub(super) fn failed(&mut self, last: Position, attempts: u32, failure: Failure) -> u32 {
        let index = self.parts.partition_point(|part| part.last < last);
        if self.parts.get(index).is_none_or(|part| part.last != last) {
            let failure = failure.clone();
            self.parts.insert(index, Part { last, failures: 0, allowed: attempts, failure });
        }
        let part = &mut self.parts[index];
        part.failures = part.failures.saturating_add(1);
        part.failure = failure;
        part.failures
    }

    /// Halves the part that consists of `records` (at least two). A half is attempted once, a single
    /// record `attempts` times: one failure of it may be a transient fault of something else.
    pub(super) fn halve(&mut self, records: &[Record], attempts: u32) {
        let (first, second) = records.split_at(records.len() / 2);
        let (Some(middle), Some(last)) = (first.last(), second.last()) else { return };
        let last = Position::of(last);
        let index = self.parts.partition_point(|part| part.last < last);
        let Some(part) = self.parts.get_mut(index) else { return };
        let allowed = |records: &[Record]| if records.len() > 1 { 1 } else { attempts };
        let failure = part.failure.clone();
        *part = Part { last, failures: 0, allowed: allowed(second), failure: failure.clone() };
        let last = Position::of(middle);
        self.parts.insert(index, Part { last, failures: 0, allowed: allowed(first), failure });
    }

    /// Forgets the parts up to `position`, which are acknowledged.
    pub(super) fn acknowledged(&mut self, position: &Position) {
        let done = self.parts.partition_point(|part| part.last <= *position);
        self.parts.drain(..done);
    }

    fn part_of(&self, position: &Position) -> Option<&Part> {
        self.parts.get(self.parts.partition_point(|part| part.last < *position))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn records(numbers: std::ops::RangeInclusive<usize>) -> Vec<Record> {
        numbers.map(|number| Record::numbered(number as u64, 0)).collect()
    }

    fn at(number: usize) -> Position {
        Position::of(&records(number..=number)[0])
    }

    /// Delivers 1..=count in batches of `batch` to a processor that fails at `bad`; returns the processed
    /// records in order, the dead letters, and the number of failures.
    fn run(
        count: usize,
        batch: usize,
        bad: &BTreeSet<usize>,
        attempts: u32,
    ) -> (Vec<usize>, Vec<usize>, u32) {
        let mut bisection = Bisection::default();
        let (mut good, mut aside, mut failures) = (Vec::new(), Vec::new(), 0);
        let mut start = 1;
        while start <= count {
            let records = records(start..=count.min(start + batch - 1));
            match bisection.next(&records) {
                Next::Deliver(len) => {
                    let part: Vec<usize> = (start..start + len).collect();
                    if part.iter().any(|number| bad.contains(number)) {
                        failures += 1;
                        bisection.failed(at(start + len - 1), attempts, Failure::new("bad"));
                        continue;
                    }
                    start += len;
                    good.extend(part);
                }
                Next::Exhausted { records: 1, .. } => {
                    aside.push(start);
                    start += 1;
                }
                Next::Exhausted { records: len, .. } => {
                    bisection.halve(&records[..len], attempts);
                    continue;
                }
            }
            bisection.acknowledged(&at(start - 1));
        }
        assert!(bisection.parts.is_empty());
        (good, aside, failures)
    }

    #[test]
    fn one_bad_record_is_found_by_halving_and_fails_a_bounded_number_of_times() {
        let (good, aside, failures) = run(100, 100, &BTreeSet::from([50]), 5);
        assert_eq!(aside, [50]);
        assert_eq!(good.len(), 99);
        // Five as a whole, once in 50, 25, 13, 7, 4, 2, and five alone.
        assert!((15..=17).contains(&failures), "{failures}");
    }

    #[test]
    fn a_batch_of_one_is_not_tried_more_often_because_it_is_one() {
        let (_, aside, failures) = run(1, 1, &BTreeSet::from([1]), 3);
        assert_eq!((aside, failures), (vec![1], 3));
    }

    #[test]
    fn a_part_keeps_its_failures_when_batches_begin_and_end_elsewhere() {
        let mut bisection = Bisection::default();
        bisection.failed(at(10), 2, Failure::new("first"));
        assert_eq!(bisection.next(&records(4..=20)), Next::Deliver(7));
        assert_eq!(bisection.failed(at(10), 2, Failure::new("second")), 2);
        let failure = Failure::new("second");
        let exhausted = Next::Exhausted { records: 3, attempts: 2, failure };
        assert_eq!(bisection.next(&records(8..=20)), exhausted);
        assert_eq!(bisection.next(&records(11..=20)), Next::Deliver(10));
    }

    proptest! {
        #[test]
        fn exactly_the_bad_records_are_dead_lettered_and_order_is_kept(
            count in 1_usize..120,
            batch in 1_usize..40,
            bad in proptest::collection::btree_set(1_usize..120, 0..6),
            attempts in 1_u32..4,
        ) {
            let bad: BTreeSet<_> = bad.into_iter().filter(|number| *number <= count).collect();
            let (good, aside, _) = run(count, batch, &bad, attempts);
            prop_assert!(good.is_sorted());
            prop_assert_eq!(good.len() + aside.len(), count);
            prop_assert!(aside.iter().eq(&bad));
        }
    }
}
