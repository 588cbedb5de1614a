//! The services of the full-stack tier: `local-aws` in this process, called without a network.
//!
//! Owns the synchronous calls, made while the world is locked, and the wire format of a row: it is
//! read here by the attribute names of the Java library, not by the code under test. Never injects
//! faults: the network does.

use std::collections::BTreeSet;
use std::fmt;

use aws_config::SdkConfig;
use aws_smithy_runtime_api::client::http::{HttpConnector as _, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::http::Response;
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::date_time::Format;
use base64_simd::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use kcl_lite::lease::{Lease, LeaseKey, StreamIdentity};
use kcl_lite::{Checkpoint, HashRange, SequenceNumber, Timestamp};
use local_aws::{Clock, LocalAws};
use serde_json::{Value, json};

use crate::stream::EPOCH;

/// The stream of the simulation.
pub(crate) const STREAM: &str = "stream";
/// The application, which is also the name of its table.
pub(crate) const APPLICATION: &str = "simulation";

const JSON: &str = "application/x-amz-json-1.1";
const STREAMS: &str = "Kinesis_20131202";
const TABLES: &str = "DynamoDB_20120810";

/// The reply to a request.
pub(crate) type Reply = Response<Bytes>;

/// A request in its wire format.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Service and operation, as in the header.
    pub(crate) target: String,
    pub(crate) body: Value,
    /// When it was signed, by the sender's clock; in seconds.
    pub(crate) signed: i64,
}

impl Request {
    /// Reads a request of a client.
    ///
    /// # Panics
    /// The request is malformed: the client has a bug.
    pub(crate) fn read(request: &HttpRequest) -> Self {
        let header = |name| request.headers().get(name).unwrap_or_default();
        let kind = header("content-type");
        assert!(kind.starts_with("application/x-amz-json-1."), "a body of type `{kind}`");
        let body = request.body().bytes().expect("requests of these clients are not streamed");
        let body = serde_json::from_slice(body).expect("a body of this type is JSON");
        let date = header("x-amz-date");
        let [year, month, day, hour, minute, second] =
            [0..4, 4..6, 6..8, 9..11, 11..13, 13..15].map(|part| &date[part]);
        let date = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
        let signed = DateTime::from_str(&date, Format::DateTime).expect("a signature has a date");
        Self { target: header("x-amz-target").to_owned(), body, signed: signed.secs() }
    }

    pub(crate) fn is_for_table(&self) -> bool {
        self.target.starts_with(TABLES)
    }

    pub(crate) fn operation(&self) -> &str {
        self.target.rsplit('.').next().unwrap_or_default()
    }

    /// Returns the key of the row that it concerns.
    pub(crate) fn key(&self) -> LeaseKey {
        let item = ["Item", "Key"].into_iter().find_map(|field| self.body.get(field));
        let key = item.and_then(|item| item["leaseKey"]["S"].as_str());
        LeaseKey::from(key.unwrap_or_default())
    }

    /// Returns whether it is conditional on the counter of the row.
    pub(crate) fn is_by_counter(&self) -> bool {
        let condition = self.body["ConditionExpression"].as_str();
        condition.is_some_and(|it| it.contains(":seen"))
    }

    /// Returns the attributes that an update sets, and those that it removes.
    pub(crate) fn touches(&self) -> [BTreeSet<&str>; 2] {
        let mut touched = [BTreeSet::new(), BTreeSet::new()];
        let mut verb = "";
        let expression = self.body["UpdateExpression"].as_str().unwrap_or_default();
        for word in expression.split([' ', ',']).filter(|word| !word.is_empty()) {
            if !word.starts_with(['#', ':', '=']) {
                verb = word;
            }
            let name = self.body["ExpressionAttributeNames"][word].as_str();
            match (verb, name) {
                ("SET", Some(name)) => _ = touched[0].insert(name),
                ("REMOVE", Some(name)) => _ = touched[1].insert(name),
                _ => {}
            }
        }
        touched
    }
}

/// Both services.
#[derive(Clone)]
pub(crate) struct Services {
    local: LocalAws,
    connector: SharedHttpConnector,
}

impl Services {
    /// Starts new services, with the stream.
    pub(crate) fn start(seed: u64, shards: u32) -> Self {
        let clock = Clock::starting_at(EPOCH);
        let local = LocalAws::builder().clock(clock).seed(seed);
        // Resharding takes no time: the world's stream has no transitional states.
        let local = local.transition(std::time::Duration::ZERO).build();
        let local = local.expect("services in memory need nothing");
        let services = Self { connector: local.http_connector("the world"), local };
        services.create_stream(shards);
        services
    }

    pub(crate) fn create_stream(&self, shards: u32) {
        self.stream("CreateStream", json!({ "ShardCount": shards }));
    }

    pub(crate) fn delete_stream(&self) {
        self.stream("DeleteStream", json!({}));
    }

    /// Returns a configuration for clients; its HTTP client has to be replaced.
    pub(crate) fn sdk_config(&self, client: &str) -> SdkConfig {
        self.local.sdk_config(client)
    }

    /// Answers a request immediately.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let mut http = HttpRequest::new(SdkBody::from(request.body.to_string()));
        http.headers_mut().insert("x-amz-target", request.target.clone());
        http.headers_mut().insert("content-type", JSON);
        let reply = self.connector.call(http).now_or_never().expect("nothing here waits");
        let mut reply = reply.expect("no fault is injected here");
        let body = reply.take_body().collect().now_or_never().expect("nothing here waits");
        let body = body.expect("no fault is injected here").to_bytes();
        reply.map(|_| body.clone())
    }

    /// Makes a call that has to succeed.
    fn ask(&self, service: &str, operation: &str, body: Value) -> Value {
        let target = format!("{service}.{operation}");
        let reply = self.answer(&Request { target, body, signed: 0 });
        let text = String::from_utf8_lossy(reply.body());
        assert!(reply.status().is_success(), "{operation}: {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn stream(&self, operation: &str, mut body: Value) -> Value {
        body["StreamName"] = STREAM.into();
        self.ask(STREAMS, operation, body)
    }

    /// Returns the shards in the order of their numbers, and their ranges.
    pub(crate) fn shards(&self) -> Vec<(String, HashRange)> {
        let listing = self.stream("ListShards", json!({ "MaxResults": 10_000 }));
        let shards = listing["Shards"].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let shard = |shard: &Value| {
            let range = &shard["HashKeyRange"];
            let (start, end) = (text(&range["StartingHashKey"]), text(&range["EndingHashKey"]));
            let range = HashRange::parse(&start, &end).expect("a shard has a range");
            (text(&shard["ShardId"]), range)
        };
        shards.iter().map(shard).collect()
    }

    pub(crate) fn split(&self, shard: &str, at: u128) {
        let body = json!({ "ShardToSplit": shard, "NewStartingHashKey": at.to_string() });
        self.stream("SplitShard", body);
    }

    pub(crate) fn merge(&self, shard: &str, other: &str) {
        let body = json!({ "ShardToMerge": shard, "AdjacentShardToMerge": other });
        self.stream("MergeShards", body);
    }

    /// Stores a record; returns the shard that stored it, and its sequence number.
    pub(crate) fn put(&self, hash: u128, key: &str, data: &[u8]) -> (String, SequenceNumber) {
        let reply = self.stream(
            "PutRecord",
            json!({
                "ExplicitHashKey": hash.to_string(),
                "PartitionKey": key,
                "Data": STANDARD.encode_to_string(data),
            }),
        );
        let text = |field: &str| reply[field].as_str().unwrap_or_default().to_owned();
        let number = SequenceNumber::from_string(text("SequenceNumber"));
        (text("ShardId"), number.expect("a stored record has a number"))
    }

    /// Returns a row.
    ///
    /// # Errors
    /// The Java library could not read the row.
    pub(crate) fn row(&self, key: &LeaseKey) -> Result<Option<Lease>, String> {
        let body = json!({
            "TableName": APPLICATION,
            "Key": { "leaseKey": { "S": key.as_str() } },
            "ConsistentRead": true,
        });
        let reply = self.ask(TABLES, "GetItem", body);
        reply.get("Item").map(row).transpose()
    }

    /// Deletes a row, as an operator does by hand.
    pub(crate) fn delete_row(&self, key: &LeaseKey) {
        let key = json!({ "leaseKey": { "S": key.as_str() } });
        self.ask(TABLES, "DeleteItem", json!({ "TableName": APPLICATION, "Key": key }));
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

/// Parses a row as the Java library does, with our own attributes.
fn row(item: &Value) -> Result<Lease, String> {
    let text = |name: &str| item[name]["S"].as_str();
    let number = |name: &str| -> Option<i64> { item[name]["N"].as_str()?.parse().ok() };
    let set = |name: &str| {
        let shards = item[name]["SS"].as_array().map(Vec::as_slice).unwrap_or_default();
        shards.iter().filter_map(Value::as_str).map(Into::into).collect()
    };
    let counted = |name: &str| {
        let count = number(name).and_then(|it| u64::try_from(it).ok());
        count.ok_or_else(|| format!("no `{name}` in {item}"))
    };
    let key = text("leaseKey").ok_or_else(|| format!("no key in {item}"))?;
    let sub = counted("checkpointSubSequenceNumber")?;
    let checkpoint = text("checkpoint").and_then(|it| Checkpoint::parse(it, sub).ok());
    let checkpoint = checkpoint.ok_or_else(|| format!("no checkpoint in {item}"))?;
    let stream = text("klStreamArn").zip(number("klStreamCreated"));
    let range = text("startingHashKey").zip(text("endingHashKey"));
    Ok(Lease {
        owner: text("leaseOwner").map(Into::into),
        counter: counted("leaseCounter")?,
        owner_switches: counted("ownerSwitchesSinceCheckpoint")?,
        parents: set("parentShardId"),
        children: set("childShardIds"),
        hash_range: range.and_then(|(start, end)| HashRange::parse(start, end)),
        checkpoint_owner: text("checkpointOwner").map(Into::into),
        anchor: number("klAnchor").map(Timestamp::from_millis),
        read_until: number("klReadUntil").map(Timestamp::from_millis),
        stream: stream.map(|(arn, created)| StreamIdentity {
            arn: arn.to_owned(),
            created: Timestamp::from_millis(created),
        }),
        ..Lease::new(key, checkpoint)
    })
}
