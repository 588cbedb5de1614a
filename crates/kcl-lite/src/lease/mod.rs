//! The lease: one row per shard that says who reads it and how far it has been read.
//!
//! Owns the row as data, every write that may change it, and the rule of each write
//! ([`LeaseWrite::apply`]): the in-memory store runs that rule, the DynamoDB store says the same
//! in condition expressions, and tests hold the two together.
//! Pure: never talks to a table, never reads a clock.

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

/// A mark on a row that tells a worker whether the last write was its own.
///
/// Unique per worker incarnation and per value of the lease counter, so that a write whose reply
/// was lost can be recognised by reading the row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(String);

impl WriteId {
    /// A mark from its text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether an incarnation of `worker` made the write.
    pub(crate) fn is_of(&self, worker: &WorkerId) -> bool {
        let rest = self.0.strip_prefix(worker.as_str());
        rest.is_some_and(|rest| rest.starts_with('#'))
    }

    /// The counter at which the write was made, if this library made it.
    pub(crate) fn counter(&self) -> Option<u64> {
        self.0.rsplit_once(':').and_then(|(_, counter)| counter.parse().ok())
    }

    /// The text as it stands in the row.
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

/// A checkpoint that was prepared but not committed (two-phase checkpoints of the KCL).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingCheckpoint {
    /// The prepared position.
    pub checkpoint: Checkpoint,
    /// The application's own bytes, if it stored any.
    pub state: Option<Vec<u8>>,
}

/// What a write stores besides proving life or letting go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LeaseUpdate {
    /// What has been acknowledged since the last write, if anything.
    pub checkpoint: Option<Checkpoint>,
    /// What becomes of the prepared checkpoint.
    pub pending: PendingChange,
    /// The newest time up to which everything that arrived is acknowledged, if it moved.
    pub read_until: Option<Timestamp>,
    /// The bytes per second of late, if they were measured.
    pub throughput: Option<u64>,
}

/// What a write does to a prepared checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PendingChange {
    /// Leaves it as it is.
    #[default]
    Keep,
    /// Prepares this one.
    Prepare(PendingCheckpoint),
    /// Removes it: the checkpoint has reached it, or it was given up.
    Clear,
}

/// One lease row.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// The shard, and the key of the row.
    pub key: LeaseKey,
    /// Who may read the shard. During a KCL 3 handoff this is already the next owner.
    pub owner: Option<WorkerId>,
    /// Grows by one with every renewal and every change of owner; every write is conditional on it. At
    /// most [`MOST_COUNTER`](Self::MOST_COUNTER).
    pub counter: u64,
    /// Changes of owner since the last checkpoint.
    pub owner_switches: u64,
    /// What has been processed.
    pub checkpoint: Checkpoint,
    /// A prepared checkpoint, if there is one.
    pub pending: Option<PendingCheckpoint>,
    /// The shard's parents, also those that the service no longer lists.
    pub parents: BTreeSet<ShardId>,
    /// The shard's children, known once it has ended.
    pub children: BTreeSet<ShardId>,
    /// What the shard serves.
    pub hash_range: Option<HashRange>,
    /// KCL 3: the old owner that still has to checkpoint and let go.
    pub checkpoint_owner: Option<WorkerId>,
    /// Our own mark: what wrote last. Absent on rows last written by another library.
    pub write_id: Option<WriteId>,
    /// Our own fact: the time that `LATEST` or `AT_TIMESTAMP` was resolved to when the row was made, or
    /// that of a parent of which nothing was read, or the time at which a stream was made in whose place
    /// another one had been. What arrived before is not wanted.
    pub anchor: Option<Timestamp>,
    /// Our own fact: everything that arrived up to this time of the service is acknowledged. It moves
    /// also while nothing arrives, so it tells a quiet shard from a gap.
    pub read_until: Option<Timestamp>,
    /// How many bytes per second the shard carried lately, if it was measured.
    pub throughput: Option<u64>,
    /// Our own fact: which stream the row was made for.
    pub stream: Option<StreamIdentity>,
}

impl Lease {
    /// The greatest counter from which a lease can go on: what the Java KCL can read, and far enough
    /// from the end of the type that no series of writes comes there. A store lists rows with greater ones
    /// as unreadable.
    pub const MOST_COUNTER: u64 = i64::MAX.unsigned_abs();

    /// A new lease that nobody owns.
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

    /// A new lease of a shard of `stream`.
    ///
    /// Its counter begins with the time at which the stream was made, in milliseconds, and grows by a
    /// few each second: no row of a later stream ever has a counter that a row of an earlier one had, and
    /// a write that was meant for the earlier one is refused, however late it comes.
    pub(crate) fn of_stream(
        stream: Option<StreamIdentity>,
        key: impl Into<LeaseKey>,
        checkpoint: Checkpoint,
    ) -> Self {
        let created = stream.as_ref().map_or(0, |stream| stream.created.as_millis());
        let counter = u64::try_from(created).unwrap_or(0);
        Self { counter, stream, ..Self::new(key, checkpoint) }
    }

    /// What the stream of `row` is to that of this row, if both say it and it is another.
    pub(crate) fn other_stream(&self, row: &Self) -> Option<Other> {
        self.stream.as_ref()?.other(row.stream.as_ref()?)
    }

    /// Which stream the row was made for, in words: by its key, if it does not say it.
    pub(crate) fn made_for(&self) -> String {
        self.stream.as_ref().map_or_else(|| self.key.to_string(), ToString::to_string)
    }

    /// The shard this lease is for.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.key.shard()
    }

    /// The keys of the leases of its parents.
    pub(crate) fn parent_keys(&self) -> impl Iterator<Item = LeaseKey> {
        self.parents.iter().map(|parent| self.key.sibling(parent))
    }

    /// The keys of the leases of its children.
    pub(crate) fn child_keys(&self) -> impl Iterator<Item = LeaseKey> {
        self.children.iter().map(|child| self.key.sibling(child))
    }

    /// Who is reading the shard now: during a handoff the old owner still is.
    #[must_use]
    pub fn actual_owner(&self) -> Option<&WorkerId> {
        self.checkpoint_owner.as_ref().or(self.owner.as_ref())
    }

    /// Where a reader of this shard starts, or `None` if the shard is finished.
    ///
    /// Starts *at* the checkpoint: the checkpointed record is read once more and dropped, because it
    /// may be an aggregate of which only a part is done (as the KCL does).
    /// A row of another library may say `LATEST` without an anchor; its tip is then the horizon,
    /// which repeats rather than loses.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        match &self.checkpoint {
            Checkpoint::ShardEnd => None,
            Checkpoint::At(position) => Some(Cursor::At(position.sequence_number.clone())),
            Checkpoint::TrimHorizon | Checkpoint::Latest | Checkpoint::AtTimestamp => {
                // No record is older than 1970, and no service takes such a time.
                let since = self.anchor.filter(|time| time.as_millis() >= 0);
                Some(since.map_or(Cursor::Horizon, Cursor::Timestamp))
            }
        }
    }
}

/// The counter after a write. It never starts again at 0, where earlier counters would be valid once more.
pub(crate) fn counter_after(counter: u64, by: u64) -> u64 {
    counter.saturating_add(by)
}

/// What became of a conditional write.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteOutcome {
    /// Applied; the row as it is now, `None` after a delete.
    Done(Option<Lease>),
    /// The condition did not hold; the row as it is now. Absent is not stolen.
    Refused(Option<Lease>),
}

/// All rows of a lease table at one time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The leases in key order.
    pub leases: Vec<Lease>,
    /// Rows that are there but cannot be read, and why. They are neither free nor finished: nobody
    /// takes them, and the children of such a shard wait.
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
    /// The mark this write leaves on the row.
    pub id: WriteId,
    /// What to change, and under which condition.
    pub change: LeaseChange,
}

/// The writes of the lease protocol. `counter` is always the value that the writer last saw.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaseChange {
    /// Make the row. Condition: it does not exist.
    Create(Box<Lease>),
    /// Become the owner, of a free lease or from another worker. Condition: the counter.
    Take {
        /// The counter as observed.
        counter: u64,
        /// The owner in the row that was observed. Only decides whether the take counts as a
        /// switch: it is in the request, because no expression of DynamoDB can add on a condition.
        from: Option<WorkerId>,
        /// The new owner.
        owner: WorkerId,
    },
    /// Ask the owner to hand the lease over. Condition: the counter, the owner, and that nobody has
    /// asked before. The counter and the mark stay the owner's; it reads the shard until it lets go.
    AskHandoff {
        /// The counter as observed.
        counter: u64,
        /// The owner, which becomes the `checkpoint_owner`.
        from: WorkerId,
        /// The worker that asks, and becomes the owner.
        to: WorkerId,
    },
    /// Withdraw a request for a handoff: the owner keeps the lease, or releases it to anyone if it has
    /// drained already. Condition: the row still says that `to` has asked `from`. It holds whatever the
    /// counter is, so that an owner that renews meanwhile cannot refuse it; counter and mark stay the
    /// owner's.
    WithdrawHandoff {
        /// The owner, as in the request.
        from: WorkerId,
        /// The worker that had asked.
        to: WorkerId,
    },
    /// Give the lease to the worker that asked, storing the newest checkpoint if there is one.
    /// Condition: the counter, and that this worker is still the one that asks.
    HandOver {
        /// Our counter.
        counter: u64,
        /// What to store.
        update: LeaseUpdate,
        /// The worker that asked.
        to: WorkerId,
    },
    /// Prove life, and store the newest checkpoint if there is one. Condition: the counter, and that
    /// `owner` is the actual owner: a row that somebody deleted and another worker created afresh may
    /// have the counter that it had.
    Renew {
        /// Our counter.
        counter: u64,
        /// The worker that renews.
        owner: WorkerId,
        /// What to store.
        update: LeaseUpdate,
    },
    /// End the shard: `SHARD_END`, its children, no owner. Condition: the counter.
    Finish {
        /// Our counter.
        counter: u64,
        /// The children, whose rows exist already.
        children: BTreeSet<ShardId>,
    },
    /// Let go, storing the newest checkpoint if there is one. Condition: the counter, and that nobody
    /// has asked for the lease: whoever has gets it by a handover instead.
    Release {
        /// Our counter.
        counter: u64,
        /// What to store.
        update: LeaseUpdate,
    },
    /// Remove a finished lease. Condition: the counter, and `SHARD_END`.
    Delete {
        /// The counter as observed.
        counter: u64,
    },
    /// Start a shard again from another place, whoever owns it: the only write that may move a
    /// checkpoint back. Its owner, if there is one, is fenced by the counter, stops, and takes it again
    /// at once; it stays the owner in the row, so that nobody else begins before it has stopped.
    /// Condition: the counter.
    Reset {
        /// The counter as observed.
        counter: u64,
        /// The new place; symbolic, or a position.
        checkpoint: Checkpoint,
        /// What a symbolic place by time means.
        anchor: Option<Timestamp>,
    },
    /// Remove a lease that is not finished: its shard belongs to a stream that does not exist any
    /// more. Condition: the counter.
    Discard {
        /// The counter as observed.
        counter: u64,
    },
    /// The same, but with the row of a stream that exists in its place: a table of which all rows were
    /// discarded would look like one of an application that has never started. Condition: the counter.
    Replace {
        /// The counter as observed.
        counter: u64,
        /// The new row, with a greater counter.
        with: Box<Lease>,
    },
}

/// The condition of a write did not hold; the row, if there is one, says why.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The row as it was when the write was refused.
    pub current: Option<Box<Lease>>,
}

impl LeaseWrite {
    /// What the row becomes: `Ok(None)` when it is deleted.
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
                let mut lease = at(*counter)?.renewed(&LeaseUpdate::shard_end());
                lease.children.clone_from(children);
                lease.freed()
            }
            LeaseChange::AskHandoff { counter, from, to } => {
                return at(*counter)?.asked(from, to).map(Some).ok_or_else(refused);
            }
            LeaseChange::WithdrawHandoff { from, to } => {
                let withdrawn = row.cloned().and_then(|row| row.withdrawn(from, to));
                return withdrawn.map(Some).ok_or_else(refused);
            }
            LeaseChange::HandOver { counter, update, to } => {
                let lease = at(*counter)?;
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
    /// Whether a take counts as a change of owner. A free lease has none to change, and a new
    /// tenure of the same worker is no switch, as in the Java taker.
    pub(crate) fn is_switch(from: Option<&WorkerId>, owner: &WorkerId) -> bool {
        from.is_some_and(|from| from != owner)
    }
}

impl Lease {
    /// Nobody's. Also not the old owner's of a handoff, who would still count as the actual owner;
    /// whoever shares out leases assigns it again.
    fn freed(mut self) -> Self {
        self.owner = None;
        self.checkpoint_owner = None;
        self
    }

    fn taken(mut self, from: Option<&WorkerId>, owner: &WorkerId) -> Self {
        self.counter = counter_after(self.counter, 1);
        let switch = u64::from(LeaseChange::is_switch(from, owner));
        self.owner_switches = self.owner_switches.saturating_add(switch);
        self.owner = Some(owner.clone());
        self.checkpoint_owner = None;
        self
    }

    /// `None` if `from` is not the owner, or another worker has asked before.
    fn asked(mut self, from: &WorkerId, to: &WorkerId) -> Option<Self> {
        if self.owner.as_ref() != Some(from) || self.checkpoint_owner.is_some() {
            return None;
        }
        self.checkpoint_owner = self.owner.replace(to.clone());
        Some(self)
    }

    /// `None` if `to` is not the worker that asks `from`.
    fn withdrawn(mut self, from: &WorkerId, to: &WorkerId) -> Option<Self> {
        if self.owner.as_ref() != Some(to) || self.checkpoint_owner.as_ref() != Some(from) {
            return None;
        }
        self.owner = self.checkpoint_owner.take();
        Some(self)
    }

    fn reset(mut self, checkpoint: &Checkpoint, anchor: Option<Timestamp>) -> Self {
        // The Java library takes one more at its own row for a lost reply of its own.
        self.counter = counter_after(self.counter, 2);
        self.checkpoint = checkpoint.clone();
        self.anchor = anchor;
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
    /// LeaseUpdate of a checkpoint alone.
    #[must_use]
    pub fn of(checkpoint: Option<Checkpoint>) -> Self {
        Self { checkpoint, ..Self::default() }
    }

    /// Everything is acknowledged, so nothing can be pending.
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
