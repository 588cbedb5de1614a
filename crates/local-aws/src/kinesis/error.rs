//! The errors of Kinesis, with messages in the form of the service's.
//!
//! One function per error, so that all operations use the same words.

use std::fmt;

use crate::wire::ApiError;

pub(super) fn invalid_argument(message: impl Into<String>) -> ApiError {
    ApiError::new("InvalidArgumentException", message)
}

pub(super) fn access_denied(account: &str, arn: &str) -> ApiError {
    ApiError::new(
        "AccessDeniedException",
        format!("No resource-based policy allows account {account} to use {arn}."),
    )
}

/// Returns the error for a member that violates a constraint of the API model.
pub(super) fn validation(member: &str, value: &str, constraint: &str) -> ApiError {
    ApiError::new(
        "ValidationException",
        format!(
            "1 validation error detected: Value {value} at '{member}' failed to satisfy \
             constraint: {constraint}"
        ),
    )
}

pub(super) fn stream_not_found(name: &impl fmt::Display, account: &str) -> ApiError {
    ApiError::new(
        "ResourceNotFoundException",
        format!("Stream {name} under account {account} not found."),
    )
}

pub(super) fn shard_not_found(shard: &str, stream: &impl fmt::Display, account: &str) -> ApiError {
    ApiError::new(
        "ResourceNotFoundException",
        format!("Could not find shard {shard} in stream {stream} under account {account}."),
    )
}

pub(super) fn consumer_not_found(consumer: &str, account: &str) -> ApiError {
    ApiError::new(
        "ResourceNotFoundException",
        format!("Consumer {consumer}, account {account} not found."),
    )
}

pub(super) fn resource_in_use(message: impl Into<String>) -> ApiError {
    ApiError::new("ResourceInUseException", message)
}

pub(super) fn stream_not_active(name: &impl fmt::Display, account: &str, state: &str) -> ApiError {
    resource_in_use(format!(
        "Stream {name} under account {account} not ACTIVE, instead in state {state}"
    ))
}

pub(super) fn limit_exceeded(message: impl Into<String>) -> ApiError {
    ApiError::new("LimitExceededException", message)
}

pub(super) fn rate_exceeded(
    shard: impl fmt::Display,
    stream: &impl fmt::Display,
    account: &str,
) -> ApiError {
    ApiError::new(
        "ProvisionedThroughputExceededException",
        format!("Rate exceeded for shard {shard} in stream {stream} under account {account}."),
    )
}

pub(super) fn unknown_operation(operation: &str) -> ApiError {
    ApiError::new(
        "UnknownOperationException",
        format!("Kinesis has no operation `{operation}`, or it is not offered here."),
    )
}
