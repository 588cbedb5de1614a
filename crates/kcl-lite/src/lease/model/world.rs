//! One state of the model: rows, workers, and the messages in flight between them.
//!
//! The rows change by `LeaseWrite::apply`; an owner follows its [`Tenure`]; an observer judges by its
//! [`Observations`]; [`Takes`] recognises takes. The model adds only the order of events and the
//! faults; it never decides what the library decides.

use std::time::Duration;

use tokio::time::Instant;

use super::Bounds;
use crate::lease::expiry::Observations;
use crate::lease::store::WriteOutcome;
use crate::lease::taking::Takes;
use crate::lease::tenure::{Goal, Tenure};
use crate::lease::{Lease, LeaseKey, LeaseWrite, timing};
use crate::position::Checkpoint;
use crate::record::WorkerId;

/// The IDs of the workers, and those with which they may restart.
const NAMES: [[&str; 2]; 3] = [["a", "x"], ["b", "y"], ["c", "z"]];

/// The durations that the library derives from the lease duration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) lease_duration: Duration,
    pub(super) renew_interval: Duration,
    pub(super) fence_margin: Duration,
    pub(super) write_limit: Duration,
    pub(super) finished_stays: Duration,
}

impl Times {
    fn of(lease_duration: Duration) -> Self {
        Self {
            lease_duration,
            renew_interval: timing::renew_interval(lease_duration),
            fence_margin: timing::fence_margin(lease_duration),
            write_limit: timing::write_limit(lease_duration),
            // Shorter than in the library, or the model would be too large. All that matters is that
            // nothing is in flight for as long.
            finished_stays: lease_duration * 6,
        }
    }
}

/// The complete state.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) bounds: Bounds,
    pub(super) times: Times,
    pub(super) start: Instant,
    pub(super) tick: u32,
    pub(super) shards: Vec<Shard>,
    pub(super) workers: Vec<Worker>,
    pub(super) wire: Vec<Message>,
    /// How many more faults may happen.
    pub(super) faults: u8,
    /// How many more leases may be requested or released.
    pub(super) moves: u8,
    /// The first promise that was broken.
    pub(super) broken: Option<String>,
    /// The events of this step, for the statistics.
    pub(super) notes: Vec<&'static str>,
}

/// A row, and what the model knows about it.
#[derive(Debug, Clone)]
pub(super) struct Shard {
    pub(super) row: Option<Lease>,
    /// How many records have been acknowledged, by any worker.
    pub(super) acknowledged: u8,
    /// The lease is finished and its row deleted.
    pub(super) is_gone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// Stopped by the machine while its clock continues.
    Paused,
    Dead,
}

#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) incarnation: String,
    pub(super) lives: u8,
    pub(super) life: Life,
    pub(super) observations: Observations,
    pub(super) takes: Takes,
    pub(super) slots: Vec<Slot>,
}

/// The relation of a worker to one lease.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    /// The row as last read.
    pub(super) seen: Option<Lease>,
    /// The write whose reply is awaited, and when it was sent.
    pub(super) waiting: Option<(LeaseWrite, Instant)>,
    pub(super) hold: Option<Hold>,
}

#[derive(Debug, Clone)]
pub(super) struct Hold {
    pub(super) tenure: Tenure,
    pub(super) goal: Goal,
    pub(super) acknowledged: u8,
    pub(super) fate: Fate,
}

/// What the model knows of a hold but its owner does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// The tenure of the row is over.
    pub(super) is_deposed: bool,
    /// It was ended by a takeover without waiting for the handoff: only the fence protects then.
    pub(super) is_overdue: bool,
}

/// A write in flight, or the reply to it.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) from: usize,
    pub(super) lease: usize,
    pub(super) write: LeaseWrite,
    pub(super) sent: Instant,
    pub(super) reply: Option<WriteOutcome>,
    /// Whether the sender still waits.
    pub(super) is_awaited: bool,
    pub(super) why: Why,
    /// What the sender had acknowledged.
    pub(super) acknowledged: u8,
    pub(super) fate: Fate,
}

/// The purpose of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Create,
    /// The lease is unowned, already ours, or expired.
    Take,
    /// The lease was requested and has not been handed over yet.
    TakeOverdue,
    Ask,
    /// The lease was requested, and is not wanted any more.
    Withdraw,
    /// A write of the owner.
    Hold,
    Delete,
}

/// What the network does to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Fine,
    /// The write never arrives.
    Lost,
    /// The write is applied; the reply is lost.
    Unanswered,
    /// The write arrives at any later time.
    Late,
    /// The write arrives at any later time, twice.
    Twice,
    /// The write is applied; the reply arrives later.
    Slow,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Tick,
    Arrives(usize),
    Pause(usize),
    Resume(usize),
    Crash(usize),
    /// Restarts with the same worker ID (0) or another one (1).
    Restart(usize, usize),
    Look(usize),
    Acknowledge(usize, usize),
    Leave(usize, usize),
    End(usize, usize),
    Write(usize, usize, Why, Network),
}

pub(super) fn at(position: u8) -> Checkpoint {
    if position == 0 {
        return Checkpoint::TrimHorizon;
    }
    Checkpoint::parse(&position.to_string(), 0).unwrap()
}

pub(super) fn position(row: &Lease, records: u8) -> u8 {
    match &row.checkpoint {
        Checkpoint::At(position) => position.sequence_number.as_str().parse().unwrap(),
        Checkpoint::ShardEnd => records,
        Checkpoint::TrimHorizon | Checkpoint::Latest | Checkpoint::AtTimestamp => 0,
    }
}

pub(super) fn key(lease: usize) -> LeaseKey {
    ["shardId-0", "shardId-1"][lease].into()
}

impl Worker {
    pub(super) fn new(of: usize, name: usize, lives: u8, leases: usize) -> Self {
        let id = NAMES[of][name];
        Self {
            id: id.into(),
            incarnation: format!("{id}#{lives}"),
            lives,
            life: Life::Running,
            observations: Observations::default(),
            takes: Takes::default(),
            slots: vec![Slot::default(); leases],
        }
    }

    /// Returns whether the worker skips scans: one that awaits a take gets none, and may retry by
    /// what it saw before.
    pub(super) fn misses_scan(&self) -> bool {
        self.slots.iter().any(|slot| slot.hold.is_none() && slot.waiting.is_some())
    }
}

impl Slot {
    /// Returns whether the worker holds the lease or awaits a reply about it.
    pub(super) fn is_busy(&self) -> bool {
        self.hold.is_some() || self.waiting.is_some()
    }

    /// Returns whether another worker has requested the lease from `me`, as far as is known.
    pub(super) fn is_asked(&self, me: &WorkerId) -> bool {
        self.seen.as_ref().is_some_and(|row| row.checkpoint_owner.as_ref() == Some(me))
    }
}

impl World {
    /// Creates a world of workers that have just started.
    pub(super) fn new(bounds: Bounds) -> Self {
        let workers = 0..bounds.rates.len();
        let shard = Shard { row: None, acknowledged: 0, is_gone: false };
        let workers = workers.map(|of| Worker::new(of, 0, 1, bounds.leases));
        let mut world = Self {
            bounds,
            times: Times::of(Duration::from_secs(u64::from(bounds.lease_duration))),
            // Leaves room for instants before the start.
            start: Instant::now() + Duration::from_secs(1_000),
            tick: 0,
            shards: vec![shard; bounds.leases],
            workers: workers.collect(),
            wire: Vec::new(),
            faults: bounds.faults,
            moves: bounds.moves,
            broken: None,
            notes: Vec::new(),
        };
        if !bounds.whole_life {
            for (lease, shard) in world.shards.iter_mut().enumerate() {
                shard.row = Some(Lease::new(key(lease), at(0)));
            }
            (0..world.workers.len()).for_each(|worker| world.look(worker));
        }
        world
    }

    /// Returns the current time on the clock of one worker.
    pub(super) fn now(&self, worker: usize) -> Instant {
        self.start + Duration::from_millis(u64::from(self.bounds.rates[worker])) * self.tick
    }

    pub(super) fn require(&mut self, holds: bool, promise: &str) {
        if !holds {
            self.broken.get_or_insert_with(|| promise.to_owned());
        }
    }

    /// Returns whether a worker, running or not, holds the lease by its own clock.
    pub(super) fn believes(&self, worker: usize, lease: usize) -> bool {
        self.workers[worker].slots[lease].hold.as_ref().is_some_and(|hold| {
            hold.goal == Goal::Keep && self.now(worker) < hold.tenure.fenced_at()
        })
    }
}
