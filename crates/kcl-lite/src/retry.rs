//! Exponential backoff between attempts: bounded, with jitter from a seeded generator.
//!
//! The only file that names the `backoff` crate. The sequence comes from that crate; its own jitter
//! is switched off, because randomness is an argument here.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// The delays of one operation that is being retried.
#[derive(Debug)]
pub(crate) struct Retry {
    sequence: ExponentialBackoff,
    attempts: u32,
}

impl Retry {
    /// Creates a sequence of delays that starts near `first` and doubles up to `most`, without an
    /// end.
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        let sequence = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            multiplier: 2.0,
            max_interval: most,
            randomization_factor: 0.0,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { sequence, attempts: 0 }
    }

    /// Returns the number of delays since the last success.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Returns the next delay: between half and all of the exponential value.
    pub(crate) fn delay(&mut self, rng: &mut fastrand::Rng) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        // The sequence never ends, because it has no maximum elapsed time.
        let full = self.sequence.next_backoff().unwrap_or(self.sequence.max_interval);
        full.mul_f64(0.5 + rng.f64() / 2.0)
    }

    /// Restarts the sequence after a success.
    pub(crate) fn succeeded(&mut self) {
        self.attempts = 0;
        self.sequence.current_interval = self.sequence.initial_interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_start_again_after_a_success() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(1));
        let delays: Vec<_> = (0..8).map(|_| retry.delay(&mut rng)).collect();
        assert!(delays[0] >= Duration::from_millis(50) && delays[0] <= Duration::from_millis(100));
        assert!(delays[7] >= Duration::from_millis(500) && delays[7] <= Duration::from_secs(1));
        retry.succeeded();
        assert!(retry.delay(&mut rng) <= Duration::from_millis(100));
        assert_eq!(retry.attempts(), 1);
    }
}
