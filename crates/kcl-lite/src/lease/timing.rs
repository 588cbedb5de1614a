//! Every duration of the lease protocol, and how each depends on the others.
//!
//! Most of them are parts of the lease duration, which all workers of an application share; the others
//! bound what one worker waits for another. What must hold between two of them is asserted here, so
//! that a change of one that breaks the other does not compile. Pure: reads no clock.

use std::time::Duration;

/// How long the owner of a lease has to hand it over after another worker has requested it; then that
/// worker takes the lease over. The same as in the KCL.
pub const HANDOFF_DEADLINE: Duration = Duration::from_secs(30);

/// How long a shard that is drained waits for deferred acknowledgements before its lease is released.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// How long a shard that is drained may still take to store its end, when all of it has been read.
pub(crate) const FINISH_LIMIT: Duration = Duration::from_secs(3);

/// How long the shards of a worker that stops because of an error may take to be drained.
pub(crate) const FAILURE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a stop may take that nobody has set a deadline for: when the handle is dropped, and in
/// `run_until`. As long as Kubernetes waits before it kills a container.
pub(crate) const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How soon the table is read again while a lease is being handed over.
pub(crate) const HANDOFF_SCAN: Duration = Duration::from_millis(250);

/// The least time between two shard listings that are made because shards are missing, or because a
/// stream seems to be deleted.
pub(crate) const HOLE_PAUSE: Duration = Duration::from_secs(5);

/// Renewals in one lease duration.
const RENEWALS: u32 = 3;
/// Of so many equal parts of the lease duration a write may take one.
const WRITES: u32 = 4;
/// Of so many equal parts of the lease duration the last one is the margin of the fence.
const MARGINS: u32 = 10;
/// How many lease durations a finished row stays.
const FINISHED_STAYS: u32 = 6;
/// How long a finished row stays at least. However short the leases are, this is longer than a write can
/// be in flight: a creation that arrived after the row was deleted would start the shard again.
const FINISHED_STAYS_AT_LEAST: Duration = Duration::from_secs(60);
/// A worker asks for what moves to it as soon as it has seen that, which is within one lease duration,
/// and what it asks for counts as its own at once.
const FULL_AFTER: u32 = 3;

/// The read budget of scans: 5 read units per second and worker, which is 20 KiB of rows per second
/// when they are read consistently.
const SCAN_BYTES_PER_SECOND: usize = 20 * 1024;
/// The size of a lease row, from the rows that the KCL and this library write.
const ROW_BYTES: usize = 400;

// A worker that has requested a shard gets what is acknowledged during the drain, instead of taking the
// lease over in the middle of it.
const _: () =
    assert!(DRAIN_LIMIT.as_millis() + FINISH_LIMIT.as_millis() < HANDOFF_DEADLINE.as_millis());
// A renewal that is due can hang, be given up and be repeated before the owner fences itself:
// 1/RENEWALS + 2/WRITES < 1 - 1/MARGINS.
const _: () =
    assert!(WRITES * MARGINS + 2 * RENEWALS * MARGINS < (MARGINS - 1) * RENEWALS * WRITES);
// The next owner looks several times while a lease is handed over.
const _: () = assert!(HANDOFF_SCAN.as_millis() * 10 < HANDOFF_DEADLINE.as_millis());

/// Returns the time between two renewals of one lease: a third of its duration.
#[must_use]
pub fn renew_interval(lease_duration: Duration) -> Duration {
    lease_duration / RENEWALS
}

/// Returns how long before anyone may take a lease its owner stops by itself: a tenth of its duration,
/// which covers clocks that run 5 % apart on both sides.
#[must_use]
pub fn fence_margin(lease_duration: Duration) -> Duration {
    lease_duration / MARGINS
}

/// Returns how long a call to the lease table may hang before it is given up.
pub(crate) fn write_limit(lease_duration: Duration) -> Duration {
    lease_duration / WRITES
}

/// Returns how long a finished row stays at least, so that every worker sees the end of its shard.
pub(crate) fn finished_stays(lease_duration: Duration) -> Duration {
    (lease_duration * FINISHED_STAYS).max(FINISHED_STAYS_AT_LEAST)
}

/// Returns the time between two scans of a table of `rows` leases: a second for small tables, what the
/// read budget allows for large ones, and never more than half the lease duration.
pub(crate) fn scan_interval(rows: usize, lease_duration: Duration) -> Duration {
    let affordable =
        Duration::from_millis((rows * ROW_BYTES * 1_000 / SCAN_BYTES_PER_SECOND) as u64);
    affordable.max(Duration::from_secs(1)).min(lease_duration / 2)
}

/// Returns how long a free lease of a table of `rows` leases is left to the worker that it falls to:
/// until that worker must have seen it, but never for a large part of a lease duration.
pub(crate) fn orphan_grace(rows: usize, lease_duration: Duration) -> Duration {
    (lease_duration / 5).min(scan_interval(rows, lease_duration) + Duration::from_millis(250))
}

/// Returns how long the older of two workers with one id may go on before the newer one yields: until
/// the older has stopped, if it is the one that has to.
pub(crate) fn duplicate_grace(lease_duration: Duration) -> Duration {
    lease_duration * 2 + FAILURE_DEADLINE
}

/// Returns how long a worker stays below its share of the leases before it is taken to be full.
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
