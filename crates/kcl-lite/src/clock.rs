//! The monotonic clock on which every deadline of a worker is measured, passed as an argument.
//!
//! There are two readings of one clock. [`Clock::now`] stands still while the machine is suspended;
//! observers measure the silence of other owners on it, so that a suspend never makes a lease expire
//! early. `LeaseClock` adds the time of every suspend; an owner measures the validity of its own
//! lease on it, because other workers kept counting meanwhile. Never reads the wall clock, which
//! decides nothing here. A test can give a worker its own clock, for example one that runs one
//! percent fast.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{ServiceError, ServiceErrorKind};

/// A monotonic clock and its timer.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the current instant. The clock may stand still while the machine is suspended.
    fn now(&self) -> Instant;

    /// Completes when [`now`](Self::now) has reached `deadline`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Returns for how long the machine has been suspended, as far as [`now`](Self::now) does not
    /// count it. The value never decreases, and only differences between two readings are meaningful.
    ///
    /// The default is zero: the clock of a machine that is never suspended, or a clock that advances
    /// during a suspend.
    fn suspended(&self) -> Duration {
        Duration::ZERO
    }

    /// Completes soon after [`suspended`](Self::suspended) has grown beyond `before`. The default
    /// never completes.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    fn resumed(&self, before: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let _never_suspended = before;
        Box::pin(future::pending())
    }
}

/// The clock of the Tokio runtime; it follows paused time in tests.
///
/// It counts the time of suspends on Linux, Android and Apple's systems. On Windows Tokio's own clock
/// advances during a suspend.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioClock;

/// How often a worker checks whether its machine was suspended: the maximum time for which a callback
/// that was running before a suspend may continue after it.
const SUSPEND_CHECK: Duration = Duration::from_millis(100);

impl Clock for TokioClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep_until(deadline))
    }

    fn suspended(&self) -> Duration {
        suspend::so_far()
    }

    fn resumed(&self, before: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            while Self.suspended() <= before {
                tokio::time::sleep(SUSPEND_CHECK).await;
            }
        })
    }
}

/// The clock on which an owner measures its leases: it includes the time for which the machine was
/// suspended, because other workers counted it.
///
/// A wait on this clock rechecks its deadline after a suspend once
/// [`wait_for_resume`](Self::wait_for_resume) has completed; the coordinator of the worker runs it.
#[derive(Debug, Clone)]
pub(crate) struct LeaseClock {
    inner: Arc<dyn Clock>,
    /// How long the machine had been suspended when this clock was created.
    base: Duration,
    /// How long the machine has been suspended, as far as the running waits know.
    known: Arc<watch::Sender<Duration>>,
}

impl LeaseClock {
    pub(crate) fn new(inner: Arc<dyn Clock>) -> Self {
        let base = inner.suspended();
        Self { inner, base, known: Arc::new(watch::Sender::new(base)) }
    }

    /// Completes when the machine has been suspended and runs again, and makes every wait on this
    /// clock recheck its deadline.
    pub(crate) async fn wait_for_resume(&self) {
        // What the waits know, not the present value: a suspend since then must not be missed.
        let before = *self.known.borrow();
        self.inner.resumed(before).await;
        self.known.send_replace(self.inner.suspended());
    }
}

impl Clock for LeaseClock {
    fn now(&self) -> Instant {
        // In this order: a suspend between the two readings can only make the result later, never
        // earlier.
        let now = self.inner.now();
        now + self.inner.suspended().saturating_sub(self.base)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let clock = self.clone();
        Box::pin(async move {
            let mut known = clock.known.subscribe();
            loop {
                // Before the clock is read, so that a suspend noticed after that ends the wait.
                known.mark_unchanged();
                let left = deadline.saturating_duration_since(clock.now());
                if left.is_zero() {
                    return;
                }
                tokio::select! {
                    biased;
                    // `clock` holds the sender, so it cannot be dropped.
                    _ = known.changed() => {}
                    () = clock.inner.sleep_until(clock.inner.now() + left) => {}
                }
            }
        })
    }

    fn suspended(&self) -> Duration {
        self.inner.suspended()
    }

    fn resumed(&self, before: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.inner.resumed(before)
    }
}

/// The total time for which this machine has been suspended, from two clocks of the system.
mod suspend {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    /// Differences below this are the time between two readings, not a suspend. Half of the smallest
    /// fence margin, which covers it.
    const NOISE: Duration = Duration::from_millis(50);

    /// The largest total measured since the process started, in milliseconds.
    static KNOWN: AtomicU64 = AtomicU64::new(0);

    pub(super) fn so_far() -> Duration {
        let known = Duration::from_millis(KNOWN.load(Ordering::Relaxed));
        let measured = measured();
        if measured < known + NOISE {
            return known;
        }
        let millis = u64::try_from(measured.as_millis()).unwrap_or(u64::MAX);
        // Another thread may have stored more, and the total must never decrease.
        Duration::from_millis(KNOWN.fetch_max(millis, Ordering::Relaxed).max(millis))
    }

    /// Returns by how much a clock that advances during a suspend has gained on one that does not,
    /// since the first call.
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    fn measured() -> Duration {
        use std::sync::LazyLock;

        static FIRST: LazyLock<(Duration, Duration)> = LazyLock::new(readings);
        let (awake, all) = readings();
        // Saturating, because the first call reads `FIRST` after these.
        let (awake, all) = (awake.saturating_sub(FIRST.0), all.saturating_sub(FIRST.1));
        all.saturating_sub(awake)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    fn measured() -> Duration {
        Duration::ZERO
    }

    /// Reads the clock that stands still during a suspend and the one that does not.
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    fn readings() -> (Duration, Duration) {
        // The latter first, so that a thread that is interrupted between the two sees no suspend.
        let all = read(GOES_ON);
        (awake(), all)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    const GOES_ON: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(target_vendor = "apple")]
    const GOES_ON: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn awake() -> Duration {
        read(rustix::time::ClockId::Monotonic)
    }

    #[cfg(target_vendor = "apple")]
    #[expect(clippy::disallowed_types, reason = "the only reading of the clock that stands still")]
    fn awake() -> Duration {
        static BEGAN: std::sync::LazyLock<std::time::Instant> =
            std::sync::LazyLock::new(std::time::Instant::now);
        BEGAN.elapsed()
    }

    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    fn read(clock: rustix::time::ClockId) -> Duration {
        let read = rustix::time::clock_gettime(clock);
        let nanos = u32::try_from(read.tv_nsec).unwrap_or(0);
        Duration::new(u64::try_from(read.tv_sec).unwrap_or(0), nanos)
    }
}

/// Returns whether Tokio's time on this thread, and `clock` with it, stand still while real time
/// passes: paused time, as in a test. Running time is read from the same monotonic clock of the
/// system as real time, so it cannot look paused by chance, however loaded the machine is.
pub(crate) fn is_paused(clock: &dyn Clock) -> bool {
    let before = (Instant::now(), clock.now());
    #[expect(clippy::disallowed_types, reason = "real time is what the others are compared with")]
    let real = std::time::Instant::now();
    // Longer than a tick of the system's clock.
    while real.elapsed() < Duration::from_micros(100) {
        std::hint::spin_loop();
    }
    (Instant::now(), clock.now()) == before
}

/// Makes a call to a service; returns an error of kind `Unavailable` after `limit`.
pub(crate) async fn timely<T>(
    clock: &Arc<dyn Clock>,
    limit: Duration,
    what: &str,
    call: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    within(clock, limit, call).await.unwrap_or_else(|| {
        let context = format!("{what}: no answer within {limit:?}");
        Err(ServiceError::new(ServiceErrorKind::Unavailable, context))
    })
}

/// Waits for `duration` on `clock`.
pub(crate) async fn sleep(clock: &Arc<dyn Clock>, duration: Duration) {
    clock.sleep_until(clock.now() + duration).await;
}

/// Runs `call`, or returns `None` after `limit`. A write that timed out may still be applied.
pub(crate) async fn within<T>(
    clock: &Arc<dyn Clock>,
    limit: Duration,
    call: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        // A reply that is there wins over the timeout.
        reply = call => Some(reply),
        () = sleep(clock, limit) => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The clock of a machine that can be suspended: it stands still during a suspend.
    #[derive(Debug, Clone)]
    pub(crate) struct SuspendableClock(Arc<watch::Sender<Duration>>);

    impl SuspendableClock {
        pub(crate) fn new() -> Self {
            // As on a machine that was suspended before the worker started.
            Self(Arc::new(watch::Sender::new(Duration::from_secs(86_400))))
        }

        /// Suspends the machine for `lasts`, which no task notices.
        pub(crate) fn suspend(&self, lasts: Duration) {
            self.0.send_modify(|suspended| *suspended += lasts);
        }
    }

    impl Clock for SuspendableClock {
        fn now(&self) -> Instant {
            Instant::now()
        }

        fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            TokioClock.sleep_until(deadline)
        }

        fn suspended(&self) -> Duration {
            *self.0.borrow()
        }

        fn resumed(&self, before: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            let mut suspended = self.0.subscribe();
            Box::pin(async move {
                suspended.wait_for(|suspended| *suspended > before).await.ok();
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_of_a_lease_is_reached_by_a_suspend() {
        let machine = SuspendableClock::new();
        let clock = LeaseClock::new(Arc::new(machine.clone()));
        let (began, lasts) = (machine.now(), clock.now());
        assert_eq!(began, lasts, "only later suspends count");
        let fence = clock.sleep_until(lasts + 9 * SECOND);
        let resumed = async {
            tokio::time::sleep(SECOND).await;
            machine.suspend(20 * SECOND);
            clock.wait_for_resume().await;
        };
        tokio::join!(fence, resumed);
        assert_eq!(machine.now() - began, SECOND, "observers have not counted the suspend");
        assert_eq!(clock.now() - lasts, 21 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_suspend_brings_a_deadline_nearer() {
        let machine = SuspendableClock::new();
        let clock = LeaseClock::new(Arc::new(machine.clone()));
        let began = machine.now();
        let fence = clock.sleep_until(clock.now() + 9 * SECOND);
        let resumed = async {
            machine.suspend(4 * SECOND);
            clock.wait_for_resume().await;
        };
        tokio::join!(fence, resumed);
        assert_eq!(machine.now() - began, 5 * SECOND);
    }

    #[test]
    fn a_machine_that_is_not_suspended_counts_nothing() {
        let before = TokioClock.suspended();
        assert_eq!(TokioClock.suspended(), before);
    }

    #[tokio::test]
    async fn running_time_never_looks_paused_and_paused_time_always_does() {
        assert!((0..1_000).all(|_| !is_paused(&TokioClock)));
        tokio::time::pause();
        assert!((0..1_000).all(|_| is_paused(&TokioClock)));
        tokio::time::resume();
        assert!((0..1_000).all(|_| !is_paused(&TokioClock)));
    }
}
