//! What all shard tasks of a worker share, what one starts from, and how it ends: data only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::gap::Known;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::dead_letter::DeadLetter;
use crate::error::Error;
use crate::event::Events;
use crate::position::Cursor;
use crate::processor::{Factory, ShardContext};
use crate::settings::Settings;
use crate::shard::HashRange;
use crate::stream::Stream;
use crate::worker::service_clock::ServiceClock;

/// How a shard task ended.
#[derive(Debug, Clone)]
pub(crate) enum ShardExit {
    /// `SHARD_END` is stored.
    Ended,
    /// Let go on request; `clean` if everything delivered was acknowledged.
    Drained { clean: bool },
    /// Let go because it makes no progress here.
    GivenBack { reason: String },
    /// Let go because a policy says that the worker shall stop.
    Stop(Error),
    /// The lease was lost.
    Lost,
}

/// What all shard tasks of a worker share.
#[derive(Clone)]
pub(crate) struct ShardTaskContext {
    pub(crate) stream: Arc<dyn Stream>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) events: Events,
    pub(crate) factory: Factory,
    pub(crate) dead_letter: Option<Arc<dyn DeadLetter>>,
    pub(crate) service_clock: ServiceClock,
    /// The memory for the records of all shards.
    pub(crate) budget: Budget,
    /// Whether nothing may be delivered.
    pub(crate) paused: watch::Receiver<bool>,
    pub(crate) packing_faults: PackingFaults,
}

/// Where a tenure starts.
#[derive(Debug, Clone)]
pub(crate) struct ShardStart {
    pub(crate) shard: ShardContext,
    /// Where a reader starts when nothing is acknowledged yet.
    pub(crate) cursor: Cursor,
    pub(crate) known: Known,
    /// What the shard serves, if its row says so.
    pub(crate) hash_range: Option<HashRange>,
}

/// What was wrong with aggregates since the worker started. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackingFaults(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    misrouted: AtomicU64,
    corrupt: AtomicU64,
}

impl PackingFaults {
    /// Records whose hash key belongs to another shard.
    pub(crate) fn misrouted(&self) -> u64 {
        self.0.misrouted.load(Ordering::Relaxed)
    }

    pub(super) fn count_misrouted(&self, records: u64) {
        self.0.misrouted.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn count_corrupt(&self) {
        self.0.corrupt.fetch_add(1, Ordering::Relaxed);
    }

    /// Aggregates that could not be unpacked.
    pub(crate) fn corrupt(&self) -> u64 {
        self.0.corrupt.load(Ordering::Relaxed)
    }
}
