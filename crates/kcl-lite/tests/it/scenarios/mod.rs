//! What users of such libraries suffer from, one scenario a test, named after the problem.
//!
//! `tests/README.md` in the root of the workspace maps every problem to its test and its guard.

mod aggregates;
mod budget;
mod cost;
mod loss;
mod repeats;
mod stuck;

use std::time::Duration;

use kcl_lite::{InitialPosition, Settings};

use crate::fleet::settings;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(30);

/// Settings of a worker that starts at the oldest record.
fn horizon() -> Settings {
    Settings { initial_position: InitialPosition::TrimHorizon, ..settings() }
}
