//! The control interface over HTTP: the equivalent of [`LocalAws::faults`](crate::LocalAws::faults)
//! and its neighbours for tests in other processes and languages.
//!
//! Owns the paths below `/_local-aws/` and their JSON. Never offers anything that the Rust API
//! lacks.
//!
//! | request | effect |
//! |---|---|
//! | `GET health` | `{"status":"ok","now_ms":…}` |
//! | `POST faults` with a [`Rule`] | adds it; `{"id":1}` |
//! | `GET faults` | rules in force, with counts; partitioned clients |
//! | `DELETE faults`, `DELETE faults/1` | removes all rules and partitions, or one rule |
//! | `POST clock` with `{"advance_ms":1000}` | moves the clock |
//! | `POST partition/CLIENT`, `DELETE partition/CLIENT` | partitions a client, heals it |
//! | `GET requests`, `DELETE requests` | the request log; clears it |

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::ReplyBody;
use crate::faults::{Rule, RuleId};
use crate::gateway::Gateway;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_ms: u64,
}

/// The error of a control request.
struct Refused(StatusCode, String);

pub(crate) fn answer(
    gateway: &Gateway,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Response<ReplyBody> {
    let (status, value) = match act(gateway, method, path, body) {
        Ok(value) => (StatusCode::OK, value),
        Err(Refused(status, error)) => (status, json!({ "error": error })),
    };
    let mut response = Response::new(ReplyBody::whole(value.to_string().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn act(gateway: &Gateway, method: &Method, path: &str, body: &[u8]) -> Result<Value, Refused> {
    let (what, which) = path.split_once('/').unwrap_or((path, ""));
    match (method.as_str(), what, which) {
        ("GET", "health", "") => {}
        ("POST", "faults", "") => return add(gateway, body),
        ("GET", "faults", "") => {
            let (rules, partitioned) = (gateway.faults.rules(), gateway.faults.partitioned());
            return Ok(json!({ "rules": rules, "partitioned": partitioned }));
        }
        ("DELETE", "faults", "") => gateway.faults.clear(),
        ("DELETE", "faults", id) => remove(gateway, id)?,
        ("POST", "clock", "") => {
            let by: Advance = read(body)?;
            gateway.clock.advance(Duration::from_millis(by.advance_ms));
        }
        ("POST", "partition", client) if !client.is_empty() => gateway.faults.partition(client),
        ("DELETE", "partition", client) if !client.is_empty() => gateway.faults.heal(client),
        ("GET", "requests", "") => return Ok(json!({ "requests": gateway.requests.counts() })),
        ("DELETE", "requests", "") => gateway.requests.clear(),
        _ => {
            let message = format!("`{method} /_local-aws/{path}` is not part of the interface");
            return Err(Refused(StatusCode::NOT_FOUND, message));
        }
    }
    Ok(json!({ "status": "ok", "now_ms": gateway.clock.now_ms() }))
}

fn add(gateway: &Gateway, body: &[u8]) -> Result<Value, Refused> {
    let rule: Rule = read(body)?;
    if let Some(complaint) = rule.complaint() {
        return Err(Refused(StatusCode::BAD_REQUEST, complaint));
    }
    Ok(json!({ "id": gateway.faults.add(rule) }))
}

fn remove(gateway: &Gateway, id: &str) -> Result<(), Refused> {
    let known = id.parse().is_ok_and(|id| gateway.faults.remove(RuleId(id)));
    known.then_some(()).ok_or_else(|| {
        Refused(StatusCode::NOT_FOUND, format!("there is no fault rule with the id `{id}`"))
    })
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refused> {
    serde_json::from_slice(body)
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("the body is invalid: {error}")))
}
