//! The command: runs seeds, replays one with its timeline, shrinks a failing plan.

#![expect(clippy::print_stdout, reason = "a command prints")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use parking_lot::Mutex;
use sim::mutants::{self, Mutant};
use sim::{Counts, Plan, Tier, Violation, run, seeded, shrink};
use tokio::time::Instant;

/// Runs a fleet of workers on virtual time, with seeded faults, and checks every promise.
#[derive(Debug, Parser)]
struct Arguments {
    /// How much of the library takes part.
    #[arg(long, value_enum, default_value_t = Tier::Protocol)]
    tier: Tier,
    /// Run this seed and print its timeline if it fails.
    #[arg(long)]
    seed: Option<u64>,
    /// Run this many seeds, from `--from` on; with `--mutants`, at most this many for each bug, and
    /// a twentieth of them for a bug that needs the full stack.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed of a sweep.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run seeds for this many hours instead.
    #[arg(long)]
    hours: Option<f64>,
    /// Number of threads; each runs one seed at a time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Re-create the stream in every plan instead of one in twenty.
    #[arg(long)]
    recreate: bool,
    /// Use only plans whose only fault is one busy owner, instead of one plan in twenty.
    #[arg(long, conflicts_with = "recreate")]
    busy_owner: bool,
    /// Use very stale listings in every plan instead of one in twenty.
    #[arg(long, conflicts_with_all = ["recreate", "busy_owner"])]
    older_listings: bool,
    /// Limit one worker to a single lease in every plan instead of one in twenty.
    #[arg(long, conflicts_with_all = ["recreate", "busy_owner", "older_listings"])]
    full_worker: bool,
    /// With `--seed`: keep only these operations of its plan, by number.
    #[arg(long, value_delimiter = ',')]
    keep: Option<Vec<usize>>,
    /// With `--seed`: remove operations while the run fails.
    #[arg(long)]
    shrink: bool,
    /// With `--seed`: print the whole timeline, even if the run does not fail.
    #[arg(long)]
    timeline: bool,
    /// Build a copy of the library with the seeded bugs and run each bug until it is found.
    #[arg(long)]
    mutants: bool,
    /// The same with this bug only; with `--seed`, run that seed with this bug.
    #[arg(long)]
    mutant: Option<String>,
    /// Stop after this many failures.
    #[arg(long, default_value_t = 10)]
    failures: usize,
}

impl Arguments {
    fn plan(&self, seed: u64) -> Plan {
        self.plan_of_any_tier(seed).on(self.tier)
    }

    /// The seeded bug that was asked for.
    fn bug(&self) -> Result<Option<Mutant>, String> {
        let Some(name) = &self.mutant else { return Ok(None) };
        let bug = mutants::named(name);
        bug.map(Some).ok_or_else(|| format!("there is no seeded bug `{name}`"))
    }

    fn plan_of_any_tier(&self, seed: u64) -> Plan {
        let plan = Plan::of(seed);
        match () {
            () if self.recreate => plan.recreating(),
            () if self.busy_owner => plan.with_busy_owner(),
            () if self.full_worker => plan.with_full_worker(),
            () if self.older_listings => plan.with_older_listings(),
            () => plan,
        }
    }
}

/// Seeds between two lines of progress.
const PROGRESS: u64 = 1000;
const PROGRESS_OF_FULL: u64 = 20;
/// A sweep of this many seeds has to reach every situation.
const ENOUGH: u64 = 1000;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.bug() {
        Ok(bug) if (bug.is_some() || arguments.mutants) && !mutants::ARE_BUILT_IN => {
            seeded::run(std::env::args_os().skip(1).collect(), bug.is_none())
        }
        Ok(bug) => run_here(&arguments, bug).map(|()| ExitCode::SUCCESS),
        Err(failure) => Err(failure),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run_here(arguments: &Arguments, bug: Option<Mutant>) -> Result<(), String> {
    match arguments.seed {
        _ if arguments.mutants => hunt(arguments, bug),
        Some(seed) => {
            mutants::choose(bug);
            one(arguments, seed)
        }
        None if bug.is_some() => hunt(arguments, bug),
        None => many(arguments),
    }
}

fn one(arguments: &Arguments, seed: u64) -> Result<(), String> {
    let mut plan = arguments.plan(seed);
    let mut kept = arguments.keep.clone();
    if let Some(kept) = &kept {
        plan = plan.keeping(kept);
    }
    if arguments.shrink
        && let Some(violation) = run(&plan, false).violation
    {
        let (numbers, runs) = shrink::shrink(&plan, violation.promise);
        let numbers = match &kept {
            Some(kept) => numbers.iter().map(|number| kept[*number]).collect(),
            None => numbers,
        };
        println!(
            "{} of {} operations are needed ({runs} runs)",
            numbers.len(),
            plan.operations.len()
        );
        plan = arguments.plan(seed).keeping(&numbers);
        kept = Some(numbers);
    }
    let outcome = run(&plan, true);
    println!("{:?}", Plan { operations: Vec::new(), ..plan });
    let about = outcome.violation.as_ref().and_then(|it| it.shard.clone());
    let end = outcome.violation.as_ref().map_or(outcome.lasted, |it| it.at);
    for line in &outcome.lines {
        // Causes are always printed; the other lines only for the last minute of the shard
        // concerned.
        let is_recent = line.at + Duration::from_secs(60) >= end;
        let concerns = about.as_ref().is_none_or(|shard| line.text.contains(shard.as_str()));
        let is_cause = line.who == "plan" || line.who == "stream" || line.text.starts_with("is ");
        if line.at <= end && (arguments.timeline || is_cause || concerns && is_recent) {
            println!("{line}");
        }
    }
    println!("{}{} events, trace {:016x}", outcome.counts, outcome.events, outcome.hash);
    match outcome.violation {
        None => Ok(()),
        Some(violation) => {
            let keep = kept.map(|kept| {
                let kept: Vec<_> = kept.iter().map(ToString::to_string).collect();
                format!(" --keep {}", kept.join(","))
            });
            let command = arguments.plan(seed).command();
            println!("replay: {command}{}", keep.unwrap_or_default());
            Err(violation.to_string())
        }
    }
}

/// Runs one seeded bug, or all, until each is found.
fn hunt(arguments: &Arguments, bug: Option<Mutant>) -> Result<(), String> {
    let began = Instant::now();
    let bugs = bug.map_or_else(mutants::all, |bug| vec![bug]);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let unseen: Mutex<Vec<&str>> = Mutex::default();
    let work = || {
        while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let most = match bug.tier {
                Tier::Protocol => arguments.seeds,
                Tier::Full => arguments.seeds.div_ceil(PROGRESS_OF_FULL),
            };
            let verdict =
                mutants::hunt(*bug, arguments.from, most, |seed| arguments.plan_of_any_tier(seed));
            let found = match verdict.found {
                Some((seed, it)) => format!("{:?}, seed {seed}", it.promise),
                None => {
                    unseen.lock().push(bug.name);
                    "NOT FOUND".to_owned()
                }
            };
            let (name, tier, time) = (bug.name, format!("{:?}", bug.tier), verdict.time.as_secs());
            println!("{name:44} {tier:8} {:4} seeds {time:7} s  {found}", verdict.seeds);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(work);
        }
    });
    let unseen = unseen.into_inner();
    let (found, took) = (bugs.len() - unseen.len(), began.elapsed().as_secs());
    println!("{found} of {} bugs were found in {took} s", bugs.len());
    match &unseen[..] {
        [] => Ok(()),
        _ => Err(format!("not found: {}", unseen.join(", "))),
    }
}

/// The result of a sweep.
#[derive(Debug, Default)]
struct Sweep {
    seeds: u64,
    time: Duration,
    counts: Counts,
    failed: Vec<(u64, Violation)>,
}

fn many(arguments: &Arguments) -> Result<(), String> {
    let (began, tier) = (Instant::now(), arguments.tier);
    let deadline = arguments.hours.map(|hours| began + Duration::from_secs_f64(hours * 3600.0));
    let next = AtomicU64::new(arguments.from);
    let end = deadline.map_or(arguments.from + arguments.seeds, |_| u64::MAX);
    let sweep: Mutex<Sweep> = Mutex::default();
    let progress = match tier {
        Tier::Protocol => PROGRESS,
        Tier::Full => PROGRESS_OF_FULL,
    };
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let failures = sweep.lock().failed.len();
            let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if seed >= end || failures >= arguments.failures || is_late {
                return;
            }
            let plan = arguments.plan(seed);
            let outcome = run(&plan, false);
            let mut sweep = sweep.lock();
            sweep.seeds += 1;
            sweep.time += outcome.lasted;
            sweep.counts.add(&outcome.counts);
            if let Some(violation) = outcome.violation {
                println!("seed {seed} ({:?}): {violation}", plan.theme);
                sweep.failed.push((seed, violation));
            }
            if sweep.seeds.is_multiple_of(progress) {
                println!("{}", sweep.summary(began.elapsed()));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(work);
        }
    });
    let sweep = sweep.into_inner();
    println!("{}\n{}", sweep.summary(began.elapsed()), sweep.counts);
    match sweep.failed.iter().min_by_key(|(seed, _)| *seed) {
        None => match &sweep.counts.never(tier)[..] {
            never if sweep.seeds < ENOUGH || never.is_empty() => Ok(()),
            never => Err(format!("{} seeds never met: {}", sweep.seeds, never.join("; "))),
        },
        Some((seed, _)) => {
            let count = sweep.failed.len();
            let command = arguments.plan(*seed).command();
            Err(format!("{count} failed; replay one: {command} --shrink"))
        }
    }
}

impl Sweep {
    fn summary(&self, took: Duration) -> String {
        format!(
            "{} seeds, {:.1} virtual days of fleets in {:.0} s, {} failed",
            self.seeds,
            self.time.as_secs_f64() / 86_400.0,
            took.as_secs_f64(),
            self.failed.len()
        )
    }
}
