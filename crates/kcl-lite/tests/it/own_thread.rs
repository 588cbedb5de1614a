//! The control plane on its own thread: real threads and real time, waiting for events.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::{
    Batch, BoxError, Event, InitialPosition, RecordProcessor, Settings, ShardContext, Worker,
};
use tokio::time::Instant;

/// How many renewals must come while every thread of the runtime is blocked.
const RENEWALS: usize = 4;
/// The limit of the wait; a lease of one second is renewed every third of a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// Blocks its thread until the leases have been renewed [`RENEWALS`] times.
struct Blocks {
    renewals: Arc<AtomicUsize>,
    seen_while_blocked: Arc<AtomicUsize>,
}

impl RecordProcessor for Blocks {
    async fn process(&mut self, _batch: Batch) -> Result<(), BoxError> {
        let before = self.renewals.load(Ordering::SeqCst);
        let started = Instant::now();
        loop {
            let seen = self.renewals.load(Ordering::SeqCst) - before;
            if seen >= RENEWALS || started.elapsed() > PATIENCE {
                self.seen_while_blocked.fetch_max(seen, Ordering::SeqCst);
                return Ok(());
            }
            std::thread::yield_now();
        }
    }
}

/// The runtime has one thread and the processor blocks it, so everything on that thread stops. The lease
/// duration is one second, so the lease would be lost well before the fourth renewal.
#[test]
fn d06_processors_that_block_every_thread_do_not_delay_renewals() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let renewals = Arc::new(AtomicUsize::new(0));
    let lost = Arc::new(AtomicUsize::new(0));
    let seen_while_blocked = Arc::new(AtomicUsize::new(0));
    let (renewed, lose) = (Arc::clone(&renewals), Arc::clone(&lost));
    let (count, seen) = (Arc::clone(&renewals), Arc::clone(&seen_while_blocked));
    runtime.block_on(async {
        let stream = MemoryStream::new(1);
        stream.put("key", "blocks");
        let settings = Settings {
            lease_duration: Duration::from_secs(1),
            initial_position: InitialPosition::TrimHorizon,
            ..Settings::default()
        };
        let stored = Arc::new(tokio::sync::Notify::new());
        let reported = Arc::clone(&stored);
        let worker = Worker::builder("test", "stream")
            .settings(settings)
            .stream(stream)
            .lease_store(MemoryStore::new())
            .on_event(move |event| {
                if let Event::LeaseRenewed { advanced, .. } = event {
                    renewed.fetch_add(1, Ordering::SeqCst);
                    if *advanced {
                        reported.notify_one();
                    }
                }
                if matches!(event, Event::LeaseLost { .. }) {
                    lose.fetch_add(1, Ordering::SeqCst);
                }
            })
            .build()
            .await
            .unwrap()
            .start(move |_shard: &ShardContext| Blocks {
                renewals: Arc::clone(&count),
                seen_while_blocked: Arc::clone(&seen),
            })
            .await
            .unwrap();
        tokio::time::timeout(2 * PATIENCE, stored.notified()).await.expect("the batch is stored");
        worker.shutdown(PATIENCE).await.unwrap();
    });
    assert!(seen_while_blocked.load(Ordering::SeqCst) >= RENEWALS);
    assert_eq!(lost.load(Ordering::SeqCst), 0, "no lease was lost");
}
