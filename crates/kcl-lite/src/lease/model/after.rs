//! The effect of a step: on the rows by the rule of the write, on a worker by what the library makes
//! of a reply.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::world::{
    Fate, Hold, Life, Message, Network, Step, Times, Why, Worker, World, at, key, position,
};
use crate::lease::store::WriteOutcome;
use crate::lease::tenure::{Goal, Tenure, Verdict, take_id, write_id};
use crate::lease::{Lease, LeaseChange, LeaseUpdate, LeaseWrite};
use crate::position::Checkpoint;

impl World {
    /// Returns the world after one step.
    pub(super) fn after(&self, step: Step) -> Self {
        let mut next = self.clone();
        next.notes.clear();
        match step {
            Step::Tick => next.tick(),
            Step::Arrives(index) => next.arrives(index),
            Step::Pause(worker) => {
                next.faults -= 1;
                next.workers[worker].life = Life::Paused;
            }
            Step::Resume(worker) => {
                next.workers[worker].life = Life::Running;
                next.wake(worker);
            }
            Step::Crash(worker) => next.crash(worker),
            Step::Restart(worker, name) => next.restart(worker, name),
            Step::Look(worker) => next.look(worker),
            Step::Acknowledge(worker, lease) => next.acknowledge(worker, lease),
            Step::Leave(worker, lease) => next.leave(worker, lease),
            Step::End(worker, lease) => {
                let hold = next.workers[worker].slots[lease].hold.as_mut();
                hold.expect("a holder ends a shard").goal = Goal::Finish(BTreeSet::new());
            }
            Step::Write(worker, lease, why, network) => next.write(worker, lease, why, network),
        }
        next.sweep();
        next.check_owners();
        next
    }

    /// Drops writes that nobody awaits and that the table refuses now. No counter returns, so the
    /// table would refuse them at any later time too.
    pub(super) fn sweep(&mut self) {
        let shards = &self.shards;
        self.wire.retain(|message| {
            let row = shards[message.lease].row.as_ref();
            let can_do = message.reply.is_none() && message.write.apply(row).is_ok();
            // A deleted row could be re-created, and a withdrawal does not depend on the counter.
            message.is_awaited || can_do || matches!(message.why, Why::Create | Why::Withdraw)
        });
    }

    pub(super) fn tick(&mut self) {
        self.tick += 1;
        for worker in 0..self.workers.len() {
            if self.workers[worker].life == Life::Running {
                self.wake(worker);
            }
        }
    }

    /// Does what a running worker does first: checks fences, times out writes, scans.
    pub(super) fn wake(&mut self, worker: usize) {
        let (now, patience) = (self.now(worker), self.times.write_limit);
        let misses_scan = self.workers[worker].misses_scan();
        for lease in 0..self.shards.len() {
            let slot = &mut self.workers[worker].slots[lease];
            if slot.hold.as_ref().is_some_and(|hold| now >= hold.tenure.fenced_at()) {
                self.notes.push("an owner stopped itself");
                self.lose(worker, lease);
                continue;
            }
            let is_over = |(_, sent): &mut (LeaseWrite, Instant)| now >= *sent + patience;
            if slot.waiting.as_mut().is_some_and(is_over) {
                self.give_up(worker, lease);
            }
        }
        if !misses_scan {
            self.look(worker);
        }
    }

    /// Stops waiting for a reply.
    pub(super) fn give_up(&mut self, worker: usize, lease: usize) {
        let this = &mut self.workers[worker];
        let Some((write, sent)) = this.slots[lease].waiting.take() else { return };
        if this.slots[lease].hold.is_none() {
            this.takes.gave_up(&write, sent);
        }
        self.wait_no_more(worker, lease);
    }

    pub(super) fn look(&mut self, worker: usize) {
        let now = self.now(worker);
        let rows: Vec<_> = self.shards.iter().filter_map(|shard| shard.row.clone()).collect();
        let worker = &mut self.workers[worker];
        worker.observations.scanned(now, &rows);
        for (slot, shard) in worker.slots.iter_mut().zip(&self.shards) {
            slot.seen.clone_from(&shard.row);
        }
    }

    pub(super) fn wait_no_more(&mut self, worker: usize, lease: usize) {
        self.workers[worker].slots[lease].waiting = None;
        let theirs = |it: &&mut Message| it.from == worker && it.lease == lease;
        self.wire.iter_mut().filter(theirs).for_each(|message| message.is_awaited = false);
        self.wire.retain(|message| message.is_awaited || message.reply.is_none());
    }

    pub(super) fn lose(&mut self, worker: usize, lease: usize) {
        self.workers[worker].slots[lease].hold = None;
        self.wait_no_more(worker, lease);
    }

    /// Handles a reply from which the owner learns that it has lost the lease.
    pub(super) fn lost(&mut self, worker: usize, lease: usize) {
        let hold = self.workers[worker].slots[lease].hold.as_ref();
        let is_so = hold.is_some_and(|hold| hold.fate.is_deposed);
        self.require(is_so, "a lease was given up although nobody had taken it");
        self.notes.push("an owner learned that it has lost");
        self.lose(worker, lease);
    }

    pub(super) fn crash(&mut self, worker: usize) {
        self.faults -= 1;
        for lease in 0..self.shards.len() {
            self.lose(worker, lease);
        }
        let gone = &mut self.workers[worker];
        *gone = Worker {
            life: Life::Dead,
            lives: gone.lives,
            ..Worker::new(worker, 0, 0, self.shards.len())
        };
    }

    pub(super) fn restart(&mut self, worker: usize, name: usize) {
        let lives = self.workers[worker].lives + 1;
        self.workers[worker] = Worker::new(worker, name, lives, self.shards.len());
        self.look(worker);
    }

    pub(super) fn acknowledge(&mut self, worker: usize, lease: usize) {
        let slot = &mut self.workers[worker].slots[lease];
        let hold = slot.hold.as_mut().expect("a holder acknowledges");
        hold.acknowledged += 1;
        let most = &mut self.shards[lease].acknowledged;
        *most = (*most).max(hold.acknowledged);
    }

    pub(super) fn leave(&mut self, worker: usize, lease: usize) {
        let Worker { id, slots, .. } = &mut self.workers[worker];
        let slot = &mut slots[lease];
        if !slot.is_asked(id) {
            self.moves -= 1;
        }
        slot.hold.as_mut().expect("a holder leaves").goal = Goal::Release;
    }

    pub(super) fn write(&mut self, worker: usize, lease: usize, why: Why, network: Network) {
        let now = self.now(worker);
        let this = &mut self.workers[worker];
        let hold = this.slots[lease].hold.as_mut();
        let (fate, acknowledged) =
            hold.as_ref().map_or((Fate::default(), 0), |hold| (hold.fate, hold.acknowledged));
        let write = match hold {
            Some(hold) => {
                hold.tenure.sent(now);
                hold.tenure.write(&hold.goal, &LeaseUpdate::of(Some(at(hold.acknowledged))))
            }
            None => this.wish(lease, why),
        };
        this.slots[lease].waiting = Some((write.clone(), now));
        let mut message = Message {
            from: worker,
            lease,
            write,
            sent: now,
            reply: None,
            is_awaited: true,
            why,
            acknowledged,
            fate,
        };
        self.moves -= u8::from(why == Why::Ask);
        self.faults -= u8::from(network != Network::Fine);
        match network {
            Network::Fine => {
                let outcome = self.land(&message);
                self.answered(&message, outcome);
            }
            Network::Lost => {}
            Network::Unanswered => {
                self.land(&message);
            }
            Network::Late => self.wire.push(message),
            Network::Twice => {
                self.wire.push(Message { is_awaited: false, ..message.clone() });
                self.wire.push(message);
            }
            Network::Slow => {
                message.reply = Some(self.land(&message));
                self.wire.push(message);
            }
        }
    }

    pub(super) fn arrives(&mut self, index: usize) {
        let mut message = self.wire.remove(index);
        let outcome = message.reply.take().unwrap_or_else(|| self.land(&message));
        if !message.is_awaited {
            return;
        }
        if self.workers[message.from].life == Life::Running {
            self.answered(&message, outcome);
        } else {
            message.reply = Some(outcome);
            self.wire.push(message);
        }
    }

    /// Applies a write to the table.
    pub(super) fn land(&mut self, message: &Message) -> WriteOutcome {
        let before = self.shards[message.lease].row.take();
        match message.write.apply(before.as_ref()) {
            Ok(after) => {
                self.check(message, before.as_ref(), after.as_ref());
                self.depose(message);
                let shard = &mut self.shards[message.lease];
                shard.is_gone |= after.is_none();
                shard.row.clone_from(&after);
                if after.is_none() {
                    // No creation is in flight for as long as a finished row is kept.
                    self.wire.retain(|it| it.lease != message.lease || it.why != Why::Create);
                }
                WriteOutcome::Done(after)
            }
            Err(refused) => {
                self.shards[message.lease].row = before;
                WriteOutcome::Refused(refused.current.map(|row| *row))
            }
        }
    }

    /// Delivers the outcome of a write to its sender.
    pub(super) fn answered(&mut self, message: &Message, outcome: WriteOutcome) {
        let (worker, lease, now) = (message.from, message.lease, self.now(message.from));
        self.workers[worker].slots[lease].waiting = None;
        if self.workers[worker].slots[lease].hold.is_some() {
            return self.holder_answered(message, outcome);
        }
        let this = &mut self.workers[worker];
        let since = this.takes.answered(&message.write, message.sent, &outcome);
        let (WriteOutcome::Done(row) | WriteOutcome::Refused(row)) = &outcome;
        this.remember(now, lease, row.clone());
        let Some((since, row)) = since.zip(row.clone()) else { return };
        if matches!(outcome, WriteOutcome::Refused(_)) {
            self.notes.push("a take was recognised");
        }
        let acknowledged = position(&row, self.bounds.records);
        let Times { lease_duration, fence_margin: margin, .. } = self.times;
        let (id, incarnation) = (this.id.clone(), this.incarnation.clone());
        let tenure = Tenure::new(row, since, id, incarnation, lease_duration, margin);
        if now < tenure.fenced_at() {
            let hold = Hold { tenure, goal: Goal::Keep, acknowledged, fate: message.fate };
            this.slots[lease].hold = Some(hold);
        }
    }

    pub(super) fn holder_answered(&mut self, message: &Message, outcome: WriteOutcome) {
        let (worker, lease, now) = (message.from, message.lease, self.now(message.from));
        let this = &mut self.workers[worker];
        let hold = this.slots[lease].hold.as_mut().expect("only a holder is answered so");
        let is_refused = matches!(outcome, WriteOutcome::Refused(_));
        match hold.tenure.answered(message.sent, outcome, &hold.goal) {
            Verdict::Held { reached } => {
                self.notes.push(if is_refused { "a write was recognised" } else { "written" });
                if reached && hold.goal != Goal::Keep {
                    let row = hold.tenure.lease().clone();
                    this.slots[lease].hold = None;
                    this.remember(now, lease, Some(row));
                } else if now >= hold.tenure.fenced_at() {
                    self.lose(worker, lease);
                }
            }
            Verdict::OtherSuccessor => self.notes.push(match hold.tenure.asked_by() {
                Some(_) => "a release became a handover",
                None => "a handover became a release",
            }),
            Verdict::Lost { .. } => self.lost(worker, lease),
            Verdict::Vanished => self.require(false, "the row of a holder is gone"),
        }
    }
}

impl Worker {
    pub(super) fn remember(&mut self, now: Instant, lease: usize, row: Option<Lease>) {
        if let Some(row) = &row {
            self.observations.saw(now, row);
        }
        self.slots[lease].seen = row;
    }

    /// Returns a write of a worker that does not hold the lease, by the row as it has seen it.
    pub(super) fn wish(&self, lease: usize, why: Why) -> LeaseWrite {
        let (key, incarnation) = (key(lease), &self.incarnation);
        let Some(row) = &self.slots[lease].seen else {
            let row = Lease::new(key.clone(), Checkpoint::TrimHorizon);
            let change = LeaseChange::Create(Box::new(row));
            return LeaseWrite { key, id: write_id(incarnation, 0), change };
        };
        let (counter, from) = (row.counter, row.owner.clone());
        let id = write_id(incarnation, counter);
        match why {
            Why::Delete => LeaseWrite { key, id, change: LeaseChange::Delete { counter } },
            Why::Ask => {
                let from = from.expect("an owner is asked");
                let change = LeaseChange::RequestHandoff { counter, from, to: self.id.clone() };
                LeaseWrite { key, id, change }
            }
            Why::Withdraw => {
                let from = row.checkpoint_owner.clone().expect("a request is withdrawn");
                let change = LeaseChange::WithdrawHandoff { from, to: self.id.clone() };
                LeaseWrite { key, id, change }
            }
            Why::Take | Why::TakeOverdue | Why::Create | Why::Hold => {
                let change = LeaseChange::Take { counter, from, owner: self.id.clone() };
                LeaseWrite { key, id: take_id(incarnation, counter), change }
            }
        }
    }
}
