//! The service's time, as its last listing said it, carried on by our own monotonic clock.
//!
//! Decides nothing about leases: it dates what was read, so that a quiet shard can be told from a gap.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::clock::Clock;
use crate::record::Timestamp;

/// The time of one stream's service; a second or two early, never late. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ServiceClock {
    clock: Arc<dyn Clock>,
    seen: Arc<Mutex<Option<(Timestamp, Instant)>>>,
}

impl ServiceClock {
    /// A clock that knows nothing yet.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, seen: Arc::default() }
    }

    /// The service has just said that it is `at`.
    pub(crate) fn set(&self, at: Timestamp) {
        let seen = Some((at, self.clock.now()));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// The service's time now, once it has been heard.
    pub(crate) fn now(&self) -> Option<Timestamp> {
        self.at(self.clock.now())
    }

    /// The service's time at `instant`, if it had been heard by then.
    pub(crate) fn at(&self, instant: Instant) -> Option<Timestamp> {
        let (at, seen) = (*self.seen.lock().unwrap_or_else(PoisonError::into_inner))?;
        let passed = instant.checked_duration_since(seen)?.as_millis();
        let millis = at.as_millis().saturating_add(i64::try_from(passed).unwrap_or(i64::MAX));
        Some(Timestamp::from_millis(millis))
    }
}
