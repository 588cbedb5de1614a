//! Checks the model itself: it finds the seeded bugs in its scope.
//!
//! Exists only in the copy of the workspace that `sim --mutants` builds. Seeded bugs in the code of
//! tasks (`validity-from-the-reply`, `one-error-loses-the-lease`, `steals-without-a-drain` and
//! `finished-rows-go-at-once`) are repeated in the few lines of the model that represent those tasks.

use super::explore::explore;
use super::{Bounds, FAULT, FAULTS, LIFE, MOVE};

#[test]
fn every_seeded_bug_of_the_lease_protocol_is_found() {
    const BUGS: [(&str, Bounds); 25] = [
        ("take-without-counter", FAULT),
        ("renew-without-counter", MOVE),
        ("finish-without-counter", LIFE),
        ("release-without-counter", MOVE),
        ("create-overwrites", LIFE),
        ("take-keeps-counter", FAULT),
        ("renew-keeps-counter", FAULT),
        ("take-wipes-checkpoint", FAULT),
        ("asking-is-taking", MOVE),
        ("owner-never-stops-itself", FAULT),
        ("fence-without-margin", FAULT),
        ("recovered-counts-from-now", FAULTS),
        ("asked-for-is-lost", MOVE),
        ("withdrawals-are-not-seen", MOVE),
        ("lost-reply-is-lost-lease", FAULT),
        ("release-forgets-the-checkpoint", MOVE),
        ("renewals-are-not-seen", FAULT),
        ("expires-early", FAULT),
        ("new-leases-are-expired", FAULT),
        ("the-dead-own-for-ever", FAULT),
        ("validity-from-the-reply", FAULTS),
        ("one-error-loses-the-lease", FAULT),
        ("a-recognised-take-counts-from-now", FAULTS),
        ("finished-rows-go-at-once", LIFE),
        ("steals-without-a-drain", MOVE),
    ];
    let found = |(name, bounds): (&'static str, Bounds)| {
        crate::mutant::choose(Some(name));
        let found = explore(bounds);
        crate::mutant::choose(None);
        match found {
            Err(counterexample) => println!("{name}: {counterexample}"),
            Ok(_) => return Some(name),
        }
        None
    };
    let missed: Vec<_> = BUGS.into_iter().filter_map(found).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
