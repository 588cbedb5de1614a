//! The calls of one process to its stream: how failures are handled, how to wait, how to stop.
//!
//! Owns the retry state and both outputs. Transient failures are retried, visibly and as long as
//! `--timeout` allows. Every wait ends at once when a stop is requested, except that a put in
//! flight gets a short grace. Knows nothing of unicorns.

use std::io;
use std::time::Duration;

use aws_command::Place;
use aws_command::failure::retried;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::batch::Parcel;
use crate::failure::{Failure, in_reply};
use crate::report::Console;
use crate::retry::Retry;
use crate::send::{Sender, Stored};

/// How long a put that is in flight when a stop is requested may still take.
const GRACE: Duration = Duration::from_secs(2);

/// Why the work ends early.
#[derive(Debug)]
pub(crate) enum Halt {
    /// A stop was requested.
    Stopped,
    /// A call failed permanently.
    Failed(Failure),
    /// Stdout cannot be written.
    Output(io::Error),
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The stream, the outputs and the stop token.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) sender: Sender,
    pub(crate) console: Console<'a>,
    pub(crate) stop: CancellationToken,
    place: Place,
    retry: Retry,
    timeout: Option<Duration>,
    /// The time of the first failure since the last progress.
    failing_since: Option<Instant>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        sender: Sender,
        console: Console<'a>,
        stop: CancellationToken,
        place: Place,
        (seed, timeout): (u64, Option<Duration>),
    ) -> Self {
        let retry = Retry::new(seed);
        Self { sender, console, stop, place, retry, timeout, failing_since: None }
    }

    /// Puts a batch once.
    ///
    /// # Errors
    ///
    /// `Stopped` if a stop was requested and the reply did not arrive within the grace. The outcome
    /// of the put itself is the inner result.
    pub(crate) async fn put(
        &mut self,
        batch: &[Parcel],
    ) -> Result<Result<Vec<Stored>, Failure>, Halt> {
        let grace_over = async {
            self.stop.cancelled().await;
            sleep(GRACE).await;
        };
        tokio::select! {
            biased;
            // The reply first: once it has arrived, the grace does not matter.
            reply = self.sender.put(batch) => return Ok(reply),
            () = grace_over => {}
        }
        let records: usize = batch.iter().map(|parcel| parcel.entries.len()).sum();
        self.console.note(&format!("no reply to the last put; its {records} may be stored"));
        Err(Halt::Stopped)
    }

    /// Resets the retry state after a call succeeded.
    pub(crate) fn progress(&mut self) {
        self.retry.reset();
        self.failing_since = None;
    }

    /// Reports why a call is retried and waits before the retry; returns an error if a retry is
    /// useless.
    ///
    /// # Errors
    ///
    /// `Failed` if the failure is not transient, or has lasted as long as `--timeout`; `Stopped`.
    pub(crate) async fn wait_out(&mut self, failure: Failure) -> Result<(), Halt> {
        if !failure.kind.is_transient() {
            return Err(Halt::Failed(failure));
        }
        let delay = self.retry.delay_after_failure();
        // Checked before the wait: a wait that ends after the timeout is useless.
        if self.is_late_after(delay) {
            return Err(Halt::Failed(failure));
        }
        self.console.notice(&retried(&failure, &self.place), Instant::now());
        self.pause(delay).await
    }

    /// Waits because the stream has `status` and accepts no records.
    ///
    /// # Errors
    ///
    /// `Failed` if this has lasted as long as `--timeout`; `Stopped`.
    pub(crate) async fn wait_for(&mut self, status: &str, delay: Duration) -> Result<(), Halt> {
        if self.is_late_after(delay) {
            let (code, words) = ("ResourceInUseException", format!("the stream is still {status}"));
            let stream = &self.place.stream;
            let failure = in_reply("DescribeStreamSummary", stream, Some(code), &words);
            return Err(Halt::Failed(failure));
        }
        self.pause(delay).await
    }

    /// Returns whether `--timeout` will have passed without a success after `delay`.
    fn is_late_after(&mut self, delay: Duration) -> bool {
        let now = Instant::now();
        let since = *self.failing_since.get_or_insert(now);
        self.timeout.is_some_and(|timeout| now + delay >= since + timeout)
    }

    /// Waits.
    ///
    /// # Errors
    ///
    /// `Stopped`, at once when a stop is requested.
    pub(crate) async fn pause(&self, delay: Duration) -> Result<(), Halt> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Halt::Stopped),
            () = sleep(delay) => Ok(()),
        }
    }
}
