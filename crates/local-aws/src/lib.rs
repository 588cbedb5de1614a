//! Kinesis and DynamoDB on one loopback port, or in process, for demos and tests.
//!
//! Needs no account, no Docker and no network. A [`LocalAws`] contains both services. Programs in
//! this process reach them through [`LocalAws::sdk_config`], without a socket; any other program
//! through [`LocalAws::serve`] or the `local-aws` binary, by the endpoint URL it prints.
//!
//! All time is tokio's ([`Clock`]), so that a test on paused time drives iterators, retention and
//! sessions, and [`Clock::advance`] jumps ahead. [`Faults`] injects faults: seeded rules that fail,
//! delay, hang or half-answer the requests of one client or of all. [`RequestLog`] counts the calls
//! of each client.
//!
//! # Example: a record, in process
//!
//! ```
//! use std::time::Duration;
//!
//! use aws_sdk_kinesis::client::Waiters;
//! use aws_sdk_kinesis::primitives::Blob;
//! use local_aws::LocalAws;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?
//! # .block_on(async {
//! let local = LocalAws::in_memory();
//! let kinesis = aws_sdk_kinesis::Client::new(&local.sdk_config("example"));
//! kinesis.create_stream().stream_name("wildrydes").shard_count(1).send().await?;
//! let active = kinesis.wait_until_stream_exists().stream_name("wildrydes");
//! active.wait(Duration::from_secs(60)).await?;
//! kinesis
//!     .put_record()
//!     .stream_name("wildrydes")
//!     .partition_key("Shadowfax")
//!     .data(Blob::new("gallop"))
//!     .send()
//!     .await?;
//! assert!(local.requests().operations("example").contains("kinesis:PutRecord"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Limits
//!
//! Not for production: no authentication, no authorisation, one process. Streams are kept in
//! memory, bounded by their retention; DynamoDB executes one operation at a time.

mod body;
mod builder;
mod clock;
mod connector;
mod control;
mod dynamo;
mod faults;
mod gateway;
mod kinesis;
mod request_log;
mod server;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::{SharedHttpClient, SharedHttpConnector};

pub use builder::{Builder, StartError};
pub use clock::Clock;
pub use faults::{Effect, Faults, Rule, RuleId, RuleStatus, Service};
pub use request_log::{RequestCount, RequestLog};
pub use server::Server;

/// The region of both services.
pub const REGION: &str = "us-east-1";

/// Both services, in this process; cheap to clone, clones share the services.
#[derive(Clone)]
pub struct LocalAws {
    gateway: Arc<gateway::Gateway>,
}

impl std::fmt::Debug for LocalAws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalAws").field("clock", &self.gateway.clock).finish_non_exhaustive()
    }
}

impl LocalAws {
    /// Creates empty services that are dropped with the last clone.
    ///
    /// # Panics
    ///
    /// If an empty in-memory database cannot be created.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::builder().build().expect("an empty database in memory needs nothing but memory")
    }

    /// Returns a builder, to set limits, a data directory, a seed or a clock.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Serves both services on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// No socket can be bound.
    pub async fn serve(&self) -> io::Result<Server> {
        self.serve_on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// Serves both services on `addr`.
    ///
    /// # Errors
    ///
    /// The address cannot be bound, usually because the port is in use.
    pub async fn serve_on(&self, addr: SocketAddr) -> io::Result<Server> {
        Server::bind(self.gateway.clone(), addr).await
    }

    /// Creates an HTTP client for the SDK that calls the services without a socket. `client` names
    /// the caller for [`Faults`] and [`RequestLog`].
    #[must_use]
    pub fn http_client(&self, client: &str) -> SharedHttpClient {
        connector::http_client(self.gateway.clone(), client)
    }

    /// Creates the connector that [`http_client`](Self::http_client) uses, for a caller that puts a
    /// layer of its own between the SDK and the services.
    #[must_use]
    pub fn http_connector(&self, client: &str) -> SharedHttpConnector {
        connector::http_connector(self.gateway.clone(), client)
    }

    /// Creates an SDK configuration for calling the services without a socket, as `client`.
    ///
    /// Reads no environment variable and no file. Retries and timeouts are the SDK's defaults.
    #[must_use]
    pub fn sdk_config(&self, client: &str) -> SdkConfig {
        let keys = Credentials::new(client, "not-a-secret", None, None, "local-aws");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .credentials_provider(SharedCredentialsProvider::new(keys))
            // Never resolved; but if the HTTP client is replaced, no request reaches AWS.
            .endpoint_url("http://local-aws.invalid")
            .http_client(self.http_client(client))
            .build()
    }

    /// Returns the clock of both services.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.gateway.clock
    }

    /// Returns the fault rules.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.gateway.faults
    }

    /// Returns the request log.
    #[must_use]
    pub fn requests(&self) -> &RequestLog {
        &self.gateway.requests
    }
}
