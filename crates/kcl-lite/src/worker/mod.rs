//! The worker: building, starting, observing and stopping it.
//!
//! [`start`] prepares streams, table and leases; the [`coordinator`] owns the leases and executes the
//! decisions of [`state`]; one [`lease_keeper`] per held lease writes its row; one [`shard_task`] per held
//! lease reads and processes. Control plane and data plane run on different threads by default.

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
