//! A Kinesis consumer library with leases, checkpoints and resharding, and one method to implement.
//!
//! The README follows, so that its example is compiled.
#![doc = include_str!("../README.md")]

pub mod aws;
mod budget;
mod checkpoint;
pub mod clock;
pub mod dead_letter;
mod error;
mod event;
mod failed_call;
mod heartbeat;
mod identity;
pub mod lease;
mod position;
mod processor;
mod record;
pub mod reset;
mod retry;
mod settings;
mod shard;
pub mod stream;
mod worker;

pub use checkpoint::Ack;
pub use error::{
    BoxError, Error, ErrorKind, FailedCall, PoisonRecord, ServiceError, ServiceErrorKind,
};
pub use event::{Event, Severity, TakeReason};
pub use heartbeat::Heartbeat;
pub use lease::PendingCheckpoint;
pub use lease::balance::{Explanation, Intent};
pub use position::{Checkpoint, Cursor, Gap, InitialPosition, InvalidCheckpoint, Position};
pub use processor::{Batch, Checkpointer, LeaseLost, RecordProcessor, Resume, ShardContext};
pub use record::{
    HashKey, InvalidSequenceNumber, LeaseKey, Packing, Record, SequenceNumber, ShardId, Timestamp,
    WorkerId,
};
pub use settings::{
    Balance, Billing, CheckpointPolicy, ControlPlane, CreateTable, FailurePolicy, GapPolicy,
    MisroutedPolicy, Retrieval, Settings, StreamConsumer, StreamRecreated, TableOptions,
};
pub use shard::{ChildShard, HashRange, Shard};
pub use worker::{
    Health, Report, ShardReport, ShardStatus, Status, StreamSource, Worker, WorkerBuilder,
    WorkerHandle, WorkerState,
};
