//! Dead letters in another Kinesis stream.
//!
//! Uses the Kinesis SDK. Writes one record per dead letter, with the same key and data. Never retries,
//! because the shard task does.

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::error::ProvideErrorMetadata as _;
use aws_sdk_kinesis::primitives::Blob;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::{DeadLetter, DeadLetterRecord};
use crate::error::{BoxError, words};

/// A sink that puts the data of dead letters into a Kinesis stream, under their partition keys. The record
/// does not contain the error; the worker's [`Event::DeadLettered`](crate::Event::DeadLettered) does.
///
/// Needs `kinesis:PutRecord` on that stream.
#[derive(Debug)]
pub struct KinesisStream {
    client: Client,
    name_or_arn: String,
}

impl KinesisStream {
    /// Creates a sink for the stream `name_or_arn`, with the region and credentials of `config`. Makes no
    /// call.
    #[must_use]
    pub fn new(config: &SdkConfig, name_or_arn: impl Into<String>) -> Self {
        let config = aws_sdk_kinesis::config::Builder::from(config)
            .retry_config(RetryConfig::disabled())
            .build();
        Self { client: Client::from_conf(config), name_or_arn: name_or_arn.into() }
    }
}

impl DeadLetter for KinesisStream {
    fn store<'a>(&'a self, letter: &'a DeadLetterRecord) -> BoxFuture<'a, Result<(), BoxError>> {
        async move {
            let call = self
                .client
                .put_record()
                .partition_key(&letter.partition_key)
                .data(Blob::new(letter.data.as_ref()));
            let name = self.name_or_arn.as_str();
            let call = if name.starts_with("arn:") {
                call.stream_arn(name)
            } else {
                call.stream_name(name)
            };
            call.send().await.map_err(|error| match (error.code(), error.message()) {
                (Some(code), message) => {
                    format!("PutRecord to stream `{name}`: {code}: {}", message.unwrap_or_default())
                }
                (None, _) => {
                    format!("PutRecord to stream `{name}`: {}", words(&error))
                }
            })?;
            Ok(())
        }
        .boxed()
    }
}
