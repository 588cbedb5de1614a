//! Tests of DynamoDB as a lease table uses it, with the real SDK.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::create_table::builders::CreateTableFluentBuilder;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, GlobalSecondaryIndex, KeySchemaElement,
    KeyType, PointInTimeRecoverySpecification, PointInTimeRecoveryStatus, Projection,
    ProjectionType, ProvisionedThroughput, ReturnValue, ReturnValuesOnConditionCheckFailure,
    ScalarAttributeType, TableStatus,
};
use local_aws::LocalAws;

use crate::clients::both_ways;

pub(crate) fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn number(value: i64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub(crate) async fn create(client: &Client, table: &str) {
    client
        .create_table()
        .table_name(table)
        .key_schema(hash_key("leaseKey"))
        .attribute_definitions(attribute("leaseKey"))
        .billing_mode(BillingMode::PayPerRequest)
        .send()
        .await
        .unwrap();
}

pub(crate) async fn put(client: &Client, table: &str, key: &str, owner: &str) {
    client
        .put_item()
        .table_name(table)
        .item("leaseKey", text(key))
        .item("leaseOwner", text(owner))
        .item("leaseCounter", number(0))
        .send()
        .await
        .unwrap();
}

/// Goal: all operations on a lease table work the same in process and over a socket.
#[tokio::test]
async fn a_lease_lives_its_life_in_process_and_over_a_socket() {
    let local = LocalAws::in_memory();
    let (server, ways) = both_ways(&local, "worker").await;
    for (i, way) in ways.iter().enumerate() {
        let client = Client::new(way);
        let table = format!("leases-{i}");
        create(&client, &table).await;
        let description = client.describe_table().table_name(&table).send().await.unwrap();
        let description = description.table().unwrap();
        assert_eq!(description.table_status(), Some(&TableStatus::Active));
        let arn = format!("arn:aws:dynamodb:us-east-1:000000000000:table/{table}");
        assert_eq!(description.table_arn(), Some(arn.as_str()));

        assert_eq!(create_lease(&client, &table, "a").await, Ok(()));
        let refused = create_lease(&client, &arn, "b").await.unwrap_err();
        assert_eq!(refused["leaseOwner"], text("a"), "the error shows the row that is there");

        assert_eq!(take(&client, &table, 0, "b").await, Ok(1));
        let lost = take(&client, &table, 0, "c").await.unwrap_err();
        assert_eq!(lost["leaseCounter"], number(1));
        assert_eq!(lost["leaseOwner"], text("b"));

        let key = text("shard-0");
        client.delete_item().table_name(&table).key("leaseKey", key).send().await.unwrap();
        let left = client.scan().table_name(&table).consistent_read(true).send().await.unwrap();
        assert_eq!(left.count(), 0);
        client.delete_table().table_name(&table).send().await.unwrap();
    }
    server.shutdown().await;
}

type Row = std::collections::HashMap<String, AttributeValue>;

async fn create_lease(client: &Client, table: &str, owner: &str) -> Result<(), Row> {
    let result = client
        .put_item()
        .table_name(table)
        .item("leaseKey", text("shard-0"))
        .item("leaseOwner", text(owner))
        .item("leaseCounter", number(0))
        .condition_expression("attribute_not_exists(leaseKey)")
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
        .send()
        .await;
    match result.map_err(aws_sdk_dynamodb::error::SdkError::into_service_error) {
        Ok(_) => Ok(()),
        Err(PutItemError::ConditionalCheckFailedException(error)) => {
            Err(error.item().unwrap().clone())
        }
        Err(other) => panic!("{other:?}"),
    }
}

async fn take(client: &Client, table: &str, seen: i64, owner: &str) -> Result<i64, Row> {
    let result = client
        .update_item()
        .table_name(table)
        .key("leaseKey", text("shard-0"))
        .update_expression("SET leaseOwner = :owner, leaseCounter = leaseCounter + :one")
        .condition_expression("leaseCounter = :seen")
        .expression_attribute_values(":owner", text(owner))
        .expression_attribute_values(":one", number(1))
        .expression_attribute_values(":seen", number(seen))
        .return_values(ReturnValue::AllNew)
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
        .send()
        .await;
    match result.map_err(aws_sdk_dynamodb::error::SdkError::into_service_error) {
        Ok(done) => Ok(done.attributes().unwrap()["leaseCounter"].as_n().unwrap().parse().unwrap()),
        Err(UpdateItemError::ConditionalCheckFailedException(error)) => {
            Err(error.item().unwrap().clone())
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_scan_pages_through_every_lease_once() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("worker"));
    create(&client, "leases").await;
    for i in 0..25 {
        put(&client, "leases", &format!("shard-{i:02}"), "a").await;
    }
    let mut pages =
        client.scan().table_name("leases").limit(10).consistent_read(true).into_paginator().send();
    let (mut keys, mut n) = (Vec::new(), 0);
    while let Some(page) = pages.next().await {
        n += 1;
        for item in page.unwrap().items() {
            keys.push(item["leaseKey"].as_s().unwrap().clone());
        }
    }
    keys.sort();
    let expected: Vec<_> = (0..25).map(|i| format!("shard-{i:02}")).collect();
    assert_eq!(keys, expected);
    assert_eq!(n, 3);
}

#[tokio::test]
async fn point_in_time_recovery_is_a_flag_of_its_table() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("worker"));
    create(&client, "leases").await;
    assert_eq!(recovery(&client).await, PointInTimeRecoveryStatus::Disabled);
    let on = PointInTimeRecoverySpecification::builder()
        .point_in_time_recovery_enabled(true)
        .build()
        .unwrap();
    let update = client.update_continuous_backups().point_in_time_recovery_specification(on);
    let unknown = update.clone().table_name("nope").send().await.unwrap_err();
    assert!(unknown.into_service_error().is_table_not_found_exception());
    update.table_name("leases").send().await.unwrap();
    assert_eq!(recovery(&client).await, PointInTimeRecoveryStatus::Enabled);

    client.delete_table().table_name("leases").send().await.unwrap();
    create(&client, "leases").await;
    assert_eq!(
        recovery(&client).await,
        PointInTimeRecoveryStatus::Disabled,
        "a new table of the same name is another table"
    );
}

pub(crate) async fn recovery(client: &Client) -> PointInTimeRecoveryStatus {
    client
        .describe_continuous_backups()
        .table_name("leases")
        .send()
        .await
        .unwrap()
        .continuous_backups_description()
        .unwrap()
        .point_in_time_recovery_description()
        .unwrap()
        .point_in_time_recovery_status()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn an_unknown_table_and_a_duplicate_one_are_typed_errors() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("worker"));
    let error = client.scan().table_name("nope").send().await.unwrap_err().into_service_error();
    assert!(error.is_resource_not_found_exception(), "{error:?}");
    create(&client, "leases").await;
    let again = client
        .create_table()
        .table_name("leases")
        .key_schema(hash_key("leaseKey"))
        .attribute_definitions(attribute("leaseKey"))
        .billing_mode(BillingMode::PayPerRequest)
        .send()
        .await
        .unwrap_err()
        .into_service_error();
    assert!(again.is_resource_in_use_exception(), "{again:?}");
}

/// Goal: a `CreateTable` that DynamoDB refuses for its billing is refused here in the same words.
#[tokio::test]
async fn a_table_needs_a_billing_mode_or_throughput_and_never_both() {
    let local = LocalAws::in_memory();
    let (server, ways) = both_ways(&local, "worker").await;
    for client in ways.map(|way| Client::new(&way)) {
        let named = |name: &str| request(&client, name);
        let given = |name: &str| named(name).provisioned_throughput(units(1));
        let on_demand = |name: &str| named(name).billing_mode(BillingMode::PayPerRequest);
        for (refused, message) in [
            (named("bare"), "must both be specified when BillingMode is PROVISIONED"),
            (
                named("bare").billing_mode(BillingMode::Provisioned),
                "must both be specified when BillingMode is PROVISIONED",
            ),
            (
                on_demand("both").provisioned_throughput(units(1)),
                "can be specified when BillingMode is PAY_PER_REQUEST",
            ),
            (
                named("none").provisioned_throughput(units(0)),
                "Member must have value greater than or equal to 1",
            ),
            (
                by_owner(given("index"), None),
                "ProvisionedThroughput is not specified for index: owners",
            ),
            (
                by_owner(given("index"), Some(0)),
                "Member must have value greater than or equal to 1",
            ),
            (
                by_owner(on_demand("index"), Some(1)),
                "ProvisionedThroughput should not be specified for index: owners",
            ),
        ] {
            let error = refused.send().await.unwrap_err().into_service_error();
            assert_eq!(error.meta().code(), Some("ValidationException"), "{error:?}");
            assert!(error.meta().message().unwrap().contains(message), "{error:?}");
        }
        assert_eq!(client.list_tables().send().await.unwrap().table_names().len(), 0);
        for (name, accepted) in [
            ("leases-a", given("leases-a")),
            ("leases-b", given("leases-b").billing_mode(BillingMode::Provisioned)),
            ("leases-c", on_demand("leases-c")),
            ("leases-d", by_owner(given("leases-d"), Some(1))),
            ("leases-e", by_owner(on_demand("leases-e"), None)),
        ] {
            accepted.send().await.unwrap();
            client.delete_table().table_name(name).send().await.unwrap();
        }
    }
    server.shutdown().await;
}

/// Returns a `CreateTable` request without billing and throughput.
fn request(client: &Client, table: &str) -> CreateTableFluentBuilder {
    client
        .create_table()
        .table_name(table)
        .key_schema(hash_key("leaseKey"))
        .attribute_definitions(attribute("leaseKey"))
}

fn attribute(name: &str) -> AttributeDefinition {
    let definition = AttributeDefinition::builder().attribute_name(name);
    definition.attribute_type(ScalarAttributeType::S).build().unwrap()
}

fn hash_key(name: &str) -> KeySchemaElement {
    KeySchemaElement::builder().attribute_name(name).key_type(KeyType::Hash).build().unwrap()
}

fn units(units: i64) -> ProvisionedThroughput {
    let throughput = ProvisionedThroughput::builder();
    throughput.read_capacity_units(units).write_capacity_units(units).build().unwrap()
}

/// Adds an index with this many units to the request.
fn by_owner(request: CreateTableFluentBuilder, of: Option<i64>) -> CreateTableFluentBuilder {
    let index = GlobalSecondaryIndex::builder()
        .index_name("owners")
        .key_schema(hash_key("leaseOwner"))
        .projection(Projection::builder().projection_type(ProjectionType::All).build())
        .set_provisioned_throughput(of.map(units))
        .build()
        .unwrap();
    request.attribute_definitions(attribute("leaseOwner")).global_secondary_indexes(index)
}

/// Goal: a conditional write has exactly one winner, however many clients try concurrently.
#[tokio::test]
async fn of_32_takers_exactly_one_wins_every_round() {
    let local = LocalAws::in_memory();
    let (server, ways) = both_ways(&local, "worker").await;
    let clients = ways.map(|way| Client::new(&way));
    create(&clients[0], "leases").await;
    put(&clients[0], "leases", "shard-0", "nobody").await;
    for round in 0..10 {
        let tries = (0..32).map(|i| {
            let client = &clients[i % 2];
            async move { take(client, "leases", round, &format!("w{i}")).await.is_ok() }
        });
        let won = futures_util::future::join_all(tries).await;
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
    }
    server.shutdown().await;
}
