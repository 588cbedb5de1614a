//! The lease table itself: created as configured, used as found, never created without permission.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use aws_config::Region;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, PointInTimeRecoveryStatus,
    ScalarAttributeType,
};
use kcl_lite::lease::dynamo::DynamoStore;
use kcl_lite::lease::store::{LeaseStore, WriteOutcome};
use kcl_lite::lease::{Lease, LeaseChange, LeaseWrite, WriteId};
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::{
    Batch, Billing, BoxError, Checkpoint, ControlPlane, CreateTable, RecordProcessor,
    ServiceErrorKind, Settings, TableOptions, Worker,
};
use local_aws::{Effect, LocalAws, Rule};

use crate::canned::{self, Reply};

const TABLE: &str = "wildrydes-tail";

fn store(local: &LocalAws, client: &str, options: TableOptions) -> DynamoStore {
    DynamoStore::new(&local.sdk_config(client), TABLE, options)
}

fn never() -> TableOptions {
    TableOptions { create: CreateTable::Never, ..Default::default() }
}

/// Options with every setting set.
fn everything() -> TableOptions {
    TableOptions {
        create: CreateTable::IfMissing,
        billing: Billing::Provisioned { read: 7, write: 9 },
        point_in_time_recovery: true,
        deletion_protection: true,
        tags: tags(&[("team", "rides"), ("stage", "")]),
    }
}

fn tags(tags: &[(&str, &str)]) -> BTreeMap<String, String> {
    tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Returns the options that match the table as the service describes it.
async fn described(local: &LocalAws) -> TableOptions {
    let admin = Client::new(&local.sdk_config("admin"));
    let table = admin.describe_table().table_name(TABLE).send().await.unwrap().table.unwrap();
    let units = table.provisioned_throughput().unwrap();
    let summary = table.billing_mode_summary().and_then(|summary| summary.billing_mode());
    let billing = match summary {
        Some(BillingMode::PayPerRequest) => Billing::OnDemand,
        _ => Billing::Provisioned {
            read: units.read_capacity_units().unwrap().try_into().unwrap(),
            write: units.write_capacity_units().unwrap().try_into().unwrap(),
        },
    };
    let arn = table.table_arn().unwrap();
    let found = admin.list_tags_of_resource().resource_arn(arn).send().await.unwrap();
    let backups = admin.describe_continuous_backups().table_name(TABLE).send().await.unwrap();
    let recovery = backups.continuous_backups_description.unwrap();
    let recovery = recovery.point_in_time_recovery_description.unwrap();
    TableOptions {
        create: CreateTable::IfMissing,
        billing,
        point_in_time_recovery: recovery.point_in_time_recovery_status
            == Some(PointInTimeRecoveryStatus::Enabled),
        deletion_protection: table.deletion_protection_enabled() == Some(true),
        tags: found.tags().iter().map(|tag| (tag.key.clone(), tag.value.clone())).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn c02_the_service_describes_a_new_table_as_it_was_asked_for() {
    let one = |change: fn(&mut TableOptions)| {
        let mut options = TableOptions::default();
        change(&mut options);
        options
    };
    for options in [
        TableOptions::default(),
        one(|it| it.billing = Billing::Provisioned { read: 3, write: 4 }),
        one(|it| it.point_in_time_recovery = true),
        one(|it| it.deletion_protection = true),
        one(|it| it.tags = tags(&[("team", "rides")])),
        everything(),
    ] {
        let local = LocalAws::in_memory();
        store(&local, "worker", options.clone()).prepare().await.unwrap();
        assert_eq!(described(&local).await, options);
        let sent = local.requests().operations("worker");
        let recovery = sent.contains("dynamodb:UpdateContinuousBackups");
        assert_eq!(recovery, options.point_in_time_recovery, "{sent:?}");
    }
}

#[derive(Clone, Copy)]
struct Idle;

impl RecordProcessor for Idle {
    async fn process(&mut self, _: Batch) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn c02_a_worker_makes_the_table_that_its_settings_ask_for() {
    let local = LocalAws::in_memory();
    let table = everything();
    let settings = Settings {
        table: table.clone(),
        control_plane: ControlPlane::Inline,
        ..Default::default()
    };
    let worker = Worker::builder(TABLE, "wildrydes")
        .settings(settings)
        .stream(MemoryStream::new(1))
        .aws_config(local.sdk_config("worker"));
    let worker = worker.build().await.unwrap().start(|_| Idle).await.unwrap();
    assert_eq!(described(&local).await, table);
    worker.shutdown(Duration::from_secs(30)).await.unwrap();
}

/// Keeps the messages of one thread's log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn about(&self, text: &str) -> Vec<String> {
        self.0.lock().iter().filter(|line| line.contains(text)).cloned().collect()
    }
}

struct Message<'a>(&'a mut String);

impl tracing::field::Visit for Message<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?}").unwrap();
        }
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("kcl_lite")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = format!("{} ", event.metadata().level());
        event.record(&mut Message(&mut line));
        self.0.lock().push(line);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn c02_a_table_that_exists_is_left_as_it_is_and_the_difference_is_reported_once() {
    let local = LocalAws::in_memory();
    store(&local, "first", TableOptions::default()).prepare().await.unwrap();
    let log = Log::default();
    let _on = tracing::subscriber::set_default(log.clone());
    store(&local, "second", everything()).prepare().await.unwrap();
    assert_eq!(described(&local).await, TableOptions::default());
    let expected = "INFO table `wildrydes-tail` in us-east-1 exists and is not changed: its billing mode is \
         PAY_PER_REQUEST; it is not protected from deletion";
    assert_eq!(log.about("exists and is not changed"), [expected]);
}

#[tokio::test(start_paused = true)]
async fn c02_a_table_as_asked_for_and_one_with_more_protection_are_no_difference() {
    let local = LocalAws::in_memory();
    store(&local, "first", everything()).prepare().await.unwrap();
    let log = Log::default();
    let _on = tracing::subscriber::set_default(log.clone());
    store(&local, "second", everything()).prepare().await.unwrap();
    let billing = everything().billing;
    let less = TableOptions { billing, ..Default::default() };
    store(&local, "third", less).prepare().await.unwrap();
    assert_eq!(log.about("exists and is not changed"), [""; 0]);
    let other = Billing::Provisioned { read: 7, write: 8 };
    let other = TableOptions { billing: other, ..everything() };
    store(&local, "fourth", other).prepare().await.unwrap();
    assert_eq!(log.about("it is provisioned for 7 reads and 9 writes").len(), 1);
}

fn denied() -> Effect {
    Effect::FailBefore { code: "AccessDeniedException".to_owned(), status: 400 }
}

/// A worker may be allowed item operations only, as in the policy of a stack that creates the table.
fn deny_all_but_items(local: &LocalAws, client: &str) {
    for operation in [
        "CreateTable",
        "DescribeTable",
        "UpdateTable",
        "TagResource",
        "ListTagsOfResource",
        "UpdateContinuousBackups",
        "DescribeContinuousBackups",
    ] {
        local.faults().add(Rule::new(denied()).client(client).operation(operation));
    }
}

#[tokio::test(start_paused = true)]
async fn e06_with_never_the_right_to_read_and_write_items_is_enough() {
    let local = LocalAws::in_memory();
    store(&local, "admin", TableOptions::default()).prepare().await.unwrap();
    deny_all_but_items(&local, "worker");
    // The other options do not matter: they only apply when a table is created.
    let options = TableOptions { create: CreateTable::Never, ..everything() };
    let worker = store(&local, "worker", options);
    worker.prepare().await.unwrap();
    worker.list().await.unwrap();
    let lease = Lease::new("shardId-000000000000", Checkpoint::TrimHorizon);
    let write = LeaseWrite {
        key: lease.key.clone(),
        id: WriteId::new("w/1"),
        change: LeaseChange::Create(Box::new(lease)),
    };
    assert!(matches!(worker.write(&write).await.unwrap(), WriteOutcome::Done(_)));
    assert_eq!(local.requests().count("worker", "CreateTable"), 0);
    let sent = local.requests().operations("worker");
    let refused: BTreeSet<_> = sent.iter().filter(|it| !it.ends_with("Item")).collect();
    assert_eq!(
        refused,
        BTreeSet::from([&"dynamodb:DescribeTable".into(), &"dynamodb:Scan".into()])
    );
}

#[tokio::test(start_paused = true)]
async fn e06_with_never_a_missing_table_is_named_with_and_without_the_right_to_look() {
    let local = LocalAws::in_memory();
    let error = store(&local, "worker", never()).prepare().await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Missing);
    assert_eq!(
        error.to_string(),
        "table `wildrydes-tail` in us-east-1 does not exist and may not be created: create it with \
         the string key `leaseKey`, allow its creation, or correct its name or region"
    );
    deny_all_but_items(&local, "worker");
    let error = store(&local, "worker", never()).prepare().await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Missing, "{error}");
    assert!(error.to_string().contains("table `wildrydes-tail` in us-east-1"), "{error}");
    assert_eq!(local.requests().count("worker", "CreateTable"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_may_be_made_has_to_be_looked_at() {
    let local = LocalAws::in_memory();
    local.faults().add(Rule::new(denied()).operation("DescribeTable"));
    let error = store(&local, "worker", TableOptions::default()).prepare().await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Denied);
    let remedy = "; allow `dynamodb:DescribeTable` for these credentials";
    assert!(error.to_string().ends_with(remedy), "{error}");
}

#[tokio::test(start_paused = true)]
async fn workers_that_start_together_make_one_table_with_all_its_options() {
    let local = LocalAws::in_memory();
    // All describe before any of them creates, so that all but one create too late.
    let late = Rule::new(Effect::Delay(Duration::from_secs(1))).operation("CreateTable");
    local.faults().add(late);
    let [one, two, three] = ["one", "two", "three"].map(|it| store(&local, it, everything()));
    let (one, two, three) = tokio::join!(one.prepare(), two.prepare(), three.prepare());
    one.and(two).and(three).unwrap();
    assert_eq!(described(&local).await, everything());
    for client in ["one", "two", "three"] {
        assert_eq!(local.requests().count(client, "CreateTable"), 1);
    }
    let late = store(&local, "late", everything());
    late.prepare().await.unwrap();
    late.prepare().await.unwrap();
    assert_eq!(local.requests().count("late", "CreateTable"), 0);
    assert_eq!(local.requests().count("late", "UpdateContinuousBackups"), 0, "not its table");
}

#[tokio::test(start_paused = true)]
async fn recovery_is_not_forgotten_when_the_reply_to_the_creation_is_lost() {
    let local = LocalAws::in_memory();
    let lost = Rule::new(Effect::DisconnectAfter).operation("CreateTable").times(1);
    local.faults().add(lost);
    let worker = store(&local, "worker", everything());
    let error = worker.prepare().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    worker.prepare().await.unwrap();
    assert_eq!(described(&local).await, everything());
}

#[tokio::test(start_paused = true)]
async fn recovery_is_asked_for_again_until_the_new_table_can_have_it() {
    let local = LocalAws::in_memory();
    let code = "ContinuousBackupsUnavailableException";
    let early = Reply::error("UpdateContinuousBackups", code, "Backups are being enabled", 3);
    let config = canned::config(&local, "worker", vec![early]);
    DynamoStore::new(&config, TABLE, everything()).prepare().await.unwrap();
    assert_eq!(described(&local).await, everything());
}

#[tokio::test(start_paused = true)]
async fn recovery_that_is_refused_is_an_error_that_names_the_action() {
    let local = LocalAws::in_memory();
    local.faults().add(Rule::new(denied()).operation("UpdateContinuousBackups"));
    let error = store(&local, "worker", everything()).prepare().await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Denied);
    assert!(error.to_string().contains("allow `dynamodb:UpdateContinuousBackups`"), "{error}");
}

fn table_that_is(status: &str, times: usize) -> Reply {
    let key = serde_json::json!([{ "AttributeName": "leaseKey", "KeyType": "HASH" }]);
    let table = serde_json::json!({ "TableStatus": status, "KeySchema": key });
    let body = serde_json::json!({ "Table": table }).to_string();
    Reply { operation: "DescribeTable", status: 200, body, times }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_being_deleted_is_waited_for_and_then_recreated() {
    let local = LocalAws::in_memory();
    let busy = Reply::error("CreateTable", "ResourceInUseException", "Table is being deleted", 1);
    let replies = vec![table_that_is("DELETING", 3), busy];
    let config = canned::config(&local, "worker", replies.clone());
    DynamoStore::new(&config, TABLE, everything()).prepare().await.unwrap();
    assert_eq!(described(&local).await, everything());

    let elsewhere = LocalAws::in_memory();
    let config = canned::config(&elsewhere, "worker", replies);
    let error = DynamoStore::new(&config, TABLE, never()).prepare().await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Missing, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_table_whose_key_is_gone_is_an_error_at_once() {
    for status in ["INACCESSIBLE_ENCRYPTION_CREDENTIALS", "ARCHIVING", "ARCHIVED"] {
        let local = LocalAws::in_memory();
        let config = canned::config(&local, "worker", vec![table_that_is(status, usize::MAX)]);
        let store = DynamoStore::new(&config, TABLE, TableOptions::default());
        let prepare = tokio::time::timeout(Duration::from_secs(30), store.prepare());
        let error = prepare.await.expect("waiting does not help").unwrap_err();
        assert_eq!(error.kind, ServiceErrorKind::Key);
        let expected = format!("table `{TABLE}` in us-east-1 is {status}: its KMS key");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_table_ends() {
    let local = LocalAws::in_memory();
    let config = canned::config(&local, "worker", vec![table_that_is("CREATING", usize::MAX)]);
    let store = DynamoStore::new(&config, TABLE, TableOptions::default());
    let prepare = tokio::time::timeout(Duration::from_secs(3600), store.prepare());
    let error = prepare.await.expect("an hour is too long").unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::NotReady);
    let expected = "table `wildrydes-tail` in us-east-1 is still CREATING after 600s";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_missing_region_is_said_before_anything_is_sent() {
    let local = LocalAws::in_memory();
    let config = local.sdk_config("worker").into_builder().region(None::<Region>).build();
    let error = DynamoStore::new(&config, TABLE, TableOptions::default()).prepare().await;
    assert!(error.unwrap_err().to_string().contains("set `AWS_REGION`"));
    assert_eq!(local.requests().operations("worker"), BTreeSet::new());
}

async fn make_a_table_of_something_else(local: &LocalAws) {
    let admin = Client::new(&local.sdk_config("admin"));
    let key = KeySchemaElement::builder().attribute_name("id").key_type(KeyType::Hash);
    let id = AttributeDefinition::builder().attribute_name("id");
    let create = admin.create_table().table_name(TABLE);
    let create = create.billing_mode(BillingMode::PayPerRequest).key_schema(key.build().unwrap());
    let id = id.attribute_type(ScalarAttributeType::S).build().unwrap();
    create.attribute_definitions(id).send().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_table_of_something_else_is_not_used() {
    let local = LocalAws::in_memory();
    make_a_table_of_something_else(&local).await;
    let error = store(&local, "worker", TableOptions::default()).prepare().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "table `wildrydes-tail` in us-east-1 is not a lease table: its key is `id`, not \
         `leaseKey`; choose another name"
    );
    // Nor without the permission to describe it.
    deny_all_but_items(&local, "worker");
    let error = store(&local, "worker", never()).prepare().await.unwrap_err();
    assert_eq!(error.kind, ServiceErrorKind::Invalid, "{error}");
}
