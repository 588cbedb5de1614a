//! The options of the service.

use std::time::Duration;

/// The options of the service.
#[derive(Clone, Debug)]
pub(crate) struct KinesisOptions {
    /// Whether the rates of a shard are enforced; sizes always are.
    pub enforce_limits: bool,
    /// The duration of CREATING, UPDATING and DELETING.
    pub transition: Duration,
    /// The account in resource names.
    pub account: String,
    /// The region in resource names.
    pub region: String,
}

impl Default for KinesisOptions {
    fn default() -> Self {
        Self {
            enforce_limits: false,
            transition: Duration::from_millis(100),
            account: "000000000000".to_owned(),
            region: "us-east-1".to_owned(),
        }
    }
}
