//! Moves of leases, which must be few, quick and without repeats: scenarios whose numbers begin with D.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_lite::{CheckpointPolicy, Event, Settings, ShardId, WorkerHandle};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use super::{DEADLINE, MINUTE, SECOND, horizon};
use crate::faults::{Faults, draw};
use crate::fleet::{Fleet, LEASE, Script, Seen};

fn seeded(seed: u64) -> Settings {
    Settings { seed: Some(seed), ..horizon() }
}

/// Starts workers `w0` to `w{count}`, each with its own seed.
async fn workers(fleet: &Fleet, numbers: std::ops::Range<u64>) -> Vec<WorkerHandle> {
    let mut workers = Vec::new();
    for number in numbers {
        workers.push(fleet.start_with(&format!("w{number}"), seeded(number)).await);
    }
    workers
}

fn are_even(fleet: &Fleet, workers: usize) -> bool {
    let owners = fleet.owners();
    let (least, most) = (owners.values().min(), owners.values().max());
    owners.len() == workers && !owners.contains_key("-") && most.unwrap() - least.unwrap() <= 1
}

/// Returns the pauses of shards, sorted: from the event that `ends` selects to the next start.
fn pauses(fleet: &Fleet, ends: impl Fn(&Event) -> Option<ShardId>) -> Vec<Duration> {
    let log = fleet.log.lock();
    let mut since: BTreeMap<ShardId, Instant> = BTreeMap::new();
    let mut pauses = Vec::new();
    for (seen, at) in log.iter().zip(fleet.moments.lock().iter()) {
        let Seen::Event(_, event) = seen else { continue };
        if let Some(shard) = ends(event) {
            since.insert(shard, *at);
        }
        if let Event::ShardStarted { shard, .. } = event
            && let Some(since) = since.remove(&shard.shard())
        {
            pauses.push(*at - since);
        }
    }
    pauses.sort_unstable();
    pauses
}

fn released(event: &Event) -> Option<ShardId> {
    if let Event::LeaseReleased { shard, .. } = event { Some(shard.shard()) } else { None }
}

/// Returns the 99th percentile.
fn p99(sorted: &[Duration]) -> Duration {
    sorted[(sorted.len() * 99).div_ceil(100) - 1]
}

/// With the most shards for which the table is scanned every second: the next scan finds the leases that a
/// stopping worker releases.
#[tokio::test(start_paused = true)]
async fn d01_a_fleet_that_grows_and_shrinks_under_load_repeats_nothing() {
    let fleet = Fleet::new(48);
    let mut all = workers(&fleet, 0..2).await;
    let mut fed = 0;
    for size in [2, 4, 8, 2] {
        let grow = async {
            while all.len() > size {
                all.pop().unwrap().shutdown(DEADLINE).await.unwrap();
            }
            let have = all.len() as u64;
            all.extend(workers(&fleet, have..size as u64).await);
            fleet.within(DEADLINE, "even", |fleet| are_even(fleet, size)).await;
        };
        let ((), next) = tokio::join!(grow, fleet.feed_for(fed, 200, 8));
        fed = next;
    }
    fleet.all_of(fed, DEADLINE).await;
    assert_eq!((fleet.repeats(), fleet.losses()), (0, 0));
    let pauses = pauses(&fleet, released);
    assert!(pauses.len() > 45 && pauses.last() <= Some(&SECOND), "{:?}", pauses.last());
}

/// A shutdown is requested at any moment of a life: before the first lease, while records flow, during a
/// handoff to `b`, while a shard ends.
#[tokio::test(start_paused = true)]
async fn d02_a_stop_at_any_moment_is_in_time_and_what_was_drained_is_not_repeated() {
    for moment in 0..36_u32 {
        let fleet = Fleet::new(2);
        let a = fleet.start("a").await;
        let live = async {
            let mut others = Vec::new();
            let mut fed = 0;
            for second in 0..12 {
                if second == 3 {
                    others.push(fleet.start_with("b", seeded(2)).await);
                }
                if second == 6 {
                    fleet.stream.split(&"shardId-000000000000".into());
                }
                fed = fleet.feed_for(fed, 30, 1).await;
            }
            (others, fed)
        };
        let stop = async {
            sleep(moment * SECOND / 3).await;
            let asked = Instant::now();
            let report = a.shutdown(DEADLINE).await.unwrap();
            let again = a.shutdown(SECOND).await.unwrap();
            assert_eq!(report, again, "twice is fine");
            assert!(report.shards.values().all(|shard| shard.drained), "{moment}: {report:?}");
            // A worker that has requested a lease waits for the reply, to release it.
            assert!(asked.elapsed() <= 2 * SECOND, "{moment}: {:?}", asked.elapsed());
        };
        let ((others, fed), ()) = tokio::join!(live, stop);
        let c = fleet.start_with("c", seeded(3)).await;
        fleet.all_of(fed, DEADLINE).await;
        assert_eq!((fleet.repeats(), fleet.losses()), (0, 0), "stopped at {moment}");
        drop((others, c));
    }
}

#[tokio::test(start_paused = true)]
async fn d02_nothing_runs_on_after_a_stop_or_a_drop_in_whatever_state() {
    let alive = || Handle::current().metrics().num_alive_tasks();
    let states = ["zero leases", "working", "hung", "down", "starting", "dropped", "aborted"];
    for state in states {
        let shards = if state == "zero leases" { 1 } else { 4 };
        let hangs = (state == "hung").then(|| "1".to_owned());
        let fleet = Fleet::new(shards).script(Script { hangs, ..Script::default() });
        let holder = fleet.start("holder").await;
        fleet.within(DEADLINE, "all held", |it| it.owned() == shards as usize).await;
        if state != "zero leases" {
            holder.shutdown(DEADLINE).await.unwrap();
        }
        let before = alive();
        if state == "starting" {
            fleet.store.set(Faults::Hang);
            assert!(timeout(5 * SECOND, fleet.start("a")).await.is_err(), "it cannot be ready");
        } else {
            let a = fleet.start("a").await;
            fleet.feed(0..20);
            sleep(3 * SECOND).await;
            if state == "down" {
                fleet.store.set(Faults::Down);
            }
            let asked = Instant::now();
            match state {
                "dropped" => {
                    drop(a);
                    fleet.within(SECOND, "all released", |it| it.owned() == 0).await;
                }
                "aborted" => a.abort(),
                _ => {
                    a.shutdown(5 * SECOND).await.unwrap();
                }
            }
            assert!(asked.elapsed() <= 6 * SECOND, "{state}: {:?}", asked.elapsed());
        }
        // Aborted tasks end when the runtime has polled them once more.
        sleep(SECOND / 100).await;
        assert_eq!(alive(), before, "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn d03_a_rolling_restart_leaves_no_shard_for_more_than_two_seconds_and_repeats_nothing() {
    let fleet = Fleet::new(100);
    let mut all = workers(&fleet, 0..10).await;
    fleet.within(DEADLINE, "even", |fleet| are_even(fleet, 10)).await;
    let restart = async {
        for number in 0..10 {
            all.remove(0).shutdown(DEADLINE).await.unwrap();
            sleep(SECOND).await;
            all.extend(workers(&fleet, 10 + number..11 + number).await);
            sleep(SECOND).await;
        }
    };
    let ((), fed) = tokio::join!(restart, fleet.feed_for(0, 200, 25));
    fleet.within(DEADLINE, "even", |fleet| are_even(fleet, 10)).await;
    fleet.all_of(fed, DEADLINE).await;
    assert_eq!((fleet.repeats(), fleet.losses()), (0, 0));
    let pauses = pauses(&fleet, released);
    assert!(pauses.len() >= 100 && p99(&pauses) <= 2 * SECOND, "{:?}", p99(&pauses));
}

#[tokio::test(start_paused = true)]
async fn d03_after_a_crash_its_shards_are_read_within_one_and_a_half_lease_durations() {
    let fleet = Fleet::new(40);
    let mut all = workers(&fleet, 0..4).await;
    fleet.within(DEADLINE, "even", |fleet| are_even(fleet, 4)).await;
    for round in 0..3 {
        drop(all.remove(0));
        let crashed = Instant::now();
        let name = format!("w{round}");
        let orphans = |fleet: &Fleet| fleet.owners().contains_key(&name);
        fleet.within(LEASE * 3 / 2, "all taken", |fleet| !orphans(fleet)).await;
        assert!(crashed.elapsed() <= LEASE * 3 / 2);
        all.extend(workers(&fleet, 4 + round..5 + round).await);
        fleet.within(DEADLINE, "even", |fleet| are_even(fleet, 4)).await;
    }
    let fed = fleet.feed_for(0, 100, 1).await;
    fleet.all_of(fed, 3 * SECOND).await;
}

/// For an hour, one write in ten is applied and its reply lost, and one in ten is not applied.
#[tokio::test(start_paused = true)]
async fn d04_lost_replies_cost_no_lease_and_no_repeat() {
    let fleet = Fleet::new(4);
    let worker = fleet.start("a").await;
    fleet.within(DEADLINE, "all owned", |fleet| fleet.owned() == 4).await;
    fleet.store.set(Faults::Drawn { seed: 4, percent: 20 });
    let mut fed = 0;
    for _ in 0..360 {
        fleet.feed(fed..fed + 2);
        fed += 2;
        sleep(10 * SECOND).await;
    }
    fleet.store.set(Faults::None);
    fleet.all_of(fed, DEADLINE).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!((fleet.losses(), fleet.repeats()), (0, 0));
}

/// The table accepts ten writes per second. 60 shards that renew every 6.7 s need nine of them, and would
/// use one more for every batch.
#[tokio::test(start_paused = true)]
async fn d05_a_table_too_small_for_a_checkpoint_per_batch_moves_no_lease() {
    let fleet = Fleet::new(60);
    let lease_duration = 20 * SECOND;
    let eager = |seed| Settings {
        lease_duration,
        checkpoints: CheckpointPolicy::EveryBatch,
        ..seeded(seed)
    };
    let mut all = Vec::new();
    for number in 0..3 {
        all.push(fleet.start_with(&format!("w{number}"), eager(number)).await);
    }
    fleet.within(DEADLINE, "even", |fleet| are_even(fleet, 3)).await;
    // The requested handoffs are complete, too.
    sleep(LEASE).await;
    fleet.store.set(Faults::Capacity { per_second: 10, since: None, used: 0 });
    let moves = fleet.moves();
    let began = Instant::now();
    let mut newest = BTreeMap::new();
    let mut worst = Duration::ZERO;
    let (mut chance, mut fed) = (5, 0);
    for _tick in 0..1200_u32 {
        for row in fleet.store.inner.snapshot() {
            // About once per second each, so that no shard always comes first.
            if draw(&mut chance).is_multiple_of(10) {
                fleet.stream.put_to(&row.shard(), "key", fed.to_string());
                fed += 1;
            }
            let now = (row.checkpoint, Instant::now());
            let seen = newest.entry(row.key).or_insert_with(|| now.clone());
            if seen.0 != now.0 {
                *seen = now;
            }
            worst = worst.max(seen.1.elapsed());
        }
        sleep(SECOND / 10).await;
    }
    assert_eq!((fleet.moves() - moves, fleet.losses()), (0, 0));
    assert!(worst <= lease_duration, "a checkpoint of {worst:?} ago");
    {
        let requests = fleet.store.requests.lock();
        let sent = requests.iter().filter(|it| it.write.is_some() && it.at >= began);
        let (applied, refused): (Vec<_>, Vec<_>) = sent.partition(|request| request.is_applied);
        assert!(refused.len() <= 3 * applied.len(), "{} refused", refused.len());
    }
    fleet.store.set(Faults::None);
    fleet.all_delivered(fed, DEADLINE).await;
}

/// Runs a life with a join, a crash and a resharding; returns the log with its times.
async fn life(clocks: [(Duration, u32); 3]) -> (Fleet, Vec<(Duration, Seen)>) {
    let fleet = Fleet::new(6);
    let mut all = Vec::new();
    let began = Instant::now();
    let mut fed = 0;
    for (number, (skew, fast)) in clocks.into_iter().enumerate() {
        let name = format!("w{number}");
        fleet.clock(&name, skew, fast);
        all.push(fleet.start_with(&name, seeded(number as u64)).await);
        fed = fleet.feed_for(fed, 20, 5).await;
    }
    fleet.stream.split(&"shardId-000000000002".into());
    fed = fleet.feed_for(fed, 20, 5).await;
    drop(all.remove(0));
    fed = fleet.feed_for(fed, 20, 25).await;
    fleet.all_of(fed, DEADLINE).await;
    for worker in all {
        worker.shutdown(DEADLINE).await.unwrap();
    }
    let log = fleet.log.lock().clone();
    let moments = fleet.moments.lock().clone();
    let trace = moments.into_iter().map(|at| at - began).zip(log).collect();
    (fleet, trace)
}

#[tokio::test(start_paused = true)]
async fn d08_clocks_that_are_minutes_apart_give_the_same_life_to_the_millisecond() {
    let (fleet, usual) = life([(Duration::ZERO, 0); 3]).await;
    let (_, skewed) = life([(10 * MINUTE, 0), (Duration::ZERO, 0), (20 * MINUTE, 0)]).await;
    assert!(usual == skewed, "the traces differ");
    // A fast clock renews a little early; the placement of leases stays the same.
    let (drifting, _) = life([(Duration::ZERO, 1), (Duration::ZERO, 0), (MINUTE, 1)]).await;
    assert_eq!((drifting.moves(), drifting.losses()), (fleet.moves(), fleet.losses()));
}

/// A quiet fleet repeats its state every few seconds, so ten minutes represent a day.
#[tokio::test(start_paused = true)]
async fn d09_a_quiet_fleet_moves_nothing_and_a_newcomer_only_its_share() {
    let fleet = Fleet::new(100);
    let _all = workers(&fleet, 0..10).await;
    fleet.within(DEADLINE, "even", |fleet| are_even(fleet, 10)).await;
    sleep(5 * SECOND).await;
    let before = fleet.moves();
    sleep(10 * MINUTE).await;
    assert_eq!(fleet.moves(), before);
    let _one_more = workers(&fleet, 10..11).await;
    fleet.within(DEADLINE, "even", |fleet| are_even(fleet, 11)).await;
    sleep(MINUTE).await;
    let moves = fleet.moves() - before;
    assert!(moves <= 100_usize.div_ceil(11), "{moves} moves");
}

#[tokio::test(start_paused = true)]
async fn d10_a_worker_that_comes_back_with_its_id_goes_on_at_once() {
    let fleet = Fleet::new(4);
    let first = fleet.start("a").await;
    fleet.within(DEADLINE, "all owned", |fleet| fleet.owned() == 4).await;
    let fed = fleet.feed_for(0, 20, 5).await;
    drop(first);
    fleet.feed(fed..fed + 40);
    let _second = fleet.start("a/2").await;
    fleet.all_of(fed + 40, 2 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn d10_of_two_processes_with_one_id_one_goes_on_and_the_other_stays_away() {
    let fleet = Fleet::new(4);
    let _first = fleet.start("a").await;
    fleet.within(DEADLINE, "all owned", |fleet| fleet.owned() == 4).await;
    let mut fed = fleet.feed_for(0, 20, 5).await;
    let _second = fleet.start("a/2").await;
    fed = fleet.feed_for(fed, 20, 60).await;
    fleet.all_of(fed, LEASE).await;
    let taken = fleet.count(|_, event| matches!(event, Event::LeaseTaken { .. }));
    assert!(taken <= 8, "{taken} takes of four leases: the two fight for them");
}
