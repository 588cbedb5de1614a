//! Which stream is meant, in the words of every message: stream, region, endpoint.
//!
//! Plain data; never looks anything up.

use std::fmt;

/// Who said which region to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionSource {
    /// The flag `--region`.
    Flag,
    /// AWS_REGION or AWS_DEFAULT_REGION.
    Environment,
    /// The profile.
    Profile,
    /// Nobody: the default.
    Default,
}

impl fmt::Display for RegionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "from -region",
            Self::Environment => "from the environment",
            Self::Profile => "from the AWS profile",
            Self::Default => "the default",
        })
    }
}

/// The stream and where it is looked for.
#[derive(Debug, Clone)]
pub struct Place {
    /// The stream's name.
    pub stream: String,
    /// The region it is in.
    pub region: String,
    /// Who named the region.
    pub region_source: RegionSource,
    /// The endpoint, where it is not the region's own.
    pub endpoint_url: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream `{}` in region {} ({}", self.stream, self.region, self.region_source)?;
        match &self.endpoint_url {
            Some(url) => write!(f, ", at {url})"),
            None => write!(f, ")"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            stream: "wildrydes".into(),
            region: "us-west-2".into(),
            region_source: RegionSource::Flag,
            endpoint_url: Some("http://127.0.0.1:9".into()),
        }
    }

    #[test]
    fn a_place_names_the_stream_the_region_and_who_chose_it() {
        assert_eq!(
            place().to_string(),
            "stream `wildrydes` in region us-west-2 (from -region, at http://127.0.0.1:9)"
        );
        let place = Place { region_source: RegionSource::Default, endpoint_url: None, ..place() };
        assert_eq!(place.to_string(), "stream `wildrydes` in region us-west-2 (the default)");
    }
}
