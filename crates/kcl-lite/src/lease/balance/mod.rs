//! The balance: which worker should hold which lease, a pure function of a snapshot, with a reason
//! per lease.
//!
//! It makes two decisions. Orphans are always taken, and immediately. Leases of live workers are
//! rebalanced only if that makes the load more even. Every worker computes the same plan from the
//! same snapshot and performs its own part of it, so there is no leader. Uses no randomness and reads
//! no clock.

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

/// The knowledge of a worker at one instant.
#[derive(Debug)]
pub(crate) struct Snapshot<'a> {
    /// This worker.
    pub(crate) me: &'a WorkerId,
    /// All leases in key order.
    pub(crate) leases: &'a BTreeMap<LeaseKey, Lease>,
    /// Rows that cannot be read, or that disappeared without being finished: their children wait.
    pub(crate) hidden: &'a BTreeSet<LeaseKey>,
    /// Leases that made no progress on this worker; it backs off and lets other workers take them
    /// first.
    pub(crate) avoided: &'a BTreeMap<LeaseKey, Instant>,
    /// Leases held by another live worker with the same worker ID.
    pub(crate) duplicates: &'a BTreeMap<LeaseKey, String>,
    /// Leases that this worker holds or is taking.
    pub(crate) mine: &'a BTreeSet<LeaseKey>,
    /// What this worker has observed of the lease counters.
    pub(crate) observations: &'a Observations,
    /// Since when this worker has read the table without a failed read.
    pub(crate) readable_since: Instant,
    /// The current time.
    pub(crate) now: Instant,
    /// The lease duration.
    pub(crate) lease_duration: Duration,
    /// How long an orphan is reserved for the worker that the plan assigns it to.
    pub(crate) orphan_grace: Duration,
    /// What is balanced: the number of leases, or their throughput.
    pub(crate) balance: Balance,
    /// The maximum number of leases that this worker may hold.
    pub(crate) limit: usize,
    /// Other workers that are full.
    pub(crate) full: &'a BTreeSet<WorkerId>,
}

/// A lease to take, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Take {
    pub(crate) key: LeaseKey,
    pub(crate) reason: TakeReason,
}

/// Returns whether a lease can be processed now: it is unfinished, and all parents that have leases
/// are finished.
pub(crate) fn is_runnable(
    lease: &Lease,
    leases: &BTreeMap<LeaseKey, Lease>,
    hidden: &BTreeSet<LeaseKey>,
) -> bool {
    !lease.checkpoint.is_shard_end()
        && lease.parent_keys().all(|parent| {
            // A parent without a row does not block: its row was deleted after its end, or it left
            // no trace. A row that disappeared before its end is in `hidden`.
            let is_done = |parent: &Lease| parent.checkpoint.is_shard_end();
            leases.get(&parent).is_none_or(is_done) && !hidden.contains(&parent)
        })
}

/// Returns the leases that this worker should take now.
pub(crate) fn leases_to_take(snapshot: &Snapshot<'_>) -> Vec<Take> {
    let world = World::of(snapshot);
    let mine = world.held.get(snapshot.me).map_or(0, Vec::len);
    let room = snapshot.limit.saturating_sub(mine);
    let mut takes = world.orphans_for_me(snapshot);
    takes.truncate(room);
    // Orphans first: taking them changes the loads that rebalancing compares.
    if takes.is_empty() && world.orphans.is_empty() {
        takes = world.moves_to_me(snapshot);
        takes.truncate(room);
    }
    takes
}

/// Returns the other workers to which the plan would move leases, and how many each of them holds
/// now.
pub(crate) fn receivers(snapshot: &Snapshot<'_>) -> BTreeMap<WorkerId, usize> {
    let world = World::of(snapshot);
    if !world.orphans.is_empty() {
        // Rebalancing waits until all orphans are taken.
        return BTreeMap::new();
    }
    // Full workers are included: without them, a full worker would no longer be a receiver and
    // therefore no longer count as full.
    let moves = world.moves(snapshot.balance, &BTreeSet::new());
    let others = moves.into_iter().map(|(_, to)| to).filter(|to| *to != snapshot.me);
    others.map(|to| (to.clone(), world.held.get(to).map_or(0, Vec::len))).collect()
}

/// What a worker would do with a lease, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The shard.
    pub shard: LeaseKey,
    /// The worker that holds the lease.
    pub owner: Option<WorkerId>,
    /// What this worker would do.
    pub intent: Intent,
}

/// What a worker would do with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Intent {
    /// Do nothing: the shard is finished.
    Finished,
    /// Do nothing: a parent shard is unfinished.
    WaitForParents,
    /// Keep the lease.
    Keep,
    /// Leave the lease to its owner, which renews it and has no more than its share.
    LeaveToOwner,
    /// Take the lease, or request a handoff from its owner.
    Take(TakeReason),
    /// The lease is an orphan assigned to a worker with fewer leases; this worker takes it if that
    /// worker does not.
    LeaveToOther,
    /// The lease is an orphan that made no progress on this worker, which backs off.
    LeaveAfterTrouble,
    /// The lease is an orphan, but this worker is at its maximum number of leases.
    AtLimit,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.shard)?;
        match (&self.intent, &self.owner) {
            (Intent::Finished, _) => f.write_str("finished"),
            (Intent::WaitForParents, _) => f.write_str("waiting for its parent shards"),
            (Intent::Keep, _) => f.write_str("held by this worker"),
            (Intent::LeaveToOwner, Some(owner)) => write!(f, "left to its owner {owner}"),
            (Intent::LeaveToOwner, None) => f.write_str("no action"),
            (Intent::Take(reason), _) => write!(f, "will be taken ({reason:?})"),
            (Intent::LeaveToOther, _) => f.write_str("orphan, left to a worker with fewer leases"),
            (Intent::LeaveAfterTrouble, _) => {
                f.write_str("orphan, backing off because it made no progress on this worker")
            }
            (Intent::AtLimit, _) => f.write_str("orphan, but this worker is at `max_leases`"),
        }
    }
}

/// Returns the plan of this worker for every lease.
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

/// The snapshot, split into orphans and the load of each live worker.
struct World<'a> {
    orphans: Vec<(&'a Lease, TakeReason)>,
    /// The live workers and the runnable leases that they hold, including this worker.
    held: BTreeMap<&'a WorkerId, Vec<&'a Lease>>,
}

impl<'a> World<'a> {
    fn of(snapshot: &'a Snapshot<'_>) -> Self {
        let mut world = Self { orphans: Vec::new(), held: BTreeMap::new() };
        // This worker counts even if it holds nothing, so that a new worker gets its share.
        world.held.insert(snapshot.me, Vec::new());
        for lease in snapshot.leases.values() {
            // Counted as load, finished leases and waiting children would use up the limit.
            if !is_runnable(lease, snapshot.leases, snapshot.hidden) {
                continue;
            }
            let is_mine = snapshot.mine.contains(&lease.key);
            // A lease that this worker is taking still looks like an orphan in the table.
            if let Some(reason) = snapshot.why_free(lease).filter(|_| !is_mine) {
                world.orphans.push((lease, reason));
                continue;
            }
            // During a handoff the lease counts for the worker that requested it.
            let is_handed_over = lease.checkpoint_owner.is_some();
            let holder = lease.owner.as_ref().filter(|_| !is_mine || is_handed_over);
            world.held.entry(holder.unwrap_or(snapshot.me)).or_default().push(lease);
        }
        world
    }

    /// Assigns the orphans one by one to the worker that has the fewest leases at that point. Returns
    /// those of this worker, its own leases from before a restart, and those that have been orphans
    /// for longer than the grace period, whichever worker they are assigned to.
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
            // Counted even if another worker takes it, so that every worker computes the same plan.
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

    /// Returns the leases that move to this worker.
    fn moves_to_me(&self, snapshot: &Snapshot<'_>) -> Vec<Take> {
        let moves = self.moves(snapshot.balance, snapshot.full).into_iter();
        let mine = moves.filter(|(_, to)| *to == snapshot.me);
        mine.map(|(key, _)| Take { key, reason: TakeReason::Balance }).collect()
    }

    /// Returns the leases that have to move so that loads differ by at most one, and their new
    /// workers. Moves as few leases as possible: workers that have more already get the larger
    /// shares. Full workers neither gain nor lose leases: the others share the rest.
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
    // The most loaded first, which then keep the larger shares; ties by worker ID, so that every worker
    // ranks alike.
    let mut ranked: Vec<_> = held.iter().collect();
    ranked.sort_by_key(|(worker, leases)| (usize::MAX - leases.len(), **worker));
    let share = |rank: usize| floor + usize::from(rank < larger);
    let surplus = ranked.iter().enumerate();
    let surplus = surplus.flat_map(|(rank, (_, leases))| leases.iter().skip(share(rank)));
    // A second handoff request for the same lease would be refused.
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
            // From an earlier tenure, for instance before a restart: there is no expiry to wait
            // for, unless another live worker uses the same worker ID.
            Some(owner) if owner == self.me && !self.duplicates.contains_key(&lease.key) => {
                Some(TakeReason::Own)
            }
            Some(_) if !self.is_alive(lease) => Some(TakeReason::Expired),
            Some(_) => None,
        }
    }

    /// Returns whether the lease has a live owner: this worker holds it, or it was renewed within its
    /// duration. No lease counts as expired right after an outage of the table, during which nobody
    /// could renew: the owners can take their leases again as soon as it ends, and every worker
    /// trying to take every lease would be a storm of writes.
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
        // After an outage of the table, a lease counts as expired only `orphan_grace` later. The
        // time for which it is reserved begins there.
        let expired = unchanged.saturating_sub(self.lease_duration);
        expired.min(self.readable_for().saturating_sub(self.orphan_grace))
    }
}

/// Breaks ties evenly: a hash of lease and worker (FNV-1a), which is the same on every machine.
fn weight(key: &LeaseKey, worker: &WorkerId) -> u64 {
    let bytes = key.as_str().bytes().chain([0]).chain(worker.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
