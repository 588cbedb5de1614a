//! The trait that a user implements, and the types that its callbacks receive.
//!
//! [`RecordProcessor`] documents the contract of the callbacks. The shard task decides when to call
//! them; nothing here calls a service.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use crate::budget::Permit;
use crate::checkpoint::{Ack, AckWindow, Deferral, Mark};
use crate::error::BoxError;
use crate::heartbeat::Heartbeat;
use crate::lease::PendingCheckpoint;
use crate::position::{Checkpoint, Gap, Position};
use crate::record::{LeaseKey, Record, ShardId, WorkerId};

/// Processes the records of one shard. The worker creates a processor each time it acquires a shard.
///
/// Only [`process`](Self::process) is required. The library owns the checkpoint: it covers only
/// acknowledged records, and the worker stores it.
///
/// # Order of calls
/// ```text
/// initialize → resume? → (gap? | idle)* → (process | idle)* → at most one of:
///                                          shard_ended · shutdown_requested · lease_lost
/// ```
/// Calls for one shard never overlap. Shards are independent of each other. If an [`Ack`] is dropped, or
/// a callback other than `process` fails, the worker calls `lease_lost`, drops the processor and creates
/// a new one, which starts with `initialize` and the first record that is not acknowledged.
///
/// A processor is dropped without any of the last three callbacks when it panicked or its `initialize`
/// failed, and in the cases that
/// [`WorkerHandle`](crate::WorkerHandle#processors-that-get-no-last-callback) lists. Release files and
/// connections in `Drop`.
///
/// # Timeouts
/// A callback that takes longer than [`slow_after`](crate::Settings::slow_after) emits an event. One that
/// takes longer than [`callback_deadline`](crate::Settings::callback_deadline) is dropped at an await
/// point, and the shard is released. A callback that blocks its thread cannot be dropped; the shard is
/// released anyway, and later acknowledgements of that callback have no effect. A processor that waits
/// for something slow but alive sends a [`Heartbeat`], which restarts both timeouts.
///
/// # At-least-once delivery
/// While one worker holds a shard, an acknowledged record is not delivered again, even after an error, a
/// panic or a dropped token. After a crash, or when another worker acquires the shard, delivery starts
/// after the stored checkpoint. The checkpoint is one position, before the first record that is not
/// acknowledged, so records after it are repeated even if they were acknowledged. Make processing
/// idempotent. Records are delivered in order per shard and partition key; a child shard starts after its
/// parents have ended.
pub trait RecordProcessor: Send + 'static {
    /// Processes a batch.
    ///
    /// `Ok` acknowledges the batch, unless its acknowledgement was deferred with [`Batch::defer`] or
    /// [`Batch::split`]. After `Err`, the records that no token has acknowledged are delivered again, to
    /// the same processor and in order, with exponential backoff: the delay starts at 50 to 100 ms and
    /// doubles up to 30 s. [`FailurePolicy`](crate::FailurePolicy) decides when the retries end. Each
    /// failure emits [`Event::ProcessorFailed`](crate::Event::ProcessorFailed). A panic is treated like
    /// an error, except that a new processor gets the records.
    ///
    /// Tokens stay valid during the delay: a task that finishes its record in that time can acknowledge
    /// it. When the delay is over, a record whose token is neither acknowledged nor dropped is delivered
    /// again, and the earlier token has no effect from then on. Wait for such tasks, or abort them,
    /// before returning an error; otherwise two of them may work on the same record.
    ///
    /// An error that is, or is caused by, a [`PoisonRecord`](crate::PoisonRecord) rejects the record that
    /// it names; see [`FailurePolicy`](crate::FailurePolicy). Return any other error for failures that
    /// may be transient.
    ///
    /// # Cancel safety
    /// The worker drops the future when the lease is lost or the deadline has passed, so it can stop at
    /// any await point.
    fn process(&mut self, batch: Batch) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Called once, before any other callback. An error is retried with exponential backoff.
    fn initialize(
        &mut self,
        shard: &ShardContext,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = shard;
        async { Ok(()) }
    }

    /// Called when an earlier owner, or this worker before a failure, prepared a checkpoint and stopped
    /// before the second phase. Decides whether the prepared side effect has happened.
    fn resume(
        &mut self,
        pending: &PendingCheckpoint,
    ) -> impl Future<Output = Result<Resume, BoxError>> + Send {
        let _ = pending;
        async { Ok(Resume::Repeat) }
    }

    /// Called when records aged out of the stream before they were read: at most once per tenure, before
    /// the first record is delivered.
    fn gap(&mut self, gap: &Gap) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = gap;
        async { Ok(()) }
    }

    /// Called about once a second while there is nothing to process, also while the end of the shard
    /// waits for deferred acknowledgements. Suited for periodic work.
    fn idle(&mut self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { Ok(()) }
    }

    /// Called after the end of the shard, when every record is acknowledged and `SHARD_END` is stored.
    fn shard_ended(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Called when the worker releases the shard. Records that are acknowledged before this method returns
    /// are stored as done; the next owner gets the rest.
    fn shutdown_requested(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Called when the shard belongs to another worker, or soon may, and before a new processor replaces
    /// this one. Acknowledgements no longer have any effect.
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
    /// The stream, by the name or ARN that the builder received.
    pub stream: Arc<str>,
    /// The worker that holds the lease.
    pub worker_id: WorkerId,
    /// The checkpoint that earlier owners have stored.
    pub checkpoint: Checkpoint,
    /// The lease counter when the lease was taken, which grows with every change of owner. A sink that
    /// remembers the highest token can reject writes of a worker that has lost the shard without knowing
    /// it yet.
    pub fencing_token: u64,
    /// The prepared checkpoint that was not stored, if there is one.
    pub pending: Option<PendingCheckpoint>,
    /// The handle with which the processor reports that it is alive while it waits for something slow.
    pub heartbeat: Heartbeat,
}

/// What to do about a prepared checkpoint that was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Delivers the records again, from the stored checkpoint on.
    #[default]
    Repeat,
    /// Makes the prepared position the checkpoint, because the records before it are done.
    Commit,
}

/// Records of one shard, in order. Never empty.
#[derive(Debug)]
pub struct Batch {
    shard: Arc<ShardContext>,
    millis_behind_latest: u64,
    deferral: Deferral,
    line: StoreChannel,
    /// The memory of the reply that contained the records.
    _memory: Arc<Permit>,
}

impl Batch {
    pub(crate) fn new(
        shard: Arc<ShardContext>,
        millis_behind_latest: u64,
        deferral: Deferral,
        line: StoreChannel,
        memory: Arc<Permit>,
    ) -> Self {
        Self { shard, millis_behind_latest, deferral, line, _memory: memory }
    }

    /// Returns the shard of these records.
    #[must_use]
    pub fn shard(&self) -> &ShardContext {
        &self.shard
    }

    /// Returns the shard ID.
    #[must_use]
    pub fn shard_id(&self) -> &ShardId {
        &self.shard.shard_id
    }

    /// Returns the handle with which the processor reports that it is alive while it waits for something
    /// slow: the same as [`ShardContext::heartbeat`].
    #[must_use]
    pub fn heartbeat(&self) -> &Heartbeat {
        &self.shard.heartbeat
    }

    /// Returns the records, oldest first.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.deferral.records()
    }

    /// Returns how far this batch was behind the tip when it was read, in milliseconds of the service's
    /// clock.
    #[must_use]
    pub fn millis_behind_latest(&self) -> u64 {
        self.millis_behind_latest
    }

    /// Defers the acknowledgement of the batch: returning `Ok` from `process` no longer acknowledges it.
    /// Call [`Ack::acknowledge`] on the token when the records are done, from any task and in any order
    /// with other tokens. Dropping the token means that the batch failed: a new processor gets the records
    /// that are not acknowledged.
    #[must_use = "dropping the token means that the batch failed"]
    pub fn defer(&mut self) -> Ack {
        self.deferral.whole()
    }

    /// Defers the acknowledgement of each record separately; see [`defer`](Self::defer). To report a
    /// partial failure, acknowledge the records that are done, [reject](Ack::reject) poison records, and
    /// return an error: only the rest is delivered again.
    #[must_use = "dropping a token means that its record failed"]
    pub fn split(&mut self) -> Vec<(Record, Ack)> {
        let acks = self.deferral.per_record();
        self.records().iter().cloned().zip(acks).collect()
    }
}

impl Batch {
    /// Returns a handle that stores a checkpoint at once, or in two phases. It may be kept and used later.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "a batch is never empty")]
    pub fn checkpointer(&self) -> Checkpointer {
        let last = self.records().last().map(Position::of);
        Checkpointer { line: self.line.clone(), last: last.expect("a batch is never empty") }
    }
}

/// A handle that stores checkpoints when the processor requests it, independently of
/// [`CheckpointPolicy`](crate::CheckpointPolicy).
///
/// # Example: a side effect that happens once
/// ```
/// # use kcl_lite::{Batch, BoxError};
/// # async fn pay(_: &Batch) {}
/// async fn process(mut batch: Batch) -> Result<(), BoxError> {
///     let checkpointer = batch.checkpointer();
///     let ack = batch.defer();
///     // After a crash between here and the end, `RecordProcessor::resume` decides what happened.
///     checkpointer.prepare(Some(b"payment-17".to_vec())).await?;
///     pay(&batch).await;
///     ack.acknowledge();
///     checkpointer.checkpoint().await?;
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Checkpointer {
    line: StoreChannel,
    /// The last position of its batch.
    last: Position,
}

impl Checkpointer {
    /// Stores the watermark as the checkpoint: everything before the first record that is not
    /// acknowledged. A batch that is still being processed is not acknowledged, unless by a token.
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the request.
    ///
    /// # Errors
    /// [`LeaseLost`] when the checkpoint can no longer be stored.
    pub async fn checkpoint(&self) -> Result<(), LeaseLost> {
        match self.line.window.mark() {
            Some(mark) => self.line.store(Some(mark), None).await,
            None if self.line.window.is_closed() => Err(LeaseLost),
            // Nothing is acknowledged yet, so there is nothing to store.
            None => Ok(()),
        }
    }

    /// Stores a prepared checkpoint at the end of this batch, with bytes of your own: the first phase of a
    /// two-phase checkpoint. The second phase is a [`checkpoint`](Self::checkpoint), or any other
    /// checkpoint that is written, at or past that position. The row has the format of the Java KCL, which
    /// can read it too.
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the request.
    ///
    /// # Errors
    /// [`LeaseLost`] when the prepared checkpoint can no longer be stored.
    pub async fn prepare(&self, state: Option<Vec<u8>>) -> Result<(), LeaseLost> {
        self.prepare_at(self.last.clone(), state).await
    }

    /// Stores a prepared checkpoint as [`prepare`](Self::prepare) does, but at `record`, inclusive. A record
    /// after the end of this batch counts as its end.
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the request.
    ///
    /// # Errors
    /// [`LeaseLost`] when the prepared checkpoint can no longer be stored.
    pub async fn prepare_up_to(
        &self,
        record: &Record,
        state: Option<Vec<u8>>,
    ) -> Result<(), LeaseLost> {
        self.prepare_at(Position::of(record).min(self.last.clone()), state).await
    }

    async fn prepare_at(&self, at: Position, state: Option<Vec<u8>>) -> Result<(), LeaseLost> {
        let pending = PendingCheckpoint { checkpoint: Checkpoint::At(at), state };
        self.line.store(None, Some(pending)).await
    }
}

/// The error of a checkpoint that could not be stored, because the shard belongs to another worker or to a
/// new processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseLost;

impl fmt::Display for LeaseLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shard no longer belongs to this processor; nothing was stored")
    }
}
impl std::error::Error for LeaseLost {}

/// A processor's request to store a checkpoint at once.
#[derive(Debug)]
pub(crate) struct StoreRequest {
    pub(crate) mark: Option<Mark>,
    pub(crate) pending: Option<PendingCheckpoint>,
    /// Notified when the row contains it; dropped when it can no longer be stored.
    pub(crate) stored: oneshot::Sender<()>,
}

/// The channel from the processor of one shard to the keeper of its lease.
#[derive(Debug, Clone)]
pub(crate) struct StoreChannel {
    pub(crate) window: AckWindow,
    pub(crate) requests: mpsc::Sender<StoreRequest>,
}

impl StoreChannel {
    /// Sends a request and completes when the row contains it.
    pub(crate) async fn store(
        &self,
        mark: Option<Mark>,
        pending: Option<PendingCheckpoint>,
    ) -> Result<(), LeaseLost> {
        // The keeper outlives this processor, and would still accept its request after a new one
        // has replaced it.
        if self.window.is_closed() {
            return Err(LeaseLost);
        }
        let (stored, is_stored) = oneshot::channel();
        let request = StoreRequest { mark, pending, stored };
        self.requests.send(request).await.map_err(|_| LeaseLost)?;
        is_stored.await.map_err(|_| LeaseLost)
    }
}

/// Creates the processor of one shard.
pub(crate) type Factory = Arc<dyn Fn(&ShardContext) -> Box<dyn ErasedProcessor> + Send + Sync>;

/// The dyn-compatible form of [`RecordProcessor`], so that one worker type serves all processors.
pub(crate) trait ErasedProcessor: Send {
    fn process(&mut self, batch: Batch) -> BoxFuture<'_, Result<(), BoxError>>;
    fn initialize<'a>(&'a mut self, shard: &'a ShardContext)
    -> BoxFuture<'a, Result<(), BoxError>>;
    fn resume<'a>(
        &'a mut self,
        pending: &'a PendingCheckpoint,
    ) -> BoxFuture<'a, Result<Resume, BoxError>>;
    fn gap<'a>(&'a mut self, gap: &'a Gap) -> BoxFuture<'a, Result<(), BoxError>>;
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
    fn resume<'a>(
        &'a mut self,
        pending: &'a PendingCheckpoint,
    ) -> BoxFuture<'a, Result<Resume, BoxError>> {
        Box::pin(RecordProcessor::resume(self, pending))
    }
    fn gap<'a>(&'a mut self, gap: &'a Gap) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(RecordProcessor::gap(self, gap))
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
