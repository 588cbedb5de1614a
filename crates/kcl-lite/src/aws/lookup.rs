//! Region, endpoints and credentials from environment and profile, checked before the first call.
//!
//! Owns the order of precedence and the valid values. A blank value is not set. The only call is to the
//! instance metadata service, for a region that neither environment nor profile sets.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::imds;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::profile::ProfileSet;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use super::client::{Https, Network};
use super::environment::{retries, variable};
use super::profile;
use super::proxy::without_password;
use crate::error::{Error, ErrorKind};

/// The timeout of the instance metadata service, which answers in milliseconds where it exists.
const INSTANCE_TIMEOUT: Duration = Duration::from_secs(1);

/// The maximum length of a region, which is a label of a host name.
const LONGEST_REGION: usize = 63;

/// The SDK's names of the services, and the suffixes of their environment variables.
const KINESIS: (&str, &str) = ("Kinesis", "KINESIS");
const DYNAMODB: (&str, &str) = ("DynamoDB", "DYNAMODB");

/// A lookup of region, endpoints and credentials in the way of every AWS tool, with checks.
///
/// The AWS SDK for Rust accepts a profile that does not exist, an invalid region or an endpoint without a
/// scheme, and its calls then fail with unrelated errors. This lookup fails immediately and names the
/// variable or the profile.
///
/// # Example
/// ```no_run
/// # async fn example() -> Result<(), kcl_lite::Error> {
/// let found = kcl_lite::aws::Lookup::new().default_region("us-east-1").load().await?;
/// let worker = kcl_lite::Worker::builder("billing-app", "orders").aws_config(found.config);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Lookup {
    region: Option<String>,
    endpoint_url: Option<String>,
    default_region: Option<String>,
}

/// The source of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionSource {
    /// [`Lookup::region`].
    Given,
    /// `AWS_REGION` or `AWS_DEFAULT_REGION`.
    Environment,
    /// The profile.
    Profile,
    /// The instance metadata service of EC2.
    Instance,
    /// [`Lookup::default_region`].
    Default,
}

/// The result of a [`Lookup`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Found {
    /// Region, credentials, endpoints and an HTTPS client, for the clients of all services.
    pub config: SdkConfig,
    /// The region.
    pub region: String,
    /// The source of the region.
    pub region_source: RegionSource,
    /// The endpoint of Kinesis, if it is not that of the region.
    pub kinesis_endpoint: Option<String>,
    /// The endpoint of DynamoDB, if it is not that of the region.
    pub dynamodb_endpoint: Option<String>,
}

impl Lookup {
    /// Creates a lookup that reads everything from environment and profile.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the region, which overrides environment and profile.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Sets the endpoint of all services, which overrides environment and profile.
    pub fn endpoint_url(mut self, url: impl Into<String>) -> Self {
        self.endpoint_url = Some(url.into());
        self
    }

    /// Sets the region that is used when neither environment nor profile sets one. The instance metadata
    /// service is then not called.
    pub fn default_region(mut self, region: impl Into<String>) -> Self {
        self.default_region = Some(region.into());
        self
    }

    /// Loads and checks the configuration.
    ///
    /// # Errors
    /// Kind `Config`: profile files that cannot be parsed, a profile that does not exist, roles in a loop, a
    /// missing or malformed region, a malformed endpoint or proxy, no certificate authority for an HTTPS
    /// endpoint. The message names the variable or profile and the remedy.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn load(self) -> Result<Found, Error> {
        Box::pin(self.find()).await.map_err(|words| Error::new(ErrorKind::Config, words))
    }

    async fn find(self) -> Result<Found, String> {
        let profiles = profile::load().await?;
        let of_profile = |key: &str| blank_is_unset(profiles.get(key));
        let network = Arc::new(Network::new(|name: &str| {
            variable(name).or_else(|| (name == "AWS_CA_BUNDLE").then(|| of_profile("ca_bundle"))?)
        }));
        let http = SharedHttpClient::new(Https::new(Arc::clone(&network)));
        let (region, region_source) = self.region_of(&profiles, &http).await?;
        let attempts = variable("AWS_MAX_ATTEMPTS").or_else(|| of_profile("max_attempts"));
        let mode = variable("AWS_RETRY_MODE").or_else(|| of_profile("retry_mode"));
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(region.clone()))
            .retry_config(retries(attempts, mode))
            // Set explicitly, so that a blank AWS_PROFILE counts as not set.
            .profile_name(profiles.selected_profile());
        if let Some(url) = &self.endpoint_url {
            loader = loader.endpoint_url(checked_endpoint("the endpoint", url.clone())?);
        }
        let config = loader.load().await;
        let endpoint = |service| match &self.endpoint_url {
            Some(url) => Ok(Some(url.clone())),
            None => endpoint_of(service, &config, &profiles),
        };
        let endpoints = Endpoints {
            kinesis: endpoint(KINESIS)?,
            dynamodb: endpoint(DYNAMODB)?,
            others: config,
        };
        endpoints.check(&network, &region)?;
        Ok(Found {
            kinesis_endpoint: endpoints.kinesis.clone(),
            dynamodb_endpoint: endpoints.dynamodb.clone(),
            config: endpoints.config(),
            region,
            region_source,
        })
    }

    async fn region_of(
        &self,
        profiles: &ProfileSet,
        http: &SharedHttpClient,
    ) -> Result<(String, RegionSource), String> {
        if let Some(region) = &self.region {
            return Ok((checked_region("the region", region.clone())?, RegionSource::Given));
        }
        for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
            if let Some(region) = variable(name) {
                return Ok((checked_region(name, region)?, RegionSource::Environment));
            }
        }
        if let Some(region) = blank_is_unset(profiles.get("region")) {
            let name = format!("`region` of the AWS profile `{}`", profiles.selected_profile());
            return Ok((checked_region(&name, region)?, RegionSource::Profile));
        }
        if let Some(region) = &self.default_region {
            return Ok((region.clone(), RegionSource::Default));
        }
        match instance_region(http).await {
            Some(region) => Ok((region, RegionSource::Instance)),
            None => Err(NO_REGION.to_owned()),
        }
    }
}

const NO_REGION: &str = "no AWS region is set: set AWS_REGION, or `region` in the profile, or pass a \
    configuration with a region to `aws_config`";

/// Returns the region of the EC2 instance. One attempt is enough, because outside of EC2 nothing answers.
async fn instance_region(http: &SharedHttpClient) -> Option<String> {
    let client = imds::Client::builder()
        .configure(&ProviderConfig::default().with_http_client(http.clone()))
        .max_attempts(1)
        .connect_timeout(INSTANCE_TIMEOUT)
        .read_timeout(INSTANCE_TIMEOUT)
        .build();
    let region = ImdsRegionProvider::builder().imds_client(client).build().region().await?;
    Some(region.to_string()).filter(|region| is_region(region))
}

/// Returns the endpoint that environment or profile set for a service, in the order of the AWS SDKs.
fn endpoint_of(
    (service, suffix): (&str, &str),
    config: &SdkConfig,
    profiles: &ProfileSet,
) -> Result<Option<String>, String> {
    let ignored = variable("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
        .or_else(|| blank_is_unset(profiles.get("ignore_configured_endpoint_urls")));
    if ignored.is_some_and(|ignored| ignored.trim().eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    for name in [&format!("AWS_ENDPOINT_URL_{suffix}"), "AWS_ENDPOINT_URL"] {
        if let Some(url) = variable(name) {
            return checked_endpoint(name, url).map(Some);
        }
    }
    // The endpoint in the `services` section of the profile, otherwise in the profile itself. The empty
    // name matches no variable, so the SDK reads only the profile.
    let key =
        ServiceConfigKey::builder().service_id(service).env("").profile("endpoint_url").build();
    let of_service =
        config.service_config().zip(key.ok()).and_then(|(it, key)| it.load_config(key));
    let url = blank_is_unset(of_service.as_deref())
        .or_else(|| blank_is_unset(profiles.get("endpoint_url")));
    let name =
        format!("`endpoint_url` of {service} in the AWS profile `{}`", profiles.selected_profile());
    url.map(|url| checked_endpoint(&name, url)).transpose()
}

/// The checked endpoints, which replace those that the SDK would look up itself.
struct Endpoints {
    kinesis: Option<String>,
    dynamodb: Option<String>,
    /// The configuration as the SDK loaded it, which stays in effect for other services.
    others: SdkConfig,
}

impl Endpoints {
    fn check(&self, network: &Network, region: &str) -> Result<(), String> {
        for (service, endpoint) in [("Kinesis", &self.kinesis), ("DynamoDB", &self.dynamodb)] {
            excluded(&self.others, endpoint.as_deref())?;
            let regional = || format!("https://{}.{region}.amazonaws.com", service.to_lowercase());
            let url = endpoint.clone().unwrap_or_else(regional);
            if let Some(obstacle) = network.obstacle(&url) {
                return Err(format!("{} cannot be called: {obstacle}", without_password(&url)));
            }
        }
        Ok(())
    }

    fn config(self) -> SdkConfig {
        let mut builder = self.others.to_builder();
        builder = builder.service_config(self);
        builder.build()
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoints")
            .field("kinesis", &self.kinesis)
            .field("dynamodb", &self.dynamodb)
            .finish_non_exhaustive()
    }
}

impl LoadServiceConfig for Endpoints {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        match (key.env(), key.service_id()) {
            ("AWS_ENDPOINT_URL", "Kinesis") => self.kinesis.clone(),
            ("AWS_ENDPOINT_URL", "DynamoDB") => self.dynamodb.clone(),
            _ => self.others.service_config()?.load_config(key),
        }
    }
}

/// Rejects an explicit endpoint together with FIPS or dual-stack endpoints, which the SDK cannot combine.
fn excluded(config: &SdkConfig, endpoint: Option<&str>) -> Result<(), String> {
    let Some(url) = endpoint else { return Ok(()) };
    for (is_asked, name) in [
        (config.use_fips(), "AWS_USE_FIPS_ENDPOINT"),
        (config.use_dual_stack(), "AWS_USE_DUALSTACK_ENDPOINT"),
    ] {
        if is_asked == Some(true) {
            return Err(format!(
                "{name} and the endpoint URL {} exclude each other: unset one of them",
                without_password(url)
            ));
        }
    }
    Ok(())
}

/// Checks a configuration that the user has passed in.
pub(crate) fn check(config: &SdkConfig) -> Result<(), Error> {
    let checked = (|| {
        let region = config.region().ok_or(NO_REGION)?;
        checked_region("the region of `aws_config`", region.to_string())?;
        if let Some(url) = config.endpoint_url() {
            checked_endpoint("the endpoint of `aws_config`", url.to_owned())?;
        }
        excluded(config, config.endpoint_url())
    })();
    checked.map_err(|words| Error::new(ErrorKind::Config, words))
}

fn blank_is_unset(value: Option<&str>) -> Option<String> {
    value.filter(|value| !value.trim().is_empty()).map(str::to_owned)
}

fn checked_region(name: &str, region: String) -> Result<String, String> {
    if is_region(&region) {
        return Ok(region);
    }
    Err(format!("{name} `{}` is not a region; one looks like us-west-2", region.escape_debug()))
}

fn checked_endpoint(name: &str, url: String) -> Result<String, String> {
    if is_endpoint_url(&url) {
        return Ok(url);
    }
    let shown = without_password(&url);
    Err(format!(
        "{name} `{}` must begin with http:// or https:// and name a host",
        shown.escape_debug()
    ))
}

/// Returns whether `text` can be a region: a label of a host name.
#[must_use]
pub fn is_region(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=LONGEST_REGION).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Returns whether `text` can be an endpoint: an HTTP or HTTPS URL with a host.
#[must_use]
pub fn is_endpoint_url(text: &str) -> bool {
    let has_scheme = text.starts_with("http://") || text.starts_with("https://");
    let host = |uri: http::Uri| uri.host().is_some_and(|host| !host.is_empty());
    has_scheme && text.parse().is_ok_and(host)
}
