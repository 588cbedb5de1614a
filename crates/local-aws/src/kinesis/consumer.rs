//! Registered fan-out consumers, and their form in the API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kinesis::transition::{Status, Transition};
use crate::wire::Timestamp;

/// A consumer of a stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Consumer {
    pub arn: String,
    pub created_ms: i64,
    pub transition: Option<Transition>,
    pub tags: BTreeMap<String, String>,
}

impl Consumer {
    pub(super) fn status(&self, now_ms: i64) -> Status {
        Status::at(self.transition, now_ms)
    }

    pub(super) fn view(&self, name: &str, now_ms: i64) -> ConsumerView {
        ConsumerView {
            consumer_name: name.to_owned(),
            consumer_arn: self.arn.clone(),
            consumer_status: self.status(now_ms),
            consumer_creation_timestamp: Timestamp(self.created_ms),
            stream_arn: None,
        }
    }
}

/// A consumer in the form of the API; only a description names the stream.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ConsumerView {
    consumer_name: String,
    #[serde(rename = "ConsumerARN")]
    consumer_arn: String,
    consumer_status: Status,
    consumer_creation_timestamp: Timestamp,
    #[serde(rename = "StreamARN", skip_serializing_if = "Option::is_none")]
    pub stream_arn: Option<String>,
}
