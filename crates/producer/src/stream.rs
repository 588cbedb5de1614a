//! Getting a stream that takes records: creating it if asked, waiting until it is ACTIVE.
//!
//! The ordinary producer calls none of this unless a put says that there is no stream: the
//! permission to put is all it needs.

use std::time::Duration;

use aws_sdk_kinesis::types::StreamStatus;
use tokio::time::Instant;

use crate::failure::{Failure, FailureKind};
use crate::session::{Halt, Session};

/// The service creates a stream within a minute; more than five will not end well.
const MAX_CREATION: Duration = Duration::from_secs(5 * 60);

/// Well under the ten descriptions a second that an account may ask for.
const POLL_EVERY: Duration = Duration::from_secs(1);

impl Session<'_> {
    /// Creates the stream with `shards` shards unless it exists, and waits until it is ACTIVE.
    ///
    /// # Errors
    ///
    /// As [`Session::wait_until_active`], or the creation is refused.
    pub(crate) async fn create_if_missing(&mut self, shards: i32) -> Result<(), Halt> {
        loop {
            let failure = match self.sender.status().await {
                Ok(_) => break,
                Err(failure) if failure.kind == FailureKind::Missing => {
                    self.console.note(&format!("creating the stream with {shards} shard(s)"));
                    match self.sender.create(shards).await {
                        Ok(()) => break,
                        // `Busy` if somebody else was faster, or our own lost request was: the
                        // next look finds the stream.
                        Err(failure) => failure,
                    }
                }
                Err(failure) => failure,
            };
            self.wait_out(failure).await?;
        }
        self.progress();
        self.wait_until_active().await
    }

    /// Waits while the stream is being created.
    ///
    /// # Errors
    ///
    /// `Failed` if it is missing, being deleted, or not ACTIVE after five minutes; `Stopped`.
    pub(crate) async fn wait_until_active(&mut self) -> Result<(), Halt> {
        let deadline = Instant::now() + MAX_CREATION;
        let mut told = false;
        loop {
            match self.sender.status().await {
                Ok(StreamStatus::Active | StreamStatus::Updating) => return Ok(()),
                Ok(StreamStatus::Deleting) => return Err(halt(FailureKind::Deleting, "DELETING")),
                Ok(status) if Instant::now() >= deadline => {
                    return Err(halt(FailureKind::NotActive, status.as_str()));
                }
                Ok(status) => {
                    if !std::mem::replace(&mut told, true) {
                        self.console.note(&format!("the stream is {status}; waiting for ACTIVE"));
                    }
                    self.progress();
                    self.pause(POLL_EVERY).await?;
                }
                Err(failure) => self.wait_out(failure).await?,
            }
        }
    }
}

fn halt(kind: FailureKind, status: &str) -> Halt {
    Halt::Failed(Failure::new(kind, "DescribeStreamSummary", status))
}
