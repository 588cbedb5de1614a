//! One process's dealings with its stream: what to do about a failure, how to wait, how to stop.
//!
//! Owns the retry state and both outputs. Transient failures are waited out, visibly and a bounded
//! number of times; every wait ends at once when a stop is requested, except that for a put on
//! its way, which gets a short grace. Knows nothing of unicorns.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::batch::Parcel;
use crate::failure::Failure;
use crate::report::Console;
use crate::retry::{MAX_ATTEMPTS, Retry};
use crate::send::{Sender, Stored};

/// How long a put that is on its way when a stop is requested may still take.
const GRACE: Duration = Duration::from_secs(2);

/// Why the work ends before its end.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The user asked.
    Stopped,
    /// A call failed for good.
    Failed(Failure),
    /// Stdout cannot be written.
    Output(io::Error),
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// The stream, the outputs and the wish to stop.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) sender: Sender,
    pub(crate) console: Console<'a>,
    pub(crate) stop: CancellationToken,
    retry: Retry,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        sender: Sender,
        console: Console<'a>,
        stop: CancellationToken,
        seed: u64,
    ) -> Self {
        Self { sender, console, stop, retry: Retry::new(seed) }
    }

    /// Puts a batch once.
    ///
    /// # Errors
    ///
    /// `Stopped` if a stop was requested and the reply did not come within the grace; what the put
    /// itself came to is the inner result.
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
            reply = self.sender.put(batch) => return Ok(reply),
            () = grace_over => {}
        }
        let records: usize = batch.iter().map(|parcel| parcel.entries.len()).sum();
        self.console.note(&format!("no reply to the last put; its {records} may be stored"));
        Err(Halt::Stopped)
    }

    /// Forgets earlier failures: something was stored or answered.
    pub(crate) fn progress(&mut self) {
        self.retry.reset();
    }

    /// Says why a call is repeated and waits before it; gives up if it is no use.
    ///
    /// # Errors
    ///
    /// `Failed` if the failure is not transient or was the last one allowed; `Stopped`.
    pub(crate) async fn wait_out(&mut self, failure: Failure) -> Result<(), Halt> {
        if !failure.is_transient() {
            return Err(Halt::Failed(failure));
        }
        let Some(delay) = self.retry.delay_after_failure() else {
            return Err(Halt::Failed(failure));
        };
        let next = self.retry.failures() + 1;
        let line = format!(
            "{} failed: {}; attempt {next} of {MAX_ATTEMPTS} in {} ms",
            failure.operation,
            failure.reason,
            delay.as_millis()
        );
        self.console.notice(&line, Instant::now());
        self.pause(delay).await
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
