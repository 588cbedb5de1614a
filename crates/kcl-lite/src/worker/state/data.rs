//! What the coordinator knows, what can happen to it, and what it may decide to do: data only.
//!
//! The rules are in the files beside this one, each with an `impl State` of its own.

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

/// Everything that can happen to a coordinator.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and most are answers to writes")]
pub(crate) enum Input {
    /// A timer of [`State::next_due`] is due.
    TimeDue,
    /// The scan came back.
    Scanned(Result<Table, ServiceError>),
    /// One row came back.
    Looked { key: LeaseKey, result: Result<Option<Lease>, ServiceError> },
    /// The listing of a stream came back.
    Listed { stream: StreamKey, result: Result<Listing, ServiceError> },
    /// A create, take or delete came back; its first attempt was sent at `sent`.
    Wrote { write: LeaseWrite, why: Why, sent: Instant, result: Result<WriteOutcome, ServiceError> },
    /// Keeper and shard task of a lease are both gone; the row as the keeper last knew it.
    TenureEnded { key: LeaseKey, row: Option<Lease>, how: Ending },
    /// A reader was told that its shard or stream does not exist.
    ReaderMissesShard(StreamKey),
    /// The user wants this worker to hold nothing (`true`), or to take its part again.
    DrainRequested(bool),
    /// The user wants to stop.
    StopRequested,
}

/// How a tenure ended, as far as it matters for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The shard was finished, handed over or released in good order.
    Usual,
    /// The shard was given back because it made no progress here: let another worker try first.
    GivenBack { reason: String },
}

/// A lease that was given back here.
#[derive(Debug, Clone)]
pub(super) struct Stuck {
    pub(super) reason: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) read_until: Option<Timestamp>,
}

/// What a write was for.
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

/// What the coordinator is to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Read all leases.
    Scan,
    /// Read the row of one lease.
    Look(LeaseKey),
    /// List the shards of a stream, and see whether it is still the same stream.
    List(StreamKey),
    /// Write, trying again while the answer is unknown.
    Write(LeaseWrite, Why),
    /// Start keeper and shard task for a lease that is ours since `sent`.
    Start { lease: Box<Lease>, sent: Instant },
    /// Let one held shard go in good order: another worker has asked for it.
    Drain(LeaseKey),
    /// Let every held shard go in good order.
    DrainAll,
    /// Tell the world.
    Emit(Event),
    /// Stop in good order, because of this.
    Fail(Error),
}

/// How old the picture is that takes are decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// The table has just been read.
    Fresh,
    /// It was read some time ago.
    Stale,
}

/// What a worker knows and has under way.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) me: WorkerId,
    pub(super) incarnation: String,
    pub(super) settings: Arc<Settings>,
    pub(super) leases: BTreeMap<LeaseKey, Lease>,
    /// Rows that cannot be read.
    pub(super) unreadable: BTreeMap<LeaseKey, String>,
    /// Rows that are, or ought to be, in the table, and of which nothing is known now.
    pub(super) hidden: BTreeSet<LeaseKey>,
    pub(super) streams: BTreeMap<StreamKey, StreamState>,
    pub(super) observations: Observations,
    /// Held or being taken.
    pub(super) mine: BTreeSet<LeaseKey>,
    pub(super) taking: BTreeSet<LeaseKey>,
    /// Takes that were never answered.
    pub(super) takes: Takes,
    /// Rows that were there and are not: deleted by hand, or finished and removed.
    pub(super) vanished: BTreeMap<LeaseKey, Vanished>,
    /// Leases that other workers were asked for.
    pub(super) asked: BTreeMap<LeaseKey, HandoffRequest>,
    /// Rows being created or deleted.
    pub(super) writing: BTreeSet<LeaseKey>,
    /// Leases that made no progress here, and until when they are left to others.
    pub(super) given_back: BTreeMap<LeaseKey, Instant>,
    /// The other workers that take no more leases.
    pub(super) full: Full,
    /// Leases that made no progress here, and have made none since.
    pub(super) stuck: BTreeMap<LeaseKey, Stuck>,
    /// Since when the table has shown the leases that may be read, and that this worker does not hold.
    pub(super) runnable: BTreeMap<LeaseKey, Instant>,
    pub(super) duplicates: Duplicates,
    /// Leases that were lost, as far as we have not had them since.
    pub(super) lost: BTreeSet<LeaseKey>,
    pub(super) scanning: bool,
    /// When the scan that is under way, or the last one, was asked for.
    pub(super) scan_asked_at: Instant,
    /// Rows that an answer of their own has shown since then: a scan that is older knows less.
    pub(super) learned: BTreeMap<LeaseKey, Instant>,
    /// When the newest scan that was answered had been asked for.
    pub(super) table_asked_at: Instant,
    /// Whether the table has been read since the start.
    pub(super) has_read_table: bool,
    /// When the table was last read.
    pub(super) scanned_at: Instant,
    /// Why it could not be read since.
    pub(super) table_trouble: Option<String>,
    pub(super) next_scan: Instant,
    /// When rows that are being handed over are looked at by themselves.
    pub(super) next_look: Option<Instant>,
    /// When takes were last decided.
    pub(super) decided_at: Instant,
    pub(super) failed_scans: u32,
    /// Scans in a row that said that the table does not exist.
    pub(super) missing_scans: u32,
    /// Since when no scan has failed.
    pub(super) readable_since: Instant,
    pub(super) standing_by: bool,
    pub(super) draining: bool,
    pub(super) stopping: bool,
}

/// One stream, as the coordinator follows it.
#[derive(Debug)]
pub(super) struct StreamState {
    pub(super) source: Source,
    pub(super) listing: bool,
    pub(super) next_audit: Instant,
    /// Audits that were due so far.
    pub(super) turns: usize,
    /// Something looks wrong: list at the next occasion, whoever's turn it is.
    pub(super) is_wanted: bool,
    /// When the shards were last listed.
    pub(super) listed_at: Instant,
    /// Listings in a row that said that the stream does not exist.
    pub(super) missing_listings: u32,
    /// It does not exist any more; nothing is asked about it again.
    pub(super) is_gone: bool,
}

/// A row that is no longer in the table, as it was last seen.
#[derive(Debug)]
pub(super) struct Vanished {
    pub(super) since: Instant,
    pub(super) row: Lease,
}

/// A request for a lease that has been answered with yes.
#[derive(Debug)]
pub(super) struct HandoffRequest {
    /// When it was first asked for. A take that is refused does not change it.
    pub(super) since: Instant,
    pub(super) from: WorkerId,
    /// The owner's counter at that time.
    pub(super) counter: u64,
    /// When its row was last looked at by itself.
    pub(super) looked: Instant,
    /// Takes that were refused since then.
    pub(super) refused: u32,
}

/// What is known of other workers with our id.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    /// What the first scan showed as ours, with the counter.
    pub(super) legacy: Option<BTreeMap<LeaseKey, u64>>,
    /// Leases of another living worker with our id, by its mark.
    pub(super) leases: BTreeMap<LeaseKey, String>,
    pub(super) since: Option<Instant>,
}

impl Stuck {
    pub(super) fn at(row: &Lease, reason: String) -> Self {
        Self { reason, checkpoint: row.checkpoint.clone(), read_until: row.read_until }
    }

    /// Whether nothing has been done since, and nobody else has it.
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
            Self::Withdraw => "withdrawing a request for a handoff",
            Self::Release => "releasing a lease",
            Self::Delete => "deleting a finished lease",
            Self::Discard => "removing a lease of a stream that is gone",
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
