//! The AWS configuration: region, credentials, endpoints and HTTPS, as in every AWS tool.
//!
//! [`Lookup`] reads environment and profile and checks the values; [`https_client`] sends requests with
//! rustls and ring, through the proxy and with the certificate authorities that the environment sets.
//! Makes no call to Kinesis or DynamoDB.

mod client;
pub(crate) mod credentials;
mod environment;
mod lookup;
mod profile;
mod proxy;
mod trust;

use std::sync::Arc;

use aws_config::{BehaviorVersion, ConfigLoader};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

pub use crate::failed_call::{failed_call, in_plain_words, replied};
use client::{Https, Network};
pub use credentials::NoCredentials;
use environment::{retries, variable};
pub(crate) use lookup::check;
pub use lookup::{Found, Lookup, RegionSource, is_endpoint_url, is_region};
pub use proxy::without_password;

/// Returns a loader of the shared AWS configuration (environment, profiles, roles) with an HTTPS client.
///
/// The SDK panics on invalid values of `AWS_MAX_ATTEMPTS` and `AWS_RETRY_MODE`, also in a profile. This
/// loader uses valid values of the two variables, the defaults in place of invalid ones, and never the
/// values of the profile; the library does its own retries anyway. [`Lookup`] also checks the other values.
///
/// # Example: another endpoint
/// ```no_run
/// # async fn example() {
/// let config = kcl_lite::aws::config().endpoint_url("http://127.0.0.1:4566").load().await;
/// # }
/// ```
#[must_use]
pub fn config() -> ConfigLoader {
    let retries = retries(variable("AWS_MAX_ATTEMPTS"), variable("AWS_RETRY_MODE"));
    aws_config::defaults(BehaviorVersion::latest())
        .http_client(https_client())
        .retry_config(retries)
}

/// Returns a new HTTPS client with a connection pool of its own.
///
/// The client uses HTTP/2 if the service offers it, as Kinesis does, and then all calls share one
/// connection, except that each `SubscribeToShard` opens a new one. Subscriptions on one connection would
/// share its flow-control window, so that shards with slow processors would stop all others. And a
/// subscription that is renewed because its connection is dead must not use the same connection.
///
/// Requests go through the HTTP proxy in `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` (also in lower case),
/// unless `NO_PROXY` lists the host or it is a loopback or link-local address. `AWS_CA_BUNDLE` names a file
/// or directory of PEM certificates that are trusted instead of the system's.
#[must_use]
pub fn https_client() -> SharedHttpClient {
    SharedHttpClient::new(Https::new(Arc::new(Network::new(variable))))
}
