//! The write rules as update expressions: what `LeaseWrite::apply` does to an existing row.
//!
//! Names only the attributes that a write changes, so that all others are preserved. Pure.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;

use super::row::{
    ANCHOR, CHECKPOINT, CHECKPOINT_OWNER, CHECKPOINT_SUB, CHILDREN, Item, LEASE_COUNTER,
    LEASE_OWNER, OWNER_SWITCHES, PENDING, PENDING_STATE, PENDING_SUB, READ_UNTIL, THROUGHPUT,
    bytes, number, rate, shard_set, text,
};
use crate::lease::{LeaseChange, LeaseUpdate, PendingChange, counter_after};
use crate::position::Checkpoint;
use crate::record::{ShardId, Timestamp, WorkerId};

/// A builder of an `UpdateItem`. Attributes have placeholders, which cannot collide with reserved
/// words.
#[derive(Default)]
pub(super) struct Update {
    set: Vec<String>,
    remove: Vec<String>,
    add: Vec<String>,
    pub(super) names: HashMap<String, String>,
    pub(super) values: Item,
}

impl Update {
    /// The counter is the observed one. An item that does not exist has no counter, so an update
    /// never creates an item.
    pub(super) const CONDITION: &str = "#leaseCounter = :seen";
    /// The condition of [`renew`](Self::renew): also, the actual owner is the worker that renews.
    pub(super) const RENEW_CONDITION: &str = "#leaseCounter = :seen AND (#checkpointOwner = :me OR \
         (attribute_not_exists(#checkpointOwner) AND #leaseOwner = :me))";
    /// The condition of [`release`](Self::release): also, no handoff is requested.
    pub(super) const RELEASE_CONDITION: &str =
        "#leaseCounter = :seen AND attribute_not_exists(#checkpointOwner)";
    /// The condition of [`hand_over`](Self::hand_over): also, the new owner is still the worker that
    /// requested it.
    pub(super) const HAND_OVER_CONDITION: &str = "#leaseCounter = :seen AND #leaseOwner = :leaseOwner \
         AND attribute_exists(#checkpointOwner)";
    /// The condition of [`ask`](Self::ask): also, the owner is the observed one, and no handoff is
    /// requested.
    pub(super) const ASK_CONDITION: &str =
        "#leaseCounter = :seen AND #leaseOwner = :from AND attribute_not_exists(#checkpointOwner)";

    /// The condition of [`withdraw`](Self::withdraw): the handoff is still requested.
    pub(super) const WITHDRAW_CONDITION: &str =
        "#leaseOwner = :to AND #checkpointOwner = :leaseOwner";

    pub(super) fn take(seen: u64, from: Option<&WorkerId>, owner: &WorkerId) -> Self {
        let taken =
            Self::new(seen).set(LEASE_OWNER, text(owner.as_str())).remove(&[CHECKPOINT_OWNER]);
        // `ADD`, because a take does not carry the number that the row contains.
        if LeaseChange::is_switch(from, owner) { taken.add(OWNER_SWITCHES, 1) } else { taken }
    }

    /// Requests a handoff. Leaves the counter and the mark of the owner unchanged.
    pub(super) fn ask(seen: u64, from: &WorkerId, to: &WorkerId) -> Self {
        let mut update = Self::default();
        update.values.insert(":seen".to_owned(), number(seen));
        // Only the condition names the counter: a request does not change it.
        update.names.insert("#leaseCounter".to_owned(), LEASE_COUNTER.to_owned());
        update.values.insert(":from".to_owned(), text(from.as_str()));
        update.set(LEASE_OWNER, text(to.as_str())).set(CHECKPOINT_OWNER, text(from.as_str()))
    }

    /// Withdraws a request. Leaves the counter and the mark of the owner unchanged.
    pub(super) fn withdraw(from: &WorkerId, to: &WorkerId) -> Self {
        let mut update = Self::default();
        update.values.insert(":to".to_owned(), text(to.as_str()));
        update.set(LEASE_OWNER, text(from.as_str())).remove(&[CHECKPOINT_OWNER])
    }

    pub(super) fn hand_over(seen: u64, update: &LeaseUpdate, to: &WorkerId) -> Self {
        let renewed = Self::new(seen).update(update);
        renewed.set(LEASE_OWNER, text(to.as_str())).remove(&[CHECKPOINT_OWNER])
    }

    pub(super) fn renew(seen: u64, owner: &WorkerId, update: &LeaseUpdate) -> Self {
        let mut update = Self::new(seen).update(update);
        // Only the condition names these: a renewal does not change them.
        for attribute in [LEASE_OWNER, CHECKPOINT_OWNER] {
            update.names.insert(format!("#{attribute}"), attribute.to_owned());
        }
        update.values.insert(":me".to_owned(), text(owner.as_str()));
        update
    }

    pub(super) fn finish(seen: u64, children: &BTreeSet<ShardId>) -> Self {
        let finished = Self::new(seen).update(&LeaseUpdate::shard_end()).freed();
        match shard_set(children) {
            Some(children) => finished.set(CHILDREN, children),
            // The rule replaces the children, and DynamoDB has no empty sets.
            None => finished.remove(&[CHILDREN]),
        }
    }

    pub(super) fn release(seen: u64, update: &LeaseUpdate) -> Self {
        Self::new(seen).update(update).freed()
    }

    pub(super) fn reset(seen: u64, checkpoint: &Checkpoint, anchor: Option<Timestamp>) -> Self {
        // The Java library mistakes a row whose counter is one greater for a lost reply of its own.
        let reset = Self::counting(seen, 2).checkpoint(checkpoint);
        let reset = reset.remove(&[
            CHECKPOINT_OWNER,
            CHILDREN,
            PENDING,
            PENDING_SUB,
            PENDING_STATE,
            READ_UNTIL,
        ]);
        match anchor {
            Some(anchor) => reset.set(ANCHOR, number(anchor.as_millis())),
            None => reset.remove(&[ANCHOR]),
        }
    }

    fn new(seen: u64) -> Self {
        Self::counting(seen, 1)
    }

    fn counting(seen: u64, by: u64) -> Self {
        let mut update = Self::default();
        update.values.insert(":seen".to_owned(), number(seen));
        update.set(LEASE_COUNTER, number(counter_after(seen, by)))
    }

    fn freed(self) -> Self {
        self.remove(&[LEASE_OWNER, CHECKPOINT_OWNER])
    }

    pub(super) fn set(mut self, attribute: &str, value: AttributeValue) -> Self {
        self.set.push(format!("#{attribute} = :{attribute}"));
        self.names.insert(format!("#{attribute}"), attribute.to_owned());
        self.values.insert(format!(":{attribute}"), value);
        self
    }

    fn add(mut self, attribute: &str, value: u64) -> Self {
        self.add.push(format!("#{attribute} :{attribute}"));
        self.names.insert(format!("#{attribute}"), attribute.to_owned());
        self.values.insert(format!(":{attribute}"), number(value));
        self
    }

    fn remove(mut self, attributes: &[&str]) -> Self {
        for attribute in attributes {
            self.remove.push(format!("#{attribute}"));
            self.names.insert(format!("#{attribute}"), (*attribute).to_owned());
        }
        self
    }

    fn checkpoint(self, checkpoint: &Checkpoint) -> Self {
        self.set(CHECKPOINT, text(checkpoint.as_str()))
            .set(CHECKPOINT_SUB, number(checkpoint.sub_sequence_number()))
            .set(OWNER_SWITCHES, number(0))
    }

    fn update(mut self, update: &LeaseUpdate) -> Self {
        if let Some(checkpoint) = &update.checkpoint {
            self = self.checkpoint(checkpoint);
        }
        self = match &update.pending {
            PendingChange::Keep => self,
            PendingChange::Clear => self.remove(&[PENDING, PENDING_SUB, PENDING_STATE]),
            PendingChange::Prepare(pending) => {
                let sub = pending.checkpoint.sub_sequence_number();
                let update = self
                    .set(PENDING, text(pending.checkpoint.as_str()))
                    .set(PENDING_SUB, number(sub));
                match &pending.state {
                    Some(state) => update.set(PENDING_STATE, bytes(state.clone())),
                    // The state of an earlier prepared checkpoint must not remain beside this one.
                    None => update.remove(&[PENDING_STATE]),
                }
            }
        };
        if let Some(time) = update.read_until {
            self = self.set(READ_UNTIL, number(time.as_millis()));
        }
        match update.throughput {
            Some(bytes) => self.set(THROUGHPUT, rate(bytes)),
            None => self,
        }
    }

    pub(super) fn expression(&self) -> String {
        [("SET", &self.set), ("REMOVE", &self.remove), ("ADD", &self.add)]
            .into_iter()
            .filter(|(_, clauses)| !clauses.is_empty())
            .map(|(verb, clauses)| format!("{verb} {}", clauses.join(", ")))
            .collect::<Vec<_>>()
            .join(" ")
    }
}
