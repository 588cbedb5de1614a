//! One pass: a new processor and a new reader, until something ends.
//!
//! Decides the order of callbacks. Spawns nothing: the reader is polled beside the processor.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fetch::{Fetch, Fetched};
use super::{GapCheck, Pass, ShardTask, panic_message};
use crate::checkpoint::{AckWindow, Mark};
use crate::error::{Error, ErrorKind, Failure};
use crate::event::Event;
use crate::heartbeat::Heartbeat;
use crate::position::{Checkpoint, Cursor};
use crate::processor::{ErasedProcessor, Resume, ShardContext, StoreLine};
use crate::record::Record;
use crate::settings::GapPolicy;
use crate::shard::ChildShard;
use crate::worker::liveness::Activity;

/// Time between two calls of `idle`.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// One batch is processed, one waits: enough to hide the time of a read behind the processor.
const BATCHES_AHEAD: usize = 1;

/// Nothing is delivered or acknowledged.
struct Standstill {
    since: Instant,
    /// How much of that time other shards waited for what is delivered here and not acknowledged. It
    /// comes in pieces, because one of them at a time may go on.
    in_the_way: Duration,
    looked_at: Instant,
}

impl Standstill {
    fn begin(now: Instant) -> Self {
        Self { since: now, in_the_way: Duration::ZERO, looked_at: now }
    }

    /// Since when, or as if since when, other shards wait, if they do now.
    fn in_the_way(&mut self, now: Instant, is_in_the_way: bool) -> Option<Instant> {
        let passed = now.duration_since(std::mem::replace(&mut self.looked_at, now));
        if is_in_the_way {
            self.in_the_way += passed;
        }
        is_in_the_way.then(|| now.checked_sub(self.in_the_way).unwrap_or(now))
    }
}

impl ShardTask {
    /// From a new processor and a new reader to an end or a failure.
    pub(super) async fn pass(
        &mut self,
        slot: &mut Option<Box<dyn ErasedProcessor>>,
        window: &AckWindow,
    ) -> Pass {
        let pending = self.keeper.pending();
        let (clock, progress) = (Arc::clone(&self.context.clock), Arc::clone(&self.progress));
        let heartbeat = Heartbeat::new(clock, progress, window.clone());
        let shard = Arc::new(ShardContext { pending, heartbeat, ..self.shard.clone() });
        let made = std::panic::catch_unwind(AssertUnwindSafe(|| (self.context.factory)(&shard)));
        let processor = match made {
            Ok(made) => slot.insert(made),
            Err(panic) => {
                let panic = super::callback::Fault::Failed(Failure::new(panic_message(&*panic)));
                return self.after_fault("making a processor", panic);
            }
        };
        if let Err(fault) = self.call("initialize", processor.initialize(&shard)).await {
            self.is_dead = true;
            return self.after_fault("initialize", fault);
        }
        let line = StoreLine { window: window.clone(), requests: self.keeper.stores() };
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
        tokio::select! {
            biased;
            pass = self.process_all(processor.as_mut(), &shard, &line, fetched) => pass,
            reason = fetch.run(batches) => Pass::GiveBack(reason),
        }
    }

    /// *At* the last acknowledged record: a part of it may be left, and its absence is a gap.
    fn start_cursor(&self) -> Cursor {
        self.acknowledged.as_ref().map_or_else(
            || self.cursor.clone(),
            |mark| Cursor::At(mark.position.sequence_number.clone()),
        )
    }

    /// Asks what became of a prepared checkpoint. `Some` ends the pass.
    async fn settle_pending(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &ShardContext,
        line: &StoreLine,
    ) -> Option<Pass> {
        let pending = shard.pending.as_ref()?;
        let Checkpoint::At(position) = &pending.checkpoint else { return None };
        if pending.checkpoint <= self.shard.checkpoint
            || self.acknowledged.as_ref().is_some_and(|mark| mark.position >= *position)
        {
            return None;
        }
        match self.call("resume", processor.resume(pending)).await {
            Ok(Resume::Repeat) => {}
            Ok(Resume::Commit) => {
                let mark = Mark { position: position.clone(), arrived: None };
                self.known.checkpoint = pending.checkpoint.clone();
                line.window.start_after(mark.clone());
                self.publish(&line.window);
                self.doing(Activity::Storing);
                if line.store(Some(mark), None).await.is_err() {
                    // The keeper is gone: it cancels this task.
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
        line: &StoreLine,
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
            if let Some(pass) = self.store_rejected(window).await {
                return pass;
            }
            self.publish(window);
            if let Some(pass) = self.after_dropped_token(window) {
                return pass;
            }
            let in_flight = window.in_flight();
            self.watch_oldest(in_flight);
            if (in_flight == 0 || crate::mutant::is("ends-before-acknowledgements"))
                && let Some(children) = children.take()
            {
                return Pass::Ended(children);
            }
            let holds = in_flight > 0 && self.memory.is_in_the_way();
            let holds_since = standstill.in_the_way(clock.now(), holds);
            let is_paused = *paused.borrow_and_update();
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
            self.memory.starved(wants_records && fetched.is_empty());
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

    /// Says since when the oldest of so many records in flight keeps the checkpoint where it is.
    fn watch_oldest(&mut self, in_flight: usize) {
        if in_flight == 0 {
            self.moved_at = self.context.clock.now();
        }
        let since = (in_flight > 0).then_some(self.moved_at);
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).holds_checkpoint(since);
    }

    /// What a reader found; the children, if that was the end. `Err` ends the pass.
    async fn work_off(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        shard: &Arc<ShardContext>,
        line: &StoreLine,
        fetched: Fetched,
    ) -> Result<Option<Vec<ChildShard>>, Pass> {
        let (pass, children) = match fetched {
            Fetched::Records(batch) => (self.deliver(processor, shard, line, batch).await, None),
            Fetched::Tip(time) => {
                // First, because what is read up to now hides what was missed before.
                let pass = self.look_for_gap(processor, None).await;
                if pass.is_none() && line.window.in_flight() == 0 {
                    self.keeper.read_until(time);
                }
                (pass, None)
            }
            Fetched::End(named) => (self.look_for_gap(processor, None).await, Some(named)),
        };
        pass.map_or(Ok(children), Err)
    }

    /// What follows if a deferred acknowledgement will never come.
    fn after_dropped_token(&mut self, window: &AckWindow) -> Option<Pass> {
        let position = window.failed_at()?;
        let error = "a deferred acknowledgement was dropped".to_owned();
        let attempts = self.context.settings.failures.attempts();
        let failures = self.suspects.failed(position, attempts, Failure::new(error.clone()));
        Some(Pass::Again { failures, error, at_once: false })
    }

    /// Before anything is delivered: whether records aged out unread. `Some` ends the pass.
    pub(super) async fn look_for_gap(
        &mut self,
        processor: &mut dyn ErasedProcessor,
        first: Option<&Record>,
    ) -> Option<Pass> {
        if self.gap == GapCheck::Settled {
            return None;
        }
        if let Some(gap) = self.known.gap(first) {
            let shard = self.shard.lease_key.clone();
            if self.gap == GapCheck::Open {
                self.gap = GapCheck::Announced;
                let (from, to) = (gap.from.clone(), gap.to.clone());
                self.context.events.emit(&Event::GapDetected { shard: shard.clone(), from, to });
            }
            if let Err(fault) = self.call("gap", processor.gap(&gap)).await {
                return Some(self.after_fault("gap", fault));
            }
            if self.context.settings.on_gap == GapPolicy::Stop {
                let text = format!(
                    "records of shard `{shard}` behind checkpoint `{}` aged out before they were \
                     read; set `on_gap` to `Resume` to go on without them",
                    gap.from
                );
                return Some(Pass::Stop(Error::new(ErrorKind::Gap, text)));
            }
        }
        self.gap = GapCheck::Settled;
        None
    }
}
