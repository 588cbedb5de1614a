//! How the library finds AWS: region, credentials, endpoints and HTTPS as every AWS tool does.
//!
//! [`Lookup`] asks environment and profile and checks what they say; [`https_client`] sends requests by
//! rustls and ring, through the proxy and with the certificate authorities that the environment names.
//! Makes no call to Kinesis or DynamoDB.

mod client;
mod credentials;
mod lookup;
mod profile;
mod proxy;
mod trust;

use std::sync::Arc;

use aws_config::{BehaviorVersion, ConfigLoader};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::retry::{RetryConfig, RetryMode};

pub use crate::failed_call::{failed_call, in_plain_words, replied};
use client::{Https, Network};
pub use credentials::NoCredentials;
pub(crate) use credentials::{missing, unfixed};
pub(crate) use lookup::check;
pub use lookup::{Found, Lookup, RegionSource, is_endpoint_url, is_region, without_password};

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

/// Returns an environment variable, unless it is blank.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    (!value.trim().is_empty()).then_some(value)
}

/// The SDK's own retries, where they are asked for in a way that it knows.
fn retries(attempts: Option<String>, mode: Option<String>) -> RetryConfig {
    let mut config = RetryConfig::standard();
    let attempts = attempts.and_then(|attempts| attempts.trim().parse().ok());
    if let Some(attempts @ 1..) = attempts {
        config = config.with_max_attempts(attempts);
    }
    if mode.is_some_and(|mode| mode.trim().eq_ignore_ascii_case("adaptive")) {
        config = config.with_retry_mode(RetryMode::Adaptive);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_that_the_sdk_does_not_know_are_its_defaults() {
        let of = |attempts: &str, mode: &str| retries(Some(attempts.into()), Some(mode.into()));
        for (attempts, mode) in [("", "legacy"), ("0", ""), ("-1", "STANDARD"), ("many", "\u{0}")] {
            assert_eq!(of(attempts, mode), RetryConfig::standard(), "{attempts} {mode}");
        }
        let adaptive =
            RetryConfig::standard().with_max_attempts(7).with_retry_mode(RetryMode::Adaptive);
        assert_eq!(of(" 7", "Adaptive"), adaptive);
    }
}
