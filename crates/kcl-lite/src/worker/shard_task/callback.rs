//! Calling the processor: a panic is an outcome, and so is taking too long.
//!
//! The only place where a user's future is polled. What an outcome leads to is decided elsewhere.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt as _, future};
use tokio::time::Instant;

use super::{Pass, ShardTask, panic_message};
use crate::clock::Clock;
use crate::error::{BoxError, Error, ErrorKind, Failure};
use crate::event::Event;
use crate::settings::FailurePolicy;
use crate::worker::liveness::Activity;

/// How a callback failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// It returned an error, or panicked.
    Failed(Failure),
    /// It was dropped at the deadline.
    TooLong(String),
}

impl ShardTask {
    /// Waits for a callback: an event when it is slow, the end of it at the deadline. A heartbeat
    /// restarts both times.
    pub(super) async fn call<T>(
        &mut self,
        callback: &'static str,
        future: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, Fault> {
        self.doing(Activity::Processing { callback });
        let future = AssertUnwindSafe(future).catch_unwind();
        match self.in_time(callback, future).await {
            Some(Ok(Ok(value))) => Ok(value),
            Some(Ok(Err(error))) => Err(Fault::Failed(Failure::from(error))),
            Some(Err(panic)) => {
                self.is_dead = true;
                Err(Fault::Failed(Failure::new(panic_message(&*panic))))
            }
            None => Err(Fault::TooLong(self.took_too_long(callback))),
        }
    }

    /// Runs a last callback; one that fails changes nothing any more.
    pub(super) async fn farewell(&self, callback: &'static str, future: impl Future<Output = ()>) {
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
            // What is heard later is looked at when one of the two times is over.
            let heard = self.heard_since(begun);
            tokio::select! {
                biased;
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
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).heard_since(begun)
    }

    /// What follows from a failure that no batch is to blame for.
    pub(super) fn after_fault(&mut self, callback: &str, fault: Fault) -> Pass {
        let failure = match fault {
            Fault::TooLong(reason) => return Pass::TooLong(reason),
            Fault::Failed(failure) => {
                let text = format!("{callback}: {}", failure.text);
                failure.reworded(text)
            }
        };
        self.failed_passes = self.failed_passes.saturating_add(1);
        let failures = self.failed_passes;
        if failures >= self.context.settings.failures.attempts()
            && let Some(pass) = self.give_up(failures, &failure)
        {
            return pass;
        }
        Pass::Again { failures, error: failure.text, at_once: false }
    }

    /// The end of all attempts, unless the policy is to go on without the record.
    pub(super) fn give_up(&self, failures: u32, failure: &Failure) -> Option<Pass> {
        let shard = &self.shard.lease_key;
        let what = format!("the processor failed {failures} times: {}", failure.text);
        match self.context.settings.failures {
            FailurePolicy::GiveBack { .. } => Some(Pass::GiveBack(what)),
            FailurePolicy::Stop { .. } => Some(Pass::Stop(Error::caused(
                ErrorKind::Processor,
                format!("shard `{shard}`: {what}"),
                failure.source.clone(),
            ))),
            FailurePolicy::Retry | FailurePolicy::DeadLetter { .. } => None,
        }
    }
}

/// Completes so long after `start`; never when that is off the clock.
async fn after(clock: &Arc<dyn Clock>, start: Instant, duration: Duration) {
    match start.checked_add(duration) {
        Some(deadline) => clock.sleep_until(deadline).await,
        None => future::pending().await,
    }
}
