//! One task per held lease on the data plane: read, process, acknowledge, end.
//!
//! Owns the reader, the processor and the acknowledgement window of its shard. Reads one batch
//! ahead by polling the reader beside the processor; nothing else is spawned. Never writes a lease:
//! it tells its keeper what is acknowledged, and asks it to finish or release.
//!
//! A *pass* is the life of one processor value:
//!
//! ```text
//!              ┌── again: panic, dropped token, failed callback ──┐
//!              ▼                                                  │
//! start ─▶ initialize ─▶ gap · process · idle ────────────────────┤
//!                            │       │      │                     └─▶ lost ──▶ lease_lost
//!                            │       │      └─▶ a callback takes too long ──▶ release, lease_lost
//!                            │       └─▶ drained, given up, stopped ──▶ shutdown_requested, release
//!                            └─▶ all read and acknowledged ──▶ finish, shard_ended
//! ```
//!
//! Its parts: [`pass`] is one pass; [`fetch`] reads ahead; [`deliver`] gets one batch done, whatever
//! that takes, with [`suspects`] knowing what failed and [`letters`] storing what cannot be processed;
//! [`gap`] knows what aged out; [`unpack`] takes aggregates apart.

mod callback;
mod deliver;
mod fetch;
mod gap;
mod letters;
mod pass;
mod suspects;
mod unpack;

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease_keeper::KeeperLink;
use super::liveness::{Activity, Progress};
use super::service_clock::ServiceClock;
use crate::budget::{Account, Budget};
use crate::checkpoint::{AckWindow, Mark};
use crate::clock::{self, Clock};
use crate::dead_letter::DeadLetter;
use crate::error::Error;
use crate::event::{Event, Events};
use crate::lease::timing::{DRAIN_LIMIT, FINISH_LIMIT};
use crate::position::{Cursor, Position};
use crate::processor::{ErasedProcessor, Factory, ShardContext};
use crate::record::Record;
use crate::retry::Retry;
use crate::settings::Settings;
use crate::shard::{ChildShard, HashRange};
use crate::stream::Stream;

pub(crate) use gap::Known;
use suspects::Suspects;
pub(crate) use unpack::PackingFaults;
use unpack::Unpacker;

/// How a shard task ended.
#[derive(Debug, Clone)]
pub(crate) enum ShardExit {
    /// `SHARD_END` is stored.
    Ended,
    /// Let go on request; `clean` if everything delivered was acknowledged.
    Drained { clean: bool },
    /// Let go because it makes no progress here.
    GivenBack { reason: String },
    /// Let go because a policy says that the worker shall stop.
    Stop(Error),
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
    pub(crate) dead_letter: Option<Arc<dyn DeadLetter>>,
    pub(crate) service_clock: ServiceClock,
    /// The memory for the records of all shards.
    pub(crate) budget: Budget,
    /// Whether nothing may be delivered.
    pub(crate) paused: watch::Receiver<bool>,
    pub(crate) packing_faults: PackingFaults,
}

/// Where a tenure starts.
#[derive(Debug, Clone)]
pub(crate) struct ShardStart {
    pub(crate) shard: ShardContext,
    /// Where a reader starts when nothing is acknowledged yet.
    pub(crate) cursor: Cursor,
    pub(crate) known: Known,
    /// What the shard serves, if its row says so.
    pub(crate) hash_range: Option<HashRange>,
}

/// The task of one shard.
pub(crate) struct ShardTask {
    context: ShardTaskContext,
    shard: ShardContext,
    cursor: Cursor,
    known: Known,
    unpacker: Unpacker,
    gap: GapCheck,
    keeper: KeeperLink,
    drain: CancellationToken,
    progress: Arc<Mutex<Progress>>,
    memory: Arc<Account>,
    /// The newest acknowledged position of this tenure, over all passes.
    acknowledged: Option<Mark>,
    /// When that was, or when the oldest record in flight was delivered, if that is later.
    moved_at: Instant,
    suspects: Suspects,
    /// Dead letters since a record was processed.
    dead_letters_in_a_row: u32,
    /// Passes that failed without a batch since something was acknowledged.
    failed_passes: u32,
    /// When the failures began that nothing has followed yet.
    failing_since: Option<Instant>,
    /// The processor panicked, or never started: it gets no other call.
    is_dead: bool,
    retry: Retry,
    rng: fastrand::Rng,
}

/// What has been done about records that aged out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GapCheck {
    /// Nothing has been read yet.
    Open,
    /// The event is out; the callback may have to be repeated.
    Announced,
    /// There was none, or the processor knows.
    Settled,
}

/// How one pass ended.
enum Pass {
    Ended(Vec<ChildShard>),
    Drained {
        clean: bool,
    },
    GiveBack(String),
    Stop(Error),
    /// A callback took too long.
    TooLong(String),
    /// A new processor starts, after a pause unless something else is tried then.
    Again {
        failures: u32,
        error: String,
        at_once: bool,
    },
}

impl ShardTask {
    pub(crate) fn new(
        context: ShardTaskContext,
        start: ShardStart,
        keeper: KeeperLink,
        drain: CancellationToken,
        progress: Arc<Mutex<Progress>>,
        rng: fastrand::Rng,
    ) -> Self {
        let (key, checkpoint) = (start.shard.lease_key.clone(), &start.known.checkpoint);
        let now = context.clock.now();
        Self {
            memory: Arc::new(context.budget.account()),
            context,
            unpacker: Unpacker::new(key, start.hash_range, checkpoint),
            shard: start.shard,
            cursor: start.cursor,
            known: start.known,
            gap: GapCheck::Open,
            keeper,
            drain,
            progress,
            acknowledged: None,
            moved_at: now,
            suspects: Suspects::default(),
            dead_letters_in_a_row: 0,
            failed_passes: 0,
            failing_since: None,
            is_dead: false,
            retry: Retry::new(Duration::from_millis(100), Duration::from_secs(30)),
            rng,
        }
    }

    /// What the shard's records are counted in.
    pub(crate) fn memory(&self) -> &Arc<Account> {
        &self.memory
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
            () = lost.cancelled(), if !crate::mutant::is("loss-stops-nothing") => ShardExit::Lost,
            exit = self.work(&mut processor) => exit,
        };
        // Whoever got another last callback is not here any more.
        if let Some(mut processor) = processor {
            self.farewell("lease_lost", processor.lease_lost()).await;
        }
        exit
    }

    async fn work(&mut self, processor: &mut Option<Box<dyn ErasedProcessor>>) -> ShardExit {
        let mut window = AckWindow::default();
        loop {
            // Also when this future is dropped, because the lease is lost: what waits in a queue of
            // the processor's must be able to tell that it is delivered again.
            let _closed = window.close_on_drop();
            let pass = self.pass(processor, &window).await;
            self.publish(&window);
            if std::mem::take(&mut self.is_dead) {
                // Tokens that the dying processor drops must not count as new failures.
                window.close();
                *processor = None;
            }
            let exit = match pass {
                Pass::Ended(children) => {
                    self.doing(Activity::Ending);
                    if self.finish(children).await {
                        return self.ended(processor).await;
                    }
                    ShardExit::Drained { clean: true }
                }
                Pass::Drained { clean } => ShardExit::Drained { clean },
                Pass::Stop(error) => ShardExit::Stop(error),
                Pass::GiveBack(reason) => ShardExit::GivenBack { reason },
                Pass::TooLong(reason) => {
                    // Who did not return may not return from `shutdown_requested` either.
                    window.close();
                    self.keeper.release().await;
                    return ShardExit::GivenBack { reason };
                }
                Pass::Again { failures, error, at_once } => {
                    window.close();
                    if let Some(mut processor) = processor.take() {
                        self.farewell("lease_lost", processor.lease_lost()).await;
                    }
                    if !self.pause(failures, &error, at_once).await {
                        window = window.successor();
                        continue;
                    }
                    ShardExit::Drained { clean: false }
                }
            };
            return self.let_go(processor, &window, exit).await;
        }
    }

    async fn ended(&mut self, processor: &mut Option<Box<dyn ErasedProcessor>>) -> ShardExit {
        if self.keeper.lost.is_cancelled() {
            return ShardExit::Lost;
        }
        if let Some(mut processor) = processor.take() {
            self.farewell("shard_ended", processor.shard_ended()).await;
        }
        ShardExit::Ended
    }

    /// Has the end of the shard stored; false if the shard is to be let go, and the children, which have
    /// to be made first, take too long: the next owner makes them.
    async fn finish(&self, children: Vec<ChildShard>) -> bool {
        let clock = Arc::clone(&self.context.clock);
        let let_go = async {
            self.drain.cancelled().await;
            clock::sleep(&clock, FINISH_LIMIT).await;
        };
        tokio::select! {
            biased;
            () = self.keeper.finish(children) => true,
            () = let_go => false,
        }
    }

    async fn let_go(
        &mut self,
        processor: &mut Option<Box<dyn ErasedProcessor>>,
        window: &AckWindow,
        exit: ShardExit,
    ) -> ShardExit {
        if let Some(mut processor) = processor.take() {
            self.farewell("shutdown_requested", processor.shutdown_requested()).await;
        }
        self.doing(Activity::Draining);
        // Deferred acknowledgements may still come; a dropped token says that one will not.
        let clock = Arc::clone(&self.context.clock);
        let settled = async {
            while self.store_rejected_at_last(window).await
                && window.in_flight() > 0
                && window.failed_at().is_none()
                && !window.is_closed()
                && !crate::mutant::is("a-drain-does-not-wait")
            {
                window.changed().await;
                self.publish(window);
            }
        };
        clock::within(&clock, DRAIN_LIMIT, settled).await;
        self.publish(window);
        window.close();
        // Once more: what was acknowledged until the window closed.
        self.publish(window);
        self.keeper.release().await;
        if self.keeper.lost.is_cancelled() {
            return ShardExit::Lost;
        }
        match exit {
            ShardExit::Drained { clean } => {
                ShardExit::Drained { clean: clean && window.in_flight() == 0 }
            }
            other @ (ShardExit::Ended
            | ShardExit::GivenBack { .. }
            | ShardExit::Stop(_)
            | ShardExit::Lost) => other,
        }
    }

    /// Tells of a failure and waits before the next attempt; true if asked to stop meanwhile.
    async fn pause(&mut self, failures: u32, error: &str, at_once: bool) -> bool {
        let retry_in = if at_once { Duration::ZERO } else { self.retry.delay(&mut self.rng) };
        self.context.events.emit(&Event::ProcessorFailed {
            shard: self.shard.lease_key.clone(),
            attempts: failures,
            error: error.to_owned(),
            retry_in,
        });
        let since = *self.failing_since.get_or_insert_with(|| self.context.clock.now());
        self.doing_since(Activity::Retrying { failures, error: error.to_owned() }, since);
        self.sleep_unless_drained(retry_in).await
    }

    /// True if asked to stop meanwhile.
    async fn sleep_unless_drained(&self, duration: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.drain.cancelled() => true,
            () = clock::sleep(&self.context.clock, duration) => false,
        }
    }

    /// Tells the keeper what is acknowledged by now.
    fn publish(&mut self, window: &AckWindow) {
        let mark = window.mark();
        if mark != self.acknowledged
            && let Some(mark) = mark
        {
            self.suspects.acknowledged(&mark.position);
            self.succeeded();
            self.retry.succeeded();
            self.keeper.acknowledged(&mark);
            self.acknowledged = Some(mark);
            self.moved_at = self.context.clock.now();
        }
    }

    /// Something was processed: whatever failed before is over.
    fn succeeded(&mut self) {
        self.failed_passes = 0;
        self.failing_since = None;
    }

    fn doing(&self, activity: Activity) {
        self.doing_since(activity, self.context.clock.now());
    }

    fn doing_since(&self, activity: Activity, since: Instant) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).doing(activity, since);
    }
}

/// Drops the records at or before `done`, where reading starts again.
fn drop_done(records: &mut Vec<Record>, done: &Position) {
    if crate::mutant::is("the-checkpoint-is-repeated") {
        return;
    }
    if crate::mutant::is("the-rest-of-an-aggregate-is-dropped") {
        return records.retain(|record| record.sequence_number > done.sequence_number);
    }
    let place = |record: &Record| {
        let of_number = record.sequence_number.cmp(&done.sequence_number);
        of_number.then(record.sub_sequence_number.cmp(&done.sub_sequence_number))
    };
    if records.first().is_none_or(|first| place(first).is_gt()) {
        return;
    }
    let is_same = |record: &Record| record.sequence_number == done.sequence_number;
    // Another library stopped inside an aggregate, which is delivered whole here: repeat its
    // beginning rather than lose its end.
    let is_packed = done.sub_sequence_number > 0
        && !records.iter().any(|record| is_same(record) && record.sub_sequence_number > 0);
    records.retain(|record| (is_packed && is_same(record)) || place(record).is_gt());
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Packing, Timestamp};

    fn record(number: u64, sub: u64) -> Record {
        Record {
            sequence_number: number.to_string().parse().unwrap(),
            sub_sequence_number: sub,
            partition_key: String::new(),
            data: Default::default(),
            arrived: Timestamp::from_millis(0),
            packing: Packing::Plain,
        }
    }

    fn left(records: &[(u64, u64)], done: (u64, u64)) -> Vec<(String, u64)> {
        let mut records: Vec<_> =
            records.iter().map(|(number, sub)| record(*number, *sub)).collect();
        drop_done(&mut records, &Position::of(&record(done.0, done.1)));
        let place = |it: Record| (it.sequence_number.to_string(), it.sub_sequence_number);
        records.into_iter().map(place).collect()
    }

    #[test]
    fn reading_again_drops_what_is_done_also_inside_an_aggregate() {
        assert_eq!(left(&[(1, 0), (2, 0), (3, 0)], (2, 0)), [("3".to_owned(), 0)]);
        let inside = left(&[(2, 0), (2, 1), (2, 2), (3, 0)], (2, 1));
        assert_eq!(inside, [("2".to_owned(), 2), ("3".to_owned(), 0)]);
        assert_eq!(left(&[(2, 0), (2, 1), (2, 2)], (2, 0)).len(), 2);
        assert_eq!(left(&[(2, 0), (2, 1)], (2, 1)), []);
    }

    #[test]
    fn an_aggregate_that_cannot_be_unpacked_is_repeated_rather_than_lost() {
        let whole = left(&[(2, 0), (3, 0)], (2, 5));
        assert_eq!(whole, [("2".to_owned(), 0), ("3".to_owned(), 0)]);
    }
}
