//! Tests of each fault: what an SDK client sees, and whether its request was applied.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use local_aws::{Effect, LocalAws, Rule, Service};
use tokio::time::Instant;

use crate::clients::{both_ways, without_retries};
use crate::dynamo::{create, text};

/// Returns how a call ended, as the caller sees it.
fn seen<T, E: ProvideErrorMetadata, R>(result: &Result<T, SdkError<E, R>>) -> &str {
    match result {
        Ok(_) => "ok",
        Err(SdkError::TimeoutError(_)) => "timeout",
        Err(SdkError::DispatchFailure(failure)) if failure.is_timeout() => "timeout",
        Err(SdkError::DispatchFailure(failure)) if failure.as_other().is_some() => {
            "broken connection"
        }
        Err(SdkError::ResponseError(_)) => "broken reply",
        Err(SdkError::ServiceError(error)) => error.err().code().unwrap_or("no code"),
        Err(_) => "something else",
    }
}

async fn put(client: &Client, key: &str) -> Result<(), SdkError<PutItemError, HttpResponse>> {
    let put = client.put_item().table_name("leases").item("leaseKey", text(key));
    put.send().await.map(drop)
}

async fn exists(client: &Client, key: &str) -> bool {
    let get = client.get_item().table_name("leases").key("leaseKey", text(key));
    get.consistent_read(true).send().await.unwrap().item().is_some()
}

fn failure(code: &str) -> (String, u16) {
    (code.to_owned(), 500)
}

/// Goal: each effect looks the same in process and over a socket, and is applied or not, as
/// its documentation says.
#[tokio::test]
async fn each_effect_looks_the_same_in_process_and_over_a_socket() {
    let local = LocalAws::in_memory();
    let (server, ways) = both_ways(&local, "faulty").await;
    let observer = Client::new(&local.sdk_config("observer"));
    create(&observer, "leases").await;
    let (code, status) = failure("InternalServerError");
    let table = [
        (Effect::FailBefore { code: code.clone(), status }, "InternalServerError", false),
        (Effect::FailAfter { code, status }, "InternalServerError", true),
        (Effect::Throttle, "ProvisionedThroughputExceededException", false),
        (Effect::Delay(Duration::from_millis(1)), "ok", true),
        (Effect::DropHalfReply, "broken reply", true),
        (Effect::Disconnect, "broken connection", false),
        (Effect::DisconnectAfter, "broken connection", true),
    ];
    for (way, config) in ways.iter().enumerate() {
        let client = Client::new(&without_retries(config));
        for (row, (effect, expected, applied)) in table.iter().enumerate() {
            let key = format!("{way}-{row}");
            let id = local.faults().add(Rule::new(effect.clone()).client("faulty"));
            let result = put(&client, &key).await;
            assert_eq!(seen(&result), *expected, "way {way}, {effect:?}: {result:?}");
            assert_eq!(exists(&observer, &key).await, *applied, "way {way}, {effect:?}");
            assert_eq!(local.faults().fired(id), 1);
            local.faults().remove(id);
            assert_eq!(seen(&put(&client, &key).await), "ok", "after {effect:?}");
        }
    }
    server.shutdown().await;
}

fn with_timeout(config: &SdkConfig, timeouts: TimeoutConfig) -> SdkConfig {
    without_retries(config).to_builder().timeout_config(timeouts).build()
}

#[tokio::test(start_paused = true)]
async fn a_hang_ends_by_the_sdks_timeouts_in_virtual_time() {
    let local = LocalAws::in_memory();
    let observer = Client::new(&local.sdk_config("observer"));
    create(&observer, "leases").await;
    local.faults().add(Rule::new(Effect::Hang).client("faulty"));
    for timeouts in [
        TimeoutConfig::builder().operation_timeout(Duration::from_secs(30)),
        TimeoutConfig::builder().operation_attempt_timeout(Duration::from_secs(30)),
        TimeoutConfig::builder().read_timeout(Duration::from_secs(30)),
    ] {
        let config = with_timeout(&local.sdk_config("faulty"), timeouts.build());
        let before = Instant::now();
        let result = put(&Client::new(&config), "k").await;
        assert_eq!(seen(&result), "timeout", "{result:?}");
        assert_eq!(before.elapsed().as_secs(), 30);
    }
    assert!(!exists(&observer, "k").await);
}

#[tokio::test]
async fn a_hang_over_a_socket_ends_by_the_sdks_timeout_too() {
    let local = LocalAws::in_memory();
    let (server, [_, config]) = both_ways(&local, "faulty").await;
    let observer = Client::new(&local.sdk_config("observer"));
    create(&observer, "leases").await;
    local.faults().add(Rule::new(Effect::Hang).client("faulty"));
    let timeouts = TimeoutConfig::builder().read_timeout(Duration::from_millis(100)).build();
    let result = put(&Client::new(&with_timeout(&config, timeouts)), "k").await;
    assert_eq!(seen(&result), "timeout", "{result:?}");
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_delay_passes_at_once_on_a_paused_clock() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("slow"));
    create(&client, "leases").await;
    local.faults().add(Rule::new(Effect::Delay(Duration::from_secs(600))));
    let before = Instant::now();
    put(&client, "k").await.unwrap();
    assert_eq!(before.elapsed().as_secs(), 600);
}

#[tokio::test(start_paused = true)]
async fn the_sdk_retries_past_two_throttles_and_the_log_shows_all_three() {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("worker"));
    create(&client, "leases").await;
    let rule = Rule::new(Effect::Throttle).service(Service::DynamoDb).operation("PutItem");
    local.faults().add(rule.times(2));
    put(&client, "k").await.unwrap();
    let puts: Vec<_> = local
        .requests()
        .counts()
        .into_iter()
        .filter(|row| row.operation == "PutItem")
        .map(|row| (row.outcome, row.count))
        .collect();
    let throttled = "ProvisionedThroughputExceededException".to_owned();
    assert_eq!(puts, [(throttled, 2), ("ok".to_owned(), 1)]);
}

/// Goal: a partition affects one client, applies none of its requests, and ends when healed.
#[tokio::test(start_paused = true)]
async fn a_partition_cuts_off_one_client_and_leaves_another_untouched() {
    let local = LocalAws::in_memory();
    let timeouts = TimeoutConfig::builder().operation_timeout(Duration::from_secs(5)).build();
    let left = Client::new(&with_timeout(&local.sdk_config("left"), timeouts.clone()));
    let right = Client::new(&with_timeout(&local.sdk_config("right"), timeouts));
    create(&right, "leases").await;

    local.faults().partition("left");
    assert_eq!(seen(&put(&left, "k").await), "timeout");
    assert_eq!(seen(&put(&right, "other").await), "ok");
    assert!(!exists(&right, "k").await);

    let waiting = put(&left, "k");
    let healing = async {
        local.requests().wait_for("left", "PutItem", 2).await;
        local.faults().heal("left");
    };
    let (result, ()) = tokio::join!(waiting, healing);
    assert_eq!(seen(&result), "broken connection", "what waits when it heals is lost");
    assert_eq!(seen(&put(&left, "k").await), "ok");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_under_way_when_the_partition_starts_is_not_answered() {
    let local = LocalAws::in_memory();
    let timeouts = TimeoutConfig::builder().operation_timeout(Duration::from_secs(5)).build();
    let left = Client::new(&with_timeout(&local.sdk_config("left"), timeouts));
    let observer = Client::new(&local.sdk_config("observer"));
    create(&observer, "leases").await;
    local.faults().add(Rule::new(Effect::Delay(Duration::from_secs(2))).client("left"));
    let cutting = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        local.faults().partition("left");
    };
    let (result, ()) = tokio::join!(put(&left, "k"), cutting);
    assert_eq!(seen(&result), "timeout");
    assert!(!exists(&observer, "k").await);
}

/// Goal: the case that makes a conditional write ambiguous. It is applied, and its caller only sees
/// a timeout.
#[tokio::test(start_paused = true)]
async fn a_write_can_be_applied_and_time_out() {
    let local = LocalAws::in_memory();
    let timeouts = TimeoutConfig::builder().operation_timeout(Duration::from_secs(5)).build();
    let client = Client::new(&with_timeout(&local.sdk_config("faulty"), timeouts));
    let observer = Client::new(&local.sdk_config("observer"));
    create(&observer, "leases").await;
    local.faults().add(Rule::new(Effect::HangAfter).client("faulty"));
    assert_eq!(seen(&put(&client, "k").await), "timeout");
    assert!(exists(&observer, "k").await);
}

#[tokio::test]
async fn a_rule_can_look_for_one_lease() {
    let local = LocalAws::in_memory();
    let client = Client::new(&without_retries(&local.sdk_config("worker")));
    create(&client, "leases").await;
    local.faults().add(Rule::new(Effect::Disconnect).containing("shard-1"));
    assert_eq!(seen(&put(&client, "shard-0").await), "ok");
    assert_eq!(seen(&put(&client, "shard-1").await), "broken connection");
}
