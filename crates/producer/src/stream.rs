//! Prepares a stream: creates it if requested and waits until it is ACTIVE.
//!
//! Without `--create-stream` none of this is called unless a put reports that the stream does not
//! exist: the permission to put is sufficient.

use std::time::Duration;

use aws_sdk_kinesis::types::StreamStatus;
use kcl_lite::ServiceErrorKind;

use crate::session::{Halt, Session};

/// Well below the ten calls a second that an account is allowed.
const POLL_EVERY: Duration = Duration::from_secs(1);

impl Session<'_> {
    /// Creates the stream with `shards` shards unless it exists, and waits until it is ACTIVE.
    ///
    /// # Errors
    ///
    /// The errors of [`Session::wait_until_active`], or the creation is refused.
    pub(crate) async fn create_if_missing(&mut self, shards: i32) -> Result<(), Halt> {
        loop {
            let failure = match self.sender.status().await {
                Ok(_) => break,
                Err(failure) if failure.kind == ServiceErrorKind::Missing => {
                    self.console.note(&format!("creating the stream with {shards} shard(s)"));
                    match self.sender.create(shards).await {
                        Ok(()) => break,
                        // `NotReady` if another process created it, or an earlier request of ours
                        // whose reply was lost: the next call finds the stream.
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

    /// Waits while the stream is being created or deleted.
    ///
    /// # Errors
    ///
    /// `Failed` if it is missing, or not ACTIVE within `--timeout`; `Stopped`.
    pub(crate) async fn wait_until_active(&mut self) -> Result<(), Halt> {
        let mut reported = None;
        loop {
            match self.sender.status().await {
                Ok(StreamStatus::Active | StreamStatus::Updating) => return Ok(()),
                Ok(status) => {
                    if reported.as_ref() != Some(&status) {
                        self.console.note(&format!("the stream is {status}; waiting for ACTIVE"));
                    }
                    self.wait_for(status.as_str(), POLL_EVERY).await?;
                    reported = Some(status);
                }
                Err(failure) => self.wait_out(failure).await?,
            }
        }
    }
}
