//! Rebalancing by bytes per second instead of by number, for streams whose shards have very different
//! loads.
//!
//! Every worker computes the complete list of moves from the same rows and performs those to itself.
//! A lease moves only if the most loaded worker is well above the average, and only if the larger
//! load of the two workers becomes smaller; a shard without load never moves. Pure.

use std::collections::BTreeMap;

use crate::lease::{Lease, LeaseKey};
use crate::record::WorkerId;

/// A worker may exceed the average by this fraction (a tenth) before a lease is moved.
const TOLERANCE: u64 = 10;
/// Differences below this many bytes per second are noise, regardless of their ratio.
const LEAST_DIFFERENCE: u64 = 64 * 1024;

/// Returns the moves that balance the loads: the lease, and the worker that receives it. Returns
/// `None` if no load has been measured at all; then the number of leases decides.
pub(super) fn moves<'a>(
    held: &BTreeMap<&'a WorkerId, Vec<&'a Lease>>,
) -> Option<Vec<(LeaseKey, &'a WorkerId)>> {
    let mut loads = Loads::of(held)?;
    let mut moves = Vec::new();
    // Bounded by the number of leases, because each moves at most once.
    while let Some((key, to)) = loads.next_move() {
        moves.push((key, to));
    }
    Some(moves)
}

struct Loads<'a> {
    /// For each worker, its bytes per second and the leases that may still be moved.
    workers: BTreeMap<&'a WorkerId, (u64, BTreeMap<LeaseKey, u64>)>,
    mean: u64,
}

impl<'a> Loads<'a> {
    fn of(held: &BTreeMap<&'a WorkerId, Vec<&'a Lease>>) -> Option<Self> {
        let known: Vec<u64> =
            held.values().flatten().filter_map(|lease| lease.throughput).collect();
        let total: u64 = known.iter().sum();
        if total == 0 {
            return None;
        }
        // A shard that has not been measured yet counts as an average one.
        let usual = total / known.len() as u64;
        let load = |lease: &Lease| lease.throughput.unwrap_or(usual);
        let workers: BTreeMap<_, _> = held
            .iter()
            .map(|(worker, leases)| {
                let movable = leases.iter().filter(|lease| {
                    lease.checkpoint_owner.is_none() && lease.throughput.is_some_and(|it| it > 0)
                });
                let movable = movable.map(|lease| (lease.key.clone(), load(lease))).collect();
                (*worker, (leases.iter().map(|lease| load(lease)).sum(), movable))
            })
            .collect();
        let total: u64 = workers.values().map(|(load, _)| *load).sum();
        let mean = total / workers.len() as u64;
        Some(Self { workers, mean })
    }

    /// Returns the move from the most to the least loaded worker that brings the two closest
    /// together.
    fn next_move(&mut self) -> Option<(LeaseKey, &'a WorkerId)> {
        let (fullest, most) = self.extreme(|load| u64::MAX - load)?;
        let (emptiest, least) = self.extreme(|load| load)?;
        if most <= self.mean + (self.mean / TOLERANCE).max(LEAST_DIFFERENCE) {
            return None;
        }
        let candidates = &self.workers.get(fullest)?.1;
        let after = |load: u64| (most - load).max(least + load);
        // Ties by key, as in `extreme` by worker ID, so that every worker computes the same moves.
        let best = candidates.iter().min_by_key(|(key, load)| (after(**load), (*key).clone()));
        let (key, load) = best.map(|(key, load)| (key.clone(), *load))?;
        if after(load) >= most {
            return None;
        }
        let from = self.workers.get_mut(fullest)?;
        from.0 -= load;
        from.1.remove(&key);
        // A lease moves at most once, so the receiver does not offer it again.
        self.workers.get_mut(emptiest)?.0 += load;
        Some((key, emptiest))
    }

    fn extreme(&self, rank: impl Fn(u64) -> u64) -> Option<(&'a WorkerId, u64)> {
        let ranked = self.workers.iter().min_by_key(|(worker, (load, _))| (rank(*load), **worker));
        ranked.map(|(worker, (load, _))| (*worker, *load))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::position::Checkpoint;

    const KB: u64 = 1024;

    /// Returns the moves for workers that hold shards of these loads, in KiB per second.
    fn planned(worlds: &[&[u64]]) -> Option<Vec<String>> {
        let names: Vec<WorkerId> = (0..worlds.len()).map(|it| format!("w{it}").into()).collect();
        let leases: Vec<Vec<Lease>> = worlds
            .iter()
            .enumerate()
            .map(|(worker, loads)| {
                let lease = |(index, load): (usize, &u64)| Lease {
                    throughput: Some(load * KB),
                    ..Lease::new(format!("{worker}-{index}"), Checkpoint::TrimHorizon)
                };
                loads.iter().enumerate().map(lease).collect()
            })
            .collect();
        let held = names.iter().zip(&leases).map(|(name, own)| (name, own.iter().collect()));
        let moves = moves(&held.collect())?.into_iter();
        Some(moves.map(|(key, to)| format!("{key} to {to}")).collect())
    }

    #[test]
    fn c10_load_moves_from_the_fullest_to_the_emptiest_and_stops_when_it_is_even() {
        assert_eq!(planned(&[&[900, 500, 400], &[100]]).unwrap(), ["0-0 to w1"]);
        assert_eq!(planned(&[&[500, 500], &[500, 400]]).unwrap(), [""; 0]);
    }

    #[test]
    fn c10_one_shard_that_is_more_than_a_share_stays_where_it_is() {
        assert_eq!(planned(&[&[9_000], &[100]]).unwrap(), [""; 0]);
    }

    #[test]
    fn d09_noise_and_shards_without_load_move_nothing() {
        assert_eq!(planned(&[&[520, 510], &[500, 490]]).unwrap(), [""; 0]);
        assert_eq!(planned(&[&[40, 1], &[]]).unwrap(), [""; 0], "a ratio of tiny numbers");
        assert_eq!(planned(&[&[0, 0, 0], &[]]), None, "the number of leases decides");
    }

    proptest! {
        #[test]
        fn c10_the_fullest_worker_ends_near_the_average_unless_one_shard_is_larger(
            loads in prop::collection::vec(prop::collection::vec(1_u64..4_000, 0..12), 2..6)
        ) {
            let worlds: Vec<&[u64]> = loads.iter().map(Vec::as_slice).collect();
            let total: u64 = loads.iter().flatten().sum();
            prop_assume!(total > 0);
            let moved = planned(&worlds).unwrap();
            let mut after: Vec<u64> = loads.iter().map(|own| own.iter().sum()).collect();
            let before = *after.iter().max().unwrap();
            for line in &moved {
                let (key, to) = line.split_once(" to w").unwrap();
                let (from, index) = key.split_once('-').unwrap();
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                let load = loads[from][index.parse::<usize>().unwrap()];
                after[from] -= load;
                after[to] += load;
            }
            let largest = *loads.iter().flatten().max().unwrap();
            let mean = total / loads.len() as u64;
            let bound = (mean * 11 / 10).max(mean + 64).max(mean + largest) + 1;
            let fullest = *after.iter().max().unwrap();
            prop_assert!(fullest <= before.min(bound), "{fullest} of {bound}, was {before}");
        }
    }
}
