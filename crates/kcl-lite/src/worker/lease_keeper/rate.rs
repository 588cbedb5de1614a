//! The smoothed throughput of a shard in bytes per second. Pure: instants are arguments.

use tokio::time::Instant;

/// The throughput of one shard.
#[derive(Debug)]
pub(super) struct Rate {
    since: Instant,
    bytes: u64,
    smooth: Option<u64>,
}

impl Rate {
    /// Creates a rate that continues from the value of an earlier owner.
    pub(super) fn new(now: Instant, before: Option<u64>) -> Self {
        Self { since: now, bytes: 0, smooth: before }
    }

    /// Returns the rate at `now`, when `bytes` have been delivered in total; each measurement halves the
    /// weight of the previous ones. `None` until a second has passed.
    pub(super) fn measure(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        let millis = now.saturating_duration_since(self.since).as_millis();
        if millis >= 1_000 {
            let grown = u128::from(bytes.saturating_sub(self.bytes)) * 1_000 / millis;
            let rate = u64::try_from(grown).unwrap_or(u64::MAX);
            // Both are halved before they are added, so that the sum cannot overflow.
            let smooth = self.smooth.map_or(rate, |before| before / 2 + rate / 2);
            (self.since, self.bytes, self.smooth) = (now, bytes, Some(smooth));
        }
        self.smooth
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_follows_what_is_delivered_by_halves() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::new(start, None);
        assert_eq!(rate.measure(start, 5_000), None);
        assert_eq!(rate.measure(at(5), 50_000), Some(10_000));
        assert_eq!(rate.measure(at(10), 50_000), Some(5_000));
        assert_eq!(Rate::new(start, Some(8_000)).measure(at(1), 0), Some(4_000));
    }
}
