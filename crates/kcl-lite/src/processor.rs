//! What a user implements, and what is handed to it.
//!
//! The contract of the callbacks stands on [`RecordProcessor`]. Who calls them, and when, is
//! decided in the shard task; nothing here talks to a service.

use std::future::Future;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::checkpoint::{Ack, Deferral};
use crate::error::BoxError;
use crate::position::Checkpoint;
use crate::record::{LeaseKey, Record, ShardId, WorkerId};

/// Processes the records of one shard. One value is made per shard and per tenure.
///
/// Only [`process`](Self::process) is required. The library owns the checkpoint: it names
/// acknowledged records only, and it is written for you.
///
/// # Order of calls
/// ```text
/// initialize → (process | idle)* → exactly one of: shard_ended · shutdown_requested · lease_lost
/// ```
/// Calls for one shard never overlap. Shards are independent of each other. After a panic the value
/// is dropped and a new one starts with `initialize` at the last acknowledged record.
///
/// # At least once
/// A record is delivered again after a crash, after a panic, or when another worker takes the shard:
/// at most what was delivered since the last durable checkpoint. In order per shard and partition key;
/// a child shard starts after its parents have ended.
pub trait RecordProcessor: Send + 'static {
    /// Handles a batch. `Ok` acknowledges it (unless its acknowledgement was taken with
    /// [`Batch::defer`]). `Err` or a panic acknowledges nothing; the same batch is delivered again
    /// after a growing delay, for ever, and every failure is an event.
    ///
    /// # Cancel safety
    /// The future is dropped when the lease is lost, so it may stop at any await point.
    fn process(&mut self, batch: Batch) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Called once before anything else. An error is retried after a growing delay.
    fn initialize(
        &mut self,
        shard: &ShardContext,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = shard;
        async { Ok(()) }
    }

    /// Called about once a second while there is nothing to process, also while the end of the shard
    /// waits for deferred acknowledgements: the place for work that is due by time.
    fn idle(&mut self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { Ok(()) }
    }

    /// The shard is finished: every record is acknowledged and `SHARD_END` is stored.
    fn shard_ended(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// The worker lets the shard go in good order. What is acknowledged until this returns is stored;
    /// the rest is delivered to the next owner.
    fn shutdown_requested(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// The shard belongs to another worker, or may soon. Nothing can be acknowledged any more.
    fn lease_lost(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// The shard that a processor works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardContext {
    /// The key of the shard's lease, by which events and status name it.
    pub lease_key: LeaseKey,
    /// The shard.
    pub shard_id: ShardId,
    /// The stream, by the name or ARN that the worker was given.
    pub stream: Arc<str>,
    /// The worker that holds its lease.
    pub worker_id: WorkerId,
    /// What earlier owners have processed.
    pub checkpoint: Checkpoint,
    /// Grows with every change of owner: a sink that remembers the highest token can refuse a worker
    /// that has lost the shard and does not know it yet. It is the lease counter at acquisition.
    pub fencing_token: u64,
}

/// Records of one shard, in order, never empty.
#[derive(Debug)]
pub struct Batch {
    shard: Arc<ShardContext>,
    records: Arc<[Record]>,
    millis_behind_latest: u64,
    deferral: Deferral,
}

impl Batch {
    pub(crate) fn new(
        shard: Arc<ShardContext>,
        records: Arc<[Record]>,
        millis_behind_latest: u64,
        deferral: Deferral,
    ) -> Self {
        Self { shard, records, millis_behind_latest, deferral }
    }

    /// The shard of these records.
    #[must_use]
    pub fn shard(&self) -> &ShardContext {
        &self.shard
    }

    /// The shard's id.
    #[must_use]
    pub fn shard_id(&self) -> &ShardId {
        &self.shard.shard_id
    }

    /// The records, oldest first.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// How far this batch was behind the tip when it was read, in milliseconds of the service's clock.
    #[must_use]
    pub fn millis_behind_latest(&self) -> u64 {
        self.millis_behind_latest
    }

    /// Takes the acknowledgement over: `Ok` from `process` no longer acknowledges the batch, the
    /// returned token does, now or later, in any order with others. A token that is dropped without
    /// [`Ack::acknowledge`] means failure: the shard starts again after the last acknowledged record.
    #[must_use = "dropping the token means that the batch failed"]
    pub fn defer(&mut self) -> Ack {
        self.deferral.whole()
    }

    /// Takes the acknowledgement over record by record; see [`defer`](Self::defer).
    #[must_use = "dropping a token means that its record failed"]
    pub fn split(&mut self) -> Vec<(Record, Ack)> {
        let acks = self.deferral.per_record(&self.records);
        self.records.iter().cloned().zip(acks).collect()
    }
}

/// Makes the processor of one shard.
pub(crate) type Factory = Arc<dyn Fn(&ShardContext) -> Box<dyn ErasedProcessor> + Send + Sync>;

/// [`RecordProcessor`] behind a pointer, so that one worker type serves all processors.
pub(crate) trait ErasedProcessor: Send {
    fn process(&mut self, batch: Batch) -> BoxFuture<'_, Result<(), BoxError>>;
    fn initialize<'a>(&'a mut self, shard: &'a ShardContext)
    -> BoxFuture<'a, Result<(), BoxError>>;
    fn idle(&mut self) -> BoxFuture<'_, Result<(), BoxError>>;
    fn shard_ended(&mut self) -> BoxFuture<'_, ()>;
    fn shutdown_requested(&mut self) -> BoxFuture<'_, ()>;
    fn lease_lost(&mut self) -> BoxFuture<'_, ()>;
}

impl<P: RecordProcessor> ErasedProcessor for P {
    fn process(&mut self, batch: Batch) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(RecordProcessor::process(self, batch))
    }
    fn initialize<'a>(
        &'a mut self,
        shard: &'a ShardContext,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(RecordProcessor::initialize(self, shard))
    }
    fn idle(&mut self) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(RecordProcessor::idle(self))
    }
    fn shard_ended(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(RecordProcessor::shard_ended(self))
    }
    fn shutdown_requested(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(RecordProcessor::shutdown_requested(self))
    }
    fn lease_lost(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(RecordProcessor::lease_lost(self))
    }
}
