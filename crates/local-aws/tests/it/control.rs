//! The control interface, as a test in another language uses it.

use aws_sdk_dynamodb::Client;
use local_aws::{Clock, LocalAws, Server};
use serde_json::{Value, json};

use crate::clients::{http, over_http, without_retries};

async fn control(server: &Server, method: &str, path: &str, body: Value) -> (u16, Value) {
    let path = format!("/_local-aws/{path}");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, reply) = http(server.addr(), method, &path, &[], body.as_bytes()).await;
    (status, serde_json::from_str(&reply).unwrap())
}

#[tokio::test]
async fn rules_are_added_listed_and_removed_over_http() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    let client = Client::new(&without_retries(&over_http(&server.endpoint_url(), "worker")));

    let rule = json!({ "client": "worker", "operation": "ListTables", "effect": "throttle" });
    let (status, added) = control(&server, "POST", "faults", rule).await;
    assert_eq!((status, &added), (200, &json!({ "id": 1 })));
    client.list_tables().send().await.unwrap_err();

    let (_, listed) = control(&server, "GET", "faults", Value::Null).await;
    assert_eq!(listed["rules"][0]["fired"], 1);
    assert_eq!(listed["rules"][0]["rule"]["effect"], "throttle");

    assert_eq!(control(&server, "DELETE", "faults/1", Value::Null).await.0, 200);
    assert_eq!(control(&server, "DELETE", "faults/1", Value::Null).await.0, 404);
    client.list_tables().send().await.unwrap();

    let (_, log) = control(&server, "GET", "requests", Value::Null).await;
    let ok = json!({ "client": "worker", "service": "dynamodb", "operation": "ListTables",
        "outcome": "ok", "count": 1 });
    assert!(log["requests"].as_array().unwrap().contains(&ok), "{log}");
    control(&server, "DELETE", "requests", Value::Null).await;
    assert_eq!(local.requests().counts(), []);
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_is_partitioned_and_healed_over_http() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    control(&server, "POST", "partition/worker", Value::Null).await;
    assert!(local.faults().partitioned().contains("worker"));
    let (_, listed) = control(&server, "GET", "faults", Value::Null).await;
    assert_eq!(listed["partitioned"], json!(["worker"]));
    control(&server, "DELETE", "partition/worker", Value::Null).await;
    assert!(local.faults().partitioned().is_empty());
    control(&server, "POST", "partition/worker", Value::Null).await;
    control(&server, "DELETE", "faults", Value::Null).await;
    assert!(local.faults().partitioned().is_empty());
    server.shutdown().await;
}

#[tokio::test]
async fn the_clock_jumps_over_http() {
    let clock = Clock::starting_at(1_000_000);
    let local = LocalAws::builder().clock(clock).build().unwrap();
    let server = local.serve().await.unwrap();
    let jump = json!({ "advance_ms": 3_600_000 });
    let (status, reply) = control(&server, "POST", "clock", jump).await;
    assert_eq!(status, 200);
    assert!(reply["now_ms"].as_i64().unwrap() >= 4_600_000);
    assert!(local.clock().now_ms() >= 4_600_000);
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_control_request_is_said() {
    let local = LocalAws::in_memory();
    let server = local.serve().await.unwrap();
    for (method, path, body, status, says) in [
        ("POST", "faults", json!({ "effect": "explode" }), 400, "explode"),
        ("POST", "faults", json!({ "effect": "hang", "probability": 2 }), 400, "probability"),
        ("POST", "clock", json!({}), 400, "advance_ms"),
        ("GET", "nonsense", Value::Null, 404, "nonsense"),
        ("DELETE", "faults/x", Value::Null, 404, "`x`"),
    ] {
        let (got, reply) = control(&server, method, path, body).await;
        assert_eq!(got, status, "{path}: {reply}");
        assert!(reply["error"].as_str().unwrap().contains(says), "{reply}");
    }
    assert_eq!(control(&server, "GET", "health", Value::Null).await.1["status"], "ok");
    server.shutdown().await;
}
