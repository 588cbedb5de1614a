//! The registered stream consumer, shared by all readers of a worker and all workers of an
//! application.
//!
//! It is found by its name, registered if it does not exist, and awaited until it is ACTIVE. Many
//! workers may do so at once: only one of them registers it, the others find it. It is never
//! deregistered, because other workers may still read with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::types::ConsumerStatus;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::super::client::KinesisClient;
use crate::clock;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::retry::Retry;
use crate::settings::StreamConsumer;
use crate::stream::Notice;

/// The timeout of finding or registering a consumer. The service takes seconds.
const LIMIT: Duration = Duration::from_secs(60);
/// The same while a shard waits for it, whose reader has less time for one step.
const LIMIT_WHILE_READING: Duration = Duration::from_secs(20);
/// Delays between lookups of a consumer that is being created or could not be described.
const LOOK_FIRST: Duration = Duration::from_secs(1);
const LOOK_MOST: Duration = Duration::from_secs(4);
/// How often in a row the service may refuse a registration because of its limits: the rate limit is
/// transient, the limit of twenty consumers per stream is not.
const MOST_LIMITED: u32 = 4;

/// The consumer of one stream.
#[derive(Debug)]
pub(in crate::stream::kinesis) struct Registration {
    wanted: StreamConsumer,
    arn: Mutex<Option<String>>,
    /// It was registered here and that was not reported: the future that did it may have been dropped
    /// before.
    is_unreported: AtomicBool,
    /// Lets only one reader at a time look up the consumer.
    looking: Semaphore,
}

/// The state of a consumer in the service.
enum Found {
    Active(String),
    Changing,
    Missing,
}

impl Registration {
    pub(in crate::stream::kinesis) fn new(wanted: StreamConsumer) -> Self {
        let (arn, is_unreported) = (Mutex::new(None), AtomicBool::new(false));
        Self { wanted, arn, is_unreported, looking: Semaphore::new(1) }
    }

    fn known(&self) -> Option<String> {
        self.arn.lock().clone()
    }

    fn know(&self, arn: Option<String>) {
        *self.arn.lock() = arn;
    }

    /// Returns the consumer's ARN; finds or registers the consumer if it is not known yet.
    pub(in crate::stream::kinesis) async fn arn(
        &self,
        stream: &KinesisClient,
        is_start: bool,
    ) -> Result<(String, Option<Notice>), ServiceError> {
        let limit = if is_start { LIMIT } else { LIMIT_WHILE_READING };
        let look = async {
            let _alone = self.looking.acquire().await;
            // Only after the wait, because the reader that looked before may have found it.
            match self.known() {
                Some(arn) => Ok(arn),
                None => self.look(stream).await,
            }
            .map(|arn| (arn.clone(), self.notice(arn)))
        };
        clock::timely(&stream.options.clock, limit, "waiting for the stream consumer", look).await
    }

    /// Handles an error that says that the consumer `arn` does not exist: looks it up, and registers
    /// it again.
    pub(in crate::stream::kinesis) async fn missing(
        &self,
        stream: &KinesisClient,
        arn: &str,
    ) -> Option<Notice> {
        // If another reader is looking already, this one retries and uses what that one finds.
        let _alone = self.looking.try_acquire().ok()?;
        // Another ARN means that another reader has replaced the missing one meanwhile.
        let is_known = self.known().is_none_or(|known| known == arn);
        if matches!(self.wanted, StreamConsumer::Arn(_)) || !is_known {
            return None;
        }
        // Forgotten first, so that the next subscription looks again if this look-up fails.
        self.know(None);
        let clock = &stream.options.clock;
        match clock::within(clock, LIMIT_WHILE_READING, self.look(stream)).await? {
            Ok(arn) => self.notice(arn),
            Err(error) => {
                tracing::debug!("the consumer `{arn}` was not found again: {error}");
                None
            }
        }
    }

    async fn look(&self, stream: &KinesisClient) -> Result<String, ServiceError> {
        // Boxed, because it is large and every reader's future would carry it.
        let arn = Box::pin(self.find(stream)).await?;
        self.know(Some(arn.clone()));
        Ok(arn)
    }

    /// Returns the notice about the consumer if its registration was not reported yet.
    fn notice(&self, consumer: String) -> Option<Notice> {
        let is_unreported = self.is_unreported.swap(false, Ordering::SeqCst);
        is_unreported.then_some(Notice::ConsumerRegistered { consumer })
    }

    async fn find(&self, stream: &KinesisClient) -> Result<String, ServiceError> {
        let name = match &self.wanted {
            StreamConsumer::Named(name) => name,
            StreamConsumer::Arn(arn) => return Ok(arn.clone()),
            StreamConsumer::Application => {
                let context = "the stream consumer has no name: set one, or its ARN";
                return Err(ServiceError::new(ServiceErrorKind::Invalid, context));
            }
        };
        let mut rng = stream.fork_rng();
        let mut looks = Retry::new(LOOK_FIRST, LOOK_MOST);
        let mut limited = 0;
        loop {
            let found = match stream.stream_arn().await {
                Ok(arn) => describe(stream, &arn, name).await.map(|found| (found, arn)),
                Err(error) => Err(error),
            };
            let step = match found {
                Ok((Found::Active(arn), _)) => return Ok(arn),
                Ok((Found::Changing, _)) => Ok(()),
                Ok((Found::Missing, arn)) => {
                    let registered = register(stream, &arn, name).await;
                    let is_limited =
                        |error: &ServiceError| error.kind == ServiceErrorKind::Throttled;
                    limited =
                        if registered.as_ref().is_err_and(is_limited) { limited + 1 } else { 0 };
                    registered.map(|()| self.is_unreported.store(true, Ordering::SeqCst))
                }
                Err(error) => Err(error),
            };
            if let Err(error) = step {
                // `NotReady` means that another worker has just registered it.
                if !error.is_transient() || limited >= MOST_LIMITED {
                    return Err(error);
                }
            }
            clock::sleep(&stream.options.clock, looks.delay(&mut rng)).await;
        }
    }
}

async fn describe(
    stream: &KinesisClient,
    stream_arn: &str,
    name: &str,
) -> Result<Found, ServiceError> {
    let call = stream.calls.describe_stream_consumer().stream_arn(stream_arn).consumer_name(name);
    let reply = match call.send().await {
        Ok(reply) => reply,
        Err(error) => {
            let error = stream.failure("DescribeStreamConsumer", &object(name), error);
            // The stream has just answered, so it is the consumer that does not exist.
            let is_missing = error.kind == ServiceErrorKind::Missing;
            return if is_missing { Ok(Found::Missing) } else { Err(error) };
        }
    };
    let Some(consumer) = reply.consumer_description else { return Ok(Found::Changing) };
    let is_active = consumer.consumer_status == ConsumerStatus::Active;
    Ok(if is_active { Found::Active(consumer.consumer_arn) } else { Found::Changing })
}

async fn register(
    stream: &KinesisClient,
    stream_arn: &str,
    name: &str,
) -> Result<(), ServiceError> {
    let call = stream.calls.register_stream_consumer().stream_arn(stream_arn).consumer_name(name);
    match call.send().await {
        Ok(_) => Ok(()),
        Err(error) => {
            let mut error = stream.failure("RegisterStreamConsumer", &object(name), error);
            if error.kind == ServiceErrorKind::Throttled {
                error.context += "; a stream has at most 20 consumers: deregister one, or set the ARN \
                                  of one that is yours";
            }
            Err(error)
        }
    }
}

fn object(name: &str) -> String {
    format!(", consumer `{name}`")
}
