//! A call of the producer that failed, as the library reads it.
//!
//! Names the action and the stream. What it means is decided by `kcl_lite::aws`, what a user reads by
//! `aws_command::failure`, and whether it is tried again by `session`.

use std::error::Error;

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use kcl_lite::FailedCall;
use kcl_lite::aws::{failed_call, replied};

/// One failed call.
pub(crate) type Failure = FailedCall;

/// Reads what the SDK reports of `operation` on `stream`.
pub(crate) fn from_sdk<E>(
    operation: &str,
    stream: &str,
    error: &SdkError<E, HttpResponse>,
) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    failed_call(format!("kinesis:{operation}"), resource(stream), error)
}

/// Reads a code in a reply that is good as a whole; without a code, `message` says why the reply makes
/// no sense, and the call is tried again.
pub(crate) fn in_reply(
    operation: &str,
    stream: &str,
    code: Option<&str>,
    message: &str,
) -> Failure {
    replied(format!("kinesis:{operation}"), resource(stream), code, message, 200)
}

fn resource(stream: &str) -> String {
    format!("stream `{stream}`")
}
