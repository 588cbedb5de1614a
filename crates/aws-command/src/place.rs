//! The name of a stream in messages: stream, region, endpoint.
//!
//! Plain data; never looks anything up.

use std::fmt;

/// The source of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionSource {
    /// The flag `--region`.
    Flag,
    /// The ARN of the stream.
    Arn,
    /// AWS_REGION or AWS_DEFAULT_REGION.
    Environment,
    /// The profile.
    Profile,
    /// None of these: the default.
    Default,
}

impl fmt::Display for RegionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "from -region",
            Self::Arn => "from the ARN",
            Self::Environment => "from the environment",
            Self::Profile => "from the AWS profile",
            Self::Default => "the default",
        })
    }
}

/// The stream and the region and endpoints where it is accessed.
#[derive(Debug, Clone)]
pub struct Place {
    /// The stream's name.
    pub stream: String,
    /// Its region.
    pub region: String,
    /// The source of the region.
    pub region_source: RegionSource,
    /// The endpoint of Kinesis, unless it is the region's own.
    pub endpoint_url: Option<String>,
    /// The endpoint of DynamoDB, unless it is the region's own or no table is used.
    pub table_endpoint_url: Option<String>,
}

impl Place {
    /// Returns the same place for a command that uses no table.
    #[must_use]
    pub fn without_table(self) -> Self {
        Self { table_endpoint_url: self.endpoint_url.clone(), ..self }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream `{}` in region {} ({}", self.stream, self.region, self.region_source)?;
        match (&self.endpoint_url, &self.table_endpoint_url) {
            (None, None) => write!(f, ")"),
            (Some(url), Some(table)) if url == table => write!(f, ", at {url})"),
            (Some(url), Some(table)) => write!(f, ", Kinesis at {url}, DynamoDB at {table})"),
            (Some(url), None) => write!(f, ", Kinesis at {url})"),
            (None, Some(table)) => write!(f, ", DynamoDB at {table})"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn place() -> Place {
        Place {
            stream: "wildrydes".into(),
            region: "us-west-2".into(),
            region_source: RegionSource::Flag,
            endpoint_url: Some("http://127.0.0.1:9".into()),
            table_endpoint_url: Some("http://127.0.0.1:9".into()),
        }
    }

    #[test]
    fn a_place_names_the_stream_the_region_and_who_chose_it() {
        assert_eq!(
            place().to_string(),
            "stream `wildrydes` in region us-west-2 (from -region, at http://127.0.0.1:9)"
        );
        let place = Place {
            region_source: RegionSource::Default,
            endpoint_url: None,
            table_endpoint_url: None,
            ..place()
        };
        assert_eq!(place.to_string(), "stream `wildrydes` in region us-west-2 (the default)");
    }

    #[test]
    fn endpoints_are_named_by_service_where_they_differ() {
        let with = |kinesis: Option<&str>, dynamodb: Option<&str>| Place {
            endpoint_url: kinesis.map(Into::into),
            table_endpoint_url: dynamodb.map(Into::into),
            ..place()
        };
        for (place, words) in [
            (with(Some("a"), Some("b")), "(from -region, Kinesis at a, DynamoDB at b)"),
            (with(Some("a"), None), "(from -region, Kinesis at a)"),
            (with(None, Some("b")), "(from -region, DynamoDB at b)"),
            (with(None, Some("b")).without_table(), "(from -region)"),
            (with(Some("a"), Some("b")).without_table(), "(from -region, at a)"),
        ] {
            assert!(place.to_string().ends_with(words), "{place}");
        }
    }
}
