//! The stream in Kinesis: lists its shards and opens readers.
//!
//! Only this folder names the Kinesis SDK, besides `dead_letter/kinesis.rs`. `client` makes the
//! calls; `polling`, `fan_out` and `auto` are the readers.

mod auto;
mod client;
mod date;
mod fan_out;
mod polling;
mod shard_client;

use std::fmt;
use std::sync::Arc;

use aws_config::SdkConfig;
use futures_util::future::BoxFuture;

use self::auto::AutoReader;
use self::client::KinesisClient;
pub use self::client::KinesisOptions;
use self::fan_out::FanOutReader;
use self::fan_out::registration::Registration;
use self::polling::PollingReader;
use self::shard_client::ShardClient;
use super::{Description, ListFrom, Listing, Notice, ShardReader, Stream};
use crate::error::ServiceError;
use crate::position::Cursor;
use crate::record::ShardId;
use crate::settings::Retrieval;

/// A stream of Amazon Kinesis Data Streams. Cheap to clone.
#[derive(Clone)]
pub struct KinesisStream {
    client: KinesisClient,
    /// The consumer of enhanced fan-out, unless shards are only polled.
    registration: Option<Arc<Registration>>,
}

impl KinesisStream {
    /// Creates the stream called `name_or_arn`, in the region and with the credentials of `config`.
    ///
    /// Makes no calls. Retries and the timeouts of attempts are set by this library, whatever
    /// `config` says about them.
    #[must_use]
    pub fn new(
        config: &SdkConfig,
        name_or_arn: impl Into<String>,
        options: KinesisOptions,
    ) -> Self {
        let registration = options.retrieval.consumer().cloned().map(Registration::new);
        let client = KinesisClient::new(config, name_or_arn.into(), options);
        Self { client, registration: registration.map(Arc::new) }
    }

    fn registration(&self) -> Arc<Registration> {
        self.registration.clone().expect("a retrieval that may subscribe has a consumer")
    }
}

impl fmt::Debug for KinesisStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KinesisStream").field(&self.client).finish()
    }
}

impl Stream for KinesisStream {
    fn describe(&self) -> BoxFuture<'_, Result<Description, ServiceError>> {
        Box::pin(self.client.description())
    }

    fn list(&self, from: ListFrom) -> BoxFuture<'_, Result<Listing, ServiceError>> {
        Box::pin(self.client.list(from))
    }

    fn open(&self, shard: &ShardId, cursor: Cursor) -> Box<dyn ShardReader> {
        let of = ShardClient { stream: self.client.clone(), id: shard.clone() };
        let rng = self.client.fork_rng();
        match self.client.options.retrieval {
            Retrieval::Polling => Box::new(PollingReader::new(of, cursor, rng)),
            Retrieval::FanOut { .. } => {
                Box::new(FanOutReader::new(of, self.registration(), cursor, rng))
            }
            Retrieval::Auto { .. } => {
                Box::new(AutoReader::new(of, self.registration(), cursor, rng))
            }
        }
    }

    fn prepare(&self) -> BoxFuture<'_, Result<Option<Notice>, ServiceError>> {
        Box::pin(async {
            match self.client.options.retrieval {
                Retrieval::FanOut { .. } => {
                    Ok(self.registration().arn(&self.client, true).await?.1)
                }
                // A consumer is charged by the hour, so it is registered only when it is needed.
                Retrieval::Auto { .. } | Retrieval::Polling => Ok(None),
            }
        })
    }
}
