//! Resolution of flags, environment and profile to an AWS configuration and a place.
//!
//! The region comes from the flag, else the ARN, else the environment, else the profile, else it is
//! us-east-1 as in the workshop's client. Credentials and endpoints are found as every AWS tool finds
//! them. Makes no call to Kinesis or DynamoDB.

use aws_config::SdkConfig;
use kcl_lite::aws::{Found, Lookup, without_password};

use crate::place::{Place, RegionSource};
use crate::target::Target;

const DEFAULT_REGION: &str = "us-east-1";

/// Resolves the configuration for `target`, and the place that messages name.
///
/// # Errors
/// A setting of the environment or the profile can never work: a line that names it and says what to
/// do.
///
/// # Cancel safety
/// Dropping the future has no effect: it only reads the environment and files.
pub async fn configure(target: &Target) -> Result<(Found, Place), String> {
    // Never queries the instance metadata service for a region: outside EC2 that takes seconds to
    // fail.
    let mut lookup = Lookup::new().default_region(DEFAULT_REGION);
    if let Some(region) = target.region.as_deref().or(target.region_of_arn()) {
        lookup = lookup.region(region);
    }
    if let Some(url) = &target.endpoint_url {
        lookup = lookup.endpoint_url(url);
    }
    let found = lookup.load().await.map_err(|error| error.to_string())?;
    let shown = |url: &Option<String>| url.as_deref().map(without_password);
    let place = Place {
        stream: target.stream().to_owned(),
        region: found.region.clone(),
        region_source: source(found.region_source, target),
        endpoint_url: shown(&found.kinesis_endpoint),
        table_endpoint_url: shown(&found.dynamodb_endpoint),
    };
    Ok((found, place))
}

fn source(source: kcl_lite::aws::RegionSource, target: &Target) -> RegionSource {
    match source {
        kcl_lite::aws::RegionSource::Given if target.region.is_none() => RegionSource::Arn,
        kcl_lite::aws::RegionSource::Given => RegionSource::Flag,
        kcl_lite::aws::RegionSource::Environment => RegionSource::Environment,
        kcl_lite::aws::RegionSource::Profile => RegionSource::Profile,
        kcl_lite::aws::RegionSource::Instance | kcl_lite::aws::RegionSource::Default | _ => {
            RegionSource::Default
        }
    }
}

/// Loads credentials once, so that missing credentials are reported before any call fails without
/// them.
///
/// # Errors
/// There are no credentials, and waiting does not help: a line that says why, where, and what to
/// do.
///
/// # Cancel safety
/// Dropping the future has no effect, except that a `credential_process` may have been started.
pub async fn with_credentials(found: Found, place: &Place) -> Result<SdkConfig, String> {
    let found = found.with_credentials().await.map_err(|missing| {
        format!("no AWS credentials for {place}: {}; hint: {}", missing.reason, missing.remedy)
    })?;
    Ok(found.config)
}
