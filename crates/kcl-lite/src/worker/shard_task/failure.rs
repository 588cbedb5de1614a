//! The handling of processor failures: a retry, a release, or the stop of the worker.
//!
//! [`bisect`](super::bisect) tracks which records failed; this module tracks how often in a row and since
//! when, and applies the failure policy.

use std::time::Duration;

use super::callback::Fault;
use super::dead_letters::no_place;
use super::task::{Pass, ShardTask};
use crate::checkpoint::{AckWindow, Rejected};
use crate::clock;
use crate::error::{Error, ErrorKind, Failure};
use crate::event::Event;
use crate::position::Position;
use crate::settings::FailurePolicy;
use crate::worker::liveness::Activity;

impl ShardTask {
    /// Decides how to continue after a failure outside `process`.
    pub(super) fn after_fault(&mut self, callback: &str, fault: Fault) -> Pass {
        let failure = match fault {
            Fault::TooLong(reason) => return Pass::TooLong(reason),
            Fault::Failed(failure) => {
                let text = format!("{callback}: {}", failure.text);
                failure.reworded(text)
            }
        };
        self.failures.failed_passes = self.failures.failed_passes.saturating_add(1);
        let failures = self.failures.failed_passes;
        if failures >= self.context.settings.failures.attempts()
            && let Some(pass) = self.give_up(failures, &failure)
        {
            return pass;
        }
        // No record is to blame for a failure outside `process`, so nothing can be dead-lettered.
        Pass::Again { failures, error: failure.text, at_once: false }
    }

    /// Ends the pass when the attempts are used up; `None` if the policy is to retry or dead-letter.
    pub(super) fn give_up(&self, failures: u32, failure: &Failure) -> Option<Pass> {
        let shard = &self.shard.lease_key;
        let what = format!("the processor failed {failures} times: {}", failure.text);
        match self.context.settings.failures {
            FailurePolicy::ReleaseShard { .. } => Some(Pass::ReleaseShard(what)),
            FailurePolicy::Stop { .. } => Some(Pass::Stop(Error::caused(
                ErrorKind::Processor,
                format!("shard `{shard}`: {what}"),
                failure.source.clone(),
            ))),
            FailurePolicy::Retry | FailurePolicy::DeadLetter { .. } => None,
        }
    }

    /// Ends the pass if a deferred acknowledgement was dropped and so will never come.
    pub(super) fn after_dropped_token(&mut self, window: &AckWindow) -> Option<Pass> {
        let position = window.failed_at()?;
        let error = "a deferred acknowledgement was dropped".to_owned();
        let attempts = self.context.settings.failures.attempts();
        let failures =
            self.failures.bisection.failed(position, attempts, Failure::new(error.clone()));
        Some(Pass::Again { failures, error, at_once: false })
    }

    pub(super) fn cannot_reject(&mut self, rejected: &Rejected) -> Pass {
        let failure = no_place(rejected.failure.clone());
        let last = rejected.records.last().map(Position::of).expect("a token is for some record");
        let attempts = self.context.settings.failures.attempts();
        let error = failure.text.clone();
        let failures = self.failures.bisection.failed(last, attempts, failure);
        Pass::Again { failures, error, at_once: false }
    }

    /// Emits a failure and waits before the retry; returns true if a drain interrupts the wait.
    pub(super) async fn pause(&mut self, failures: u32, error: &str, at_once: bool) -> bool {
        let retry_in =
            if at_once { Duration::ZERO } else { self.failures.retry.delay(&mut self.rng) };
        self.context.events.emit(&Event::ProcessorFailed {
            shard: self.shard.lease_key.clone(),
            attempts: failures,
            error: error.to_owned(),
            retry_in,
        });
        let since = *self.failures.failing_since.get_or_insert_with(|| self.context.clock.now());
        self.doing_since(Activity::Retrying { failures, error: error.to_owned() }, since);
        self.sleep_unless_drained(retry_in).await
    }

    /// Sleeps; returns true if a drain interrupts the sleep.
    pub(super) async fn sleep_unless_drained(&self, duration: Duration) -> bool {
        tokio::select! {
            biased;
            // The drain first, so that it also interrupts a pause of zero.
            () = self.drain.cancelled() => true,
            () = clock::sleep(&self.context.clock, duration) => false,
        }
    }
}
