//! How the library finds AWS: region, credentials, endpoints and HTTPS as every AWS tool does.
//!
//! [`Lookup`] asks environment and profile and checks what they say; [`https_client`] sends requests by
//! rustls and ring, through the proxy and with the certificate authorities that the environment names.
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
/// The SDK panics at values of `AWS_MAX_ATTEMPTS` and `AWS_RETRY_MODE` that it does not know, and at such
/// values in a profile. This loader takes the two variables where they are valid, its defaults where they
/// are not, and never the profile's: the library does its own retries anyway. [`Lookup`] also checks what it
/// finds.
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
/// HTTP/2 is spoken where the service offers it, as Kinesis does, and then all calls share one
/// connection; but each `SubscribeToShard` gets a new one. Subscriptions on one connection would share
/// its flow-control window, so that shards whose processors are slow stop all others; and a subscription
/// that is made again because its connection has died must not be sent on the same connection.
///
/// Requests go through the HTTP proxy that `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` name (also in lower
/// case), unless `NO_PROXY` lists the host or it is a loopback or link-local address. `AWS_CA_BUNDLE` names a
/// file or directory of PEM certificates that are trusted instead of the system's.
#[must_use]
pub fn https_client() -> SharedHttpClient {
    SharedHttpClient::new(Https::new(Arc::new(Network::new(variable))))
}
