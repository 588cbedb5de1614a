//! The liveness check: how a world continues once no more faults happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Stopped;
use super::world::{Life, Network, Slot, Step, Why, Worker, World, key};
use crate::event::TakeReason;
use crate::lease::balance::{Snapshot, leases_to_take};
use crate::lease::tenure::Goal;
use crate::lease::{Lease, LeaseKey};
use crate::settings::Balance;

impl World {
    /// Ends the faults: messages in flight arrive or are lost, stopped workers resume or stay away.
    pub(super) fn calm(&self, stopped: Stopped) -> Self {
        let mut calm = self.clone();
        (calm.faults, calm.moves) = (0, 0);
        let is_any_running = calm.workers.iter().any(|worker| worker.life == Life::Running);
        if stopped == Stopped::GoOn || !is_any_running {
            for worker in 0..calm.workers.len() {
                match calm.workers[worker].life {
                    Life::Running => {}
                    Life::Paused => {
                        calm.workers[worker].life = Life::Running;
                        calm.wake(worker);
                    }
                    Life::Dead => calm.restart(worker, 0),
                }
            }
        }
        if stopped == Stopped::StayAway {
            calm.wire.clear();
        }
        while !calm.wire.is_empty() {
            let heard = calm.wire.len();
            calm.arrives(0);
            debug_assert!(calm.wire.len() < heard, "everybody who waits hears");
        }
        calm
    }

    /// Returns whether every unfinished lease is held by a running worker.
    pub(super) fn is_healthy(&self) -> bool {
        (0..self.shards.len()).all(|lease| {
            let shard = &self.shards[lease];
            let is_over = |row: &Lease| row.checkpoint.is_shard_end();
            let is_held = |worker: &usize| {
                let hold = self.workers[*worker].slots[lease].hold.as_ref();
                self.workers[*worker].life == Life::Running
                    && self.believes(*worker, lease)
                    && hold.is_some_and(|hold| !hold.fate.is_deposed)
            };
            shard.is_gone
                || shard.row.as_ref().is_some_and(is_over)
                || (0..self.workers.len()).any(|worker| is_held(&worker))
        })
    }

    /// Returns the world after a tick without faults, in which every running worker immediately does
    /// what is due and the real balance decides the takes.
    pub(super) fn calm_tick(&self) -> Self {
        let mut next = self.after(Step::Tick);
        for worker in 0..next.workers.len() {
            if next.workers[worker].life != Life::Running {
                continue;
            }
            for lease in 0..next.shards.len() {
                // Up to three steps: comply with a handoff request, a write that is refused because
                // the successor has changed, and the write that follows it.
                for _ in 0..3 {
                    let Some(step) = next.duty(worker, lease) else { break };
                    next = next.after(step);
                }
            }
        }
        next
    }

    pub(super) fn duty(&self, worker: usize, lease: usize) -> Option<Step> {
        let Worker { id, slots, .. } = &self.workers[worker];
        let slot = &slots[lease];
        let Slot { seen, waiting, hold } = slot;
        let fine = |why| Some(Step::Write(worker, lease, why, Network::Fine));
        if waiting.is_some() {
            return None;
        }
        if let Some(hold) = hold {
            if hold.goal == Goal::Keep && slot.is_asked(id) {
                return Some(Step::Leave(worker, lease));
            }
            return if self.is_due(worker, lease) { fine(Why::Hold) } else { None };
        }
        if seen.is_none() {
            return if self.shards[lease].is_gone { None } else { fine(Why::Create) };
        }
        if self.takes(worker).contains(&key(lease)) { fine(Why::Take) } else { None }
    }

    /// Returns what the real balance takes immediately.
    pub(super) fn takes(&self, worker: usize) -> Vec<LeaseKey> {
        let Worker { id, slots, observations, .. } = &self.workers[worker];
        let leases = slots.iter().filter_map(|slot| slot.seen.clone());
        let leases = leases.map(|row| (row.key.clone(), row)).collect();
        let mine = slots.iter().enumerate().filter(|(_, slot)| slot.is_busy());
        let mine = mine.map(|(lease, _)| key(lease)).collect();
        let lease_duration = self.times.lease_duration;
        let takes = leases_to_take(&Snapshot {
            me: id,
            leases: &leases,
            hidden: &BTreeSet::new(),
            mine: &mine,
            avoided: &BTreeMap::new(),
            duplicates: &BTreeMap::new(),
            observations,
            readable_since: self.start - Duration::from_secs(500),
            now: self.now(worker),
            lease_duration,
            orphan_grace: lease_duration / 5,
            balance: Balance::Count,
            limit: usize::MAX,
            full: &BTreeSet::new(),
        });
        // A rebalance requests a handoff first, and no lease has to move here.
        let at_once = takes.into_iter().filter(|take| take.reason != TakeReason::Balance);
        at_once.map(|take| take.key).collect()
    }
}
