//! Whether the checkers see anything: the library's seeded bugs, one after another.

use std::time::Duration;

use kcl_lite::mutant;

use crate::checks::Violation;
use crate::driver::run;
use crate::plan::{Plan, Tier};

/// A seeded bug.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    /// The tier that has to find it.
    pub tier: Tier,
}

/// A bug that few seeds find, and a plan that does.
type Rare = (&'static str, fn() -> Plan);

/// They are run first. When the library or the plans change one may not find its bug any more; then
/// `--from` searches for another one.
const RARE: &[Rare] = &[
    ("creates-by-an-old-table", || Plan::of(6554)),
    ("finished-rows-go-at-once", || Plan::of(974)),
    ("old-listings-are-believed", || Plan::of(0).with_older_listings()),
    ("a-refused-takeover-starts-over", || Plan::of(5).with_busy_owner()),
    ("a-stop-waits-for-handoffs", || Plan::of(4).with_busy_owner()),
    ("withdrawals-are-not-seen", || Plan::of(92).with_busy_owner()),
    ("nobody-is-ever-full", || Plan::of(0).with_full_worker()),
    ("new-rows-start-at-zero", || Plan::of(3440).recreating()),
];

/// What became of a hunt.
#[derive(Debug)]
pub struct Verdict {
    /// The seeds that were run.
    pub seeds: u64,
    /// The virtual time in them.
    pub time: Duration,
    /// The first promise that was broken, if one was, and the seed.
    pub found: Option<(u64, Violation)>,
}

/// All seeded bugs; those that take longest to look for come first.
#[must_use]
pub fn all() -> Vec<Mutant> {
    let of = |tier| move |(name, what): &(&'static str, &'static str)| Mutant { name, what, tier };
    let below = mutant::BELOW_THE_PORTS.iter().map(of(Tier::Full));
    below.chain(mutant::ABOVE_THE_PORTS.iter().map(of(Tier::Protocol))).collect()
}

/// Chooses a bug for what this thread runs next, by name; none if there is no such bug.
pub fn choose(name: Option<&str>) {
    let known = all().into_iter().find(|it| name == Some(it.name));
    mutant::choose(known.map(|it| it.name));
}

/// Runs the plans of seeds with a bug until a promise is broken, or `most` seeds have been run.
#[must_use]
pub fn hunt(bug: Mutant, first: u64, most: u64, plan: impl Fn(u64) -> Plan) -> Verdict {
    let mut verdict = Verdict { seeds: 0, time: Duration::ZERO, found: None };
    mutant::choose(Some(bug.name));
    let known = RARE.iter().find(|(name, _)| *name == bug.name).map(|(_, plan)| plan());
    for plan in known.into_iter().chain((first..first + most).map(plan)) {
        let seed = plan.seed;
        let outcome = run(&plan.on(bug.tier), false);
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
