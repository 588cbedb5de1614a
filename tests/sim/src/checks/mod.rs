//! The promises, checked against what the world saw.
//!
//! The [`Ledger`] is told of every change of the table and by whom it was really made, of every
//! delivery and acknowledgement, and of every end. It never asks the library. The first broken
//! promise is kept; what follows from it is not looked at.

mod delivery;
mod health;
mod settled;
mod table;

pub(crate) use delivery::{Delivery, NOT_COUNTED};

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kcl_lite::lease::{Lease, LeaseChange, LeaseKey};
use kcl_lite::{Checkpoint, CheckpointPolicy, WorkerId};

use crate::plan::{Plan, Theme};
use crate::reached::Counts;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub promise: Promise,
    /// When, from the beginning of the run.
    pub at: Duration,
    /// The shard, if it is about one.
    pub shard: Option<String>,
    /// In which way.
    pub text: String,
}

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// What a checkpoint covers was acknowledged.
    Loss,
    /// Parents before children, and records in order.
    Order,
    /// A checkpoint never moves back, and what is finished stays finished.
    Monotone,
    /// Only the owner writes, and only the owner delivers.
    Fence,
    /// A lease is taken only when it is free, expired or asked for in time.
    Take,
    /// What is delivered again was not stored yet; nothing after a stop in good order.
    Repeats,
    /// Callbacks come in their order, one at a time.
    Lifecycle,
    /// Leases are made and removed by the rules.
    Rows,
    /// What is there to be read is delivered.
    Progress,
    /// Leases are shared evenly, and stay where they are.
    Balance,
    /// Calls are as few as stated.
    Budget,
    /// What is wrong is said, and nothing else.
    Truth,
    /// Nothing runs after a stop.
    Remains,
    /// The library does not panic and does not stop by itself.
    Sound,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shard = self.shard.as_deref().map(|it| format!(" {it}:")).unwrap_or_default();
        write!(
            f,
            "{:?} broken at {:.3} s:{shard} {}",
            self.promise,
            self.at.as_secs_f64(),
            self.text
        )
    }
}

/// A change of a row, and who really made it.
pub(crate) struct Change<'a> {
    pub(crate) at: Duration,
    pub(crate) sent: Duration,
    /// The incarnation.
    pub(crate) who: usize,
    pub(crate) id: &'a WorkerId,
    pub(crate) what: &'a LeaseChange,
    pub(crate) key: &'a LeaseKey,
    /// Whether the leases were to be left alone then: see [`Shards::is_refused`].
    pub(crate) is_refused: bool,
    pub(crate) before: Option<&'a Lease>,
    pub(crate) after: Option<&'a Lease>,
}

/// Everything that the checkers remember.
pub(crate) struct Ledger {
    rules: Rules,
    /// By the numbers of their shards.
    leases: BTreeMap<usize, Facts>,
    calls: BTreeMap<(usize, u64), Calls>,
    moved_at: Duration,
    /// When each incarnation was started.
    pub(crate) born: BTreeMap<usize, Duration>,
    /// Since when each incarnation tells how it is.
    heard: BTreeMap<usize, Duration>,
    /// When somebody last deleted a row by hand.
    pub(crate) forgotten_at: Duration,
    /// When a shard was last finished: that leaves loads uneven for a while.
    finished_at: Duration,
    /// When a lease last went from one live worker to another.
    handed_at: Duration,
    /// When a lease was last made or removed.
    pub(crate) listed_at: Duration,
    violation: Option<Violation>,
    pub(crate) counts: Counts,
}

/// Which tenure: the incarnation, and the counter when it took the lease.
pub(crate) type TenureId = (usize, u64);

/// What was seen of one lease.
#[derive(Debug, Default)]
struct Facts {
    tenures: BTreeMap<TenureId, Tenure>,
    current: Option<TenureId>,
    /// When the counter last changed.
    changed: Duration,
    /// Who asked for it, as which incarnation, and when that was written.
    asked: Option<(WorkerId, usize, Duration)>,
    best: Option<Checkpoint>,
    /// When records of it were last delivered.
    delivered: Duration,
    /// Up to where all was acknowledged when that last moved, and when it did.
    progress: (usize, Duration),
    /// When a worker last said that something is wrong with it.
    named: Duration,
    token: u64,
    finished: Option<Duration>,
}

/// One hold of one worker on one lease.
#[derive(Debug)]
struct Tenure {
    id: WorkerId,
    /// When the newest write that was applied was sent.
    proof: Duration,
    /// When the newest renewal that was applied and answered was sent: what its owner knows.
    known: Duration,
    end: Option<(Duration, End)>,
    /// Where the first delivery has to start.
    start: usize,
    /// One past the last record that was delivered.
    next: Option<usize>,
    /// When the processor was asked to stop, and up to where all was acknowledged then.
    asked_to_stop: Option<(Duration, usize)>,
}

/// How a tenure ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Released,
    Finished,
    Expired,
    /// Its owner was asked, and did not let go in time.
    Forced,
}

/// What the promises are made of.
#[derive(Debug, Clone)]
struct Rules {
    lasts: Duration,
    /// Everything may take this much longer.
    poll: Duration,
    audit: Duration,
    calm_at: Duration,
    slow_after: Duration,
    /// Checkpoints are written after every batch.
    eager: bool,
    /// Nothing goes wrong.
    calm: bool,
    /// Nothing goes wrong, except that one owner is busy: see [`Plan::with_busy_owner`].
    busy_owner: bool,
    /// The slot that may hold one lease: see [`Plan::with_full_worker`].
    full_slot: Option<usize>,
}

/// Calls of one worker in one minute.
#[derive(Debug, Default, Clone, Copy)]
struct Calls {
    scans: u64,
    writes: u64,
    lists: u64,
}

impl Ledger {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            rules: Rules {
                lasts: plan.lease_duration,
                poll: plan.poll_interval,
                audit: plan.audit_interval,
                calm_at: plan.calm_at,
                slow_after: plan.slow_after,
                calm: plan.theme == Theme::Calm,
                busy_owner: plan.busy_owner,
                full_slot: plan.full_slot(),
                eager: plan.checkpoints != CheckpointPolicy::OnRenewal,
            },
            leases: BTreeMap::new(),
            calls: BTreeMap::new(),
            moved_at: Duration::ZERO,
            born: BTreeMap::new(),
            heard: BTreeMap::new(),
            forgotten_at: Duration::ZERO,
            finished_at: Duration::ZERO,
            handed_at: Duration::ZERO,
            listed_at: Duration::ZERO,
            violation: None,
            counts: Counts::default(),
        }
    }

    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// Keeps the first one.
    pub(crate) fn broken(
        &mut self,
        promise: Promise,
        at: Duration,
        shard: Option<&dyn fmt::Display>,
        text: String,
    ) {
        let shard = shard.map(ToString::to_string);
        self.violation.get_or_insert(Violation { promise, at, shard, text });
    }

    pub(crate) fn scanned(&mut self, who: usize, now: Duration) {
        self.calls.entry((who, now.as_secs() / 60)).or_default().scans += 1;
    }

    /// Its sender has learned that a write was applied.
    pub(crate) fn answered(&mut self, who: usize, shard: usize, sent: Duration) {
        let facts = self.leases.get_mut(&shard);
        let current = facts.and_then(|it| {
            let current = it.current.filter(|(of, _)| *of == who)?;
            it.tenures.get_mut(&current)
        });
        if let Some(tenure) = current {
            tenure.known = tenure.known.max(sent);
        }
    }

    pub(crate) fn wrote(&mut self, who: usize, now: Duration) {
        self.calls.entry((who, now.as_secs() / 60)).or_default().writes += 1;
    }

    pub(crate) fn listed(&mut self, who: usize, now: Duration) {
        self.calls.entry((who, now.as_secs() / 60)).or_default().lists += 1;
    }
}
