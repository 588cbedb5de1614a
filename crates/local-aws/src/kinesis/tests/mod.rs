//! Tests of Kinesis through [`Kinesis::call`], on paused time.

mod fan_out;
mod journal;
mod properties;
mod reading;
mod writing;

use std::time::Duration;

use serde_json::{Value, json};

use super::{Kinesis, KinesisOptions};
use crate::clock::Clock;
use crate::wire::{ApiError, Format, Reply};

/// A service whose time begins in November 2023, with the stream `s` in most tests.
struct Local {
    clock: Clock,
    kinesis: Kinesis,
}

fn local() -> Local {
    local_with(KinesisOptions::default())
}

fn local_with(options: KinesisOptions) -> Local {
    let clock = Clock::starting_at(1_700_000_000_000);
    Local { kinesis: Kinesis::new(clock.clone(), options), clock }
}

/// Creates a service with the stream `s`.
fn local_with_stream(shards: u32) -> Local {
    let local = local();
    local.create(shards);
    local
}

impl Local {
    fn call(&self, operation: &str, body: &Value) -> Result<Value, ApiError> {
        match self.kinesis.call(operation, Format::Json, body.to_string().as_bytes())? {
            Reply::Body(body) => Ok(serde_json::from_slice(&body).unwrap()),
            Reply::EventStream(_) => panic!("{operation} answered by an event stream"),
        }
    }

    fn ok(&self, operation: &str, body: &Value) -> Value {
        self.call(operation, body).unwrap_or_else(|error| panic!("{operation} {body}: {error}"))
    }

    /// Returns the error code of a call that must fail.
    fn error(&self, operation: &str, body: &Value) -> &'static str {
        match self.call(operation, body) {
            Err(error) => error.code,
            Ok(answer) => panic!("{operation} {body} should fail, and answered {answer}"),
        }
    }

    fn create(&self, shards: u32) {
        self.ok("CreateStream", &json!({"StreamName": "s", "ShardCount": shards}));
        self.settle();
    }

    /// Waits until CREATING, UPDATING and DELETING are over.
    fn settle(&self) {
        self.clock.advance(Duration::from_millis(100));
    }

    fn status(&self) -> String {
        let answer = self.ok("DescribeStreamSummary", &json!({"StreamName": "s"}));
        answer["StreamDescriptionSummary"]["StreamStatus"].as_str().unwrap().to_owned()
    }

    /// Puts a text and returns its sequence number.
    fn put(&self, text: &str) -> String {
        let answer = self.ok("PutRecord", &record(text));
        answer["SequenceNumber"].as_str().unwrap().to_owned()
    }

    fn split(&self, shard: u32, at: u128) {
        let body = json!({
            "StreamName": "s", "ShardToSplit": id(shard), "NewStartingHashKey": at.to_string(),
        });
        self.ok("SplitShard", &body);
        self.settle();
    }

    fn shards(&self) -> Vec<Value> {
        let answer = self.ok("ListShards", &json!({"StreamName": "s"}));
        answer["Shards"].as_array().unwrap().clone()
    }

    fn iterator(&self, shard: u32, start: &Value) -> String {
        let mut body = json!({"StreamName": "s", "ShardId": id(shard)});
        for (key, value) in start.as_object().unwrap() {
            body[key] = value.clone();
        }
        let answer = self.ok("GetShardIterator", &body);
        answer["ShardIterator"].as_str().unwrap().to_owned()
    }

    fn trim_horizon(&self, shard: u32) -> String {
        self.iterator(shard, &json!({"ShardIteratorType": "TRIM_HORIZON"}))
    }

    fn get(&self, iterator: &str) -> Value {
        self.ok("GetRecords", &json!({"ShardIterator": iterator}))
    }

    /// Returns the texts from an iterator to the tip or the end of its shard.
    fn texts_from(&self, iterator: String) -> Vec<String> {
        let (mut texts, mut iterator) = (Vec::new(), Some(iterator));
        while let Some(from) = iterator {
            let answer = self.ok("GetRecords", &json!({"ShardIterator": from, "Limit": 3}));
            let found = texts_of(&answer);
            iterator = answer["NextShardIterator"].as_str().map(str::to_owned);
            if found.is_empty() {
                break;
            }
            texts.extend(found);
        }
        texts
    }
}

fn id(shard: u32) -> String {
    format!("shardId-{shard:012}")
}

fn base64(text: &str) -> String {
    base64_simd::STANDARD.encode_to_string(text)
}

fn record(text: &str) -> Value {
    json!({"StreamName": "s", "PartitionKey": text, "Data": base64(text)})
}

fn texts_of(answer: &Value) -> Vec<String> {
    let records = answer["Records"].as_array().unwrap();
    records
        .iter()
        .map(|record| {
            let data = base64_simd::STANDARD.decode_to_vec(record["Data"].as_str().unwrap());
            String::from_utf8(data.unwrap()).unwrap()
        })
        .collect()
}
