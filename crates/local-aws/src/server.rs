//! Both services on one loopback port, HTTP/1.1 and HTTP/2 without TLS.
//!
//! Owns the listener, the connections and all their tasks: all run in one set, which
//! [`Server::shutdown`] joins and dropping the [`Server`] aborts. Reads complete request bodies up
//! to a limit; replies stream. Never decides on a reply: that is the gateway's job, and below
//! `/_local-aws/` the control interface's.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::body::{Broken, ReplyBody};
use crate::control;
use crate::gateway::{Gateway, caller};

/// 10 MiB of records, the most that PutRecords accepts, are 14 MiB of JSON; BatchWriteItem accepts
/// 16 MiB.
const LARGEST_BODY: usize = 24 << 20;

/// How long [`Server::shutdown`] waits for requests in flight. An event stream or a hung request
/// would never end.
const GRACE: Duration = Duration::from_millis(500);

/// A running server; see [`LocalAws::serve`](crate::LocalAws::serve).
///
/// Dropping it stops it at once, requests in flight included.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    listening: Option<AbortHandle>,
    tasks: Tasks,
}

impl Server {
    pub(crate) async fn bind(gateway: Arc<Gateway>, addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let stop = CancellationToken::new();
        let tasks = Tasks::default();
        let listening = tasks.spawn(accept(listener, gateway, stop.clone(), tasks.clone()));
        Ok(Self { addr, stop, listening, tasks })
    }

    /// Returns the endpoint URL for an SDK.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns the address that it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts no new requests, waits half a second for those in flight, and returns when every
    /// task has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops everything at once.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let mut tasks = self.tasks.take();
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all_ended).await.is_err() {
            tasks.shutdown().await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The listener first: a client that sees its connection end must not be able to connect again.
        // In one set with the connections, it would be aborted in no particular order.
        if let Some(listening) = &self.listening {
            listening.abort();
        }
        drop(self.tasks.take());
    }
}

/// All tasks of a server: the listener, the connections, and the HTTP/2 streams that hyper spawns.
#[derive(Clone, Debug)]
struct Tasks(Arc<Mutex<Option<JoinSet<()>>>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let mut tasks = self.0.lock();
        // After `take` no task starts: the new one is dropped unstarted.
        let tasks = tasks.as_mut()?;
        // The results of ended tasks would otherwise stay until the shutdown.
        while tasks.try_join_next().is_some() {}
        Some(tasks.spawn(task))
    }

    fn take(&self) -> JoinSet<()> {
        self.0.lock().take().unwrap_or_default()
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some(JoinSet::new()))))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

async fn accept(
    listener: TcpListener,
    gateway: Arc<Gateway>,
    stop: CancellationToken,
    tasks: Tasks,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn(serve(stream, gateway.clone(), stop.clone(), tasks.clone()));
            }
            Err(error) => {
                // Usually the process is out of file descriptors, and some become free when
                // connections end.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one connection until it ends.
async fn serve(stream: TcpStream, gateway: Arc<Gateway>, stop: CancellationToken, tasks: Tasks) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "replies on this connection may be slow");
    }
    let mut builder = auto::Builder::new(tasks);
    // The date comes from the clock, which tests move, and not from hyper.
    builder.http1().auto_date_header(false);
    builder.http2().auto_date_header(false);
    let service = service_fn(move |request| respond(gateway.clone(), request));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        ended = connection.as_mut() => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection broke");
    }
}

async fn respond(
    gateway: Arc<Gateway>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Broken> {
    let (parts, body) = request.into_parts();
    let body: Bytes = match Limited::new(body, LARGEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Ok(too_large()),
        Err(_) => return Err(Broken),
    };
    if let Some(path) = parts.uri.path().strip_prefix("/_local-aws/") {
        return Ok(control::answer(&gateway, &parts.method, path, &body));
    }
    let client = caller(&parts.headers).to_owned();
    gateway.answer(&client, Request::from_parts(parts, body)).await
}

fn too_large() -> Response<ReplyBody> {
    let message = format!("the body is larger than {LARGEST_BODY} bytes");
    let error =
        serde_json::json!({ "__type": "RequestEntityTooLargeException", "message": message });
    let mut response = Response::new(ReplyBody::whole(error.to_string().into()));
    *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
    response
}
