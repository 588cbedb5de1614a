//! The possible steps: everything that a worker may do, and what the network does to it.

use super::world::{Life, Network, Shard, Slot, Step, Why, Worker, World, at};
use crate::lease::Lease;
use crate::lease::tenure::Goal;

impl World {
    /// Returns all steps that may happen now.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (index, message) in self.wire.iter().enumerate() {
            let can_hear = self.workers[message.from].life == Life::Running;
            if message.reply.is_none() || can_hear {
                steps.push(Step::Arrives(index));
            }
        }
        let mut is_busy = false;
        for (index, worker) in self.workers.iter().enumerate() {
            match worker.life {
                Life::Dead => {
                    steps.extend([Step::Restart(index, 0), Step::Restart(index, 1)]);
                }
                Life::Paused => steps.push(Step::Resume(index)),
                Life::Running => {
                    if self.faults > 0 && self.matters(index) {
                        steps.extend([Step::Pause(index), Step::Crash(index)]);
                    }
                    let is_news = |(slot, shard): (&Slot, &Shard)| {
                        slot.hold.is_none() && slot.waiting.is_none() && slot.seen != shard.row
                    };
                    if worker.slots.iter().zip(&self.shards).any(is_news) {
                        steps.push(Step::Look(index));
                    }
                    for lease in 0..self.shards.len() {
                        is_busy |= self.is_due(index, lease);
                        self.steps_of(index, lease, &mut steps);
                    }
                }
            }
        }
        if !is_busy {
            steps.push(Step::Tick);
        }
        steps
    }

    /// Returns whether a running worker has to do something before time advances.
    pub(super) fn is_due(&self, worker: usize, lease: usize) -> bool {
        let slot = &self.workers[worker].slots[lease];
        let interval = self.times.renew_interval;
        slot.waiting.is_none()
            && slot.hold.as_ref().is_some_and(|hold| {
                hold.goal != Goal::Keep || self.now(worker) >= hold.tenure.valid_from() + interval
            })
    }

    /// Returns whether stopping a worker makes a difference: a worker that holds nothing, awaits
    /// nothing and is named in no row might as well never have scanned.
    pub(super) fn matters(&self, worker: usize) -> bool {
        let Worker { id, slots, .. } = &self.workers[worker];
        let names = |row: &Lease| {
            row.owner.as_ref() == Some(id) || row.checkpoint_owner.as_ref() == Some(id)
        };
        let mut rows = self.shards.iter().filter_map(|shard| shard.row.as_ref());
        slots.iter().any(Slot::is_busy) || rows.any(names)
    }

    pub(super) fn steps_of(&self, worker: usize, lease: usize, steps: &mut Vec<Step>) {
        let Worker { id, slots, .. } = &self.workers[worker];
        let slot = &slots[lease];
        let mut write = |why| {
            let networks = [
                Network::Fine,
                Network::Lost,
                Network::Unanswered,
                Network::Late,
                Network::Slow,
                Network::Twice,
            ];
            let known = if self.faults > 0 { networks.len() } else { 1 };
            let networks = networks.into_iter().take(known);
            steps.extend(networks.map(|network| Step::Write(worker, lease, why, network)));
        };
        let is_waiting = slot.waiting.is_some();
        if let Some(hold) = &slot.hold {
            let has_news = at(hold.acknowledged) > hold.tenure.lease().checkpoint;
            if !is_waiting && (has_news || self.is_due(worker, lease)) {
                write(Why::Hold);
            }
            if hold.goal != Goal::Keep {
                return;
            }
            let is_done = hold.acknowledged == self.bounds.records;
            if !is_done && self.believes(worker, lease) {
                steps.push(Step::Acknowledge(worker, lease));
            }
            if !is_waiting && (slot.is_asked(id) || self.moves > 0) {
                steps.push(Step::Leave(worker, lease));
            }
            if !is_waiting && is_done && self.bounds.whole_life {
                steps.push(Step::End(worker, lease));
            }
        } else if !is_waiting {
            self.wishes(worker, lease).into_iter().for_each(&mut write);
        }
    }

    /// Returns what a worker that does not hold the lease may want to do with it, whatever the
    /// balance decides: more than any policy would.
    pub(super) fn wishes(&self, worker: usize, lease: usize) -> Vec<Why> {
        let Worker { id, slots, observations, .. } = &self.workers[worker];
        let Some(row) = &slots[lease].seen else {
            // A finished and deleted lease is known by its children.
            return if self.shards[lease].is_gone { Vec::new() } else { vec![Why::Create] };
        };
        let unchanged = observations.unchanged_for(self.now(worker), row);
        if row.checkpoint.is_shard_end() {
            let is_due = unchanged >= self.times.finished_stays;
            return if is_due { vec![Why::Delete] } else { Vec::new() };
        }
        match row.actual_owner() {
            None => vec![Why::Take],
            Some(owner) if owner == id => vec![Why::Take],
            Some(_) if unchanged >= self.times.lease_duration => vec![Why::Take],
            Some(_) if row.owner.as_ref() == Some(id) => vec![Why::TakeOverdue, Why::Withdraw],
            Some(_) if self.moves == 0 || row.checkpoint_owner.is_some() => Vec::new(),
            Some(_) => vec![Why::Ask],
        }
    }
}
