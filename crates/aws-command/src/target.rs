//! The flags that select the stream, which both commands have, checked.
//!
//! Never reads the environment.

use kcl_lite::aws::{is_endpoint_url, is_region, without_password};

/// Kinesis limits a stream name to 128 characters.
const MAX_STREAM: usize = 128;

/// The number of digits of an account ID.
const ACCOUNT: usize = 12;

/// The checked values of `--stream`, `--region` and `--endpoint-url`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    stream: String,
    pub(crate) region: Option<String>,
    pub(crate) endpoint_url: Option<String>,
}

impl Target {
    /// Checks the values of the three flags. A stream is given by its name or by its ARN.
    ///
    /// # Errors
    /// A line that names the flag, its value and what is allowed.
    pub fn new(
        stream: String,
        region: Option<String>,
        endpoint_url: Option<String>,
    ) -> Result<Self, String> {
        let target = Self {
            stream,
            region: region.map(checked_region).transpose()?,
            endpoint_url: endpoint_url.map(checked_endpoint).transpose()?,
        };
        target.check_stream()?;
        Ok(target)
    }

    /// Returns the name or the ARN of the stream, as given.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Returns whether the stream is given by its ARN.
    #[must_use]
    pub fn is_arn(&self) -> bool {
        self.stream.starts_with("arn:")
    }

    /// Returns the region in the stream's ARN.
    pub(crate) fn region_of_arn(&self) -> Option<&str> {
        self.stream.split(':').nth(3).filter(|_| self.is_arn())
    }

    fn check_stream(&self) -> Result<(), String> {
        let stream = &self.stream;
        if !self.is_arn() {
            return require(is_name(stream), || {
                format!(
                    "--stream `{stream}` is not a stream name: \
                     1 to {MAX_STREAM} letters, digits, `_`, `.` and `-`; nor is it an ARN"
                )
            });
        }
        require(is_arn(stream), || {
            format!(
                "--stream `{stream}` is not the ARN of a stream; \
                 one looks like arn:aws:kinesis:us-west-2:123456789012:stream/wildrydes"
            )
        })?;
        let of_arn = self.region_of_arn();
        require(self.region.is_none() || self.region.as_deref() == of_arn, || {
            format!(
                "--region `{}` is not the region of --stream `{stream}`; leave --region out",
                self.region.as_deref().unwrap_or_default()
            )
        })
    }
}

fn require(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (1..=MAX_STREAM).contains(&text.len()) && text.chars().all(allowed)
}

fn is_arn(text: &str) -> bool {
    let parts: Vec<_> = text.splitn(6, ':').collect();
    let ["arn", partition, "kinesis", region, account, stream] = parts[..] else { return false };
    partition.starts_with("aws")
        && is_region(region)
        && account.len() == ACCOUNT
        && account.chars().all(|c| c.is_ascii_digit())
        && stream.strip_prefix("stream/").is_some_and(is_name)
}

/// Rejects the placeholder of the workshop's text before it becomes a host name.
fn checked_region(region: String) -> Result<String, String> {
    require(is_region(&region), || {
        format!("--region `{region}` is not a region; one looks like us-west-2")
    })?;
    Ok(region)
}

fn checked_endpoint(url: String) -> Result<String, String> {
    require(is_endpoint_url(&url), || {
        let url = without_password(&url);
        format!("--endpoint-url `{url}` must begin with http:// or https:// and name a host")
    })?;
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kinesis:us-west-2:123456789012:stream/wildrydes";

    fn target(stream: &str, region: Option<&str>, url: Option<&str>) -> Result<Target, String> {
        Target::new(stream.into(), region.map(Into::into), url.map(Into::into))
    }

    #[test]
    fn what_aws_would_refuse_is_refused_with_the_flags_name() {
        assert!(target("wildrydes", Some("us-west-2"), Some("http://127.0.0.1:4566")).is_ok());
        for (refused, named) in [
            (target("", None, None), "--stream `` is not a stream name"),
            (target("wild rydes", None, None), "not a stream name"),
            (target("s", Some("YOUR_REGION_HERE"), None), "us-west-2"),
            (target("s", Some(""), None), "us-west-2"),
            (target("s", None, Some("localhost:4566")), "http://"),
            (target("s", None, Some("http://")), "name a host"),
            (target("s", None, Some("me:secret@localhost")), "`localhost`"),
        ] {
            let message = refused.unwrap_err();
            assert!(message.contains(named), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn an_arn_names_the_stream_and_its_region() {
        for region in [None, Some("us-west-2")] {
            let target = target(ARN, region, None).unwrap();
            assert_eq!((target.stream(), target.region_of_arn()), (ARN, Some("us-west-2")));
        }
        let other = target(ARN, Some("eu-west-1"), None).unwrap_err();
        assert!(other.contains("--region `eu-west-1` is not the region"), "{other}");
        for (part, wrong) in [
            ("kinesis", "dynamodb"),
            ("us-west-2", "US_WEST"),
            ("123456789012", "12345"),
            ("stream/", ""),
            ("wildrydes", "wildrydes/consumer/tail:1"),
        ] {
            let refused = target(&ARN.replace(part, wrong), None, None).unwrap_err();
            assert!(refused.contains("not the ARN of a stream"), "{refused}");
        }
        assert_eq!(target("arn", None, None).unwrap().region_of_arn(), None);
    }
}
