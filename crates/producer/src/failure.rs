//! A failed call of the producer, as the library classifies it.
//!
//! Adds the action and the stream. `kcl_lite::aws` classifies the failure, `aws_command::failure`
//! words it for the user, and `session` decides whether the call is retried.

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

/// Reads an error code in a successful reply. Without a code, `message` says why the reply is
/// malformed, and the call is retried.
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
