//! Where records come from, in the words of every message: stream, region, endpoint.

use std::fmt;

/// Who said which region to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RegionSource {
    Flag,
    Environment,
    Profile,
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
pub(crate) struct Place {
    pub(crate) stream: String,
    pub(crate) region: String,
    pub(crate) region_source: RegionSource,
    pub(crate) endpoint_url: Option<String>,
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
pub(crate) mod tests {
    use super::*;

    pub(crate) fn place() -> Place {
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
