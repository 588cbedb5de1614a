//! One task per held lease on the data plane: read, process, acknowledge, end.
//!
//! Owns the reader, the processor and the acknowledgement window of its shard. Reads one batch
//! ahead by polling the reader beside the processor; nothing else is spawned. Never writes a lease:
//! it tells its keeper what is acknowledged, and asks it to finish or release.
//!
//! ```text
//!              ┌── restart: panic, dropped token ──┐
//!              ▼                                   │
//! start ─▶ initialize ─▶ process / idle ───────────┤
//!                            │        │            └─▶ lost      → lease_lost
//!                            │        └─▶ drained ──────────────▶  shutdown_requested, release
//!                            └─▶ all read and acknowledged ─────▶  finish, shard_ended
//! ```

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease_keeper::KeeperLink;
use super::service_clock::ServiceClock;
use crate::checkpoint::AckWindow;
use crate::clock::{self, Clock};
use crate::error::{BoxError, ServiceErrorKind};
use crate::event::{Event, Events};
use crate::lease::Lease;
use crate::position::{Checkpoint, Cursor, Position};
use crate::processor::{Batch, ErasedProcessor, Factory, ShardContext};
use crate::record::Record;
use crate::retry::Retry;
use crate::settings::Settings;
use crate::shard::ChildShard;
use crate::stream::{Read, ShardReader, Stream};

/// Time between two calls of `idle`.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// One batch is processed, one waits: enough to hide the time of a read behind the processor.
const BATCHES_AHEAD: usize = 1;

/// The least time between two failed reads.
const READ_FAILURE_PAUSE: Duration = Duration::from_millis(200);
/// How long a drain waits for deferred acknowledgements. Shorter than the time that a worker which
/// asked for the shard waits, so that it gets what is acknowledged.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// How a shard task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShardExit {
    /// `SHARD_END` is stored.
    Ended,
    /// Let go on request; `clean` if everything delivered was acknowledged.
    Drained { clean: bool },
    /// The lease was lost.
    Lost,
}

/// What all shard tasks of a worker share.
#[derive(Clone)]
pub(crate) struct ShardTaskContext {
    pub(crate) stream: Arc<dyn Stream>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) events: Events,
    pub(crate) factory: Factory,
    pub(crate) service_clock: ServiceClock,
}

/// What others may look at while the task runs.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) at: Instant,
    pub(crate) millis_behind_latest: Option<u64>,
    /// The service said that the shard or stream does not exist.
    pub(crate) is_missing: bool,
}

/// The task of one shard.
pub(crate) struct ShardTask {
    context: ShardTaskContext,
    shard: Arc<ShardContext>,
    /// Where a reader starts when nothing is acknowledged yet.
    start: Cursor,
    keeper: KeeperLink,
    drain: CancellationToken,
    progress: Arc<Mutex<Progress>>,
    /// The newest acknowledged position of this tenure, over all restarts.
    acknowledged: Option<Position>,
    retry: Retry,
    rng: fastrand::Rng,
}

/// How one pass from `initialize` on ended.
enum Pass {
    Ended(Vec<ChildShard>),
    Drained,
    Failed(String),
}

impl ShardTask {
    pub(crate) fn new(
        context: ShardTaskContext,
        shard: ShardContext,
        lease: &Lease,
        keeper: KeeperLink,
        drain: CancellationToken,
        progress: Arc<Mutex<Progress>>,
        rng: fastrand::Rng,
    ) -> Option<Self> {
        Some(Self {
            start: lease.cursor()?,
            context,
            shard: Arc::new(shard),
            keeper,
            drain,
            progress,
            acknowledged: None,
            retry: Retry::new(Duration::from_millis(100), Duration::from_secs(30)),
            rng,
        })
    }

    /// Works on the shard until it ends, is let go, or is lost.
    pub(crate) async fn run(mut self) -> ShardExit {
        let event = Event::ShardStarted {
            shard: self.shard.lease_key.clone(),
            checkpoint: self.shard.checkpoint.clone(),
        };
        self.context.events.emit(&event);
        let mut processor = None;
        let lost = self.keeper.lost.clone();
        let exit = tokio::select! {
            biased;
            () = lost.cancelled() => ShardExit::Lost,
            exit = self.work(&mut processor) => exit,
        };
        if exit == ShardExit::Lost
            && let Some(mut processor) = processor
        {
            farewell(processor.lease_lost()).await;
        }
        exit
    }

    async fn work(&mut self, processor: &mut Option<Box<dyn ErasedProcessor>>) -> ShardExit {
        loop {
            let window = AckWindow::default();
            let pass = self.pass(processor, &window).await;
            match pass {
                Pass::Ended(children) => {
                    self.keeper.finish(children).await;
                    return self.ended(processor).await;
                }
                Pass::Drained => return self.drained(processor, &window).await,
                Pass::Failed(error) => {
                    self.publish(&window);
                    // Tokens that the dying processor drops must not count as new failures.
                    window.close();
                    *processor = None;
                    if self.failed(&error).await {
                        self.keeper.release().await;
                        return ShardExit::Drained { clean: false };
                    }
                }
            }
        }
    }

    async fn ended(&mut self, processor: &mut Option<Box<dyn ErasedProcessor>>) -> ShardExit {
        if self.keeper.lost.is_cancelled() {
            return ShardExit::Lost;
        }
        if let Some(processor) = processor {
            farewell(processor.shard_ended()).await;
        }
        ShardExit::Ended
    }

    async fn drained(
        &mut self,
        processor: &mut Option<Box<dyn ErasedProcessor>>,
        window: &AckWindow,
    ) -> ShardExit {
        if let Some(processor) = processor {
            farewell(processor.shutdown_requested()).await;
        }
        // Deferred acknowledgements may still come; a dropped token says that one will not.
        let clock = Arc::clone(&self.context.clock);
        let settled = async {
            while window.in_flight() > 0 && !window.has_failed() {
                window.changed().await;
                self.publish(window);
            }
        };
        clock::within(&clock, DRAIN_LIMIT, settled).await;
        self.publish(window);
        self.keeper.release().await;
        if self.keeper.lost.is_cancelled() {
            return ShardExit::Lost;
        }
        ShardExit::Drained { clean: window.in_flight() == 0 }
    }

    /// From a new processor and a new reader to an end or a failure.
    async fn pass(
        &mut self,
        processor: &mut Option<Box<dyn ErasedProcessor>>,
        window: &AckWindow,
    ) -> Pass {
        let made =
            std::panic::catch_unwind(AssertUnwindSafe(|| (self.context.factory)(&self.shard)));
        let processor = match made {
            Ok(made) => processor.insert(made),
            Err(panic) => return Pass::Failed(panic_message(&*panic)),
        };
        let shard = Arc::clone(&self.shard);
        if let Err(error) = guarded(processor.initialize(&shard)).await {
            return Pass::Failed(format!("initialize: {error}"));
        }
        let reader = self.context.stream.open(&self.shard.shard_id, self.cursor());
        let (batches, fetched) = mpsc::channel(BATCHES_AHEAD);
        let fetch = fetch(
            reader,
            batches,
            Arc::clone(&self.progress),
            self.context.clone(),
            Arc::clone(&shard),
        );
        tokio::select! {
            biased;
            pass = self.process_all(processor.as_mut(), window, fetched) => pass,
            () = fetch => Pass::Failed("the reader stopped".to_owned()),
        }
    }

    fn cursor(&self) -> Cursor {
        self.acknowledged.as_ref().map_or_else(
            || self.start.clone(),
            |position| Cursor::At(position.sequence_number.clone()),
        )
    }

    async fn process_all(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        window: &AckWindow,
        mut fetched: mpsc::Receiver<Read>,
    ) -> Pass {
        let clock = Arc::clone(&self.context.clock);
        let drain = self.drain.clone();
        let mut children = None;
        let mut idle_at = clock.now() + IDLE_INTERVAL;
        loop {
            self.publish(window);
            if window.has_failed() {
                return Pass::Failed("a deferred acknowledgement was dropped".to_owned());
            }
            if window.in_flight() == 0
                && let Some(children) = children.take()
            {
                return Pass::Ended(children);
            }
            let has_room = window.in_flight() < self.context.settings.max_unacknowledged;
            tokio::select! {
                biased;
                () = drain.cancelled() => return Pass::Drained,
                () = window.changed() => {}
                read = fetched.recv(), if has_room && children.is_none() => match read {
                    Some(Read::Records { records, millis_behind_latest }) => {
                        let batch = (records, millis_behind_latest);
                        if let Some(pass) = self.process(processor, window, batch).await {
                            return pass;
                        }
                        idle_at = idle_at.max(clock.now());
                    }
                    Some(Read::End { children: named }) => children = Some(named),
                    None => return Pass::Failed("the reader stopped".to_owned()),
                },
                () = clock.sleep_until(idle_at) => {
                    idle_at = clock.now() + IDLE_INTERVAL;
                    if let Err(error) = guarded(processor.idle()).await {
                        return Pass::Failed(format!("idle: {error}"));
                    }
                }
            }
        }
    }

    /// Delivers one batch, again and again until it succeeds. `Some` ends the pass.
    async fn process(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        window: &AckWindow,
        (mut records, millis_behind_latest): (Vec<Record>, u64),
    ) -> Option<Pass> {
        records.retain(|record| !self.is_done(record));
        if records.is_empty() {
            return None;
        }
        let records: Arc<[Record]> = records.into();
        let delivered = window.deliver(&records);
        loop {
            self.keeper.still_ours(&self.context.clock).await;
            let deferral = window.attempt(delivered);
            let batch = Batch::new(
                Arc::clone(&self.shard),
                Arc::clone(&records),
                millis_behind_latest,
                deferral,
            );
            match AssertUnwindSafe(processor.process(batch)).catch_unwind().await {
                Ok(Ok(())) => {
                    window.succeeded(delivered);
                    self.retry.succeeded();
                    self.progressed();
                    return None;
                }
                Ok(Err(error)) => {
                    if self.failed(&error.to_string()).await {
                        // Nobody will acknowledge this batch any more.
                        window.fail();
                        return Some(Pass::Drained);
                    }
                }
                Err(panic) => return Some(Pass::Failed(panic_message(&*panic))),
            }
        }
    }

    /// Whether a record lies at or before the checkpoint: the first read starts *at* it.
    fn is_done(&self, record: &Record) -> bool {
        let done = |position: &Position| {
            let place = (&record.sequence_number, record.sub_sequence_number);
            // Another library stopped inside an aggregate, which is delivered whole here: repeat its
            // beginning rather than lose its end.
            let is_packed = position.sub_sequence_number > 0 && record.sub_sequence_number == 0;
            let is_same = record.sequence_number == position.sequence_number;
            !(is_packed && is_same)
                && place <= (&position.sequence_number, position.sub_sequence_number)
        };
        match (&self.acknowledged, &self.shard.checkpoint) {
            (Some(position), _) => done(position),
            (None, Checkpoint::At(position)) => done(position),
            (None, _) => false,
        }
    }

    /// Tells of a failure and waits before the next attempt; true if asked to stop meanwhile.
    async fn failed(&mut self, error: &str) -> bool {
        let retry_in = self.retry.delay(&mut self.rng);
        self.context.events.emit(&Event::ProcessorFailed {
            shard: self.shard.lease_key.clone(),
            attempts: self.retry.attempts(),
            error: error.to_owned(),
            retry_in,
        });
        tokio::select! {
            biased;
            () = self.drain.cancelled() => true,
            () = clock::sleep(&self.context.clock, retry_in) => false,
        }
    }

    fn publish(&mut self, window: &AckWindow) {
        if let Some(position) = window.watermark()
            && self.acknowledged.as_ref() != Some(&position)
        {
            self.acknowledged = Some(position.clone());
            self.keeper.acknowledged(Checkpoint::At(position));
        }
    }

    fn progressed(&self) {
        let now = self.context.clock.now();
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).at = now;
    }
}

/// Reads until the end of the shard; a failed read is an event and is tried again.
async fn fetch(
    mut reader: Box<dyn ShardReader>,
    batches: mpsc::Sender<Read>,
    progress: Arc<Mutex<Progress>>,
    context: ShardTaskContext,
    shard: Arc<ShardContext>,
) {
    loop {
        let read = match reader.next().await {
            Ok(read) => read,
            Err(error) => {
                progress.lock().unwrap_or_else(PoisonError::into_inner).is_missing =
                    error.kind == ServiceErrorKind::Missing;
                context.events.emit(&Event::ReadFailed {
                    shard: shard.lease_key.clone(),
                    error: error.to_string(),
                    passing: error.is_passing(),
                });
                // Readers wait longer and longer by themselves; one that does not must not spin.
                clock::sleep(&context.clock, READ_FAILURE_PAUSE).await;
                continue;
            }
        };
        {
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress.at = context.clock.now();
            progress.is_missing = false;
            if let Read::Records { millis_behind_latest, .. } = &read {
                progress.millis_behind_latest = Some(*millis_behind_latest);
            }
        }
        let is_end = matches!(read, Read::End { .. });
        let is_empty = matches!(&read, Read::Records { records, .. } if records.is_empty());
        if !is_empty && batches.send(read).await.is_err() {
            return;
        }
        if is_end {
            // The channel stays open: its end would mean that the reader broke.
            future::pending::<()>().await;
        }
    }
}

/// Runs a callback and turns its panic into an error.
async fn guarded(callback: impl Future<Output = Result<(), BoxError>>) -> Result<(), BoxError> {
    AssertUnwindSafe(callback)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(panic_message(&*panic).into()))
}

/// Runs a last callback; one that panics changes nothing any more.
async fn farewell(callback: impl Future<Output = ()>) {
    if let Err(panic) = AssertUnwindSafe(callback).catch_unwind().await {
        tracing::warn!("the last callback of a processor {}", panic_message(&*panic));
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}
