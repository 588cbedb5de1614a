//! Tests of both decisions on small snapshots, and property tests on random ones.

use proptest::prelude::*;

use super::*;
use crate::position::Checkpoint;

const LEASE_DURATION: Duration = Duration::from_secs(10);

/// A set of leases, one per line: `shard-2 owner=b idle=12s end`. If a line contains `load=9`, in KiB
/// per second, throughput is balanced instead of the number of leases.
struct Fixture {
    leases: BTreeMap<LeaseKey, Lease>,
    observations: Observations,
    now: Instant,
}

impl Fixture {
    fn parse(text: &str) -> Self {
        let start = Instant::now();
        let now = start + Duration::from_secs(100);
        let mut fixture =
            Self { leases: BTreeMap::new(), observations: Observations::default(), now };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let mut lease = Lease::new(words.next().expect("a key"), Checkpoint::TrimHorizon);
            let mut idle = 0;
            for word in words {
                match word.split_once('=') {
                    Some(("owner", owner)) => lease.owner = Some(owner.into()),
                    Some(("still", owner)) => lease.checkpoint_owner = Some(owner.into()),
                    Some(("idle", seconds)) => {
                        idle = seconds.trim_end_matches('s').parse().expect("seconds");
                    }
                    Some(("load", load)) => {
                        lease.throughput = Some(1024 * load.parse::<u64>().expect("KiB a second"));
                    }
                    Some(("parents", list)) => {
                        lease.parents = list.split(',').map(Into::into).collect()
                    }
                    _ => lease.checkpoint = Checkpoint::ShardEnd,
                }
            }
            fixture.observations.saw(now - Duration::from_secs(idle), &lease);
            fixture.leases.insert(lease.key.clone(), lease);
        }
        fixture
    }

    fn takes(&self, me: &str, mine: &str, limit: usize) -> Vec<Take> {
        self.takes_readable_for(me, mine, limit, 100)
    }

    /// Returns the takes of a worker without leases that knows another worker to be full.
    fn takes_beside_full(&self, me: &str, full: &str) -> Vec<Take> {
        let full = [full.into()].into();
        self.takes_by(me, "", usize::MAX, (100, &full))
    }

    /// Returns the takes of a worker that has been able to read the table for `seconds`.
    fn takes_readable_for(&self, me: &str, mine: &str, limit: usize, seconds: u64) -> Vec<Take> {
        self.takes_by(me, mine, limit, (seconds, &BTreeSet::new()))
    }

    fn takes_by(
        &self,
        me: &str,
        mine: &str,
        limit: usize,
        (seconds, full): (u64, &BTreeSet<WorkerId>),
    ) -> Vec<Take> {
        let is_measured = self.leases.values().any(|lease| lease.throughput.is_some());
        leases_to_take(&Snapshot {
            me: &me.into(),
            leases: &self.leases,
            mine: &mine.split(',').filter(|key| !key.is_empty()).map(Into::into).collect(),
            hidden: &BTreeSet::new(),
            avoided: &BTreeMap::new(),
            duplicates: &BTreeMap::new(),
            observations: &self.observations,
            readable_since: self.now - Duration::from_secs(seconds),
            now: self.now,
            lease_duration: LEASE_DURATION,
            orphan_grace: LEASE_DURATION / 5,
            balance: if is_measured { Balance::Throughput } else { Balance::Count },
            limit,
            full,
        })
    }
}

fn check(world: &str, me: &str, mine: &str, expected: &str) {
    let takes = Fixture::parse(world).takes(me, mine, usize::MAX);
    let found: Vec<_> =
        takes.iter().map(|take| format!("{} {:?}", take.key, take.reason)).collect();
    assert_eq!(found.join(", "), expected);
}

#[test]
fn a_lone_worker_adopts_every_lease_without_an_owner() {
    check("0\n 1\n 2", "a", "", "0 Unowned, 1 Unowned, 2 Unowned");
}

#[test]
fn a_lease_is_expired_at_the_end_of_its_duration_and_not_before() {
    check("0 owner=b idle=9s", "a", "", "");
    check("0 owner=b idle=10s", "a", "", "0 Expired");
}

#[test]
fn orphans_are_adopted_also_by_a_worker_that_has_its_share() {
    let world = "0 owner=a\n 1 owner=a\n 2 owner=b\n 3 owner=dead idle=13s";
    check(world, "a", "0,1", "3 Expired");
}

#[test]
fn an_orphan_falls_to_the_worker_with_the_least_and_others_wait_for_a_while() {
    let fresh = "0 owner=a\n 1 owner=a\n 2 owner=b\n 3";
    check(fresh, "b", "2", "3 Unowned");
    check(fresh, "a", "0,1", "");
    check("0 owner=a\n 1 owner=a\n 2 owner=b\n 3 idle=2s", "a", "0,1", "3 Unowned");
}

#[test]
fn s18_after_an_outage_of_the_table_nobody_is_held_for_dead_at_once() {
    let fixture = Fixture::parse("0 owner=a idle=60s\n 1 owner=b idle=60s\n 2 owner=c idle=1s");
    let taken = |seconds| {
        let takes = fixture.takes_readable_for("a", "", usize::MAX, seconds).into_iter();
        takes.map(|take| format!("{} {:?}", take.key, take.reason)).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(taken(1), "0 Own");
    assert_eq!(taken(2), "0 Own, 1 Expired");
}

#[test]
fn a_lease_of_our_own_from_before_a_restart_is_taken_at_once() {
    check("0 owner=a\n 1 owner=b\n 2 owner=b", "a", "", "0 Own");
}

#[test]
fn a_newcomer_takes_its_share_in_one_pass() {
    let world = "0 owner=b\n 1 owner=b\n 2 owner=b\n 3 owner=b";
    check(world, "a", "", "2 Balance, 3 Balance");
}

#[test]
fn nothing_moves_while_loads_differ_by_one() {
    check("0 owner=b\n 1 owner=b\n 2 owner=a", "a", "2", "");
    check("0 owner=b\n 1 owner=b\n 2 owner=a", "b", "0,1", "");
    check("0 owner=b", "a", "", "");
}

#[test]
fn finished_leases_and_children_of_unfinished_parents_do_not_count() {
    check("0 end\n 1 owner=b parents=0\n 2 owner=b", "a", "", "2 Balance");
    check("0 owner=b\n 1 parents=0", "a", "", "");
    check("0 end\n 1 parents=0", "a", "", "1 Unowned");
    check("0 end\n 2 parents=0,1", "a", "", "2 Unowned");
}

#[test]
fn a_lease_that_is_being_handed_over_counts_for_the_worker_that_will_have_it() {
    let world = "0 owner=b\n 1 owner=b\n 2 owner=a still=b\n 3 owner=a still=b";
    check(world, "a", "", "");
    check(world, "b", "0,1,2,3", "");
    check("0 owner=b\n 1 owner=a still=b idle=11s", "a", "", "1 Expired");
    check("0 owner=b\n 1 owner=b still=a", "a", "", "1 Own");
}

#[test]
fn the_limit_of_a_worker_is_kept() {
    let fixture = Fixture::parse("0\n 1\n 2");
    assert_eq!(fixture.takes("a", "", 2).len(), 2);
    assert_eq!(fixture.takes("a", "0,1", 2).len(), 0);
}

#[test]
fn what_a_full_worker_does_not_take_is_shared_by_the_others() {
    for load in ["", " load=900"] {
        let of_b = (10..22).map(|key| format!("{key} owner=b{load}\n"));
        let fixture = Fixture::parse(&of_b.chain([format!("0 owner=a{load}")]).collect::<String>());
        assert_eq!(fixture.takes("c", "", usize::MAX).len(), 4, "{load}");
        assert_eq!(fixture.takes_beside_full("c", "a").len(), 6, "{load}");
    }
}

#[test]
fn a_worker_is_full_when_what_would_move_to_it_has_not_for_three_leases() {
    let (mut full, start) = (Full::default(), Instant::now());
    let mut at = |leases: u32, receivers: &[(&str, usize)]| {
        let receivers = receivers.iter().map(|(worker, held)| ((*worker).into(), *held)).collect();
        full.learn(&receivers, start + LEASE_DURATION * leases, LEASE_DURATION);
        full.workers().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    assert_eq!(at(0, &[("a", 1), ("b", 1)]), "");
    assert_eq!(at(2, &[("a", 1), ("b", 2)]), "");
    assert_eq!(at(3, &[("a", 1), ("b", 2)]), "a");
    assert_eq!(at(5, &[("a", 1), ("b", 2)]), "a,b");
    assert_eq!(at(6, &[("a", 2)]), "", "it has taken one, and nothing would move to the other");
    assert_eq!(at(8, &[("a", 2), ("b", 2)]), "");
    assert_eq!(at(9, &[("a", 2), ("b", 2)]), "a");
}

#[test]
fn c10_the_setting_decides_whether_numbers_or_loads_are_made_even() {
    let by_number = "0 owner=b\n 1 owner=b\n 2 owner=b\n 3 owner=a";
    check(by_number, "a", "3", "2 Balance");
    let by_load =
        "0 owner=b load=900\n 1 owner=b load=500\n 2 owner=b load=400\n 3 owner=a load=100";
    check(by_load, "a", "3", "0 Balance");
}

/// Random leases of up to six workers, none of them expired.
fn worlds() -> impl Strategy<Value = Vec<Option<u8>>> {
    prop::collection::vec(prop::option::weighted(0.9, 0u8..6), 1..60)
}

/// Lets every worker perform its part of the plan that it computes from the shared snapshot.
fn settle(owners: &[Option<u8>]) -> (BTreeMap<LeaseKey, Lease>, usize) {
    let workers: BTreeSet<WorkerId> = owners
        .iter()
        .flatten()
        .map(|worker| format!("w{worker}").into())
        .chain(["w0".into()])
        .collect();
    let now = Instant::now() + Duration::from_secs(100);
    let mut leases = BTreeMap::new();
    for (index, owner) in owners.iter().enumerate() {
        let mut lease = Lease::new(format!("{index:03}"), Checkpoint::TrimHorizon);
        lease.owner = owner.map(|worker| format!("w{worker}").into());
        leases.insert(lease.key.clone(), lease);
    }
    let mut moves = 0;
    for _pass in 0..4 {
        let snapshot = leases.clone();
        let mut taken = BTreeSet::new();
        let known: BTreeSet<_> =
            snapshot.values().filter_map(|lease| lease.owner.clone()).collect();
        let everyone_is_known = known.len() == workers.len();
        for me in &workers {
            let mine = snapshot.values().filter(|lease| lease.owner.as_ref() == Some(me));
            let takes = leases_to_take(&Snapshot {
                me,
                leases: &snapshot,
                mine: &mine.map(|lease| lease.key.clone()).collect(),
                hidden: &BTreeSet::new(),
                avoided: &BTreeMap::new(),
                duplicates: &BTreeMap::new(),
                observations: &Observations::default(),
                readable_since: now,
                now,
                lease_duration: LEASE_DURATION,
                orphan_grace: LEASE_DURATION / 5,
                balance: Balance::Count,
                limit: usize::MAX,
                full: &BTreeSet::new(),
            });
            for take in takes {
                if !taken.insert(take.key.clone()) {
                    // The counter lets one of the two win; the plans agree once every worker is
                    // known.
                    assert!(!everyone_is_known, "two workers plan to take {}", take.key);
                    continue;
                }
                moves += usize::from(take.reason == TakeReason::Balance);
                leases.get_mut(&take.key).expect("of the snapshot").owner = Some(me.clone());
            }
        }
    }
    (leases, moves)
}

proptest! {
    #[test]
    fn fleets_settle_evenly_with_no_more_moves_than_needed(owners in worlds()) {
        let (leases, moves) = settle(&owners);
        let mut loads: BTreeMap<WorkerId, usize> =
            owners.iter().flatten().map(|worker| (format!("w{worker}").into(), 0)).collect();
        loads.entry("w0".into()).or_default();
        let mut before = loads.clone();
        for owner in owners.iter().flatten() {
            *before.entry(format!("w{owner}").into()).or_default() += 1;
        }
        for lease in leases.values() {
            let owner = lease.owner.clone().expect("every orphan is adopted");
            *loads.entry(owner).or_default() += 1;
        }
        let (least, most) = (loads.values().min().unwrap(), loads.values().max().unwrap());
        prop_assert!(most - least <= 1, "{loads:?}");
        let floor = leases.len() / loads.len();
        let short: usize = before.values().map(|load| (floor + 1).saturating_sub(*load)).sum();
        prop_assert!(moves <= short, "{moves} moves, {short} needed at most");
    }
}

/// Returns by how much the loads differ after a fleet of `workers` has settled on `shards` leases.
fn spread_of(shards: usize, workers: u8) -> usize {
    // The worst start: one worker holds all leases except one for each of the others.
    let owners: Vec<_> = (0..shards)
        .map(|index| Some(u8::try_from(index).ok().filter(|it| *it < workers).unwrap_or(0)))
        .collect();
    let (leases, _) = settle(&owners);
    let mut loads: BTreeMap<_, usize> = BTreeMap::new();
    for lease in leases.values() {
        *loads.entry(lease.owner.clone()).or_default() += 1;
    }
    assert_eq!(loads.len(), usize::from(workers));
    loads.values().max().unwrap() - loads.values().min().unwrap()
}

#[test]
fn c10_shares_differ_by_one_at_most_whatever_the_numbers() {
    for (shards, workers) in [(256, 41), (160, 20), (100, 11), (41, 41), (1000, 7)] {
        assert!(spread_of(shards, workers) <= 1, "{shards} leases, {workers} workers");
    }
}
