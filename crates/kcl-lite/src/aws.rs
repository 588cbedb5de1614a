//! How the library finds AWS: region and credentials as every AWS tool does, HTTPS by rustls and ring.
//!
//! The default HTTPS client of the AWS SDK needs a C library that takes minutes to build, so it is
//! switched off in this workspace; a client has to be given to every configuration, and this is it.

use aws_config::{BehaviorVersion, ConfigLoader};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::SharedHttpClient;

/// A loader of the shared AWS configuration (environment, profiles, roles) with an HTTPS client.
///
/// # Example: another endpoint
/// ```no_run
/// # async fn example() {
/// let config = kcl_lite::aws::config().endpoint_url("http://127.0.0.1:4566").load().await;
/// # }
/// ```
#[must_use]
pub fn config() -> ConfigLoader {
    aws_config::defaults(BehaviorVersion::latest()).http_client(https_client())
}

/// A new HTTPS client with a connection pool of its own.
#[must_use]
pub fn https_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https()
}
