//! Which stream is meant: the flags that both commands have, checked once.
//!
//! Never reads the environment.

/// Kinesis limits a stream name to 128 characters.
const MAX_STREAM: usize = 128;

/// What `--stream`, `--region` and `--endpoint-url` say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub(crate) stream: String,
    pub(crate) region: Option<String>,
    pub(crate) endpoint_url: Option<String>,
}

impl Target {
    /// Checks the values of the three flags.
    ///
    /// # Errors
    /// A line that names the flag, its value and what is allowed.
    pub fn new(
        stream: String,
        region: Option<String>,
        endpoint_url: Option<String>,
    ) -> Result<Self, String> {
        Ok(Self {
            stream: checked_stream(stream)?,
            region: region.map(checked_region).transpose()?,
            endpoint_url: endpoint_url.map(checked_endpoint).transpose()?,
        })
    }

    /// Returns the name of the stream.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.stream
    }
}

fn require(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

fn checked_stream(stream: String) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    require((1..=MAX_STREAM).contains(&stream.len()) && stream.chars().all(allowed), || {
        format!(
            "--stream `{stream}` is not a stream name: \
             1 to {MAX_STREAM} letters, digits, `_`, `.` and `-`"
        )
    })?;
    Ok(stream)
}

/// Catches the placeholder of the workshop's text before it becomes a host name.
fn checked_region(region: String) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    require(!region.is_empty() && region.chars().all(allowed), || {
        format!("--region `{region}` is not a region; one looks like us-west-2")
    })?;
    Ok(region)
}

fn checked_endpoint(url: String) -> Result<String, String> {
    require(url.starts_with("http://") || url.starts_with("https://"), || {
        format!("--endpoint-url `{url}` must begin with http:// or https://")
    })?;
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_aws_would_refuse_is_refused_with_the_flags_name() {
        let target = |stream: &str, region: Option<&str>, url: Option<&str>| {
            Target::new(stream.into(), region.map(Into::into), url.map(Into::into))
        };
        assert!(target("wildrydes", Some("us-west-2"), Some("http://127.0.0.1:4566")).is_ok());
        for (refused, named) in [
            (target("", None, None), "--stream `` is not a stream name"),
            (target("wild rydes", None, None), "not a stream name"),
            (target("s", Some("YOUR_REGION_HERE"), None), "us-west-2"),
            (target("s", Some(""), None), "us-west-2"),
            (target("s", None, Some("localhost:4566")), "http://"),
        ] {
            let message = refused.unwrap_err();
            assert!(message.contains(named), "{message}");
        }
    }
}
