//! Kinesis as a set of prepared replies: an HTTP client for the SDK without a service.
//!
//! Every shard has the same records. An iterator is the number of the shard's next reply.

use std::fmt::Write as _;
use std::sync::Arc;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use crate::measure::{Load, STREAM};

/// Creates a client that replies with the records of `load`.
pub(crate) fn http_client(load: &Load) -> SharedHttpClient {
    let data = base64_simd::STANDARD.encode_to_string(vec![b'x'; load.size]);
    let replies = load.records / load.per_reply;
    SharedHttpClient::new(Canned {
        shards: list(load.shards).into(),
        stream: summary(load.shards).into(),
        replies: (0..=replies)
            .map(|number| {
                let last = number == replies;
                let (first, count) =
                    (number * load.per_reply, if last { 0 } else { load.per_reply });
                let next = if last { number } else { number + 1 };
                Bytes::from(reply(first, count, &data, next, u64::from(next < replies)))
            })
            .collect(),
    })
}

#[derive(Debug, Clone)]
struct Canned {
    shards: Bytes,
    stream: Bytes,
    replies: Arc<[Bytes]>,
}

impl HttpClient for Canned {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Canned {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default();
        let body = match operation {
            "GetRecords" => {
                let number = iterator(request.body().bytes().unwrap_or_default());
                self.replies[number].clone()
            }
            "GetShardIterator" => Bytes::from_static(br#"{"ShardIterator":"0"}"#),
            "ListShards" => self.shards.clone(),
            "DescribeStreamSummary" => self.stream.clone(),
            other => unreachable!("a reader does not call {other}"),
        };
        let response = http::Response::builder()
            .status(200)
            .header("content-type", "application/x-amz-json-1.1")
            .header("date", "Thu, 01 Jan 2026 00:00:00 GMT")
            .body(SdkBody::from(body))
            .expect("a response of constants is valid");
        HttpConnectorFuture::ready(Ok(
            HttpResponse::try_from(response).expect("the response has a body in memory")
        ))
    }
}

/// Parses the digits of `{"ShardIterator":"7"}`.
fn iterator(request: &[u8]) -> usize {
    let digits =
        request.iter().skip_while(|byte| **byte != b':').filter(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

fn reply(first: usize, count: usize, data: &str, next: usize, behind: u64) -> String {
    let mut text = String::with_capacity(count * (data.len() + 250) + 100);
    text.push_str(r#"{"Records":["#);
    for number in first..first + count {
        let comma = if number == first { "" } else { "," };
        // Sequence numbers have 56 digits.
        write!(
            text,
            r#"{comma}{{"SequenceNumber":"49{number:054}","ApproximateArrivalTimestamp":1767225600.123,"Data":"{data}","PartitionKey":"unicorn-{}"}}"#,
            number % 1000
        )
        .expect("a string takes everything");
    }
    write!(text, r#"],"NextShardIterator":"{next}","MillisBehindLatest":{behind}}}"#)
        .expect("a string takes everything");
    text
}

fn list(shards: usize) -> String {
    let width = u128::MAX / shards as u128;
    let shards: Vec<_> = (0..shards)
        .map(|number| {
            let start = width * number as u128;
            let end = if number + 1 == shards { u128::MAX } else { start + width - 1 };
            format!(
                r#"{{"ShardId":"shardId-{number:012}","HashKeyRange":{{"StartingHashKey":"{start}","EndingHashKey":"{end}"}},"SequenceNumberRange":{{"StartingSequenceNumber":"1"}}}}"#
            )
        })
        .collect();
    format!(r#"{{"Shards":[{}]}}"#, shards.join(","))
}

fn summary(shards: usize) -> String {
    format!(
        r#"{{"StreamDescriptionSummary":{{"StreamName":"{STREAM}","StreamARN":"arn:aws:kinesis:us-east-1:000000000000:stream/{STREAM}","StreamStatus":"ACTIVE","RetentionPeriodHours":24,"StreamCreationTimestamp":1767225600,"EnhancedMonitoring":[],"OpenShardCount":{shards}}}}}"#
    )
}
