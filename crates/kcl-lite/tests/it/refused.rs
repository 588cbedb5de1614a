//! Denied calls: by the policy, the credentials, or the key of the table. Each is reported with its call,
//! its table and a remedy; none ends a running worker.

use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::SdkConfig;
use aws_config::identity::IdentityCache;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_dynamodb::config::Credentials;
use aws_sdk_kinesis::primitives::Blob;
use aws_smithy_async::time::{SharedTimeSource, TimeSource};
use aws_smithy_runtime_api::client::http::{
    HttpClient as _, HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use kcl_lite::lease::dynamo::DynamoStore;
use kcl_lite::lease::store::LeaseStore;
use kcl_lite::stream::memory::MemoryStream;
use kcl_lite::{
    Batch, BoxError, ControlPlane, Error, ErrorKind, Event, InitialPosition, RecordProcessor,
    ServiceErrorKind, Settings, TableOptions, Worker, WorkerBuilder, WorkerHandle,
};
use local_aws::{Clock, Effect, LocalAws, Rule, RuleId, Service};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::canned::{self, Reply};

const TABLE: &str = "wildrydes-tail";
const STREAM: &str = "wildrydes";
/// How soon a denial has to be reported.
const SOON: Duration = Duration::from_secs(30);

/// An entry of a worker's log.
#[derive(Debug, Clone)]
enum Seen {
    Event(Event),
    Record(String),
}

type Log = watch::Sender<Vec<(Instant, Seen)>>;

fn note(log: &Log, seen: Seen) {
    log.send_modify(|log| log.push((Instant::now(), seen)));
}

/// Waits for an entry at or after `since`; returns its time.
async fn until(log: &Log, since: Instant, what: &str, is_it: impl Fn(&Seen) -> bool) -> Instant {
    let mut reader = log.subscribe();
    let find = |log: &Vec<(Instant, Seen)>| {
        log.iter().find(|(at, seen)| *at >= since && is_it(seen)).map(|(at, _)| *at)
    };
    let wait = reader.wait_for(|log| find(log).is_some());
    match tokio::time::timeout(Duration::from_secs(3600), wait).await {
        Ok(log) => find(&log.unwrap()).unwrap(),
        Err(_) => panic!("never happened: {what}\n{:#?}", log.borrow()),
    }
}

fn is_record(wanted: &str) -> impl Fn(&Seen) -> bool {
    move |seen| matches!(seen, Seen::Record(payload) if payload == wanted)
}

/// Matches a failure of the control plane that contains all `words` and is not transient.
fn is_named<'a>(words: &'a [&'a str]) -> impl Fn(&Seen) -> bool + 'a {
    move |seen| match seen {
        Seen::Event(Event::CoordinationFailed { error, transient, .. }) => {
            !transient && words.iter().all(|word| error.contains(word))
        }
        Seen::Event(_) | Seen::Record(_) => false,
    }
}

struct Recorder(Log);

impl RecordProcessor for Recorder {
    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        for record in batch.records() {
            note(&self.0, Seen::Record(String::from_utf8_lossy(&record.data).into_owned()));
        }
        Ok(())
    }
}

fn worker(config: SdkConfig, log: &Log) -> WorkerBuilder {
    let events = log.clone();
    let settings = Settings {
        control_plane: ControlPlane::Inline,
        initial_position: InitialPosition::TrimHorizon,
        seed: Some(7),
        ..Settings::default()
    };
    Worker::builder(TABLE, STREAM)
        .worker_id("worker")
        .settings(settings)
        .aws_config(config)
        .on_event(move |event| note(&events, Seen::Event(event.clone())))
}

async fn start(builder: WorkerBuilder, log: &Log) -> Result<WorkerHandle, Error> {
    let log = log.clone();
    builder.build().await.unwrap().start(move |_| Recorder(log.clone())).await
}

fn refuse(local: &LocalAws, operation: Option<&str>, code: &str) -> RuleId {
    let effect = Effect::FailBefore { code: code.to_owned(), status: 400 };
    let mut rule = Rule::new(effect).client("worker").service(Service::DynamoDb);
    rule.operation = operation.map(str::to_owned);
    local.faults().add(rule)
}

const REFUSALS: [(&str, ErrorKind); 9] = [
    ("AccessDeniedException", ErrorKind::Denied),
    ("NotAuthorized", ErrorKind::Denied),
    ("OptInRequired", ErrorKind::Denied),
    ("UnrecognizedClientException", ErrorKind::Credentials),
    ("ExpiredTokenException", ErrorKind::Credentials),
    ("InvalidSignatureException", ErrorKind::Credentials),
    ("MissingAuthenticationTokenException", ErrorKind::Credentials),
    ("KMSAccessDeniedException", ErrorKind::Denied),
    ("KMSDisabledException", ErrorKind::Denied),
];

#[tokio::test(start_paused = true)]
async fn e12_at_the_start_each_refusal_is_the_error_that_names_call_and_table() {
    for (code, kind) in REFUSALS {
        for operation in ["DescribeTable", "CreateTable", "Scan", "PutItem"] {
            let local = LocalAws::in_memory();
            refuse(&local, Some(operation), code);
            let log = Log::default();
            let began = Instant::now();
            let builder = worker(local.sdk_config("worker"), &log).stream(MemoryStream::new(1));
            let error = start(builder, &log).await.map(|_| ()).unwrap_err();
            assert!(began.elapsed() <= SOON, "{code}: after {:?}", began.elapsed());
            assert_eq!(error.kind(), kind, "{error}");
            let call = error.call().unwrap();
            assert_eq!(call.action, format!("dynamodb:{operation}"));
            assert_eq!(call.resource, format!("table `{TABLE}` in us-east-1"));
            assert_eq!(call.code.as_deref(), Some(code));
            let named = format!("{operation} on table `{TABLE}` in us-east-1: {code}");
            assert!(error.to_string().starts_with(&named), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e12_a_running_worker_names_each_refusal_in_time_and_goes_on_when_it_ends() {
    for code in ["AccessDeniedException", "ExpiredTokenException", "KMSDisabledException"] {
        for operation in [None, Some("Scan"), Some("UpdateItem")] {
            let (local, log, stream) =
                (LocalAws::in_memory(), Log::default(), MemoryStream::new(1));
            let builder = worker(local.sdk_config("worker"), &log).stream(stream.clone());
            let handle = start(builder, &log).await.unwrap();
            stream.put("key", "before");
            until(&log, Instant::now(), "before", is_record("before")).await;

            let (since, rule) = (Instant::now(), refuse(&local, operation, code));
            let call = format!("{} on table `{TABLE}`", operation.unwrap_or("Scan"));
            let named = until(&log, since, code, is_named(&[code, &call])).await;
            assert!(named - since <= SOON, "{code} {operation:?}: after {:?}", named - since);
            // However long it lasts: the worker neither ends nor stops reporting it.
            let later = since + Duration::from_secs(600);
            until(&log, later, "still trying", is_named(&[code, &call])).await;

            local.faults().remove(rule);
            let healed = Instant::now();
            stream.put("key", "after");
            let after = until(&log, healed, "after", is_record("after")).await;
            assert!(after - healed <= SOON, "{code}: after {:?}", after - healed);
            handle.shutdown(SOON).await.unwrap();
        }
    }
}

/// DynamoDB has no separate error code for a table key that it cannot use.
#[tokio::test(start_paused = true)]
async fn e12_a_key_that_cannot_be_used_is_a_refusal_with_its_own_remedy() {
    for (code, words) in [
        (
            "AccessDeniedException",
            "KMS key access denied error: com.amazonaws.services.kms.model.AWSKMSException: The \
             ciphertext refers to a customer master key that does not exist, does not exist in \
             this region, or you are not allowed to access.",
        ),
        ("ValidationException", "The KMS key is disabled or pending deletion."),
        ("KMSInvalidStateException", "The key is pending import."),
    ] {
        let local = LocalAws::in_memory();
        let made = DynamoStore::new(&local.sdk_config("admin"), TABLE, TableOptions::default());
        made.prepare().await.unwrap();
        let config = canned::config(&local, "worker", vec![Reply::error("Scan", code, words, 9)]);
        let store = DynamoStore::new(&config, TABLE, TableOptions::default());
        let error = store.list().await.unwrap_err();
        assert_eq!(error.kind, ServiceErrorKind::Key, "{error}");
        let words = words.trim_end_matches('.');
        let expected = format!(
            "Scan on table `{TABLE}` in us-east-1: {code}: {words}; check that the KMS key is \
             enabled, and allow `kms:Decrypt` on it"
        );
        assert_eq!(error.to_string(), expected);
        let log = Log::default();
        let builder = worker(config, &log).stream(MemoryStream::new(1));
        let error = start(builder, &log).await.map(|_| ()).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Denied, expected));
    }
    // Throttling by KMS is not a denial.
    let local = LocalAws::in_memory();
    refuse(&local, None, "KMSThrottlingException");
    let store = DynamoStore::new(&local.sdk_config("worker"), TABLE, TableOptions::default());
    assert_eq!(store.list().await.unwrap_err().kind, ServiceErrorKind::Throttled);
}

/// The machine's clock is wrong: the service rejects the date and returns its own time, with which the SDK
/// signs the next request. Found by the simulation, where it kept workers from starting.
#[tokio::test(start_paused = true)]
async fn e12_a_refused_date_is_a_failure_that_passes() {
    for words in
        ["Signature expired: 20261123T080000Z is now earlier than", "Signature not yet current: "]
    {
        let (local, log) = (LocalAws::in_memory(), Log::default());
        let refusal = Reply::error("Scan", "InvalidSignatureException", words, 1);
        let config = canned::config(&local, "worker", vec![refusal]);
        let handle = start(worker(config, &log).stream(MemoryStream::new(1)), &log).await.unwrap();
        handle.shutdown(SOON).await.unwrap();
    }
    let words = "The request signature we calculated does not match the signature you provided.";
    let (local, log) = (LocalAws::in_memory(), Log::default());
    let refusal = Reply::error("Scan", "InvalidSignatureException", words, 9);
    let config = canned::config(&local, "worker", vec![refusal]);
    let error = start(worker(config, &log).stream(MemoryStream::new(1)), &log).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Credentials, "{error}");
}

/// Neither denied nor understood: found by the simulation, where it ended workers.
#[tokio::test(start_paused = true)]
async fn a_reply_that_breaks_off_is_a_failure_that_passes() {
    let half = |operation| {
        let body = r#"{"Items":[{"lea"#.to_owned();
        Reply { operation, status: 200, body, times: 1 }
    };
    let (local, log) = (LocalAws::in_memory(), Log::default());
    let made = DynamoStore::new(&local.sdk_config("admin"), TABLE, TableOptions::default());
    made.prepare().await.unwrap();
    let config = canned::config(&local, "worker", vec![half("Scan")]);
    let store = DynamoStore::new(&config, TABLE, TableOptions::default());
    assert_eq!(store.list().await.unwrap_err().kind, ServiceErrorKind::Unavailable);

    let config = canned::config(&local, "worker", vec![half("Scan"), half("UpdateItem")]);
    let stream = MemoryStream::new(1);
    let handle = start(worker(config, &log).stream(stream.clone()), &log).await.unwrap();
    stream.put("key", "one");
    until(&log, Instant::now(), "one", is_record("one")).await;
    handle.shutdown(SOON).await.unwrap();
}

/// The services' clock, for the SDK.
#[derive(Debug)]
struct ServiceTime(Clock);

impl TimeSource for ServiceTime {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.now_ms().try_into().unwrap())
    }
}

/// Provides keys that are valid for a minute, and once none for 30 seconds: from shortly before the keys
/// of the fourth minute expire.
#[derive(Debug, Clone)]
struct Rotating {
    clock: Clock,
    began: Instant,
    down_from: Arc<Mutex<Option<Instant>>>,
}

const VALID: Duration = Duration::from_secs(60);
const DOWN: Duration = Duration::from_secs(30);

impl Rotating {
    fn is_down(&self) -> bool {
        let (now, mut from) = (Instant::now(), self.down_from.lock());
        if from.is_none() && now >= self.began + 4 * VALID {
            *from = Some(now + VALID - DOWN / 2);
        }
        from.is_some_and(|from| (from..from + DOWN).contains(&now))
    }
}

impl ProvideCredentials for Rotating {
    fn provide_credentials<'a>(&'a self) -> provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        if self.is_down() {
            let error = CredentialsError::provider_error("the metadata service is down");
            return provider::future::ProvideCredentials::ready(Err(error));
        }
        let until = ServiceTime(self.clock.clone()).now() + VALID;
        let token = until.duration_since(UNIX_EPOCH).unwrap().as_millis().to_string();
        let keys = Credentials::new("worker", "secret", Some(token), Some(until), "rotating");
        provider::future::ProvideCredentials::ready(Ok(keys))
    }
}

/// Accepts requests with a valid token; `ahead` is how far its clock is ahead of the client's.
struct Gate {
    clock: Clock,
    ahead: Duration,
    refused: watch::Sender<u64>,
    behind: SharedHttpConnector,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl HttpConnector for Gate {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let token = request.headers().get("x-amz-security-token").unwrap_or_default();
        let until: i64 = token.parse().unwrap_or(0);
        let now = self.clock.now_ms() + i64::try_from(self.ahead.as_millis()).unwrap();
        if now < until {
            return self.behind.call(request);
        }
        self.refused.send_modify(|refused| *refused += 1);
        let words = "The security token included in the request is expired";
        let reply = serde_json::json!({ "__type": "ExpiredTokenException", "message": words });
        let status = StatusCode::try_from(400).unwrap();
        let body = SdkBody::from(reply.to_string());
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, body)))
    }
}

/// Returns a worker's configuration with such keys, and the count of its denied calls.
fn rotating(local: &LocalAws, ahead: Duration) -> (SdkConfig, watch::Receiver<u64>) {
    let clock = local.clock().clone();
    let began = Instant::now();
    let provider = Rotating { clock: clock.clone(), began, down_from: Arc::default() };
    let behind = local.http_client("worker");
    let (refused, refusals) = watch::channel(0);
    let time = SharedTimeSource::new(ServiceTime(clock.clone()));
    let http = http_client_fn(move |settings, components| {
        SharedHttpConnector::new(Gate {
            clock: clock.clone(),
            ahead,
            refused: refused.clone(),
            behind: behind.http_connector(settings, components),
        })
    });
    let config = local.sdk_config("worker").into_builder();
    let config = config.credentials_provider(SharedCredentialsProvider::new(provider));
    // One cache for both clients, so that both are without keys at the same time.
    let config = config.identity_cache(IdentityCache::lazy().build());
    (config.time_source(time).http_client(http).build(), refusals)
}

/// Ten minutes with a record per second, while the keys rotate every minute and are missing for 30
/// seconds. If the clocks agree, the SDK refreshes them in time; with the service's clock 20 s ahead, every
/// key expires before it is refreshed.
#[tokio::test(start_paused = true)]
async fn s19_credentials_that_expire_delay_records_and_end_nothing() {
    for ahead in [Duration::ZERO, Duration::from_secs(20)] {
        let local = LocalAws::in_memory();
        let admin = aws_sdk_kinesis::Client::new(&local.sdk_config("admin"));
        admin.create_stream().stream_name(STREAM).shard_count(1).send().await.unwrap();
        let (config, refusals) = rotating(&local, ahead);
        let log = Log::default();
        let handle = start(worker(config, &log), &log).await.unwrap();
        let began = Instant::now();
        for second in 0..600_u64 {
            let put = admin.put_record().stream_name(STREAM).partition_key("key");
            put.data(Blob::new(second.to_string())).send().await.unwrap();
            tokio::time::sleep_until(began + Duration::from_secs(second + 1)).await;
        }
        let mut worst = Duration::ZERO;
        for second in 0..600_u64 {
            let delivered = until(&log, began, "a record", is_record(&second.to_string())).await;
            worst = worst.max(delivered - (began + Duration::from_secs(second)));
        }
        let limit = DOWN + ahead + Settings::default().lease_duration;
        assert!(worst <= limit, "{ahead:?}: a record waited for {worst:?}");
        assert!(worst >= DOWN / 4, "{ahead:?}: there was no outage: {worst:?}");
        assert_eq!(*refusals.borrow() > 0, !ahead.is_zero(), "{}", *refusals.borrow());
        let log = log.borrow().clone();
        for (nth, said) in ["the metadata service is down", "ExpiredToken"].iter().enumerate() {
            let is_said = log.iter().any(|(_, seen)| says(seen, said));
            assert!(is_said || (nth == 1 && ahead.is_zero()), "{said}");
        }
        assert!(!log.iter().any(|(_, seen)| matches!(seen, Seen::Event(Event::Stopped))));
        handle.shutdown(SOON).await.unwrap();
    }
}

fn says(seen: &Seen, words: &str) -> bool {
    matches!(seen, Seen::Event(Event::CoordinationFailed { error, .. }) if error.contains(words))
}
