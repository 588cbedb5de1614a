//! The port to where poison records go, and two ready places.
//!
//! A record counts as acknowledged only after [`DeadLetter::store`] has returned `Ok`. Whoever
//! implements it makes the record durable before that; trying again is the shard's business.

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

/// A place for poison records: those that the processor rejects
/// ([`Ack::reject`](crate::Ack::reject), [`PoisonRecord`](crate::PoisonRecord)), and with
/// [`FailurePolicy::DeadLetter`](crate::FailurePolicy::DeadLetter) those that keep failing.
///
/// One value serves all shards of a worker at the same time.
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
    /// Stores a record; `Ok` means that it will not be lost. After an error, or when it takes longer
    /// than 30 s, it is called again with the same record, later and later: the shard waits, and no
    /// checkpoint passes the record. May store a record twice, after a crash for instance.
    ///
    /// # Cancel safety
    /// The future is dropped when the lease is lost; the next owner of the shard starts again.
    ///
    /// # Errors
    /// When the record may not be stored.
    fn store<'a>(&'a self, letter: &'a DeadLetterRecord) -> BoxFuture<'a, Result<(), BoxError>>;
}

/// A record that could not be processed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterRecord {
    /// The stream, by name or ARN as the worker was told.
    pub stream: String,
    /// The shard.
    pub shard: ShardId,
    /// Its place in the shard.
    pub position: Position,
    /// The key that chose the shard.
    pub partition_key: String,
    /// The payload.
    pub data: Bytes,
    /// When the service received it.
    pub arrived: Timestamp,
    /// How often this record alone was delivered and failed: what the policy's
    /// [`attempts`](crate::FailurePolicy::DeadLetter::attempts) limits. 0 if the processor rejected it.
    pub attempts: u32,
    /// The error with which the processor rejected it, or the last one with which it failed, down to
    /// the first cause; or the message of the panic.
    pub error: String,
}
