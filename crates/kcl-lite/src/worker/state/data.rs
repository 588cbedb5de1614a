//! The state, inputs and actions of the coordinator: data only.
//!
//! The rules are in the sibling modules, each with an `impl State` of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::error::{Error, ServiceError};
use crate::event::{Event, TakeReason};
use crate::lease::balance::Full;
use crate::lease::expiry::Observations;
use crate::lease::taking::Takes;
use crate::lease::{Lease, LeaseKey, LeaseWrite, StreamKey, Table, WriteOutcome};
use crate::position::Checkpoint;
use crate::record::{Timestamp, WorkerId};
use crate::settings::Settings;
use crate::shard::Listing;
use crate::shard::plan::Source;

/// An event that the coordinator reacts to.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and most are answers to writes")]
pub(crate) enum Input {
    /// A timer of [`State::next_due`] is due.
    TimeDue,
    /// A scan completed.
    Scanned(Result<Table, ServiceError>),
    /// The read of one row completed.
    Looked { key: LeaseKey, result: Result<Option<Lease>, ServiceError> },
    /// The listing of a stream completed.
    Listed { stream: StreamKey, result: Result<Listing, ServiceError> },
    /// A write of the coordinator completed; its first attempt was sent at `sent`.
    Wrote { write: LeaseWrite, why: Why, sent: Instant, result: Result<WriteOutcome, ServiceError> },
    /// Keeper and shard task of a lease have both ended; `row` as the keeper last wrote it.
    TenureEnded { key: LeaseKey, row: Option<Lease>, how: Ending },
    /// The service told a reader that its shard or stream does not exist.
    ReaderMissesShard(StreamKey),
    /// The user requests that this worker releases all leases (`true`), or takes leases again.
    DrainRequested(bool),
    /// The user requests a stop.
    StopRequested,
}

/// The way a tenure ended, as far as it matters for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The shard was finished, handed off or released.
    Usual,
    /// The shard was released because it made no progress here: other workers may take it first.
    Stalled { reason: String },
}

/// A lease that this worker released for lack of progress, with its state at that time.
#[derive(Debug, Clone)]
pub(super) struct Stuck {
    pub(super) reason: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) read_until: Option<Timestamp>,
}

/// The purpose of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    Create,
    Take { reason: TakeReason, from: Option<WorkerId> },
    Ask { from: WorkerId },
    Withdraw,
    Release,
    Delete,
    Discard,
}

/// An action that the coordinator performs.
#[derive(Debug)]
pub(crate) enum Action {
    /// Read all leases.
    Scan,
    /// Read the row of one lease.
    Look(LeaseKey),
    /// List the shards of a stream, and check that it is still the same stream.
    List(StreamKey),
    /// Write, retrying while the outcome is unknown.
    Write(LeaseWrite, Why),
    /// Start keeper and shard task for a lease that this worker holds since `sent`.
    Start { lease: Box<Lease>, sent: Instant },
    /// Drain one held shard, whose handoff was requested.
    Drain(LeaseKey),
    /// Drain every held shard.
    DrainAll,
    /// Emit an event.
    Emit(Event),
    /// Shut down gracefully, because of this error.
    Fail(Error),
}

/// The age of the data on which takes are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// The table has just been read.
    Fresh,
    /// It was read some time ago.
    Stale,
}

/// The knowledge of a worker, and its operations in progress.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) me: WorkerId,
    pub(super) incarnation: String,
    pub(super) settings: Arc<Settings>,
    pub(super) leases: BTreeMap<LeaseKey, Lease>,
    /// Unreadable rows, with the reason.
    pub(super) unreadable: BTreeMap<LeaseKey, String>,
    /// Rows that are, or should be, in the table, but whose content is unknown.
    pub(super) hidden: BTreeSet<LeaseKey>,
    pub(super) streams: BTreeMap<StreamKey, StreamState>,
    pub(super) observations: Observations,
    /// Held or being taken.
    pub(super) mine: BTreeSet<LeaseKey>,
    pub(super) taking: BTreeSet<LeaseKey>,
    /// Takes whose reply was lost.
    pub(super) takes: Takes,
    /// Rows that disappeared: deleted by hand, or finished and deleted.
    pub(super) vanished: BTreeMap<LeaseKey, Vanished>,
    /// Leases for which this worker has requested a handoff.
    pub(super) asked: BTreeMap<LeaseKey, HandoffRequest>,
    /// Rows being created or deleted.
    pub(super) writing: BTreeSet<LeaseKey>,
    /// Leases that made no progress here, and until when they are left to other workers.
    pub(super) avoided: BTreeMap<LeaseKey, Instant>,
    /// The other workers that take no more leases.
    pub(super) full: Full,
    /// Leases that made no progress here, and whose row has not advanced since.
    pub(super) stuck: BTreeMap<LeaseKey, Stuck>,
    /// Leases that may be read and that this worker does not hold, since the scan that first showed them.
    pub(super) runnable: BTreeMap<LeaseKey, Instant>,
    pub(super) duplicates: Duplicates,
    /// Leases that were lost and not taken again since.
    pub(super) lost: BTreeSet<LeaseKey>,
    pub(super) scanning: bool,
    /// When the scan in progress, or the last one, was started.
    pub(super) scan_asked_at: Instant,
    /// Rows that another call has returned since then: they are newer than the result of that scan.
    pub(super) learned: BTreeMap<LeaseKey, Instant>,
    /// When the newest completed scan was started.
    pub(super) table_asked_at: Instant,
    /// Whether the table has been read since the start.
    pub(super) has_read_table: bool,
    /// When the table was last read.
    pub(super) scanned_at: Instant,
    /// The latest scan error since then.
    pub(super) table_trouble: Option<String>,
    pub(super) next_scan: Instant,
    /// When rows with a pending handoff are read individually.
    pub(super) next_look: Option<Instant>,
    /// When takes were last decided.
    pub(super) decided_at: Instant,
    pub(super) failed_scans: u32,
    /// Scans in a row that reported that the table does not exist.
    pub(super) missing_scans: u32,
    /// Since when no scan has failed.
    pub(super) readable_since: Instant,
    pub(super) standing_by: bool,
    pub(super) draining: bool,
    pub(super) stopping: bool,
}

/// One stream, as the coordinator tracks it.
#[derive(Debug)]
pub(super) struct StreamState {
    pub(super) source: Source,
    pub(super) listing: bool,
    pub(super) next_audit: Instant,
    /// How many audits have been due.
    pub(super) turns: usize,
    /// Something looks wrong: list at the next audit time, even if it is another worker's turn.
    pub(super) is_wanted: bool,
    /// When the shards were last listed.
    pub(super) listed_at: Instant,
    /// Listings in a row that reported that the stream does not exist.
    pub(super) missing_listings: u32,
    /// The stream is deleted; it is not listed again.
    pub(super) is_gone: bool,
}

/// A row that disappeared from the table, as last seen.
#[derive(Debug)]
pub(super) struct Vanished {
    pub(super) since: Instant,
    pub(super) row: Lease,
}

/// A handoff request that is stored in the row.
#[derive(Debug)]
pub(super) struct HandoffRequest {
    /// When the handoff was first requested. A refused take does not change it.
    pub(super) since: Instant,
    pub(super) from: WorkerId,
    /// The owner's counter at that time.
    pub(super) counter: u64,
    /// When the row was last read individually.
    pub(super) looked: Instant,
    /// Takes that were refused since the last look.
    pub(super) refused: u32,
}

/// Knowledge of other workers with the same worker ID.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    /// The leases that the first scan showed as owned by this worker ID, with the counter.
    pub(super) legacy: Option<BTreeMap<LeaseKey, u64>>,
    /// Leases of another live worker with this worker ID, with its mark.
    pub(super) leases: BTreeMap<LeaseKey, String>,
    pub(super) since: Option<Instant>,
}

impl Stuck {
    pub(super) fn at(row: &Lease, reason: String) -> Self {
        Self { reason, checkpoint: row.checkpoint.clone(), read_until: row.read_until }
    }

    /// Returns whether the row has not advanced since, and no other worker owns it.
    pub(super) fn is_still(&self, row: &Lease, me: &WorkerId) -> bool {
        let has_moved = row.checkpoint != self.checkpoint || row.read_until > self.read_until;
        !has_moved && row.actual_owner().is_none_or(|owner| owner == me)
    }
}

impl HandoffRequest {
    pub(super) fn new(now: Instant, from: WorkerId, counter: u64) -> Self {
        Self { since: now, from, counter, looked: now, refused: 0 }
    }
}

impl Why {
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Create => "creating a lease",
            Self::Take { .. } => "taking a lease",
            Self::Ask { .. } => "requesting a handoff",
            Self::Withdraw => "withdrawing a handoff request",
            Self::Release => "releasing a lease",
            Self::Delete => "deleting a finished lease",
            Self::Discard => "removing a lease of a deleted stream",
        }
    }
}

pub(super) fn failure(operation: &'static str, error: &ServiceError) -> Action {
    Action::Emit(Event::CoordinationFailed {
        operation,
        error: error.to_string(),
        transient: error.is_transient(),
        call: error.call.clone(),
    })
}
