//! The shared context, the start and the exit of shard tasks: data only.

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

/// The way a shard task ended.
#[derive(Debug, Clone)]
pub(crate) enum ShardExit {
    /// `SHARD_END` is stored.
    Ended,
    /// Drained on request; `clean` if everything delivered was acknowledged.
    Drained { clean: bool },
    /// Released because the shard makes no progress here.
    Stalled { reason: String },
    /// Released because a policy stops the worker.
    Stop(Error),
    /// The lease was lost.
    Lost,
}

/// The context that all shard tasks of a worker share.
#[derive(Clone)]
pub(crate) struct ShardTaskContext {
    pub(crate) stream: Arc<dyn Stream>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) events: Events,
    pub(crate) factory: Factory,
    pub(crate) dead_letter: Option<Arc<dyn DeadLetter>>,
    pub(crate) service_clock: ServiceClock,
    /// The memory budget for the records of all shards.
    pub(crate) budget: Budget,
    /// Whether delivery is paused.
    pub(crate) paused: watch::Receiver<bool>,
    pub(crate) packing_faults: PackingFaults,
}

/// The start of a tenure.
#[derive(Debug, Clone)]
pub(crate) struct ShardStart {
    pub(crate) shard: ShardContext,
    /// The cursor while nothing is acknowledged yet.
    pub(crate) cursor: Cursor,
    pub(crate) known: Known,
    /// The hash range of the shard, if its row stores it.
    pub(crate) hash_range: Option<HashRange>,
}

/// Counters of faulty aggregates since the worker started. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackingFaults(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    misrouted: AtomicU64,
    corrupt: AtomicU64,
}

impl PackingFaults {
    /// Returns the number of misrouted records: their hash key belongs to another shard.
    pub(crate) fn misrouted(&self) -> u64 {
        self.0.misrouted.load(Ordering::Relaxed)
    }

    pub(super) fn count_misrouted(&self, records: u64) {
        self.0.misrouted.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn count_corrupt(&self) {
        self.0.corrupt.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of aggregates that could not be unpacked.
    pub(crate) fn corrupt(&self) -> u64 {
        self.0.corrupt.load(Ordering::Relaxed)
    }
}
