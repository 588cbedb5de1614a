//! Construction of a [`LocalAws`].
//!
//! Owns the options and the lock on the data directory, which one process at a time may use. Never
//! starts a server.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::dynamo::Dynamo;
use crate::faults::Faults;
use crate::gateway::Gateway;
use crate::kinesis::{Kinesis, KinesisOptions};
use crate::request_log::RequestLog;
use crate::{LocalAws, REGION};

/// Why the services cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory cannot be created, read or locked.
    #[error("data directory `{}` cannot be used", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another process serves this data directory.
    #[error("data directory `{}` is in use by another local-aws", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The tables cannot be opened.
    #[error("the DynamoDB tables cannot be opened: {message}")]
    Tables {
        /// The error of the database.
        message: String,
    },
}

/// Options of a [`LocalAws`]; see [`LocalAws::builder`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Builder {
    enforce_limits: bool,
    data_dir: Option<PathBuf>,
    seed: u64,
    clock: Option<Clock>,
    transition: Option<Duration>,
}

impl Builder {
    /// Enforces the rate and size limits of the real Kinesis; default: no.
    pub fn enforce_limits(mut self, enforce: bool) -> Self {
        self.enforce_limits = enforce;
        self
    }

    /// Stores everything in this directory, so that it survives a kill -9; default: in memory.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// Sets the random seed; default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the clock; default: one that starts at the wall time.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Sets how long a stream stays CREATING, UPDATING or DELETING; default: 100 ms.
    pub fn transition(mut self, transition: Duration) -> Self {
        self.transition = Some(transition);
        self
    }

    /// Creates the services.
    ///
    /// # Errors
    ///
    /// Only with a data directory: it cannot be used, or another process uses it.
    pub fn build(self) -> Result<LocalAws, StartError> {
        let clock = self.clock.clone().unwrap_or_default();
        let options = self.kinesis_options();
        let (kinesis, dynamo, lock) = match &self.data_dir {
            None => (
                Kinesis::new(clock.clone(), options),
                Dynamo::in_memory(clock.clone()).map_err(tables)?,
                None,
            ),
            Some(dir) => {
                let lock = lock(dir)?;
                let failed = |source| StartError::DataDir { path: dir.clone(), source };
                let kinesis = Kinesis::open(clock.clone(), options, &dir.join("kinesis"))
                    .map_err(|error| failed(io::Error::other(error)))?;
                let dynamo = Dynamo::open(clock.clone(), &dir.join("dynamodb")).map_err(tables)?;
                (kinesis, dynamo, Some(lock))
            }
        };
        let faults = Faults::new(self.seed);
        let gateway = Gateway {
            clock,
            faults,
            requests: RequestLog::new(),
            kinesis,
            dynamo,
            lock,
            replies: 0.into(),
        };
        Ok(LocalAws { gateway: Arc::new(gateway) })
    }

    fn kinesis_options(&self) -> KinesisOptions {
        let mut options = KinesisOptions {
            enforce_limits: self.enforce_limits,
            region: REGION.to_owned(),
            ..KinesisOptions::default()
        };
        if let Some(transition) = self.transition {
            options.transition = transition;
        }
        options
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that `map_err` wants")]
fn tables(error: dynoxide::DynoxideError) -> StartError {
    StartError::Tables { message: error.to_string() }
}

/// Locks the directory for this process; the system releases the lock when the process ends,
/// however it ends.
fn lock(dir: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::DataDir { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let file = File::create(dir.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}
