//! The facade: build a worker, start it, watch it, stop it.
//!
//! Its parts: [`start`] makes everything ready; the [`coordinator`] owns the leases and asks
//! [`state`] what to do; a [`lease_keeper`] per lease writes its row; a [`shard_task`] per lease
//! reads and processes. Control plane and data plane run on different threads by default.

mod builder;
mod children;
mod coordinator;
mod handle;
mod lease_keeper;
mod liveness;
mod service_clock;
mod shard_task;
mod start;
mod state;

use std::collections::BTreeMap;
use std::time::Duration;

pub use builder::{StreamSource, Worker, WorkerBuilder};
pub use handle::WorkerHandle;

use crate::position::Checkpoint;
use crate::record::LeaseKey;

/// What a worker did with its shards when it stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The shards that were held when the stop was asked for.
    pub shards: BTreeMap<LeaseKey, ShardReport>,
}

/// How one shard was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardReport {
    /// Whether everything delivered was acknowledged and stored, so that nothing will be repeated.
    pub drained: bool,
    /// The checkpoint last stored.
    pub checkpoint: Checkpoint,
}

/// A worker at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Leases in the table that are not finished.
    pub leases: usize,
    /// The shards this worker holds.
    pub shards: BTreeMap<LeaseKey, ShardStatus>,
    /// What is wrong.
    pub health: Health,
    /// Records of aggregates since the start whose hash key belongs to another shard than the one
    /// they were read from: [`Settings::on_foreign`](crate::Settings::on_foreign).
    pub foreign_records: u64,
    /// Kinesis records since the start that say they are aggregates and cannot be unpacked. Each was
    /// delivered as it was read: [`Packing::Corrupt`](crate::Packing::Corrupt).
    pub corrupt_aggregates: u64,
}

/// What a worker sees going wrong: in its own shards, and in those that nobody reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the lease table cannot be used, if it has not been for a lease duration.
    pub table: Option<String>,
    /// Shards without progress, and the cause: held here and stuck or slow, held by nobody, or with a
    /// row that cannot be read.
    pub shards: BTreeMap<LeaseKey, String>,
}

impl Health {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.table.is_none() && self.shards.is_empty()
    }
}

/// A shard at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardStatus {
    /// The checkpoint it was taken with, or left with.
    pub checkpoint: Checkpoint,
    /// How far the last reply was behind the tip, in milliseconds; `None` before the first.
    pub millis_behind_latest: Option<u64>,
    /// Time since the shard last proved life: a reply, or a batch done.
    pub since_progress: Duration,
    /// Why it makes no progress, and for how long, if it makes none.
    pub trouble: Option<String>,
}
