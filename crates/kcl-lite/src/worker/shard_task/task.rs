//! The data of a shard task, and the ways a pass ends.
//!
//! The behaviour is in the sibling modules, each with an `impl ShardTask` of its own.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bisect::Bisection;
use super::context::{ShardStart, ShardTaskContext};
use super::gap::Known;
use super::unpack::Unpacker;
use crate::budget::Account;
use crate::checkpoint::Mark;
use crate::error::Error;
use crate::position::Cursor;
use crate::processor::ShardContext;
use crate::retry::Retry;
use crate::shard::ChildShard;
use crate::worker::lease_keeper::KeeperLink;
use crate::worker::liveness::{Activity, Progress};

/// The task of one shard.
pub(crate) struct ShardTask {
    pub(super) context: ShardTaskContext,
    pub(super) shard: ShardContext,
    pub(super) cursor: Cursor,
    pub(super) known: Known,
    pub(super) unpacker: Unpacker,
    pub(super) gap: GapCheck,
    pub(super) keeper: KeeperLink,
    pub(super) drain: CancellationToken,
    pub(super) progress: Arc<Mutex<Progress>>,
    pub(super) memory: Arc<Account>,
    /// The newest acknowledged position of this tenure, over all passes.
    pub(super) acknowledged: Option<Mark>,
    /// When it last advanced, or when the oldest record in flight was delivered, if later.
    pub(super) moved_at: Instant,
    pub(super) failures: Failures,
    pub(super) rng: fastrand::Rng,
}

/// The state of the check for a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GapCheck {
    /// Nothing has been read yet.
    Open,
    /// The event was emitted; the callback has not succeeded yet.
    Announced,
    /// There is no gap, or the processor has been notified.
    Settled,
}

/// The way a pass ended.
pub(super) enum Pass {
    Ended(Vec<ChildShard>),
    Drained {
        clean: bool,
    },
    ReleaseShard(String),
    Stop(Error),
    /// A callback exceeded its deadline.
    TooLong(String),
    /// A new processor starts: at once if the failed part is bisected or dead-lettered, else after a pause.
    Again {
        failures: u32,
        error: String,
        at_once: bool,
    },
}

/// The failures since a record was last processed.
pub(super) struct Failures {
    pub(super) bisection: Bisection,
    /// Dead letters since a record was processed.
    pub(super) dead_letters_in_a_row: u32,
    /// Passes that failed outside `process` since a record was last acknowledged.
    pub(super) failed_passes: u32,
    /// When the current series of failures began.
    pub(super) failing_since: Option<Instant>,
    /// The processor panicked, or failed to initialize: it gets no further call.
    pub(super) is_dead: bool,
    pub(super) retry: Retry,
}

impl Failures {
    pub(super) fn new() -> Self {
        Self {
            bisection: Bisection::default(),
            dead_letters_in_a_row: 0,
            failed_passes: 0,
            failing_since: None,
            is_dead: false,
            retry: Retry::new(Duration::from_millis(100), Duration::from_secs(30)),
        }
    }

    /// Ends the series of failures, after a record was processed.
    pub(super) fn succeeded(&mut self) {
        self.failed_passes = 0;
        self.failing_since = None;
    }
}

impl ShardTask {
    pub(crate) fn new(
        context: ShardTaskContext,
        start: ShardStart,
        keeper: KeeperLink,
        drain: CancellationToken,
        progress: Arc<Mutex<Progress>>,
        rng: fastrand::Rng,
    ) -> Self {
        let (key, checkpoint) = (start.shard.lease_key.clone(), &start.known.checkpoint);
        let now = context.clock.now();
        Self {
            memory: Arc::new(context.budget.account()),
            context,
            unpacker: Unpacker::new(key, start.hash_range, checkpoint),
            shard: start.shard,
            cursor: start.cursor,
            known: start.known,
            gap: GapCheck::Open,
            keeper,
            drain,
            progress,
            acknowledged: None,
            moved_at: now,
            failures: Failures::new(),
            rng,
        }
    }

    /// Returns the memory account of the shard.
    pub(crate) fn memory(&self) -> &Arc<Account> {
        &self.memory
    }

    pub(super) fn doing(&self, activity: Activity) {
        self.doing_since(activity, self.context.clock.now());
    }

    pub(super) fn doing_since(&self, activity: Activity, since: Instant) {
        self.progress.lock().doing(activity, since);
    }
}
