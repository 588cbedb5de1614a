//! Amazon resource names of streams and consumers.

use crate::kinesis::error::{access_denied, invalid_argument};
use crate::kinesis::stream::{StreamName, is_name};
use crate::wire::ApiError;

/// The account and the region of all streams: the middle of every ARN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub region: String,
    pub account: String,
}

/// The resource that an ARN names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Resource {
    Stream(StreamName),
    /// A consumer; its whole ARN distinguishes it from an earlier one of the same name.
    Consumer {
        stream: StreamName,
        name: String,
    },
}

impl Place {
    pub(super) fn stream_arn(&self, stream: &StreamName) -> String {
        format!("arn:aws:kinesis:{}:{}:stream/{stream}", self.region, self.account)
    }

    pub(super) fn consumer_arn(&self, stream: &StreamName, name: &str, created_ms: i64) -> String {
        format!("{}/consumer/{name}:{}", self.stream_arn(stream), created_ms / 1_000)
    }

    /// Parses an ARN.
    ///
    /// # Errors
    ///
    /// `InvalidArgumentException` if it names neither a stream nor a consumer of this region,
    /// `AccessDeniedException` if it names one of another account: no stream here has a policy that
    /// shares it.
    pub(super) fn read(&self, arn: &str) -> Result<Resource, ApiError> {
        let (account, resource) = self.parse(arn).ok_or_else(|| {
            let region = &self.region;
            invalid_argument(format!("{arn} is not the ARN of a stream or a consumer in {region}."))
        })?;
        if account == self.account { Ok(resource) } else { Err(access_denied(&self.account, arn)) }
    }

    /// Returns the account and its resource.
    fn parse<'a>(&self, arn: &'a str) -> Option<(&'a str, Resource)> {
        let mut parts = arn.splitn(6, ':');
        let (scheme, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
        let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = scheme == "arn"
            && partition.starts_with("aws")
            && service == "kinesis"
            && region == self.region
            && account.len() == self.account.len()
            && account.bytes().all(|byte| byte.is_ascii_digit());
        if !ours {
            return None;
        }
        let path = resource.strip_prefix("stream/")?;
        let Some((stream, consumer)) = path.split_once("/consumer/") else {
            return StreamName::new(path).ok().map(|stream| (account, Resource::Stream(stream)));
        };
        let (name, created) = consumer.split_once(':')?;
        let created_is_number = created.bytes().all(|byte| byte.is_ascii_digit());
        (is_name(name) && created_is_number).then_some(())?;
        let stream = StreamName::new(stream).ok()?;
        Some((account, Resource::Consumer { stream, name: name.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { region: "us-east-1".to_owned(), account: "000000000000".to_owned() }
    }

    #[test]
    fn names_read_back() {
        let stream = StreamName::new("wildrydes").unwrap();
        let arn = place().stream_arn(&stream);
        assert_eq!(arn, "arn:aws:kinesis:us-east-1:000000000000:stream/wildrydes");
        assert_eq!(place().read(&arn).unwrap(), Resource::Stream(stream.clone()));
        let arn = place().consumer_arn(&stream, "app", 1_700_000_000_123);
        let name = "app".to_owned();
        assert_eq!(place().read(&arn).unwrap(), Resource::Consumer { stream, name });
    }

    #[test]
    fn other_texts_are_refused() {
        for arn in [
            "",
            "wildrydes",
            "arn:aws:kinesis:us-east-1:000000000000:stream/",
            "arn:aws:kinesis:us-east-1:11111:stream/wildrydes",
            "arn:aws:kinesis:eu-west-1:000000000000:stream/wildrydes",
            "arn:aws:dynamodb:us-east-1:000000000000:table/wildrydes",
            "arn:aws:kinesis:us-east-1:000000000000:stream/wildrydes/consumer/app",
            "arn:aws:kinesis:us-east-1:000000000000:stream/wildrydes/consumer/app:x",
        ] {
            assert_eq!(place().read(arn).unwrap_err().code, "InvalidArgumentException", "{arn}");
        }
    }

    #[test]
    fn what_another_account_owns_is_denied() {
        let owner = Place { account: "123456789012".to_owned(), ..place() };
        let stream = StreamName::new("wildrydes").unwrap();
        for arn in [owner.stream_arn(&stream), owner.consumer_arn(&stream, "app", 1_000)] {
            assert_eq!(place().read(&arn).unwrap_err().code, "AccessDeniedException", "{arn}");
        }
    }
}
