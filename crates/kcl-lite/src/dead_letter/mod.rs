//! The port to a sink for dead letters, and two implementations.
//!
//! A record counts as acknowledged only after [`DeadLetter::store`] has returned `Ok`. An implementation
//! makes the record durable before that and need not retry, because the shard task does.

mod file;
mod kinesis;

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use file::JsonLines;
pub use kinesis::KinesisStream;

use crate::error::BoxError;
use crate::position::Position;
use crate::record::{ShardId, Timestamp};

/// A sink for poison records: those that the processor rejects
/// ([`Ack::reject`](crate::Ack::reject), [`PoisonRecord`](crate::PoisonRecord)), and with
/// [`FailurePolicy::DeadLetter`](crate::FailurePolicy::DeadLetter) those that keep failing.
///
/// One value serves all shards of a worker concurrently.
///
/// # Example: a file of JSON lines
/// ```no_run
/// use kcl_lite::Worker;
/// use kcl_lite::dead_letter::JsonLines;
///
/// let builder = Worker::builder("billing-app", "orders")
///     .dead_letter(JsonLines::open("dead-letters.jsonl")?);
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait DeadLetter: Send + Sync + fmt::Debug {
    /// Stores a record durably before it returns `Ok`. After an error, or after 30 s, the worker retries
    /// the same record with exponential backoff; until then the shard waits, and no checkpoint passes the
    /// record. A record can be stored twice, for instance after a crash.
    ///
    /// # Cancel safety
    /// The worker drops the future when the lease is lost; the next owner of the shard stores the record
    /// again.
    ///
    /// # Errors
    /// When the record may not have been stored.
    fn store<'a>(&'a self, letter: &'a DeadLetterRecord) -> BoxFuture<'a, Result<(), BoxError>>;
}

/// A dead letter: a record that could not be processed, and its error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterRecord {
    /// The stream, by the name or ARN that the builder received.
    pub stream: String,
    /// The shard.
    pub shard: ShardId,
    /// The position in the shard.
    pub position: Position,
    /// The key that selects the shard.
    pub partition_key: String,
    /// The payload.
    pub data: Bytes,
    /// The arrival time, by the service's clock.
    pub arrived: Timestamp,
    /// How often this record alone was delivered and failed, limited by the policy's
    /// [`attempts`](crate::FailurePolicy::DeadLetter::attempts). 0 if the processor rejected it.
    pub attempts: u32,
    /// The error with which the processor rejected the record, or its last error, down to the first
    /// cause; or the message of the panic.
    pub error: String,
}
