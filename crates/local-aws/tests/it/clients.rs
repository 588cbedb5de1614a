//! SDK clients for the tests, in process and over a socket.

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use local_aws::{LocalAws, REGION, Server};

/// Configuration of a client that talks HTTP to `endpoint`.
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

/// Both ways to the same services, so that a test can hold them to the same behaviour.
pub(crate) async fn both_ways(local: &LocalAws, client: &str) -> (Server, [SdkConfig; 2]) {
    let server = local.serve().await.unwrap();
    let ways = [local.sdk_config(client), over_http(&server.endpoint_url(), client)];
    (server, ways)
}
