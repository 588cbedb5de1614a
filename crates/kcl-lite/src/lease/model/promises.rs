//! The safety promises: on what the owners believe, and on every write that is applied.

use super::world::{Message, Why, World, at};
use crate::lease::{Lease, LeaseChange};

impl World {
    /// Checks that a lease never has two owners, except until the loser of a takeover learns of it.
    pub(super) fn check_owners(&mut self) {
        for lease in 0..self.shards.len() {
            let owners = (0..self.workers.len()).filter(|worker| {
                let hold = self.workers[*worker].slots[lease].hold.as_ref();
                self.believes(*worker, lease) && hold.is_some_and(|hold| !hold.fate.is_overdue)
            });
            let owners = owners.count();
            self.require(owners <= 1, "two workers hold one lease");
        }
    }

    /// Checks the promises about what is stored.
    pub(super) fn check(
        &mut self,
        message: &Message,
        before: Option<&Lease>,
        after: Option<&Lease>,
    ) {
        let change = &message.write.change;
        let is_deposed = message.why == Why::Hold && message.fate.is_deposed;
        self.require(!is_deposed, "a write of a deposed owner landed");
        let shard = &self.shards[message.lease];
        let (is_gone, acknowledged) = (shard.is_gone, shard.acknowledged);
        self.require(!is_gone, "a finished lease was re-created");
        let Some(after) = after else { return };
        let is_full = acknowledged == self.bounds.records;
        let is_true = after.checkpoint <= at(acknowledged)
            || (after.checkpoint.is_shard_end() && is_full && self.bounds.whole_life);
        self.require(is_true, "a checkpoint passed what was acknowledged");
        let lets_go = matches!(
            change,
            LeaseChange::Release { .. } | LeaseChange::HandOver { .. } | LeaseChange::Finish { .. }
        );
        let is_whole = !lets_go || after.checkpoint >= at(message.acknowledged);
        self.require(is_whole, "a lease was released without its newest checkpoint");
        let Some(before) = before else { return };
        self.require(message.why != Why::Create, "a lease was created over an existing one");
        self.require(after.checkpoint >= before.checkpoint, "a checkpoint moved back");
        self.require(!before.checkpoint.is_shard_end(), "a finished lease was written");
        let is_pending = before.checkpoint_owner.is_some() && before.owner == after.owner;
        let is_handed = matches!(change, LeaseChange::HandOver { .. });
        self.require(!is_handed || is_pending, "a lease was handed over without a request");
        let forgets =
            matches!(change, LeaseChange::Release { .. }) && before.checkpoint_owner.is_some();
        self.require(!forgets, "a requested lease was released to nobody");
        if matches!(
            change,
            LeaseChange::RequestHandoff { .. } | LeaseChange::WithdrawHandoff { .. }
        ) {
            self.require(after.actual_owner() == before.actual_owner(), "a request moved a lease");
        } else {
            self.require(after.counter > before.counter, "the counter stood still");
        }
    }

    /// Marks the holds whose tenure an applied write has ended.
    pub(super) fn depose(&mut self, message: &Message) {
        let ends = match &message.write.change {
            LeaseChange::Take { .. } => {
                self.notes.push(if message.why == Why::TakeOverdue {
                    "taken overdue"
                } else {
                    "taken"
                });
                true
            }
            LeaseChange::HandOver { .. } => {
                self.notes.push("handed over");
                true
            }
            LeaseChange::Release { .. } => {
                self.notes.push("released");
                true
            }
            LeaseChange::Finish { .. } => {
                self.notes.push("finished");
                true
            }
            LeaseChange::Delete { .. } => {
                self.notes.push("deleted");
                true
            }
            LeaseChange::Create(_)
            | LeaseChange::Renew { .. }
            | LeaseChange::RequestHandoff { .. }
            | LeaseChange::WithdrawHandoff { .. }
            | LeaseChange::Reset { .. }
            | LeaseChange::Discard { .. }
            | LeaseChange::Replace { .. } => false,
        };
        if !ends {
            return;
        }
        let is_overdue = message.why == Why::TakeOverdue;
        let lease = message.lease;
        let holds = self.workers.iter_mut().filter_map(|worker| worker.slots[lease].hold.as_mut());
        let holds = holds.map(|hold| &mut hold.fate);
        let wire = self
            .wire
            .iter_mut()
            .filter(|it| it.lease == lease && (it.why == Why::Hold || it.reply.is_some()));
        for fate in holds.chain(wire.map(|message| &mut message.fate)) {
            fate.is_overdue |= is_overdue && !fate.is_deposed;
            fate.is_deposed = true;
        }
    }
}
