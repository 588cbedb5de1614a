//! How long to wait before trying again, and when to give up.
//!
//! The only file that names the `backoff` crate, which is unmaintained (RUSTSEC-2025-0012), so
//! that replacing it is a change to this file. Its own jitter is switched off because it comes
//! from a global generator; ours is seeded. Never sleeps and never decides what is worth retrying.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;
use fastrand::Rng;

/// The first delay. A throttled shard accepts again within the second.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// No delay is longer, so that a stream that recovers is noticed soon.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Tries without any progress before giving up. Nine delays between ten tries are at most
/// 0.1 + 0.2 + … + 3.2 + 3 × 5 = 21.3 seconds, longer than a short outage or a failover.
pub(crate) const MAX_ATTEMPTS: u32 = 10;

/// The delays between the attempts of one piece of work.
#[derive(Debug)]
pub(crate) struct Retry {
    delays: ExponentialBackoff,
    rng: Rng,
    failures: u32,
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
        Self { delays, rng: Rng::with_seed(seed), failures: 0 }
    }

    /// Forgets earlier failures, because there was progress.
    pub(crate) fn reset(&mut self) {
        self.delays.reset();
        self.failures = 0;
    }

    /// Counts a failure: the delay before the next attempt, or `None` after the last.
    ///
    /// The delay lies between half and all of the exponential one, so that producers that were
    /// throttled together do not return together.
    pub(crate) fn delay_after_failure(&mut self) -> Option<Duration> {
        self.failures += 1;
        if self.failures >= MAX_ATTEMPTS {
            return None;
        }
        let whole = self.delays.next_backoff().expect("there is no limit on elapsed time");
        Some(whole.mul_f64(0.5 + self.rng.f64() / 2.0))
    }

    /// Failed attempts since the last progress.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(retry: &mut Retry) -> Vec<Duration> {
        std::iter::from_fn(|| retry.delay_after_failure()).collect()
    }

    #[test]
    fn delays_double_up_to_the_longest_and_then_end() {
        let delays = delays(&mut Retry::new(1));
        let whole = [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000].map(Duration::from_millis);
        assert_eq!(delays.len(), whole.len());
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
    fn progress_gives_all_attempts_back() {
        let mut retry = Retry::new(1);
        while retry.delay_after_failure().is_some() {}
        retry.reset();
        assert_eq!(delays(&mut retry).len(), 9);
        assert!(Retry::new(1).delay_after_failure().unwrap() <= FIRST_DELAY);
    }
}
