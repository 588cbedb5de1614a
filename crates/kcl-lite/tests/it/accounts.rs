//! A stream of another account, identified by its ARN, on in-process local services.
//!
//! The only account of the services stands for the other one: requests are intercepted to translate the
//! ARN and to record what each request named.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_smithy_runtime_api::client::http::{
    HttpClient as _, HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use kcl_lite::{
    Batch, BoxError, ControlPlane, ErrorKind, InitialPosition, RecordProcessor, Retrieval,
    Settings, Worker, WorkerBuilder,
};
use local_aws::LocalAws;
use serde_json::Value;
use tokio::sync::Notify;

const THEIRS: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/wildrydes";
const OURS: &str = "arn:aws:kinesis:us-east-1:000000000000:stream/wildrydes";

/// A limit on paused time, which only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(600);

/// Operations, and whether they named the stream by the other account's ARN and nothing else.
type Named = Arc<Mutex<BTreeSet<(String, bool)>>>;

struct Border {
    named: Named,
    behind: SharedHttpConnector,
}

impl fmt::Debug for Border {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Border").finish_non_exhaustive()
    }
}

impl HttpConnector for Border {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.strip_prefix("Kinesis_20131202.").map(str::to_owned);
        let Some(operation) = operation else { return self.behind.call(request) };
        let text = String::from_utf8_lossy(request.body().bytes().unwrap()).into_owned();
        let body: Value = serde_json::from_str(&text).unwrap();
        let is_theirs = body["StreamARN"] == THEIRS && body["StreamName"].is_null();
        self.named.lock().insert((operation, is_theirs));
        *request.body_mut() = SdkBody::from(text.replace(THEIRS, OURS));
        self.behind.call(request)
    }
}

fn across(local: &LocalAws, named: &Named) -> SdkConfig {
    let (behind, named) = (local.http_client("worker"), Arc::clone(named));
    let http = http_client_fn(move |settings, components| {
        let behind = behind.http_connector(settings, components);
        SharedHttpConnector::new(Border { named: Arc::clone(&named), behind })
    });
    local.sdk_config("worker").into_builder().http_client(http).build()
}

struct Reported(Arc<Notify>);

impl RecordProcessor for Reported {
    async fn process(&mut self, _: Batch) -> Result<(), BoxError> {
        self.0.notify_one();
        Ok(())
    }
}

async fn with_record() -> LocalAws {
    let local = LocalAws::in_memory();
    let client = Client::new(&local.sdk_config("test"));
    client.create_stream().stream_name("wildrydes").shard_count(1).send().await.unwrap();
    // Until the stream is ACTIVE.
    loop {
        let put = client.put_record().stream_name("wildrydes").partition_key("key");
        if put.data(Blob::new("record")).send().await.is_ok() {
            return local;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn builder(config: SdkConfig, arn: &str, retrieval: Retrieval) -> WorkerBuilder {
    Worker::builder("rides", arn).aws_config(config).settings(Settings {
        control_plane: ControlPlane::Inline,
        initial_position: InitialPosition::TrimHorizon,
        retrieval,
        ..Settings::default()
    })
}

#[tokio::test(start_paused = true)]
async fn every_call_names_a_stream_of_another_account_by_its_arn() {
    for (retrieval, calls) in [
        (
            Retrieval::Polling,
            ["DescribeStreamSummary", "GetRecords", "GetShardIterator", "ListShards"].as_slice(),
        ),
        (
            Retrieval::fan_out(),
            &[
                "DescribeStreamConsumer",
                "DescribeStreamSummary",
                "ListShards",
                "RegisterStreamConsumer",
            ],
        ),
    ] {
        let (local, named, reported) = (with_record().await, Named::default(), Arc::default());
        let worker = builder(across(&local, &named), THEIRS, retrieval).build().await.unwrap();
        let seen = Arc::clone(&reported);
        let worker = worker.start(move |_| Reported(Arc::clone(&seen))).await.unwrap();
        tokio::time::timeout(PATIENCE, reported.notified()).await.unwrap();
        worker.shutdown(PATIENCE).await.unwrap();
        let mut named = named.lock().clone();
        // Identified by the consumer ARN that the services returned.
        named.remove(&("SubscribeToShard".to_owned(), false));
        let expected = calls.iter().map(|call| ((*call).to_owned(), true));
        assert_eq!(named, expected.collect());
    }
}

#[tokio::test(start_paused = true)]
async fn an_arn_that_is_denied_or_in_another_region_ends_the_start_and_is_named() {
    let local = with_record().await;
    let elsewhere = OURS.replace("us-east-1", "eu-west-1");
    for (arn, kind) in [(THEIRS, ErrorKind::Denied), (&elsewhere, ErrorKind::Config)] {
        let worker = builder(local.sdk_config("worker"), arn, Retrieval::Polling).build().await;
        let error = match worker {
            Ok(worker) => worker.start(|_| Reported(Arc::default())).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(arn), "{error}");
    }
    let list = Client::new(&local.sdk_config("test")).list_shards().stream_arn(THEIRS).send().await;
    let error = list.unwrap_err().into_service_error();
    assert!(error.is_access_denied_exception(), "{error:?}");
}
