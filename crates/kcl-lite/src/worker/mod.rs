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
pub(crate) mod liveness;
mod service_clock;
mod shard_task;
mod start;
mod state;
mod status;

use std::collections::BTreeMap;

pub use builder::{StreamSource, Worker, WorkerBuilder};
pub use handle::WorkerHandle;
pub use status::{Health, ShardStatus, Status, WorkerState};

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
