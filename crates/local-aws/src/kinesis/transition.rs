//! States of a stream or a consumer that end with time, looked up against the clock.

use serde::{Deserialize, Serialize};

/// A state of a stream or a consumer that ends by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Phase {
    Creating,
    Updating,
    Deleting,
}

/// A phase and its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Transition {
    pub phase: Phase,
    pub until_ms: i64,
}

/// What a stream or a consumer is at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Status {
    Creating,
    Active,
    Updating,
    Deleting,
    /// Deleted and no longer to be seen.
    Gone,
}

impl Status {
    pub(super) fn at(transition: Option<Transition>, now_ms: i64) -> Self {
        match transition {
            Some(Transition { phase, until_ms }) if now_ms < until_ms => match phase {
                Phase::Creating => Self::Creating,
                Phase::Updating => Self::Updating,
                Phase::Deleting => Self::Deleting,
            },
            Some(Transition { phase: Phase::Deleting, until_ms: _ }) => Self::Gone,
            Some(_) | None => Self::Active,
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Active => "ACTIVE",
            Self::Updating => "UPDATING",
            Self::Deleting => "DELETING",
            Self::Gone => "GONE",
        }
    }

    /// Whether records can be put and got.
    pub(super) fn serves_records(self) -> bool {
        matches!(self, Self::Active | Self::Updating)
    }
}
