//! The HTTPS client: one connection pool per route of a request, created when it is first needed.
//!
//! The default HTTPS client of the AWS SDK needs a C library that takes minutes to build, so it is
//! disabled in this workspace, and every configuration needs this client instead. It opens a separate
//! connection for each subscription. A request that cannot be sent fails with the reason; no value in the
//! environment causes a panic.

use std::sync::{Arc, OnceLock};

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

use super::proxy::{self, Proxy};
use super::trust;

/// The network configuration of the environment, and the connection pools.
#[derive(Debug)]
pub(super) struct Network {
    /// The proxies of requests without and with TLS.
    proxies: [Result<Option<Proxy>, String>; 2],
    bundle: Option<String>,
    trust: OnceLock<Result<TlsContext, String>>,
    /// Indexed by TLS (without, with), then by proxy (without, with).
    pools: [[OnceLock<SharedHttpClient>; 2]; 2],
}

/// The route of a request.
struct Way<'a> {
    is_tls: bool,
    proxy: Option<&'a Proxy>,
}

impl Network {
    /// Reads the environment variables through `variable`, once.
    pub(super) fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            proxies: [proxy::proxy(false, &variable), proxy::proxy(true, &variable)],
            bundle: variable("AWS_CA_BUNDLE"),
            trust: OnceLock::new(),
            pools: Default::default(),
        }
    }

    /// Returns why requests to `url` cannot be sent; `None` if they can.
    pub(super) fn obstacle(&self, url: &str) -> Option<String> {
        self.way(url).and_then(|way| self.context(&way)).err()
    }

    fn way(&self, url: &str) -> Result<Way<'_>, String> {
        let uri: http::Uri = url.parse().map_err(|_| "the URL cannot be understood".to_owned())?;
        let is_tls = uri.scheme_str() == Some("https");
        if uri.host().is_none_or(proxy::is_local) {
            return Ok(Way { is_tls, proxy: None });
        }
        let proxy = self.proxies[usize::from(is_tls)].as_ref().map_err(Clone::clone)?;
        Ok(Way { is_tls, proxy: proxy.as_ref() })
    }

    /// Returns the TLS context. Loads the certificate authorities only if the server or the proxy uses TLS.
    fn context(&self, way: &Way<'_>) -> Result<TlsContext, String> {
        if !way.is_tls && !way.proxy.is_some_and(|proxy| proxy.has_tls) {
            return trust::nobody();
        }
        self.trust.get_or_init(|| trust::trusted(self.bundle.as_deref())).clone()
    }

    fn new_pool(&self, way: &Way<'_>) -> Result<SharedHttpClient, String> {
        let context = self.context(way)?;
        let proxy = way.proxy.map_or_else(ProxyConfig::disabled, |proxy| proxy.config.clone());
        Ok(Builder::new().build_with_connector_fn(move |settings, components| {
            let mut builder = Connector::builder().proxy_config(proxy.clone());
            builder.set_connector_settings(settings.cloned());
            builder.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
            let builder = builder.tls_provider(Provider::Rustls(CryptoMode::Ring));
            builder.tls_context(context.clone()).build()
        }))
    }

    /// Returns the connection pool for `request`: a new one for a subscription, otherwise a shared one.
    fn pool(&self, request: &HttpRequest) -> Result<SharedHttpClient, String> {
        let way = self.way(request.uri())?;
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        // On a shared connection, shards with slow processors would stall the other subscriptions.
        if target.ends_with(".SubscribeToShard") {
            return self.new_pool(&way);
        }
        let pool = &self.pools[usize::from(way.is_tls)][usize::from(way.proxy.is_some())];
        if let Some(pool) = pool.get() {
            return Ok(pool.clone());
        }
        // Outside `get_or_init`, because this can fail. Of two concurrent calls the first one wins.
        let new = self.new_pool(&way)?;
        Ok(pool.get_or_init(|| new).clone())
    }
}

/// The HTTP client of the SDK configurations.
#[derive(Debug)]
pub(super) struct Https(Arc<Network>);

impl Https {
    pub(super) fn new(network: Arc<Network>) -> Self {
        Self(network)
    }
}

impl HttpClient for Https {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Sender {
            network: Arc::clone(&self.0),
            settings: settings.clone(),
            components: components.clone(),
        })
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        Some(ConnectorMetadata::new("hyper", Some("1.x".into())))
    }
}

#[derive(Debug)]
struct Sender {
    network: Arc<Network>,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for Sender {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        match self.network.pool(&request) {
            Ok(pool) => pool.http_connector(&self.settings, &self.components).call(request),
            Err(reason) => HttpConnectorFuture::ready(Err(ConnectorError::user(reason.into()))),
        }
    }
}
