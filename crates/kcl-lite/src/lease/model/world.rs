//! One state of the model: rows, workers, and what is on its way between them.
//!
//! The rows change by `LeaseWrite::apply`; a holder believes and writes what its [`Tenure`] says; an
//! observer judges by its [`Observations`]; takes are recognised by [`Takes`]. The model adds the order
//! of things alone, and what may go wrong; it never decides what the library decides.

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

/// The ids of the workers, and those they may come back with.
const NAMES: [[&str; 2]; 3] = [["a", "x"], ["b", "y"], ["c", "z"]];

/// What the library's settings make of a lease duration.
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
            // Shorter than in the library, or the model would be too large. What matters is that nothing
            // is on its way for as long.
            finished_stays: lease_duration * 6,
        }
    }
}

/// Everything there is.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) bounds: Bounds,
    pub(super) times: Times,
    pub(super) start: Instant,
    pub(super) tick: u32,
    pub(super) shards: Vec<Shard>,
    pub(super) workers: Vec<Worker>,
    pub(super) wire: Vec<Message>,
    /// How many faults may still happen.
    pub(super) faults: u8,
    /// How many leases may still be asked for or let go.
    pub(super) moves: u8,
    /// The first promise that was broken.
    pub(super) broken: Option<String>,
    /// What has happened in this step, for the count of what was seen.
    pub(super) notes: Vec<&'static str>,
}

/// A row, and what the model knows beside it.
#[derive(Debug, Clone)]
pub(super) struct Shard {
    pub(super) row: Option<Lease>,
    /// How many records have been acknowledged, by whomever.
    pub(super) acknowledged: u8,
    /// Finished and deleted.
    pub(super) is_gone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// Stopped by the machine: its clock goes on.
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

/// What a worker has to do with one lease.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    /// The row as last read.
    pub(super) seen: Option<Lease>,
    /// The write whose answer is waited for, and when it was sent.
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

/// What the model knows of a hold and its holder does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// Its tenure of the row is over.
    pub(super) is_deposed: bool,
    /// It was ended by one who had asked and did not want to wait: the fence alone protects then.
    pub(super) is_overdue: bool,
}

/// A write on its way, or its answer.
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

/// What a write is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Create,
    /// Nobody has it, it is ours already, or it has expired.
    Take,
    /// It was asked for and is still not here.
    TakeOverdue,
    Ask,
    /// It was asked for, and is not wanted any more.
    Withdraw,
    /// A holder's write.
    Hold,
    Delete,
}

/// What the network does to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Fine,
    /// The write never arrives.
    Lost,
    /// It is applied; the answer never arrives.
    Unanswered,
    /// It arrives at any later moment.
    Late,
    /// It arrives at any later moment, and again.
    Twice,
    /// It is applied; the answer arrives later.
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
    /// With an id of its own, or the one before.
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

    /// Who waits for a take hears of no scan, and may try again by what it saw before.
    pub(super) fn misses_scan(&self) -> bool {
        self.slots.iter().any(|slot| slot.hold.is_none() && slot.waiting.is_some())
    }
}

impl Slot {
    /// Whether the worker holds the lease, or waits for an answer about it.
    pub(super) fn is_busy(&self) -> bool {
        self.hold.is_some() || self.waiting.is_some()
    }

    /// Whether another worker has asked `me` for the lease, as far as is known.
    pub(super) fn is_asked(&self, me: &WorkerId) -> bool {
        self.seen.as_ref().is_some_and(|row| row.checkpoint_owner.as_ref() == Some(me))
    }
}

impl World {
    /// Workers that have just started, and no rows.
    pub(super) fn new(bounds: Bounds) -> Self {
        let workers = 0..bounds.rates.len();
        let shard = Shard { row: None, acknowledged: 0, is_gone: false };
        let workers = workers.map(|of| Worker::new(of, 0, 1, bounds.leases));
        let mut world = Self {
            bounds,
            times: Times::of(Duration::from_secs(u64::from(bounds.lease_duration))),
            // Room for instants before the start.
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

    /// Now, by the clock of one worker.
    pub(super) fn now(&self, worker: usize) -> Instant {
        self.start + Duration::from_millis(u64::from(self.bounds.rates[worker])) * self.tick
    }

    pub(super) fn require(&mut self, holds: bool, promise: &str) {
        if !holds {
            self.broken.get_or_insert_with(|| promise.to_owned());
        }
    }

    /// Whether a worker, running or not, holds the lease by its own clock.
    pub(super) fn believes(&self, worker: usize, lease: usize) -> bool {
        self.workers[worker].slots[lease].hold.as_ref().is_some_and(|hold| {
            hold.goal == Goal::Keep && self.now(worker) < hold.tenure.fenced_at()
        })
    }
}
