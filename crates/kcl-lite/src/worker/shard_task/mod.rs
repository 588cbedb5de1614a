//! The task of one held lease on the data plane: read, process, acknowledge, end.
//!
//! Owns the reader, the processor and the acknowledgement window of its shard. Prefetches one batch by
//! polling the reader beside the processor; nothing else is spawned. Never writes a lease: it publishes
//! acknowledgements to its keeper, and requests a finish or a release.
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
//! Its parts: [`pass`] runs one pass; [`fetch`] prefetches; [`deliver`] delivers one batch, while
//! [`bisect`] tracks what failed and [`dead_letters`] stores poison records; [`failure`] applies the
//! failure policy; [`gap`] detects what aged out; [`unpack`] unpacks aggregates. [`task`] is the data.

mod bisect;
mod callback;
mod context;
mod dead_letters;
mod deliver;
mod done;
mod failure;
mod fetch;
mod gap;
mod gap_check;
mod pass;
mod task;
mod unpack;

use std::sync::Arc;

pub(crate) use self::context::{PackingFaults, ShardExit, ShardStart, ShardTaskContext};
pub(crate) use self::gap::Known;
use self::task::Pass;
pub(crate) use self::task::ShardTask;
use super::liveness::Activity;
use crate::checkpoint::AckWindow;
use crate::clock;
use crate::event::Event;
use crate::lease::timing::{DRAIN_LIMIT, FINISH_LIMIT};
use crate::processor::ErasedProcessor;
use crate::shard::ChildShard;

impl ShardTask {
    /// Processes the shard until it ends, is released, or is lost.
    pub(crate) async fn run(mut self) -> ShardExit {
        let event = Event::ShardStarted {
            shard: self.shard.lease_key.clone(),
            checkpoint: self.shard.checkpoint.clone(),
        };
        self.context.events.emit(&event);
        let mut processor = None;
        // The loss is the first arm: past the fence, no further record may be delivered.
        let lost = self.keeper.lost.clone();
        let exit = tokio::select! {
            biased;
            () = lost.cancelled() => ShardExit::Lost,
            exit = self.work(&mut processor) => exit,
        };
        // A processor that got another final callback has been taken out of the slot.
        if let Some(mut processor) = processor {
            self.final_callback("lease_lost", processor.lease_lost()).await;
        }
        exit
    }

    async fn work(&mut self, processor: &mut Option<Box<dyn ErasedProcessor>>) -> ShardExit {
        let mut window = AckWindow::default();
        loop {
            // Also when this future is dropped because the lease is lost: records in a queue of the
            // processor must be able to see that they will be delivered again.
            let _closed = window.close_on_drop();
            let pass = self.pass(processor, &window).await;
            // The next pass starts after everything that was acknowledged until the last one ended.
            self.publish(&window);
            if std::mem::take(&mut self.failures.is_dead) {
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
                    // Everything is acknowledged, so the next owner repeats nothing and only stores
                    // the end.
                    ShardExit::Drained { clean: true }
                }
                Pass::Drained { clean } => ShardExit::Drained { clean },
                Pass::Stop(error) => ShardExit::Stop(error),
                Pass::ReleaseShard(reason) => ShardExit::Stalled { reason },
                Pass::TooLong(reason) => {
                    // A processor that hung may hang in `shutdown_requested`, too: do not call it.
                    window.close();
                    self.keeper.release().await;
                    return ShardExit::Stalled { reason };
                }
                Pass::Again { failures, error, at_once } => {
                    window.close();
                    if let Some(mut processor) = processor.take() {
                        self.final_callback("lease_lost", processor.lease_lost()).await;
                    }
                    if !self.pause(failures, &error, at_once).await {
                        window = window.successor();
                        continue;
                    }
                    ShardExit::Drained { clean: false }
                }
            };
            return self.release(processor, &window, exit).await;
        }
    }

    async fn ended(&mut self, processor: &mut Option<Box<dyn ErasedProcessor>>) -> ShardExit {
        // The keeper has ended either way: only the token shows whether it stored the end.
        if self.keeper.lost.is_cancelled() {
            return ShardExit::Lost;
        }
        if let Some(mut processor) = processor.take() {
            self.final_callback("shard_ended", processor.shard_ended()).await;
        }
        ShardExit::Ended
    }

    /// Requests the end of the shard. Returns false if a drain is requested and the child leases, which
    /// have to be created first, take too long: then the next owner creates them.
    async fn finish(&self, children: Vec<ChildShard>) -> bool {
        let clock = Arc::clone(&self.context.clock);
        let past_the_limit = async {
            self.drain.cancelled().await;
            clock::sleep(&clock, FINISH_LIMIT).await;
        };
        tokio::select! {
            biased;
            () = self.keeper.finish(children) => true,
            () = past_the_limit => false,
        }
    }

    async fn release(
        &mut self,
        processor: &mut Option<Box<dyn ErasedProcessor>>,
        window: &AckWindow,
        exit: ShardExit,
    ) -> ShardExit {
        if let Some(mut processor) = processor.take() {
            self.final_callback("shutdown_requested", processor.shutdown_requested()).await;
        }
        self.doing(Activity::Draining);
        // Deferred acknowledgements may still come, unless a dropped token shows that one will not.
        let clock = Arc::clone(&self.context.clock);
        let settled = async {
            while self.store_rejected_at_last(window).await
                && window.in_flight() > 0
                && window.failed_at().is_none()
                && !window.is_closed()
            {
                window.changed().await;
                self.publish(window);
            }
        };
        // What is still in flight after the limit is repeated by the next owner.
        clock::within(&clock, DRAIN_LIMIT, settled).await;
        self.publish(window);
        window.close();
        // Once more, for acknowledgements until the window closed.
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
            | ShardExit::Stalled { .. }
            | ShardExit::Stop(_)
            | ShardExit::Lost) => other,
        }
    }

    /// Publishes the watermark to the keeper.
    fn publish(&mut self, window: &AckWindow) {
        let mark = window.mark();
        if mark != self.acknowledged
            && let Some(mark) = mark
        {
            self.failures.bisection.acknowledged(&mark.position);
            self.failures.succeeded();
            self.failures.retry.succeeded();
            self.keeper.acknowledged(&mark);
            self.acknowledged = Some(mark);
            self.moved_at = self.context.clock.now();
        }
    }
}
