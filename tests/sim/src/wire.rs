//! The network of the full-stack tier: the requests of one machine's AWS SDK, and their replies.
//!
//! Replaces the SDK's HTTP client, so that everything above it is the library's and the SDK's own code. A
//! request meets the same faults as a call of the protocol tier; [`Services`](crate::services::Services)
//! answers a request that arrives, and its effect is read back from there for the checks. Pages are small, so
//! that there are many.
//!
//! Contains the only wall clock of a run. The library reads none (the lint of its workspace forbids
//! it), so that in the protocol tier nothing can jump; but the SDK signs its requests with one, and
//! the services refuse a signature with the wrong time. Their reply then tells the SDK the right
//! time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_smithy_async::rt::sleep::{AsyncSleep, SharedAsyncSleep, Sleep};
use aws_smithy_async::time::{SharedTimeSource, TimeSource};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use kcl_lite::ServiceErrorKind;
use kcl_lite::clock::Clock;
use kcl_lite::lease::{Lease, LeaseChange, LeaseUpdate};
use serde_json::{Value, json};

use crate::checks::Promise;
use crate::clock::DriftingClock;
use crate::machine::Machine;
use crate::network::{Failure, READING};
use crate::plan::Service;
use crate::reached::Situation;
use crate::services::{Reply, Request};
use crate::stream::service_time;

use crate::world::Truth;

/// How many seconds a signature is valid, and may be early.
const LIFETIME: u64 = 300;

/// Returns the configuration of a machine's clients.
pub(crate) fn config(machine: &Arc<Machine>) -> SdkConfig {
    let config = machine.world.services().sdk_config(machine.id.as_str());
    let clock = DriftingClock(Arc::clone(machine));
    config
        .into_builder()
        .http_client(Wire(Arc::clone(machine)))
        .sleep_impl(SharedAsyncSleep::new(clock.clone()))
        .time_source(SharedTimeSource::new(clock))
        .build()
}

impl AsyncSleep for DriftingClock {
    fn sleep(&self, duration: Duration) -> Sleep {
        let deadline = Clock::now(self) + duration;
        Sleep::new(Self::wait(Arc::clone(&self.0), deadline))
    }
}

impl TimeSource for DriftingClock {
    fn now(&self) -> SystemTime {
        let mut truth = self.0.world.lock();
        let now = truth.now;
        let ahead = truth.weather.wall_clock(now, self.0.slot);
        let millis = service_time(now).as_millis() + ahead * 1000;
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or_default())
    }
}

/// The connections of one machine.
#[derive(Debug, Clone)]
struct Wire(Arc<Machine>);

impl HttpClient for Wire {
    /// Ignores the settings' limits, which are for sockets; the SDK's own limits apply.
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (machine, request) = (Arc::clone(&self.0), Request::read(&request));
        HttpConnectorFuture::new(async move {
            let _running = machine.hold();
            // First, because a frozen process has not sent the request yet.
            machine.awake().await;
            let sent = machine.world.now();
            let operation = request.operation().to_owned();
            let (service, what) = match operation.as_str() {
                "PutItem" | "UpdateItem" | "DeleteItem" => (Service::Table, "writing a row"),
                "GetItem" => (Service::Table, "reading a row"),
                "Scan" => (Service::Table, "scanning"),
                _ if request.is_for_table() => (Service::Table, "describing the table"),
                "GetRecords" | "GetShardIterator" => (Service::Stream, READING),
                "ListShards" => (Service::Stream, "listing"),
                _ => (Service::Stream, "describing the stream"),
            };
            if what == "writing a row" {
                machine.world.lock().ledger.wrote(machine.number, sent);
            }
            let sender = Arc::clone(&machine);
            let work = move |truth: &mut Truth| truth.serve(&sender, sent, request);
            match machine.attempt(service, what, work).await {
                Ok((reply, renewed)) => {
                    if let Some(shard) = renewed {
                        machine.world.lock().ledger.answered(machine.number, shard, sent);
                    }
                    Ok(reply.map(SdkBody::from))
                }
                Err(failure) => failed(&machine, &operation, failure),
            }
        })
    }
}

/// Returns the reply for a fault: an error of the service, or of the connection.
fn failed(
    machine: &Machine,
    operation: &str,
    failure: Failure,
) -> Result<HttpResponse, ConnectorError> {
    let error = |status: u16, code: &str| {
        let body = json!({ "__type": code, "message": "in the simulation" }).to_string();
        Ok(response(status, body))
    };
    let throttled = match operation {
        "ListShards" | "DescribeStreamSummary" => "LimitExceededException",
        "GetRecords" | "GetShardIterator" => "ProvisionedThroughputExceededException",
        _ if machine.draw(|rng| rng.bool()) => "ThrottlingException",
        _ => "ProvisionedThroughputExceededException",
    };
    match failure {
        Failure::Refused(ServiceErrorKind::Throttled) => error(400, throttled),
        Failure::Refused(ServiceErrorKind::Missing) => error(400, "ResourceNotFoundException"),
        Failure::Refused(_) | Failure::Broken => match machine.draw(|rng| rng.u8(0..4)) {
            0 => error(500, "InternalServerError"),
            1 => error(503, "ServiceUnavailable"),
            2 if matches!(failure, Failure::Broken) => {
                Ok(response(200, r#"{"Attributes":{"lea"#.to_owned()))
            }
            _ => Err(ConnectorError::io(io::Error::other("in the simulation").into())),
        },
    }
}

fn response(status: u16, body: String) -> HttpResponse {
    let status = status.try_into().expect("these are statuses");
    HttpResponse::new(status, SdkBody::from(body))
}

impl Truth {
    /// Serves a request that arrives; returns the reply, and the shard if it was a renewal that was
    /// applied.
    fn serve(
        &mut self,
        machine: &Arc<Machine>,
        sent: Duration,
        mut request: Request,
    ) -> (Reply, Option<usize>) {
        let services = self.shards.services().clone();
        if let Some(refused) = self.refused_for_its_time(&request) {
            self.say(&**machine, format_args!("  ({}: wrong time)", request.operation()));
            return (refused, None);
        }
        let is_stale = self.now < self.weather.stale.1;
        let lacks = |token: &str| request.body.get(token).is_none();
        match request.operation() {
            "PutItem" | "UpdateItem" | "DeleteItem" => {
                let reply = services.answer(&request);
                let key = self.written(machine, sent, &request, &reply);
                return (reply, key);
            }
            "Scan" => {
                if lacks("ExclusiveStartKey") {
                    self.ledger.scanned(machine.number, self.now);
                }
                request.body["Limit"] = self.page.into();
            }
            "ListShards" => {
                if lacks("NextToken") {
                    self.ledger.listed(machine.number, self.now);
                    self.say(&**machine, format_args!("lists shards"));
                }
                // Only listings of all shards from the first page can be stale.
                let is_whole = lacks("NextToken") && lacks("ShardFilter");
                // A stale reply is derived from the complete listing, so that it is not split into
                // pages.
                if !is_stale {
                    request.body["MaxResults"] = self.page.into();
                }
                let reply = services.answer(&request);
                let reply = if is_stale && is_whole { self.as_it_was(&reply) } else { reply };
                return (reply, None);
            }
            "GetRecords" => {
                request.body["Limit"] = self.read_limit.into();
                let reply = services.answer(&request);
                return (self.without_names(reply), None);
            }
            _ => {}
        }
        (services.answer(&request), None)
    }

    /// Returns the reply to a request whose signature is minutes early or late.
    fn refused_for_its_time(&mut self, request: &Request) -> Option<Reply> {
        let now = DateTime::from_millis(service_time(self.now).as_millis());
        if now.secs().abs_diff(request.signed) <= LIFETIME {
            return None;
        }
        self.ledger.counts.note(Situation::WrongTime);
        let verdict = if request.signed < now.secs() {
            "Signature expired: it is now earlier than the time of the service"
        } else {
            "Signature not yet current: it is still later than the time of the service"
        };
        let body = json!({ "__type": "InvalidSignatureException", "message": verdict });
        let status = 400.try_into().expect("this is a status");
        let mut reply = Reply::new(status, Bytes::from(body.to_string()));
        let date = now.fmt(Format::HttpDate).expect("the time of a run is a date");
        reply.headers_mut().insert("date", date);
        Some(reply)
    }

    /// Notes the effect of a write; returns the shard if it was a renewal.
    fn written(
        &mut self,
        machine: &Machine,
        sent: Duration,
        request: &Request,
        reply: &Reply,
    ) -> Option<usize> {
        let key = request.key();
        if !reply.status().is_success() {
            let text = String::from_utf8_lossy(reply.body());
            if !text.contains("ConditionalCheckFailedException") {
                let (now, text) = (self.now, format!("the service does not understand: {text}"));
                self.ledger.broken(Promise::Rows, now, Some(&key), text);
            }
            self.refused(machine, &format_args!("{} of {key}", request.operation()));
            return None;
        }
        let after = match self.shards.services().row(&key) {
            Ok(after) => after,
            Err(text) => {
                let now = self.now;
                self.ledger.broken(Promise::Rows, now, Some(&key), text);
                return None;
            }
        };
        let change = change(machine, request, self.rows.get(&key), after.as_ref());
        self.changed(machine, sent, (&key, &change), after.as_ref());
        let shard = after.as_ref().and_then(|row| self.shards.of_row(row));
        shard.filter(|_| matches!(change, LeaseChange::Renew { .. }))
    }

    /// Returns a stale listing, each shard as of a time of its own.
    fn as_it_was(&mut self, reply: &Reply) -> Reply {
        let visible = self.shards.visible(self.now, self.weather.stale.0, &mut self.rng);
        let is_closed = |id: &str| {
            let shard =
                visible.iter().find(|(number, _)| self.shards.all[*number].id.as_str() == id);
            shard.map(|(_, closed)| closed.is_some())
        };
        let mut differs = false;
        let reply = altered(reply, |listing| {
            let Some(shards) = listing["Shards"].as_array_mut() else { return };
            let all = shards.len();
            shards.retain_mut(|shard| {
                let closed = shard["ShardId"].as_str().and_then(is_closed);
                let range = shard["SequenceNumberRange"].as_object_mut();
                if let Some(range) = range.filter(|_| closed == Some(false)) {
                    differs |= range.remove("EndingSequenceNumber").is_some();
                }
                closed.is_some()
            });
            differs |= shards.len() < all;
        });
        if differs {
            self.ledger.counts.note(Situation::StaleListing);
        }
        reply
    }

    /// Removes the children from the last reply of a shard, while they are not named.
    fn without_names(&mut self, reply: Reply) -> Reply {
        if self.now >= self.weather.nameless_until {
            return reply;
        }
        let mut is_end = false;
        let reply = altered(&reply, |read| {
            is_end = read.as_object_mut().is_some_and(|it| it.remove("ChildShards").is_some());
        });
        if is_end {
            self.ledger.counts.note(Situation::NamelessEnd);
        }
        reply
    }
}

/// Returns a reply with another body.
fn altered(reply: &Reply, change: impl FnOnce(&mut Value)) -> Reply {
    let mut altered = Reply::new(reply.status(), Bytes::new());
    for (name, value) in reply.headers() {
        altered.headers_mut().insert(name.to_owned(), value.to_owned());
    }
    let mut body = serde_json::from_slice(reply.body()).unwrap_or_default();
    change(&mut body);
    *altered.body_mut() = Bytes::from(body.to_string());
    altered
}

/// Returns which write of the protocol it was, by the attributes that the request touches and by
/// its effect.
fn change(
    machine: &Machine,
    request: &Request,
    before: Option<&Lease>,
    after: Option<&Lease>,
) -> LeaseChange {
    let (before, after) = match (before, after) {
        (Some(before), Some(after)) if request.operation() == "UpdateItem" => (before, after),
        (Some(before), Some(after)) if request.is_by_counter() => {
            let with = Box::new(after.clone());
            return LeaseChange::Replace { counter: before.counter, with };
        }
        (_, Some(after)) => return LeaseChange::Create(Box::new(after.clone())),
        (Some(before), None) if !before.checkpoint.is_shard_end() => {
            return LeaseChange::Discard { counter: before.counter };
        }
        (before, None) => {
            return LeaseChange::Delete { counter: before.map_or(0, |row| row.counter) };
        }
    };
    let [set, removed] = request.touches();
    let counter = before.counter;
    let checkpoint = Some(after.checkpoint.clone()).filter(|it| *it != before.checkpoint);
    let update = LeaseUpdate { checkpoint, ..LeaseUpdate::default() };
    if removed.contains("leaseOwner") {
        if after.checkpoint.is_shard_end() {
            return LeaseChange::Finish { counter, children: after.children.clone() };
        }
        return LeaseChange::Release { counter, update };
    }
    match after.owner.clone().filter(|_| set.contains("leaseOwner")) {
        Some(to) if set.contains("checkpointOwner") => {
            let from = after.checkpoint_owner.clone().unwrap_or_else(|| to.clone());
            LeaseChange::RequestHandoff { counter, from, to }
        }
        Some(from) if set.len() == 1 => {
            LeaseChange::WithdrawHandoff { from, to: machine.id.clone() }
        }
        Some(owner) if owner == machine.id => {
            LeaseChange::Take { counter, from: before.owner.clone(), owner }
        }
        Some(to) => LeaseChange::HandOver { counter, update, to },
        None => {
            let owner = before.actual_owner().cloned().unwrap_or_else(|| machine.id.clone());
            LeaseChange::Renew { counter, owner, update }
        }
    }
}
