//! The facade: build a worker, start it, watch it, stop it.
//!
//! Its parts: [`start`] makes everything ready; the [`coordinator`] owns the leases and asks
//! [`state`] what to do; a [`lease_keeper`] per lease writes its row; a [`shard_task`] per lease
//! reads and processes. Control plane and data plane run on different threads by default.

mod builder;
mod children;
mod context;
mod coordinator;
mod handle;
mod lease_keeper;
pub(crate) mod liveness;
mod service_clock;
mod shard_task;
mod start;
mod state;
mod status;

pub use builder::{StreamSource, Worker, WorkerBuilder};
pub use handle::WorkerHandle;
pub use status::{Health, Report, ShardReport, ShardStatus, Status, WorkerState};
