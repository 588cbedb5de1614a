//! What a user implements, and what is handed to it.
//!
//! The contract of the callbacks stands on [`RecordProcessor`]. Who calls them, and when, is
//! decided in the shard task; nothing here talks to a service.

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
/// Only [`process`](Self::process) is required. The library owns the checkpoint: it covers
/// acknowledged records only, and the worker stores it.
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
/// # Time
/// A callback that takes longer than [`slow_after`](crate::Settings::slow_after) is an event; one that
/// takes longer than [`callback_deadline`](crate::Settings::callback_deadline) is dropped at an await
/// point, and the shard is released. One that blocks its thread cannot be dropped; the shard is
/// released all the same, and what the callback does later counts for nothing. A processor that waits
/// for something slow but alive says so with a [`Heartbeat`], which restarts both times.
///
/// # At least once
/// While one worker holds a shard, a record that has been acknowledged is not delivered again, whether
/// an error, a panic or a dropped token follows. After a crash, or when another worker acquires the
/// shard, delivery starts after the stored checkpoint. That is one position, before the first record
/// that is not acknowledged, so records behind it are repeated even if they were acknowledged. Records
/// are delivered in order per shard and partition key; a child shard starts after its parents have
/// ended.
pub trait RecordProcessor: Send + 'static {
    /// Processes a batch.
    ///
    /// `Ok` acknowledges the batch, unless its acknowledgement was deferred with [`Batch::defer`] or
    /// [`Batch::split`]. After `Err` the records that no token has acknowledged are delivered again, to
    /// the same processor and in order, after a delay that begins at 50 to 100 ms and doubles up to
    /// 30 s. [`FailurePolicy`](crate::FailurePolicy) decides whether that is ever given up. Each failure
    /// emits [`Event::ProcessorFailed`](crate::Event::ProcessorFailed). A panic is treated like an
    /// error, except that a new processor gets the records.
    ///
    /// Tokens stay valid during the delay: a task that finishes its record meanwhile acknowledges it.
    /// A record whose token is neither acknowledged nor dropped when the delay is over is delivered
    /// again, and the earlier token has no effect from then on. Wait for such tasks, or abort them,
    /// before returning an error, or two of them may work on the same record.
    ///
    /// An error that is, or is caused by, a [`PoisonRecord`](crate::PoisonRecord) rejects the record that
    /// it names; see [`FailurePolicy`](crate::FailurePolicy). Return any other error for what may be
    /// transient.
    ///
    /// # Cancel safety
    /// The future is dropped when the lease is lost or the deadline has passed, so it may stop at any
    /// await point.
    fn process(&mut self, batch: Batch) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Called once before anything else. An error is retried after a growing delay.
    fn initialize(
        &mut self,
        shard: &ShardContext,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = shard;
        async { Ok(()) }
    }

    /// An earlier owner, or this worker before a failure, has prepared a checkpoint and not stored it:
    /// it stopped between the two phases. Decides whether what was prepared for has happened.
    fn resume(
        &mut self,
        pending: &PendingCheckpoint,
    ) -> impl Future<Output = Result<Resume, BoxError>> + Send {
        let _ = pending;
        async { Ok(Resume::Repeat) }
    }

    /// Records aged out of the stream before anyone read them. Called at most once per tenure,
    /// before the first record is delivered.
    fn gap(&mut self, gap: &Gap) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = gap;
        async { Ok(()) }
    }

    /// Called about once a second while there is nothing to process, also while the end of the shard
    /// waits for deferred acknowledgements: the place for work that is due by time.
    fn idle(&mut self) -> impl Future<Output = Result<(), BoxError>> + Send {
        async { Ok(()) }
    }

    /// Called after the end of the shard: every record is acknowledged and `SHARD_END` is stored.
    fn shard_ended(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Called when the worker releases the shard. Anything that is acknowledged before this method
    /// returns is stored; the next owner gets the rest.
    fn shutdown_requested(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Called when the shard belongs to another worker, or may soon. Acknowledgements have no effect any
    /// more.
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
    /// A checkpoint that was prepared and not stored, if there is one.
    pub pending: Option<PendingCheckpoint>,
    /// How the processor says that it is alive while what it waits for is slow.
    pub heartbeat: Heartbeat,
}

/// What to do about a prepared checkpoint that was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Deliver the records again, from the last stored checkpoint on.
    #[default]
    Repeat,
    /// They are done: the prepared position becomes the checkpoint.
    Commit,
}

/// Records of one shard, in order, never empty.
#[derive(Debug)]
pub struct Batch {
    shard: Arc<ShardContext>,
    millis_behind_latest: u64,
    deferral: Deferral,
    line: StoreChannel,
    /// What the reply takes that the records came with.
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

    /// How the processor says that it is alive while what it waits for is slow: the same handle as
    /// [`ShardContext::heartbeat`].
    #[must_use]
    pub fn heartbeat(&self) -> &Heartbeat {
        &self.shard.heartbeat
    }

    /// The records, oldest first.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.deferral.records()
    }

    /// How far this batch was behind the tip when it was read, in milliseconds of the service's clock.
    #[must_use]
    pub fn millis_behind_latest(&self) -> u64 {
        self.millis_behind_latest
    }

    /// Defers the acknowledgement of the batch: returning `Ok` from `process` no longer acknowledges it.
    /// Call [`Ack::acknowledge`] when the records are done, in any order with other tokens and from any
    /// task. Dropping the token means that the batch failed: a new processor gets the records that are
    /// not acknowledged.
    #[must_use = "dropping the token means that the batch failed"]
    pub fn defer(&mut self) -> Ack {
        self.deferral.whole()
    }

    /// Defers the acknowledgement of each record separately; see [`defer`](Self::defer). To report that a
    /// part of the batch failed, acknowledge the records that are done,
    /// [reject](Ack::reject) those that can never be processed, and return an error for the rest: only
    /// that is delivered again.
    #[must_use = "dropping a token means that its record failed"]
    pub fn split(&mut self) -> Vec<(Record, Ack)> {
        let acks = self.deferral.per_record();
        self.records().iter().cloned().zip(acks).collect()
    }
}

impl Batch {
    /// For storing a checkpoint now, or in two phases. May be kept and used later.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "a batch is never empty")]
    pub fn checkpointer(&self) -> Checkpointer {
        let last = self.records().last().map(Position::of);
        Checkpointer { line: self.line.clone(), last: last.expect("a batch is never empty") }
    }
}

/// Stores checkpoints when a processor wants it, rather than when the policy says.
///
/// # Example: a side effect that happens once
/// ```
/// # use kcl_lite::{Batch, BoxError};
/// # async fn pay(_: &Batch) {}
/// async fn process(mut batch: Batch) -> Result<(), BoxError> {
///     let checkpointer = batch.checkpointer();
///     let ack = batch.defer();
///     // After a crash between here and the end, `RecordProcessor::resume` is asked what happened.
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
    /// The end of the batch it came with.
    last: Position,
}

impl Checkpointer {
    /// Makes durable what is acknowledged: every record up to the first one that is not. A batch
    /// that is still being processed is not, unless a token has acknowledged it.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// [`LeaseLost`] when it cannot be stored any more.
    pub async fn checkpoint(&self) -> Result<(), LeaseLost> {
        match self.line.window.mark() {
            Some(mark) => self.line.store(Some(mark), None).await,
            None if self.line.window.is_closed() => Err(LeaseLost),
            None => Ok(()),
        }
    }

    /// Makes durable that everything up to the end of this batch is about to be done, with bytes of
    /// your own: the first phase of a checkpoint. The second is a [`checkpoint`](Self::checkpoint), or
    /// any other one that is written, at or past that place. The row is the same as with the Java
    /// library, which finds it there too.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// [`LeaseLost`] when it cannot be stored any more.
    pub async fn prepare(&self, state: Option<Vec<u8>>) -> Result<(), LeaseLost> {
        self.prepare_at(self.last.clone(), state).await
    }

    /// As [`prepare`](Self::prepare), up to and including `record`, which must not lie behind the end
    /// of this batch: a later one counts as the end.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// [`LeaseLost`] when it cannot be stored any more.
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

/// A checkpoint could not be stored: the shard belongs to another worker, or has started again with
/// a new processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseLost;

impl fmt::Display for LeaseLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shard is not this processor's any more; nothing was stored")
    }
}
impl std::error::Error for LeaseLost {}

/// What a processor asks to be stored at once.
#[derive(Debug)]
pub(crate) struct StoreRequest {
    pub(crate) mark: Option<Mark>,
    pub(crate) pending: Option<PendingCheckpoint>,
    /// Answered when the row says so; dropped when it never will.
    pub(crate) stored: oneshot::Sender<()>,
}

/// The line from the processor of one shard to the keeper of its lease.
#[derive(Debug, Clone)]
pub(crate) struct StoreChannel {
    pub(crate) window: AckWindow,
    pub(crate) requests: mpsc::Sender<StoreRequest>,
}

impl StoreChannel {
    /// Completes when it is stored.
    pub(crate) async fn store(
        &self,
        mark: Option<Mark>,
        pending: Option<PendingCheckpoint>,
    ) -> Result<(), LeaseLost> {
        if self.window.is_closed() {
            return Err(LeaseLost);
        }
        let (stored, is_stored) = oneshot::channel();
        let request = StoreRequest { mark, pending, stored };
        self.requests.send(request).await.map_err(|_| LeaseLost)?;
        is_stored.await.map_err(|_| LeaseLost)
    }
}

/// Makes the processor of one shard.
pub(crate) type Factory = Arc<dyn Fn(&ShardContext) -> Box<dyn ErasedProcessor> + Send + Sync>;

/// [`RecordProcessor`] behind a pointer, so that one worker type serves all processors.
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
