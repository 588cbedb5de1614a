//! The task of one shard as data: what it holds, and how a pass ends.
//!
//! What it does stands in the files beside this one, each with an `impl ShardTask` of its own.

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
    /// When that was, or when the oldest record in flight was delivered, if that is later.
    pub(super) moved_at: Instant,
    pub(super) failures: Failures,
    pub(super) rng: fastrand::Rng,
}

/// What has been done about records that aged out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GapCheck {
    /// Nothing has been read yet.
    Open,
    /// The event is out; the callback may have to be repeated.
    Announced,
    /// There was none, or the processor knows.
    Settled,
}

/// How one pass ended.
pub(super) enum Pass {
    Ended(Vec<ChildShard>),
    Drained {
        clean: bool,
    },
    ReleaseShard(String),
    Stop(Error),
    /// A callback took too long.
    TooLong(String),
    /// A new processor starts, after a pause unless something else is tried then.
    Again {
        failures: u32,
        error: String,
        at_once: bool,
    },
}

/// What has failed since something was processed.
pub(super) struct Failures {
    pub(super) bisection: Bisection,
    /// Dead letters since a record was processed.
    pub(super) dead_letters_in_a_row: u32,
    /// Passes that failed without a batch since something was acknowledged.
    pub(super) failed_passes: u32,
    /// When the failures began that nothing has followed yet.
    pub(super) failing_since: Option<Instant>,
    /// The processor panicked, or never started: it gets no other call.
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

    /// Something was processed: whatever failed before is over.
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

    /// What the shard's records are counted in.
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
