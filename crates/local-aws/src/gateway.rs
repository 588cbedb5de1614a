//! The gateway: one request in, one reply out, for the socket server and the in-process client.
//!
//! Reads the operation from the headers, consults the fault rules, calls the service, counts the
//! request, and sets the headers of the reply. Never opens a socket and never decides which faults
//! occur: `server` and `connector` do the first, `faults` the second.

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format as DateFormat;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};

use crate::body::{Broken, ReplyBody};
use crate::clock::Clock;
use crate::dynamo::Dynamo;
use crate::faults::{Effect, Faults, Service, Subject};
use crate::kinesis::Kinesis;
use crate::request_log::RequestLog;
use crate::wire::{Format, Reply};

const TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const SIGNED_AT: HeaderName = HeaderName::from_static("x-amz-date");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// The largest allowed distance between the date of a signature and the service's time.
const DATE_MARGIN_SECONDS: i64 = 5 * 60;

/// The outcome in the log of a request without a reply.
const NO_REPLY: &str = "no reply";

/// Both services and the components in front of them.
pub(crate) struct Gateway {
    pub(crate) clock: Clock,
    pub(crate) faults: Faults,
    pub(crate) requests: RequestLog,
    pub(crate) kinesis: Kinesis,
    pub(crate) dynamo: Dynamo,
    pub(crate) replies: AtomicU64,
    /// Held, not read: the file is the lock on the data directory while it is open.
    #[expect(dead_code, reason = "its lock is what matters")]
    pub(crate) lock: Option<std::fs::File>,
}

/// A request with valid headers.
struct Call {
    client: String,
    service: Service,
    operation: String,
    format: Format,
    signed_at: Option<String>,
    body: Bytes,
}

/// A reply without its HTTP headers.
enum Answer {
    Body(Bytes),
    EventStream(futures_util::stream::BoxStream<'static, Bytes>),
    Error { status: u16, code: String, body: Bytes },
}

impl Gateway {
    /// Answers one request of `client`; `Broken` means that the connection must break.
    ///
    /// # Cancel safety
    ///
    /// A request that is dropped before it is applied has no effect; there is no await between
    /// applying and replying.
    pub(crate) async fn answer(
        &self,
        client: &str,
        request: Request<Bytes>,
    ) -> Result<Response<ReplyBody>, Broken> {
        let Some(call) = Call::read(client, request) else {
            let answer = Answer::error(
                Format::Json,
                400,
                "UnknownOperationException",
                "the header x-amz-target names no operation of Kinesis or DynamoDB",
            );
            return Ok(self.response(Service::Kinesis, Format::Json, whole(answer)));
        };
        let (service, format) = (call.service, call.format);
        let body = self.carry_out(&call).await?;
        Ok(self.response(service, format, body))
    }

    /// Applies the request unless a fault prevents it, and counts it.
    async fn carry_out(&self, call: &Call) -> Result<(Option<Failure>, ReplyBody), Broken> {
        self.reach(call).await?;
        let verdict = self.faults.judge(&call.subject());
        if !verdict.delay.is_zero() {
            tokio::time::sleep(verdict.delay).await;
            // Again, because a partition may have begun during the delay.
            self.reach(call).await?;
        }
        let answer = match &verdict.effect {
            Some(Effect::Hang) => {
                self.count(call, NO_REPLY);
                return pending().await;
            }
            Some(Effect::HangAfter) => {
                drop(self.apply(call));
                self.count(call, NO_REPLY);
                return pending().await;
            }
            Some(Effect::Disconnect) => {
                self.count(call, NO_REPLY);
                return Err(Broken);
            }
            Some(Effect::FailBefore { code, status }) => {
                Answer::error(call.format, *status, code, "injected, not applied")
            }
            Some(Effect::Throttle) => {
                let code = throttling_error(call.service, &call.operation);
                Answer::error(call.format, 400, code, "injected: rate exceeded")
            }
            Some(Effect::CheckDate) => self.date_refused(call).unwrap_or_else(|| self.apply(call)),
            Some(Effect::FailAfter { code, status }) => {
                drop(self.apply(call));
                Answer::error(call.format, *status, code, "injected, but applied")
            }
            Some(Effect::DisconnectAfter) => {
                drop(self.apply(call));
                self.count(call, NO_REPLY);
                return Err(Broken);
            }
            Some(Effect::DropHalfReply) => {
                let reply = self.body_of(call, self.apply(call));
                self.count(call, NO_REPLY);
                return Ok((reply.0, reply.1.cut_in_half()));
            }
            Some(Effect::FallSilent(events)) => {
                let answer = self.apply(call);
                self.count(call, answer.outcome());
                let (failure, body) = self.body_of(call, answer);
                // The first frame opens the stream.
                return Ok((failure, body.silent_after(events + 1)));
            }
            // `judge` adds delays up and never returns one.
            Some(Effect::Delay(_)) | None => self.apply(call),
        };
        self.count(call, answer.outcome());
        Ok(self.body_of(call, answer))
    }

    /// Returns at once unless the client is partitioned; otherwise waits for the end of the
    /// partition and breaks the connection.
    async fn reach(&self, call: &Call) -> Result<(), Broken> {
        if !self.faults.is_partitioned(&call.client) {
            return Ok(());
        }
        // Counted before the wait, during which the caller may drop this future.
        self.count(call, NO_REPLY);
        self.faults.healed(&call.client).await;
        Err(Broken)
    }

    /// Returns AWS's answer to a signature whose date differs from the service's time.
    fn date_refused(&self, call: &Call) -> Option<Answer> {
        let signed_at = call.signed_at.as_deref()?;
        let signed = seconds_of(signed_at)?;
        let now = self.clock.now_ms().div_euclid(1_000);
        let message = if signed < now - DATE_MARGIN_SECONDS {
            format!("Signature expired: {signed_at} is now earlier than the allowed time")
        } else if signed > now + DATE_MARGIN_SECONDS {
            format!("Signature not yet current: {signed_at} is still later than the allowed time")
        } else {
            return None;
        };
        Some(Answer::error(call.format, 400, "InvalidSignatureException", &message))
    }

    fn apply(&self, call: &Call) -> Answer {
        match call.service {
            Service::Kinesis => match self.kinesis.call(&call.operation, call.format, &call.body) {
                Ok(Reply::Body(body)) => Answer::Body(body),
                Ok(Reply::EventStream(frames)) => Answer::EventStream(frames),
                Err(error) => Answer::error(call.format, error.status, error.code, &error.message),
            },
            Service::DynamoDb => match self.dynamo.call(&call.operation, &call.body) {
                Ok(body) => Answer::Body(body),
                Err(refusal) => {
                    Answer::Error { status: refusal.status, code: refusal.code, body: refusal.body }
                }
            },
        }
    }

    fn count(&self, call: &Call, outcome: &str) {
        tracing::debug!(
            client = call.client,
            service = %call.service,
            operation = call.operation,
            outcome,
            "request"
        );
        self.requests.add(&call.client, call.service, &call.operation, outcome);
    }

    /// Returns the body of a reply; an event stream breaks when its client is partitioned.
    fn body_of(&self, call: &Call, answer: Answer) -> (Option<Failure>, ReplyBody) {
        match answer {
            Answer::EventStream(frames) => {
                (None, ReplyBody::stream(frames, self.faults.clone(), call.client.clone()))
            }
            Answer::Body(_) | Answer::Error { .. } => whole(answer),
        }
    }

    fn response(
        &self,
        service: Service,
        format: Format,
        (failure, body): (Option<Failure>, ReplyBody),
    ) -> Response<ReplyBody> {
        let content_type = match (service, format) {
            _ if body.is_stream() => "application/vnd.amazon.eventstream",
            (Service::DynamoDb, _) => "application/x-amz-json-1.0",
            (Service::Kinesis, format) => format.content_type(),
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(REQUEST_ID, self.next_request_id());
        if let Some(date) = http_date(self.clock.now_ms()) {
            headers.insert(DATE, date);
        }
        if let Some(failure) = failure {
            if let Ok(code) = HeaderValue::from_str(&failure.code) {
                headers.insert(ERROR_TYPE, code);
            }
            *response.status_mut() =
                StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        }
        response
    }

    /// Returns an id in the form of the services' ids; counted rather than random.
    fn next_request_id(&self) -> HeaderValue {
        let n = self.replies.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("10ca1a35-0000-4000-8000-{n:012x}"))
            .expect("hexadecimal digits and dashes make a header")
    }
}

/// The status and the error type of an error reply.
struct Failure {
    status: u16,
    code: String,
}

fn whole(answer: Answer) -> (Option<Failure>, ReplyBody) {
    match answer {
        Answer::Body(body) => (None, ReplyBody::whole(body)),
        Answer::Error { status, code, body } => {
            (Some(Failure { status, code }), ReplyBody::whole(body))
        }
        Answer::EventStream(_) => unreachable!("event streams are wrapped by `body_of`"),
    }
}

impl Answer {
    fn error(format: Format, status: u16, code: &str, message: &str) -> Self {
        Self::Error { status, code: code.to_owned(), body: error_body(format, code, message) }
    }

    fn outcome(&self) -> &str {
        match self {
            Self::Body(_) | Self::EventStream(_) => "ok",
            Self::Error { code, .. } => code,
        }
    }
}

impl Call {
    /// Returns the call that the headers describe, if they are valid.
    fn read(client: &str, request: Request<Bytes>) -> Option<Self> {
        let (parts, body) = request.into_parts();
        let (prefix, operation) = parts.headers.get(TARGET)?.to_str().ok()?.split_once('.')?;
        let service = match prefix {
            "Kinesis_20131202" => Service::Kinesis,
            "DynamoDB_20120810" => Service::DynamoDb,
            _ => return None,
        };
        Some(Self {
            client: client.to_owned(),
            service,
            operation: operation.to_owned(),
            format: format_of(&parts.headers),
            signed_at: text_of(&parts.headers, &SIGNED_AT),
            body,
        })
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            client: &self.client,
            service: self.service,
            operation: &self.operation,
            body: &self.body,
        }
    }
}

/// Returns the format; JSON unless the header selects another one: a body that is not JSON is then
/// refused as such.
fn format_of(headers: &HeaderMap) -> Format {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(Format::from_content_type)
        .unwrap_or(Format::Json)
}

fn text_of(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Returns the seconds since 1970 of a date in the format of signatures, `20260131T120000Z`.
fn seconds_of(date: &str) -> Option<i64> {
    let part = |range| date.get(range);
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let (hour, minute, second) = (part(9..11)?, part(11..13)?, part(13..15)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    Some(DateTime::from_str(&text, DateFormat::DateTime).ok()?.secs())
}

/// Returns the access key ID that signed the request, which identifies callers over HTTP.
pub(crate) fn caller(headers: &HeaderMap) -> &str {
    headers
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once("Credential="))
        .and_then(|(_, rest)| rest.split_once('/'))
        .map_or("anonymous", |(key, _)| key)
}

/// Returns the service's throttling error for an operation. Kinesis and DynamoDB each have one
/// error for records and items and another for operations on streams and tables.
fn throttling_error(service: Service, operation: &str) -> &'static str {
    match (service, operation) {
        (Service::Kinesis, "PutRecord" | "PutRecords" | "GetRecords" | "GetShardIterator") => {
            "ProvisionedThroughputExceededException"
        }
        (Service::Kinesis, _) => "LimitExceededException",
        (Service::DynamoDb, operation) if operation.ends_with("Table") => "ThrottlingException",
        (Service::DynamoDb, _) => "ProvisionedThroughputExceededException",
    }
}

fn error_body(format: Format, code: &str, message: &str) -> Bytes {
    format.encode(&serde_json::json!({ "__type": code, "message": message }), 256)
}

fn http_date(now_ms: i64) -> Option<HeaderValue> {
    let date = DateTime::from_millis(now_ms).fmt(DateFormat::HttpDate).ok()?;
    HeaderValue::from_str(&date).ok()
}
