//! The client of one stream: its SDK clients, its names, and the meaning of replies.
//!
//! The SDK never retries here: the caller knows the purpose of a call, and decides what is retried
//! and how often.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::{self, TimeoutConfig};
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::list_shards::ListShardsOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;
use aws_sdk_kinesis::types::{self, ShardFilter, ShardFilterType, StreamStatus};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::event_stream::RawMessage;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::date::{SeenDate, ServiceDate, timestamp};
use crate::clock::{self, Clock, TokioClock};
use crate::error::{FailedCall, ServiceError, ServiceErrorKind};
use crate::failed_call::{broken_events, failed_call};
use crate::identity::StreamIdentity;
use crate::record::ShardId;
use crate::retry::Retry;
use crate::settings::Retrieval;
use crate::shard::{HashRange, ListFrom, Listing, Shard};
use crate::stream::Description;

/// Longer than any healthy reply of the control plane.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than 10 MB take on a slow connection; the same as in the Java library.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Retries of one page of a listing; with the delays below they take three seconds.
const MOST_RETRIES: u32 = 4;
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// How often a listing may restart because its token expired (that takes five minutes, so one restart
/// is already unusual).
const MOST_RESTARTS: u32 = 3;

/// Options of reading a [`KinesisStream`](super::KinesisStream).
#[derive(Debug, Clone)]
pub struct KinesisOptions {
    /// The time between reads of a shard at the tip.
    pub poll_interval: Duration,
    /// The maximum number of reads per second and shard; the service allows five, for all
    /// applications together.
    pub reads_per_second: f64,
    /// The clock on which every wait is measured.
    pub clock: Arc<dyn Clock>,
    /// The seed of all jitter; it should differ between workers.
    pub seed: u64,
    /// How records are retrieved. A consumer that is named after the application must be named here.
    pub retrieval: Retrieval,
}

impl Default for KinesisOptions {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_secs(1),
            reads_per_second: 5.0,
            clock: Arc::new(TokioClock),
            seed: 0,
            retrieval: Retrieval::Polling,
        }
    }
}

/// The clients of one stream and their shared state. Cheap to clone.
#[derive(Clone)]
pub(super) struct KinesisClient {
    /// For calls of the control plane.
    pub(super) calls: Client,
    /// For GetRecords, whose replies are large.
    pub(super) reads: Client,
    /// For SubscribeToShard, whose replies last for minutes.
    pub(super) subscriptions: Client,
    name_or_arn: Arc<str>,
    pub(super) options: KinesisOptions,
    shared: Arc<Shared>,
}

struct Shared {
    rng: Mutex<fastrand::Rng>,
    /// When the stream was first requested, while it has not answered yet.
    waiting_since: Mutex<Option<Instant>>,
}

impl KinesisClient {
    pub(super) fn new(config: &SdkConfig, name_or_arn: String, options: KinesisOptions) -> Self {
        let timeouts = config.timeout_config();
        let client = |timeouts: timeout::TimeoutConfigBuilder| {
            let config = aws_sdk_kinesis::config::Builder::from(config)
                // A single attempt also keeps this stream out of the retry quota that all clients of
                // a process share.
                .retry_config(RetryConfig::disabled())
                .timeout_config(timeouts.build());
            Client::from_conf(config.build())
        };
        let limited = |limit| {
            let timeouts = timeouts.map_or_else(TimeoutConfig::builder, TimeoutConfig::to_builder);
            client(timeouts.operation_attempt_timeout(limit))
        };
        // A subscription lives for minutes and may be silent for seconds; a timeout of whole
        // operations is meant for other calls. The reader has its own timeouts.
        let connecting = timeouts.and_then(TimeoutConfig::connect_timeout);
        let mut unlimited = TimeoutConfig::builder()
            .disable_read_timeout()
            .disable_operation_timeout()
            .disable_operation_attempt_timeout();
        unlimited.set_connect_timeout(connecting);
        let rng = Mutex::new(fastrand::Rng::with_seed(options.seed));
        Self {
            calls: limited(CALL_TIMEOUT),
            reads: limited(READ_TIMEOUT),
            subscriptions: client(unlimited),
            name_or_arn: name_or_arn.into(),
            options,
            shared: Arc::new(Shared { rng, waiting_since: Mutex::new(None) }),
        }
    }

    /// Returns the name, unless the stream was given by its ARN.
    pub(super) fn name(&self) -> Option<String> {
        (!self.name_or_arn.starts_with("arn:")).then(|| self.name_or_arn.to_string())
    }

    /// Returns the ARN if the stream was given by it.
    pub(super) fn arn(&self) -> Option<String> {
        self.name_or_arn.starts_with("arn:").then(|| self.name_or_arn.to_string())
    }

    pub(super) fn fork_rng(&self) -> fastrand::Rng {
        self.shared.rng.lock().fork()
    }

    /// Converts a failed call to an error. `operation` is the API's name, `object` what it was called
    /// on within the stream.
    pub(super) fn failure<E>(
        &self,
        operation: &str,
        object: &str,
        error: SdkError<E, HttpResponse>,
    ) -> ServiceError
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let (action, resource) = self.named(operation, object);
        self.explained(operation, failed_call(action, resource, &error)).with_source(error)
    }

    /// Converts the end of an event stream to an error.
    pub(super) fn broken_events(
        &self,
        operation: &str,
        object: &str,
        error: SdkError<SubscribeToShardEventStreamError, RawMessage>,
    ) -> ServiceError {
        let (action, resource) = self.named(operation, object);
        let code = error.as_service_error().map(code_of_event);
        let call = broken_events(action, resource, code.as_deref(), &error);
        self.explained(operation, call).with_source(error)
    }

    fn named(&self, operation: &str, object: &str) -> (String, String) {
        (format!("kinesis:{operation}"), format!("stream `{}`{object}", self.name_or_arn))
    }

    fn explained(&self, operation: &str, call: FailedCall) -> ServiceError {
        let region = self.calls.config().region().map_or("(none set)", |region| region.as_ref());
        let (resource, words) = (&call.resource, call.words());
        let context = match call.kind {
            ServiceErrorKind::Missing => format!(
                "{resource} not found in region `{region}`: create it, or correct the name or the \
                 region ({operation}: {words})"
            ),
            ServiceErrorKind::NotReady => {
                format!("{resource} in region `{region}` is not ready ({operation}: {words})")
            }
            ServiceErrorKind::Throttled
            | ServiceErrorKind::Unavailable
            | ServiceErrorKind::WrongClock
            | ServiceErrorKind::FileLimit
            | ServiceErrorKind::Tls
            | ServiceErrorKind::Credentials
            | ServiceErrorKind::Key
            | ServiceErrorKind::Denied
            | ServiceErrorKind::Expired
            | ServiceErrorKind::Invalid => {
                let remedy = call.remedy();
                format!("{operation} on {resource} in region `{region}`: {words}{remedy}")
            }
        };
        ServiceError::of_call(context, call)
    }

    pub(super) async fn stream_arn(&self) -> Result<String, ServiceError> {
        if let Some(arn) = self.arn() {
            return Ok(arn);
        }
        let date = ServiceDate::new(self.options.clock.clone());
        Ok(self.summary(&date).await?.stream_arn)
    }

    async fn summary(
        &self,
        date: &ServiceDate,
    ) -> Result<types::StreamDescriptionSummary, ServiceError> {
        let call = self.calls.describe_stream_summary();
        let call = call.set_stream_name(self.name()).set_stream_arn(self.arn());
        let reply = call.customize().interceptor(date.clone()).send().await;
        let reply = reply.map_err(|error| self.failure("DescribeStreamSummary", "", error))?;
        reply.stream_description_summary.ok_or_else(|| {
            let context =
                format!("DescribeStreamSummary of stream `{}` is empty", self.name_or_arn);
            ServiceError::new(ServiceErrorKind::Unavailable, context)
        })
    }

    /// Requests one page: the first by name and filter, the others by token alone, as the API
    /// requires.
    async fn page(
        &self,
        from: ListFrom,
        token: Option<String>,
        date: &ServiceDate,
    ) -> Result<ListShardsOutput, ServiceError> {
        let call = match token {
            Some(token) => self.calls.list_shards().next_token(token),
            None => self
                .calls
                .list_shards()
                .set_stream_name(self.name())
                .set_stream_arn(self.arn())
                .set_shard_filter(filter(from)),
        };
        let reply = call.customize().interceptor(date.clone()).send().await;
        reply.map_err(|error| self.failure("ListShards", "", error))
    }

    /// Requests a [`page`](Self::page), retried a few times after errors for which that can help soon.
    async fn page_with_retries(
        &self,
        from: ListFrom,
        token: Option<String>,
        date: &ServiceDate,
        rng: &mut fastrand::Rng,
    ) -> Result<ListShardsOutput, ServiceError> {
        let mut retry = Retry::new(RETRY_FIRST, RETRY_MOST);
        loop {
            match self.page(from, token.clone(), date).await {
                Err(error) if may_pass_soon(&error) && retry.attempts() < MOST_RETRIES => {
                    clock::sleep(&self.options.clock, retry.delay(rng)).await;
                }
                reply => return reply,
            }
        }
    }

    /// Returns all pages, and the service's time of the first reply.
    async fn pages(&self, from: ListFrom) -> Result<(Vec<types::Shard>, SeenDate), ServiceError> {
        let mut rng = self.fork_rng();
        let mut restarts = 0;
        'listing: loop {
            let date = ServiceDate::new(self.options.clock.clone());
            let first = self.page_with_retries(from, None, &date, &mut rng).await?;
            // Before the other pages, whose replies set the date too.
            let seen = date.take().ok_or_else(|| self.malformed("the reply has no time"))?;
            let (mut shards, mut token) = (first.shards.unwrap_or_default(), first.next_token);
            while let Some(next) = token {
                match self.page_with_retries(from, Some(next), &date, &mut rng).await {
                    Ok(page) => {
                        shards.extend(page.shards.unwrap_or_default());
                        token = page.next_token;
                    }
                    Err(error)
                        if error.kind == ServiceErrorKind::Expired && restarts < MOST_RESTARTS =>
                    {
                        restarts += 1;
                        continue 'listing;
                    }
                    Err(error) => return Err(error),
                }
            }
            return Ok((shards, seen));
        }
    }

    pub(super) async fn list(&self, from: ListFrom) -> Result<Listing, ServiceError> {
        // Taken before the first attempt, so that the time of the listing is not later than the
        // call.
        let asked = self.options.clock.now();
        let result = self.pages(from).await.and_then(|(shards, seen)| {
            if shards.is_empty() {
                let context = format!("stream `{}` has no shards yet", self.name_or_arn);
                return Err(ServiceError::new(ServiceErrorKind::NotReady, context));
            }
            let shards = shards.iter().map(|shard| self.shard(shard));
            let mut shards = shards.collect::<Result<Vec<_>, _>>()?;
            shards.sort_by(|a, b| a.id.cmp(&b.id));
            Ok((shards, seen))
        });
        let mut waiting = self.shared.waiting_since.lock();
        match result {
            Ok((shards, seen)) => {
                // "Latest" counts from the first failed attempt, so that no record since then is missed.
                let asked = waiting.take().unwrap_or(asked);
                Ok(Listing { shards, at: seen.when(asked) })
            }
            Err(error) => {
                if error.is_transient() {
                    waiting.get_or_insert(asked);
                }
                Err(error)
            }
        }
    }

    fn shard(&self, shard: &types::Shard) -> Result<Shard, ServiceError> {
        let range = shard.hash_key_range.as_ref();
        let hash_range = range.and_then(hash_range).ok_or_else(|| {
            self.malformed(&format!("shard `{}` has no valid hash range", shard.shard_id))
        })?;
        let parents = [&shard.parent_shard_id, &shard.adjacent_parent_shard_id];
        let sequences = shard.sequence_number_range.as_ref();
        Ok(Shard {
            id: ShardId::from(shard.shard_id.as_str()),
            parents: parents.into_iter().flatten().map(|id| ShardId::from(id.as_str())).collect(),
            hash_range,
            // A malformed reply must not end a shard, so a missing range counts as open.
            is_open: sequences.is_none_or(|range| range.ending_sequence_number.is_none()),
        })
    }

    fn malformed(&self, what: &str) -> ServiceError {
        let context = format!("ListShards on stream `{}`: {what}", self.name_or_arn);
        ServiceError::new(ServiceErrorKind::Invalid, context)
    }

    /// Describes the stream. While it is being created, "latest" counts from the first call.
    pub(super) async fn description(&self) -> Result<Description, ServiceError> {
        let asked = self.options.clock.now();
        let date = ServiceDate::new(self.options.clock.clone());
        let summary = self.summary(&date).await?;
        if matches!(summary.stream_status, StreamStatus::Creating | StreamStatus::Deleting) {
            let mut waiting = self.shared.waiting_since.lock();
            waiting.get_or_insert(asked);
            let context =
                format!("stream `{}` is {}", self.name_or_arn, summary.stream_status.as_str());
            return Err(ServiceError::new(ServiceErrorKind::NotReady, context));
        }
        let hours = u64::try_from(summary.retention_period_hours).unwrap_or(24);
        Ok(Description {
            identity: Some(StreamIdentity {
                arn: summary.stream_arn,
                created: timestamp(&summary.stream_creation_timestamp),
            }),
            retention: Some(Duration::from_secs(hours * 3_600)),
            at: date.take().map(|seen| seen.when(asked)),
        })
    }
}

impl fmt::Debug for KinesisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name_or_arn)
    }
}

/// Returns the shard filter of the API.
fn filter(from: ListFrom) -> Option<ShardFilter> {
    let of_type = |kind| ShardFilter::builder().r#type(kind);
    let filter = match from {
        ListFrom::All => return None,
        ListFrom::Latest => of_type(ShardFilterType::AtLatest),
        ListFrom::TrimHorizon => of_type(ShardFilterType::AtTrimHorizon),
        ListFrom::AtTimestamp(time) => {
            of_type(ShardFilterType::AtTimestamp).timestamp(DateTime::from_millis(time.as_millis()))
        }
    };
    Some(filter.build().expect("a filter with a type is complete"))
}

/// Parses the hash range of a reply; returns `None` if it is invalid.
pub(super) fn hash_range(range: &types::HashKeyRange) -> Option<HashRange> {
    HashRange::parse(&range.starting_hash_key, &range.ending_hash_key)
}

fn may_pass_soon(error: &ServiceError) -> bool {
    use ServiceErrorKind::{FileLimit, Throttled, Unavailable, WrongClock};
    matches!(error.kind, Throttled | Unavailable | WrongClock | FileLimit)
}

/// Returns the code of an exception in a subscription, by its type if that is known.
#[expect(clippy::wildcard_enum_match_arm, reason = "the service may add exceptions")]
fn code_of_event(error: &SubscribeToShardEventStreamError) -> String {
    use SubscribeToShardEventStreamError as Event;
    let code = match error {
        Event::ResourceNotFoundException(_) => "ResourceNotFoundException",
        Event::ResourceInUseException(_) => "ResourceInUseException",
        Event::KmsDisabledException(_) => "KMSDisabledException",
        Event::KmsInvalidStateException(_) => "KMSInvalidStateException",
        Event::KmsAccessDeniedException(_) => "KMSAccessDeniedException",
        Event::KmsNotFoundException(_) => "KMSNotFoundException",
        Event::KmsOptInRequired(_) => "KMSOptInRequired",
        Event::KmsThrottlingException(_) => "KMSThrottlingException",
        Event::InternalFailureException(_) => "InternalFailureException",
        _ => error.code().unwrap_or("InternalFailure"),
    };
    code.to_owned()
}
