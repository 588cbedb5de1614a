//! How long to wait before a retry.
//!
//! The only file that names the `backoff` crate, which is unmaintained (RUSTSEC-2025-0012), so that
//! only this file changes when it is replaced. Its own jitter is switched off because it comes from
//! a global generator; this module's is seeded. Never sleeps and never decides whether to retry.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;
use fastrand::Rng;

/// The first delay. A throttled shard accepts records again within the second.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest delay, short enough to notice soon that a stream has recovered.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// The delays between the attempts of one operation.
#[derive(Debug)]
pub(crate) struct Retry {
    delays: ExponentialBackoff,
    rng: Rng,
}

impl Retry {
    pub(crate) fn new(seed: u64) -> Self {
        let delays = ExponentialBackoffBuilder::new()
            .with_initial_interval(FIRST_DELAY)
            .with_multiplier(2.0)
            .with_max_interval(LONGEST_DELAY)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        Self { delays, rng: Rng::with_seed(seed) }
    }

    /// Resets the delays after progress.
    pub(crate) fn reset(&mut self) {
        self.delays.reset();
    }

    /// Returns the delay before the next attempt.
    ///
    /// It lies between half of the exponential delay and all of it, so that producers that were
    /// throttled together do not retry together.
    pub(crate) fn delay_after_failure(&mut self) -> Duration {
        let whole = self.delays.next_backoff().expect("there is no limit on elapsed time");
        whole.mul_f64(0.5 + self.rng.f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(retry: &mut Retry) -> Vec<Duration> {
        (0..9).map(|_| retry.delay_after_failure()).collect()
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let delays = delays(&mut Retry::new(1));
        let whole = [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000].map(Duration::from_millis);
        for (delay, whole) in delays.iter().zip(whole) {
            assert!(*delay >= whole / 2 && *delay <= whole, "{delay:?} of {whole:?}");
        }
    }

    #[test]
    fn jitter_comes_from_the_seed() {
        assert_eq!(delays(&mut Retry::new(1)), delays(&mut Retry::new(1)));
        assert_ne!(delays(&mut Retry::new(1)), delays(&mut Retry::new(2)));
    }

    #[test]
    fn progress_starts_the_delays_again() {
        let mut retry = Retry::new(1);
        delays(&mut retry);
        retry.reset();
        assert!(retry.delay_after_failure() <= FIRST_DELAY);
    }
}
