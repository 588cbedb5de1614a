//! The guarantees of a worker, one behaviour per test, on an in-memory stream and paused time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kcl_lite::lease::store::LeaseStore;
use kcl_lite::lease::{Lease, LeaseChange, LeaseWrite, WriteId, timing};
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::stream::{ListFrom, Listing, ShardReader, Stream};
use kcl_lite::{
    Checkpoint, CheckpointPolicy, Cursor, ErrorKind, Event, InitialPosition, ServiceError,
    Settings, ShardId, TakeReason,
};
use tokio::time::Instant;

use crate::faults::FaultyStore;
use crate::fleet::{Faults, Fleet, LEASE, Script, Seen, settings};

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn put(fleet: &Fleet, range: std::ops::Range<u32>) {
    for number in range {
        fleet.stream.put("key", number.to_string());
    }
}

/// Number `n` counts as delivered once; repeats are dropped.
fn once(mut delivered: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    delivered.retain(|payload| seen.insert(payload.clone()));
    delivered
}

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn every_record_is_delivered_in_order_and_a_stop_stores_the_last_one() {
    let fleet = Fleet::new(1);
    let worker = fleet.start("a").await;
    put(&fleet, 0..50);
    fleet.until_delivered(50).await;
    let report = worker.shutdown(DEADLINE).await.unwrap();

    assert_eq!(fleet.delivered(), numbers(0..50));
    let lease = fleet.lease(&"shardId-000000000000".into());
    assert_eq!(lease.owner, None, "a clean stop releases");
    assert!(
        report.shards.values().all(|shard| shard.drained && shard.checkpoint == lease.checkpoint)
    );
    assert_eq!(
        fleet.callbacks(),
        ["a shardId-000000000000 initialize", "a shardId-000000000000 shutdown_requested"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_restart_resumes_after_the_last_record_without_repeats() {
    let fleet = Fleet::new(1);
    put(&fleet, 0..10);
    let worker = fleet.start("a").await;
    fleet.until_delivered(10).await;
    worker.shutdown(DEADLINE).await.unwrap();
    put(&fleet, 10..20);
    let worker = fleet.start("b").await;
    fleet.until_delivered(20).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered(), numbers(0..20));
}

#[tokio::test(start_paused = true)]
async fn a_killed_worker_is_followed_at_the_end_of_its_lease_and_nothing_is_lost() {
    let fleet = Fleet::new(1);
    let killed = fleet.start("a").await;
    put(&fleet, 0..10);
    fleet.until_delivered(10).await;
    let other = fleet.start("b").await;
    killed.abort();
    let died = Instant::now();
    put(&fleet, 10..20);
    fleet
        .until_event("b takes over", |worker, event| {
            worker == "b" && matches!(event, Event::LeaseTaken { reason: TakeReason::Expired, .. })
        })
        .await;
    assert!(died.elapsed() <= LEASE + Duration::from_secs(2), "after {:?}", died.elapsed());
    fleet.until("the rest", |log| {
        log.iter().any(|seen| matches!(seen, Seen::Record(worker, _, payload) if worker == "b" && payload == "19"))
    })
    .await;
    assert_eq!(once(fleet.delivered()), numbers(0..20));
    other.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_worker_gets_its_share_and_a_third_one_too() {
    let fleet = Fleet::new(6);
    let _a = fleet.start("a").await;
    fleet.until("a holds all", |_| fleet.owners().get("a") == Some(&6)).await;
    let _b = fleet.start("b").await;
    fleet.until("halves", |_| fleet.owners().get("b") == Some(&3)).await;
    let c = fleet.start("c").await;
    fleet.until("thirds", |_| fleet.owners().values().all(|held| *held == 2)).await;
    c.shutdown(DEADLINE).await.unwrap();
    fleet
        .until("halves again", |_| {
            let owners = fleet.owners();
            owners.get("a") == Some(&3) && owners.get("b") == Some(&3)
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn shards_that_move_to_a_new_worker_are_handed_over_without_a_repeat() {
    let fleet = Fleet::new(4);
    let a = fleet.start("a").await;
    fleet.until("a holds all", |_| fleet.owners().get("a") == Some(&4)).await;
    let feed = async {
        for number in 0..200_u32 {
            fleet.stream.put(&format!("key-{}", number % 17), number.to_string());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let join = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        fleet.start("b").await
    };
    let (b, ()) = tokio::join!(join, feed);
    fleet.until_delivered(200).await;
    fleet.until("halves", |_| fleet.owners().get("b") == Some(&2)).await;
    a.shutdown(DEADLINE).await.unwrap();
    b.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered().len(), 200, "no repeat");
    let handed = |(_, event): &(String, Event)| {
        matches!(event, Event::LeaseTaken { reason: TakeReason::Handoff, .. })
    };
    assert!(fleet.events().iter().any(handed), "{:#?}", fleet.events());
    assert!(!fleet.events().iter().any(|(_, event)| matches!(event, Event::LeaseLost { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_hung_processor_cannot_keep_a_shard_from_the_worker_that_asked() {
    let fleet =
        Fleet::new(2).script(Script { hangs: Some("stuck".to_owned()), ..Script::default() });
    let _a = fleet.start("a").await;
    fleet.until("a holds all", |_| fleet.owners().get("a") == Some(&2)).await;
    for shard in ["shardId-000000000000", "shardId-000000000001"] {
        fleet.stream.put_to(&shard.into(), "key", "stuck");
    }
    let _b = fleet.start("b").await;
    fleet
        .until_event("b takes one", |worker, event| {
            worker == "b" && matches!(event, Event::LeaseTaken { reason: TakeReason::Balance, .. })
        })
        .await;
    fleet
        .until_event("a notices", |worker, event| {
            worker == "a" && matches!(event, Event::LeaseLost { to: Some(_), .. })
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_with_nothing_to_do_says_who_has_it() {
    let fleet = Fleet::new(1);
    let _a = fleet.start("a").await;
    fleet.until("a holds it", |_| fleet.owners().contains_key("a")).await;
    let _b = fleet.start("b").await;
    fleet
        .until_event("b stands by", |worker, event| {
            matches!(event, Event::StandingBy { leases: 1, owners } if worker == "b" && owners == &["a".into()])
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn children_start_after_their_parent_has_ended_and_the_parent_is_removed_later() {
    let fleet = Fleet::new(1);
    let parent: ShardId = "shardId-000000000000".into();
    let _worker = fleet.start("a").await;
    put(&fleet, 0..10);
    let children = fleet.stream.split(&parent);
    put(&fleet, 10..20);
    fleet.until_delivered(20).await;
    assert_eq!(fleet.delivered(), numbers(0..20));
    for child in &children {
        fleet.stream.put_to(child, "any", "more");
    }
    fleet
        .until_event(
            "the parent is removed",
            |_, event| matches!(event, Event::LeaseDeleted { shard } if *shard == parent),
        )
        .await;
    let ended =
        fleet.events().into_iter().position(|(_, event)| matches!(event, Event::ShardEnded { .. }));
    let started = fleet.events().into_iter().position(
        |(_, event)| matches!(event, Event::ShardStarted { shard, .. } if shard == children[0]),
    );
    assert!(ended < started, "{ended:?} {started:?}");
    assert!(fleet.callbacks().contains(&format!("a {parent} shard_ended")));
}

#[tokio::test(start_paused = true)]
async fn a_merge_child_starts_after_both_parents_also_when_two_workers_hold_them() {
    let fleet = Fleet::new(2);
    let _a = fleet.start("a").await;
    let _b = fleet.start("b").await;
    fleet.until("one each", |_| fleet.owners().values().all(|held| *held == 1)).await;
    let (left, right): (ShardId, ShardId) =
        ("shardId-000000000000".into(), "shardId-000000000001".into());
    fleet.stream.put_to(&left, "l", "left");
    fleet.stream.put_to(&right, "r", "right");
    let child = fleet.stream.merge(&left, &right);
    fleet.stream.put_to(&child, "l", "merged");
    fleet.until("the child", |log| {
        log.iter().any(|seen| matches!(seen, Seen::Record(_, shard, payload) if *shard == child && payload == "merged"))
    })
    .await;
    assert_eq!(once(fleet.delivered()).last().map(String::as_str), Some("merged"));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_is_delivered_again_and_no_checkpoint_passes_it() {
    let script = Script { failures: [("5".to_owned(), 4)].into(), ..Script::default() };
    let fleet = Fleet::new(1).script(script);
    put(&fleet, 0..10);
    let eager = Settings {
        checkpoints: CheckpointPolicy::EveryBatch,
        initial_position: InitialPosition::TrimHorizon,
        ..settings()
    };
    let worker = fleet.start_with("a", eager).await;
    fleet
        .until_event("the fourth failure", |_, event| {
            matches!(event, Event::ProcessorFailed { attempts: 4, .. })
        })
        .await;
    assert_eq!(fleet.lease(&"shardId-000000000000".into()).checkpoint, Checkpoint::TrimHorizon);
    fleet
        .until("the last record", |_| fleet.delivered().last().is_some_and(|last| last == "9"))
        .await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(once(fleet.delivered()), numbers(0..10));
    assert!(fleet.lease(&"shardId-000000000000".into()).checkpoint > Checkpoint::TrimHorizon);
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_panics_is_made_anew_at_the_last_acknowledged_record() {
    let fleet = Fleet::new(1).script(Script { panics: Some("3".to_owned()), ..Script::default() });
    let worker = fleet.start("a").await;
    put(&fleet, 0..3);
    fleet.until_delivered(3).await;
    put(&fleet, 3..6);
    fleet
        .until("the last record", |_| fleet.delivered().last().is_some_and(|last| last == "5"))
        .await;
    assert_eq!(fleet.delivered(), numbers(0..6));
    let starts = fleet.callbacks().iter().filter(|call| call.ends_with("initialize")).count();
    assert_eq!(starts, 2);
    worker.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn deferred_acknowledgements_hold_the_checkpoint_back_and_a_dropped_one_repeats() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    let shard: ShardId = "shardId-000000000000".into();
    let worker = fleet.start("a").await;
    put(&fleet, 0..4);
    fleet.until_delivered(4).await;
    let mut acks: Vec<_> = std::mem::take(&mut *fleet.acks.lock());
    let (first, dropped) = (acks.remove(0).1, acks.remove(0).1);
    acks.into_iter().for_each(|(_, ack)| ack.acknowledge());
    first.acknowledge();
    fleet
        .until_event("the first is stored", |_, event| {
            matches!(event, Event::LeaseRenewed { advanced: true, .. })
        })
        .await;
    assert!(matches!(fleet.lease(&shard).checkpoint, Checkpoint::At(_)));
    fleet.script.lock().defer = false;
    drop(dropped);
    fleet
        .until("the others are stored", |log| {
            let is_advance = |seen: &&Seen| {
                matches!(seen, Seen::Event(_, Event::LeaseRenewed { advanced: true, .. }))
            };
            log.iter().filter(is_advance).count() == 2
        })
        .await;
    assert_eq!(fleet.delivered()[4..], numbers(1..2), "only what is not acknowledged");
    worker.shutdown(DEADLINE).await.unwrap();
}

/// Makes another worker the owner in the row.
async fn steal(fleet: &Fleet, shard: &ShardId) -> Lease {
    let lease = fleet.lease(shard);
    let write = LeaseWrite {
        key: shard.clone().into(),
        id: WriteId::new("thief#1:0"),
        change: LeaseChange::Take {
            counter: lease.counter,
            from: lease.owner.clone(),
            owner: "thief".into(),
        },
    };
    fleet.store.write(&write).await.unwrap();
    fleet.lease(shard)
}

#[tokio::test(start_paused = true)]
async fn a_stolen_lease_stops_the_shard_and_the_loser_writes_nothing_more() {
    let fleet = Fleet::new(1);
    let shard: ShardId = "shardId-000000000000".into();
    let _worker = fleet.start("a").await;
    put(&fleet, 0..5);
    fleet.until_delivered(5).await;
    let stolen = steal(&fleet, &shard).await;
    fleet
        .until_event("a notices", |_, event| {
            matches!(event, Event::LeaseLost { to: Some(to), .. } if to.as_str() == "thief")
        })
        .await;
    assert_eq!(fleet.lease(&shard), stolen, "the loser left the row alone");
    fleet
        .until("the callback", |_| {
            fleet.callbacks().iter().any(|call| call.ends_with("lease_lost"))
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_cut_off_from_the_table_stops_before_anyone_may_take_over() {
    for faults in [Faults::Down, Faults::Hang] {
        let fleet = Fleet::new(1);
        let _worker = fleet.start("a").await;
        put(&fleet, 0..5);
        fleet.until_delivered(5).await;
        fleet.store.set(faults);
        let cut = Instant::now();
        fleet
            .until_event("a fences itself", |_, event| {
                matches!(event, Event::LeaseLost { to: None, .. })
            })
            .await;
        assert!(
            cut.elapsed() <= LEASE - timing::fence_margin(settings().lease_duration),
            "after {:?}",
            cut.elapsed()
        );
        let delivered = fleet.delivered().len();
        put(&fleet, 5..10);
        tokio::time::advance(LEASE).await;
        assert_eq!(fleet.delivered().len(), delivered, "nothing is processed without a lease");
        fleet.store.set(Faults::None);
        fleet.until_delivered(delivered + 5).await;
        assert_eq!(once(fleet.delivered()), numbers(0..10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_of_the_table_moves_no_lease() {
    let fleet = Fleet::new(1);
    let worker = fleet.start("a").await;
    put(&fleet, 0..5);
    fleet.until_delivered(5).await;
    fleet.store.set(Faults::Down);
    tokio::time::sleep(Duration::from_secs(5)).await;
    fleet.store.set(Faults::None);
    put(&fleet, 5..10);
    fleet.until_delivered(10).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered(), numbers(0..10));
    assert!(!fleet.events().iter().any(|(_, event)| matches!(event, Event::LeaseLost { .. })));
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_lost_after_the_write_cost_no_lease_and_no_repeat() {
    let fleet = Fleet::new(2);
    fleet.store.set(Faults::LoseReplies(false));
    let worker = fleet.start("a").await;
    for step in 0..60 {
        put(&fleet, step * 5..step * 5 + 5);
        fleet.until_delivered(step as usize * 5 + 5).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered(), numbers(0..300));
    assert!(!fleet.events().iter().any(|(_, event)| matches!(event, Event::LeaseLost { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_row_deleted_under_its_owner_comes_back_with_its_position() {
    let fleet = Fleet::new(2);
    let shard = fleet.stream.shard_of("key");
    let worker = fleet.start("a").await;
    put(&fleet, 0..5);
    fleet
        .until_event("a checkpoint", |_, event| {
            matches!(event, Event::LeaseRenewed { advanced: true, .. })
        })
        .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = fleet.lease(&shard);
    fleet.store.inner.forget(&shard.clone().into());
    fleet.until("the row", |_| fleet.store.inner.snapshot().len() == 2).await;
    let after = fleet.lease(&shard);
    assert_eq!(after.checkpoint, before.checkpoint);
    assert!(after.counter > before.counter, "{} then {}", before.counter, after.counter);
    put(&fleet, 5..10);
    fleet.until_delivered(10).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered(), numbers(0..10));
}

/// Requests a handoff of `shard` for a worker that dies.
async fn ask_and_die(fleet: &Fleet, shard: &ShardId) {
    let row = fleet.lease(shard);
    let from = row.owner.expect("somebody has it");
    let change = LeaseChange::RequestHandoff { counter: row.counter, from, to: "ghost".into() };
    let ask = LeaseWrite { key: shard.clone().into(), id: WriteId::new("ghost#1:take:9"), change };
    fleet.store.write(&ask).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shard_asked_for_by_a_worker_that_died_is_read_on_although_tokens_are_kept() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    let _a = fleet.start("a").await;
    put(&fleet, 0..5);
    fleet.until_delivered(5).await;
    ask_and_die(&fleet, &"shardId-000000000000".into()).await;
    let asked = Instant::now();
    let draining = |call: &String| call.ends_with("shutdown_requested");
    fleet.until("the drain", |_| fleet.callbacks().iter().any(draining)).await;
    put(&fleet, 5..10);
    fleet.until("the rest", |_| fleet.delivered().contains(&"9".to_owned())).await;
    assert!(asked.elapsed() <= Duration::from_secs(60), "after {:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_that_come_during_a_drain_are_stored_though_one_never_comes() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    let worker = fleet.start("a").await;
    put(&fleet, 0..5);
    fleet.until_delivered(5).await;
    let acknowledge = async {
        fleet
            .until("the stop", |_| fleet.callbacks().iter().any(|it| it.ends_with("requested")))
            .await;
        for (_, ack) in fleet.acks.lock().drain(..4) {
            ack.acknowledge();
        }
    };
    let (report, ()) = tokio::join!(worker.shutdown(Duration::from_secs(10)), acknowledge);
    assert!(report.unwrap().shards.values().all(|shard| !shard.drained));
    fleet.script.lock().defer = false;
    let worker = fleet.start("b").await;
    fleet.until_delivered(6).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered()[5..], ["4"]);
}

#[tokio::test(start_paused = true)]
async fn the_marks_of_two_starts_differ_also_with_one_id_and_one_seed() {
    let fleet = Fleet::new(1);
    let mut incarnations = Vec::new();
    for _ in 0..2 {
        let worker = fleet.start("a").await;
        fleet.until("it has it", |_| fleet.owners().contains_key("a")).await;
        let mark = fleet.lease(&"shardId-000000000000".into()).write_id.unwrap();
        incarnations.push(mark.as_str().split_once(':').unwrap().0.to_owned());
        worker.shutdown(DEADLINE).await.unwrap();
    }
    assert_ne!(incarnations[0], incarnations[1]);
}

#[tokio::test(start_paused = true)]
async fn of_two_workers_with_one_id_and_one_seed_only_the_newer_goes_on() {
    let fleet = Fleet::new(1);
    let older = fleet.start("a").await;
    put(&fleet, 0..5);
    fleet.until_delivered(5).await;
    let newer = fleet.start("a").await;
    let stopped = tokio::time::timeout(LEASE * 10, older.stopped()).await.expect("the older stops");
    let error = stopped.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("another worker runs with the worker ID `a`"), "{error}");
    tokio::time::sleep(LEASE * 4).await;
    put(&fleet, 5..10);
    fleet
        .until("the newer one delivers the rest", |_| fleet.delivered().ends_with(&numbers(5..10)))
        .await;
    assert!(newer.health().is_healthy(), "{}", newer.health());
    assert_eq!(newer.status().shards.len(), 1);
    newer.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_finds_its_own_shard_finished_stops_without_delay() {
    let fleet = Fleet::new(1);
    let shard: ShardId = "shardId-000000000000".into();
    let worker = fleet.start("a").await;
    put(&fleet, 0..3);
    fleet
        .until_event("a checkpoint", |_, event| {
            matches!(event, Event::LeaseRenewed { advanced: true, .. })
        })
        .await;
    // The finish is applied, its reply is lost, and the fence comes before a retry.
    fleet.store.set(Faults::Down);
    let row = fleet.lease(&shard);
    let mark = row.write_id.clone().unwrap();
    let incarnation = mark.as_str().split_once(':').unwrap().0.to_owned();
    let finish = LeaseWrite {
        key: shard.clone().into(),
        id: WriteId::new(format!("{incarnation}:{}", row.counter)),
        change: LeaseChange::Finish { counter: row.counter, children: Default::default() },
    };
    fleet.store.inner.write(&finish).await.unwrap();
    fleet.until_event("it is lost", |_, event| matches!(event, Event::LeaseLost { .. })).await;
    fleet.store.set(Faults::None);
    tokio::time::sleep(Duration::from_secs(15)).await;
    let asked = Instant::now();
    worker.shutdown(DEADLINE).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "after {:?}", asked.elapsed());
    assert!(fleet.lease(&shard).checkpoint.is_shard_end());
}

#[tokio::test(start_paused = true)]
async fn latest_is_resolved_once_so_a_crash_before_the_first_checkpoint_skips_nothing() {
    let fleet = Fleet::new(1);
    put(&fleet, 0..5);
    tokio::time::advance(Duration::from_secs(60)).await;
    let worker = fleet.start_with("a", settings()).await;
    fleet.until_event("a has it", |_, event| matches!(event, Event::ShardStarted { .. })).await;
    worker.abort();
    put(&fleet, 5..10);
    let worker = fleet.start_with("b", settings()).await;
    fleet.until_delivered(5).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered(), numbers(5..10));
}

/// Puts a record and splits its shard right after the first listing.
#[derive(Debug)]
struct SplitsBehindTheListing {
    inner: MemoryStream,
    listed: AtomicBool,
}

impl Stream for SplitsBehindTheListing {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        Box::pin(async move {
            let before = self.inner.now();
            if !self.listed.swap(true, Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.inner.put("key", "in between");
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.inner.split(&"shardId-000000000000".into());
            }
            Ok(Listing { at: before, ..self.inner.list(from).await? })
        })
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        self.inner.open(shard, cursor)
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_closes_while_the_worker_asks_for_the_tip_is_read_to_its_end() {
    let fleet = Fleet::new(1);
    tokio::time::advance(Duration::from_secs(60)).await;
    let stream = SplitsBehindTheListing { inner: fleet.stream.clone(), listed: false.into() };
    let worker = fleet.start_on("a", stream, settings()).await;
    fleet.until_delivered(1).await;
    assert_eq!(fleet.delivered(), ["in between"]);
    worker.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_with_a_hung_processor_ends_at_its_deadline_and_says_so() {
    let fleet = Fleet::new(1).script(Script { hangs: Some("3".to_owned()), ..Script::default() });
    put(&fleet, 0..5);
    let worker = fleet.start("a").await;
    fleet.until_delivered(3).await;
    let asked = Instant::now();
    let report = worker.shutdown(Duration::from_secs(5)).await.unwrap();
    assert!(asked.elapsed() <= Duration::from_secs(6), "after {:?}", asked.elapsed());
    assert!(report.shards.values().all(|shard| !shard.drained));
    assert_eq!(worker.shutdown(Duration::from_secs(5)).await.unwrap(), report, "twice is fine");
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_table_is_down_still_ends_at_its_deadline() {
    let fleet = Fleet::new(1);
    let worker = fleet.start("a").await;
    put(&fleet, 0..5);
    fleet.until_delivered(5).await;
    fleet.store.set(Faults::Hang);
    let asked = Instant::now();
    worker.shutdown(Duration::from_secs(5)).await.unwrap();
    assert!(asked.elapsed() <= Duration::from_secs(6), "after {:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn s20_a_worker_whose_stream_is_deleted_stops_by_itself_and_says_why() {
    let fleet = Fleet::new(2);
    let worker = fleet.start("a").await;
    put(&fleet, 0..5);
    fleet.until_delivered(5).await;
    let shard = fleet.stream.shard_of("key");
    fleet.stream.delete();
    let deleted = Instant::now();
    let error = worker.stopped().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing, "{error}");
    assert!(deleted.elapsed() <= Duration::from_secs(60), "after {:?}", deleted.elapsed());
    let lease = fleet.lease(&shard);
    assert_eq!(lease.owner, None, "the row is kept, and released");
    assert!(matches!(lease.checkpoint, Checkpoint::At(_)), "{}", lease.checkpoint);
    assert!(fleet.callbacks().iter().any(|call| call.ends_with("shutdown_requested")));
}

#[tokio::test(start_paused = true)]
async fn a_steady_worker_writes_once_per_lease_and_renewal_interval() {
    let fleet = Fleet::new(1);
    let _worker = fleet.start("a").await;
    fleet.until_event("it runs", |_, event| matches!(event, Event::ShardStarted { .. })).await;
    let before = fleet.lease(&"shardId-000000000000".into()).counter;
    for number in 0..100 {
        put(&fleet, number..number + 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let writes = fleet.lease(&"shardId-000000000000".into()).counter - before;
    assert!((29..=31).contains(&writes), "{writes} writes in 100 s");
}

#[tokio::test(start_paused = true)]
async fn e14_a_paused_worker_keeps_its_leases_and_delivers_nothing() {
    let fleet = Fleet::new(2);
    let a = fleet.start("a").await;
    let b = fleet.start("b").await;
    fleet.feed(0..10);
    fleet.until_delivered(10).await;
    a.pause().await.unwrap();
    b.pause().await.unwrap();
    let before = (fleet.owners(), fleet.delivered().len());
    fleet.feed(10..20);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((fleet.owners(), fleet.delivered().len()), before);
    assert!(a.health().is_healthy(), "{:?}", a.health());
    a.resume().await.unwrap();
    b.resume().await.unwrap();
    fleet.until_delivered(20).await;
    assert_eq!(fleet.repeats(), 0);
}

#[tokio::test(start_paused = true)]
async fn e14_a_drained_worker_holds_nothing_until_it_is_resumed() {
    let fleet = Fleet::new(4);
    let a = fleet.start("a").await;
    let b = fleet.start("b").await;
    fleet.feed(0..10);
    fleet.until_delivered(10).await;
    a.drain().await.unwrap();
    let all_at_b = |fleet: &Fleet| fleet.owners().get("b") == Some(&4);
    fleet.within(LEASE, "b has all", all_at_b).await;
    assert_eq!(a.explain().await.unwrap().len(), 4, "it still looks");
    fleet.feed(10..20);
    fleet.until_delivered(20).await;
    a.resume().await.unwrap();
    let is_even = |fleet: &Fleet| fleet.owners().values().all(|held| *held == 2);
    fleet.within(LEASE * 2, "two each", is_even).await;
    b.shutdown(Duration::from_secs(10)).await.unwrap();
    assert_eq!(fleet.repeats(), 0);
}

/// A stream whose first listing is late: in the meantime another worker has finished the first shard,
/// deleted its row, and continues with another one.
#[derive(Debug)]
struct HeldUp {
    inner: MemoryStream,
    store: FaultyStore,
    listed: AtomicBool,
}

impl Stream for HeldUp {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        Box::pin(async move {
            if !self.listed.swap(true, Ordering::Relaxed) {
                tokio::time::sleep(LEASE).await;
                let child = Lease::new("shardId-000000000007", Checkpoint::TrimHorizon);
                let write = LeaseWrite {
                    key: child.key.clone(),
                    id: WriteId::new("another"),
                    change: LeaseChange::Create(Box::new(child)),
                };
                self.store.write(&write).await?;
            }
            self.inner.list(from).await
        })
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        self.inner.open(shard, cursor)
    }
}

/// Found by the simulation: a process was suspended between its reads of the table and of the stream.
#[tokio::test(start_paused = true)]
async fn a_first_start_that_was_held_up_looks_at_the_table_again() {
    let fleet = Fleet::new(1);
    let (inner, store) = (fleet.stream.clone(), fleet.store.clone());
    let stream = HeldUp { inner, store, listed: false.into() };
    let settings = Settings { lease_duration: LEASE / 4, ..settings() };
    let worker = fleet.start_on("a", stream, settings).await;
    let made = fleet.store.get(&"shardId-000000000000".into()).await.unwrap();
    assert_eq!(made, None, "others had rows already");
    worker.shutdown(DEADLINE).await.unwrap();
}
