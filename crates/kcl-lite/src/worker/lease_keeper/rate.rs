//! How many bytes per second a shard carries, smoothed. Pure: instants come in as arguments.

use tokio::time::Instant;

/// The rate of one shard.
#[derive(Debug)]
pub(super) struct Rate {
    since: Instant,
    bytes: u64,
    smooth: Option<u64>,
}

impl Rate {
    /// A rate that starts with what an earlier owner measured.
    pub(super) fn new(now: Instant, before: Option<u64>) -> Self {
        Self { since: now, bytes: 0, smooth: before }
    }

    /// The rate at `now`, when `bytes` have been delivered in all; each call counts half of what was
    /// before. `None` until a second has passed.
    pub(super) fn measure(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        let millis = now.saturating_duration_since(self.since).as_millis();
        if millis >= 1_000 {
            let grown = u128::from(bytes.saturating_sub(self.bytes)) * 1_000 / millis;
            let rate = u64::try_from(grown).unwrap_or(u64::MAX);
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
