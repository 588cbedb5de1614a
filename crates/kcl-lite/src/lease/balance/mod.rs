//! Who should hold which lease: a pure function of one snapshot, with a reason per lease.
//!
//! Two decisions. Orphans (no owner, or an owner that stopped renewing) are adopted always and at
//! once. Leases of live workers are moved only when that makes the load more even. Every worker
//! computes the same plan from the same snapshot and performs its own part of it, so nobody is
//! special. Never draws chance and never reads a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

mod full;
mod throughput;

pub(crate) use full::Full;

use super::expiry::Observations;
use super::{Lease, LeaseKey};
use crate::event::TakeReason;
use crate::record::WorkerId;
use crate::settings::Balance;

/// What one worker knows at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot<'a> {
    /// This worker.
    pub(crate) me: &'a WorkerId,
    /// All leases in key order.
    pub(crate) leases: &'a BTreeMap<LeaseKey, Lease>,
    /// Rows that cannot be read, or have gone without having been finished: their children wait.
    pub(crate) hidden: &'a BTreeSet<LeaseKey>,
    /// Leases that made no progress here, left to others for a while.
    pub(crate) avoided: &'a BTreeMap<LeaseKey, Instant>,
    /// Leases of another living worker that has our id.
    pub(crate) duplicates: &'a BTreeMap<LeaseKey, String>,
    /// Leases this worker holds or is taking.
    pub(crate) mine: &'a BTreeSet<LeaseKey>,
    /// What it has seen of the counters.
    pub(crate) observations: &'a Observations,
    /// Since when it has been able to see the table, without a failed read in between.
    pub(crate) readable_since: Instant,
    /// Now.
    pub(crate) now: Instant,
    /// The lease duration.
    pub(crate) lease_duration: Duration,
    /// How long an orphan is left to the worker it falls to before anyone else takes it.
    pub(crate) orphan_grace: Duration,
    /// What is made even.
    pub(crate) balance: Balance,
    /// The most leases this worker may hold.
    pub(crate) limit: usize,
    /// Other workers that take no more leases.
    pub(crate) full: &'a BTreeSet<WorkerId>,
}

/// One lease to take, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Take {
    pub(crate) key: LeaseKey,
    pub(crate) reason: TakeReason,
}

/// Whether a lease may be read now: not finished, and every parent that has a lease is.
pub(crate) fn is_runnable(
    lease: &Lease,
    leases: &BTreeMap<LeaseKey, Lease>,
    hidden: &BTreeSet<LeaseKey>,
) -> bool {
    !lease.checkpoint.is_shard_end()
        && lease.parent_keys().all(|parent| {
            let is_done = |parent: &Lease| parent.checkpoint.is_shard_end();
            leases.get(&parent).is_none_or(is_done) && !hidden.contains(&parent)
        })
}

/// The leases that this worker should take now.
pub(crate) fn leases_to_take(snapshot: &Snapshot<'_>) -> Vec<Take> {
    let world = World::of(snapshot);
    let mine = world.held.get(snapshot.me).map_or(0, Vec::len);
    let room = snapshot.limit.saturating_sub(mine);
    let mut takes = world.orphans_for_me(snapshot);
    takes.truncate(room);
    if takes.is_empty() && world.orphans.is_empty() {
        takes = world.moves_to_me(snapshot);
        takes.truncate(room);
    }
    takes
}

/// The other workers to which leases would have to move, and how many each of them holds now.
pub(crate) fn receivers(snapshot: &Snapshot<'_>) -> BTreeMap<WorkerId, usize> {
    let world = World::of(snapshot);
    if !world.orphans.is_empty() {
        // Nothing moves before these are adopted.
        return BTreeMap::new();
    }
    let moves = world.moves(snapshot.balance, &BTreeSet::new());
    let others = moves.into_iter().map(|(_, to)| to).filter(|to| *to != snapshot.me);
    others.map(|to| (to.clone(), world.held.get(to).map_or(0, Vec::len))).collect()
}

/// What a worker would do with one lease, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The shard.
    pub shard: LeaseKey,
    /// Who has it.
    pub owner: Option<WorkerId>,
    /// What this worker would do.
    pub intent: Intent,
}

/// What a worker would do with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Intent {
    /// Nothing: the shard is finished.
    Finished,
    /// Nothing: a parent is not finished.
    WaitForParents,
    /// Keep it.
    Keep,
    /// Leave it to its owner, who renews it and has no more than its share.
    LeaveToOwner,
    /// Take it, or ask its owner for it.
    Take(TakeReason),
    /// It is free, and falls to a worker that has less; it is taken here if that one does not come.
    LeaveToOther,
    /// It is free, and made no progress here: others go first.
    LeaveAfterTrouble,
    /// It is free, but this worker holds as many as it may.
    AtLimit,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.shard)?;
        match (&self.intent, &self.owner) {
            (Intent::Finished, _) => f.write_str("finished"),
            (Intent::WaitForParents, _) => f.write_str("waits for its parents"),
            (Intent::Keep, _) => f.write_str("held here"),
            (Intent::LeaveToOwner, Some(owner)) => write!(f, "left to {owner}"),
            (Intent::LeaveToOwner, None) => f.write_str("left alone"),
            (Intent::Take(reason), _) => write!(f, "to be taken ({reason:?})"),
            (Intent::LeaveToOther, _) => f.write_str("free, left to a worker that has less"),
            (Intent::LeaveAfterTrouble, _) => {
                f.write_str("free, made no progress here, left to others for a while")
            }
            (Intent::AtLimit, _) => f.write_str("free, but this worker holds as many as it may"),
        }
    }
}

/// The plan, lease by lease.
pub(crate) fn explain(snapshot: &Snapshot<'_>) -> Vec<Explanation> {
    let takes = leases_to_take(snapshot).into_iter().map(|take| (take.key, take.reason));
    let takes: BTreeMap<_, _> = takes.collect();
    let held = World::of(snapshot).held.get(snapshot.me).map_or(0, Vec::len);
    let intent = |lease: &Lease| match takes.get(&lease.key) {
        Some(reason) => Intent::Take(*reason),
        None if lease.checkpoint.is_shard_end() => Intent::Finished,
        None if snapshot.mine.contains(&lease.key) => Intent::Keep,
        None if !is_runnable(lease, snapshot.leases, snapshot.hidden) => Intent::WaitForParents,
        None if snapshot.why_free(lease).is_none() => Intent::LeaveToOwner,
        None if snapshot.avoided.contains_key(&lease.key) => Intent::LeaveAfterTrouble,
        None if held >= snapshot.limit => Intent::AtLimit,
        None => Intent::LeaveToOther,
    };
    let explain = |lease: &Lease| Explanation {
        shard: lease.key.clone(),
        owner: lease.actual_owner().cloned(),
        intent: intent(lease),
    };
    snapshot.leases.values().map(explain).collect()
}

/// The snapshot, sorted into what is free and who is loaded how.
struct World<'a> {
    orphans: Vec<(&'a Lease, TakeReason)>,
    /// Live workers and the runnable leases they hold, this worker included.
    held: BTreeMap<&'a WorkerId, Vec<&'a Lease>>,
}

impl<'a> World<'a> {
    fn of(snapshot: &'a Snapshot<'_>) -> Self {
        let mut world = Self { orphans: Vec::new(), held: BTreeMap::new() };
        world.held.insert(snapshot.me, Vec::new());
        for lease in snapshot.leases.values() {
            if !is_runnable(lease, snapshot.leases, snapshot.hidden) {
                continue;
            }
            let is_mine = snapshot.mine.contains(&lease.key);
            if let Some(reason) = snapshot.why_free(lease).filter(|_| !is_mine) {
                world.orphans.push((lease, reason));
                continue;
            }
            // A lease that is being handed over counts for the worker that will have it.
            let is_handed_over = lease.checkpoint_owner.is_some();
            let holder = lease.owner.as_ref().filter(|_| !is_mine || is_handed_over);
            world.held.entry(holder.unwrap_or(snapshot.me)).or_default().push(lease);
        }
        world
    }

    /// Deals the orphans out, one by one, to whoever then has the least; returns this worker's, and
    /// those that nobody has taken for so long that it does not matter whose they are.
    fn orphans_for_me(&self, snapshot: &Snapshot<'_>) -> Vec<Take> {
        let mut loads: BTreeMap<&WorkerId, usize> =
            self.held.iter().map(|(worker, leases)| (*worker, leases.len())).collect();
        let mut takes = Vec::new();
        for (lease, reason) in &self.orphans {
            let least = loads
                .iter()
                .min_by_key(|(worker, load)| (**load, weight(&lease.key, worker)))
                .map(|(worker, _)| *worker)
                .unwrap_or(snapshot.me);
            *loads.entry(least).or_default() += 1;
            let waited = snapshot.free_for(lease, *reason) >= snapshot.orphan_grace;
            let is_avoided = snapshot.avoided.contains_key(&lease.key);
            let is_for_me = least == snapshot.me || waited || *reason == TakeReason::Own;
            if is_for_me && !is_avoided {
                takes.push(Take { key: lease.key.clone(), reason: *reason });
            }
        }
        takes
    }

    /// The leases that move to this worker.
    fn moves_to_me(&self, snapshot: &Snapshot<'_>) -> Vec<Take> {
        let moves = self.moves(snapshot.balance, snapshot.full).into_iter();
        let mine = moves.filter(|(_, to)| *to == snapshot.me);
        mine.map(|(key, _)| Take { key, reason: TakeReason::Balance }).collect()
    }

    /// The leases that move so that loads differ by at most one, with as few moves as possible (whoever
    /// has more already keeps the larger share), and the workers that get them. Workers that are full
    /// neither get nor lose any: the others share the rest.
    fn moves(&self, balance: Balance, full: &BTreeSet<WorkerId>) -> Vec<(LeaseKey, &'a WorkerId)> {
        let mut held = self.held.clone();
        held.retain(|worker, _| !full.contains(*worker));
        let by_load = match balance {
            Balance::Count => None,
            Balance::Throughput => throughput::moves(&held),
        };
        by_load.unwrap_or_else(|| moves_by_number(&held))
    }
}

fn moves_by_number<'a>(
    held: &BTreeMap<&'a WorkerId, Vec<&'a Lease>>,
) -> Vec<(LeaseKey, &'a WorkerId)> {
    let total: usize = held.values().map(Vec::len).sum();
    let workers = held.len().max(1);
    let (floor, larger) = (total / workers, total % workers);
    let mut ranked: Vec<_> = held.iter().collect();
    ranked.sort_by_key(|(worker, leases)| (usize::MAX - leases.len(), **worker));
    let share = |rank: usize| floor + usize::from(rank < larger);
    let surplus = ranked.iter().enumerate();
    let surplus = surplus.flat_map(|(rank, (_, leases))| leases.iter().skip(share(rank)));
    let mut surplus = surplus.filter(|lease| lease.checkpoint_owner.is_none());
    let mut moves = Vec::new();
    for (rank, (worker, leases)) in ranked.iter().enumerate().rev() {
        let gains = surplus.by_ref().take(share(rank).saturating_sub(leases.len()));
        moves.extend(gains.map(|lease| (lease.key.clone(), **worker)));
    }
    moves
}

impl Snapshot<'_> {
    fn why_free(&self, lease: &Lease) -> Option<TakeReason> {
        match lease.actual_owner() {
            None => Some(TakeReason::Unowned),
            Some(owner) if owner == self.me && !self.duplicates.contains_key(&lease.key) => {
                Some(TakeReason::Own)
            }
            Some(_) if !self.is_alive(lease) => Some(TakeReason::Expired),
            Some(_) => None,
        }
    }

    /// Whether somebody holds the lease: we do, or it was renewed within its duration. Nobody is held
    /// for dead right after an outage of the table, in which nobody could renew: its owner is at once
    /// the one that may take it again, and all workers trying all leases would be a storm.
    fn is_alive(&self, lease: &Lease) -> bool {
        self.mine.contains(&lease.key)
            || self.observations.unchanged_for(self.now, lease) < self.lease_duration
            || self.readable_for() < self.orphan_grace
    }

    fn readable_for(&self) -> Duration {
        self.now.saturating_duration_since(self.readable_since)
    }

    fn free_for(&self, lease: &Lease, reason: TakeReason) -> Duration {
        let unchanged = self.observations.unchanged_for(self.now, lease);
        if reason != TakeReason::Expired {
            return unchanged;
        }
        let expired = unchanged.saturating_sub(self.lease_duration);
        expired.min(self.readable_for().saturating_sub(self.orphan_grace))
    }
}

/// Spreads ties: a hash of lease and worker (FNV-1a), the same on every machine.
fn weight(key: &LeaseKey, worker: &WorkerId) -> u64 {
    let bytes = key.as_str().bytes().chain([0]).chain(worker.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
