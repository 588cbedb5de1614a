//! The simulation as a test: some hundred seeds, those that failed once, and that a seed is a run.
//!
//! More seeds, and the replay of one with its timeline: `cargo run -p sim -- --help`.

use std::sync::atomic::{AtomicUsize, Ordering};

use sim::{Plan, run};

/// Runs all seeds on two threads; the failures, as commands that replay them.
fn failures(seeds: &[u64]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failures = Vec::new();
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(violation) = run(&Plan::of(*seed), false).violation {
                failures.push(format!("cargo run -p sim -- --seed {seed} --shrink: {violation}"));
            }
        }
        failures
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a run does not panic"))
            .collect()
    })
}

#[test]
fn a_fleet_keeps_every_promise_whatever_happens_to_it() {
    let seeds: Vec<_> = (0..300).collect();
    assert_eq!(failures(&seeds), [""; 0]);
}

#[test]
fn seeds_that_failed_once_stay_repaired() {
    let corpus = include_str!("../corpus.txt").lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<u64> =
        corpus.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    assert_eq!(failures(&seeds), [""; 0]);
}

#[test]
fn the_same_seed_goes_the_same_way_to_the_last_byte() {
    for seed in [1, 4, 19, 33, 48, 143] {
        let [one, other] = [(); 2].map(|()| run(&Plan::of(seed), true));
        let differs = one.lines.iter().zip(&other.lines).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((one.hash, one.events), (other.hash, other.events), "seed {seed}");
        assert!(one.events > 500, "seed {seed} has only {} events", one.events);
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
