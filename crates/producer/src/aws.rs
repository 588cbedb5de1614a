//! From flags and environment to a Kinesis client, and to the place it talks to.
//!
//! Region: the flag, else the environment, else the profile, else us-east-1 as the workshop's
//! client had it. Credentials and endpoint are found as every AWS tool finds them. Makes no call.

use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::SharedHttpClient;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};

use crate::failure::{Place, RegionSource};
use crate::options::Options;

const DEFAULT_REGION: &str = "us-east-1";

/// An attempt that takes longer is lost; healthy puts take milliseconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The client for these options, and the place that messages name.
pub(crate) async fn connect(options: &Options) -> (Client, Place) {
    let (region, region_source) = region(options.region.as_deref()).await;
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region.clone()))
        .http_client(https_client());
    if let Some(url) = &options.endpoint_url {
        loader = loader.endpoint_url(url);
    }
    let config = loader.load().await;
    let place = Place {
        stream: options.stream.clone(),
        region,
        region_source,
        endpoint_url: config.endpoint_url().map(str::to_owned),
    };
    (client(&config), place)
}

/// A client that tries each call once: retries are ours, so that they can be seen and bounded.
pub(crate) fn client(config: &SdkConfig) -> Client {
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let config = aws_sdk_kinesis::config::Builder::from(config)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .build();
    Client::from_conf(config)
}

/// The SDK's default client is compiled out because it would bring a C library; this one needs a
/// C compiler only.
fn https_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https()
}

/// Never asks the instance metadata service: off EC2 that takes seconds to fail.
async fn region(flag: Option<&str>) -> (String, RegionSource) {
    if let Some(region) = flag {
        return (region.to_owned(), RegionSource::Flag);
    }
    if let Some(region) = EnvironmentVariableRegionProvider::new().region().await {
        return (region.to_string(), RegionSource::Environment);
    }
    if let Some(region) = ProfileFileRegionProvider::builder().build().region().await {
        return (region.to_string(), RegionSource::Profile);
    }
    (DEFAULT_REGION.to_owned(), RegionSource::Default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_kinesis::config::{Credentials, SharedCredentialsProvider};

    use crate::batch::Entry;
    use crate::failure::FailureKind;
    use crate::send::Sender;

    /// The real HTTP client, and a port that was free a moment ago.
    #[tokio::test]
    async fn nobody_listening_is_unreachable_in_plain_words() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let keys = Credentials::new("producer", "not-a-secret", None, None, "test");
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static(DEFAULT_REGION))
            .credentials_provider(SharedCredentialsProvider::new(keys))
            .endpoint_url(url)
            .http_client(https_client())
            .build();
        let entry = Entry { key: "Shadowfax".into(), data: Vec::new() };
        let sender = Sender::new(client(&config), "wildrydes".into());
        let failure = sender.put(&[entry.into()]).await.unwrap_err();
        assert_eq!((failure.kind, failure.is_transient()), (FailureKind::Unreachable, true));
        assert!(failure.reason.starts_with("tcp connect error: "), "{}", failure.reason);
    }
}
