//! Heartbeats, with which a processor reports that it is alive while it waits for something slow.
//!
//! Only records the time of the last beat in the shard's progress. The shard task and the control plane
//! evaluate it there; nothing here ends a callback or releases a shard.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::checkpoint::AckWindow;
use crate::clock::{self, Clock};
use crate::worker::liveness::Progress;

/// The time between two beats of [`Heartbeat::during`], well below every reasonable deadline.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// A handle that reports that a processor is alive and makes progress, although a callback has not
/// returned or records have not been acknowledged.
///
/// A worker drops a callback, and releases its shard, after
/// [`callback_deadline`](crate::Settings::callback_deadline), because it cannot distinguish a slow sink
/// from a processor that hangs. The processor often can: bytes still flow, or the sink is known to be
/// open and only busy. It should then call [`beat`](Self::beat) more often than
/// [`slow_after`](crate::Settings::slow_after).
///
/// # What a beat does
/// - It restarts `callback_deadline` and `slow_after` of the running callback.
/// - While acknowledgements are deferred, it restarts the timeout after which a shard whose records are
///   not acknowledged is released.
/// - It counts as progress in [`WorkerHandle::health`](crate::WorkerHandle::health) and in
///   [`ShardStatus::since_progress`](crate::ShardStatus::since_progress).
///
/// # What it does not do
/// - It neither renews nor extends the lease: when the lease is lost, the future is dropped and
///   [`Ack::is_void`](crate::Ack::is_void) returns true, however recent the last beat is.
/// - It acknowledges nothing and moves no checkpoint.
/// - It extends neither the deadline of [`WorkerHandle::shutdown`](crate::WorkerHandle::shutdown) nor
///   the deadline of a handoff.
///
/// Do not beat from a timer that is independent of the work: a processor that hangs would then keep its
/// shard and never be detected.
///
/// A handle belongs to the processor value that received it, through
/// [`ShardContext::heartbeat`](crate::ShardContext::heartbeat) or
/// [`Batch::heartbeat`](crate::Batch::heartbeat). It is cheap to clone, can be used from any thread, and
/// has no effect once that value has been replaced or its shard has been lost. A `Heartbeat::default()`
/// belongs to no processor and never has an effect; use it in your own tests.
///
/// # Example: a sink that can take longer than the deadline
/// ```
/// # use kcl_lite::{Batch, BoxError};
/// # async fn upload(_: &Batch) -> Result<(), BoxError> { Ok(()) }
/// async fn process(batch: Batch) -> Result<(), BoxError> {
///     batch.heartbeat().during(upload(&batch)).await
/// }
/// ```
#[derive(Clone, Default)]
pub struct Heartbeat(Option<Arc<Heart>>);

struct Heart {
    clock: Arc<dyn Clock>,
    progress: Arc<Mutex<Progress>>,
    /// Closed when the processor that holds the handle has been replaced or its shard has been lost.
    window: AckWindow,
}

impl Heartbeat {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        progress: Arc<Mutex<Progress>>,
        window: AckWindow,
    ) -> Self {
        Self(Some(Arc::new(Heart { clock, progress, window })))
    }

    /// Reports that the processor is alive and makes progress now. Does not wait for anything.
    pub fn beat(&self) {
        let Some(heart) = &self.0 else { return };
        if !heart.window.is_closed() {
            let now = heart.clock.now();
            heart.progress.lock().beat(now);
        }
    }

    /// Waits for `work` and calls [`beat`](Self::beat) about once a second until it completes. Use it for
    /// work that is bound to end or fail, such as a call with its own timeout or a write to an open pipe.
    ///
    /// The beats stop while the task is not polled, for instance because `work` blocks its thread.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let Some(heart) = &self.0 else { return work.await };
        loop {
            tokio::select! {
                biased;
                // The work first, so that no beat is sent after it is done.
                done = &mut work => return done,
                () = clock::sleep(&heart.clock, BEAT_INTERVAL) => self.beat(),
            }
        }
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeat").finish_non_exhaustive()
    }
}

/// Handles are equal when they belong to the same processor.
impl PartialEq for Heartbeat {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

impl Eq for Heartbeat {}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::clock::TokioClock;
    use crate::worker::liveness::Activity;

    #[tokio::test(start_paused = true)]
    async fn a_beat_counts_until_the_processor_is_done_with() {
        let start = Instant::now();
        let progress = Arc::new(Mutex::new(Progress::new(start)));
        progress.lock().doing(Activity::Processing { callback: "process" }, start);
        let since = || progress.lock().current().1 - start;
        let window = AckWindow::default();
        let heartbeat = Heartbeat::new(Arc::new(TokioClock), Arc::clone(&progress), window.clone());
        let work = tokio::time::sleep(Duration::from_millis(3_500));
        heartbeat.clone().during(work).await;
        assert_eq!(since(), Duration::from_secs(3), "a beat a second");
        heartbeat.beat();
        assert_eq!(since(), Duration::from_millis(3_500));
        window.close();
        tokio::time::sleep(Duration::from_secs(1)).await;
        heartbeat.beat();
        assert_eq!(since(), Duration::from_millis(3_500));
        Heartbeat::default().beat();
    }
}
