//! Field problems of consumer libraries, one scenario per test, named after the problem.
//!
//! `tests/README.md` in the workspace root maps every problem to its test and its guard.

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

/// Returns the settings of a worker that starts at the oldest record.
fn horizon() -> Settings {
    Settings { initial_position: InitialPosition::TrimHorizon, ..settings() }
}
