//! The memory budget of a worker, on virtual time: C08.
//!
//! The stream returns replies of maximum size without using that much memory: all of them share one
//! payload. The `memory` module of the end-to-end tests measures a real process.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::stream::{ListFrom, Listing, Read, ShardReader, Stream};
use kcl_lite::{
    Batch, BoxError, Cursor, Record, RecordProcessor, ServiceError, Settings, ShardContext,
    ShardId, Timestamp, Worker, WorkerHandle,
};
use local_aws::{Effect, LocalAws, Rule, Service};
use tokio::time::{Instant, sleep};

use super::{DEADLINE, MINUTE, SECOND, horizon};
use crate::polling;

const MIB: u64 = 1 << 20;
/// The memory that a reply may take while it is read.
const PARSED: u64 = 32 * MIB;
/// The memory that a complete reply counts for: a quarter more than its payload.
const REPLY: u64 = 25 * MIB / 2;

/// A stream with a permanent backlog and ten megabytes in every reply.
#[derive(Debug, Clone)]
struct Heavy {
    /// Provides the shards.
    inner: MemoryStream,
    payload: Bytes,
    /// The number of shards, from the first one, that end, and after how many records.
    ends: Option<(u64, u64)>,
    load: Arc<Mutex<Load>>,
}

/// The replies in memory, and the peak of their memory.
#[derive(Debug, Default)]
struct Load {
    reading: u64,
    processing: u64,
    peak: u64,
}

impl Load {
    fn weighed(&mut self) {
        self.peak = self.peak.max(self.reading * PARSED + self.processing * REPLY);
    }
}

impl Heavy {
    fn new(shards: u32) -> Self {
        let payload = Bytes::from(vec![0; 10 << 20]);
        Self { inner: MemoryStream::new(shards), payload, ends: None, load: Arc::default() }
    }

    fn change(&self, change: impl FnOnce(&mut Load)) {
        let mut load = self.load.lock();
        change(&mut load);
        load.weighed();
    }

    fn peak(&self) -> u64 {
        self.load.lock().peak
    }
}

impl Stream for Heavy {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        self.inner.list(from)
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        let next = match cursor {
            Cursor::At(number) => number.as_str().parse().unwrap(),
            Cursor::After(number) => number.as_str().parse::<u64>().unwrap() + 1,
            Cursor::Horizon | Cursor::Timestamp(_) => 1,
        };
        let end = self.ends.filter(|(first, _)| is_one_of(shard, *first)).map(|(_, end)| end);
        Box::new(HeavyReader { stream: self.clone(), next, end, due: Instant::now() })
    }
}

#[derive(Debug)]
struct HeavyReader {
    stream: Heavy,
    next: u64,
    end: Option<u64>,
    due: Instant,
}

impl ShardReader for HeavyReader {
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep_until(self.due))
    }

    fn most_bytes(&self) -> u64 {
        PARSED
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(async move {
            self.stream.change(|load| load.reading += 1);
            sleep(Duration::from_millis(300)).await;
            self.stream.change(|load| load.reading -= 1);
            // Ten megabytes at two megabytes per second.
            self.due = Instant::now() + 5 * SECOND;
            if self.end.is_some_and(|end| self.next > end) {
                return Ok(Read::Records { records: Vec::new(), millis_behind_latest: 0 });
            }
            let record = Record {
                sequence_number: self.next.to_string().parse().unwrap(),
                sub_sequence_number: 0,
                packing: kcl_lite::Packing::Plain,
                partition_key: String::new(),
                data: self.stream.payload.clone(),
                arrived: Timestamp::from_millis(0),
            };
            self.next += 1;
            Ok(Read::Records { records: vec![record], millis_behind_latest: 1 })
        })
    }
}

/// The behaviour of the processors of a run.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// Each batch takes this long; in `stuck` shards processing never returns.
    Stalls { takes: Duration, stuck: u64 },
    /// Each processor acknowledges whenever it has received this many batches.
    Collects(usize),
    /// This many shards acknowledge nothing, the others one batch at a time.
    Hoards(u64),
}

/// When each shard last got a batch, and its number of batches.
type Seen = Arc<Mutex<BTreeMap<ShardId, (Instant, u64)>>>;

struct Processor {
    stream: Heavy,
    manner: Manner,
    seen: Seen,
    open: Vec<kcl_lite::Ack>,
}

impl RecordProcessor for Processor {
    async fn process(&mut self, mut batch: Batch) -> Result<(), BoxError> {
        let shard = batch.shard_id().clone();
        self.seen
            .lock()
            .entry(shard.clone())
            .and_modify(|(at, count)| (*at, *count) = (Instant::now(), *count + 1))
            .or_insert((Instant::now(), 1));
        match self.manner {
            Manner::Stalls { takes, stuck } => {
                self.stream.change(|load| load.processing += 1);
                if is_one_of(&shard, stuck) {
                    std::future::pending().await
                }
                sleep(takes).await;
                self.stream.change(|load| load.processing -= 1);
            }
            Manner::Hoards(shards) if is_one_of(&shard, shards) => {
                self.open.push(batch.defer());
            }
            Manner::Hoards(_) => {}
            Manner::Collects(count) => {
                self.open.push(batch.defer());
                if self.open.len() == count {
                    self.open.drain(..).for_each(kcl_lite::Ack::acknowledge);
                }
            }
        }
        Ok(())
    }
}

fn is_one_of(shard: &ShardId, first: u64) -> bool {
    (0..first).any(|number| polling::shard(number) == *shard)
}

async fn start(stream: &Heavy, manner: Manner, settings: Settings) -> (WorkerHandle, Seen) {
    let seen = Seen::default();
    let (reported, view) = (Arc::clone(&seen), stream.clone());
    let factory = move |_: &ShardContext| Processor {
        stream: view.clone(),
        manner,
        seen: Arc::clone(&reported),
        open: Vec::new(),
    };
    let worker = Worker::builder("c08", "stream")
        .settings(settings)
        .stream(stream.clone())
        .lease_store(MemoryStore::new());
    (worker.build().await.unwrap().start(factory).await.unwrap(), seen)
}

/// Two hundred shards with a large backlog, ten of them with a processor that never returns.
#[tokio::test(start_paused = true)]
async fn c08_stalled_processors_hold_no_more_than_the_budget_and_starve_nobody() {
    let stream = Heavy::new(200);
    let settings = Settings { slow_after: 5 * SECOND, ..horizon() };
    let manner = Manner::Stalls { takes: 2 * SECOND, stuck: 10 };
    let (worker, seen) = start(&stream, manner, settings.clone()).await;
    let mut is_named = false;
    for _ in 0..60 {
        sleep(5 * SECOND).await;
        let is_waiting =
            |trouble: &String| trouble.starts_with("reading blocked by the memory budget for ");
        let status = worker.status();
        is_named |= status.shards.values().any(|it| it.trouble.as_ref().is_some_and(is_waiting));
    }
    assert!(is_named, "health says why a shard stands");
    // One reply over budget, for one shard at a time.
    let most = settings.memory_budget + PARSED;
    assert!(stream.peak() <= most, "{} MiB", stream.peak() / MIB);
    let (seen, now) = (seen.lock().clone(), Instant::now());
    assert_eq!(seen.len(), 200);
    for (shard, (at, count)) in seen {
        let is_stuck = shard < polling::shard(10);
        assert!(is_stuck || (now - at <= MINUTE && count >= 5), "{shard}: {count}, {:?}", now - at);
    }
}

/// Every processor needs three replies to acknowledge one, and the budget has room for two in total.
#[tokio::test(start_paused = true)]
async fn c08_a_shard_that_needs_more_records_to_finish_gets_them() {
    let stream = Heavy::new(8);
    let settings = Settings { memory_budget: 32 * MIB, ..horizon() };
    let (_worker, seen) = start(&stream, Manner::Collects(3), settings).await;
    sleep(10 * MINUTE).await;
    let seen = seen.lock();
    assert_eq!(seen.len(), 8);
    assert!(seen.values().all(|(_, count)| *count >= 6), "{seen:?}");
}

/// Batches are dropped at once and never acknowledged: they still fill the budget, and as much again for
/// the one shard that may exceed it.
#[tokio::test(start_paused = true)]
async fn c08_what_is_not_acknowledged_stays_in_the_books() {
    let stream = Heavy::new(8);
    let settings = horizon();
    let most = settings.memory_budget / REPLY;
    let (_worker, seen) = start(&stream, Manner::Collects(usize::MAX), settings).await;
    sleep(5 * MINUTE).await;
    let mut counts: Vec<_> = seen.lock().values().map(|(_, count)| *count).collect();
    assert!(counts.iter().sum::<u64>() <= 2 * most + 1, "{counts:?}");
    counts.sort_unstable();
    counts.pop();
    assert!(counts.iter().sum::<u64>() <= most, "{counts:?}");
}

/// Two shards acknowledge nothing, stay below the in-flight limit, and fill twice the budget: they are
/// released at the deadline, and the third one continues whenever they are.
#[tokio::test(start_paused = true)]
async fn c08_who_never_acknowledges_gives_the_memory_back_that_others_wait_for() {
    for ends in [None, Some((2, 5))] {
        others_get_on(Heavy { ends, ..Heavy::new(3) }).await;
    }
}

async fn others_get_on(stream: Heavy) {
    let deadline = 2 * MINUTE;
    let settings = Settings { memory_budget: 64 * MIB, callback_deadline: deadline, ..horizon() };
    let (worker, seen) = start(&stream, Manner::Hoards(2), settings).await;
    let mut is_named = false;
    let mut longest = Duration::ZERO;
    sleep(MINUTE).await;
    for _ in 0..60 * 20 {
        sleep(SECOND).await;
        let cause = "no record acknowledged while other shards wait for memory for ";
        let status = worker.status();
        let is_holding = |trouble: &String| trouble.starts_with(cause);
        is_named |= status.shards.values().any(|it| it.trouble.as_ref().is_some_and(is_holding));
        let (at, _) = seen.lock()[&polling::shard(2)];
        longest = longest.max(Instant::now() - at);
    }
    assert!(is_named, "health says which shards others wait for");
    assert!(longest <= 3 * deadline, "it waited for {longest:?}");
}

/// Three stuck shards fill the smallest budget, and one of them has the only exemption: the fourth one
/// continues whenever one of them is released.
#[tokio::test(start_paused = true)]
async fn c08_what_a_stuck_shard_held_is_returned_with_it() {
    let stream = Heavy::new(4);
    let settings = Settings { memory_budget: 32 * MIB, callback_deadline: 2 * MINUTE, ..horizon() };
    let manner = Manner::Stalls { takes: SECOND, stuck: 3 };
    let (_worker, seen) = start(&stream, manner, settings).await;
    sleep(20 * MINUTE).await;
    let seen = seen.lock();
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(seen[&polling::shard(3)].1 >= 5, "{seen:?}");
}

/// Two hundred shards at the tip, and a service that replies after a tenth of a second.
#[tokio::test(start_paused = true)]
async fn c08_reading_at_the_tip_is_not_slowed_by_the_budget() {
    const SHARDS: u64 = 200;
    let local = LocalAws::in_memory();
    polling::create(&local, 200).await;
    let delay = Effect::Delay(Duration::from_millis(100));
    local.faults().add(Rule::new(delay).client(polling::READER).service(Service::Kinesis));
    let worker = Worker::builder("c08", "stream")
        .settings(horizon())
        .stream(polling::stream(&local))
        .lease_store(MemoryStore::new());
    let factory = |_: &ShardContext| Ignores;
    let worker = worker.build().await.unwrap().start(factory).await.unwrap();
    // The first reply of a shard may have any size: those reads take turns.
    let reads = || local.requests().count(polling::READER, "GetRecords");
    sleep(20 * SECOND).await;
    let before = reads();
    sleep(20 * SECOND).await;
    let calls = reads() - before;
    // One per second, with a jitter of up to a tenth.
    assert!(calls >= SHARDS * 20 * 9 / 10, "{calls} calls");
    worker.shutdown(DEADLINE).await.unwrap();
}

struct Ignores;

impl RecordProcessor for Ignores {
    async fn process(&mut self, _batch: Batch) -> Result<(), BoxError> {
        Ok(())
    }
}
