//! The measurements: one function per row or few rows, each over many seeds.
//!
//! Times are virtual. A measure is what a user notices: the time from an event of a worker until the
//! records of its shards reach a processor again.

use std::time::Duration;

use kcl_lite::ShardId;
use tokio::time::{Instant, sleep};

use crate::report::{Row, Target};
use crate::world::{LEASE, World, run};

/// How long a graceful shutdown may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// The time between two records of a shard, so short that there is always one to deliver.
const STEADY: Duration = Duration::from_millis(200);

/// Measures from the first call to the first record of each shard.
pub(crate) fn start(runs: u64) -> Vec<Row> {
    let mut empty = Row::seconds("start, empty table: first record of a shard", Target::Most(3.0));
    let mut existing =
        Row::seconds("start, existing table: first record of a shard", Target::Most(1.0));
    for seed in 0..runs {
        let (first, second) = run(seed, 4, async |world: World| {
            world.put_everywhere().await;
            let shards = world.open_shards().await;
            let since = Instant::now();
            let worker = world.start("a").await;
            let first = world.until_others_deliver(&shards, "", since).await;
            worker.shutdown(DEADLINE).await.expect("the worker runs");
            world.put_everywhere().await;
            let since = Instant::now();
            let _worker = world.start("b").await;
            (first, world.until_others_deliver(&shards, "a", since).await)
        });
        empty.add_times(first);
        existing.add_times(second);
    }
    vec![empty, existing]
}

/// Measures from a graceful shutdown, and from a kill, until another worker delivers.
pub(crate) fn takeover(runs: u64) -> Vec<Row> {
    let mut stopped = Row::seconds("clean stop: another worker delivers", Target::Most(2.0));
    let mut repeats = Row::count("clean stop: repeats", Target::Most(0.0));
    let most = 1.5 * LEASE.as_secs_f64();
    let mut killed = Row::seconds("kill -9: another worker delivers", Target::Most(most));
    for seed in 0..runs {
        let (times, again) = run(seed, 12, async |world: World| {
            let (_feeding, mut workers) = three(&world).await;
            let left = workers.remove(0);
            let shards = world.held_by("a");
            let (before, since) = (world.log().counts().1, Instant::now());
            let (report, times) = tokio::join!(
                left.shutdown(DEADLINE),
                world.until_others_deliver(&shards, "a", since)
            );
            report.expect("the worker runs");
            (times, world.log().counts().1 - before)
        });
        stopped.add_times(times);
        repeats.add(again as f64);
        killed.add_times(run(seed, 12, async |world: World| {
            let (_feeding, mut workers) = three(&world).await;
            let shards = world.held_by("a");
            let since = Instant::now();
            workers.remove(0).abort();
            world.until_others_deliver(&shards, "a", since).await
        }));
    }
    vec![stopped, repeats, killed]
}

/// Starts three workers that share the shards for a random time.
async fn three(world: &World) -> (tokio::task::JoinSet<()>, Vec<kcl_lite::WorkerHandle>) {
    let feeding = world.feed(STEADY);
    let mut workers = Vec::new();
    for name in ["a", "b", "c"] {
        workers.push(world.start(name).await);
    }
    world.until_balanced(&["a", "b", "c"]).await;
    sleep(drawn(world.seed, 20.0)).await;
    (feeding, workers)
}

/// Returns a random time up to `most` seconds.
fn drawn(seed: u64, most: f64) -> Duration {
    Duration::from_secs_f64(fastrand::Rng::with_seed(seed).f64() * most)
}

/// Measures a fifth worker that joins four with 1,000 leases.
pub(crate) fn join(runs: u64) -> Vec<Row> {
    let mut balanced = Row::seconds("join, 1,000 leases: balanced", Target::Most(30.0));
    let mut moves = Row::count("join, 1,000 leases: moves", Target::Most(200.0));
    let mut repeats = Row::count("join, 1,000 leases: repeats", Target::Most(0.0));
    let mut pauses = Row::seconds("join, 1,000 leases: pause of a moved shard", Target::None);
    for seed in 0..runs {
        run(seed, 1_000, async |world: World| {
            let mut workers = Vec::new();
            for name in ["a", "b", "c", "d"] {
                workers.push(world.start(name).await);
            }
            world.until_balanced(&["a", "b", "c", "d"]).await;
            let _feeding = world.feed(Duration::from_secs(2));
            sleep(Duration::from_secs(10) + drawn(seed, 10.0)).await;
            let (taken, again) = world.log().counts();
            let since = Instant::now();
            workers.push(world.start("e").await);
            world.until_balanced(&["a", "b", "c", "d", "e"]).await;
            balanced.add(since.elapsed().as_secs_f64());
            let moved = world.held_by("e");
            world.until_others_deliver(&moved, "", Instant::now()).await;
            let (taken_since, again_since) = world.log().counts();
            moves.add((taken_since - taken) as f64);
            repeats.add((again_since - again) as f64);
            for shard in &moved {
                pauses.add_times(pause(&world, shard, "e"));
            }
        });
    }
    vec![balanced, moves, repeats, pauses]
}

/// Returns the time from the last delivery of another worker to the first of `new`.
fn pause(world: &World, shard: &ShardId, new: &str) -> Option<Duration> {
    let log = world.log();
    let theirs = || log.deliveries.iter().filter(|delivery| delivery.shard == *shard);
    let first = theirs().find(|delivery| delivery.worker == new)?.at;
    let last = theirs().rfind(|delivery| delivery.worker != new && delivery.at <= first)?.at;
    Some(first - last)
}

/// Measures from the last acknowledgement of a parent to the first record of a child.
pub(crate) fn reshard(runs: u64) -> Vec<Row> {
    let mut split =
        Row::seconds("split: a child delivers after its parent's end", Target::Most(2.0));
    let mut merge =
        Row::seconds("merge: the child delivers after its parents' end", Target::Most(2.0));
    for seed in 0..runs {
        let (after_split, after_merge) = run(seed, 4, async |world: World| {
            let _workers = [world.start("a").await, world.start("b").await];
            world.until_balanced(&["a", "b"]).await;
            let _feeding = world.feed(STEADY);
            sleep(Duration::from_secs(2) + drawn(seed, 10.0)).await;
            let shards = world.open_shards().await;
            let children = world.stream.records.split(&shards[0]);
            let since = Instant::now();
            world.until_others_deliver(&children, "", since).await;
            let split = children.each_ref().map(|child| after_end(&world, &shards[..1], child));
            sleep(drawn(seed, 5.0)).await;
            let child = world.stream.records.merge(&shards[2], &shards[3]);
            let since = Instant::now();
            world.until_others_deliver(std::slice::from_ref(&child), "", since).await;
            (split, after_end(&world, &shards[2..4], &child))
        });
        split.add_times(after_split);
        merge.add_times([after_merge]);
    }
    vec![split, merge]
}

fn after_end(world: &World, parents: &[ShardId], child: &ShardId) -> Duration {
    let log = world.log();
    let of_parents = log.deliveries.iter().filter(|delivery| parents.contains(&delivery.shard));
    let last = of_parents.map(|delivery| delivery.at).max();
    let first = log.deliveries.iter().find(|delivery| delivery.shard == *child);
    let (last, first) = last.zip(first).expect("both have delivered");
    first.at - last
}

/// Measures the cost of ten minutes for the table, against the formulas in the README.
pub(crate) fn cost() -> Vec<Row> {
    let mut rows = Vec::new();
    for (leases, names) in [(1, 1), (8, 2), (100, 10), (1_000, 10)] {
        let (writes, units) = run(7, leases, async |world: World| {
            let names: Vec<_> = (0..names).map(|number| format!("worker-{number}")).collect();
            let mut workers = Vec::new();
            for name in &names {
                workers.push(world.start(name).await);
            }
            world.until_balanced(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
            let _feeding = world.feed(Duration::from_secs(5));
            sleep(Duration::from_secs(30)).await;
            let before = world.table.used();
            sleep(Duration::from_secs(600)).await;
            let after = world.table.used();
            (after.0 - before.0, after.1 - before.1)
        });
        let per_lease = writes as f64 / 10.0 / f64::from(leases);
        let what = format!("{leases} leases, {names} workers: writes per lease-minute");
        rows.push(Row::one(what, per_lease, Target::Near(3.0 * 60.0 / LEASE.as_secs_f64())));
        let what = format!("{leases} leases, {names} workers: read units per minute");
        rows.push(Row::one(what, units as f64 / 10.0, Target::Near(formula(leases, names))));
    }
    rows
}

/// Returns the read units per minute by the formula in the README.
fn formula(leases: u32, workers: u32) -> f64 {
    let bytes = f64::from(leases) * 400.0;
    let interval = (bytes / (20.0 * 1024.0)).max(1.0).min(LEASE.as_secs_f64() / 2.0);
    f64::from(workers) * (bytes / 4096.0).ceil() / interval * 60.0
}

/// Counts the leases that move while nothing happens.
pub(crate) fn quiet_hour() -> Vec<Row> {
    let moves = run(7, 100, async |world: World| {
        let names: Vec<_> = (0..10).map(|number| format!("worker-{number}")).collect();
        let mut workers = Vec::new();
        for name in &names {
            workers.push(world.start(name).await);
        }
        world.until_balanced(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        sleep(Duration::from_secs(60)).await;
        let before = world.log().counts().0;
        sleep(Duration::from_secs(3600)).await;
        world.log().counts().0 - before
    });
    let what = "quiet hour, 100 leases, 10 workers: moves".to_owned();
    vec![Row::one(what, moves as f64, Target::Most(0.0))]
}
