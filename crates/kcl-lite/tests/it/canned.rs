//! Canned replies that the in-process services cannot produce, in order per operation; all other requests
//! reach the services. Never delays anything.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use aws_config::SdkConfig;
use aws_smithy_runtime_api::client::http::{
    HttpClient as _, HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use local_aws::LocalAws;

/// A reply, and how often it is returned.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) operation: &'static str,
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) times: usize,
}

impl Reply {
    /// Creates an error with the service's text, returned `times` times.
    pub(crate) fn error(operation: &'static str, code: &str, words: &str, times: usize) -> Self {
        let body = serde_json::json!({ "__type": code, "message": words }).to_string();
        Self { operation, status: 400, body, times }
    }
}

/// Returns the configuration of `client`, whose requests get these replies in order, then real ones.
pub(crate) fn config(local: &LocalAws, client: &str, replies: Vec<Reply>) -> SdkConfig {
    let behind = local.http_client(client);
    let script = Arc::new(Mutex::new(VecDeque::from(replies)));
    let http = http_client_fn(move |settings, components| {
        SharedHttpConnector::new(Canned {
            script: Arc::clone(&script),
            behind: behind.http_connector(settings, components),
        })
    });
    local.sdk_config(client).into_builder().http_client(http).build()
}

struct Canned {
    script: Arc<Mutex<VecDeque<Reply>>>,
    behind: SharedHttpConnector,
}

impl fmt::Debug for Canned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canned").finish_non_exhaustive()
    }
}

impl HttpConnector for Canned {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default();
        let mut script = self.script.lock();
        let next = script.iter_mut().find(|it| it.times > 0 && it.operation == operation);
        let Some(next) = next else { return self.behind.call(request) };
        next.times -= 1;
        let status = StatusCode::try_from(next.status).unwrap();
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(next.body.clone()))))
    }
}
