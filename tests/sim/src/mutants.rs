//! Whether the checkers see anything: the seeded bugs, one after another.
//!
//! The bugs are not part of the library: [`seeded`](crate::seeded) puts them into a copy of it, and
//! only the simulation that is built in that copy can switch them on.

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
    ("creates-have-no-condition", "a row is put over one that exists"),
    ("a-refusal-shows-no-row", "the row that comes with a refusal is not looked at"),
    ("asking-forgets-the-owner", "who asks for a lease does not store whose it is"),
    ("parents-are-not-written", "the row of a new lease lacks the parents"),
    ("anchors-are-not-written", "the row of a new lease lacks the time of the tip"),
    ("scans-see-one-page", "a scan ends after its first page"),
    ("listings-see-one-page", "a listing ends after its first page"),
    ("times-are-whole-seconds", "a start at a time is rounded up to the second"),
    ("throttled-is-fatal", "a throttled write counts as wrong"),
    ("an-unreadable-reply-is-fatal", "a reply that breaks off counts as wrong"),
];

/// The bugs above the ports, and what each does.
const ABOVE_THE_PORTS: &[(&str, &str)] = &[
    ("take-without-counter", "a take has no condition"),
    ("renew-without-counter", "a renewal, and the checkpoint with it, has no condition"),
    ("finish-without-counter", "the end of a shard is stored without a condition"),
    ("release-without-counter", "a release or handover has no condition"),
    ("create-overwrites", "a lease is created over one that exists"),
    ("take-keeps-counter", "a take does not move the counter"),
    ("renew-keeps-counter", "a renewal does not move the counter"),
    ("take-wipes-checkpoint", "a take starts the shard again"),
    ("asking-is-taking", "whoever asks for a lease owns it at once"),
    ("how-long-ago-is-forgotten", "a start some time ago is a start at the tip"),
    ("a-time-to-come-is-stored", "a start at a time that is still to come is stored as it is"),
    ("latest-is-resolved-again", "each owner resolves the tip again until the first checkpoint"),
    ("marks-are-not-unique", "the mark of a write names no incarnation"),
    ("owner-never-stops-itself", "an owner that cannot renew goes on"),
    ("a-suspend-does-not-count", "an owner's clock stands still while its machine is suspended"),
    ("fence-without-margin", "an owner stops only when others may take its lease"),
    (
        "recovered-counts-from-now",
        "a write that is recognised by its mark counts from the last attempt",
    ),
    ("absent-is-stolen", "a row that is gone counts as taken by another worker"),
    ("asked-for-is-lost", "a lease that was asked for counts as lost"),
    ("a-refused-takeover-starts-over", "a takeover that was refused waits for the deadline again"),
    ("a-stop-waits-for-handoffs", "a worker that stops waits for the leases it has asked for"),
    (
        "withdrawals-are-not-seen",
        "a lease is handed over to a worker that has withdrawn its request",
    ),
    ("lost-reply-is-lost-lease", "a write whose reply was lost is not recognised"),
    ("release-forgets-the-checkpoint", "a release does not store what is acknowledged"),
    ("renewals-are-not-seen", "an observer does not start again when the counter moves"),
    ("expires-early", "a lease expires after half of its duration"),
    ("new-leases-are-expired", "a lease that is seen for the first time counts as expired"),
    ("parents-are-not-waited-for", "a child is taken while its parents are unfinished"),
    ("second-parent-is-ignored", "a merged shard waits for one of its parents"),
    ("free-leases-of-an-even-fleet-are-ignored", "free leases are left alone while loads are even"),
    ("leases-never-move", "a worker that joins gets nothing"),
    ("leases-move-for-ever", "the larger share goes to whoever has less"),
    ("the-dead-own-for-ever", "expired leases are not taken"),
    ("closed-shards-are-skipped", "closed shards with unread records get no lease at the start"),
    ("old-listings-are-believed", "a listing that is behind makes leases that others cover"),
    ("holes-are-not-filled", "a shard whose lease was not made gets none later"),
    ("children-start-at-the-tip", "the shards of a reshard start at the tip"),
    (
        "parents-go-before-children-move",
        "a finished lease is removed before its children have moved",
    ),
    ("mark-jumps-over-holes", "a position is stored before everything up to it is acknowledged"),
    ("tokens-of-earlier-attempts-count", "a token acknowledges another delivery"),
    ("dropped-tokens-acknowledge", "a token that is dropped acknowledges"),
    ("sub-sequence-is-forgotten", "the place inside an aggregate is not stored"),
    ("validity-from-the-reply", "a lease counts as proven from the reply, not from the request"),
    ("one-error-loses-the-lease", "one failed renewal gives the lease up"),
    ("renews-too-often", "renewals come ten times as often"),
    ("ends-without-children", "the end of a shard is stored before its children have leases"),
    ("quiet-shards-are-not-renewed", "a lease is renewed only with news"),
    (
        "delivers-without-looking-at-the-fence",
        "a batch is delivered though the lease may have run out",
    ),
    ("some-children-are-all", "a listing that is behind names all children"),
    (
        "other-parents-are-not-looked-for",
        "a merged shard gets a lease while its other parent has none",
    ),
    ("a-scan-undoes-answers", "a scan that was under way hides what was written meanwhile"),
    (
        "a-recognised-take-counts-from-now",
        "a take that is recognised late counts from the call that saw it",
    ),
    ("finished-rows-go-at-once", "a finished row is removed while others may still miss its end"),
    ("a-stop-releases-nothing", "a worker that stops keeps its leases until they expire"),
    ("scans-too-often", "the table is scanned ten times as often"),
    ("steals-without-a-drain", "a lease is taken from a live owner without asking"),
    ("creates-by-an-old-table", "what is missing in a table that was read long ago is made"),
    ("loss-stops-nothing", "a processor goes on when its lease is lost"),
    ("a-drain-does-not-wait", "a shard is let go while acknowledgements are outstanding"),
    ("the-checkpoint-is-repeated", "the record at the checkpoint is delivered again"),
    ("the-rest-of-an-aggregate-is-dropped", "a restart inside an aggregate drops its rest"),
    (
        "ends-before-acknowledgements",
        "the end of a shard is stored while records are not acknowledged",
    ),
    ("a-failed-batch-is-done", "a batch that failed counts as processed"),
    (
        "acknowledged-records-come-again",
        "what a token has acknowledged comes again after a failure",
    ),
    ("holes-are-left-out", "what lies before an acknowledged record does not come again"),
    ("the-newest-records-are-dropped", "the reply that reaches the tip is not delivered whole"),
    ("missing-is-the-end", "a shard that is said not to exist counts as finished"),
    ("rejected-records-count-unstored", "what a processor rejects counts as stored at once"),
    ("dead-letters-count-unstored", "a record counts as put aside though storing it failed"),
    ("all-is-always-well", "nobody says that a shard is stuck"),
    (
        "nobody-is-ever-full",
        "leases that nobody takes are left with their owner for a worker that may not hold more",
    ),
    ("old-rows-are-believed", "the rows of a stream that is gone count for the one made after it"),
    ("refusing-is-adopting", "a stream that was made again is read though that was ruled out"),
    (
        "a-new-stream-starts-at-the-tip",
        "a stream that was made again is not read from its beginning",
    ),
    ("newer-rows-count-as-former", "a worker that is behind removes the rows of a newer stream"),
    ("rows-name-no-stream", "a row does not say which stream it is for"),
    ("new-rows-start-at-zero", "the counters of a stream that is made again begin as those before"),
];

/// Whether this simulation runs the copy of the library that has the bugs. In that copy an edit makes
/// it true.
pub const ARE_BUILT_IN: bool = false;

/// Switches a bug on for this thread, or all off. In the copy the library's switch is in its place.
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

/// The bug of that name.
#[must_use]
pub fn named(name: &str) -> Option<Mutant> {
    all().into_iter().find(|it| it.name == name)
}

/// Chooses a bug for what this thread runs next, or none.
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
