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
//! that takes, with [`bisect`] knowing what failed and [`dead_letters`] storing what cannot be processed;
//! [`gap`] knows what aged out; [`unpack`] takes aggregates apart.

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
        // Whoever got another last callback is not here any more.
        if let Some(mut processor) = processor {
            self.final_callback("lease_lost", processor.lease_lost()).await;
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
                    ShardExit::Drained { clean: true }
                }
                Pass::Drained { clean } => ShardExit::Drained { clean },
                Pass::Stop(error) => ShardExit::Stop(error),
                Pass::ReleaseShard(reason) => ShardExit::GivenBack { reason },
                Pass::TooLong(reason) => {
                    // Who did not return may not return from `shutdown_requested` either.
                    window.close();
                    self.keeper.release().await;
                    return ShardExit::GivenBack { reason };
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
            return self.let_go(processor, &window, exit).await;
        }
    }

    async fn ended(&mut self, processor: &mut Option<Box<dyn ErasedProcessor>>) -> ShardExit {
        if self.keeper.lost.is_cancelled() {
            return ShardExit::Lost;
        }
        if let Some(mut processor) = processor.take() {
            self.final_callback("shard_ended", processor.shard_ended()).await;
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
            self.final_callback("shutdown_requested", processor.shutdown_requested()).await;
        }
        self.doing(Activity::Draining);
        // Deferred acknowledgements may still come; a dropped token says that one will not.
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

    /// Tells the keeper what is acknowledged by now.
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
