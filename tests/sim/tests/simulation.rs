//! The simulation as a test: some hundred seeds, the seeds that once failed, and determinism of a
//! seed.
//!
//! For more seeds, and the replay of one with its timeline: `cargo run -p sim -- --help`.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use sim::{Counts, Plan, Tier, run};

/// Runs all plans on two threads; returns the situations reached, and the failures as commands that
/// replay them.
fn sweep(plans: &[Plan]) -> (Counts, Vec<String>) {
    let next = AtomicUsize::new(0);
    let swept: Mutex<(Counts, Vec<String>)> = Mutex::default();
    let work = || {
        while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = run(plan, false);
            let mut swept = swept.lock();
            swept.0.add(&outcome.counts);
            if let Some(violation) = outcome.violation {
                swept.1.push(format!("{} --shrink: {violation}", plan.command()));
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().for_each(|thread| thread.join().expect("a run does not panic"));
    });
    swept.into_inner()
}

/// Runs the tiers one after another, because each uses the whole machine.
#[test]
fn a_fleet_keeps_every_promise_whatever_happens_to_it() {
    let plans = |tier, seeds| (0..seeds).map(|seed| Plan::of(seed).on(tier)).collect::<Vec<_>>();
    let (counts, failures) = sweep(&plans(Tier::Protocol, 300));
    assert_eq!(failures, [""; 0]);
    let mut never = counts.never(Tier::Protocol);
    // Reached once in a few hundred seeds; the command requires it in a sweep of a thousand.
    never.retain(|words| !words.contains("does not hand it off"));
    assert_eq!(never, [""; 0], "300 seeds never met that");

    let (counts, failures) = sweep(&plans(Tier::Full, 20));
    assert_eq!(failures, [""; 0]);
    let mut never = counts.never(Tier::Full);
    // Every fault of a request must be reached.
    never.retain(|words| words.starts_with("table:") || words.starts_with("stream:"));
    assert_eq!(never, [""; 0], "20 seeds never met that");
}

#[test]
fn seeds_that_failed_once_stay_repaired() {
    let corpus = include_str!("../corpus.txt").lines().filter(|line| !line.starts_with('#'));
    let plans = corpus.map(|line| {
        let (kind, rest) = line.split_once(' ').unwrap();
        let plan = Plan::of(rest.split_whitespace().next().unwrap().parse().unwrap());
        match kind {
            "protocol" => plan.on(Tier::Protocol),
            "full" => plan.on(Tier::Full),
            "recreate" => plan.recreating().on(Tier::Protocol),
            "busy-owner" => plan.with_busy_owner().on(Tier::Protocol),
            kind => panic!("nothing of a seed is called {kind}"),
        }
    });
    assert_eq!(sweep(&plans.collect::<Vec<_>>()).1, [""; 0]);
}

fn goes_the_same_way_twice(tier: Tier, seed: u64) {
    let events = same_twice(&Plan::of(seed).on(tier));
    assert!(events > 500, "seed {seed} has only {events} events");
}

/// Runs the plan twice and returns the number of events.
fn same_twice(plan: &Plan) -> u64 {
    // On separate threads, where the SDK's hash maps have different seeds.
    let [one, other] = [(); 2].map(|()| {
        let plan = plan.clone();
        let run = move || run(&plan, true);
        std::thread::spawn(run).join().expect("a run does not panic")
    });
    let differs = one.lines.iter().zip(&other.lines).find(|(one, other)| one != other);
    let (seed, tier) = (plan.seed, plan.tier);
    assert_eq!(differs, None, "seed {seed} at the tier {tier:?}");
    assert_eq!((one.hash, one.events), (other.hash, other.events), "seed {seed} at {tier:?}");
    one.events
}

#[test]
fn the_same_seed_goes_the_same_way_to_the_last_byte() {
    for seed in [1, 4, 14, 19, 33, 48, 143] {
        goes_the_same_way_twice(Tier::Protocol, seed);
        same_twice(&Plan::of(seed).recreating());
        same_twice(&Plan::of(seed).with_busy_owner());
        same_twice(&Plan::of(seed).with_full_worker());
    }
}

#[test]
fn the_same_seed_goes_the_same_way_through_the_sdk() {
    for seed in [1, 4, 14] {
        goes_the_same_way_twice(Tier::Full, seed);
    }
}

#[test]
fn a_plan_without_some_operations_is_still_the_plan_of_its_seed() {
    let plan = Plan::of(4);
    assert!(plan.operations.len() > 3);
    let fewer = plan.keeping(&[0, 2]);
    assert_eq!(fewer.operations.len(), 2);
    assert_eq!(fewer.operations[1].at, plan.operations[2].at);
    assert_eq!(fewer.seed, plan.seed);
}
