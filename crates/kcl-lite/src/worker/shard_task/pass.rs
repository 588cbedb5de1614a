//! One pass: the life of one processor and one prefetch.
//!
//! Decides the order of callbacks. Spawns nothing: the reader is polled beside the processor.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::callback::{Fault, panic_message};
use super::fetch::{Fetch, Fetched};
use super::task::{Pass, ShardTask};
use crate::checkpoint::{AckWindow, Mark};
use crate::error::Failure;
use crate::heartbeat::Heartbeat;
use crate::position::{Checkpoint, Cursor};
use crate::processor::{ErasedProcessor, Resume, ShardContext, StoreChannel};
use crate::shard::ChildShard;
use crate::worker::liveness::Activity;

/// Time between two calls of `idle`.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// One batch is processed, one waits: enough to hide the latency of a read behind the processor.
const BATCHES_AHEAD: usize = 1;

/// A period in which nothing is delivered or acknowledged.
struct Standstill {
    since: Instant,
    /// How much of that time other shards waited for the memory of records in flight here. It adds up
    /// from intervals, because one waiting shard at a time is allowed to continue.
    blocking: Duration,
    looked_at: Instant,
}

impl Standstill {
    fn begin(now: Instant) -> Self {
        Self { since: now, blocking: Duration::ZERO, looked_at: now }
    }

    /// Returns since when other shards wait, if they do now: now minus the sum of the intervals.
    fn blocking(&mut self, now: Instant, blocks_others: bool) -> Option<Instant> {
        let passed = now.duration_since(std::mem::replace(&mut self.looked_at, now));
        if blocks_others {
            self.blocking += passed;
        }
        blocks_others.then(|| now.checked_sub(self.blocking).unwrap_or(now))
    }
}

impl ShardTask {
    /// Runs a new processor and a new reader until an end or a failure.
    pub(super) async fn pass(
        &mut self,
        slot: &mut Option<Box<dyn ErasedProcessor>>,
        window: &AckWindow,
    ) -> Pass {
        let pending = self.keeper.pending();
        let (clock, progress) = (Arc::clone(&self.context.clock), Arc::clone(&self.progress));
        let heartbeat = Heartbeat::new(clock, progress, window.clone());
        let shard = Arc::new(ShardContext { pending, heartbeat, ..self.shard.clone() });
        // The factory is user code: its panic is a failure like any other.
        let made = std::panic::catch_unwind(AssertUnwindSafe(|| (self.context.factory)(&shard)));
        let processor = match made {
            Ok(made) => slot.insert(made),
            Err(panic) => {
                let panic = Fault::Failed(Failure::new(panic_message(&*panic)));
                return self.after_fault("creating a processor", panic);
            }
        };
        if let Err(fault) = self.call("initialize", processor.initialize(&shard)).await {
            self.failures.is_dead = true;
            return self.after_fault("initialize", fault);
        }
        let line = StoreChannel { window: window.clone(), requests: self.keeper.stores() };
        // Before the start cursor is computed, because a commit moves it.
        if let Some(pass) = self.settle_pending(processor.as_mut(), &shard, &line).await {
            return pass;
        }
        let fetch = Fetch {
            context: self.context.clone(),
            key: self.shard.lease_key.clone(),
            progress: Arc::clone(&self.progress),
            unpacker: self.unpacker.clone(),
            memory: Arc::clone(&self.memory),
            start: self.start_cursor(),
            last: None,
        };
        let (batches, fetched) = mpsc::channel(BATCHES_AHEAD);
        // Processing first: a batch that is ready is processed before the reader is polled again.
        tokio::select! {
            biased;
            pass = self.process_all(processor.as_mut(), &shard, &line, fetched) => pass,
            reason = fetch.run(batches) => Pass::ReleaseShard(reason),
        }
    }

    /// Returns the cursor *at* the last acknowledged record: a part of it may be unprocessed, and its
    /// absence indicates a gap.
    fn start_cursor(&self) -> Cursor {
        self.acknowledged.as_ref().map_or_else(
            || self.cursor.clone(),
            |mark| Cursor::At(mark.position.sequence_number.clone()),
        )
    }

    /// Has the processor decide about a prepared checkpoint. `Some` ends the pass.
    async fn settle_pending(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &ShardContext,
        line: &StoreChannel,
    ) -> Option<Pass> {
        let pending = shard.pending.as_ref()?;
        let Checkpoint::At(position) = &pending.checkpoint else { return None };
        if pending.checkpoint <= self.shard.checkpoint
            || self.acknowledged.as_ref().is_some_and(|mark| mark.position >= *position)
        {
            return None;
        }
        match self.call("resume", processor.resume(pending)).await {
            // The prepared checkpoint stays in the row until the checkpoint reaches it.
            Ok(Resume::Repeat) => {}
            Ok(Resume::Commit) => {
                let mark = Mark { position: position.clone(), arrived: None };
                // Reading starts at the committed position, so a gap is looked for from there.
                self.known.checkpoint = pending.checkpoint.clone();
                line.window.start_after(mark.clone());
                self.publish(&line.window);
                self.doing(Activity::Storing);
                // Stored before anything is delivered, whatever the checkpoint policy.
                if line.store(Some(mark), None).await.is_err() {
                    // The keeper has ended and cancels this task.
                    future::pending::<()>().await;
                }
            }
            Err(fault) => return Some(self.after_fault("resume", fault)),
        }
        None
    }

    async fn process_all(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &Arc<ShardContext>,
        line: &StoreChannel,
        mut fetched: mpsc::Receiver<Fetched>,
    ) -> Pass {
        let window = &line.window;
        let clock = Arc::clone(&self.context.clock);
        let drain = self.drain.clone();
        let mut children = None;
        let mut idle_at = clock.now() + IDLE_INTERVAL;
        let mut standstill = Standstill::begin(clock.now());
        let mut paused = self.context.paused.clone();
        loop {
            // Rejected records first: they are stored before anything else is delivered.
            if let Some(pass) = self.store_rejected(window).await {
                return pass;
            }
            self.publish(window);
            if let Some(pass) = self.after_dropped_token(window) {
                return pass;
            }
            let in_flight = window.in_flight();
            self.watch_oldest(in_flight);
            // Only with nothing in flight: the end must not pass a record that is not acknowledged.
            if in_flight == 0
                && let Some(children) = children.take()
            {
                return Pass::Ended(children);
            }
            let holds = in_flight > 0 && self.memory.blocks_others();
            let holds_since = standstill.blocking(clock.now(), holds);
            let is_paused = *paused.borrow_and_update();
            // A pause that the user requested must not count as a standstill of the processor.
            if is_paused {
                standstill = Standstill::begin(clock.now());
            }
            let has_room = in_flight < self.context.settings.max_unacknowledged;
            let (activity, since) = match (has_room, &children, holds_since) {
                _ if is_paused => (Activity::Paused, clock.now()),
                (false, None, _) => (Activity::WaitingForAcknowledgements, standstill.since),
                (_, _, Some(since)) => (Activity::HoldingMemory, since),
                (_, Some(_), None) => (Activity::WaitingForTheEnd, standstill.since),
                (true, None, None) => (Activity::Reading, clock.now()),
            };
            self.doing_since(activity, since);
            let wants_records = has_room && children.is_none() && !is_paused;
            // Only a shard that has nothing to process may exceed the memory budget.
            self.memory.starved(wants_records && fetched.is_empty());
            // A drain first, so that a full backlog cannot delay it. Acknowledgements before records, so
            // that the checkpoint keeps up. `idle` last: it runs only when there are no records.
            tokio::select! {
                biased;
                () = drain.cancelled() => return Pass::Drained { clean: true },
                () = window.changed() => standstill = Standstill::begin(clock.now()),
                Ok(()) = paused.changed() => {}
                Some(fetched) = fetched.recv(), if wants_records => {
                    self.memory.starved(false);
                    let is_batch = matches!(fetched, Fetched::Records(_));
                    match self.work_off(processor, shard, line, fetched).await {
                        Ok(named) => children = named,
                        Err(pass) => return pass,
                    }
                    if is_batch {
                        standstill = Standstill::begin(clock.now());
                    }
                    idle_at = idle_at.max(clock.now());
                }
                () = clock.sleep_until(idle_at) => {
                    idle_at = clock.now() + IDLE_INTERVAL;
                    self.memory.starved(false);
                    if let Err(fault) = self.call("idle", processor.idle()).await {
                        return self.after_fault("idle", fault);
                    }
                }
            }
        }
    }

    /// Publishes since when the oldest record in flight holds the checkpoint back.
    fn watch_oldest(&mut self, in_flight: usize) {
        if in_flight == 0 {
            self.moved_at = self.context.clock.now();
        }
        let since = (in_flight > 0).then_some(self.moved_at);
        self.progress.lock().holds_checkpoint(since);
    }

    /// Handles the result of a read; returns the children at the end of the shard. `Err` ends the pass.
    async fn work_off(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &Arc<ShardContext>,
        line: &StoreChannel,
        fetched: Fetched,
    ) -> Result<Option<Vec<ChildShard>>, Pass> {
        let (pass, children) = match fetched {
            Fetched::Records(batch) => (self.deliver(processor, shard, line, batch).await, None),
            Fetched::Tip(time) => {
                // First, because a newer `read_until` would hide a gap before it.
                let pass = self.look_for_gap(processor, None).await;
                // `read_until` says that everything that arrived until then is acknowledged.
                if pass.is_none() && line.window.in_flight() == 0 {
                    self.keeper.read_until(time);
                }
                (pass, None)
            }
            Fetched::End(named) => (self.look_for_gap(processor, None).await, Some(named)),
        };
        pass.map_or(Ok(children), Err)
    }
}
