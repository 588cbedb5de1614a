//! Shards that make no progress: a reader that hangs, a processor that never returns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kcl_lite::{
    Batch, BoxError, ControlPlane, Event, InitialPosition, RecordProcessor, Settings, ShardContext,
};
use tokio::time::Instant;

use super::shelf::{Fault, Shelf};
use super::{DEADLINE, at, eager, numbers, put, shard, until_stored};
use crate::fleet::{Fleet, Script, Seen};

fn shard_released(_: &str, event: &Event) -> bool {
    matches!(event, Event::ShardReleased { .. })
}

fn count(fleet: &Fleet, wanted: impl Fn(&Event) -> bool) -> usize {
    fleet.events().iter().filter(|(_, event)| wanted(event)).count()
}

fn is_restart(event: &Event) -> bool {
    matches!(event, Event::ReaderRestarted { .. })
}

#[tokio::test(start_paused = true)]
async fn s01_a_reader_that_hangs_or_panics_is_replaced_where_it_stood() {
    for fault in [Fault::Hang, Fault::HangBefore, Fault::Panic] {
        let fleet = Fleet::new(1);
        let shelf = Shelf::new(20, 1).fails([Fault::None, Fault::None, fault, Fault::None, fault]);
        let begun = Instant::now();
        let worker = fleet.start_on("a", shelf, eager()).await;
        until_stored(&fleet, &at(20)).await;
        worker.shutdown(DEADLINE).await.unwrap();
        assert_eq!(fleet.delivered(), numbers(1..=20), "{fault:?}");
        assert_eq!(count(&fleet, is_restart), 2, "{fault:?}");
        assert_eq!(count(&fleet, |event| matches!(event, Event::LeaseLost { .. })), 0);
        assert!(begun.elapsed() < Duration::from_secs(200), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn s01_a_reader_that_never_answers_is_released_with_what_is_done() {
    let fleet = Fleet::new(1);
    let faults = [Fault::None, Fault::Hang, Fault::Hang, Fault::Hang];
    let begun = Instant::now();
    let _worker = fleet.start_on("a", Shelf::new(6, 1).fails(faults), eager()).await;
    fleet.until_event("it is released", shard_released).await;
    assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", begun.elapsed());
    assert_eq!(count(&fleet, is_restart), 2);
    let released = |event: &Event| matches!(event, Event::LeaseReleased { checkpoint, .. } if *checkpoint == at(3));
    assert_eq!(count(&fleet, released), 1);
    // The next tenure, of any worker, has a reader that replies.
    until_stored(&fleet, &at(6)).await;
    assert_eq!(fleet.delivered(), numbers(1..=6));
}

#[tokio::test(start_paused = true)]
async fn s01_a_shard_whose_task_dies_is_named_and_taken_again() {
    let fleet = Fleet::new(1);
    let shelf = Shelf::new(6, 1).fails([Fault::PanicAtOpen; 2]);
    let worker = fleet.start_on("a", shelf, eager()).await;
    until_stored(&fleet, &at(6)).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(count(&fleet, |event| shard_released("", event)), 2);
    assert_eq!(fleet.delivered(), numbers(1..=6));
}

#[tokio::test(start_paused = true)]
async fn s01_a_service_that_refuses_is_named_and_not_released() {
    let fleet = Fleet::new(1);
    let shelf = Shelf::new(3, 1).fails([Fault::Error; 2_000]);
    let worker = fleet.start_on("a", shelf, eager()).await;
    let trouble = || {
        let status = worker.status();
        status.shards.values().next().and_then(|shard| shard.trouble.clone())
    };
    while trouble().is_none() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(
        trouble().unwrap().starts_with("reads have been failing (no answer)"),
        "{:?}",
        trouble()
    );
    until_stored(&fleet, &at(3)).await;
    assert_eq!(count(&fleet, |event| shard_released("", event)), 0);
    while trouble().is_some() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// One shard hangs, the other one continues. The hanging callback is reported as slow once, then dropped
/// and its shard released, without an acknowledgement.
#[tokio::test(start_paused = true)]
async fn s02_a_handler_that_never_returns_is_dropped_at_the_deadline_and_its_shard_released() {
    let fleet =
        Fleet::new(2).script(Script { hangs: Some("stuck".to_owned()), ..Script::default() });
    let settings = Settings { callback_deadline: Duration::from_secs(120), ..eager() };
    let worker = fleet.start_with("a", settings).await;
    fleet.stream.put_to(&shard(), "key", "fine");
    until_stored(&fleet, &at(1)).await;
    fleet.stream.put_to(&shard(), "key", "stuck");
    let slow =
        |_: &str, event: &Event| matches!(event, Event::ProcessorSlow { callback: "process", .. });
    fleet.until_event("it is slow", slow).await;
    let begun = Instant::now();
    for number in 0..10 {
        fleet.stream.put_to(&"shardId-000000000001".into(), "key", number.to_string());
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let trouble = worker.status().shards[shard().as_str()].trouble.clone().unwrap();
    assert!(trouble.starts_with("the processor's `process` has not returned"), "{trouble}");
    assert_eq!(fleet.delivered().len(), 11, "the other shard goes on");
    fleet.until_event("it is released", shard_released).await;
    assert!(begun.elapsed() <= Duration::from_secs(91), "{:?}", begun.elapsed());
    let slow = |event: &Event| matches!(event, Event::ProcessorSlow { .. });
    assert_eq!(count(&fleet, slow), 1);
    let released = |event: &Event| matches!(event, Event::LeaseReleased { checkpoint, .. } if *checkpoint == at(1));
    assert_eq!(count(&fleet, released), 1);
    let last: Vec<_> = fleet
        .callbacks()
        .into_iter()
        .filter(|call| call.contains(shard().as_str()))
        .take(2)
        .collect();
    assert_eq!(last, [format!("a {} initialize", shard()), format!("a {} lease_lost", shard())]);
}

#[tokio::test(start_paused = true)]
async fn s02_records_that_are_never_acknowledged_are_released_when_no_more_fit() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    put(&fleet, 1..=10);
    let _worker = fleet.start_with("a", Settings { max_unacknowledged: 10, ..eager() }).await;
    let begun = Instant::now();
    fleet.until_event("it is released", shard_released).await;
    let waited = begun.elapsed().as_secs();
    assert!((600..605).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn s02_the_time_of_a_pause_is_nobodys_standstill() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    put(&fleet, 1..=10);
    let worker = fleet.start_with("a", Settings { max_unacknowledged: 10, ..eager() }).await;
    fleet.until_delivered(10).await;
    worker.pause().await.unwrap();
    tokio::time::sleep(Duration::from_secs(700)).await;
    worker.resume().await.unwrap();
    let resumed = Instant::now();
    fleet.until_event("it is released", shard_released).await;
    let waited = resumed.elapsed().as_secs();
    assert!((595..605).contains(&waited), "{waited}");
}

/// Blocks its thread until the test ends.
struct Blocks {
    released: Arc<AtomicBool>,
}

impl RecordProcessor for Blocks {
    async fn process(&mut self, _batch: Batch) -> Result<(), BoxError> {
        while !self.released.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// Real threads: the blocked callback cannot be dropped, and its shard is released anyway.
#[test]
fn s02_a_handler_that_blocks_its_thread_cannot_keep_its_shard() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let released = Arc::new(AtomicBool::new(false));
    let fleet = Fleet::new(1);
    fleet.stream.put("key", "blocks");
    let settings = Settings {
        control_plane: ControlPlane::OwnThread,
        callback_deadline: Duration::from_millis(200),
        lease_duration: Duration::from_secs(1),
        initial_position: InitialPosition::TrimHorizon,
        ..eager()
    };
    let processor = Arc::clone(&released);
    let worker = fleet.builder("a").settings(settings);
    runtime.block_on(async {
        let make = move |_: &ShardContext| Blocks { released: Arc::clone(&processor) };
        let worker = worker.build().await.unwrap().start(make).await.unwrap();
        let lease_released = |seen: &Seen| matches!(seen, Seen::Event(_, Event::LeaseReleased { .. }));
        fleet.until("the release", |log| log.iter().any(lease_released)).await;
        let row = fleet.lease(&shard());
        assert_eq!((row.owner, row.checkpoint.to_string()), (None, "TRIM_HORIZON".to_owned()));
        assert!(fleet.events().iter().any(|(worker, event)| shard_released(worker, event)));
        released.store(true, Ordering::SeqCst);
        drop(worker);
    });
}
