//! Tests of the planner against the reference graphs of the Java library, and of its own rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::position::Cursor;

/// Parses one line per shard: `8 parents=6,7 open`; hash ranges do not matter here.
fn listing(text: &str) -> Listing {
    let shards = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| {
        let parents = line.split_whitespace().find_map(|word| word.strip_prefix("parents="));
        let parents =
            parents.map_or(BTreeSet::new(), |list| list.split(',').map(Into::into).collect());
        let id = line.split_whitespace().next().expect("a line starts with the id");
        Shard {
            id: id.into(),
            parents,
            hash_range: HashRange::ALL,
            is_open: line.ends_with("open"),
        }
    });
    Listing { shards: shards.collect(), at: Timestamp::from_millis(1000) }
}

fn leases(ids: &str) -> BTreeMap<LeaseKey, Lease> {
    let ids = ids.split(',').filter(|id| !id.is_empty());
    ids.map(|id| (id.into(), Lease::new(id, Checkpoint::TrimHorizon))).collect()
}

fn from(position: InitialPosition) -> Source {
    Source { position, ..Source::default() }
}

fn created(graph: &str, existing: &str, position: InitialPosition) -> String {
    let mut ids: Vec<u32> = leases_to_create(&listing(graph), &leases(existing), &from(position))
        .iter()
        .map(|lease| lease.key.as_str().parse().expect("the ids of the graphs are numbers"))
        .collect();
    ids.sort_unstable();
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Two merges that merge again, an unchanged shard, and a split.
const A: &str = "
    0
    1
    2
    3
    4 open
    5
    6 parents=0,1
    7 parents=2,3
    8 parents=6,7 open
    9 parents=5 open
    10 parents=5 open";
/// Alternating merges and splits.
const B: &str = "
    0
    1
    2 parents=0,1
    3 parents=2
    4 parents=2
    5 parents=3,4
    6 parents=5
    7 parents=5
    8 parents=6,7
    9 parents=8 open
    10 parents=8 open";
/// Two levels of splits, a merge, an unchanged shard.
const C: &str = "
    0
    1 open
    2
    3
    4 parents=0
    5 parents=0
    6 parents=2,3 open
    7 parents=4 open
    8 parents=4 open
    9 parents=5 open
    10 parents=5 open";

#[test]
fn the_reference_graphs_of_the_java_library_give_its_leases() {
    for (graph, existing, latest, horizon) in [
        (A, "", "4,8,9,10", "0,1,2,3,4,5"),
        (A, "3,4,5", "2,6", "0,1,2"),
        (A, "4,5,7", "6", "0,1"),
        (A, "2,6", "3,4,9,10", "3,4,5"),
        (A, "4,9,10", "8", "0,1,2,3"),
    ] {
        assert_eq!(created(graph, existing, InitialPosition::Latest), latest, "{existing}");
        assert_eq!(created(graph, existing, InitialPosition::TrimHorizon), horizon, "{existing}");
    }
    assert_eq!(created(C, "9,10", InitialPosition::Latest), "1,6,7,8");
    assert_eq!(created(B, "6", InitialPosition::Latest), "7");
}

#[test]
fn a_child_of_ended_parents_is_made_at_its_own_beginning_whatever_the_position() {
    let graph = "0\n 1 parents=0 open\n 2 parents=0 open";
    let mut leases = leases("0");
    assert!(leases_to_create(&listing(graph), &leases, &from(InitialPosition::Latest)).is_empty());
    leases.get_mut("0").expect("in the fixture").checkpoint = Checkpoint::ShardEnd;
    let made = leases_to_create(&listing(graph), &leases, &from(InitialPosition::Latest));
    assert_eq!(made.len(), 2);
    assert!(made.iter().all(|lease| lease.checkpoint == Checkpoint::TrimHorizon));
}

#[test]
fn a_child_of_a_leased_parent_that_is_no_longer_listed_waits_for_it_and_starts_at_its_beginning() {
    let graph = "1 parents=0 open\n 2 parents=0 open";
    let mut leases = leases("0");
    assert!(leases_to_create(&listing(graph), &leases, &from(InitialPosition::Latest)).is_empty());
    leases.get_mut("0").expect("in the fixture").checkpoint = Checkpoint::ShardEnd;
    let made = leases_to_create(&listing(graph), &leases, &from(InitialPosition::Latest));
    assert_eq!(made.len(), 2);
    assert!(made.iter().all(|lease| lease.checkpoint == Checkpoint::TrimHorizon));
}

#[test]
fn a_merge_child_waits_until_both_parents_have_ended() {
    let graph = "0\n 1\n 2 parents=0,1 open";
    let mut leases = leases("0,1");
    leases.get_mut("0").expect("in the fixture").checkpoint = Checkpoint::ShardEnd;
    assert!(
        leases_to_create(&listing(graph), &leases, &from(InitialPosition::TrimHorizon)).is_empty()
    );
}

#[test]
fn a_child_listed_beside_its_open_parent_is_left_for_a_later_listing() {
    let graph = "0 open\n 1 parents=0 open";
    assert_eq!(created(graph, "5", InitialPosition::TrimHorizon), "0");
    let graph = "0 open\n 1\n 2 parents=0,1 open";
    assert_eq!(created(graph, "", InitialPosition::Latest), "0", "and so is its other parent");
}

#[test]
fn a_new_lease_at_the_tip_carries_the_time_that_the_tip_was_resolved_to() {
    let made = leases_to_create(&listing(A), &leases(""), &from(InitialPosition::Latest));
    assert!(made.iter().all(|lease| lease.anchor == Some(Timestamp::from_millis(1000))));
}

#[test]
fn a_lease_that_the_first_start_did_not_get_to_starts_when_that_start_was() {
    let mut leases = leases("4");
    leases.get_mut("4").expect("in the fixture").anchor = Some(Timestamp::from_millis(400));
    let made = leases_to_create(&listing(A), &leases, &from(InitialPosition::Latest));
    assert!(made.iter().all(|lease| lease.anchor == Some(Timestamp::from_millis(400))));
}

#[test]
fn l03_what_the_first_start_did_not_get_to_is_read_also_if_it_has_ended_since() {
    let mut leases = leases("0");
    leases.get_mut("0").expect("in the fixture").anchor = Some(Timestamp::from_millis(400));
    let graph = listing("0 open\n1\n2\n3 parents=1,2 open");
    let made = leases_to_create(&graph, &leases, &from(InitialPosition::Latest));
    assert_eq!(made.iter().map(|lease| lease.key.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    assert!(made.iter().all(|lease| lease.anchor == Some(Timestamp::from_millis(400))));
}

#[test]
fn what_the_first_start_has_reached_is_not_begun_again_above_it() {
    // Another worker is creating the first leases: 3 exists, 4, 5 and 6 do not yet.
    let graph = "0\n1 parents=0\n2 parents=0\n3 parents=1 open\n4 parents=1 open
        5 parents=2 open\n6 parents=2 open";
    let mut leases = leases("3");
    leases.get_mut("3").expect("in the fixture").anchor = Some(Timestamp::from_millis(400));
    let made = leases_to_create(&listing(graph), &leases, &from(InitialPosition::Latest));
    assert_eq!(made.iter().map(|lease| lease.key.as_str()).collect::<Vec<_>>(), ["2", "4"]);
    // It was closed before the start, so the application starts with its children.
    let child = ChildShard::of(&"2".into(), listing(graph).shards).remove(0);
    let after = |checkpoint| child_lease(&Lease { checkpoint, ..made[0].clone() }, &child);
    let (unread, read) = (after(Checkpoint::Latest), after(Checkpoint::parse("7", 0).unwrap()));
    assert_eq!(unread.cursor(), Some(Cursor::Timestamp(Timestamp::from_millis(400))));
    assert_eq!(unread.checkpoint, Checkpoint::TrimHorizon, "for other libraries");
    assert_eq!(child_lease(&unread, &child).anchor, unread.anchor, "and theirs");
    assert_eq!(read.cursor(), Some(Cursor::Horizon));
}

#[test]
fn first_leases_wait_for_a_listing_that_covers_the_whole_hash_space() {
    let half = HashRange { start: 0, end: u128::MAX / 2 };
    let rest = HashRange { start: u128::MAX / 2 + 1, end: u128::MAX };
    let mut listing = listing("0 open\n 1 open");
    listing.shards[0].hash_range = half;
    listing.shards[1].hash_range = half;
    let source = from(InitialPosition::Latest);
    assert_eq!(first_leases(&listing, &source, Start::Latest), None);
    listing.shards[1].hash_range = rest;
    let leases = first_leases(&listing, &source, Start::Latest);
    assert_eq!(leases.map(|leases| leases.len()), Some(2));
}

#[test]
fn a_start_is_decided_by_the_services_time_and_is_never_later() {
    let (at, ago) = (Timestamp::from_millis, |ms| InitialPosition::Ago(Duration::from_millis(ms)));
    let now = at(1000);
    for (position, start) in [
        (InitialPosition::Latest, Start::Latest),
        (InitialPosition::TrimHorizon, Start::TrimHorizon),
        (InitialPosition::AtTimestamp(at(400)), Start::At(at(400))),
        (InitialPosition::AtTimestamp(at(1001)), Start::At(now)),
        (InitialPosition::AtTimestamp(at(i64::MAX)), Start::At(now)),
        (ago(0), Start::At(now)),
        (ago(300), Start::At(at(700))),
        // Before the epoch, which no service accepts.
        (ago(1001), Start::At(at(0))),
        (InitialPosition::Ago(Duration::MAX), Start::At(at(0))),
        (InitialPosition::AtTimestamp(at(i64::MIN)), Start::At(at(0))),
    ] {
        assert_eq!(Start::of(position, now), start, "{position:?}");
    }
}

#[test]
fn no_lease_is_made_that_starts_at_a_time_that_is_still_to_come() {
    let (to_come, now) = (Timestamp::from_millis(5000), listing(A).at);
    for (anchor, position) in [
        (Some(to_come), InitialPosition::Latest),
        (Some(to_come), InitialPosition::Ago(Duration::ZERO)),
        (Some(to_come), InitialPosition::AtTimestamp(to_come)),
        (None, InitialPosition::AtTimestamp(to_come)),
    ] {
        let mut leases = leases("4");
        leases.get_mut("4").expect("in the fixture").anchor = anchor;
        let made = leases_to_create(&listing(A), &leases, &from(position));
        assert!(!made.is_empty());
        let starts = |lease: &Lease| lease.anchor.is_none_or(|time| time <= now);
        assert!(made.iter().all(starts), "{position:?}: {made:?}");
    }
}

#[test]
fn how_long_ago_counts_from_the_first_start_or_is_the_beginning_where_no_row_tells_of_it() {
    let ago = from(InitialPosition::Ago(Duration::from_millis(1)));
    let mut leases = leases("4");
    let made = leases_to_create(&listing(A), &leases, &ago);
    assert!(made.iter().all(|lease| lease.cursor() == Some(Cursor::Horizon)), "{made:?}");
    let then = Timestamp::from_millis(400);
    leases.get_mut("4").expect("in the fixture").anchor = Some(then);
    let made = leases_to_create(&listing(A), &leases, &ago);
    assert!(made.iter().all(|lease| lease.cursor() == Some(Cursor::Timestamp(then))), "{made:?}");
}

#[test]
fn ranges_cover_everything_only_without_a_hole() {
    let range = |start, end| HashRange { start, end };
    assert!(covers_everything([HashRange::ALL, range(5, 9)].into_iter()));
    assert!(covers_everything([range(0, 9), range(5, u128::MAX)].into_iter()));
    assert!(!covers_everything([range(0, 9), range(11, u128::MAX)].into_iter()));
    assert!(!covers_everything([range(1, u128::MAX)].into_iter()));
    assert!(!covers_everything(std::iter::empty()));
}

/// Returns the rows of a finished parent with two children.
fn family() -> BTreeMap<LeaseKey, Lease> {
    let mut leases = leases("0,1,2");
    let parent = leases.get_mut("0").expect("in the fixture");
    parent.checkpoint = Checkpoint::ShardEnd;
    parent.children = ["1".into(), "2".into()].into();
    for child in ["1", "2"] {
        let child = leases.get_mut(child).expect("in the fixture");
        child.checkpoint = Checkpoint::parse("7", 0).expect("digits");
        child.parents = ["0".into()].into();
    }
    leases
}

fn deleted(leases: &BTreeMap<LeaseKey, Lease>) -> Vec<&str> {
    leases_to_delete(leases).iter().map(|lease| lease.key.as_str()).collect()
}

#[test]
fn a_finished_lease_is_deleted_only_when_every_child_has_made_progress() {
    assert_eq!(deleted(&family()), ["0"]);
    for checkpoint in [Checkpoint::TrimHorizon, Checkpoint::Latest, Checkpoint::AtTimestamp] {
        let mut leases = family();
        leases.get_mut("2").expect("in the fixture").checkpoint = checkpoint;
        assert!(deleted(&leases).is_empty());
    }
    let mut leases = family();
    leases.remove("2");
    assert!(deleted(&leases).is_empty(), "a child without a lease has not started");
}

#[test]
fn a_finished_lease_stays_while_a_parent_of_it_has_one() {
    let mut leases = family();
    let child = leases.get_mut("1").expect("in the fixture");
    child.checkpoint = Checkpoint::ShardEnd;
    child.children = ["2".into()].into();
    assert_eq!(deleted(&leases), ["0"], "1 could be re-created while 0 exists");
}

#[test]
fn l06_a_parent_that_a_late_listing_shows_open_is_not_read_again_beside_its_child() {
    let range = |start, end| Some(HashRange { start, end });
    let half = u128::MAX / 2;
    let shard = |id: &str, hash_range: Option<HashRange>| Shard {
        id: id.into(),
        parents: BTreeSet::new(),
        hash_range: hash_range.unwrap(),
        is_open: true,
    };
    let shards = vec![shard("0", range(0, half)), shard("1", range(half + 1, u128::MAX))];
    let late = Listing { shards, at: Timestamp::from_millis(0) };
    let child = Lease {
        parents: ["0", "1"].map(ShardId::from).into(),
        hash_range: Some(HashRange::ALL),
        ..Lease::new("2", Checkpoint::parse("9", 0).unwrap())
    };
    let mut rows: BTreeMap<LeaseKey, Lease> = [(child.key.clone(), child)].into();
    assert_eq!(leases_to_create(&late, &rows, &from(InitialPosition::TrimHorizon)), []);
    rows.values_mut().next().unwrap().hash_range = range(0, half);
    let made = leases_to_create(&late, &rows, &from(InitialPosition::TrimHorizon));
    assert_eq!(made.iter().map(|lease| lease.key.as_str()).collect::<Vec<_>>(), ["1"]);
}

#[test]
fn l03_a_shard_of_unknown_lineage_starts_at_its_beginning_when_no_row_tells_what_latest_was() {
    let rows = leases("1");
    let made =
        leases_to_create(&listing("1\n9 parents=5 open"), &rows, &from(InitialPosition::Latest));
    let reported: Vec<_> = made.iter().map(|it| (it.key.as_str(), &it.checkpoint)).collect();
    assert_eq!(reported, [("9", &Checkpoint::TrimHorizon)]);
}

#[test]
fn a_child_is_made_when_one_parent_has_ended_and_the_other_left_no_trace() {
    let mut leases = leases("0");
    leases.get_mut("0").expect("in the fixture").checkpoint = Checkpoint::ShardEnd;
    let graph = listing("2 parents=0,1 open");
    let made = leases_to_create(&graph, &leases, &from(InitialPosition::Latest));
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].checkpoint, Checkpoint::TrimHorizon);
}

#[test]
fn a_shard_that_has_just_ended_covers_until_its_children_are_known() {
    let shard = |id: &str, parents: &[&str], is_open| Shard {
        id: id.into(),
        parents: parents.iter().map(|id| ShardId::from(*id)).collect(),
        hash_range: HashRange::ALL,
        is_open,
    };
    let ended = Lease {
        hash_range: Some(HashRange::ALL),
        children: ["2".into()].into(),
        parents: ["0".into()].into(),
        ..Lease::new("1", Checkpoint::ShardEnd)
    };
    let rows: BTreeMap<LeaseKey, Lease> = [(ended.key.clone(), ended)].into();
    let made = |shards| {
        let listing = Listing { shards, at: Timestamp::from_millis(0) };
        leases_to_create(&listing, &rows, &from(InitialPosition::TrimHorizon))
    };
    assert_eq!(made(vec![shard("0", &[], true)]), [], "a stale listing shows the parent");
    let children = made(vec![shard("1", &["0"], false), shard("2", &["1"], true)]);
    assert_eq!(children.len(), 1, "a child whose lease could not be created is created here");
}

#[test]
fn behind_a_shard_that_was_passed_over_only_what_nobody_serves_is_made() {
    // 0 and 1 were merged into 2, which was split into 3 and 4; 4 into 5 and 6.
    let shards = listing(
        "0\n 1\n 2 parents=0,1\n 3 parents=2 open\n 4 parents=2\n 5 parents=4 open\n 6 parents=4 open",
    )
    .shards;
    for (leased, made) in [
        ("", None),
        ("0", None),
        ("3,4", Some("")),
        ("4", Some("3")),
        ("3,5", Some("6")),
        ("3,5,6", Some("")),
        ("5", Some("3,6")),
    ] {
        let leased: BTreeSet<ShardId> =
            leased.split(',').filter(|id| !id.is_empty()).map(Into::into).collect();
        let missing = missing_behind(&"2".into(), &shards, &leased);
        let missing = missing.map(|missing| {
            let ids: Vec<_> = missing.iter().map(|child| child.id.as_str()).collect();
            ids.join(",")
        });
        assert_eq!(missing.as_deref(), made, "{leased:?}");
    }
}

#[test]
fn a_row_is_of_this_stream_or_of_another_one_and_says_which() {
    let named = |arn: &str, created| StreamIdentity {
        arn: arn.to_owned(),
        created: Timestamp::from_millis(created),
    };
    let own = named("north", 2_000);
    let source = Source { identity: Some(own.clone()), ..Source::default() };
    let row = |stream: Option<StreamIdentity>| Lease::of_stream(stream, "0", Checkpoint::Latest);
    let other = |stream| source.other_stream(&row(Some(stream)));
    assert_eq!(other(own.clone()), None);
    assert_eq!(other(named("north", 1_999)), Some(Other::Former));
    assert_eq!(other(named("north", 2_001)), Some(Other::Newer));
    assert_eq!(other(named("south", 1_999)), Some(Other::Unrelated));
    // Rows of other libraries do not store the stream.
    assert_eq!(source.other_stream(&row(None)), None);
    // A worker that may not describe the stream trusts the rows.
    assert_eq!(Source::default().other_stream(&row(Some(own))), None);

    // Among several streams the keys tell too.
    let key = |name, created| StreamKey::of_several("1", name, Timestamp::from_millis(created));
    let source = Source { key: key("north", 2_000), ..source };
    let row = |name, created, stream| {
        let key = key(name, created).lease(&"shardId-0".into());
        Lease::of_stream(stream, key, Checkpoint::Latest)
    };
    assert_eq!(source.other_stream(&row("north", 2_000, None)), None);
    assert_eq!(source.other_stream(&row("north", 1_000, None)), Some(Other::Former));
    assert_eq!(source.other_stream(&row("north", 3_000, None)), None);
    let newer = Some(named("north", 3_000));
    assert_eq!(source.other_stream(&row("north", 3_000, newer)), Some(Other::Newer));
    // A stream of the same name in another region.
    let elsewhere = Some(named("north elsewhere", 1_000));
    assert_eq!(source.other_stream(&row("north", 1_000, elsewhere)), None);
    // Created when it was the only stream of a worker.
    let former = Lease::of_stream(Some(named("north", 1_999)), "shardId-0", Checkpoint::Latest);
    assert_eq!(source.other_stream(&former), Some(Other::Former));
    assert_eq!(source.other_stream(&row("south", 1_000, Some(named("south", 1_000)))), None);
}

/// A worker that started over with a re-created stream crashed after it had created the first of two
/// leases.
#[test]
fn a_stream_that_was_recreated_is_read_from_its_beginning_by_any_worker_that_completes_the_start() {
    let created = Timestamp::from_millis(2_000);
    let identity = StreamIdentity { arn: "north".to_owned(), created };
    let adopter = Source {
        identity: Some(identity.clone()),
        position: InitialPosition::TrimHorizon,
        since: Some(created),
        ..Source::default()
    };
    let halved = |text| {
        let mut listing = listing(text);
        let middle = HashRange::ALL.end / 2;
        listing.shards[0].hash_range.end = middle;
        let rest = listing.shards.iter_mut().skip(1);
        rest.for_each(|shard| shard.hash_range.start = middle + 1);
        listing
    };
    let before = Listing { at: Timestamp::from_millis(9_000), ..halved("1 open\n2 open") };
    let first = first_leases(&before, &adopter, Start::TrimHorizon).unwrap().swap_remove(0);
    assert_eq!((&first.checkpoint, first.anchor), (&Checkpoint::TrimHorizon, Some(created)));
    assert_eq!(first.cursor(), Some(Cursor::Timestamp(created)));
    let leases: BTreeMap<_, _> = [(first.key.clone(), first)].into();
    // Since then 2 has been split.
    let now = halved("1 open\n2\n3 parents=2 open\n4 parents=2 open");
    let now = Listing { at: Timestamp::from_millis(20_000), ..now };
    let later = InitialPosition::AtTimestamp(Timestamp::from_millis(15_000));
    for position in [InitialPosition::Latest, later, InitialPosition::TrimHorizon] {
        let source = Source { identity: Some(identity.clone()), position, ..Source::default() };
        let made = leases_to_create(&now, &leases, &source);
        let second = made.iter().find(|lease| lease.shard().as_str() == "2").unwrap();
        let starts = second.cursor().unwrap();
        let is_beginning = [Cursor::Horizon, Cursor::Timestamp(created)].contains(&starts);
        assert!(is_beginning, "{position:?}: {starts:?}");
    }
}
