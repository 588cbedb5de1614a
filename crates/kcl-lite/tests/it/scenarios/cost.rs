//! Bounds on requests, threads and shares of leases: the scenarios whose numbers begin with C.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::lease::store::LeaseStore as _;
use kcl_lite::lease::{LeaseChange, LeaseUpdate, LeaseWrite, WriteId};
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::{
    Batch, BoxError, ControlPlane, Event, RecordProcessor, Settings, ShardContext, Worker,
    WorkerHandle,
};
use local_aws::{Effect, LocalAws, Rule, Service};
use tokio::time::{Instant, sleep};

use super::{DEADLINE, MINUTE, SECOND, horizon};
use crate::fleet::{Fleet, LEASE};
use crate::polling;

fn seeded(seed: u64) -> Settings {
    Settings { seed: Some(seed), ..horizon() }
}

async fn workers(fleet: &Fleet, numbers: std::ops::Range<u64>) -> Vec<WorkerHandle> {
    let mut workers = Vec::new();
    for number in numbers {
        workers.push(fleet.start_with(&format!("w{number:02}"), seeded(number)).await);
    }
    workers
}

/// Counts reads and writes of the lease table in the next minute.
async fn requests_of_a_minute(fleet: &Fleet) -> (usize, usize, usize) {
    let since = Instant::now();
    sleep(MINUTE).await;
    let requests = fleet.store.requests.lock();
    let ours: Vec<_> = requests.iter().filter(|it| it.at >= since).collect();
    let writes = ours.iter().filter(|it| it.write.is_some()).count();
    (ours.len() - writes, ours.iter().map(|it| it.rows).sum(), writes)
}

/// The formula of the README: a worker scans the table every second, a large one as often as 20 KiB per
/// second allow with rows of 400 bytes, at the latest after half a lease duration.
fn scans_of_a_minute(rows: usize) -> usize {
    let affordable = (rows * 400 * 1_000) as u64 / 20_480;
    let most = u64::try_from(LEASE.as_millis()).unwrap() / 2;
    60_000 / usize::try_from(affordable.clamp(1_000, most)).unwrap()
}

/// A lease costs one write per third of its duration, a worker its scans, and nothing else.
#[tokio::test(start_paused = true)]
async fn c01_a_quiet_minute_costs_what_the_formula_says() {
    for (shards, count) in [(1, 1), (100, 10)] {
        let fleet = Fleet::new(shards);
        let _all = workers(&fleet, 0..count).await;
        fleet.within(DEADLINE, "all owned", |fleet| fleet.owned() == shards as usize).await;
        sleep(20 * SECOND).await;
        let (reads, _, writes) = requests_of_a_minute(&fleet).await;
        let (shards, count) = (shards as usize, usize::try_from(count).unwrap());
        let expected = count * scans_of_a_minute(shards);
        assert!(reads.abs_diff(expected) <= count, "{reads} reads, {expected} expected");
        let expected = shards * 60 * 3 / usize::try_from(LEASE.as_secs()).unwrap();
        assert!(writes.abs_diff(expected) <= shards, "{writes} writes, {expected} expected");
    }
}

/// 2,000 leases and 100 workers: one of them is real, a loop renews the rows of the others.
#[tokio::test(start_paused = true)]
async fn c01_a_worker_among_a_hundred_keeps_to_its_read_budget() {
    let fleet = Fleet::new(2000);
    let first = fleet.start_with("w00", Settings { max_leases: 20, ..seeded(0) }).await;
    for (index, row) in fleet.store.inner.snapshot().into_iter().enumerate() {
        let owner = format!("w{:02}", index % 100);
        if row.owner.is_none() && index % 100 != 0 {
            let change =
                LeaseChange::Take { counter: row.counter, from: None, owner: owner.into() };
            let write = LeaseWrite { key: row.key, id: WriteId::new("others#1:0"), change };
            fleet.store.inner.write(&write).await.unwrap();
        }
    }
    let others = async {
        for _ in 0..30 {
            sleep(4 * SECOND).await;
            for row in fleet.store.inner.snapshot() {
                if row.owner.as_ref().is_some_and(|owner| owner.as_str() != "w00") {
                    let id = WriteId::new(format!("others#1:{}", row.counter));
                    let (counter, update) = (row.counter, LeaseUpdate::default());
                    let owner = row.owner.clone().unwrap();
                    let change = LeaseChange::Renew { counter, owner, update };
                    let write = LeaseWrite { key: row.key, id, change };
                    fleet.store.inner.write(&write).await.unwrap();
                }
            }
        }
    };
    let measured = async {
        sleep(20 * SECOND).await;
        requests_of_a_minute(&fleet).await
    };
    tokio::select! {
        biased;
        () = others => panic!("the others outlast the measurement"),
        (reads, rows, writes) = measured => {
            assert!(reads <= scans_of_a_minute(2000) + 1, "{reads} scans");
            assert!(rows <= reads * 2000, "{rows} rows");
            assert!(writes <= 20 * 18 + 20, "{writes} writes for 20 leases");
        }
    }
    first.shutdown(DEADLINE).await.unwrap();
}

/// 200 workers start within a second on a table that exists, and run for some minutes.
#[tokio::test(start_paused = true)]
async fn c05_two_hundred_workers_that_start_at_once_list_the_shards_a_few_times() {
    let fleet = Fleet::new(20);
    let _first = workers(&fleet, 0..1).await;
    sleep(SECOND).await;
    fleet.listings.lock().clear();
    let began = Instant::now();
    let mut all = Vec::new();
    for number in 1..200 {
        all.extend(workers(&fleet, number..number + 1).await);
        sleep(SECOND / 200).await;
    }
    sleep(10 * SECOND - began.elapsed()).await;
    let early = fleet.listings.lock().len();
    sleep(5 * MINUTE).await;
    let later = fleet.listings.lock().len() - early;
    assert!(early <= 10, "{early} listings in the first ten seconds");
    assert!(later <= 5 * 2, "{later} listings in five minutes");
}

/// Counts the completed requests of the reader, by operation and outcome.
fn reads(local: &LocalAws, outcome: Option<&str>) -> u64 {
    let counts = local.requests().counts();
    let ours = counts.iter().filter(|row| row.client == polling::READER);
    ours.filter(|row| row.operation == "GetRecords" && outcome.is_none_or(|it| row.outcome == it))
        .map(|row| row.count)
        .sum()
}

#[tokio::test(start_paused = true)]
async fn c07_an_outage_of_the_stream_costs_a_call_a_second_and_ended_shards_none() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 2).await;
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", polling::stream(&local), horizon()).await;
    polling::split(&client, &polling::shard(0)).await;
    fleet.until_event("the end", |_, event| matches!(event, Event::ShardEnded { .. })).await;
    sleep(10 * SECOND).await;
    let before = reads(&local, None);
    sleep(MINUTE).await;
    let steady = reads(&local, None) - before;
    assert!((150..=180).contains(&steady), "{steady} calls a minute for three open shards");

    let failure = Effect::FailBefore { code: "InternalFailure".to_owned(), status: 500 };
    let rule = Rule::new(failure).client(polling::READER).service(Service::Kinesis);
    let rule = local.faults().add(rule);
    let before = reads(&local, None);
    sleep(MINUTE).await;
    let failed = reads(&local, None) - before;
    assert!(failed <= 3 * 60, "{failed} calls in a minute of errors");
    local.faults().remove(rule);
    let before = reads(&local, None);
    sleep(10 * SECOND).await;
    let after = reads(&local, None) - before;
    assert!(after <= steady / 6 * 3 / 2, "{after} calls in ten seconds, {steady} a minute before");
    worker.shutdown(DEADLINE).await.unwrap();
}

struct Counts(Arc<AtomicUsize>);

impl RecordProcessor for Counts {
    async fn process(&mut self, _batch: Batch) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Counts the real threads of the runtime that runs a worker of this many shards.
fn threads_for(shards: u32) -> usize {
    let threads = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&threads);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        })
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = MemoryStream::new(shards);
        let processed = Arc::new(AtomicUsize::new(0));
        let done = Arc::new(tokio::sync::Notify::new());
        let (count, reported, started) =
            (Arc::clone(&processed), Arc::clone(&done), AtomicUsize::new(0));
        let worker = Worker::builder("c09", "stream")
            .settings(Settings { control_plane: ControlPlane::Inline, ..horizon() })
            .stream(stream)
            .lease_store(MemoryStore::new())
            .on_event(move |event| {
                let is_start = matches!(event, Event::ShardStarted { .. });
                if is_start && started.fetch_add(1, Ordering::SeqCst) + 1 == shards as usize {
                    reported.notify_one();
                }
            })
            .build()
            .await
            .unwrap()
            .start(move |_: &ShardContext| Counts(Arc::clone(&count)))
            .await
            .unwrap();
        done.notified().await;
        worker.shutdown(DEADLINE).await.unwrap();
    });
    threads.load(Ordering::SeqCst)
}

#[test]
fn c09_two_thousand_shards_need_as_many_threads_as_one() {
    for shards in [1, 2000] {
        let threads = threads_for(shards);
        assert!(threads <= 2, "{threads} threads for {shards} shards");
    }
}

/// Returns the greatest and the least number of leases of a worker.
fn spread(fleet: &Fleet) -> usize {
    let mut owners: BTreeMap<_, _> = fleet.owners();
    owners.remove("-");
    owners.values().max().unwrap_or(&0) - owners.values().min().unwrap_or(&0)
}

#[tokio::test(start_paused = true)]
async fn c11_a_thousand_leases_are_taken_within_ten_seconds_and_shared_anew_within_thirty() {
    let fleet = Fleet::new(1000);
    let began = Instant::now();
    let mut all = workers(&fleet, 0..10).await;
    let limit = 10 * SECOND - began.elapsed();
    fleet.within(limit, "all owned", |fleet| fleet.owned() == 1000).await;
    let even =
        |workers: usize| move |fleet: &Fleet| fleet.owners().len() == workers && spread(fleet) <= 1;
    fleet.within(MINUTE, "balanced over 10", even(10)).await;
    sleep(LEASE).await;
    let (moves, joined) = (fleet.moves(), Instant::now());
    all.extend(workers(&fleet, 10..20).await);
    fleet.within(30 * SECOND, "balanced over 20", even(20)).await;
    assert!(joined.elapsed() <= 30 * SECOND);
    let moves = fleet.moves() - moves;
    assert!(moves <= 500, "{moves} moves, 500 needed");
    assert_eq!(fleet.losses(), 0);
}
