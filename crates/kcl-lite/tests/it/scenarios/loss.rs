//! Scenarios of lost records, whose numbers begin with L.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kcl_lite::lease::timing;
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::stream::{ListFrom, Listing, ShardReader, Stream};
use kcl_lite::{
    Checkpoint, CheckpointPolicy, Cursor, Event, ServiceError, Settings, Shard, ShardId,
};
use local_aws::{Effect, LocalAws, Rule};
use serde_json::json;
use tokio::time::{Instant, advance, sleep};

use super::{DEADLINE, MINUTE, SECOND, horizon};
use crate::faults::{Faults, draw};
use crate::fleet::{Fleet, LEASE, Script, Seen, settings};
use crate::polling;

/// Asserts that no owned row contains `LATEST` alone: "latest" is resolved to a time.
fn assert_resolved(fleet: &Fleet) {
    for row in fleet.store.inner.snapshot() {
        let is_symbolic = row.checkpoint == Checkpoint::Latest && row.anchor.is_none();
        assert!(row.owner.is_none() || !is_symbolic, "{row:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn l03_latest_survives_a_pause_longer_than_an_iterator_lives() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 1).await;
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", polling::stream(&local), settings()).await;
    sleep(10 * SECOND).await;
    assert_resolved(&fleet);
    fleet.link("a").pause();
    sleep(50 * SECOND).await;
    polling::put(&client, 0..10).await;
    sleep(5 * MINUTE).await;
    fleet.link("a").resume();
    fleet.all_delivered(10, 20 * SECOND).await;
    assert_resolved(&fleet);
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.delivered().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn l03_latest_survives_a_crash_before_the_first_checkpoint() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 1).await;
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", polling::stream(&local), settings()).await;
    sleep(10 * SECOND).await;
    worker.abort();
    sleep(5 * SECOND).await;
    polling::put(&client, 0..10).await;
    sleep(15 * SECOND).await;
    let _b = fleet.start_on("b", polling::stream(&local), settings()).await;
    fleet.all_delivered(10, 20 * SECOND).await;
    assert_resolved(&fleet);
}

#[tokio::test(start_paused = true)]
async fn l03_latest_includes_the_first_second_after_the_lease_was_made() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 1).await;
    polling::put(&client, 100..110).await;
    advance(MINUTE).await;
    let fleet = Fleet::new(1);
    // Before the reader has requested its iterator: the lease exists, and nothing is read yet.
    local.faults().add(Rule::new(Effect::Delay(SECOND)).operation("GetShardIterator"));
    let start = fleet.start_on("a", polling::stream(&local), settings());
    let early = async {
        fleet.within(DEADLINE, "a lease", |it| !it.store.inner.snapshot().is_empty()).await;
        polling::put(&client, 0..10).await;
    };
    let (_worker, ()) = tokio::join!(start, early);
    fleet.all_delivered(10, 10 * SECOND).await;
    assert_resolved(&fleet);
}

#[tokio::test(start_paused = true)]
async fn l04_children_of_a_reshard_start_at_their_own_beginning_whatever_the_position() {
    let fleet = Fleet::new(1);
    advance(MINUTE).await;
    let worker = fleet.start_with("a", settings()).await;
    fleet.within(DEADLINE, "a lease", |fleet| fleet.owned() == 1).await;
    worker.shutdown(DEADLINE).await.unwrap();
    let [left, right] = fleet.stream.split(&"shardId-000000000000".into());
    fleet.feed(0..50);
    advance(MINUTE).await;
    fleet.stream.merge(&left, &right);
    fleet.feed(50..100);
    advance(MINUTE).await;
    let worker = fleet.start_with("b", settings()).await;
    fleet.all_of(100, 60 * SECOND).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!(fleet.repeats(), 0);
}

#[tokio::test(start_paused = true)]
async fn l05_a_closed_parent_is_read_to_its_end_before_its_children() {
    let fleet = Fleet::new(1);
    let worker = fleet.start("a").await;
    fleet.feed(0..10);
    fleet.all_of(10, DEADLINE).await;
    worker.shutdown(DEADLINE).await.unwrap();
    fleet.feed(10..30);
    fleet.stream.split(&"shardId-000000000000".into());
    fleet.feed(30..50);
    let worker = fleet.start("b").await;
    fleet.all_of(50, 60 * SECOND).await;
    worker.shutdown(DEADLINE).await.unwrap();
    let delivered: Vec<u32> = fleet.delivered().iter().map(|it| it.parse().unwrap()).collect();
    assert_eq!(delivered.len(), 50);
    assert!(delivered[..30].iter().all(|number| *number < 30), "{delivered:?}");
}

/// The parent that ends first finds the other one's lease in the table and creates the child's.
#[tokio::test(start_paused = true)]
async fn l05_a_merge_child_waits_for_the_slower_of_its_parents() {
    let script = Script { takes: SECOND, ..Script::default() };
    let fleet = Fleet::new(2).script(script);
    let [quick, slow] = [0, 1].map(polling::shard);
    for number in 0..40 {
        let parent = if number < 2 { &quick } else { &slow };
        fleet.stream.put_to(parent, "key", number.to_string());
    }
    let child = fleet.stream.merge(&quick, &slow);
    for number in 40..50 {
        fleet.stream.put_to(&child, "key", number.to_string());
    }
    let worker = fleet.start_on("a", fleet.stream.clone().with_read_limit(2), horizon()).await;
    fleet.all_delivered(50, MINUTE).await;
    worker.shutdown(DEADLINE).await.unwrap();
    let delivered: Vec<u32> = fleet.delivered().iter().map(|it| it.parse().unwrap()).collect();
    assert!(delivered[..40].iter().all(|number| *number < 40), "{delivered:?}");
}

/// A stream with stale listings, which are `behind` old.
#[derive(Debug, Clone)]
struct Behind {
    inner: MemoryStream,
    behind: Duration,
    history: Arc<Mutex<History>>,
}

/// All listings, with the time from which each was current.
type History = Vec<(Instant, Vec<Shard>)>;

impl Behind {
    fn new(inner: MemoryStream, behind: Duration) -> Self {
        Self { inner, behind, history: Arc::default() }
    }

    /// Records the listing; to be called after every change.
    async fn note(&self) {
        let shards = self.inner.list(ListFrom::All).await.unwrap().shards;
        self.history.lock().push((Instant::now(), shards));
    }
}

impl Stream for Behind {
    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        Box::pin(async move {
            let listing = self.inner.list(from).await?;
            let history = self.history.lock();
            let old = history.iter().rev().find(|(at, _)| at.elapsed() >= self.behind);
            let shards = old.filter(|_| from == ListFrom::All).map(|(_, shards)| shards.clone());
            Ok(Listing { shards: shards.unwrap_or(listing.shards), at: listing.at })
        })
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        self.inner.open(shard, cursor)
    }
}

/// Returns the open shards of a stream, in the order of their hash ranges.
async fn open_shards(stream: &MemoryStream) -> Vec<Shard> {
    let mut shards = stream.list(ListFrom::All).await.unwrap().shards;
    shards.retain(|shard| shard.is_open);
    shards.sort_by_key(|shard| shard.hash_range);
    shards
}

/// Splits a random shard, or merges two.
pub(super) async fn reshard(stream: &MemoryStream, seed: &mut u64) {
    let open = open_shards(stream).await;
    let chosen = usize::try_from(draw(seed) % open.len() as u64).unwrap();
    if draw(seed).is_multiple_of(2) || open.len() < 2 {
        stream.split(&open[chosen].id);
    } else {
        let left = chosen.min(open.len() - 2);
        stream.merge(&open[left].id, &open[left + 1].id);
    }
}

/// Returns whether the unfinished leases have a hole.
fn has_hole(fleet: &Fleet) -> bool {
    let rows = fleet.store.inner.snapshot();
    let rows = rows.iter().filter(|row| !row.checkpoint.is_shard_end());
    let mut ranges: Vec<_> = rows.map(|row| row.hash_range.unwrap()).collect();
    ranges.sort_unstable();
    let mut next = Some(0_u128);
    for range in ranges {
        match next {
            Some(start) if range.start > start => return true,
            Some(start) => next = range.end.checked_add(1).map(|end| end.max(start)),
            None => return false,
        }
    }
    next.is_some()
}

/// A minute of resharding among dying workers, on a table that fails one write in twenty and with listings
/// that are five seconds old. Fewer shards than in the field: a hole concerns one parent and its children.
#[tokio::test(start_paused = true)]
async fn l06_every_hole_in_the_hash_space_is_healed_after_any_death_in_a_reshard() {
    for seed in 0..8_u64 {
        let mut chance = seed;
        let fleet = Fleet::new(8);
        let stream = Behind::new(fleet.stream.clone(), 5 * SECOND);
        let audit = 10 * SECOND;
        let settings = |seed| Settings { audit_interval: audit, seed: Some(seed), ..horizon() };
        let mut workers = Vec::new();
        for name in ["a", "b", "c"] {
            workers.push(fleet.start_on(name, stream.clone(), settings(seed)).await);
        }
        fleet.store.set(Faults::Drawn { seed, percent: 5 });
        let (mut fed, mut hole, mut longest) = (0, Duration::ZERO, Duration::ZERO);
        for second in 0..100_u32 {
            if second < 60 && second % 3 == 0 {
                reshard(&fleet.stream, &mut chance).await;
                stream.note().await;
            }
            if second == 20 || second == 45 {
                workers.remove(0).abort();
                let name = format!("later-{second}");
                workers.push(fleet.start_on(&name, stream.clone(), settings(seed)).await);
            }
            fed = fleet.feed_for(fed, 10, 1).await;
            hole = if has_hole(&fleet) { hole + SECOND } else { Duration::ZERO };
            longest = longest.max(hole);
        }
        assert!(longest <= 2 * audit, "seed {seed}: a hole for {longest:?}");
        fleet.all_of(fed, 3 * LEASE + 2 * audit).await;
    }
}

/// 2,500 shards, 100 of them closed or children, in three pages; the second token expires once. One worker
/// that reads a single shard is enough to see which leases it creates for the others.
#[tokio::test(start_paused = true)]
async fn l07_a_stream_of_2500_shards_is_listed_in_full_also_when_a_token_expires() {
    let local = LocalAws::builder().enforce_limits(false).build().unwrap();
    let client = polling::create(&local, 2450).await;
    for parent in 0..16 {
        polling::split(&client, &polling::shard(parent)).await;
    }
    let expired = Effect::FailBefore { code: "ExpiredNextTokenException".to_owned(), status: 400 };
    let rule = Rule::new(expired).client(polling::READER).operation("ListShards");
    let rule = local.faults().add(rule.containing("NextToken").skip(1).times(1));
    let mixed = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&mixed);
    let stream = polling::scripted(&local, move |operation, body| {
        let both = body.get("NextToken").is_some()
            && (body.get("StreamName").is_some() || body.get("ShardFilter").is_some());
        *counted.lock() += u32::from(operation == "ListShards" && both);
        None
    });
    let fleet = Fleet::new(1);
    let one = Settings { max_leases: 1, ..horizon() };
    let worker = fleet.start_on("a", stream, one).await;
    let leases = fleet.store.inner.snapshot();
    let known: BTreeSet<ShardId> = leases.iter().map(|lease| lease.key.as_str().into()).collect();
    let missing: Vec<_> = (0..2450).map(polling::shard).filter(|id| !known.contains(id)).collect();
    assert!(missing.is_empty(), "the shards that hold the oldest records: {missing:?}");
    assert_eq!((local.faults().fired(rule), *mixed.lock()), (1, 0));
    worker.shutdown(DEADLINE).await.unwrap();
}

/// One reply in seven has neither records nor an iterator, one in eleven reports that the shard does not
/// exist.
#[tokio::test(start_paused = true)]
async fn l08_malformed_replies_and_missing_shards_never_finish_an_open_shard() {
    let local = LocalAws::in_memory();
    let client = polling::create(&local, 1).await;
    let missing = Effect::FailBefore { code: "ResourceNotFoundException".to_owned(), status: 400 };
    let rule = Rule::new(missing).client(polling::READER).operation("GetRecords");
    local.faults().add(rule.probability(1.0 / 11.0));
    let reads = Mutex::new(0);
    let stream = polling::scripted(&local, move |operation, _| {
        let mut reads = reads.lock();
        *reads += u32::from(operation == "GetRecords");
        let is_malformed = operation == "GetRecords" && *reads % 7 == 3;
        is_malformed.then(|| json!({"Records": [], "MillisBehindLatest": 0}))
    });
    let fleet = Fleet::new(1);
    let worker = fleet.start_on("a", stream, horizon()).await;
    for round in 0..100 {
        polling::put(&client, round * 10..(round + 1) * 10).await;
        sleep(SECOND).await;
    }
    fleet.all_delivered(1000, MINUTE).await;
    assert_eq!(fleet.delivered().len(), 1000, "and nothing twice");
    assert!(fleet.count(|_, event| matches!(event, Event::ReadFailed { .. })) > 10);
    assert_eq!(fleet.count(|_, event| matches!(event, Event::ShardEnded { .. })), 0);
    let rows = fleet.store.inner.snapshot();
    assert!(rows.iter().all(|row| !row.checkpoint.is_shard_end()));
    worker.shutdown(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn l09_whatever_the_last_reply_looks_like_the_shard_ends_once_and_after_its_last_record() {
    for bits in 0..24_usize {
        let (stream, supplied) = polling::shaped(bits).await;
        let fleet = Fleet::new(1);
        let only_parent = Settings { max_leases: 1, ..horizon() };
        let worker = fleet.start_on("a", stream, only_parent).await;
        fleet
            .until("the end", |log| {
                log.iter().any(|seen| matches!(seen, Seen::Callback(_, _, "shard_ended")))
            })
            .await;
        let parent = polling::shard(0);
        let log = fleet.log.lock().clone();
        let delivered = log
            .iter()
            .filter(|seen| matches!(seen, Seen::Record(_, shard, _) if *shard == parent))
            .count();
        assert_eq!(delivered, supplied, "shape {bits}");
        let end = log.iter().position(|seen| matches!(seen, Seen::Callback(_, _, "shard_ended")));
        let last = log
            .iter()
            .rposition(|seen| matches!(seen, Seen::Record(_, shard, _) if *shard == parent));
        assert!(last < end, "shape {bits}");
        assert!(fleet.lease(&parent).checkpoint.is_shard_end(), "shape {bits}");
        worker.abort();
        let ends = fleet.callbacks().iter().filter(|call| call.contains("shard_ended")).count();
        assert_eq!(ends, 1, "shape {bits}");
    }
}

#[tokio::test(start_paused = true)]
async fn l14_rows_deleted_under_a_running_worker_come_back_with_their_positions() {
    let fleet = Fleet::new(8);
    let other = Fleet::new(2);
    let _theirs = other.start("a").await;
    let worker = fleet.start("a").await;
    fleet.within(DEADLINE, "all owned", |fleet| fleet.owned() == 8).await;
    let fed = fleet.feed_for(0, 40, 20).await;
    let before = fleet.store.inner.snapshot();
    let of_others = other.store.inner.snapshot();
    fleet.store.inner.forget(&before[3].key);
    let renewal = timing::renew_interval(settings().lease_duration);
    let is_back = |fleet: &Fleet| fleet.store.inner.snapshot().len() == 8;
    fleet.within(2 * renewal, "row 3", is_back).await;
    assert!(fleet.lease(&before[3].key.as_str().into()).checkpoint >= before[3].checkpoint);

    for row in fleet.store.inner.snapshot() {
        fleet.store.inner.forget(&row.key);
    }
    let fed = fleet.feed_for(fed, 40, 20).await;
    assert!(is_back(&fleet), "the whole table");
    for (row, before) in fleet.store.inner.snapshot().iter().zip(&before) {
        assert!(row.checkpoint >= before.checkpoint, "{row:?} after {before:?}");
    }
    fleet.all_of(fed, 10 * SECOND).await;
    worker.shutdown(DEADLINE).await.unwrap();
    assert_eq!((fleet.repeats(), fleet.losses()), (0, 0));
    assert_eq!(of_others.len(), other.store.inner.snapshot().len());
}

/// Two workers that both believe they own a shard: one is suspended for longer than its lease, in the
/// middle of a batch, and continues as if nothing had happened.
#[tokio::test(start_paused = true)]
async fn l18_d07_a_paused_owner_starts_nothing_after_it_was_deposed_and_its_writes_are_refused() {
    let script = Script { takes: 2 * SECOND, ..Script::default() };
    let fleet = Fleet::new(1).script(script);
    let eager = Settings { checkpoints: CheckpointPolicy::EveryBatch, ..horizon() };
    let _a = fleet.start_with("a", eager.clone()).await;
    fleet.within(DEADLINE, "a has it", |fleet| fleet.owned() == 1).await;
    let _b = fleet.start_with("b", eager).await;
    fleet.feed_for(0, 10, 5).await;
    fleet.link("a").pause();
    let mut fed = fleet.feed_for(50, 10, 15).await;
    let by_b = |fleet: &Fleet| fleet.tokens.lock().iter().any(|(who, ..)| who == "b");
    fleet.within(LEASE, "b delivers", by_b).await;
    let deposed = Instant::now();
    let batches = fleet.tokens.lock().len();
    fleet.link("a").resume();
    fed = fleet.feed_for(fed, 10, 30).await;
    fleet.all_of(fed, DEADLINE).await;
    let tokens = fleet.tokens.lock().clone();
    assert!(tokens[batches..].iter().all(|(who, ..)| who == "b"), "a starts nothing");
    let of = |worker: &str| -> Vec<u64> {
        let batches = tokens.iter().filter(|(who, ..)| who == worker);
        batches.map(|(.., token)| *token).collect()
    };
    assert!(of("b").iter().min() > of("a").iter().max(), "a sink can tell them apart");
    let requests = fleet.store.requests.lock();
    let late = requests.iter().filter(|it| it.worker == "a" && it.at >= deposed);
    assert!(late.filter(|it| it.write.is_some()).count() <= 2, "a learns that it is deposed");
    assert_eq!(fleet.lease(&"shardId-000000000000".into()).owner, Some("b".into()));
}
