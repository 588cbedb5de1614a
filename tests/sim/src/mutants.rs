//! Whether the checkers see anything: the seeded bugs, one after another.
//!
//! The library does not contain the bugs: [`seeded`](crate::seeded) adds them to a copy of it, and only
//! the simulation that is built in that copy can select one.

use std::time::Duration;

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

/// The bugs below the ports, which only runs with the whole stack can meet.
const BELOW_THE_PORTS: &[(&str, &str)] = &[
    ("updates-have-no-condition", "the condition of an update holds for every counter"),
    ("creates-have-no-condition", "a new row overwrites an existing one"),
    ("a-refusal-shows-no-row", "the row that a refusal carries is ignored"),
    ("asking-forgets-the-owner", "a handoff request does not store the current owner"),
    ("parents-are-not-written", "the row of a new lease lacks the parents"),
    ("anchors-are-not-written", "the row of a new lease lacks the time of the tip"),
    ("scans-see-one-page", "a scan ends after its first page"),
    ("listings-see-one-page", "a listing ends after its first page"),
    ("times-are-whole-seconds", "a start at a time is rounded up to the second"),
    ("throttled-is-fatal", "a throttled write counts as an invalid request"),
    ("an-unreadable-reply-is-fatal", "a truncated reply counts as an invalid request"),
];

/// The bugs above the ports, and what each does.
const ABOVE_THE_PORTS: &[(&str, &str)] = &[
    ("take-without-counter", "a take has no condition"),
    ("renew-without-counter", "a renewal, and the checkpoint with it, has no condition"),
    ("finish-without-counter", "storing the end of a shard has no condition"),
    ("release-without-counter", "a release or handoff has no condition"),
    ("create-overwrites", "a new lease overwrites an existing one"),
    ("take-keeps-counter", "a take does not increment the counter"),
    ("renew-keeps-counter", "a renewal does not increment the counter"),
    ("take-wipes-checkpoint", "a take resets the checkpoint"),
    ("asking-is-taking", "the worker that requests a handoff owns the lease at once"),
    ("how-long-ago-is-forgotten", "a start some time ago becomes a start at the tip"),
    ("a-time-to-come-is-stored", "a start at a time in the future is stored as it is"),
    ("latest-is-resolved-again", "each owner resolves the tip again until the first checkpoint"),
    ("marks-are-not-unique", "the write ID does not contain the incarnation"),
    ("owner-never-stops-itself", "an owner that cannot renew does not fence itself"),
    ("a-suspend-does-not-count", "an owner's clock stands still while its machine is suspended"),
    (
        "fence-without-margin",
        "an owner stops only at the instant at which others may take its lease",
    ),
    (
        "recovered-counts-from-now",
        "a write recognised by its write ID counts from the last attempt",
    ),
    ("absent-is-stolen", "a missing row counts as taken by another worker"),
    ("asked-for-is-lost", "a lease with a handoff request counts as lost"),
    ("a-refused-takeover-starts-over", "a refused takeover waits for the deadline again"),
    ("a-stop-waits-for-handoffs", "a worker that stops waits for the handoffs it has requested"),
    (
        "withdrawals-are-not-seen",
        "a lease is handed over to a worker that has withdrawn its request",
    ),
    ("lost-reply-is-lost-lease", "a write whose reply was lost is not recognised"),
    ("release-forgets-the-checkpoint", "a release does not store the acknowledged position"),
    ("renewals-are-not-seen", "an observer ignores that the counter has changed"),
    ("expires-early", "a lease expires after half of its duration"),
    ("new-leases-are-expired", "a lease counts as expired when it is first seen"),
    ("parents-are-not-waited-for", "a child is taken while its parents are unfinished"),
    ("second-parent-is-ignored", "the child of a merge waits for one of its parents only"),
    ("free-leases-of-an-even-fleet-are-ignored", "orphans are not taken while loads are even"),
    ("leases-never-move", "a worker that joins gets no leases"),
    ("leases-move-for-ever", "the workers with fewer leases get the larger shares"),
    ("the-dead-own-for-ever", "expired leases are not taken"),
    ("closed-shards-are-skipped", "closed shards with unread records get no lease at the start"),
    ("old-listings-are-believed", "a stale listing creates leases for shards that others cover"),
    ("holes-are-not-filled", "a shard whose lease was not created never gets one later"),
    ("children-start-at-the-tip", "the children of a resharding start at the tip"),
    (
        "parents-go-before-children-move",
        "a finished lease is deleted before its children have made progress",
    ),
    ("mark-jumps-over-holes", "a position is stored before everything up to it is acknowledged"),
    ("tokens-of-earlier-attempts-count", "a token acknowledges another delivery"),
    ("dropped-tokens-acknowledge", "dropping a token acknowledges"),
    ("sub-sequence-is-forgotten", "the sub-sequence number of a position is not stored"),
    ("validity-from-the-reply", "a lease is valid from the reply instead of the request"),
    ("one-error-loses-the-lease", "one failed renewal loses the lease"),
    ("renews-too-often", "renewals are ten times as frequent"),
    ("ends-without-children", "the end of a shard is stored before its children have leases"),
    ("quiet-shards-are-not-renewed", "a lease is renewed only together with a new checkpoint"),
    (
        "delivers-without-looking-at-the-fence",
        "a batch is delivered although the lease may have expired",
    ),
    ("some-children-are-all", "the children in a stale listing count as all children"),
    (
        "other-parents-are-not-looked-for",
        "the child of a merge gets a lease while its other parent has none",
    ),
    ("a-scan-undoes-answers", "the reply of a scan hides what was written during the scan"),
    (
        "a-recognised-take-counts-from-now",
        "a take that is recognised late counts from the last attempt",
    ),
    (
        "finished-rows-go-at-once",
        "a finished row is deleted while other workers may not know of its end yet",
    ),
    ("a-stop-releases-nothing", "a worker that stops keeps its leases until they expire"),
    ("scans-too-often", "the table is scanned ten times as often"),
    ("steals-without-a-drain", "a lease is taken from a live owner without a handoff request"),
    (
        "creates-by-an-old-table",
        "leases are created because a table that was scanned long ago lacks them",
    ),
    ("loss-stops-nothing", "a processor continues after its lease is lost"),
    ("a-drain-does-not-wait", "a shard is released while acknowledgements are outstanding"),
    ("the-checkpoint-is-repeated", "the record at the checkpoint is delivered again"),
    ("the-rest-of-an-aggregate-is-dropped", "a restart inside an aggregate drops the rest of it"),
    (
        "ends-before-acknowledgements",
        "the end of a shard is stored while records are not acknowledged",
    ),
    ("a-failed-batch-is-done", "a batch that failed counts as processed"),
    (
        "acknowledged-records-come-again",
        "records that a token has acknowledged are delivered again after a failure",
    ),
    ("holes-are-left-out", "open records before an acknowledged one are not delivered again"),
    (
        "the-newest-records-are-dropped",
        "the last record of the reply that reaches the tip is dropped",
    ),
    ("missing-is-the-end", "a shard that the service does not find counts as finished"),
    ("rejected-records-count-unstored", "a rejected record counts as stored at once"),
    ("dead-letters-count-unstored", "a record counts as dead-lettered although storing it failed"),
    ("all-is-always-well", "health reports no stuck shard"),
    ("nobody-is-ever-full", "no worker counts as full, so an owner keeps leases that nobody takes"),
    ("old-rows-are-believed", "the rows of a deleted stream count for the re-created one"),
    ("refusing-is-adopting", "a re-created stream is read although the settings refuse that"),
    ("a-new-stream-starts-at-the-tip", "a re-created stream is not read from its beginning"),
    (
        "newer-rows-count-as-former",
        "a worker with a stale identity deletes the rows of the re-created stream",
    ),
    ("rows-name-no-stream", "a row does not store the identity of its stream"),
    (
        "new-rows-start-at-zero",
        "the counters of a re-created stream start like those of the former one",
    ),
];

/// Whether this simulation was built in the copy that contains the bugs. An edit sets it there.
pub const ARE_BUILT_IN: bool = false;

/// Selects a bug for this thread, or none. An edit replaces it by the library's switch in the copy.
fn switch(_: Option<&'static str>) {}

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
    let below = BELOW_THE_PORTS.iter().map(of(Tier::Full));
    below.chain(ABOVE_THE_PORTS.iter().map(of(Tier::Protocol))).collect()
}

/// Returns the bug called `name`.
#[must_use]
pub fn named(name: &str) -> Option<Mutant> {
    all().into_iter().find(|it| it.name == name)
}

/// Selects a bug for what this thread runs next, or none.
pub fn choose(bug: Option<Mutant>) {
    switch(bug.map(|it| it.name));
}

/// Runs the plans of seeds with a bug until a promise is broken, or `most` seeds have been run.
#[must_use]
pub fn hunt(bug: Mutant, first: u64, most: u64, plan: impl Fn(u64) -> Plan) -> Verdict {
    let mut verdict = Verdict { seeds: 0, time: Duration::ZERO, found: None };
    choose(Some(bug));
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
    choose(None);
    verdict
}
