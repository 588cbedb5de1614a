//! Getting a stream that takes records: creating it if asked, waiting until it is ACTIVE.
//!
//! The ordinary producer calls none of this unless a put says that there is no stream: the
//! permission to put is all it needs.

use std::time::Duration;

use aws_sdk_kinesis::types::StreamStatus;
use kcl_lite::ServiceErrorKind;

use crate::session::{Halt, Session};

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
                Err(failure) if failure.kind == ServiceErrorKind::Missing => {
                    self.console.note(&format!("creating the stream with {shards} shard(s)"));
                    match self.sender.create(shards).await {
                        Ok(()) => break,
                        // `NotReady` if somebody else was faster, or our own lost request was: the
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

    /// Waits while the stream is being created or deleted.
    ///
    /// # Errors
    ///
    /// `Failed` if it is missing, or not ACTIVE within `--timeout`; `Stopped`.
    pub(crate) async fn wait_until_active(&mut self) -> Result<(), Halt> {
        let mut told = None;
        loop {
            match self.sender.status().await {
                Ok(StreamStatus::Active | StreamStatus::Updating) => return Ok(()),
                Ok(status) => {
                    if told.as_ref() != Some(&status) {
                        self.console.note(&format!("the stream is {status}; waiting for ACTIVE"));
                    }
                    self.wait_for(status.as_str(), POLL_EVERY).await?;
                    told = Some(status);
                }
                Err(failure) => self.wait_out(failure).await?,
            }
        }
    }
}
