//! The service's limits: the sizes, which are always enforced, and the rates of a shard, which are
//! enforced on request.

/// The longest retention period.
pub(super) const MAX_RETENTION_HOURS: i64 = 8_760;
/// The shortest retention period, and the default.
pub(super) const MIN_RETENTION_HOURS: i64 = 24;
/// Open shards of all streams of an account, as in the large regions.
pub(super) const SHARDS_PER_ACCOUNT: u32 = 20_000;
/// Reported by DescribeLimits; not enforced.
pub(super) const ON_DEMAND_STREAMS_PER_ACCOUNT: u32 = 50;
/// Fan-out consumers of a stream.
pub(super) const CONSUMERS_PER_STREAM: usize = 20;
/// Tags of a stream.
pub(super) const TAGS_PER_RESOURCE: usize = 50;
/// Records of one PutRecords.
pub(super) const RECORDS_PER_PUT: usize = 500;
/// Payloads and keys of one PutRecords.
pub(super) const PUT_SIZE: usize = 10 * 1024 * 1024;
/// Payloads and keys of one GetRecords reply.
pub(super) const READ_SIZE: usize = 10 * 1024 * 1024;
/// Payloads and keys of one event of a subscription.
pub(super) const EVENT_SIZE: usize = 2 * 1024 * 1024;
/// Records of one GetRecords reply, and of one event of a subscription.
pub(super) const RECORDS_PER_READ: i64 = 10_000;
/// The allowed values of a stream's largest record, in KiB; the first is the default.
pub(super) const RECORD_KIB: std::ops::RangeInclusive<i64> = 1_024..=10_240;

const WRITE_SIZE_PER_SECOND: i64 = 1024 * 1024;
const WRITE_RECORDS_PER_SECOND: i64 = 1_000;
const READ_SIZE_PER_SECOND: i64 = 2 * 1024 * 1024;
const READ_CALLS_PER_SECOND: i64 = 5;

/// The four rates of a shard.
#[derive(Debug)]
pub(super) struct Meter {
    write_size: Bucket,
    write_records: Bucket,
    read_size: Bucket,
    read_calls: Bucket,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            write_size: Bucket::new(WRITE_SIZE_PER_SECOND),
            write_records: Bucket::new(WRITE_RECORDS_PER_SECOND),
            read_size: Bucket::new(READ_SIZE_PER_SECOND),
            read_calls: Bucket::new(READ_CALLS_PER_SECOND),
        }
    }
}

impl Meter {
    /// Counts a record to be written; returns false if the shard has accepted too much this second.
    pub(super) fn admit_write(&mut self, size: usize, now_ms: i64) -> bool {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        // Both before either is reduced, so that a refused record uses up nothing.
        let admitted = self.write_size.has(size, now_ms) && self.write_records.has(1, now_ms);
        if admitted {
            self.write_size.take(size);
            self.write_records.take(1);
        }
        admitted
    }

    /// Counts a read; returns false if the shard was read too often, or has returned too much
    /// lately.
    pub(super) fn admit_read(&mut self, now_ms: i64) -> bool {
        // One byte suffices, because the size of the reply is not known yet.
        let admitted = self.read_size.has(1, now_ms) && self.read_calls.has(1, now_ms);
        if admitted {
            self.read_calls.take(1);
        }
        admitted
    }

    /// Counts what a read returned; a large reply reduces the allowance of the following seconds.
    pub(super) fn count_read(&mut self, size: usize) {
        self.read_size.take(i64::try_from(size).unwrap_or(i64::MAX));
    }
}

/// A token bucket with a capacity of one second. Levels are in thousandths, so that a millisecond
/// adds a whole number.
#[derive(Debug)]
struct Bucket {
    per_second: i64,
    level: i64,
    filled_ms: i64,
}

impl Bucket {
    fn new(per_second: i64) -> Self {
        Self { per_second, level: per_second * 1_000, filled_ms: i64::MIN }
    }

    /// Returns whether `amount` may be taken; a full bucket allows more than its capacity.
    fn has(&mut self, amount: i64, now_ms: i64) -> bool {
        let full = self.per_second * 1_000;
        let passed = now_ms.saturating_sub(self.filled_ms).max(0);
        self.level = self.level.saturating_add(passed.saturating_mul(self.per_second)).min(full);
        self.filled_ms = self.filled_ms.max(now_ms);
        self.level >= amount.saturating_mul(1_000).min(full)
    }

    fn take(&mut self, amount: i64) {
        self.level = self.level.saturating_sub(amount.saturating_mul(1_000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_reads_a_second_and_then_one_each_200_ms() {
        let mut meter = Meter::default();
        let admitted = (0..12).filter(|_| meter.admit_read(1_000)).count();
        assert_eq!(admitted, 5);
        assert!(!meter.admit_read(1_199));
        assert!(meter.admit_read(1_200));
        let steady = (1..100).filter(|tick| meter.admit_read(1_200 + tick * 200)).count();
        assert_eq!(steady, 99, "a poll each 200 ms is never throttled");
    }

    #[test]
    fn a_ten_megabyte_reply_is_paid_off_at_two_a_second() {
        let mut meter = Meter::default();
        assert!(meter.admit_read(0));
        meter.count_read(READ_SIZE);
        assert!(!meter.admit_read(3_999));
        assert!(meter.admit_read(4_001));
    }

    #[test]
    fn a_shard_takes_a_thousand_records_or_a_mebibyte_a_second() {
        let mut meter = Meter::default();
        assert_eq!((0..2_000).filter(|_| meter.admit_write(1, 0)).count(), 1_000);
        assert_eq!((0..2_000).filter(|_| meter.admit_write(2_048, 1_000)).count(), 512);
        assert!(meter.admit_write(5 * 1024 * 1024, 3_000), "a full bucket takes one large record");
        assert!(!meter.admit_write(1, 6_999));
        assert!(meter.admit_write(1, 7_001));
    }
}
