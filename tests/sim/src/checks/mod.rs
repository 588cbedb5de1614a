//! The promises, checked against the observations of the world.
//!
//! The [`Ledger`] receives every change of the table with its true author, every delivery and
//! acknowledgement, and every end. It never asks the library. The first broken promise is kept; its
//! consequences are ignored.

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

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The promise.
    pub promise: Promise,
    /// The time since the beginning of the run.
    pub at: Duration,
    /// The shard, if it concerns one.
    pub shard: Option<String>,
    /// The details.
    pub text: String,
}

/// The promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// All records that a checkpoint covers were acknowledged.
    Loss,
    /// Parents are read before children, and records in order.
    Order,
    /// A checkpoint never moves back, and a finished shard stays finished.
    Monotone,
    /// Only the owner writes, and only the owner delivers.
    Fence,
    /// A lease is taken only when it is unowned, expired or requested in time.
    Take,
    /// Only records that were not checkpointed are delivered again; none after a graceful shutdown.
    Repeats,
    /// Callbacks are called in their order, one at a time.
    Lifecycle,
    /// Lease rows are created and deleted by the rules.
    Rows,
    /// Records that can be read are delivered.
    Progress,
    /// Leases are balanced, and stay where they are.
    Balance,
    /// The number of calls stays within the documented budget.
    Budget,
    /// Every problem is reported, and nothing else.
    Truth,
    /// Nothing runs after a shutdown.
    Remains,
    /// The library does not panic and does not stop on its own.
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

/// A change of a row, with its true author.
pub(crate) struct Change<'a> {
    pub(crate) at: Duration,
    pub(crate) sent: Duration,
    /// The author's incarnation.
    pub(crate) who: usize,
    pub(crate) id: &'a WorkerId,
    pub(crate) what: &'a LeaseChange,
    pub(crate) key: &'a LeaseKey,
    /// Whether workers had to leave the leases alone at that time: see [`Shards::is_refused`].
    pub(crate) is_refused: bool,
    pub(crate) before: Option<&'a Lease>,
    pub(crate) after: Option<&'a Lease>,
}

/// The state of the checks.
pub(crate) struct Ledger {
    rules: Rules,
    /// By the number of the shard.
    leases: BTreeMap<usize, Facts>,
    calls: BTreeMap<(usize, u64), Calls>,
    moved_at: Duration,
    /// When each incarnation was started.
    pub(crate) born: BTreeMap<usize, Duration>,
    /// Since when each incarnation reports its health.
    heard: BTreeMap<usize, Duration>,
    /// When an operator last deleted a row by hand.
    pub(crate) forgotten_at: Duration,
    /// When a shard was last finished, which leaves the leases unbalanced for a while.
    finished_at: Duration,
    /// When a lease last moved from one live worker to another.
    handed_at: Duration,
    /// When a lease was last created or deleted.
    pub(crate) listed_at: Duration,
    violation: Option<Violation>,
    pub(crate) counts: Counts,
}

/// The identity of a tenure: the incarnation, and the counter when it took the lease.
pub(crate) type TenureId = (usize, u64);

/// The observations of one lease.
#[derive(Debug, Default)]
struct Facts {
    tenures: BTreeMap<TenureId, Tenure>,
    current: Option<TenureId>,
    /// When the counter last changed.
    changed: Duration,
    /// The worker that requested it, its incarnation, and when the request was written.
    asked: Option<(WorkerId, usize, Duration)>,
    best: Option<Checkpoint>,
    /// When its records were last delivered.
    delivered: Duration,
    /// Up to where everything was acknowledged when that last advanced, and when it did.
    progress: (usize, Duration),
    /// When a worker last reported a problem with it.
    named: Duration,
    token: u64,
    finished: Option<Duration>,
}

/// The observations of one tenure.
#[derive(Debug)]
struct Tenure {
    id: WorkerId,
    /// When the newest applied write was sent.
    proof: Duration,
    /// When the newest renewal that was applied and answered was sent: the owner's own knowledge.
    known: Duration,
    end: Option<(Duration, End)>,
    /// Where the first delivery has to start.
    start: usize,
    /// The index after the last delivered record.
    next: Option<usize>,
    /// When the processor was requested to stop, and up to where everything was acknowledged then.
    asked_to_stop: Option<(Duration, usize)>,
}

/// How a tenure ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Released,
    Finished,
    Expired,
    /// Taken over: its owner was sent a request, and did not hand off in time.
    Forced,
}

/// The parameters of the promises.
#[derive(Debug, Clone)]
struct Rules {
    lasts: Duration,
    /// The extra time that everything may take.
    poll: Duration,
    audit: Duration,
    calm_at: Duration,
    slow_after: Duration,
    /// Whether checkpoints are written after every batch.
    eager: bool,
    /// Whether the run has no faults.
    calm: bool,
    /// Whether the run has no fault except a busy owner: see [`Plan::with_busy_owner`].
    busy_owner: bool,
    /// The slot that may hold only one lease: see [`Plan::with_full_worker`].
    full_slot: Option<usize>,
}

/// The calls of one worker in one minute.
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

    /// Keeps the first violation.
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

    /// Notes that the sender has learned that its write was applied.
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
