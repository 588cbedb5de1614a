//! Whether the checkers see anything: the library's seeded bugs, one after another.

use std::time::Duration;

use kcl_lite::mutant;

use crate::checks::Violation;
use crate::driver::run;
use crate::plan::Plan;

/// A seeded bug, and what became of it.
#[derive(Debug)]
pub struct Verdict {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    /// The seeds that were run, and the virtual time in them.
    pub seeds: u64,
    /// How long they were.
    pub time: Duration,
    /// The first promise that was broken, if one was, and the seed.
    pub found: Option<(u64, Violation)>,
}

/// The names of all seeded bugs.
#[must_use]
pub fn names() -> Vec<&'static str> {
    mutant::ALL.iter().map(|(name, _)| *name).collect()
}

/// Runs seeds with the bug `name` until a promise is broken, or `most` seeds have been run.
///
/// # Panics
/// When there is no such bug.
#[must_use]
pub fn hunt(name: &str, first: u64, most: u64) -> Verdict {
    let found = mutant::ALL.iter().find(|(known, _)| *known == name);
    let (name, what) = *found.expect("a bug is called by its name");
    let mut verdict = Verdict { name, what, seeds: 0, time: Duration::ZERO, found: None };
    mutant::choose(Some(name));
    for seed in first..first + most {
        let outcome = run(&Plan::of(seed), false);
        verdict.seeds += 1;
        verdict.time += outcome.lasted;
        if let Some(violation) = outcome.violation {
            verdict.found = Some((seed, violation));
            break;
        }
    }
    mutant::choose(None);
    verdict
}
