//! Scenarios of stuck shards, whose numbers begin with S.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kcl_lite::lease::{LeaseChange, timing};
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::stream::{ListFrom, Listing, Read, ShardReader, Stream};
use kcl_lite::{
    Batch, BoxError, ControlPlane, Cursor, ErrorKind, Event, RecordProcessor, ServiceError,
    Settings, Shard, ShardContext, ShardId, Worker, WorkerHandle,
};
use local_aws::{Effect, LocalAws, Rule};
use tokio::time::{Instant, sleep};

use super::loss::reshard;
use super::{DEADLINE, MINUTE, SECOND, horizon};
use crate::faults::{Fate, Faults, Moment, draw};
use crate::fleet::{Fleet, LEASE, Script, Seen, settings};
use crate::polling;

/// Returns the events that a healthy worker does not emit.
fn complaints(fleet: &Fleet) -> Vec<(String, Event)> {
    let is_complaint = |event: &Event| {
        matches!(
            event,
            Event::CoordinationFailed { .. }
                | Event::ReadFailed { .. }
                | Event::ProcessorFailed { .. }
                | Event::LeaseLost { .. }
        )
    };
    fleet.events().into_iter().filter(|(_, event)| is_complaint(event)).collect()
}

/// The processor implements only `process`, and every acknowledgement is half a minute late.
#[tokio::test(start_paused = true)]
async fn s07_the_end_of_a_shard_is_stored_by_the_library_although_acknowledgements_come_late() {
    let fleet = Fleet::new(1).script(Script { defer: true, ..Script::default() });
    let worker = fleet.start("a").await;
    let late = 30 * SECOND;
    let mut waiting = Vec::new();
    let mut last_ack = None;
    for second in 0..140_u32 {
        if second < 60 && second % 2 == 0 {
            fleet.feed(second / 2..second / 2 + 1);
        }
        if second == 10 {
            fleet.stream.split(&"shardId-000000000000".into());
        }
        if second == 20 {
            fleet.stream.split(&"shardId-000000000001".into());
        }
        sleep(SECOND).await;
        let acks = std::mem::take(&mut *fleet.acks.lock());
        waiting.extend(acks.into_iter().map(|(payload, ack)| (Instant::now(), payload, ack)));
        while waiting.first().is_some_and(|(at, ..)| at.elapsed() >= late) {
            let (_, payload, ack) = waiting.remove(0);
            ack.acknowledge();
            if payload.parse::<u32>().unwrap() < 5 {
                last_ack = Some(Instant::now());
            }
        }
    }
    fleet.all_of(30, SECOND).await;
    let started = fleet.deliveries();
    let children = ["shardId-000000000001", "shardId-000000000002"].map(ShardId::from);
    let first = children.iter().filter_map(|child| started.get(child)).map(|at| at[0]).min();
    let wait = first.unwrap().saturating_duration_since(last_ack.unwrap());
    assert!(first >= last_ack, "the end was stored before the last acknowledgement");
    assert!(
        wait <= timing::renew_interval(settings().lease_duration),
        "{wait:?} after the last acknowledgement"
    );
    assert_eq!(complaints(&fleet), []);
    worker.shutdown(DEADLINE).await.unwrap();
}

/// Splits and merges every five seconds, including shards that never had a record.
#[tokio::test(start_paused = true)]
async fn s08_whatever_the_family_tree_every_shard_ends_or_flows() {
    for seed in 0..40_u64 {
        let mut chance = seed;
        let fleet = Fleet::new(1 + u32::try_from(seed % 3).unwrap());
        let _a = fleet.start("a").await;
        let _b = fleet.start("b").await;
        let mut fed = 0;
        for _operation in 0..8 {
            if draw(&mut chance) % 10 >= 3 {
                fleet.feed(fed..fed + 5);
                fed += 5;
            }
            reshard(&fleet.stream, &mut chance).await;
            sleep(Duration::from_millis(draw(&mut chance) % 5_000)).await;
        }
        fleet.feed(fed..fed + 100);
        fleet.all_of(fed + 100, 2 * LEASE + MINUTE).await;
        assert_eq!(fleet.repeats(), 0, "seed {seed}");
        let open = fleet.stream.list(ListFrom::Latest).await;
        let open: Vec<_> = open.unwrap().shards.into_iter().map(|shard| shard.id).collect();
        for row in fleet.store.inner.snapshot() {
            let is_open = open.iter().any(|id| row.key == *id);
            assert_eq!(row.checkpoint.is_shard_end(), !is_open, "seed {seed}: {row:?}");
        }
    }
}

/// For a minute after each resharding, every shard of a listing is randomly stale or current, and ended
/// readers do not know their children.
#[derive(Debug, Clone)]
struct Mixed {
    inner: MemoryStream,
    before: Arc<Mutex<(Option<Instant>, Vec<Shard>)>>,
    chance: Arc<Mutex<u64>>,
}

impl Mixed {
    /// Records the listing; to be called before every resharding.
    async fn about_to_change(&self) {
        let shards = self.inner.list(ListFrom::All).await.unwrap().shards;
        *self.before.lock() = (Some(Instant::now()), shards);
    }
}

impl Stream for Mixed {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        Box::pin(async move {
            let mut listing = self.inner.list(from).await?;
            let before = self.before.lock();
            if from == ListFrom::All && before.0.is_some_and(|at| at.elapsed() < MINUTE) {
                let mut chance = self.chance.lock();
                let mut is_old = || draw(&mut chance).is_multiple_of(2);
                let old: BTreeMap<_, _> = before.1.iter().map(|it| (&it.id, it)).collect();
                let drawn = listing.shards.into_iter().filter_map(|now| {
                    if is_old() {
                        old.get(&now.id).map(|then| Shard::clone(then))
                    } else {
                        Some(now)
                    }
                });
                listing.shards = drawn.collect();
            }
            Ok(listing)
        })
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        Box::new(Childless(self.inner.open(shard, cursor)))
    }
}

#[derive(Debug)]
struct Childless(Box<dyn ShardReader>);

impl ShardReader for Childless {
    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(async move {
            Ok(match self.0.next().await? {
                Read::End { .. } => Read::End { children: Vec::new() },
                records @ Read::Records { .. } => records,
            })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn s09_listings_that_contradict_themselves_for_a_minute_stop_nothing() {
    for seed in 0..10 {
        let fleet = Fleet::new(4);
        let stream = Mixed {
            inner: fleet.stream.clone(),
            before: Arc::default(),
            chance: Arc::new(Mutex::new(seed)),
        };
        let audit = 10 * SECOND;
        let settings = Settings { audit_interval: audit, ..horizon() };
        let a = fleet.start_on("a", stream.clone(), settings.clone()).await;
        let b = fleet.start_on("b", stream.clone(), settings).await;
        let fed = fleet.feed_for(0, 20, 10).await;
        stream.about_to_change().await;
        let [_, right] = fleet.stream.split(&"shardId-000000000001".into());
        fleet.stream.merge(&right, &"shardId-000000000002".into());
        let resharded = Instant::now();
        let fed = fleet.feed_for(fed, 20, 10).await;
        let open = ["shardId-000000000004", "shardId-000000000006"];
        fleet
            .within(MINUTE + audit, "leases", |fleet| {
                let rows = fleet.store.inner.snapshot();
                open.iter().all(|id| rows.iter().any(|row| row.key.as_str() == *id))
            })
            .await;
        fleet.all_of(fed, (MINUTE + 2 * audit).saturating_sub(resharded.elapsed())).await;
        for untouched in ["shardId-000000000000", "shardId-000000000003"] {
            let gap = longest_gap(&fleet, &untouched.into());
            assert!(gap <= 2 * SECOND, "seed {seed}: {untouched} stood still for {gap:?}");
        }
        for worker in [a, b] {
            worker.shutdown(DEADLINE).await.unwrap();
        }
    }
}

/// Returns the longest time between two deliveries of a shard.
fn longest_gap(fleet: &Fleet, shard: &ShardId) -> Duration {
    let deliveries = fleet.deliveries();
    let moments = deliveries.get(shard).map_or(&[][..], Vec::as_slice);
    moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// The application was off until the service no longer listed its shard and that shard's parent.
#[tokio::test(start_paused = true)]
async fn s10_a_child_does_not_wait_for_parents_that_the_service_has_forgotten() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 1).await;
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", polling::stream(&local), horizon()).await;
    polling::put(&client, 0..10).await;
    fleet.all_delivered(10, DEADLINE).await;
    worker.shutdown(DEADLINE).await.unwrap();
    polling::split(&client, &polling::shard(0)).await;
    local.clock().advance(23 * 60 * MINUTE);
    polling::split(&client, &polling::shard(1)).await;
    // Shard 0 is no longer listed; shard 1, a closed parent without a lease, still is.
    local.clock().advance(2 * 60 * MINUTE);
    polling::put(&client, 10..20).await;
    let started = Instant::now();
    let worker = fleet.start_on("b", polling::stream(&local), horizon()).await;
    fleet.all_delivered(20, 15 * SECOND).await;
    assert!(started.elapsed() <= 15 * SECOND, "after {:?}", started.elapsed());
    worker.shutdown(DEADLINE).await.unwrap();
}

/// A fault of a party in a handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Kill(&'static str),
    Pause(&'static str, u32),
    LoseReply,
    HangOnce,
}

/// `b` joins `a`, which has two shards: `b` requests, `a` hands off, `b` takes. At each of these writes,
/// before and after it is applied, each fault hits each party.
#[tokio::test(start_paused = true)]
async fn s11_a_handoff_that_breaks_off_at_any_step_leaves_one_owner_in_bounded_time() {
    let blows = [
        Blow::Kill("a"),
        Blow::Kill("b"),
        Blow::Pause("a", 5),
        Blow::Pause("a", 15),
        Blow::Pause("a", 45),
        Blow::Pause("b", 5),
        Blow::Pause("b", 15),
        Blow::Pause("b", 45),
        Blow::LoseReply,
        Blow::HangOnce,
    ];
    for step in 0..6_usize {
        for blow in blows {
            break_handoff(step, blow).await;
        }
    }
}

/// Returns the step of a handoff that a write performs.
fn step_of(moment: Moment, change: &LeaseChange) -> Option<usize> {
    let kinds = [
        matches!(change, LeaseChange::RequestHandoff { .. }),
        matches!(change, LeaseChange::HandOver { .. }),
        matches!(change, LeaseChange::Take { .. }),
    ];
    let kind = kinds.iter().position(|is_it| *is_it)?;
    Some(2 * kind + usize::from(moment == Moment::Applied))
}

async fn break_handoff(step: usize, blow: Blow) {
    let fleet = Fleet::new(2);
    let a = fleet.start("a").await;
    fleet.within(DEADLINE, "a has all", |fleet| fleet.owned() == 2).await;
    let struck = Arc::new(Mutex::new(None));
    let (strike, links) = (Arc::clone(&struck), fleet.clone());
    fleet.store.plan(move |moment, _, write| {
        let mut struck = strike.lock();
        if struck.is_some() || step_of(moment, &write.change) != Some(step) {
            return Fate::Pass;
        }
        *struck = Some(Instant::now());
        match blow {
            Blow::Kill(_) | Blow::HangOnce => Fate::Hang,
            Blow::Pause(who, _) => {
                links.link(who).pause();
                Fate::Pass
            }
            Blow::LoseReply => Fate::Fail,
        }
    });
    let b = fleet.start("b").await;
    let mut workers: BTreeMap<&str, WorkerHandle> = [("a", a), ("b", b)].into();
    let mut fed = 0;
    for tick in 0..900_u32 {
        let since = struck.lock().map(|at| at.elapsed());
        match blow {
            Blow::Kill(who) if since.is_some() => {
                if let Some(killed) = workers.remove(who) {
                    killed.abort();
                }
            }
            Blow::Pause(who, seconds) if since >= Some(seconds * SECOND) => {
                fleet.link(who).resume();
            }
            Blow::Kill(_) | Blow::Pause(..) | Blow::LoseReply | Blow::HangOnce => {}
        }
        if tick % 10 == 0 {
            fleet.feed(fed..fed + 4);
            fed += 4;
        }
        sleep(SECOND / 10).await;
    }
    assert!(struck.lock().is_some(), "step {step} was reached");
    let label = format!("step {step}, {blow:?}");
    fleet.all_of(fed, SECOND).await;
    for row in fleet.store.inner.snapshot() {
        assert!(row.checkpoint_owner.is_none(), "{label}: {row:?}");
        let owner = row.owner.as_ref().map(|owner| owner.as_str());
        assert!(owner.is_some_and(|owner| workers.contains_key(owner)), "{label}: {row:?}");
    }
    // The handoff deadline is half a minute, and a lease duration later everything flows.
    for shard in fleet.deliveries().keys() {
        let gap = longest_gap(&fleet, shard);
        let usual = DEADLINE + LEASE + 2 * SECOND;
        let most = if blow == Blow::Pause("a", 45) { 45 * SECOND + LEASE } else { usual };
        assert!(gap <= most, "{label}: {shard} stood still for {gap:?}");
    }
    let may_repeat = matches!(blow, Blow::Kill("a") | Blow::Pause("a", 15 | 45));
    assert!(may_repeat || fleet.repeats() == 0, "{label}: {} repeats", fleet.repeats());
    assert!(fleet.repeats() <= 8 * 10, "{label}: {} repeats", fleet.repeats());
}

/// There is no leader whose loss could matter: if any worker dies, the others take its leases.
#[tokio::test(start_paused = true)]
async fn s12_s14_the_leases_of_a_dead_worker_are_taken_also_by_those_that_have_their_share() {
    for victim in 0..3 {
        let fleet = Fleet::new(12);
        let mut workers = Vec::new();
        for name in ["a", "b", "c"] {
            workers.push(fleet.start(name).await);
        }
        let even = |fleet: &Fleet| fleet.owners().values().all(|held| *held == 4);
        fleet.within(DEADLINE, "four each", even).await;
        workers.remove(victim).abort();
        let fed = fleet.feed_for(0, 12, 1).await;
        fleet.all_of(fed, 2 * LEASE).await;
        fleet.within(LEASE, "six each", |it| it.owners().values().all(|held| *held == 6)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn s14_a_limit_leaves_leases_free_until_a_worker_with_room_comes() {
    let fleet = Fleet::new(12);
    let capped = Settings { max_leases: 4, ..horizon() };
    let mut workers = Vec::new();
    for name in ["a", "b", "c"] {
        workers.push(fleet.start_with(name, capped.clone()).await);
    }
    fleet.within(DEADLINE, "all owned", |fleet| fleet.owned() == 12).await;
    workers.pop().unwrap().abort();
    sleep(2 * LEASE).await;
    let of_living = |fleet: &Fleet| {
        let owners = fleet.owners();
        owners.iter().filter(|(owner, _)| *owner != "c").map(|(_, held)| held).sum::<usize>()
    };
    assert_eq!(of_living(&fleet), 8, "honest to its limit");
    workers.push(fleet.start_with("d", capped).await);
    fleet.within(2 * LEASE, "all owned", |fleet| of_living(fleet) == 12).await;
}

/// A processor that records the order of its callbacks.
struct Ordered(Arc<Mutex<Vec<&'static str>>>);

impl RecordProcessor for Ordered {
    async fn process(&mut self, _batch: Batch) -> Result<(), BoxError> {
        self.0.lock().push("process");
        Ok(())
    }

    async fn initialize(&mut self, _shard: &ShardContext) -> Result<(), BoxError> {
        self.0.lock().push("initialize");
        Ok(())
    }

    async fn shutdown_requested(&mut self) {
        self.0.lock().push("shutdown");
    }
}

/// Every kind of request during a start fails once, twice, up to five times, or hangs once.
#[tokio::test(start_paused = true)]
async fn s13_a_start_is_ready_or_tells_why_whichever_of_its_requests_fails() {
    let operations =
        ["ListShards", "DescribeTable", "CreateTable", "Scan", "UpdateItem", "PutItem"];
    let mut ready = 0;
    for operation in operations {
        for times in 0..=5 {
            let local = LocalAws::in_memory();
            let client = polling::create(&local, 1).await;
            polling::put(&client, 0..3).await;
            let effect = match times {
                0 => Effect::Hang,
                _ => Effect::FailBefore { code: "InternalFailure".to_owned(), status: 500 },
            };
            let rule = Rule::new(effect).client("w").operation(operation).times(times.max(1));
            let rule = local.faults().add(rule);
            let calls = Arc::new(Mutex::new(Vec::new()));
            let noted = Arc::clone(&calls);
            let began = Instant::now();
            let started = Worker::builder("s13", polling::STREAM)
                .settings(Settings {
                    control_plane: ControlPlane::Inline,
                    start_timeout: 20 * SECOND,
                    ..horizon()
                })
                .aws_config(local.sdk_config("w"))
                .build()
                .await
                .unwrap()
                .start(move |_: &ShardContext| Ordered(Arc::clone(&noted)))
                .await;
            let label = format!("{operation} × {times}");
            assert!(began.elapsed() <= 30 * SECOND, "{label}: {:?}", began.elapsed());
            match started {
                Ok(worker) => {
                    ready += 1;
                    while !calls.lock().contains(&"process") {
                        assert!(began.elapsed() <= MINUTE, "{label}: nothing is processed");
                        sleep(SECOND / 10).await;
                    }
                    worker.shutdown(DEADLINE).await.unwrap();
                    let calls = calls.lock();
                    assert_eq!(calls[0], "initialize", "{label}");
                    let ends = calls.iter().filter(|call| **call == "shutdown").count();
                    assert_eq!((ends, calls.last()), (1, Some(&"shutdown")), "{label}");
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{label}: {error}");
                    assert!(calls.lock().is_empty(), "{label}: no callback");
                }
            }
            local.faults().remove(rule);
        }
    }
    assert!(ready >= operations.len() * 4, "only {ready} starts succeeded");
}

/// An iterator is valid for five minutes. (a) The processor needs six, and records wait.
#[tokio::test(start_paused = true)]
async fn s15_an_iterator_that_expires_behind_a_slow_processor_costs_nothing() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 1).await;
    let fleet = Fleet::new(1).script(Script { takes: 6 * MINUTE, ..Script::default() });
    let worker = fleet.start_on("a", polling::stream(&local), horizon()).await;
    for round in 0..4 {
        polling::put(&client, round * 5..round * 5 + 5).await;
        sleep(2 * SECOND).await;
    }
    fleet.all_delivered(20, 30 * MINUTE).await;
    worker.shutdown(10 * MINUTE).await.unwrap();
    assert_eq!(fleet.delivered().len(), 20);
    assert_eq!(complaints(&fleet), []);
}

/// The process is suspended for six minutes: (b) at the tip, (c) before any record.
#[tokio::test(start_paused = true)]
async fn s15_an_iterator_that_expires_while_the_process_is_stopped_costs_nothing() {
    for first in [5, 0] {
        let local = LocalAws::in_memory();
        let client = polling::create(&local, 1).await;
        let fleet = Fleet::new(1);
        let worker = fleet.start_on("a", polling::stream(&local), horizon()).await;
        polling::put(&client, 0..first).await;
        sleep(20 * SECOND).await;
        fleet.link("a").pause();
        sleep(3 * MINUTE).await;
        polling::put(&client, first..20).await;
        sleep(3 * MINUTE).await;
        fleet.link("a").resume();
        fleet.all_delivered(20, 3 * SECOND).await;
        worker.shutdown(DEADLINE).await.unwrap();
        assert_eq!(fleet.delivered().len(), 20);
        assert_eq!(fleet.count(|_, event| matches!(event, Event::ReadFailed { .. })), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn s17_a_lost_lease_is_no_crash_and_a_fleet_that_changes_settles_each_time() {
    let fleet = Fleet::new(2);
    let a = fleet.start("a").await;
    fleet.within(DEADLINE, "a has all", |fleet| fleet.owned() == 2).await;
    let mut fed = 0;
    for round in 0..20 {
        let taken =
            |fleet: &Fleet| fleet.count(|_, event| matches!(event, Event::LeaseTaken { .. }));
        let before = taken(&fleet);
        let b = fleet.start("b").await;
        let even = |fleet: &Fleet| fleet.owners().values().all(|held| *held == 1);
        fleet.within(LEASE, "one each", even).await;
        fed = fleet.feed_for(fed, 10, 5).await;
        assert_eq!(taken(&fleet) - before, 1, "round {round}: one shard moves when one joins");
        if round % 2 == 0 {
            b.shutdown(DEADLINE).await.unwrap();
        } else {
            b.abort();
        }
        fleet.within(3 * LEASE, "a has all", |fleet| fleet.owners().get("a") == Some(&2)).await;
        fed = fleet.feed_for(fed, 10, 2).await;
        assert_eq!(taken(&fleet) - before, 2, "round {round}: and back when it leaves");
    }
    fleet.all_of(fed, DEADLINE).await;
    assert_eq!(fleet.owners().get("a"), Some(&2));
    a.shutdown(DEADLINE).await.unwrap();
}

/// Returns the number of requests in the busiest second between two instants.
fn peak(fleet: &Fleet, from: Instant, to: Instant) -> usize {
    let requests = fleet.store.requests.lock();
    let mut seconds: BTreeMap<u64, usize> = BTreeMap::new();
    for request in requests.iter().filter(|it| (from..to).contains(&it.at)) {
        *seconds.entry((request.at - from).as_secs()).or_default() += 1;
    }
    seconds.into_values().max().unwrap_or_default()
}

/// The table is down for all workers. 40 shards and 5 workers have the same load per worker as 100 and 12.
async fn brown_out(lasts: Duration) -> (Fleet, usize, [usize; 2]) {
    let fleet = Fleet::new(40);
    let mut workers = Vec::new();
    for (index, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let seed = Some(index as u64);
        workers.push(fleet.start_with(name, Settings { seed, ..horizon() }).await);
    }
    let even = |fleet: &Fleet| fleet.owners().values().all(|held| *held == 8);
    fleet.within(DEADLINE, "eight each", even).await;
    let mut fed = fleet.feed_for(0, 80, 10).await;
    let steady_since = Instant::now();
    sleep(30 * SECOND).await;
    let steady = peak(&fleet, steady_since, Instant::now());
    let moves = fleet.moves();
    fleet.store.set(Faults::Down);
    fed = fleet.feed_for(fed, 80, 4).await;
    sleep(lasts.saturating_sub(4 * SECOND)).await;
    fleet.store.set(Faults::None);
    let recovered = Instant::now();
    fed = fleet.feed_for(fed, 80, 1).await;
    fleet.all_of(fed, 2 * LEASE).await;
    fleet.within(LEASE, "all owned", |fleet| fleet.owned() == 40).await;
    sleep(30 * SECOND).await;
    let after = peak(&fleet, recovered, Instant::now());
    let moves = fleet.moves() - moves;
    for worker in workers {
        worker.shutdown(DEADLINE).await.unwrap();
    }
    (fleet, moves, [steady, after])
}

#[tokio::test(start_paused = true)]
async fn s18_a_table_that_is_down_for_five_seconds_moves_no_lease() {
    let (fleet, moves, [steady, after]) = brown_out(5 * SECOND).await;
    assert_eq!((moves, fleet.losses(), fleet.repeats()), (0, 0, 0));
    assert!(after <= 3 * steady, "{after} requests a second after {steady}");
}

#[tokio::test(start_paused = true)]
async fn s18_a_table_that_is_down_for_longer_than_a_lease_stops_everything_and_then_all_flows() {
    for lasts in [30 * SECOND, 10 * MINUTE] {
        let (fleet, _, [steady, after]) = brown_out(lasts).await;
        assert!(after <= 3 * steady, "{after} requests a second after {steady}");
        // The deliveries of the four seconds before the fence, and of the renewal interval before.
        assert!(fleet.repeats() <= 8 * 80, "{} repeats", fleet.repeats());
    }
}

/// The order is always strict: the children wait for the last record of the parent.
#[tokio::test(start_paused = true)]
async fn s22_a_backlog_of_the_parent_is_finished_before_its_grandchildren_begin() {
    let fleet = Fleet::new(1);
    fleet.feed(0..2000);
    let [left, right] = fleet.stream.split(&"shardId-000000000000".into());
    fleet.feed(2000..2200);
    let grandchildren: Vec<ShardId> =
        [left, right].iter().flat_map(|child| fleet.stream.split(child)).collect();
    fleet.feed(2200..2400);
    fleet.script.lock().takes = SECOND;
    let stream = fleet.stream.clone().with_read_limit(20);
    let _a = fleet.start_on("a", stream.clone(), horizon()).await;
    let _b = fleet.start_on("b", stream, horizon()).await;
    fleet.all_of(2400, 10 * MINUTE).await;
    let log = fleet.log.lock();
    let place = |wanted: &dyn Fn(&ShardId) -> bool| {
        log.iter()
            .enumerate()
            .filter(|(_, seen)| matches!(seen, Seen::Record(_, shard, _) if wanted(shard)))
            .map(|(place, _)| place)
            .collect::<BTreeSet<_>>()
    };
    let parent = place(&|shard| shard.as_str() == "shardId-000000000000");
    let child =
        place(&|shard| !grandchildren.contains(shard) && shard.as_str() != "shardId-000000000000");
    assert!(parent.last() < child.first());
}

#[tokio::test(start_paused = true)]
async fn s23_finished_leases_count_neither_for_the_limit_nor_for_the_balance() {
    let fleet = Fleet::new(6);
    let capped = Settings { max_leases: 4, ..horizon() };
    for shard in 0..6 {
        fleet.stream.split(&polling::shard(shard));
    }
    let mut workers = Vec::new();
    for name in ["a", "b", "c"] {
        workers.push(fleet.start_with(name, capped.clone()).await);
    }
    let shares = |fleet: &Fleet| {
        let mut owners = fleet.owners();
        let finished = owners.remove("-");
        (finished, owners.into_values().collect::<Vec<_>>())
    };
    // The children have no record yet, so the rows of their parents still exist.
    fleet.within(3 * LEASE, "twelve of twelve", |it| shares(it) == (Some(6), vec![4, 4, 4])).await;
}
