//! Processors that wait for something slow but alive, and send heartbeats.

use parking_lot::Mutex;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use kcl_lite::{
    Ack, Batch, BoxError, Event, Heartbeat, LeaseKey, RecordProcessor, Settings, ShardContext,
    WorkerHandle,
};
use tokio::time::{Instant, sleep};

use super::{at, eager, put, shard, until_stored};
use crate::fleet::{Faults, Fleet, Seen};

const MINUTE: Duration = Duration::from_secs(60);

/// Longer than the callback deadline, which is ten minutes.
const LONG: Duration = Duration::from_secs(25 * 60);

/// How the processor handles a batch that takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Returns when it is done, and sends heartbeats until then.
    Works,
    /// Sends heartbeats for this long and never returns.
    BeatsThenHangs(Duration),
    /// Returns at once, acknowledges later, and sends a heartbeat in `idle`.
    Defers,
    /// Returns at once, acknowledges later, and never sends a heartbeat.
    DefersSilently,
}

struct Patient {
    manner: Manner,
    heartbeat: Heartbeat,
    tokens: Arc<Mutex<Vec<Ack>>>,
    fleet: Fleet,
}

impl RecordProcessor for Patient {
    async fn process(&mut self, mut batch: Batch) -> Result<(), BoxError> {
        for record in batch.records() {
            let payload = String::from_utf8_lossy(&record.data).into_owned();
            self.fleet.note(Seen::Record("a".to_owned(), shard(), payload));
        }
        match self.manner {
            Manner::Works => batch.heartbeat().during(sleep(LONG)).await,
            Manner::BeatsThenHangs(beats) => {
                batch.heartbeat().during(sleep(beats)).await;
                pending().await
            }
            Manner::Defers | Manner::DefersSilently => self.tokens.lock().push(batch.defer()),
        }
        Ok(())
    }

    async fn idle(&mut self) -> Result<(), BoxError> {
        if self.manner != Manner::DefersSilently {
            self.heartbeat.beat();
        }
        Ok(())
    }
}

/// Starts a worker with such a processor; returns it with the tokens that the processor keeps.
async fn start(fleet: &Fleet, manner: Manner) -> (WorkerHandle, Arc<Mutex<Vec<Ack>>>) {
    start_with(fleet, manner, 1).await
}

async fn start_with(
    fleet: &Fleet,
    manner: Manner,
    max_unacknowledged: usize,
) -> (WorkerHandle, Arc<Mutex<Vec<Ack>>>) {
    let tokens = Arc::<Mutex<Vec<Ack>>>::default();
    let (world, kept) = (fleet.clone(), Arc::clone(&tokens));
    let make = move |shard: &ShardContext| Patient {
        manner,
        heartbeat: shard.heartbeat.clone(),
        tokens: Arc::clone(&kept),
        fleet: world.clone(),
    };
    let settings = Settings { max_unacknowledged, ..eager() };
    let worker = fleet.builder("a").settings(settings).build().await.unwrap();
    (worker.start(make).await.unwrap(), tokens)
}

fn is_slow(_: &str, event: &Event) -> bool {
    matches!(event, Event::ProcessorSlow { .. })
}

fn is_released(_: &str, event: &Event) -> bool {
    matches!(event, Event::ShardReleased { .. })
}

/// Asserts that no event reported a problem, and `worker` is healthy.
fn all_is_well(fleet: &Fleet, worker: &WorkerHandle) {
    let said = fleet.count(|worker, event| is_slow(worker, event) || is_released(worker, event));
    assert_eq!((said, worker.health().shards), (0, Default::default()));
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_sends_heartbeats_may_take_longer_than_any_deadline() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=1);
    let (worker, _) = start(&fleet, Manner::Works).await;
    fleet.until_delivered(1).await;
    sleep(LONG - MINUTE).await;
    all_is_well(&fleet, &worker);
    let silent_for = worker.status().shards[shard().as_str()].since_progress;
    assert!(silent_for <= Duration::from_secs(3), "a heartbeat is progress: {silent_for:?}");
    until_stored(&fleet, &at(1)).await;
    all_is_well(&fleet, &worker);
    assert_eq!(fleet.delivered(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn both_times_count_from_the_last_heartbeat() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=1);
    let (_worker, _) = start(&fleet, Manner::BeatsThenHangs(15 * MINUTE)).await;
    fleet.until_delivered(1).await;
    let begun = Instant::now();
    fleet.until_event("it is slow", is_slow).await;
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    assert!((15.45..15.55).contains(&minutes), "slow after {minutes} minutes");
    fleet.until_event("it is released", is_released).await;
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    assert!((24.95..25.05).contains(&minutes), "released after {minutes} minutes");
    assert_eq!(fleet.count(is_slow), 1);
}

#[tokio::test(start_paused = true)]
async fn records_that_are_acknowledged_late_stay_with_a_processor_that_sends_heartbeats() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=1);
    let (worker, tokens) = start(&fleet, Manner::Defers).await;
    fleet.until_delivered(1).await;
    sleep(LONG).await;
    all_is_well(&fleet, &worker);
    let token = tokens.lock().pop().unwrap();
    assert!(!token.is_void());
    token.acknowledge();
    until_stored(&fleet, &at(1)).await;
    put(&fleet, 2..=2);
    fleet.until_delivered(2).await;
    assert_eq!(fleet.delivered(), ["1", "2"]);
}

/// A pipe whose reader stops reading: a shutdown waits for it, for less than its deadline.
#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_late_acknowledgements_and_then_leaves_them_to_the_next_owner() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=1);
    let (worker, tokens) = start(&fleet, Manner::Defers).await;
    fleet.until_delivered(1).await;
    let report = worker.shutdown(Duration::from_secs(25)).await.unwrap();
    assert!(report.shards.values().all(|left| !left.drained));
    let token = tokens.lock().pop().unwrap();
    assert!(token.is_void(), "what is still queued must not be written");
    let lease = fleet.lease(&shard());
    assert_eq!((lease.owner, lease.checkpoint.to_string()), (None, "TRIM_HORIZON".to_owned()));
}

/// A heartbeat does not prove the lease.
#[tokio::test(start_paused = true)]
async fn a_token_is_void_once_the_shard_is_lost_however_alive_the_processor_is() {
    let fleet = Fleet::new(1);
    put(&fleet, 1..=1);
    let (_worker, tokens) = start(&fleet, Manner::Defers).await;
    fleet.until_delivered(1).await;
    let is_void = || tokens.lock()[0].is_void();
    assert!(!is_void());
    fleet.store.set(Faults::Down);
    let is_lost = |_: &str, event: &Event| matches!(event, Event::LeaseLost { .. });
    fleet.until_event("the lease is lost", is_lost).await;
    sleep(Duration::from_millis(1)).await;
    assert!(is_void());
}

/// The checkpoint is held back for hours without reaching the memory or the in-flight limit.
#[tokio::test(start_paused = true)]
async fn a_record_that_is_not_acknowledged_is_named_though_later_ones_are() {
    for (manner, is_named) in [(Manner::DefersSilently, true), (Manner::Defers, false)] {
        let fleet = Fleet::new(1);
        put(&fleet, 1..=1);
        let (worker, tokens) = start_with(&fleet, manner, 100).await;
        fleet.until_delivered(1).await;
        let oldest = tokens.lock().pop().unwrap();
        for minute in 2..=25 {
            put(&fleet, minute..=minute);
            sleep(MINUTE).await;
            tokens.lock().drain(..).for_each(Ack::acknowledge);
            let health = worker.health();
            let cause = health.shards.get(&LeaseKey::from(shard()));
            // It was delivered a minute after the loop started to count.
            assert_eq!(cause.is_some(), is_named && minute > 11, "minute {minute}: {health:?}");
            assert!(cause.is_none_or(|it| it.contains("neither acknowledged nor")), "{health:?}");
        }
        assert_eq!(fleet.count(is_released), 0, "the others are processed");
        oldest.acknowledge();
        until_stored(&fleet, &at(25)).await;
        sleep(3 * Duration::from_secs(1)).await;
        all_is_well(&fleet, &worker);
    }
}
