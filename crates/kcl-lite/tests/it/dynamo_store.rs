//! The lease store on DynamoDB, with the real SDK against the in-process service.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::SharedCredentialsProvider;
use aws_sdk_dynamodb::types::AttributeValue;
use kcl_lite::lease::dynamo::DynamoStore;
use kcl_lite::lease::memory::MemoryStore;
use kcl_lite::lease::store::{LeaseStore, WriteOutcome};
use kcl_lite::lease::{
    Lease, LeaseChange, LeaseKey, LeaseUpdate, LeaseWrite, PendingChange, PendingCheckpoint,
    StreamIdentity, WriteId,
};
use kcl_lite::{
    Checkpoint, HashRange, Position, ServiceErrorKind, ShardId, TableOptions, Timestamp, WorkerId,
};
use local_aws::{Effect, LocalAws, Rule};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::java::{Item, item};

const TABLE: &str = "wildrydes-tail";
const SHARD: &str = "shardId-000000000000";

/// The services, a store on them as `worker`, and a plain client as `admin`.
struct Bench {
    local: LocalAws,
    store: DynamoStore,
    admin: Client,
}

impl Bench {
    fn without_table() -> Self {
        let local = LocalAws::in_memory();
        let store = DynamoStore::new(&local.sdk_config("worker"), TABLE, TableOptions::default());
        let admin = Client::new(&local.sdk_config("admin"));
        Self { local, store, admin }
    }

    async fn new() -> Self {
        let bench = Self::without_table();
        bench.store.prepare().await.unwrap();
        bench.local.requests().clear();
        bench
    }

    async fn put(&self, row: &str) {
        self.admin.put_item().table_name(TABLE).set_item(Some(item(row))).send().await.unwrap();
    }

    async fn raw(&self, key: &str) -> Option<Item> {
        let get = self.admin.get_item().table_name(TABLE).consistent_read(true);
        get.key("leaseKey", AttributeValue::S(key.into())).send().await.unwrap().item
    }

    async fn write(&self, change: LeaseChange) -> WriteOutcome {
        self.store.write(&write(SHARD, change)).await.unwrap()
    }
}

/// The attributes that every row has, as KCL 2.5.8 writes them for a new shard.
fn bare(key: &str) -> String {
    format!(
        "leaseKey S {key}; leaseCounter N 0; ownerSwitchesSinceCheckpoint N 0; \
         checkpoint S TRIM_HORIZON; checkpointSubSequenceNumber N 0"
    )
}

fn write(key: &str, change: LeaseChange) -> LeaseWrite {
    LeaseWrite { key: key.into(), id: WriteId::new("w1/1"), change }
}

fn at(sequence_number: &str, sub_sequence_number: u64) -> Checkpoint {
    let sequence_number = sequence_number.parse().unwrap();
    Checkpoint::At(Position { sequence_number, sub_sequence_number })
}

fn shards<const N: usize>(numbers: [u32; N]) -> BTreeSet<ShardId> {
    numbers.into_iter().map(|number| format!("shardId-{number:012}").into()).collect()
}

fn take(counter: u64) -> LeaseChange {
    LeaseChange::Take { counter, from: Some("w1".into()), owner: "w2".into() }
}

fn renew(counter: u64) -> LeaseChange {
    LeaseChange::Renew { counter, owner: "w1".into(), update: LeaseUpdate::default() }
}

/// The lower half of the hash keys, and the upper half.
const LOW: HashRange = HashRange { start: 0, end: u128::MAX / 2 };
const HIGH: HashRange = HashRange { start: u128::MAX / 2 + 1, end: u128::MAX };

/// A row as the Java library wrote it, and the lease that it represents.
type Sample = (&'static str, Lease);

/// KCL 2.5.8: created; taken; an aggregate processed up to its fifth record and the next one prepared; a
/// split parent at its shard end, still owned.
fn rows_of_kcl_2() -> Vec<Sample> {
    let first = |checkpoint| Lease { hash_range: Some(LOW), ..Lease::new(SHARD, checkpoint) };
    let aggregate = "49680467067409085667164030489077425005650163091424411650";
    let prepared = "49680467067409085667164030489078633931469779301147082754";
    vec![
        (
            "leaseKey S shardId-000000000000; leaseCounter N 0; checkpoint S TRIM_HORIZON; \
             checkpointSubSequenceNumber N 0; ownerSwitchesSinceCheckpoint N 0; \
             startingHashKey S 0; endingHashKey S 170141183460469231731687303715884105727",
            first(Checkpoint::TrimHorizon),
        ),
        (
            "leaseKey S shardId-000000000001; leaseOwner S w1; leaseCounter N 1; \
             checkpoint S TRIM_HORIZON; checkpointSubSequenceNumber N 0; \
             ownerSwitchesSinceCheckpoint N 0; \
             startingHashKey S 170141183460469231731687303715884105728; \
             endingHashKey S 340282366920938463463374607431768211455",
            Lease {
                owner: Some("w1".into()),
                counter: 1,
                hash_range: Some(HIGH),
                ..Lease::new("shardId-000000000001", Checkpoint::TrimHorizon)
            },
        ),
        (
            "leaseKey S shardId-000000000000; leaseOwner S w3; leaseCounter N 33; \
             checkpoint S 49680467067409085667164030489077425005650163091424411650; \
             checkpointSubSequenceNumber N 4; ownerSwitchesSinceCheckpoint N 2; \
             pendingCheckpoint S 49680467067409085667164030489078633931469779301147082754; \
             pendingCheckpointSubSequenceNumber N 0; pendingCheckpointState B app-state-1; \
             startingHashKey S 0; endingHashKey S 170141183460469231731687303715884105727",
            Lease {
                owner: Some("w3".into()),
                counter: 33,
                owner_switches: 2,
                pending: Some(PendingCheckpoint {
                    checkpoint: at(prepared, 0),
                    state: Some(b"app-state-1".to_vec()),
                }),
                ..first(at(aggregate, 4))
            },
        ),
        (
            "leaseKey S shardId-000000000000; leaseOwner S w5; leaseCounter N 58; \
             checkpoint S SHARD_END; checkpointSubSequenceNumber N 0; \
             ownerSwitchesSinceCheckpoint N 0; startingHashKey S 0; \
             endingHashKey S 170141183460469231731687303715884105727; \
             childShardIds SS shardId-000000000002 shardId-000000000003",
            Lease {
                owner: Some("w5".into()),
                counter: 58,
                children: shards([2, 3]),
                ..first(Checkpoint::ShardEnd)
            },
        ),
    ]
}

/// KCL 3: the child of a split, ended by a merge; a handoff that the old owner has not finished; and, of
/// 3.5, the child of the merge, whose row names its entity type. Its pending state is a number because of
/// a bug in that library.
fn rows_of_kcl_3() -> Vec<Sample> {
    let handed = "49680466984294208312240398040570176226030862195935412242";
    vec![
        (
            "leaseKey S shardId-000000000002; leaseOwner S w4; leaseCounter N 10; \
             checkpoint S SHARD_END; checkpointSubSequenceNumber N 0; \
             ownerSwitchesSinceCheckpoint N 0; parentShardId SS shardId-000000000000; \
             childShardIds SS shardId-000000000004; startingHashKey S 0; \
             endingHashKey S 85070591730234615865843651857942052863; throughputKBps N 1.0E-6",
            Lease {
                owner: Some("w4".into()),
                counter: 10,
                throughput: Some(0),
                parents: shards([0]),
                children: shards([4]),
                hash_range: Some(HashRange { start: 0, end: u128::MAX / 4 }),
                ..Lease::new("shardId-000000000002", Checkpoint::ShardEnd)
            },
        ),
        (
            "leaseKey S shardId-000000000001; leaseOwner S w5; checkpointOwner S w4; \
             leaseCounter N 354; ownerSwitchesSinceCheckpoint N 0; \
             checkpoint S 49680466984294208312240398040570176226030862195935412242; \
             checkpointSubSequenceNumber N 0; throughputKBps N 0; \
             startingHashKey S 170141183460469231731687303715884105728; \
             endingHashKey S 340282366920938463463374607431768211455",
            Lease {
                owner: Some("w5".into()),
                checkpoint_owner: Some("w4".into()),
                counter: 354,
                throughput: Some(0),
                hash_range: Some(HIGH),
                ..Lease::new("shardId-000000000001", at(handed, 0))
            },
        ),
        (
            "leaseKey S shardId-000000000004; entityType S LEASE; leaseCounter N 0; \
             checkpoint S LATEST; checkpointSubSequenceNumber N 0; \
             ownerSwitchesSinceCheckpoint N 0; pendingCheckpoint S TRIM_HORIZON; \
             pendingCheckpointSubSequenceNumber N 0; pendingCheckpointState N 0; \
             parentShardId SS shardId-000000000002 shardId-000000000003",
            Lease {
                parents: shards([2, 3]),
                pending: Some(PendingCheckpoint {
                    checkpoint: Checkpoint::TrimHorizon,
                    state: None,
                }),
                ..Lease::new("shardId-000000000004", Checkpoint::Latest)
            },
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn rows_of_the_java_library_are_leases() {
    let bench = Bench::new().await;
    for (row, lease) in rows_of_kcl_2().into_iter().chain(rows_of_kcl_3()) {
        bench.put(row).await;
        let read = bench.store.get(&lease.key).await.unwrap();
        let throughput = row.contains("throughputKBps").then_some(0);
        assert_eq!(read, Some(Lease { throughput, ..lease }), "{row}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_damaged_row_is_listed_apart_with_its_fault_and_named_when_asked_for() {
    let bench = Bench::new().await;
    bench.put(&bare("shardId-000000000009")).await;
    let key = format!("leaseKey S {SHARD}");
    for (row, fault) in [
        ("checkpoint S TRIM_HORIZON", "it has no `leaseCounter`"),
        ("leaseCounter N 1", "it has no `checkpoint`"),
        ("leaseCounter S 1; checkpoint S LATEST", "`leaseCounter` is not a number"),
        (
            "leaseCounter N -1; checkpoint S LATEST",
            "`leaseCounter` is -1, which is out of range: it must be a whole number from 0 to \
             9223372036854775807",
        ),
        ("leaseCounter N 1; checkpoint S soon", "`checkpoint`: `soon` is not a checkpoint"),
        ("leaseCounter N 1; checkpoint S LATEST; leaseOwner N 3", "`leaseOwner` is not a string"),
        (
            "leaseCounter N 1; checkpoint S LATEST; parentShardId S shardId-1",
            "`parentShardId` is not a string set",
        ),
        (
            "leaseCounter N 1; checkpoint S LATEST; startingHashKey S 9; endingHashKey S 3",
            "`startingHashKey` and `endingHashKey` are not a range",
        ),
    ] {
        bench.put(&format!("{key}; {row}")).await;
        let table = bench.store.list().await.unwrap();
        assert_eq!(table.leases, [Lease::new("shardId-000000000009", Checkpoint::TrimHorizon)]);
        assert_eq!(table.unreadable, [(SHARD.into(), fault.to_owned())].into());
        let error = bench.store.get(&SHARD.into()).await.unwrap_err();
        assert_eq!(error.kind, ServiceErrorKind::Invalid);
        let expected = format!("table `{TABLE}` in us-east-1 has a bad row `{SHARD}`: {fault}");
        assert_eq!(error.to_string(), expected);
    }
}

/// The table stores numbers of 38 digits, and a person or another program may have written any of them.
#[tokio::test(start_paused = true)]
async fn numbers_of_any_size_are_read_or_reported() {
    let bench = Bench::new().await;
    let [counter, sub, pending_sub] =
        ["leaseCounter", "checkpointSubSequenceNumber", "pendingCheckpointSubSequenceNumber"];
    let others = ["ownerSwitchesSinceCheckpoint", "klAnchor", "klReadUntil", "klStreamCreated"];
    for column in [counter, sub, pending_sub, "throughputKBps"].into_iter().chain(others) {
        for number in [
            "-1",
            "1.5",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "99999999999999999999999999999999999999",
            "1E125",
            "-1E125",
        ] {
            let mut row = item(&format!(
                "{}; leaseOwner S w1; pendingCheckpoint S 55; klStreamArn S arn",
                bare(SHARD)
            ));
            row.insert(column.to_owned(), AttributeValue::N(number.to_owned()));
            let put = bench.admin.put_item().table_name(TABLE).set_item(Some(row.clone()));
            put.send().await.unwrap();
            let table = bench.store.list().await.unwrap();
            let is_exact = [counter, sub, pending_sub].contains(&column);
            assert!(is_exact || table.unreadable.is_empty(), "{column} {number}: {table:?}");
            let Some(lease) = table.leases.first() else {
                let fault = &table.unreadable[&LeaseKey::from(SHARD)];
                assert!(fault.contains(&format!("`{column}`")), "{fault}");
                continue;
            };
            let (counter, update) = (lease.counter, LeaseUpdate::of(Some(at("77", 0))));
            for change in [
                take(counter),
                renew(counter),
                LeaseChange::Release { counter, update },
                LeaseChange::Reset { counter, checkpoint: Checkpoint::TrimHorizon, anchor: None },
            ] {
                let change = write(SHARD, change);
                // A rejection by the service is an error; the in-memory store defines the rule.
                let put = bench.admin.put_item().table_name(TABLE).set_item(Some(row.clone()));
                put.send().await.unwrap();
                let stored = bench.store.write(&change).await.ok();
                let expected = change.apply(Some(lease)).unwrap();
                let is_as_expected = |it: &WriteOutcome| match it {
                    WriteOutcome::Done(row) => {
                        row.as_ref().map(|it| it.counter) == expected.as_ref().map(|it| it.counter)
                    }
                    WriteOutcome::Refused(_) => false,
                };
                assert!(stored.iter().all(is_as_expected), "{column} {number}: {stored:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_weight_that_cannot_be_read_does_not_make_the_row_unreadable() {
    let bench = Bench::new().await;
    bench.put(&format!("{}; throughputKBps S much", bare(SHARD))).await;
    let lease = Lease::new(SHARD, Checkpoint::TrimHorizon);
    assert_eq!(bench.store.get(&SHARD.into()).await.unwrap(), Some(lease));
    bench.put(&format!("{}; throughputKBps N 1.5E1", bare(SHARD))).await;
    let lease = bench.store.get(&SHARD.into()).await.unwrap().unwrap();
    assert_eq!(lease.throughput, Some(15 * 1024));
}

#[tokio::test(start_paused = true)]
async fn a_new_row_has_what_the_java_library_needs_and_nothing_empty() {
    let bench = Bench::new().await;
    let lease = Lease::new(SHARD, Checkpoint::Latest);
    bench.write(LeaseChange::Create(Box::new(lease))).await;
    let expected = format!(
        "leaseKey S {SHARD}; leaseCounter N 0; ownerSwitchesSinceCheckpoint N 0; \
         checkpoint S LATEST; checkpointSubSequenceNumber N 0; klWriteId S w1/1"
    );
    assert_eq!(bench.raw(SHARD).await, Some(item(&expected)));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_leaves_nothing_of_what_was_pending() {
    let bench = Bench::new().await;
    bench.put(rows_of_kcl_2().remove(2).0).await;
    let checkpoint = Some(at("49680467067409085667164030489078633931469779301147082754", 0));
    bench
        .write(LeaseChange::Renew {
            counter: 33,
            owner: "w3".into(),
            update: LeaseUpdate { pending: PendingChange::Clear, ..LeaseUpdate::of(checkpoint) },
        })
        .await;
    let mut names: Vec<_> = bench.raw(SHARD).await.unwrap().into_keys().collect();
    names.retain(|name| name.starts_with("pending"));
    assert_eq!(names, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_condition_fails_answers_with_the_row() {
    let bench = Bench::new().await;
    let (row, lease) = rows_of_kcl_2().remove(2);
    bench.put(row).await;
    let stale = 32;
    for change in [
        LeaseChange::Create(Box::new(Lease::new(SHARD, Checkpoint::Latest))),
        take(stale),
        renew(stale),
        LeaseChange::Finish { counter: stale, children: shards([2]) },
        LeaseChange::Release { counter: stale, update: LeaseUpdate::default() },
        LeaseChange::Delete { counter: stale },
        // The counter matches, but the shard is not at its end.
        LeaseChange::Delete { counter: 33 },
    ] {
        let refused = WriteOutcome::Refused(Some(lease.clone()));
        assert_eq!(bench.write(change.clone()).await, refused, "{change:?}");
    }
    assert_eq!(bench.store.get(&SHARD.into()).await.unwrap(), Some(lease));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_gone_is_not_made_by_a_change() {
    let bench = Bench::new().await;
    for change in [
        take(0),
        renew(0),
        LeaseChange::Finish { counter: 0, children: shards([2]) },
        LeaseChange::Release { counter: 0, update: LeaseUpdate::default() },
        LeaseChange::Delete { counter: 0 },
    ] {
        assert_eq!(bench.write(change).await, WriteOutcome::Refused(None));
        assert_eq!(bench.raw(SHARD).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_reply_is_lost_is_recognised_when_sent_again() {
    let bench = Bench::new().await;
    bench.put(&bare(SHARD)).await;
    bench.write(LeaseChange::Take { counter: 0, from: None, owner: "w1".into() }).await;
    let lost = Rule::new(Effect::DisconnectAfter).client("worker").operation("UpdateItem").times(1);
    bench.local.faults().add(lost);
    let renewal = write(SHARD, renew(1));
    let error = bench.store.write(&renewal).await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Unavailable);
    let WriteOutcome::Refused(Some(row)) = bench.store.write(&renewal).await.unwrap() else {
        panic!("the first attempt was applied");
    };
    assert_eq!((row.write_id, row.counter), (Some(renewal.id), 2));
}

#[tokio::test(start_paused = true)]
async fn a_list_is_complete_over_many_pages_and_in_key_order() {
    let bench = Bench::new().await;
    let bulk = "x".repeat(300_000);
    for number in (0..9).rev() {
        bench.put(&format!("{}; bulk S {bulk}", bare(&format!("shard-{number}")))).await;
    }
    let keys: Vec<_> =
        bench.store.list().await.unwrap().leases.into_iter().map(|row| row.key).collect();
    let expected: Vec<LeaseKey> = (0..9).map(|number| format!("shard-{number}").into()).collect();
    assert_eq!(keys, expected);
    assert!(bench.local.requests().count("worker", "Scan") >= 3, "pages hold 1 MB");
}

#[tokio::test(start_paused = true)]
async fn every_read_is_consistent() {
    let bench = Bench::new().await;
    let consistent = Rule::new(Effect::Delay(Duration::ZERO))
        .client("worker")
        .containing("\"ConsistentRead\":true");
    let rule = bench.local.faults().add(consistent);
    bench.store.list().await.unwrap();
    bench.store.get(&SHARD.into()).await.unwrap();
    assert_eq!(bench.local.faults().fired(rule), 2);
}

#[tokio::test(start_paused = true)]
async fn each_failure_has_a_kind_and_is_sent_once() {
    use ServiceErrorKind::{Credentials, Denied, Invalid, Missing, Throttled, Unavailable};
    let bench = Bench::new().await;
    for (code, status, kind) in [
        ("ProvisionedThroughputExceededException", 400, Throttled),
        ("RequestLimitExceeded", 400, Throttled),
        ("ThrottlingException", 400, Throttled),
        ("ResourceNotFoundException", 400, Missing),
        ("AccessDeniedException", 400, Denied),
        ("UnrecognizedClientException", 400, Credentials),
        ("ExpiredTokenException", 400, Credentials),
        ("InvalidSignatureException", 400, Credentials),
        ("TransactionConflictException", 400, Unavailable),
        ("InternalServerError", 500, Unavailable),
        ("ServiceUnavailable", 503, Unavailable),
        ("ValidationException", 400, Invalid),
    ] {
        bench.local.requests().clear();
        let effect = Effect::FailBefore { code: code.to_owned(), status };
        let rule = bench.local.faults().add(Rule::new(effect).client("worker"));
        let error = bench.store.write(&write(SHARD, renew(0))).await.unwrap_err();
        assert_eq!(error.kind, kind, "{code}");
        let start = format!("UpdateItem on table `{TABLE}` in us-east-1: {code}");
        assert!(error.to_string().starts_with(&start), "{error}");
        assert_eq!(bench.local.requests().count("worker", "UpdateItem"), 1, "{code}");
        bench.local.faults().remove(rule);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_the_action_to_allow() {
    let bench = Bench::new().await;
    let effect = Effect::FailBefore { code: "AccessDeniedException".to_owned(), status: 400 };
    bench.local.faults().add(Rule::new(effect).operation("Scan"));
    let error = bench.store.list().await.unwrap_err();
    let remedy = "; allow `dynamodb:Scan` for these credentials";
    assert!(error.to_string().ends_with(remedy), "{error}");
}

/// DynamoDB needs a connection for each call in flight.
#[tokio::test(start_paused = true)]
async fn many_calls_at_once_take_few_connections() {
    let bench = Bench::new().await;
    bench.local.faults().add(Rule::new(Effect::Delay(Duration::from_secs(1))).operation("GetItem"));
    let key = SHARD.into();
    let began = Instant::now();
    let calls = (0..96).map(|_| bench.store.get(&key));
    assert!(futures_util::future::join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(began.elapsed().as_secs(), 3, "32 at a time");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_by_itself() {
    let bench = Bench::new().await;
    bench.local.faults().add(Rule::new(Effect::Hang).operation("GetItem"));
    let key = SHARD.into();
    let get = tokio::time::timeout(Duration::from_secs(60), bench.store.get(&key));
    let error = get.await.expect("the backstop is shorter").unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_partition_is_passing() {
    let bench = Bench::new().await;
    bench.local.faults().partition("worker");
    let list = tokio::time::timeout(Duration::from_secs(60), bench.store.list());
    let error = list.await.expect("the backstop is shorter").unwrap_err();
    assert!(error.is_transient(), "{error}");
}

/// A provider chain without credentials in any of its sources.
#[derive(Debug)]
struct Nobody;

impl aws_sdk_dynamodb::config::ProvideCredentials for Nobody {
    fn provide_credentials<'a>(
        &'a self,
    ) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let error = aws_credential_types::provider::error::CredentialsError::not_loaded("no keys");
        aws_credential_types::provider::future::ProvideCredentials::ready(Err(error))
    }
}

#[tokio::test(start_paused = true)]
async fn missing_credentials_are_a_refusal_and_not_an_outage() {
    let config = LocalAws::in_memory().sdk_config("worker").into_builder();
    let config = config.credentials_provider(SharedCredentialsProvider::new(Nobody)).build();
    let store = DynamoStore::new(&config, TABLE, TableOptions::default());
    let error = store.prepare().await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Credentials, "{error}");
    assert!(error.to_string().contains("check the credentials"), "{error}");
}

fn any_shards() -> impl Strategy<Value = BTreeSet<ShardId>> {
    prop::collection::btree_set((0_u32..9).prop_map(|n| format!("shard-{n}").into()), 0..3)
}

fn any_worker() -> impl Strategy<Value = WorkerId> {
    prop::sample::select(vec!["w1", "w2", "w3"]).prop_map(Into::into)
}

fn any_checkpoint() -> impl Strategy<Value = Checkpoint> {
    prop_oneof![
        Just(Checkpoint::AtTimestamp),
        Just(Checkpoint::TrimHorizon),
        Just(Checkpoint::Latest),
        Just(Checkpoint::ShardEnd),
        ("[1-9][0-9]{0,128}", any::<u64>()).prop_map(|(digits, sub)| at(&digits, sub)),
    ]
}

fn any_pending() -> impl Strategy<Value = Option<PendingCheckpoint>> {
    let state = prop::option::of(prop::collection::vec(any::<u8>(), 0..20));
    prop::option::of(
        (any_checkpoint(), state)
            .prop_map(|(checkpoint, state)| PendingCheckpoint { checkpoint, state }),
    )
}

fn any_range() -> impl Strategy<Value = Option<HashRange>> {
    prop::option::of(
        (any::<u128>(), any::<u128>())
            .prop_map(|(a, b)| HashRange { start: a.min(b), end: a.max(b) }),
    )
}

fn any_time() -> impl Strategy<Value = Option<Timestamp>> {
    prop::option::of(any::<i64>().prop_map(Timestamp::from_millis))
}

fn any_stream() -> impl Strategy<Value = Option<StreamIdentity>> {
    let identity = ("[a-z:/-]{1,20}", any::<i64>().prop_map(Timestamp::from_millis));
    prop::option::of(identity.prop_map(|(arn, created)| StreamIdentity { arn, created }))
}

prop_compose! {
    fn any_lease(key: &'static str)(
        (owner, checkpoint_owner) in
            (prop::option::of(any_worker()), prop::option::of(any_worker())),
        (counter, owner_switches) in (0_u64..u64::MAX / 2, 0_u64..1_000),
        (checkpoint, pending) in (any_checkpoint(), any_pending()),
        (parents, children, hash_range) in (any_shards(), any_shards(), any_range()),
        (anchor, read_until) in (any_time(), any_time()),
        stream in any_stream(),
    ) -> Lease {
        Lease {
            owner, counter, owner_switches, pending, parents, children, hash_range,
            checkpoint_owner, anchor, read_until, stream,
            ..Lease::new(key, checkpoint)
        }
    }
}

/// A write that is aimed at the counter of a row, or beside it.
#[derive(Debug, Clone)]
struct Aim {
    key: &'static str,
    stale: bool,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Create(Box<Lease>),
    Take(Option<WorkerId>, WorkerId),
    Ask(WorkerId, WorkerId),
    HandOver(Reported, WorkerId),
    Renew(Reported, WorkerId),
    Withdraw(WorkerId, WorkerId),
    Finish(BTreeSet<ShardId>),
    Release(Reported),
    Delete,
    Reset(Checkpoint, Option<Timestamp>),
    Discard,
    Replace(Box<Lease>),
}

/// The parameters of a `LeaseUpdate`: how far the checkpoint advances.
#[derive(Debug, Clone)]
struct Reported {
    by: Option<u64>,
    pending: PendingChange,
    read_until: Option<Timestamp>,
}

fn any_reported() -> impl Strategy<Value = Reported> {
    let pending = prop_oneof![
        2 => Just(PendingChange::Keep),
        1 => Just(PendingChange::Clear),
        2 => any_pending().prop_filter_map("something", |it| it.map(PendingChange::Prepare)),
    ];
    (prop::option::of(0_u64..3), pending, any_time())
        .prop_map(|(by, pending, read_until)| Reported { by, pending, read_until })
}

/// A row of a worker of one stream, and of one of several.
const KEYS: [&str; 2] = ["shard-a", "123456789012:wildrydes:1700000000:shard-b"];

fn any_aim() -> impl Strategy<Value = Aim> {
    prop::sample::select(KEYS.to_vec()).prop_flat_map(|key| {
        let create = any_lease(key).prop_map(|lease| Kind::Create(Box::new(lease)));
        let take = (prop::option::of(any_worker()), any_worker());
        let reset = (any_checkpoint(), any_time());
        let replace = any_lease(key).prop_map(|lease| Kind::Replace(Box::new(lease)));
        let kind = prop_oneof![
            2 => create,
            3 => take.prop_map(|(from, owner)| Kind::Take(from, owner)),
            2 => (any_worker(), any_worker()).prop_map(|(from, to)| Kind::Ask(from, to)),
            1 => (any_reported(), any_worker()).prop_map(|(reported, to)| Kind::HandOver(reported, to)),
            3 => (any_reported(), any_worker()).prop_map(|(reported, me)| Kind::Renew(reported, me)),
            1 => (any_worker(), any_worker()).prop_map(|(from, to)| Kind::Withdraw(from, to)),
            1 => any_shards().prop_map(Kind::Finish),
            2 => any_reported().prop_map(Kind::Release),
            1 => Just(Kind::Delete),
            1 => reset.prop_map(|(checkpoint, anchor)| Kind::Reset(checkpoint, anchor)),
            1 => Just(Kind::Discard),
            1 => replace,
        ];
        (prop::bool::weighted(0.2), kind).prop_map(move |(stale, kind)| Aim { key, stale, kind })
    })
}

impl Aim {
    fn at(self, row: Option<&Lease>, number: usize) -> LeaseWrite {
        let counter = row.map_or(0, |row| row.counter) + u64::from(self.stale);
        // Checkpoints only advance: by a sub-sequence number, or to the end.
        let moved = |by: u64| match row.map(|row| &row.checkpoint) {
            Some(Checkpoint::At(position)) => Checkpoint::At(Position {
                sub_sequence_number: position.sub_sequence_number.saturating_add(by),
                ..position.clone()
            }),
            Some(Checkpoint::ShardEnd) => Checkpoint::ShardEnd,
            _ => at("49590338271490256608559692538361571095921575989136588898", by),
        };
        let update = |reported: Reported| {
            let Reported { by, pending, read_until } = reported;
            let throughput = by.map(|by| by * 1_536);
            LeaseUpdate { checkpoint: by.map(moved), pending, read_until, throughput }
        };
        let change = match self.kind {
            Kind::Create(lease) => LeaseChange::Create(lease),
            Kind::Take(from, owner) => LeaseChange::Take { counter, from, owner },
            Kind::Ask(from, to) => LeaseChange::RequestHandoff { counter, from, to },
            Kind::HandOver(reported, to) => {
                LeaseChange::HandOver { counter, update: update(reported), to }
            }
            Kind::Renew(reported, stranger) => {
                let actual = row.and_then(Lease::actual_owner).cloned();
                let owner = actual.filter(|_| !self.stale).unwrap_or(stranger);
                LeaseChange::Renew { counter, owner, update: update(reported) }
            }
            Kind::Withdraw(from, to) => LeaseChange::WithdrawHandoff { from, to },
            Kind::Finish(children) => LeaseChange::Finish { counter, children },
            Kind::Release(reported) => LeaseChange::Release { counter, update: update(reported) },
            Kind::Delete => LeaseChange::Delete { counter },
            Kind::Reset(checkpoint, anchor) => LeaseChange::Reset { counter, checkpoint, anchor },
            Kind::Discard => LeaseChange::Discard { counter },
            Kind::Replace(with) => LeaseChange::Replace { counter, with },
        };
        LeaseWrite { key: self.key.into(), id: WriteId::new(format!("w/{number}")), change }
    }
}

fn on_paused_time<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_lease_reads_back_as_it_was_written(
        lease in prop::sample::select(KEYS.to_vec()).prop_flat_map(any_lease),
    ) {
        on_paused_time(async {
            let bench = Bench::new().await;
            let create = LeaseChange::Create(Box::new(lease.clone()));
            let create = LeaseWrite { key: lease.key.clone(), id: WriteId::new("w1/1"), change: create };
            bench.store.write(&create).await.unwrap();
            let expected = Lease { write_id: Some(create.id), ..lease };
            prop_assert_eq!(bench.store.get(&expected.key).await.unwrap(), Some(expected));
            Ok(())
        })?;
    }

    /// The rule in `LeaseWrite::apply` and the expressions sent to DynamoDB are equivalent: after any writes,
    /// well or badly aimed, both stores have returned and contain the same.
    #[test]
    fn the_table_and_the_rule_agree(aims in prop::collection::vec(any_aim(), 1..30)) {
        on_paused_time(async {
            let bench = Bench::new().await;
            let memory = MemoryStore::new();
            for (number, aim) in aims.into_iter().enumerate() {
                let row = memory.get(&aim.key.into()).await.unwrap();
                let write = aim.at(row.as_ref(), number);
                let ruled = memory.write(&write).await.unwrap();
                let done = bench.store.write(&write).await.unwrap();
                prop_assert_eq!(done, ruled, "{:?}", write);
                prop_assert_eq!(bench.store.list().await.unwrap().leases, memory.snapshot());
            }
            Ok(())
        })?;
    }
}
