//! Every duration of the lease protocol, and how each depends on the others.
//!
//! Most of them are fractions of the lease duration, which all workers of an application share; the
//! others limit how long one worker waits for another. The relations that must hold between two of
//! them are asserted at compile time, so that changing one cannot silently break the other. Pure:
//! reads no clock.

use std::time::Duration;

/// How long the owner of a lease has to hand it over after another worker has requested it; after
/// that the other worker takes the lease over. The same as in the KCL.
pub const HANDOFF_DEADLINE: Duration = Duration::from_secs(30);

/// How long a draining shard waits for deferred acknowledgements before its lease is released.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// How long a draining shard of which all records have been read may take to store its end.
pub(crate) const FINISH_LIMIT: Duration = Duration::from_secs(3);

/// How long the shards of a worker that stops because of an error may take to drain.
pub(crate) const FAILURE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a graceful shutdown may take if no deadline was set: when the handle is dropped, and in
/// `run_until`. The same as the default grace period of Kubernetes before it kills a container.
pub(crate) const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// The scan interval while a lease is being handed over.
pub(crate) const HANDOFF_SCAN: Duration = Duration::from_millis(250);

/// The minimum time between two listings that are made because shards are missing, or because a
/// stream seems to be deleted.
pub(crate) const HOLE_PAUSE: Duration = Duration::from_secs(5);

/// The number of renewals in one lease duration.
const RENEWALS: u32 = 3;
/// A write may take the lease duration divided by this number.
const WRITES: u32 = 4;
/// The fence margin is the lease duration divided by this number.
const MARGINS: u32 = 10;
/// How many lease durations a finished row is kept.
const FINISHED_STAYS: u32 = 6;
/// The minimum time for which a finished row is kept. Regardless of the lease duration it is longer
/// than a write can be in flight: a creation that arrived after the row was deleted would restart the
/// shard.
const FINISHED_STAYS_AT_LEAST: Duration = Duration::from_secs(60);
/// How many lease durations a worker stays below its share before it counts as full. It requests the
/// leases that move to it as soon as it has seen that they do, which is within one lease duration,
/// and what it requests counts as its own immediately.
const FULL_AFTER: u32 = 3;

/// The read budget of scans: 5 read units per second and worker, which is 20 KiB of rows per second
/// with consistent reads.
const SCAN_BYTES_PER_SECOND: usize = 20 * 1024;
/// The size of a lease row, measured on rows that the KCL and this library write.
const ROW_BYTES: usize = 400;

// A worker that has requested a shard receives what is acknowledged during the drain instead of
// taking the lease over in the middle of it.
const _: () =
    assert!(DRAIN_LIMIT.as_millis() + FINISH_LIMIT.as_millis() < HANDOFF_DEADLINE.as_millis());
// A due renewal can hang, time out and be retried before the owner fences itself: 1/RENEWALS +
// 2/WRITES < 1 - 1/MARGINS.
const _: () =
    assert!(WRITES * MARGINS + 2 * RENEWALS * MARGINS < (MARGINS - 1) * RENEWALS * WRITES);
// The next owner scans several times during a handoff.
const _: () = assert!(HANDOFF_SCAN.as_millis() * 10 < HANDOFF_DEADLINE.as_millis());

/// Returns the time between two renewals of a lease: a third of the lease duration.
#[must_use]
pub fn renew_interval(lease_duration: Duration) -> Duration {
    lease_duration / RENEWALS
}

/// Returns the fence margin, by which an owner stops before any other worker may take the lease: a
/// tenth of the lease duration, which covers clocks that run up to 5 % fast or slow on either side.
#[must_use]
pub fn fence_margin(lease_duration: Duration) -> Duration {
    lease_duration / MARGINS
}

/// Returns the timeout of a call to the lease table.
pub(crate) fn write_limit(lease_duration: Duration) -> Duration {
    lease_duration / WRITES
}

/// Returns for how long a finished row is kept, so that every worker sees the end of its shard.
pub(crate) fn finished_stays(lease_duration: Duration) -> Duration {
    (lease_duration * FINISHED_STAYS).max(FINISHED_STAYS_AT_LEAST)
}

/// Returns the time between two scans of a table of `rows` leases: a second for small tables, as much
/// as the read budget requires for large ones, and never more than half the lease duration.
pub(crate) fn scan_interval(rows: usize, lease_duration: Duration) -> Duration {
    let affordable =
        Duration::from_millis((rows * ROW_BYTES * 1_000 / SCAN_BYTES_PER_SECOND) as u64);
    affordable.max(Duration::from_secs(1)).min(lease_duration / 2)
}

/// Returns for how long an orphan in a table of `rows` leases is reserved for the worker it is
/// assigned to: until that worker must have seen it, but never for a large part of the lease
/// duration.
pub(crate) fn orphan_grace(rows: usize, lease_duration: Duration) -> Duration {
    (lease_duration / 5).min(scan_interval(rows, lease_duration) + Duration::from_millis(250))
}

/// Returns for how long the older of two workers with the same worker ID may continue before the
/// newer one yields: until the older one has stopped, if it is the one that must stop.
pub(crate) fn duplicate_grace(lease_duration: Duration) -> Duration {
    lease_duration * 2 + FAILURE_DEADLINE
}

/// Returns for how long a worker stays below its share of the leases before it counts as full.
pub(crate) fn full_after(lease_duration: Duration) -> Duration {
    lease_duration.saturating_mul(FULL_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_can_hang_and_be_repeated_before_the_fence_however_short_the_lease() {
        for millis in [1_000, 1_001, 3_333, 10_000, 300_000] {
            let lease = Duration::from_millis(millis);
            let repeated = renew_interval(lease) + 2 * write_limit(lease);
            assert!(repeated < lease - fence_margin(lease), "{lease:?}");
            assert!(orphan_grace(usize::from(u16::MAX), lease) < lease - fence_margin(lease));
            assert!(full_after(lease) < finished_stays(lease));
        }
    }
}
