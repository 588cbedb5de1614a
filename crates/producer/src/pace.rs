//! How often to measure, and how many unicorns at a time. Pure: ticks in, numbers out.

use std::time::Duration;

/// High rates are served ten times a second, so that records share requests.
const TICKS_PER_SECOND: f64 = 10.0;

/// The rhythm of a producer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// Every unicorn is measured once per interval.
    Every(Duration),
    /// This many records a second over all unicorns.
    PerSecond(f64),
}

impl Pace {
    /// Returns the time between two ticks.
    pub(crate) fn period(self) -> Duration {
        match self {
            Self::Every(interval) => interval,
            Self::PerSecond(rate) => Duration::from_secs_f64(1.0 / rate.min(TICKS_PER_SECOND)),
        }
    }

    /// Returns how many records to create at the `tick`th tick, counted from 1, for `unicorns`
    /// unicorns.
    ///
    /// Over the ticks the numbers add up to the rate, without drift from rounding.
    pub(crate) fn records_due(self, tick: u64, unicorns: usize) -> usize {
        match self {
            Self::Every(_) => unicorns,
            Self::PerSecond(rate) if rate <= TICKS_PER_SECOND => 1,
            Self::PerSecond(rate) => due_until(rate, tick) - due_until(rate, tick - 1),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "rates end at 100,000 and a float counts exactly to 2^53: thousands of years"
)]
fn due_until(rate: f64, tick: u64) -> usize {
    (rate * tick as f64 / TICKS_PER_SECOND).floor() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_rate_the_whole_herd_is_measured_every_interval() {
        let pace = Pace::Every(Duration::from_secs(1));
        assert_eq!((pace.period(), pace.records_due(7, 3)), (Duration::from_secs(1), 3));
    }

    #[test]
    fn a_rate_is_met_exactly_whatever_the_herd() {
        // Ten seconds each, which are at most a hundred ticks.
        for (rate, ticks, records) in
            [(0.5, 5, 5), (3.0, 30, 30), (10.0, 100, 100), (25.0, 100, 250), (1_234.5, 100, 12_345)]
        {
            let pace = Pace::PerSecond(rate);
            assert_eq!((pace.period() * ticks).as_millis().div_ceil(10), 1000, "rate {rate}");
            let made: usize = (1..=ticks).map(|tick| pace.records_due(tick.into(), 3)).sum();
            assert_eq!(made, records, "rate {rate}");
        }
    }
}
