//! From flags, environment and profile to an AWS configuration, and to the place it leads to.
//!
//! Region: the flag, else the environment, else the profile, else us-east-1 as the workshop's
//! client had it. Credentials and endpoint are found as every AWS tool finds them. Makes no call.

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{Region, SdkConfig};

use crate::place::{Place, RegionSource};
use crate::target::Target;

const DEFAULT_REGION: &str = "us-east-1";

/// Finds the configuration for `target`, and the place that messages name.
///
/// # Cancel safety
/// Dropping the future has no effect: it only reads the environment and files.
pub async fn configure(target: &Target) -> (SdkConfig, Place) {
    let (region, region_source) = region(target.region.as_deref()).await;
    let mut loader = kcl_lite::aws::config().region(Region::new(region.clone()));
    if let Some(url) = &target.endpoint_url {
        loader = loader.endpoint_url(url);
    }
    let config = loader.load().await;
    let place = Place {
        stream: target.stream.clone(),
        region,
        region_source,
        endpoint_url: config.endpoint_url().map(str::to_owned),
    };
    (config, place)
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
