//! Compatibility of lease rows with the Java library: each side reads the rows of the other after every
//! write, and both write in turn.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use kcl_lite::lease::dynamo::DynamoStore;
use kcl_lite::lease::store::{LeaseStore, WriteOutcome};
use kcl_lite::lease::{
    Lease, LeaseChange, LeaseKey, LeaseUpdate, LeaseWrite, PendingChange, WriteId,
};
use kcl_lite::{Checkpoint, HashRange, Position, ShardId, TableOptions, Timestamp};
use local_aws::LocalAws;
use proptest::prelude::*;

use crate::java::{self, Item, JavaLease, JavaWorker, Version, item};

const TABLE: &str = "wildrydes-tail";
const SHARD: &str = "shardId-000000000000";
/// Later than any checkpoint of the samples.
const LATER: &str = "59680467067409085667164030489077425005650163091424411650";

/// A table, this library's store on it, and other clients as needed.
struct Bench {
    local: LocalAws,
    store: DynamoStore,
    admin: Client,
    writes: u64,
}

impl Bench {
    async fn new() -> Self {
        let local = LocalAws::in_memory();
        let store = DynamoStore::new(&local.sdk_config("ours"), TABLE, TableOptions::default());
        store.prepare().await.unwrap();
        let admin = Client::new(&local.sdk_config("admin"));
        Self { local, store, admin, writes: 0 }
    }

    fn java(&self, name: &'static str, version: Version) -> JavaWorker {
        let client = Client::new(&self.local.sdk_config(name));
        JavaWorker { client, table: TABLE, name, version }
    }

    async fn put(&self, item: Item) {
        self.admin.put_item().table_name(TABLE).set_item(Some(item)).send().await.unwrap();
    }

    async fn raw(&self, key: &str) -> Item {
        let get = self.admin.get_item().table_name(TABLE).consistent_read(true);
        let get = get.key("leaseKey", AttributeValue::S(key.to_owned()));
        get.send().await.unwrap().item.unwrap()
    }

    /// Parses the row as the Java library does.
    async fn in_java(&self, key: &str) -> JavaLease {
        let raw = self.raw(key).await;
        java::parse(&raw).unwrap_or_else(|fault| panic!("{key}: {fault} in {raw:?}"))
    }

    async fn lease(&self, key: &str) -> Lease {
        self.store.get(&key.into()).await.unwrap().unwrap()
    }

    async fn write(&mut self, key: &str, change: LeaseChange) -> WriteOutcome {
        self.writes += 1;
        let id = WriteId::new(format!("us#1:{}", self.writes));
        self.store.write(&LeaseWrite { key: key.into(), id, change }).await.unwrap()
    }

    /// Makes a write that must be applied; returns the resulting row, which both sides can read.
    async fn done(&mut self, key: &str, change: LeaseChange) -> Lease {
        let WriteOutcome::Done(Some(lease)) = self.write(key, change.clone()).await else {
            panic!("{key}: {change:?} was refused");
        };
        assert_eq!(self.lease(key).await, lease, "{change:?}");
        assert_eq!(self.in_java(key).await, as_java(&lease), "{change:?}");
        lease
    }
}

/// The samples: the version that wrote each, and the row.
fn samples() -> Vec<(&'static str, Item)> {
    let lines = include_str!("../fixtures/java_rows.txt").lines();
    let rows = lines.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(": "));
    rows.map(|(version, row)| (version, item(row))).collect()
}

fn key_of(item: &Item) -> String {
    item["leaseKey"].as_s().unwrap().clone()
}

/// Returns the same lease as the Java library has to parse it.
fn as_java(lease: &Lease) -> JavaLease {
    let position = |checkpoint: &Checkpoint| {
        let sub = checkpoint.sub_sequence_number().try_into().unwrap();
        (checkpoint.as_str().to_owned(), sub)
    };
    let names = |shards: &BTreeSet<ShardId>| shards.iter().map(ToString::to_string).collect();
    let stream = lease.key.stream();
    JavaLease {
        key: lease.key.to_string(),
        owner: lease.owner.as_ref().map(ToString::to_string),
        checkpoint_owner: lease.checkpoint_owner.as_ref().map(ToString::to_string),
        counter: lease.counter.try_into().unwrap(),
        switches: lease.owner_switches.try_into().unwrap(),
        checkpoint: position(&lease.checkpoint),
        pending: lease.pending.as_ref().map(|pending| position(&pending.checkpoint)),
        pending_state: lease.pending.as_ref().and_then(|pending| pending.state.clone()),
        parents: names(&lease.parents),
        children: names(&lease.children),
        range: lease.hash_range.map(|range| (range.start, range.end)),
        several: stream.as_str().map(|it| (it.to_owned(), lease.shard().to_string())),
    }
}

fn at(digits: &str, sub_sequence_number: u64) -> Checkpoint {
    Checkpoint::At(Position { sequence_number: digits.parse().unwrap(), sub_sequence_number })
}

/// Attributes of a newer version, of another library or of an operator.
fn foreign() -> Item {
    item("throughputKBps N 0.000001; klNews S x; team S rides; many SS a b")
}

fn assert_kept(raw: &Item, kept: &Item) {
    for (name, value) in kept {
        match (value, raw.get(name)) {
            (AttributeValue::Ss(all), Some(AttributeValue::Ss(found))) => {
                assert_eq!(BTreeSet::from_iter(found), BTreeSet::from_iter(all), "{name}");
            }
            (AttributeValue::N(number), Some(AttributeValue::N(found))) => {
                let value = |digits: &str| digits.parse::<f64>().unwrap().to_bits();
                assert_eq!(value(found), value(number), "{name}");
            }
            (value, found) => assert_eq!(found, Some(value), "{name}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_row_of_the_java_library_is_the_same_lease_here() {
    let bench = Bench::new().await;
    let samples = samples();
    assert!(samples.len() > 40);
    for (version, row) in samples {
        let java = java::parse(&row).unwrap();
        bench.put(row).await;
        let lease = bench.lease(&java.key).await;
        assert_eq!(as_java(&lease), java, "{version}");
        // No mark of this library, so the row is not mistaken for one of its own.
        assert_eq!((lease.write_id, lease.anchor, lease.read_until), (None, None, None));
    }
}

/// The whole life of a lease in this library, on every row, some of them with a pending checkpoint.
#[tokio::test(start_paused = true)]
async fn each_row_of_the_java_library_passes_through_every_write_and_back() {
    let mut bench = Bench::new().await;
    for (_, row) in samples() {
        let key = key_of(&row);
        bench.put(row.clone()).await;
        let found = bench.lease(&key).await;
        let (pending, end) = (found.pending.clone(), found.checkpoint.is_shard_end());
        let (counter, from) = (found.counter, found.owner.clone());

        let take = LeaseChange::Take { counter, from: from.clone(), owner: "us".into() };
        let taken = bench.done(&key, take).await;
        assert_eq!((taken.owner, taken.checkpoint_owner), (Some("us".into()), None));
        let switches = found.owner_switches + u64::from(from.is_some());
        assert_eq!((taken.counter, taken.owner_switches), (counter + 1, switches));

        let renew = LeaseChange::Renew {
            counter: counter + 1,
            owner: "us".into(),
            update: LeaseUpdate::default(),
        };
        let renewed = bench.done(&key, renew).await;
        assert_eq!((&renewed.checkpoint, &renewed.pending), (&found.checkpoint, &pending));

        // Before the pending checkpoint, which does not change.
        let update = LeaseUpdate::of((!end).then(|| at(LATER, 3)));
        let moved = bench
            .done(&key, LeaseChange::Renew { counter: counter + 2, owner: "us".into(), update })
            .await;
        let expected = if end { Checkpoint::ShardEnd } else { at(LATER, 3) };
        assert_eq!((&moved.checkpoint, &moved.pending), (&expected, &pending));

        let (us, next) = ("us".into(), "next".into());
        let ask = LeaseChange::RequestHandoff { counter: counter + 3, from: us, to: next };
        let asked = bench.done(&key, ask).await;
        assert_eq!(asked.actual_owner(), Some(&"us".into()));
        assert_eq!((asked.owner, asked.counter), (Some("next".into()), counter + 3));

        let read_until = Some(Timestamp::from_millis(1_700_000_000_123));
        let update =
            LeaseUpdate { pending: PendingChange::Clear, read_until, ..LeaseUpdate::default() };
        let over = LeaseChange::HandOver { counter: counter + 3, update, to: "next".into() };
        let handed = bench.done(&key, over).await;
        assert_eq!((handed.actual_owner(), &handed.pending), (Some(&"next".into()), &None));
        assert_eq!(handed.read_until, read_until);

        let release = LeaseChange::Release { counter: counter + 4, update: LeaseUpdate::default() };
        let released = bench.done(&key, release).await;
        assert_eq!((released.actual_owner(), released.read_until), (None, read_until));

        let children = ["shardId-000000000007".into(), "shardId-000000000008".into()].into();
        let finish = LeaseChange::Finish { counter: counter + 5, children };
        let finished = bench.done(&key, finish).await;
        assert_eq!((finished.checkpoint, finished.children.len()), (Checkpoint::ShardEnd, 2));
        assert_eq!((finished.parents, finished.hash_range), (found.parents, found.hash_range));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_in_a_row_of_the_java_library_survives_every_write() {
    let mut bench = Bench::new().await;
    for (_, mut row) in samples() {
        let key = key_of(&row);
        row.extend(foreign());
        bench.put(row.clone()).await;
        let mut kept = foreign();
        let of_row = ["entityType", "streamName", "shardId", "parentShardId"];
        kept.extend(of_row.iter().filter_map(|it| Some(((*it).to_owned(), row.get(*it)?.clone()))));
        let seen = bench.lease(&key).await;
        let counter = seen.counter;
        let update = || LeaseUpdate::of((!seen.checkpoint.is_shard_end()).then(|| at(LATER, 0)));
        let children: BTreeSet<ShardId> = ["shardId-000000000009".into()].into();
        let anchor = Some(Timestamp::from_millis(7));
        for (nth, change) in [
            LeaseChange::Take { counter, from: seen.owner.clone(), owner: "us".into() },
            LeaseChange::Renew { counter: counter + 1, owner: "us".into(), update: update() },
            LeaseChange::RequestHandoff {
                counter: counter + 2,
                from: "us".into(),
                to: "it".into(),
            },
            LeaseChange::HandOver { counter: counter + 2, update: update(), to: "it".into() },
            LeaseChange::Release { counter: counter + 3, update: update() },
            LeaseChange::Finish { counter: counter + 4, children },
            LeaseChange::Reset {
                counter: counter + 5,
                checkpoint: Checkpoint::AtTimestamp,
                anchor,
            },
        ]
        .into_iter()
        .enumerate()
        {
            let outcome = bench.write(&key, change).await;
            assert!(matches!(outcome, WriteOutcome::Done(Some(_))), "{key}, write {nth}");
            assert_kept(&bench.raw(&key).await, &kept);
        }
    }
}

/// The other direction: the strictest Java parser reads every lease that this library writes.
#[tokio::test(start_paused = true)]
async fn rows_made_here_are_leases_of_the_java_library() {
    let mut bench = Bench::new().await;
    let several = "123456789012:wildrydes:1700000000:shardId-000000000000";
    for key in [SHARD, several] {
        let bare = Lease::new(key, Checkpoint::Latest);
        let anchored = Lease { anchor: Some(Timestamp::from_millis(-1)), ..bare.clone() };
        let merged = Lease {
            parents: ["shardId-000000000002".into(), "shardId-000000000003".into()].into(),
            hash_range: Some(HashRange { start: 0, end: u128::MAX }),
            ..Lease::new(key, Checkpoint::TrimHorizon)
        };
        // A vanished row that its owner writes again.
        let (_, prepared) = samples().swap_remove(samples().iter().position(with_state).unwrap());
        bench.put(prepared.clone()).await;
        let prepared = bench.lease(&key_of(&prepared)).await;
        let again = Lease { key: key.into(), ..prepared };
        for lease in [bare, anchored, merged, again] {
            bench
                .admin
                .delete_item()
                .table_name(TABLE)
                .key("leaseKey", AttributeValue::S(key.to_owned()))
                .send()
                .await
                .unwrap();
            bench.done(key, LeaseChange::Create(Box::new(lease))).await;
        }
    }
}

fn with_state((_, row): &(&str, Item)) -> bool {
    row.get("pendingCheckpointState").is_some_and(AttributeValue::is_b)
}

/// The Java parser throws on a range of one key, and a single such row stops all of its workers.
#[tokio::test(start_paused = true)]
async fn a_shard_of_a_single_hash_key_is_a_row_without_a_range() {
    let mut bench = Bench::new().await;
    let one = Some(HashRange { start: 7, end: 7 });
    let lease = Lease { hash_range: one, ..Lease::new(SHARD, Checkpoint::TrimHorizon) };
    bench.write(SHARD, LeaseChange::Create(Box::new(lease))).await;
    assert_eq!(bench.in_java(SHARD).await.range, None);
}

/// KCL 3.5 stores everything in one table; a single wrong write there stops a fleet.
#[tokio::test(start_paused = true)]
async fn items_that_are_not_leases_are_neither_listed_nor_written() {
    let mut bench = Bench::new().await;
    let stream = "123456789012:wildrydes:1700000000";
    let items = [
        "leaseKey S Leader; entityType S LEADER; ownerName S w1; leaseDuration S 120000; \
         recordVersionNumber S ee36fc97-794d-4234-a9b6-19d6d64bb56d",
        "leaseKey S Migration3.0; entityType S CLIENT_VERSION_MIGRATION; cv S CLIENT_VERSION_3X; \
         mb S w1; mts N 1795370742850",
        "leaseKey S TableMigration3.5; entityType S TABLE_MIGRATION; mb S w1; mts N 1795370742850",
        "leaseKey S w1; entityType S WORKER_METRIC_STATS; lut N 1795370751; sup N 1",
        &format!("leaseKey S {stream}; entityType S STREAM; streamId S {stream}"),
    ];
    for row in items {
        bench.put(item(row)).await;
    }
    bench.put(samples().swap_remove(0).1).await;
    let table = bench.store.list().await.unwrap();
    assert_eq!((table.leases.len(), table.unreadable.len()), (1, 0));
    for row in items {
        let row = item(row);
        let key = key_of(&row);
        assert_eq!(bench.store.get(&key.as_str().into()).await.unwrap(), None);
        for change in all_changes(&key, 0) {
            let outcome = bench.write(&key, change.clone()).await;
            assert_eq!(outcome, WriteOutcome::Refused(None), "{change:?}");
        }
        assert_eq!(bench.raw(&key).await, row);
    }
}

fn all_changes(key: &str, counter: u64) -> Vec<LeaseChange> {
    let update = LeaseUpdate::default;
    vec![
        LeaseChange::Create(Box::new(Lease::new(key, Checkpoint::Latest))),
        LeaseChange::Take { counter, from: None, owner: "us".into() },
        LeaseChange::RequestHandoff { counter, from: "w1".into(), to: "us".into() },
        LeaseChange::WithdrawHandoff { from: "w1".into(), to: "us".into() },
        LeaseChange::HandOver { counter, update: update(), to: "us".into() },
        LeaseChange::Renew { counter, owner: "us".into(), update: update() },
        LeaseChange::Release { counter, update: update() },
        LeaseChange::Finish { counter, children: BTreeSet::new() },
        LeaseChange::Reset { counter, checkpoint: Checkpoint::TrimHorizon, anchor: None },
        LeaseChange::Delete { counter },
        LeaseChange::Discard { counter },
        LeaseChange::Replace { counter, with: Box::new(Lease::new(key, Checkpoint::Latest)) },
    ]
}

/// Creates a row of this library that `java` has just taken; returns it with the memory of `java`.
async fn taken_by(bench: &mut Bench, java: &JavaWorker) -> JavaLease {
    let lease = Lease::new(SHARD, Checkpoint::TrimHorizon);
    bench.done(SHARD, LeaseChange::Create(Box::new(lease))).await;
    let seen = java.read(SHARD).await.unwrap();
    java.take(&seen).await.unwrap()
}

fn take_from(row: &Lease) -> LeaseChange {
    LeaseChange::Take { counter: row.counter, from: row.owner.clone(), owner: "us".into() }
}

#[tokio::test(start_paused = true)]
async fn a_java_owner_whose_lease_is_taken_here_is_fenced_and_one_that_moved_is_not_taken() {
    for version in [Version::V2, Version::V3] {
        let mut bench = Bench::new().await;
        let java = bench.java("w1", version);
        let mut held = taken_by(&mut bench, &java).await;
        let seen = bench.lease(SHARD).await;
        // The owner is alive after all: the take is too late.
        assert!(java.renew(&mut held).await);
        let refused = bench.write(SHARD, take_from(&seen)).await;
        assert_eq!(refused, WriteOutcome::Refused(Some(bench.lease(SHARD).await)));
        let seen = bench.lease(SHARD).await;
        assert_eq!((seen.owner.as_ref(), &seen.write_id), (Some(&"w1".into()), &seen.write_id));
        bench.done(SHARD, take_from(&seen)).await;
        assert!(!java.checkpoint(&mut held, (LATER, 0)).await, "{version:?}");
        assert!(!java.renew(&mut held).await, "{version:?}");
        assert_eq!(bench.lease(SHARD).await.checkpoint, Checkpoint::TrimHorizon);
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_here_is_fenced_by_every_java_writer_that_takes_the_lease() {
    for theft in ["take", "evict", "assign"] {
        let mut bench = Bench::new().await;
        let java = bench.java("w1", Version::V3);
        let lease = Lease::new(SHARD, Checkpoint::TrimHorizon);
        bench.done(SHARD, LeaseChange::Create(Box::new(lease))).await;
        let ours = take_from(&bench.lease(SHARD).await);
        let ours = bench.done(SHARD, ours).await;
        let seen = java.read(SHARD).await.unwrap();
        let stolen = match theft {
            "take" => java.take(&seen).await,
            "evict" => java.evict(&seen).await,
            _ => java.assign(&seen, "w2").await,
        };
        assert_eq!(stolen.unwrap().counter, seen.counter + 1, "{theft}");
        let row = bench.lease(SHARD).await;
        let counter = ours.counter;
        let update = LeaseUpdate::of(Some(at(LATER, 0)));
        for change in [
            LeaseChange::Renew { counter, owner: "us".into(), update: update.clone() },
            LeaseChange::Release { counter, update: update.clone() },
            LeaseChange::HandOver { counter, update, to: "w9".into() },
            LeaseChange::Finish { counter, children: BTreeSet::new() },
        ] {
            let outcome = bench.write(SHARD, change).await;
            assert_eq!(outcome, WriteOutcome::Refused(Some(row.clone())), "{theft}");
        }
    }
}

/// The leader of KCL 3 moves a lease from a worker here to one of its own.
#[tokio::test(start_paused = true)]
async fn a_java_leader_gets_a_lease_from_an_owner_here_by_asking() {
    let mut bench = Bench::new().await;
    let leader = bench.java("leader", Version::V3);
    bench.done(SHARD, LeaseChange::Create(Box::new(Lease::new(SHARD, Checkpoint::Latest)))).await;
    let ours = take_from(&bench.lease(SHARD).await);
    let ours = bench.done(SHARD, ours).await;
    let seen = leader.read(SHARD).await.unwrap();
    leader.start_handoff(&seen, "w2").await.unwrap();

    // The owner keeps reading: its renewals and checkpoints are applied and show it the request.
    let update = LeaseUpdate::of(Some(at(LATER, 0)));
    let renewed = bench
        .done(SHARD, LeaseChange::Renew { counter: ours.counter, owner: "us".into(), update })
        .await;
    assert_eq!(renewed.actual_owner(), Some(&"us".into()));
    assert_eq!(renewed.owner, Some("w2".into()));
    // It may not release the lease without a new owner.
    let counter = renewed.counter;
    let release = LeaseChange::Release { counter, update: LeaseUpdate::default() };
    assert_eq!(bench.write(SHARD, release).await, WriteOutcome::Refused(Some(renewed)));
    let update = LeaseUpdate::of(Some(at(LATER, 4)));
    bench.done(SHARD, LeaseChange::HandOver { counter, update, to: "w2".into() }).await;

    // The lease discovery of the new owner waits for this.
    let java = bench.java("w2", Version::V3);
    let mut held = java.read(SHARD).await.unwrap();
    assert_eq!((held.owner.as_deref(), &held.checkpoint_owner), (Some("w2"), &None));
    assert_eq!((held.checkpoint.clone(), held.switches), ((LATER.to_owned(), 4), 0));
    assert!(java.renew(&mut held).await);
    // A leader that times out at the same moment is too late.
    assert_eq!(leader.assign(&seen, "w3").await, None);
}

/// A worker of this library requests a handoff from an owner that runs KCL 3, as that library's leader
/// would.
#[tokio::test(start_paused = true)]
async fn a_java_3_owner_that_is_asked_from_here_checkpoints_and_hands_over() {
    let mut bench = Bench::new().await;
    let java = bench.java("w1", Version::V3);
    let mut held = taken_by(&mut bench, &java).await;
    let counter = bench.lease(SHARD).await.counter;
    bench.done(SHARD, ask(counter)).await;
    // Its renewal is refused once; it learns of the request and continues.
    assert!(java.renew(&mut held).await);
    assert_eq!((held.owner.as_deref(), held.checkpoint_owner.as_deref()), (Some("us"), Some("w1")));
    assert!(java.checkpoint(&mut held, (LATER, 2)).await);
    let handed = java.assign(&held, "us").await.unwrap();
    let row = bench.lease(SHARD).await;
    assert_eq!((row.actual_owner(), &row.checkpoint), (Some(&"us".into()), &at(LATER, 2)));
    assert_eq!(i64::try_from(row.counter).unwrap(), handed.counter);
    bench.done(SHARD, take_from(&row)).await;
    assert!(!java.renew(&mut held).await);
}

/// KCL 2 does not know handoffs: after a mistaken request it keeps reading, and a plain take fences it.
#[tokio::test(start_paused = true)]
async fn a_java_2_owner_that_is_asked_by_mistake_reads_on_until_it_is_taken_from() {
    let mut bench = Bench::new().await;
    let java = bench.java("w1", Version::V2);
    let mut held = taken_by(&mut bench, &java).await;
    let counter = bench.lease(SHARD).await.counter;
    bench.done(SHARD, ask(counter)).await;
    assert!(java.renew(&mut held).await);
    assert!(java.checkpoint(&mut held, (LATER, 0)).await);
    let row = bench.lease(SHARD).await;
    assert_eq!(row.actual_owner(), Some(&"w1".into()), "it still reads");
    bench.done(SHARD, take_from(&row)).await;
    assert!(!java.checkpoint(&mut held, (LATER, 1)).await);
    assert!(!java.renew(&mut held).await);
    assert_eq!(bench.lease(SHARD).await.checkpoint, at(LATER, 0), "nothing is lost");
}

fn ask(counter: u64) -> LeaseChange {
    LeaseChange::RequestHandoff { counter, from: "w1".into(), to: "us".into() }
}

/// The Java renewal treats a refusal as its own lost reply if it is the owner and the counter is one
/// higher; no write of this library may look like that to a replaced owner.
#[tokio::test(start_paused = true)]
async fn a_reset_here_stops_a_java_owner() {
    for version in [Version::V2, Version::V3] {
        let mut bench = Bench::new().await;
        let java = bench.java("w1", version);
        let mut held = taken_by(&mut bench, &java).await;
        assert!(java.checkpoint(&mut held, (LATER, 0)).await);
        let counter = bench.lease(SHARD).await.counter;
        let checkpoint = Checkpoint::TrimHorizon;
        bench.done(SHARD, LeaseChange::Reset { counter, checkpoint, anchor: None }).await;
        assert!(!java.renew(&mut held).await, "{version:?}");
        assert!(!java.checkpoint(&mut held, (LATER, 5)).await, "{version:?}");
        assert_eq!(bench.lease(SHARD).await.checkpoint, Checkpoint::TrimHorizon);
    }
}

/// The Java library writes what it learns about a shard without incrementing the counter; this library
/// does not overwrite it.
#[tokio::test(start_paused = true)]
async fn children_that_a_java_worker_notes_in_between_are_kept() {
    let mut bench = Bench::new().await;
    let java = bench.java("w1", Version::V3);
    bench.done(SHARD, LeaseChange::Create(Box::new(Lease::new(SHARD, Checkpoint::Latest)))).await;
    let ours = take_from(&bench.lease(SHARD).await);
    let ours = bench.done(SHARD, ours).await;
    assert!(java.note_children(SHARD, &["shardId-000000000003"]).await);
    let renew = LeaseChange::Renew {
        counter: ours.counter,
        owner: "us".into(),
        update: LeaseUpdate::default(),
    };
    let renewed = bench.done(SHARD, renew).await;
    assert_eq!(renewed.children, ["shardId-000000000003".into()].into());
}

/// The next move of one of three workers: this library, 2.x, 3.x; the last one may act as leader.
#[derive(Debug, Clone, Copy)]
enum Move {
    Ours(Act),
    Java(usize, Act),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Look,
    Take,
    Renew,
    Checkpoint,
    Ask,
    Release,
    Assign,
}

fn any_move() -> impl Strategy<Value = Move> {
    let act = || {
        prop::sample::select(vec![
            Act::Look,
            Act::Take,
            Act::Renew,
            Act::Checkpoint,
            Act::Ask,
            Act::Release,
            Act::Assign,
        ])
    };
    prop_oneof![
        act().prop_map(Move::Ours),
        (0..2_usize, act()).prop_map(|(who, act)| Move::Java(who, act)),
    ]
}

/// A worker's memory of the lease, which may be outdated.
struct Memory {
    java: Option<JavaLease>,
    /// The last worker that had changed the counter at the time of this memory; a write based on it may only
    /// succeed while that is still true.
    change: u64,
}

/// The state of one run of moves.
struct Turns {
    bench: Bench,
    javas: [JavaWorker; 2],
    memories: [Memory; 3],
    /// Counts the writes that changed the counter.
    changes: u64,
}

impl Turns {
    async fn new() -> Self {
        let mut bench = Bench::new().await;
        let lease = Lease::new(SHARD, Checkpoint::TrimHorizon);
        bench.done(SHARD, LeaseChange::Create(Box::new(lease))).await;
        let javas = [bench.java("w2", Version::V2), bench.java("w3", Version::V3)];
        let memories = [(); 3].map(|()| Memory { java: None, change: 0 });
        Self { bench, javas, memories, changes: 0 }
    }

    /// Performs one move; panics if a write that must be refused is applied, or the reverse.
    async fn play(&mut self, next: Move) {
        let (who, act) = match next {
            Move::Ours(act) => (0, act),
            Move::Java(who, act) => (who + 1, act),
        };
        let before = self.bench.in_java(SHARD).await;
        if act == Act::Look {
            self.memories[who] = Memory { java: Some(before), change: self.changes };
            return;
        }
        let Some(memory) = self.memories[who].java.clone() else { return };
        let is_fresh = self.memories[who].change == self.changes;
        let applied = match next {
            Move::Ours(act) => self.ours(act, &memory).await,
            Move::Java(who, act) => self.java(who, act, &memory, is_fresh).await,
        };
        let after = self.bench.in_java(SHARD).await;
        assert!(applied || after == before, "{next:?} says that it was refused");
        if after.counter != before.counter {
            assert_eq!(after.counter, before.counter + 1, "{next:?}");
            self.changes += 1;
            // An assignment is conditional on both owners, not on the counter.
            let by_owners = matches!(next, Move::Java(_, Act::Assign | Act::Release));
            assert!(is_fresh || by_owners, "{next:?} wrote over something it had not seen");
        }
        let position = |lease: &JavaLease| Checkpoint::parse(&lease.checkpoint.0, 0).unwrap();
        assert!(position(&after) >= position(&before), "{next:?} moved the checkpoint back");
        if applied {
            self.memories[who] = Memory { java: Some(after), change: self.changes };
        }
    }

    async fn ours(&mut self, act: Act, memory: &JavaLease) -> bool {
        let counter = u64::try_from(memory.counter).unwrap();
        let owner = || memory.owner.as_deref().unwrap_or("nobody");
        let change = match act {
            Act::Take | Act::Assign | Act::Look => LeaseChange::Take {
                counter,
                from: memory.owner.as_deref().map(Into::into),
                owner: "us".into(),
            },
            Act::Renew => {
                LeaseChange::Renew { counter, owner: "us".into(), update: LeaseUpdate::default() }
            }
            Act::Checkpoint => {
                let update = LeaseUpdate::of(Some(at(&next_position(memory), 0)));
                LeaseChange::Renew { counter, owner: "us".into(), update }
            }
            Act::Ask => {
                LeaseChange::RequestHandoff { counter, from: owner().into(), to: "us".into() }
            }
            Act::Release if memory.checkpoint_owner.is_some() => LeaseChange::HandOver {
                counter,
                update: LeaseUpdate::default(),
                to: owner().into(),
            },
            Act::Release => LeaseChange::Release { counter, update: LeaseUpdate::default() },
        };
        // Refused exactly if the rule refuses it for the current row.
        let row = self.bench.lease(SHARD).await;
        let id = WriteId::new(format!("us#1:{}", self.bench.writes + 1));
        let key = LeaseKey::from(SHARD);
        let ruled = LeaseWrite { key, id, change: change.clone() }.apply(Some(&row));
        let expected = match ruled {
            Ok(row) => WriteOutcome::Done(row),
            Err(refused) => WriteOutcome::Refused(refused.current.map(|row| *row)),
        };
        let outcome = self.bench.write(SHARD, change.clone()).await;
        assert_eq!(outcome, expected, "{change:?}");
        matches!(outcome, WriteOutcome::Done(_))
    }

    async fn java(&self, who: usize, act: Act, memory: &JavaLease, is_fresh: bool) -> bool {
        let position = next_position(memory);
        let java = &self.javas[who];
        let mut held = memory.clone();
        match act {
            Act::Look => false,
            Act::Take => java.take(memory).await.is_some(),
            // A worker that has lost the lease according to its memory does not renew it.
            Act::Renew | Act::Checkpoint if !holds(java, memory) => false,
            Act::Renew => java.renew(&mut held).await && held.counter > memory.counter,
            Act::Checkpoint => java.checkpoint(&mut held, (&position, 0)).await,
            Act::Ask if java.version == Version::V3 => {
                java.start_handoff(memory, "w3").await.is_some()
            }
            Act::Assign | Act::Release if java.version == Version::V3 => {
                let to = memory.owner.as_deref().filter(|_| act == Act::Release).unwrap_or("w3");
                java.assign(memory, to).await.is_some()
            }
            Act::Ask | Act::Assign => false,
            // It would set an old counter; only the Java library's tests call it.
            Act::Release if is_fresh => java.evict(memory).await.is_some(),
            Act::Release => false,
        }
    }
}

/// Returns the checkpoint one record after the remembered one; an outdated memory would move it back.
fn next_position(memory: &JavaLease) -> String {
    let position = memory.checkpoint.0.parse::<u64>().unwrap_or(1_000);
    (position + 1).to_string()
}

fn holds(java: &JavaWorker, memory: &JavaLease) -> bool {
    memory.checkpoint_owner.as_deref().or(memory.owner.as_deref()) == Some(java.name)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    /// Workers of this library and of both Java versions on one row, each with a possibly outdated memory: no
    /// write overwrites one that its writer has not seen, no checkpoint moves back, this library's writes are
    /// refused exactly as the rule says, and both sides can read every row.
    #[test]
    fn writers_of_both_libraries_in_turns_lose_no_update(
        moves in prop::collection::vec(any_move(), 1..60),
    ) {
        let run = async {
            let mut turns = Turns::new().await;
            for next in moves {
                turns.play(next).await;
            }
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(run);
    }
}
