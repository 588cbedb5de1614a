//! Time as an argument: the monotonic clock that every deadline of a worker is measured on.
//!
//! Never reads the wall clock, which decides nothing here. A test gives a worker a clock of its
//! own, for instance one that runs one percent fast.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{ServiceError, ServiceErrorKind};

/// A monotonic clock and the wait that belongs to it.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The present instant.
    fn now(&self) -> Instant;

    /// Completes when [`now`](Self::now) has reached `deadline`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The clock of the tokio runtime; it follows paused time in tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioClock;

impl Clock for TokioClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep_until(deadline))
    }
}

/// Whether tokio's time on this thread, and `clock` with it, stand still while real time passes: paused
/// time, as in a test. Time that runs is read from the same monotonic clock of the system as real time,
/// so it cannot look paused by chance, however loaded the machine is.
pub(crate) fn is_paused(clock: &dyn Clock) -> bool {
    let before = (Instant::now(), clock.now());
    #[expect(clippy::disallowed_types, reason = "real time is what the others are compared with")]
    let real = std::time::Instant::now();
    // Longer than a tick of the system's clock.
    while real.elapsed() < Duration::from_micros(100) {
        std::hint::spin_loop();
    }
    (Instant::now(), clock.now()) == before
}

/// Makes a call to a service, or an error of kind `Unavailable` after `limit`.
pub(crate) async fn timely<T>(
    clock: &Arc<dyn Clock>,
    limit: Duration,
    what: &str,
    call: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    within(clock, limit, call).await.unwrap_or_else(|| {
        let context = format!("{what}: no answer within {limit:?}");
        Err(ServiceError::new(ServiceErrorKind::Unavailable, context))
    })
}

/// Waits for `duration` on `clock`.
pub(crate) async fn sleep(clock: &Arc<dyn Clock>, duration: Duration) {
    clock.sleep_until(clock.now() + duration).await;
}

/// Runs `call`, or gives up after `limit`. A write that is given up on may still be applied.
pub(crate) async fn within<T>(
    clock: &Arc<dyn Clock>,
    limit: Duration,
    call: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        reply = call => Some(reply),
        () = sleep(clock, limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn running_time_never_looks_paused_and_paused_time_always_does() {
        assert!((0..1_000).all(|_| !is_paused(&TokioClock)));
        tokio::time::pause();
        assert!((0..1_000).all(|_| is_paused(&TokioClock)));
        tokio::time::resume();
        assert!((0..1_000).all(|_| !is_paused(&TokioClock)));
    }
}
