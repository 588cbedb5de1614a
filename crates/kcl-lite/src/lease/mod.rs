//! Leases: one row per shard, with its owner, lease counter and checkpoint.
//!
//! Owns the row as data, every write that may change it, and the rule of each write
//! ([`LeaseWrite::apply`]). The in-memory store applies that rule, the DynamoDB store expresses it in
//! condition expressions, and tests check that the two agree.
//! Pure: never calls a table, never reads a clock.

pub(crate) mod balance;
pub mod dynamo;
pub(crate) mod expiry;
mod key;
pub mod memory;
pub mod store;
pub(crate) mod taking;
pub(crate) mod tenure;
pub mod timing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use self::key::{LeaseKey, StreamKey};
pub(crate) use crate::identity::Other;
pub use crate::identity::StreamIdentity;
use crate::position::{Checkpoint, Cursor};
use crate::record::{ShardId, Timestamp, WorkerId};
use crate::shard::HashRange;

/// The ID of the last write to a row, by which a worker recognizes its own write.
///
/// Unique per incarnation and value of the lease counter, so that a write with a lost reply can be
/// recognized by reading the row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(String);

impl WriteId {
    /// Creates a write ID from its text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns whether an incarnation of `worker` made the write.
    pub(crate) fn is_of(&self, worker: &WorkerId) -> bool {
        let rest = self.0.strip_prefix(worker.as_str());
        // With the sign that follows the worker ID: one ID can be the beginning of another.
        rest.is_some_and(|rest| rest.starts_with('#'))
    }

    /// Returns the counter on which the write was conditional, if this library made it.
    pub(crate) fn counter(&self) -> Option<u64> {
        // From the end, because the mark of a take has one more part before the counter.
        self.0.rsplit_once(':').and_then(|(_, counter)| counter.parse().ok())
    }

    /// Returns the text that the row stores.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A prepared checkpoint that is not committed yet (two-phase checkpoints of the KCL).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingCheckpoint {
    /// The prepared position.
    pub checkpoint: Checkpoint,
    /// The application's own bytes, if it stored any.
    pub state: Option<Vec<u8>>,
}

/// The fields that a renewal, handover or release stores in addition to its purpose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LeaseUpdate {
    /// The new checkpoint, if it moved.
    pub checkpoint: Option<Checkpoint>,
    /// The change of the prepared checkpoint.
    pub pending: PendingChange,
    /// The time up to which all records that arrived are acknowledged, if it moved.
    pub read_until: Option<Timestamp>,
    /// The recent throughput in bytes per second, if it was measured.
    pub throughput: Option<u64>,
}

/// How a write changes the prepared checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PendingChange {
    /// Keeps it unchanged.
    #[default]
    Keep,
    /// Stores a new one.
    Prepare(PendingCheckpoint),
    /// Removes it, because the checkpoint has reached it or it was abandoned.
    Clear,
}

/// One lease row.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// The key of the row, which contains the shard.
    pub key: LeaseKey,
    /// The owner. During a handoff this is already the next owner, as in KCL 3.
    pub owner: Option<WorkerId>,
    /// The version of the row. It grows with every renewal and every change of owner, and almost every
    /// write is conditional on it. At most [`MOST_COUNTER`](Self::MOST_COUNTER).
    pub counter: u64,
    /// The number of changes of owner since the last checkpoint.
    pub owner_switches: u64,
    /// The stored checkpoint.
    pub checkpoint: Checkpoint,
    /// The prepared checkpoint, if there is one.
    pub pending: Option<PendingCheckpoint>,
    /// The parents of the shard, including those that the service no longer lists.
    pub parents: BTreeSet<ShardId>,
    /// The children of the shard, known once it has ended.
    pub children: BTreeSet<ShardId>,
    /// The range of hash keys that the shard serves.
    pub hash_range: Option<HashRange>,
    /// During a handoff, as in KCL 3: the old owner, which still has to drain and hand off.
    pub checkpoint_owner: Option<WorkerId>,
    /// Only this library's: the ID of the last write. Absent if another library wrote the row last.
    pub write_id: Option<WriteId>,
    /// Only this library's: the time to which `LATEST` or `AT_TIMESTAMP` was resolved when the row was
    /// created, or the anchor of a parent of which nothing was read, or the creation time of a re-created
    /// stream. Records that arrived before are not read.
    pub anchor: Option<Timestamp>,
    /// Only this library's: all records that arrived up to this time of the service are acknowledged. It
    /// moves also while no records arrive, which distinguishes a quiet shard from a gap.
    pub read_until: Option<Timestamp>,
    /// The recent throughput of the shard in bytes per second, if it was measured.
    pub throughput: Option<u64>,
    /// Only this library's: the stream for which the row was created.
    pub stream: Option<StreamIdentity>,
}

impl Lease {
    /// The greatest valid counter: the maximum that the Java KCL can read, and so far below the maximum of
    /// the type that writes never reach it. A store lists rows with a greater counter as unreadable.
    pub const MOST_COUNTER: u64 = i64::MAX.unsigned_abs();

    /// Creates a lease without an owner.
    #[must_use]
    pub fn new(key: impl Into<LeaseKey>, checkpoint: Checkpoint) -> Self {
        Self {
            key: key.into(),
            owner: None,
            counter: 0,
            owner_switches: 0,
            checkpoint,
            pending: None,
            parents: BTreeSet::new(),
            children: BTreeSet::new(),
            hash_range: None,
            checkpoint_owner: None,
            write_id: None,
            anchor: None,
            read_until: None,
            throughput: None,
            stream: None,
        }
    }

    /// Creates a lease of a shard of `stream`.
    ///
    /// Its counter starts at the creation time of the stream in milliseconds, and grows by a few per
    /// second. Therefore no row of a re-created stream ever has a counter that a row of the earlier stream
    /// had, and a delayed write to the earlier row is always refused.
    pub(crate) fn of_stream(
        stream: Option<StreamIdentity>,
        key: impl Into<LeaseKey>,
        checkpoint: Checkpoint,
    ) -> Self {
        let created = stream.as_ref().map_or(0, |stream| stream.created.as_millis());
        let counter = u64::try_from(created).unwrap_or(0);
        Self { counter, stream, ..Self::new(key, checkpoint) }
    }

    /// Returns how the stream of `row` relates to that of this row, if both are known and differ.
    pub(crate) fn other_stream(&self, row: &Self) -> Option<Other> {
        self.stream.as_ref()?.other(row.stream.as_ref()?)
    }

    /// Returns the stream for which the row was created, for messages; its key, if the stream is unknown.
    pub(crate) fn made_for(&self) -> String {
        self.stream.as_ref().map_or_else(|| self.key.to_string(), ToString::to_string)
    }

    /// Returns the shard of this lease.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.key.shard()
    }

    /// Returns the lease keys of the parents.
    pub(crate) fn parent_keys(&self) -> impl Iterator<Item = LeaseKey> {
        self.parents.iter().map(|parent| self.key.sibling(parent))
    }

    /// Returns the lease keys of the children.
    pub(crate) fn child_keys(&self) -> impl Iterator<Item = LeaseKey> {
        self.children.iter().map(|child| self.key.sibling(child))
    }

    /// Returns the worker that reads the shard now, which during a handoff is still the old owner.
    #[must_use]
    pub fn actual_owner(&self) -> Option<&WorkerId> {
        self.checkpoint_owner.as_ref().or(self.owner.as_ref())
    }

    /// Returns the cursor at which a reader of this shard starts, or `None` if the shard is finished.
    ///
    /// Reading starts *at* the checkpoint, as in the KCL: the record of the checkpoint is read again and
    /// dropped, because it can be an aggregate of which only a part is processed.
    /// A row of another library can have `LATEST` without an anchor. It then starts at the horizon, which
    /// repeats records rather than losing them.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        match &self.checkpoint {
            Checkpoint::ShardEnd => None,
            Checkpoint::At(position) => Some(Cursor::At(position.sequence_number.clone())),
            Checkpoint::TrimHorizon | Checkpoint::Latest | Checkpoint::AtTimestamp => {
                // No record is older than 1970, and no service accepts such a time.
                let since = self.anchor.filter(|time| time.as_millis() >= 0);
                Some(since.map_or(Cursor::Horizon, Cursor::Timestamp))
            }
        }
    }
}

/// Returns the counter after a write. It saturates instead of wrapping to 0, where earlier values of the
/// counter would become valid again.
pub(crate) fn counter_after(counter: u64, by: u64) -> u64 {
    counter.saturating_add(by)
}

/// The outcome of a conditional write.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteOutcome {
    /// The write was applied. Contains the row after it, `None` after a delete.
    Done(Option<Lease>),
    /// The condition did not hold. Contains the present row, `None` if there is none: a missing row does
    /// not mean that another worker owns the lease.
    Refused(Option<Lease>),
}

/// All rows of a lease table at one time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The leases in key order.
    pub leases: Vec<Lease>,
    /// The unreadable rows, and why. They count as neither unowned nor finished: no worker takes them, and
    /// the children of such a shard wait.
    pub unreadable: BTreeMap<LeaseKey, String>,
}

impl From<Vec<Lease>> for Table {
    fn from(leases: Vec<Lease>) -> Self {
        Self { leases, unreadable: BTreeMap::new() }
    }
}

/// One conditional write on one row.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaseWrite {
    /// The row.
    pub key: LeaseKey,
    /// The ID that this write stores in the row.
    pub id: WriteId,
    /// The change and its condition.
    pub change: LeaseChange,
}

/// The writes of the lease protocol. `counter` is always the value that the writer last saw.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaseChange {
    /// Creates the row. Condition: it does not exist.
    Create(Box<Lease>),
    /// Takes a lease that is unowned, or from its owner. Condition: the counter.
    Take {
        /// The observed counter.
        counter: u64,
        /// The observed owner. Only decides whether the take counts as a change of owner. The writer
        /// compares, because a DynamoDB expression cannot add conditionally.
        from: Option<WorkerId>,
        /// The new owner.
        owner: WorkerId,
    },
    /// Requests a handoff from the owner. Condition: the counter, the owner, and that no handoff has been
    /// requested. Changes neither counter nor write ID, so that the owner can read the shard and renew until
    /// it hands off.
    RequestHandoff {
        /// The observed counter.
        counter: u64,
        /// The owner, which becomes the `checkpoint_owner`.
        from: WorkerId,
        /// The worker that requests the handoff, which becomes the `owner`.
        to: WorkerId,
    },
    /// Withdraws a handoff request: the owner keeps the lease, or releases it if it has drained already.
    /// Condition: the row still contains the request of `to` to `from`. Independent of the counter, so that
    /// a concurrent renewal of the owner cannot cause a refusal. Changes neither counter nor write ID.
    WithdrawHandoff {
        /// The owner, as in the request.
        from: WorkerId,
        /// The worker that requested the handoff.
        to: WorkerId,
    },
    /// Hands the lease off to the worker that requested it, and stores the newest checkpoint, if any.
    /// Condition: the counter, and that the row still contains the request of `to`.
    HandOver {
        /// The owner's counter.
        counter: u64,
        /// The fields to store.
        update: LeaseUpdate,
        /// The worker that requested the handoff.
        to: WorkerId,
    },
    /// Renews the lease, and stores the newest checkpoint, if any. Condition: the counter, and that
    /// `owner` is the actual owner: a row that was deleted by hand and created by another worker can have
    /// the same counter.
    Renew {
        /// The owner's counter.
        counter: u64,
        /// The worker that renews.
        owner: WorkerId,
        /// The fields to store.
        update: LeaseUpdate,
    },
    /// Finishes the shard: stores `SHARD_END` and its children, and clears the owner. Condition: the
    /// counter.
    Finish {
        /// The owner's counter.
        counter: u64,
        /// The children, whose rows exist already.
        children: BTreeSet<ShardId>,
    },
    /// Releases the lease, and stores the newest checkpoint, if any. Condition: the counter, and that no
    /// handoff has been requested: otherwise the owner hands off instead.
    Release {
        /// The owner's counter.
        counter: u64,
        /// The fields to store.
        update: LeaseUpdate,
    },
    /// Deletes a finished lease. Condition: the counter, and `SHARD_END`.
    Delete {
        /// The observed counter.
        counter: u64,
    },
    /// Resets a shard to another position, regardless of its owner: the only write that may move a
    /// checkpoint back. The counter fences the owner, which stops and takes the lease again at once. The
    /// owner stays in the row, so that no other worker starts before the owner has stopped.
    /// Condition: the counter.
    Reset {
        /// The observed counter.
        counter: u64,
        /// The new checkpoint; symbolic, or a position.
        checkpoint: Checkpoint,
        /// The time of a symbolic checkpoint, if it has one.
        anchor: Option<Timestamp>,
    },
    /// Deletes an unfinished lease whose shard belongs to a deleted stream. Condition: the counter.
    Discard {
        /// The observed counter.
        counter: u64,
    },
    /// Replaces the row of a deleted stream by a row of an existing one. If all rows were discarded
    /// instead, the table would look like that of an application that has never started. Condition: the
    /// counter.
    Replace {
        /// The observed counter.
        counter: u64,
        /// The new row, with a greater counter.
        with: Box<Lease>,
    },
}

/// The error of a write whose condition did not hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The row when the write was refused, if there is one.
    pub current: Option<Box<Lease>>,
}

impl LeaseWrite {
    /// Applies the write to `row` and returns the new row: `Ok(None)` when it is deleted.
    ///
    /// # Errors
    /// [`Refused`] when the condition does not hold.
    pub fn apply(&self, row: Option<&Lease>) -> Result<Option<Lease>, Refused> {
        let refused = || Refused { current: row.cloned().map(Box::new) };
        let at =
            |counter: u64| row.filter(|row| row.counter == counter).cloned().ok_or_else(refused);
        let mut next = match &self.change {
            LeaseChange::Create(lease) => {
                if row.is_some() {
                    return Err(refused());
                }
                Lease::clone(lease)
            }
            LeaseChange::Take { counter, from, owner } => at(*counter)?.taken(from.as_ref(), owner),
            LeaseChange::Renew { counter, owner, update } => {
                let lease = at(*counter)?;
                if lease.actual_owner() != Some(owner) {
                    return Err(refused());
                }
                lease.renewed(update)
            }
            LeaseChange::Finish { counter, children } => {
                // Also while a handoff is requested: a finished shard has nothing to hand over.
                let mut lease = at(*counter)?.renewed(&LeaseUpdate::shard_end());
                lease.children.clone_from(children);
                lease.freed()
            }
            LeaseChange::RequestHandoff { counter, from, to } => {
                // Returns before the write ID is stored: the owner still has to recognize in the
                // row its own write whose reply was lost.
                return at(*counter)?.asked(from, to).map(Some).ok_or_else(refused);
            }
            LeaseChange::WithdrawHandoff { from, to } => {
                let withdrawn = row.cloned().and_then(|row| row.withdrawn(from, to));
                return withdrawn.map(Some).ok_or_else(refused);
            }
            LeaseChange::HandOver { counter, update, to } => {
                let lease = at(*counter)?;
                // A request can be withdrawn without a change of the counter.
                let is_asked = lease.checkpoint_owner.is_some() && lease.owner.as_ref() == Some(to);
                if !is_asked {
                    return Err(refused());
                }
                let mut lease = lease.renewed(update);
                lease.owner = Some(to.clone());
                lease.checkpoint_owner = None;
                lease
            }
            LeaseChange::Release { counter, update } => {
                let lease = at(*counter)?;
                if lease.checkpoint_owner.is_some() {
                    return Err(refused());
                }
                lease.renewed(update).freed()
            }
            LeaseChange::Delete { counter } => {
                let lease = at(*counter)?;
                return if lease.checkpoint.is_shard_end() { Ok(None) } else { Err(refused()) };
            }
            LeaseChange::Reset { counter, checkpoint, anchor } => {
                at(*counter)?.reset(checkpoint, *anchor)
            }
            LeaseChange::Discard { counter } => return at(*counter).map(|_| None),
            LeaseChange::Replace { counter, with } => {
                at(*counter)?;
                Lease::clone(with)
            }
        };
        next.write_id = Some(self.id.clone());
        Ok(Some(next))
    }
}

impl LeaseChange {
    /// Returns whether a take counts as a change of owner. The take of an unowned lease does not, nor does a
    /// new tenure of the same worker, as in the Java KCL.
    pub(crate) fn is_switch(from: Option<&WorkerId>, owner: &WorkerId) -> bool {
        from.is_some_and(|from| from != owner)
    }
}

impl Lease {
    /// Clears the owner, and also the old owner of a handoff, which would still count as the actual owner.
    fn freed(mut self) -> Self {
        self.owner = None;
        self.checkpoint_owner = None;
        self
    }

    fn taken(mut self, from: Option<&WorkerId>, owner: &WorkerId) -> Self {
        self.counter = counter_after(self.counter, 1);
        let switch = u64::from(LeaseChange::is_switch(from, owner));
        self.owner_switches = self.owner_switches.saturating_add(switch);
        // A take ends a handoff; otherwise the old owner would remain the actual owner.
        self.owner = Some(owner.clone());
        self.checkpoint_owner = None;
        self
    }

    /// Stores a handoff request; `None` if `from` is not the owner, or a handoff was requested before.
    fn asked(mut self, from: &WorkerId, to: &WorkerId) -> Option<Self> {
        if self.owner.as_ref() != Some(from) || self.checkpoint_owner.is_some() {
            return None;
        }
        self.checkpoint_owner = self.owner.replace(to.clone());
        Some(self)
    }

    /// Removes the handoff request of `to` to `from`; `None` if the row does not contain it.
    fn withdrawn(mut self, from: &WorkerId, to: &WorkerId) -> Option<Self> {
        if self.owner.as_ref() != Some(to) || self.checkpoint_owner.as_ref() != Some(from) {
            return None;
        }
        self.owner = self.checkpoint_owner.take();
        Some(self)
    }

    fn reset(mut self, checkpoint: &Checkpoint, anchor: Option<Timestamp>) -> Self {
        // The Java KCL takes a counter that is one higher, on a row that it owns, for its own lost reply.
        self.counter = counter_after(self.counter, 2);
        self.checkpoint = checkpoint.clone();
        self.anchor = anchor;
        // These belong to the old checkpoint; its `read_until` would hide a gap after the new one.
        (self.pending, self.read_until, self.owner_switches) = (None, None, 0);
        self.children = BTreeSet::new();
        self.checkpoint_owner = None;
        self
    }

    fn renewed(mut self, update: &LeaseUpdate) -> Self {
        self.counter = counter_after(self.counter, 1);
        if let Some(checkpoint) = &update.checkpoint {
            debug_assert!(*checkpoint >= self.checkpoint, "a durable checkpoint never moves back");
            self.checkpoint = checkpoint.clone();
            self.owner_switches = 0;
        }
        match &update.pending {
            PendingChange::Keep => {}
            PendingChange::Prepare(pending) => self.pending = Some(pending.clone()),
            PendingChange::Clear => self.pending = None,
        }
        self.read_until = update.read_until.or(self.read_until);
        self.throughput = update.throughput.or(self.throughput);
        self
    }
}

impl LeaseUpdate {
    /// Creates an update of the checkpoint alone.
    #[must_use]
    pub fn of(checkpoint: Option<Checkpoint>) -> Self {
        Self { checkpoint, ..Self::default() }
    }

    /// Creates the update of a finished shard. All records are acknowledged, so nothing can be pending.
    pub(crate) fn shard_end() -> Self {
        Self { pending: PendingChange::Clear, ..Self::of(Some(Checkpoint::ShardEnd)) }
    }
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
