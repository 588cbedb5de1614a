//! The time of the local services.
//!
//! Wall time is the machine's at construction plus the time that tokio's clock has counted since,
//! plus the jumps of [`Clock::advance`]. Therefore a paused runtime pauses the services too, a test
//! can jump an hour, and time never moves back. This is the only file of the crate that reads the
//! machine's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;

/// The clock that both services share; clones are handles to the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    started: Instant,
    base_ms: i64,
    /// Milliseconds added by `advance`; a channel, so that a jump wakes sleepers.
    jumped: watch::Sender<i64>,
}

impl Clock {
    /// Creates a clock that starts at the machine's present time.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the machine's clock is read"
    )]
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(whole_ms(now))
    }

    /// Creates a clock that starts at a given time, in milliseconds since 1970, for deterministic
    /// tests.
    #[must_use]
    pub fn starting_at(epoch_ms: i64) -> Self {
        Self { started: Instant::now(), base_ms: epoch_ms, jumped: watch::Sender::new(0) }
    }

    /// Returns the wall time in milliseconds since 1970. It never moves back.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        let elapsed = whole_ms(self.started.elapsed());
        self.base_ms.saturating_add(elapsed).saturating_add(*self.jumped.borrow())
    }

    /// Jumps forward and wakes all sleepers.
    pub fn advance(&self, by: Duration) {
        self.jumped.send_modify(|jumped| *jumped = jumped.saturating_add(whole_ms(by)));
    }

    /// Waits until [`Clock::now_ms`] has reached `epoch_ms`, by tokio's time or by a jump.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn sleep_until_ms(&self, epoch_ms: i64) {
        let mut jumps = self.jumped.subscribe();
        loop {
            // Before the clock is read, so that a jump in between is not missed.
            jumps.mark_unchanged();
            let left = epoch_ms.saturating_sub(self.now_ms());
            let Ok(left @ 1..) = u64::try_from(left) else { return };
            tokio::select! {
                biased;
                // `self` owns the sender, so the channel cannot be closed here.
                _ = jumps.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(left)) => {}
            }
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn whole_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_follows_the_paused_clock_and_jumps() {
        let clock = Clock::starting_at(1_000);
        assert_eq!(clock.now_ms(), 1_000);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(clock.now_ms(), 1_250);
        clock.clone().advance(Duration::from_secs(3_600));
        assert_eq!(clock.now_ms(), 3_601_250);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleeper_wakes_by_a_jump_without_any_time_passing() {
        let clock = Clock::starting_at(0);
        let before = Instant::now();
        let jump = async {
            tokio::task::yield_now().await;
            clock.advance(Duration::from_secs(3_600));
        };
        tokio::join!(biased; clock.sleep_until_ms(3_600_000), jump);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleeper_wakes_by_tokio_time_and_not_before() {
        let clock = Clock::starting_at(0);
        clock.sleep_until_ms(5_000).await;
        assert_eq!(clock.now_ms(), 5_000);
    }
}
