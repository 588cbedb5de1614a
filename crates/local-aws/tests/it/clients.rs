//! Clients of local-aws for tests: SDK clients in process and over a socket, and plain HTTP for
//! requests that no SDK sends.

use std::net::SocketAddr;

use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use local_aws::{LocalAws, REGION, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Returns the configuration of a client that uses HTTP to `endpoint`.
pub(crate) fn over_http(endpoint: &str, client: &str) -> SdkConfig {
    let keys = Credentials::new(client, "not-a-secret", None, None, "test");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .endpoint_url(endpoint)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build()
}

/// Returns clients for both ways to the same services, so that a test can require the same
/// behaviour of both.
pub(crate) async fn both_ways(local: &LocalAws, client: &str) -> (Server, [SdkConfig; 2]) {
    let server = local.serve().await.unwrap();
    let ways = [local.sdk_config(client), over_http(&server.endpoint_url(), client)];
    (server, ways)
}

/// Returns the same configuration without retries.
pub(crate) fn without_retries(config: &SdkConfig) -> SdkConfig {
    config.to_builder().retry_config(RetryConfig::disabled()).build()
}

/// Sends one HTTP request on its own connection; returns the reply's status and body.
pub(crate) async fn http(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, String) {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: local\r\nconnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let (head, body) = reply.split_once("\r\n\r\n").expect("every request gets a reply");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}
