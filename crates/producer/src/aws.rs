//! The Kinesis client of the producer: one attempt per call, with a timeout.
//!
//! Makes no call.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_kinesis::Client;

/// An attempt that takes longer is given up; healthy puts take milliseconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates a client without retries: the producer retries itself, so that retries are visible and
/// bounded.
pub(crate) fn client(config: &SdkConfig) -> Client {
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let config = aws_sdk_kinesis::config::Builder::from(config)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .build();
    Client::from_conf(config)
}

#[cfg(test)]
mod tests {
    use aws_config::{BehaviorVersion, Region};
    use aws_sdk_kinesis::config::{Credentials, SharedCredentialsProvider};

    use kcl_lite::ServiceErrorKind;

    use super::*;
    use crate::batch::Entry;
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
            .region(Region::from_static("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(keys))
            .endpoint_url(url)
            .http_client(kcl_lite::aws::https_client())
            .build();
        let entry = Entry { key: "Shadowfax".into(), data: Vec::new() };
        let sender = Sender::new(client(&config), "wildrydes".into());
        let failure = sender.put(&[entry.into()]).await.unwrap_err();
        assert_eq!((failure.kind, &failure.code), (ServiceErrorKind::Unavailable, &None));
        assert!(failure.message.starts_with("tcp connect error: "), "{}", failure.message);
    }
}
