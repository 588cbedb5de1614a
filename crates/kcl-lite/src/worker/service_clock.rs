//! The clock of the service, as the last listing returned it, extrapolated by the local monotonic clock.
//!
//! Decides nothing about leases: it dates what was read, so that a quiet shard is distinguished from a
//! gap.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::record::Timestamp;

/// The service's clock for one stream; a second or two behind, never ahead. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ServiceClock {
    clock: Arc<dyn Clock>,
    seen: Arc<Mutex<Option<(Timestamp, Instant)>>>,
}

impl ServiceClock {
    /// Creates a clock without a reading.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, seen: Arc::default() }
    }

    /// Sets the time that the service has just returned.
    pub(crate) fn set(&self, at: Timestamp) {
        let seen = Some((at, self.clock.now()));
        *self.seen.lock() = seen;
    }

    /// Returns the service's time now; `None` before the first reading.
    pub(crate) fn now(&self) -> Option<Timestamp> {
        self.at(self.clock.now())
    }

    /// Returns the service's time at `instant`, which may be before the reading.
    pub(crate) fn at(&self, instant: Instant) -> Option<Timestamp> {
        let (at, seen) = (*self.seen.lock())?;
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let later = millis(instant.saturating_duration_since(seen));
        // Rounded up: a time that is too early repeats a record, one that is too late loses a record.
        let earlier = seen.saturating_duration_since(instant) + Duration::from_millis(1);
        let earlier = if instant < seen { millis(earlier) } else { 0 };
        Some(Timestamp::from_millis(at.as_millis().saturating_add(later).saturating_sub(earlier)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TokioClock;

    #[tokio::test(start_paused = true)]
    async fn the_time_is_known_before_and_after_it_was_heard() {
        let clock = ServiceClock::new(Arc::new(TokioClock));
        let now = Instant::now();
        assert_eq!(clock.at(now), None);
        clock.set(Timestamp::from_millis(100_000));
        for (instant, millis) in [
            (now, 100_000),
            (now + Duration::from_secs(5), 105_000),
            (now - Duration::from_secs(5), 95_000 - 1),
        ] {
            assert_eq!(clock.at(instant), Some(Timestamp::from_millis(millis)));
        }
    }
}
