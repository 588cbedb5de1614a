//! The services without a socket: an HTTP client for the SDK that calls the gateway.
//!
//! Owns the translation between the SDK's requests and the gateway's, and the SDK's read timeout,
//! which a connector has to implement. All waiting is tokio's, so that paused time drives it. Never
//! retries: the SDK does.

use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::ErrorKind;
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::gateway::Gateway;

/// Creates an HTTP client whose requests are counted and faulted as those of `client`.
pub(crate) fn http_client(gateway: Arc<Gateway>, client: &str) -> SharedHttpClient {
    SharedHttpClient::new(InProcess { gateway, client: client.into(), read_timeout: None })
}

/// Creates one connector of such a client, without a read timeout.
pub(crate) fn http_connector(gateway: Arc<Gateway>, client: &str) -> SharedHttpConnector {
    SharedHttpConnector::new(InProcess { gateway, client: client.into(), read_timeout: None })
}

#[derive(Clone)]
struct InProcess {
    gateway: Arc<Gateway>,
    client: Arc<str>,
    read_timeout: Option<Duration>,
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcess").field("client", &self.client).finish_non_exhaustive()
    }
}

impl HttpClient for InProcess {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Self { read_timeout: settings.read_timeout(), ..self.clone() })
    }
}

impl HttpConnector for InProcess {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let this = self.clone();
        HttpConnectorFuture::new(async move {
            // The SDK leaves this timeout to the connector.
            let Some(limit) = this.read_timeout else { return this.answer(request).await };
            match tokio::time::timeout(limit, this.answer(request)).await {
                Ok(reply) => reply,
                Err(elapsed) => Err(ConnectorError::timeout(elapsed.into())),
            }
        })
    }
}

impl InProcess {
    async fn answer(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let request =
            request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
        let (parts, body) = request.into_parts();
        let body: Bytes = body.collect().await.map_err(ConnectorError::user)?.to_bytes();
        let reply = self
            .gateway
            .answer(&self.client, http::Request::from_parts(parts, body))
            .await
            // The error kind that the SDK's own connector reports for a broken connection.
            .map_err(|broken| {
                ConnectorError::other(broken.into(), Some(ErrorKind::TransientError))
            })?;
        HttpResponse::try_from(reply.map(SdkBody::from_body_1_x))
            .map_err(|error| ConnectorError::other(error.into(), None))
    }
}
