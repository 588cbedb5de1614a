//! How the library finds AWS: region and credentials as every AWS tool does, HTTPS by rustls and ring.
//!
//! The default HTTPS client of the AWS SDK needs a C library that takes minutes to build, so it is
//! switched off in this workspace; a client has to be given to every configuration, and this is it.
//! It gives each subscription a connection of its own.

use aws_config::{BehaviorVersion, ConfigLoader};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

pub use crate::failed_call::{failed_call, in_plain_words, replied};

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
///
/// HTTP/2 is spoken where the service offers it, as Kinesis does, and then all calls share one
/// connection; but each `SubscribeToShard` gets a new one. Subscriptions on one connection would share
/// its flow-control window, so that shards whose processors are slow stop all others; and a subscription
/// that is made again because its connection has died must not be sent on the same connection.
#[must_use]
pub fn https_client() -> SharedHttpClient {
    SharedHttpClient::new(Https { pooled: pool() })
}

fn pool() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https()
}

#[derive(Debug)]
struct Https {
    pooled: SharedHttpClient,
}

impl HttpClient for Https {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            pooled: self.pooled.http_connector(settings, components),
            settings: settings.clone(),
            components: components.clone(),
        })
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.pooled.connector_metadata()
    }
}

#[derive(Debug)]
struct Connector {
    pooled: SharedHttpConnector,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        if target.ends_with(".SubscribeToShard") {
            // The pool ends with its only connection.
            return pool().http_connector(&self.settings, &self.components).call(request);
        }
        self.pooled.call(request)
    }
}
