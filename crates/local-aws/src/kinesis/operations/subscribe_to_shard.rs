//! SubscribeToShard: records pushed over an event stream for up to five minutes.
//!
//! The first frame opens the stream; then each batch of records is an event, and without records
//! there is an empty event every few seconds. Nothing is polled: the session sleeps until the
//! Kinesis stream changes, its next heartbeat is due, or it ends.
//!
//! Every event contains the number to continue from, except the last one of a closed shard: it
//! names the children instead, and consumers (the KCL among them) recognize the end by the missing
//! number.

use std::sync::Arc;

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::shard_number;
use crate::kinesis::arn::Resource;
use crate::kinesis::error::{invalid_argument, resource_in_use, shard_not_found};
use crate::kinesis::iterator::Start;
use crate::kinesis::limits::{EVENT_SIZE, RECORDS_PER_READ};
use crate::kinesis::log::RecordView;
use crate::kinesis::operations::describe_stream_consumer::find;
use crate::kinesis::sequence::{Index, SequenceNumber};
use crate::kinesis::shard::ChildShardView;
use crate::kinesis::state::Service;
use crate::kinesis::stream::{StreamId, StreamName};
use crate::kinesis::subscription::{SESSION_MS, SessionId, Subscriber};
use crate::kinesis::transition::Status;
use crate::wire::{ApiError, Format, Reply, Timestamp};

/// The interval between heartbeats of a subscription without records.
const HEARTBEAT_MS: i64 = 5_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    #[serde(rename = "ConsumerARN")]
    consumer_arn: String,
    shard_id: String,
    starting_position: StartingPosition,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StartingPosition {
    r#type: String,
    sequence_number: Option<String>,
    timestamp: Option<Timestamp>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    records: Vec<RecordView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuation_sequence_number: Option<SequenceNumber>,
    millis_behind_latest: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    child_shards: Option<Vec<ChildShardView>>,
}

pub(super) fn handle(
    service: &Arc<Service>,
    format: Format,
    request: Request,
) -> Result<Reply, ApiError> {
    let Resource::Consumer { stream: name, name: consumer_name } =
        service.place.read(&request.consumer_arn)?
    else {
        return Err(invalid_argument("ConsumerARN names a stream, not a consumer."));
    };
    let position = &request.starting_position;
    let start =
        Start::read(&position.r#type, position.sequence_number.as_deref(), position.timestamp)?;
    let session = service.with(|state, now_ms| {
        let stream = state.serving(&name, now_ms)?;
        let arn = &request.consumer_arn;
        let consumer = find(service, &stream.meta, &consumer_name, Some(arn), now_ms)?;
        if consumer.status(now_ms) != Status::Active {
            return Err(resource_in_use(format!("Consumer {arn} is not ACTIVE.")));
        }
        let shard = shard_number(&request.shard_id, &name, service)?;
        let from = start
            .place(stream, shard, now_ms)?
            .ok_or_else(|| shard_not_found(&request.shard_id, &name, &service.options.account))?;
        let (stream_id, wake) = (stream.meta.id, stream.subscribe());
        // Wakes the session that is replaced, so that it ends.
        stream.wake();
        let subscriber = (arn.clone(), shard);
        let id = state.subscriptions.begin(subscriber.clone(), now_ms).ok_or_else(|| {
            resource_in_use(format!(
                "Another active subscription exists for this consumer: {arn} and shard {shard}."
            ))
        })?;
        Ok(Session {
            service: Arc::clone(service),
            format,
            stream: name.clone(),
            stream_id,
            consumer: consumer_name.clone(),
            subscriber,
            id,
            from,
            wake,
            ends_ms: now_ms.saturating_add(SESSION_MS),
            heartbeat_ms: now_ms,
            stage: Stage::Opening,
        })
    })?;
    // Fused, because clients may poll again after the end.
    Ok(Reply::EventStream(unfold(session, Session::next).fuse().boxed()))
}

enum Stage {
    Opening,
    Open,
    Ended,
}

/// The state of a subscription at a moment.
enum Found {
    Event(Event),
    Nothing,
    SessionOver,
}

/// One subscription; it lives in its event stream and ends with it.
struct Session {
    service: Arc<Service>,
    format: Format,
    stream: StreamName,
    stream_id: StreamId,
    consumer: String,
    subscriber: Subscriber,
    id: SessionId,
    from: Index,
    wake: watch::Receiver<()>,
    ends_ms: i64,
    heartbeat_ms: i64,
    stage: Stage,
}

impl Session {
    /// Returns the next frame, or `None` at the end.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        match self.stage {
            Stage::Opening => {
                self.stage = Stage::Open;
                let frame = self.event("initial-response", &Empty {}, 16);
                return Some((frame, self));
            }
            Stage::Open => {}
            Stage::Ended => return None,
        }
        loop {
            // Before the look, so that a change in between wakes the session.
            self.wake.mark_unchanged();
            match self.look() {
                Ok(Found::Event(event)) => {
                    self.heartbeat_ms = self.service.clock.now_ms().saturating_add(HEARTBEAT_MS);
                    if event.child_shards.is_some() {
                        self.stage = Stage::Ended;
                    }
                    let size = 1_024 + event.records.len() * 1_024;
                    let frame = self.event("SubscribeToShardEvent", &event, size);
                    return Some((frame, self));
                }
                Ok(Found::SessionOver) => return None,
                Err(error) => {
                    self.stage = Stage::Ended;
                    let frame = self.exception(&error);
                    return Some((frame, self));
                }
                Ok(Found::Nothing) => {}
            }
            let due_ms = self.heartbeat_ms.min(self.ends_ms);
            tokio::select! {
                biased;
                // A closed channel means that the stream is gone, which `look` detects.
                _ = self.wake.changed() => {}
                () = self.service.clock.sleep_until_ms(due_ms) => {}
            }
        }
    }

    /// Checks for records, the end of the shard, and everything that ends the session.
    fn look(&mut self) -> Result<Found, ApiError> {
        let service = Arc::clone(&self.service);
        service.with(|state, now_ms| {
            if now_ms >= self.ends_ms {
                return Ok(Found::SessionOver);
            }
            if !state.subscriptions.is_newest(&self.subscriber, self.id) {
                return Err(resource_in_use("A newer subscription took the place of this one."));
            }
            let stream = state.serving(&self.stream, now_ms)?;
            // The stream was deleted and re-created under its name.
            if stream.meta.id != self.stream_id {
                return Ok(Found::SessionOver);
            }
            let (arn, number) = &self.subscriber;
            find(&service, &stream.meta, &self.consumer, Some(arn), now_ms)?;
            let limit = usize::try_from(RECORDS_PER_READ).unwrap_or(usize::MAX);
            let read = stream.read(*number, self.from, limit, EVENT_SIZE);
            let Some((read, (shard, log))) = read.zip(stream.shard(*number)) else {
                return Ok(Found::SessionOver);
            };
            let (batch, child_shards) = (read.batch, read.children);
            let idle = batch.records.is_empty() && child_shards.is_none();
            if idle && now_ms < self.heartbeat_ms {
                return Ok(Found::Nothing);
            }
            self.from = batch.next;
            // The number of the last record read if there is one, otherwise a number that no record
            // has.
            let last_read = Index(batch.next.0.saturating_sub(1));
            let arrival_ms = log.arrival_of(last_read).unwrap_or(shard.created_ms);
            let continuation = shard.sequence(last_read, arrival_ms);
            Ok(Found::Event(Event {
                continuation_sequence_number: child_shards.is_none().then_some(continuation),
                millis_behind_latest: batch.behind_ms(now_ms),
                child_shards,
                records: RecordView::all(batch.records, shard),
            }))
        })
    }

    fn event<T: Serialize>(&self, kind: &'static str, payload: &T, size: usize) -> Bytes {
        frame(
            [(":message-type", "event"), (":event-type", kind)],
            self.format,
            self.format.encode(payload, size),
        )
    }

    fn exception(&self, error: &ApiError) -> Bytes {
        #[derive(Serialize)]
        struct Message<'a> {
            message: &'a str,
        }
        frame(
            [(":message-type", "exception"), (":exception-type", error.code)],
            self.format,
            self.format.encode(&Message { message: &error.message }, 256),
        )
    }
}

#[derive(Serialize)]
struct Empty {}

/// One message of the event stream.
fn frame(headers: [(&'static str, &'static str); 2], format: Format, payload: Bytes) -> Bytes {
    let content_type = (":content-type", format.content_type());
    let mut message = Message::new(payload);
    for (name, value) in headers.into_iter().chain([content_type]) {
        message = message.add_header(Header::new(name, HeaderValue::String(value.into())));
    }
    let mut bytes = Vec::new();
    write_message_to(&message, &mut bytes)
        .expect("three short headers and a payload below the frame's limit");
    bytes.into()
}
