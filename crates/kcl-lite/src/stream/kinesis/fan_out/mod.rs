//! Reading a shard with `SubscribeToShard`: the service pushes records instead of being polled.
//!
//! Owns the subscription: at most one, and the one that will replace it. [`schedule`] decides when to
//! subscribe and from where; [`registration`] knows the consumer. Back-pressure is not reading: a
//! caller that does not call `next` leaves events on the socket. Dropping the reader closes the
//! stream. Never ends a shard because of an error or the end of a subscription: either the service
//! names the children, or a listing shows the shard closed, and then the rest is polled.

pub(super) mod registration;
mod schedule;

use std::fmt;
use std::future::pending;
use std::sync::Arc;

use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::primitives::event_stream::EventReceiver;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;
use aws_sdk_kinesis::types::{
    ShardIteratorType, StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream,
};
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::polling::PollingReader;
use super::shard_client::ShardClient;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::position::Cursor;
use crate::shard::ChildShard;
use crate::stream::{Notice, Read, ShardReader};
use registration::Registration;
use schedule::{End, SubscriptionSchedule};

const OPERATION: &str = "SubscribeToShard";

type Events = EventReceiver<SubscribeToShardEventStream, SubscribeToShardEventStreamError>;

/// A call in flight.
struct Call {
    consumer: String,
    reply: BoxFuture<'static, Result<Events, ServiceError>>,
}

/// A subscription that delivers events.
struct Subscription {
    consumer: String,
    events: Events,
}

/// A reader that subscribes to one shard.
pub(super) struct FanOutReader {
    of: ShardClient,
    registration: Arc<Registration>,
    schedule: SubscriptionSchedule,
    call: Option<Call>,
    subscription: Option<Subscription>,
    /// What has arrived and was not returned yet.
    arrived: Option<Result<Read, ServiceError>>,
    /// An event without continuation ended the shard but did not name the children: a listing has to
    /// tell.
    is_end_suspected: bool,
    /// The reader of the rest of a closed shard, if the subscription did not name the end.
    rest: Option<PollingReader>,
    end: Option<Vec<ChildShard>>,
    notice: Option<Notice>,
    rng: fastrand::Rng,
}

/// What the reader waited for.
enum Woken {
    Called(Result<Events, ServiceError>),
    Heard(Result<Option<SubscribeToShardEventStream>, ServiceError>),
    CallIsDue,
    CallTookTooLong,
    Silent,
}

impl FanOutReader {
    pub(super) fn new(
        of: ShardClient,
        registration: Arc<Registration>,
        cursor: Cursor,
        mut rng: fastrand::Rng,
    ) -> Self {
        let schedule = SubscriptionSchedule::new(cursor, rng.fork());
        Self {
            of,
            registration,
            schedule,
            call: None,
            subscription: None,
            arrived: None,
            is_end_suspected: false,
            rest: None,
            end: None,
            notice: None,
            rng,
        }
    }

    /// Returns the position of the next record.
    pub(super) fn cursor(&self) -> &Cursor {
        self.rest.as_ref().map_or_else(|| self.schedule.cursor(), PollingReader::cursor)
    }

    fn now(&self) -> Instant {
        self.of.stream.options.clock.now()
    }

    /// Waits until there is something to return, and keeps it; or until the rest is to be polled.
    async fn arrive(&mut self) {
        if self.arrived.is_none() {
            // Silence counts from here: while the caller was busy, the socket was not read.
            self.schedule.parked(self.now());
        }
        while self.arrived.is_none() && self.rest.is_none() {
            self.arrived = match self.step().await {
                Ok(read) => read.map(Ok),
                Err(error) => Some(Err(error)),
            };
        }
    }

    /// Processes one event; returns `None` if there is nothing to return yet.
    async fn step(&mut self) -> Result<Option<Read>, ServiceError> {
        if let Some(children) = &self.end {
            return Ok(Some(Read::End { children: children.clone() }));
        }
        if self.is_end_suspected {
            self.look_for_end().await?;
            return Ok(None);
        }
        match self.wait().await {
            Woken::CallIsDue => self.subscribe().await?,
            Woken::Called(Ok(events)) => {
                let call = self.call.take().expect("it has just answered");
                self.schedule.accepted(self.now());
                // The old one is dropped with what it has not delivered: the new one sends that too.
                self.subscription = Some(Subscription { consumer: call.consumer, events });
            }
            Woken::Called(Err(error)) => {
                let call = self.call.take().expect("it has just answered");
                self.schedule.refused(error.kind, self.now());
                return self.after(error, &call.consumer).await;
            }
            Woken::CallTookTooLong => {
                self.call = None;
                self.schedule.refused(ServiceErrorKind::Unavailable, self.now());
                return Err(self.failure("the call timed out"));
            }
            Woken::Heard(Ok(Some(event))) => {
                self.schedule.spoke(self.now());
                return self.heard(event);
            }
            Woken::Heard(Ok(None)) => {
                if self.ended(true) == End::Failure {
                    return Err(self.failure("the subscription ended immediately"));
                }
            }
            Woken::Heard(Err(error)) => {
                // Before `ended`, which drops the subscription.
                let consumer = self.subscription.as_ref().map(|it| it.consumer.clone());
                let end = self.ended(false);
                if error.kind == ServiceErrorKind::Missing {
                    return self.after(error, &consumer.unwrap_or_default()).await;
                }
                // The subscription that is being made may have ended this one.
                if end == End::Failure && self.call.is_none() {
                    return Err(error);
                }
                tracing::debug!("a subscription has ended, subscribing again: {error}");
            }
            Woken::Silent => {
                self.ended(false);
                return Err(self.failure("the subscription is silent, subscribing again"));
            }
        }
        Ok(None)
    }

    /// Waits for the next event. Nothing is lost when the future is dropped.
    async fn wait(&mut self) -> Woken {
        let clock = &self.of.stream.options.clock;
        let called = async {
            match &mut self.call {
                Some(call) => (&mut call.reply).await,
                None => pending().await,
            }
        };
        let heard = async {
            match &mut self.subscription {
                Some(subscription) => subscription.events.recv().await,
                None => pending().await,
            }
        };
        let at = async |instant: Option<Instant>| match instant {
            Some(instant) => clock.sleep_until(instant).await,
            None => pending().await,
        };
        tokio::select! {
            biased;
            // First, because it needs several polls, and a busy shard always has an event ready.
            reply = called => Woken::Called(reply),
            // Then this one, for the same reason.
            () = at(self.schedule.call_at(clock.now())) => Woken::CallIsDue,
            event = heard => Woken::Heard(event.map_err(|error| {
                self.of.stream.broken_events(OPERATION, &self.of.object(), error)
            })),
            // The limits last, so that what has arrived counts, however late this is polled.
            () = at(self.schedule.call_limit()) => Woken::CallTookTooLong,
            () = at(self.schedule.silence_limit()) => Woken::Silent,
        }
    }

    /// Makes the call; the reader awaits its reply while the current subscription continues.
    async fn subscribe(&mut self) -> Result<(), ServiceError> {
        let consumer = match self.registration.arn(&self.of.stream, false).await {
            Ok((consumer, notice)) => {
                self.notice = notice.or(self.notice.take());
                consumer
            }
            Err(error) => {
                self.schedule.refused(error.kind, self.now());
                return Err(error);
            }
        };
        // Only now, because finding the consumer may take longer than the call may.
        self.schedule.calling(self.now());
        let call = self.of.stream.subscriptions.subscribe_to_shard();
        let call = call.consumer_arn(&consumer).shard_id(self.of.id.as_str());
        let call = call.starting_position(starting_position(self.schedule.cursor()));
        let (stream, object) = (self.of.stream.clone(), self.of.object());
        let reply = Box::pin(async move {
            let reply = call.send().await;
            let reply = reply.map_err(|error| stream.failure(OPERATION, &object, error))?;
            Ok(reply.event_stream)
        });
        self.call = Some(Call { consumer, reply });
        Ok(())
    }

    fn heard(&mut self, event: SubscribeToShardEventStream) -> Result<Option<Read>, ServiceError> {
        // An unknown kind of event only shows that the subscription is alive.
        let SubscribeToShardEventStream::SubscribeToShardEvent(event) = event else {
            return Ok(None);
        };
        let read = self.accept(event);
        if read.is_err() {
            self.subscription = None;
            self.schedule.failed(self.now());
        }
        read.map(Some)
    }

    fn accept(&mut self, event: SubscribeToShardEvent) -> Result<Read, ServiceError> {
        // Everything is parsed before the cursor moves: a malformed event must not be skipped.
        let continuation = Some(event.continuation_sequence_number).filter(|it| !it.is_empty());
        let continuation = continuation.map(|digits| self.of.number(digits)).transpose()?;
        let children = self.of.children(&event.child_shards.unwrap_or_default());
        let mut records = self.of.records(event.records)?;
        self.schedule.drop_delivered(&mut records);

        let is_last = continuation.is_none();
        let last = records.last().map(|record| record.sequence_number.clone());
        self.schedule.hand_over(last, continuation);
        if is_last {
            // Also the call that would replace the subscription: nothing follows the last event.
            (self.call, self.subscription) = (None, None);
            self.is_end_suspected = children.is_empty();
            if !children.is_empty() {
                self.end = Some(children.clone());
            }
        }
        // Records that arrive with the end are returned first; the next step returns the end.
        if self.end.is_some() && records.is_empty() {
            return Ok(Read::End { children });
        }
        let millis_behind_latest = u64::try_from(event.millis_behind_latest).unwrap_or(0);
        Ok(Read::Records { records, millis_behind_latest })
    }

    fn ended(&mut self, is_clean: bool) -> End {
        self.subscription = None;
        let end = self.schedule.ended(is_clean, self.now());
        self.is_end_suspected |= self.schedule.is_silent();
        end
    }

    /// Handles an error. If something does not exist, finds out whether it is the shard, the consumer
    /// or the stream; any other error is returned.
    async fn after(
        &mut self,
        error: ServiceError,
        consumer: &str,
    ) -> Result<Option<Read>, ServiceError> {
        if error.kind != ServiceErrorKind::Missing {
            return Err(error);
        }
        self.schedule.failed(self.now());
        self.subscription = None;
        // The service may have dropped the shard and all its records.
        if let Some(children) = self.of.look_up_forgotten().await {
            self.end = Some(children);
            return Ok(None);
        }
        // The shard is not known to be gone, so it may be the consumer that does not exist.
        if let Some(notice) = self.registration.missing(&self.of.stream, consumer).await {
            self.notice = Some(notice);
        }
        Err(error)
    }

    /// Looks for the end in a listing. A closed shard may still have records: polling reads them, and
    /// the end.
    async fn look_for_end(&mut self) -> Result<(), ServiceError> {
        // After a listing that failed, as late as the next subscription would be.
        if let Some(due) = self.schedule.due() {
            self.of.stream.options.clock.sleep_until(due).await;
        }
        let end = self.of.look_up_end().await;
        // Also if the shard is open: subscriptions that keep ending must not cause a loop of calls.
        if !matches!(end, Ok(Some(_))) {
            self.schedule.failed(self.now());
        }
        // A listing that failed leaves the suspicion, so that the next step lists again.
        let is_closed = end?.is_some();
        self.is_end_suspected = false;
        if is_closed {
            (self.call, self.subscription) = (None, None);
            let cursor = self.schedule.cursor().clone();
            self.rest = Some(PollingReader::new(self.of.clone(), cursor, self.rng.fork()));
        }
        Ok(())
    }

    fn failure(&self, what: &str) -> ServiceError {
        let what = format!("{OPERATION}: {what}");
        self.of.malformed(ServiceErrorKind::Unavailable, &what)
    }
}

/// Returns the starting position of the API.
fn starting_position(cursor: &Cursor) -> StartingPosition {
    let of_type = |kind| StartingPosition::builder().r#type(kind);
    let position = match cursor {
        Cursor::Horizon => of_type(ShardIteratorType::TrimHorizon),
        Cursor::Timestamp(time) => of_type(ShardIteratorType::AtTimestamp)
            .timestamp(DateTime::from_millis(time.as_millis())),
        Cursor::At(number) => {
            of_type(ShardIteratorType::AtSequenceNumber).sequence_number(number.as_str())
        }
        Cursor::After(number) => {
            of_type(ShardIteratorType::AfterSequenceNumber).sequence_number(number.as_str())
        }
    };
    position.build().expect("a position with a type is complete")
}

impl ShardReader for FanOutReader {
    /// An event that has arrived before it was requested is kept without memory set aside for it;
    /// what follows stays in the connection, whose window (2 MiB with HTTP/2) is not counted either.
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.arrive().await;
            if let Some(rest) = &mut self.rest {
                rest.ready().await;
            }
        })
    }

    fn most_bytes(&self) -> u64 {
        match (&self.rest, &self.arrived) {
            (Some(rest), None) => rest.most_bytes(),
            (_, Some(Ok(Read::Records { records, .. }))) => {
                records.iter().map(crate::Record::size).sum()
            }
            (None, None) | (_, Some(Ok(Read::End { .. }) | Err(_))) => 0,
        }
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(async {
            self.arrive().await;
            match (self.arrived.take(), &mut self.rest) {
                (Some(arrived), _) => arrived,
                (None, Some(rest)) => rest.next().await,
                (None, None) => unreachable!("what has arrived, or the rest of the shard"),
            }
        })
    }

    /// An event may have waited for long, so it is only certain since the subscription was made.
    fn asked(&self) -> Option<Instant> {
        match &self.rest {
            Some(rest) => rest.asked(),
            None => self.schedule.subscribed_at(),
        }
    }

    fn notice(&mut self) -> Option<Notice> {
        self.notice.take()
    }
}

impl fmt::Debug for FanOutReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FanOutReader")
            .field("shard", &self.of.id)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}
