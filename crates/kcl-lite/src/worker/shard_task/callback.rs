//! Calls to the processor: a panic and a timeout become outcomes.
//!
//! The only place that polls a user's future. Other modules decide what follows from an outcome.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, future};
use tokio::time::Instant;

use super::task::ShardTask;
use crate::clock::Clock;
use crate::error::{BoxError, Failure};
use crate::event::Event;
use crate::worker::liveness::Activity;

/// The way a callback failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// It returned an error, or panicked.
    Failed(Failure),
    /// It exceeded the deadline and was dropped.
    TooLong(String),
}

impl ShardTask {
    /// Runs a callback: emits an event when it is slow, and drops it at the deadline. A heartbeat restarts
    /// both limits.
    pub(super) async fn call<T>(
        &mut self,
        callback: &'static str,
        future: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, Fault> {
        self.doing(Activity::Processing { callback });
        // A processor that has panicked gets no further call, so its state need not be consistent.
        let future = AssertUnwindSafe(future).catch_unwind();
        match self.in_time(callback, future).await {
            Some(Ok(Ok(value))) => Ok(value),
            Some(Ok(Err(error))) => Err(Fault::Failed(Failure::from(error))),
            Some(Err(panic)) => {
                self.failures.is_dead = true;
                Err(Fault::Failed(Failure::new(panic_message(&*panic))))
            }
            None => Err(Fault::TooLong(self.took_too_long(callback))),
        }
    }

    /// Runs a final callback, whose failure is only logged.
    pub(super) async fn final_callback(
        &self,
        callback: &'static str,
        future: impl Future<Output = ()>,
    ) {
        self.doing(Activity::Processing { callback });
        let future = AssertUnwindSafe(future).catch_unwind();
        match self.in_time(callback, future).await {
            Some(Ok(())) => {}
            Some(Err(panic)) => tracing::warn!("`{callback}` {}", panic_message(&*panic)),
            None => tracing::warn!("{}", self.took_too_long(callback)),
        }
    }

    fn took_too_long(&self, callback: &str) -> String {
        let deadline = self.context.settings.callback_deadline;
        format!("`{callback}` did not return or send a heartbeat in {deadline:?} and was dropped")
    }

    async fn in_time<T>(
        &self,
        callback: &'static str,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let (settings, clock) = (&self.context.settings, &self.context.clock);
        let begun = clock.now();
        let mut future = std::pin::pin!(future);
        let mut is_slow = false;
        loop {
            // Later heartbeats are checked when one of the two limits is reached.
            let heard = self.heard_since(begun);
            tokio::select! {
                biased;
                // The callback first: one that returns at the deadline has returned.
                value = &mut future => return Some(value),
                () = after(clock, heard, settings.callback_deadline) => {
                    if self.heard_since(begun) == heard {
                        return None;
                    }
                }
                () = after(clock, heard, settings.slow_after), if !is_slow => {
                    if self.heard_since(begun) == heard {
                        is_slow = true;
                        self.context.events.emit(&Event::ProcessorSlow {
                            shard: self.shard.lease_key.clone(),
                            callback,
                            running: clock.now().duration_since(begun),
                        });
                    }
                }
            }
        }
    }

    fn heard_since(&self, begun: Instant) -> Instant {
        self.progress.lock().heard_since(begun)
    }
}

/// Returns the message of a panic.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}

/// Completes `duration` after `start`; never if that overflows the clock.
async fn after(clock: &Arc<dyn Clock>, start: Instant, duration: Duration) {
    match start.checked_add(duration) {
        Some(deadline) => clock.sleep_until(deadline).await,
        None => future::pending().await,
    }
}
