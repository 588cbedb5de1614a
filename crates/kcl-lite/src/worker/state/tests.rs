//! The coordinator's decisions, one input at a time, without a runtime.

use super::data::HandoffRequest;
use super::*;
use crate::error::ServiceErrorKind;
use crate::lease::tenure::create_write;
use crate::lease::timing::{HANDOFF_SCAN, HOLE_PAUSE};
use crate::lease::{StreamIdentity, StreamKey};
use crate::position::{Checkpoint, InitialPosition};
use crate::record::Timestamp;
use crate::settings::StreamRecreated;
use crate::shard::{HashRange, Listing, Shard};

const SECOND: Duration = Duration::from_secs(1);

fn state(start: Instant) -> State {
    State::new("me".into(), "me#1".into(), Arc::default(), vec![Source::default()], start)
}

fn lease(key: &str, owner: Option<&str>, counter: u64) -> Lease {
    Lease { owner: owner.map(Into::into), counter, ..Lease::new(key, Checkpoint::TrimHorizon) }
}

fn scanned(rows: Vec<Lease>) -> Input {
    Input::Scanned(Ok(rows.into()))
}

fn listed(result: Result<Listing, ServiceError>) -> Input {
    Input::Listed { stream: StreamKey::ONLY, result }
}

fn taken(actions: &[Action]) -> Vec<LeaseWrite> {
    let writes = actions.iter().filter_map(|action| match action {
        Action::Write(write, Why::Take { .. }) => Some(write.clone()),
        Action::Write(..)
        | Action::Scan
        | Action::List { .. }
        | Action::Look(_)
        | Action::Start { .. }
        | Action::Drain(_)
        | Action::DrainAll
        | Action::Fail(_)
        | Action::Emit(_) => None,
    });
    writes.collect()
}

fn names(actions: &[Action]) -> String {
    let names = actions.iter().map(|action| match action {
        Action::Scan => "scan".to_owned(),
        Action::List { .. } => "list".to_owned(),
        Action::Look(key) => format!("look at {key}"),
        Action::Write(write, why) => format!("{} {}", why.describe(), write.key),
        Action::Start { lease, .. } => format!("start {}", lease.key),
        Action::Drain(key) => format!("drain {key}"),
        Action::DrainAll => "drain".to_owned(),
        Action::Fail(error) => format!("fail: {error}"),
        Action::Emit(event) => format!("say {event}"),
    });
    names.collect::<Vec<_>>().join("; ")
}

#[test]
fn a_lease_of_a_silent_worker_is_taken_at_the_instant_it_expires_without_a_scan() {
    let start = Instant::now();
    let mut state = state(start);
    assert_eq!(names(&state.step(start, Input::TimeDue)), "scan");
    let rows = vec![lease("0", Some("other"), 4)];
    assert!(taken(&state.step(start, scanned(rows))).is_empty());
    state.next_scan = start + 60 * SECOND;
    state.audit_at(start + 60 * SECOND);

    assert_eq!(state.next_due(), Some(start + 10 * SECOND));
    assert!(taken(&state.step(start + 9 * SECOND, Input::TimeDue)).is_empty());
    let takes = taken(&state.step(start + 10 * SECOND, Input::TimeDue));
    assert_eq!(takes.len(), 1);
    assert_eq!(takes[0].id, take_id("me#1", 4));
}

#[test]
fn an_expired_lease_that_falls_to_another_worker_does_not_make_the_timer_spin() {
    let start = Instant::now();
    let mut state = state(start);
    let rows = vec![
        lease("0", Some("dead"), 4),
        lease("1", Some("me"), 1),
        lease("2", Some("me"), 1),
        lease("3", Some("live"), 1),
    ];
    state.mine = ["1".into(), "2".into()].into();
    state.scanning = true;
    state.step(start, scanned(rows.clone()));
    let mut renewed = rows;
    renewed[3].counter = 2;
    state.step(start + 5 * SECOND, scanned(renewed));
    state.next_scan = start + 60 * SECOND;
    state.audit_at(start + 60 * SECOND);
    let expiry = start + 10 * SECOND;
    assert_eq!(state.next_due(), Some(expiry));
    assert!(taken(&state.step(expiry, Input::TimeDue)).is_empty(), "`live` has less");
    assert!(state.next_due() > Some(expiry));
}

#[test]
fn a_take_whose_reply_was_lost_is_recognised_by_its_mark() {
    let start = Instant::now();
    let mut state = state(start);
    let takes = taken(&state.step(start, scanned(vec![lease("0", None, 0)])));
    let row = takes[0].apply(Some(&lease("0", None, 0))).unwrap();
    let input = Input::Wrote {
        write: takes[0].clone(),
        why: Why::Take { reason: TakeReason::Unowned, from: None },
        sent: start,
        result: Ok(WriteOutcome::Refused(row)),
    };
    let actions = state.step(start + SECOND, input);
    assert!(
        actions.iter().any(|action| matches!(action, Action::Start { sent, .. } if *sent == start))
    );
}

#[test]
fn a_take_that_another_worker_won_is_dropped_quietly() {
    let start = Instant::now();
    let mut state = state(start);
    let takes = taken(&state.step(start, scanned(vec![lease("0", None, 0)])));
    let input = Input::Wrote {
        write: takes[0].clone(),
        why: Why::Take { reason: TakeReason::Unowned, from: None },
        sent: start,
        result: Ok(WriteOutcome::Refused(Some(lease("0", Some("other"), 1)))),
    };
    assert!(state.step(start, input).is_empty());
    assert!(state.mine.is_empty());
}

#[test]
fn a_lease_taken_while_stopping_is_released() {
    let start = Instant::now();
    let mut state = state(start);
    let takes = taken(&state.step(start, scanned(vec![lease("0", None, 0)])));
    assert_eq!(names(&state.step(start, Input::StopRequested)), "drain");
    assert!(!state.is_finished());
    let row = takes[0].apply(Some(&lease("0", None, 0))).unwrap();
    let input = Input::Wrote {
        write: takes[0].clone(),
        why: Why::Take { reason: TakeReason::Unowned, from: None },
        sent: start,
        result: Ok(WriteOutcome::Done(row)),
    };
    let actions = state.step(start, input);
    assert_eq!(names(&actions), "releasing a lease 0");
}

#[test]
fn a_worker_without_leases_says_once_who_holds_them() {
    let start = Instant::now();
    let mut state = state(start);
    let rows = || vec![lease("0", Some("other"), 4)];
    let first = state.step(start, scanned(rows()));
    assert_eq!(names(&first), "say standing by: 1 of 1 leases are held by [other]");
    assert_eq!(names(&state.step(start + SECOND, scanned(rows()))), "");
}

#[test]
fn a_failed_scan_is_reported_and_retried_later_and_later() {
    let start = Instant::now();
    let mut state = state(start);
    state.step(start, Input::TimeDue);
    let error = || ServiceError::new(ServiceErrorKind::Throttled, "Scan on table `t`: slow down");
    let actions = state.step(start, Input::Scanned(Err(error())));
    assert_eq!(names(&actions), "say reading the lease table failed: Scan on table `t`: slow down");
    assert_eq!(state.next_due(), Some(start + 2 * SECOND));
}

#[test]
fn scans_keep_to_the_read_budget_and_to_half_the_lease_duration() {
    let interval = |rows| timing::scan_interval(rows, 10 * SECOND);
    assert_eq!(interval(1), SECOND);
    assert_eq!(interval(100), Duration::from_millis(1_953));
    assert_eq!(interval(200), Duration::from_millis(3_906));
    assert_eq!(interval(5000), 5 * SECOND);
}

#[test]
fn the_end_of_a_shard_is_followed_by_a_scan_at_once() {
    let start = Instant::now();
    let mut state = state(start);
    state.step(start, scanned(vec![lease("0", None, 0)]));
    let ended = Lease { checkpoint: Checkpoint::ShardEnd, ..lease("0", None, 9) };
    let actions = state
        .step(start, Input::TenureEnded { key: "0".into(), row: Some(ended), how: Ending::Usual });
    assert_eq!(names(&actions), "scan");
}

/// Creates a lease that a worker of this library holds.
fn held_by(key: &str, owner: &str, counter: u64) -> Lease {
    let id = write_id(&format!("{owner}#1"), counter - 1);
    Lease { write_id: Some(id), ..lease(key, Some(owner), counter) }
}

/// Requests a handoff of one of the two leases of `other`; returns the state and the requested row.
fn asked(start: Instant) -> (State, Lease) {
    let mut state = state(start);
    let rows = || vec![held_by("0", "other", 4), held_by("1", "other", 4)];
    let actions = state.step(start, scanned(rows()));
    assert_eq!(names(&actions).split(';').next(), Some("requesting a handoff 1"));
    let Some(Action::Write(write, why)) = actions.into_iter().next() else { panic!("a write") };
    let row = write.apply(Some(&rows()[1])).unwrap();
    let result = Ok(WriteOutcome::Done(row.clone()));
    let actions = state.step(start, Input::Wrote { write, why, sent: start, result });
    assert_eq!(names(&actions), "say asked other to hand off 1");
    (state, row.unwrap())
}

#[test]
fn a_lease_is_asked_for_and_taken_as_soon_as_its_owner_has_released_it() {
    let start = Instant::now();
    let (mut state, row) = asked(start);
    assert_eq!(state.next_due(), Some(start + HANDOFF_SCAN));
    let pending = vec![held_by("0", "other", 5), Lease { counter: 5, ..row.clone() }];
    assert!(taken(&state.step(start + SECOND, scanned(pending))).is_empty());

    let handed = Lease { counter: 6, checkpoint_owner: None, ..row };
    let rows = vec![held_by("0", "other", 6), handed];
    let actions = state.step(start + 2 * SECOND, scanned(rows));
    assert!(actions.iter().any(|action| matches!(
        action,
        Action::Write(_, Why::Take { reason: TakeReason::Handoff, .. })
    )));
}

/// A Java 3 leader had the leases handed off to its worker, which has not written yet and ignores handoff
/// requests.
#[test]
fn a_worker_whose_mark_is_not_on_its_leases_is_taken_from_and_not_asked() {
    let start = Instant::now();
    let handed = |key| Lease { owner: Some("java".into()), ..held_by(key, "other", 7) };
    let actions = state(start).step(start, scanned(vec![handed("0"), handed("1")]));
    assert_eq!(taken(&actions).len(), 1, "{}", names(&actions));
}

#[test]
fn an_owner_that_does_not_release_in_time_is_no_longer_asked() {
    let start = Instant::now();
    let (mut state, row) = asked(start);
    for second in 1..=30 {
        let row = Lease { counter: 4 + u64::from(second), ..row.clone() };
        let rows = vec![held_by("0", "other", row.counter), row];
        let takes = taken(&state.step(start + second * SECOND, scanned(rows)));
        assert_eq!(takes.len(), usize::from(second == 30), "after {second} s");
    }
}

#[test]
fn a_row_that_a_refused_take_found_gone_is_not_recreated_before_the_next_scan() {
    let start = Instant::now();
    let mut state = state(start);
    let half = u128::MAX / 2;
    let ranges = [HashRange { start: 0, end: half }, HashRange { start: half + 1, end: u128::MAX }];
    let row = |key: &str, range| Lease { hash_range: Some(range), ..held_by(key, "other", 4) };
    state.step(start, scanned(vec![row("0", ranges[0]), row("1", ranges[1])]));
    // Suspended until the owner has finished the shard, and its lease was deleted.
    let later = start + 60 * SECOND;
    let takes = taken(&state.step(later, Input::TimeDue));
    let take = takes.into_iter().find(|take| take.key.as_str() == "0").expect("it has expired");
    let why = Why::Take { reason: TakeReason::Expired, from: Some("other".into()) };
    let result = Ok(WriteOutcome::Refused(None));
    state.step(later, Input::Wrote { write: take, why, sent: later, result });
    let shard =
        Shard { id: "0".into(), parents: BTreeSet::new(), hash_range: ranges[0], is_open: true };
    let before = Listing { shards: vec![shard], at: Timestamp::from_millis(0) };
    assert!(!names(&state.step(later, listed(Ok(before)))).contains("creating"));
}

#[test]
fn a_shard_that_another_worker_has_asked_for_is_drained() {
    let start = Instant::now();
    let mut state = state(start);
    state.mine.insert("0".into());
    let row = Lease { checkpoint_owner: Some("me".into()), ..lease("0", Some("other"), 4) };
    assert_eq!(names(&state.step(start, scanned(vec![row]))), "drain 0");
}

#[test]
fn a_row_of_a_library_that_may_not_know_handoffs_is_taken_the_plain_way() {
    let start = Instant::now();
    let mut state = state(start);
    let rows = vec![lease("0", Some("other"), 4), lease("1", Some("other"), 4)];
    assert_eq!(taken(&state.step(start, scanned(rows))).len(), 1);
}

#[test]
fn leases_that_leave_a_hole_ask_for_a_listing_at_once_and_then_now_and_again() {
    let start = Instant::now();
    let mut state = state(start);
    let half = HashRange { start: 0, end: u128::MAX / 2 };
    let rows = || vec![Lease { hash_range: Some(half), ..lease("0", Some("other"), 1) }];
    state.step(start, scanned(rows()));
    assert_eq!(names(&state.step(start, Input::TimeDue)), "list");
    let error = ServiceError::new(ServiceErrorKind::Unavailable, "down");
    state.step(start, listed(Err(error)));
    state.step(start + SECOND, scanned(rows()));
    assert_eq!(state.next_audit(), Some(start + HOLE_PAUSE));

    let all = vec![Lease { hash_range: Some(HashRange::ALL), ..lease("0", Some("other"), 1) }];
    let mut state = self::state(start);
    let audit = state.next_audit().unwrap();
    state.step(start, scanned(all));
    assert_eq!(state.next_audit(), Some(audit));
}

#[test]
fn a_lease_that_is_expired_and_overdue_at_once_is_taken_once() {
    let start = Instant::now();
    let mut state = state(start);
    let row = Lease { checkpoint_owner: Some("w".into()), ..lease("0", Some("me"), 7) };
    state.asked.insert("0".into(), HandoffRequest::new(start, "other".into(), 7));
    state.step(start, scanned(vec![row.clone()]));
    let actions = state.step(start + 40 * SECOND, scanned(vec![row]));
    assert_eq!(names(&actions), "taking a lease 0");
}

#[test]
fn a_late_write_of_an_earlier_tenure_is_not_taken_for_a_take() {
    let start = Instant::now();
    let mut state = state(start);
    let mine = lease("0", Some("me"), 7);
    let takes = taken(&state.step(start, scanned(vec![mine.clone()])));
    for change in [
        LeaseChange::Release { counter: 7, update: LeaseUpdate::default() },
        LeaseChange::Finish { counter: 7, children: BTreeSet::new() },
        LeaseChange::Renew { counter: 7, owner: "me".into(), update: LeaseUpdate::default() },
    ] {
        let late = LeaseWrite { key: "0".into(), id: write_id("me#1", 7), change };
        let input = Input::Wrote {
            write: takes[0].clone(),
            why: Why::Take { reason: TakeReason::Own, from: None },
            sent: start,
            result: Ok(WriteOutcome::Refused(late.apply(Some(&mine)).unwrap())),
        };
        assert_eq!(names(&state.step(start + SECOND, input)), "", "{late:?}");
    }
}

#[test]
fn a_request_of_an_earlier_life_is_remembered_from_the_row() {
    let start = Instant::now();
    let mut state = state(start);
    for second in 0..=30 {
        let row = Lease {
            checkpoint_owner: Some("other".into()),
            ..lease("0", Some("me"), 4 + u64::from(second))
        };
        let takes = taken(&state.step(start + second * SECOND, scanned(vec![row])));
        assert_eq!(takes.len(), usize::from(second == 30), "after {second} s");
    }
}

#[test]
fn a_mark_that_the_counter_has_left_behind_does_not_promise_a_handoff() {
    let start = Instant::now();
    let mut state = state(start);
    let stolen = |key| Lease { write_id: Some(write_id("us", 4)), ..lease(key, Some("java"), 9) };
    let rows = vec![stolen("0"), stolen("1")];
    assert_eq!(taken(&state.step(start, scanned(rows))).len(), 1);
}

#[test]
fn a_row_that_vanished_is_left_to_its_owner_and_then_made_as_it_was_last_seen() {
    let start = Instant::now();
    let mut state = state(start);
    let range = |start, end| Some(HashRange { start, end });
    let half = u128::MAX / 2;
    let rows = || {
        let checkpoint = Checkpoint::parse("55", 0).unwrap();
        let left = Lease { hash_range: range(0, half), ..lease("0", Some("other"), 4) };
        let right = lease("1", Some("another"), 4);
        vec![left, Lease { hash_range: range(half + 1, u128::MAX), checkpoint, ..right }]
    };
    let shards = rows().into_iter().map(|row| Shard {
        id: row.key.shard(),
        parents: BTreeSet::new(),
        hash_range: row.hash_range.unwrap(),
        is_open: true,
    });
    let listing = Listing { shards: shards.collect(), at: Timestamp::from_millis(0) };
    state.step(start, scanned(rows()));
    state.step(start + SECOND, scanned(vec![rows().remove(0)]));
    assert_eq!(names(&state.step(start + SECOND, listed(Ok(listing.clone())))), "");
    let later = start + 11 * SECOND;
    let actions = state.step(later, scanned(vec![rows().remove(0)]));
    let is_create = |action: &&Action| matches!(action, Action::Write(_, Why::Create));
    let Some(Action::Write(write, _)) = actions.iter().find(is_create) else {
        panic!("{actions:?}")
    };
    assert_eq!(names(&state.step(later, listed(Ok(listing)))), "", "it is on its way");
    let LeaseChange::Create(made) = &write.change else { panic!("{write:?}") };
    assert_eq!((&made.checkpoint, made.counter, &made.owner), (&rows()[1].checkpoint, 5, &None));
}

/// Returns the withdrawal among `actions`.
fn withdrawal(actions: Vec<Action>) -> LeaseWrite {
    let mut writes = actions.into_iter().filter_map(|action| match action {
        Action::Write(write, Why::Withdraw) => Some(write),
        Action::Write(..)
        | Action::Start { .. }
        | Action::Scan
        | Action::List { .. }
        | Action::Look(_)
        | Action::Drain(_)
        | Action::DrainAll
        | Action::Fail(_)
        | Action::Emit(_) => None,
    });
    let write = writes.next().expect("a withdrawal");
    assert!(writes.next().is_none(), "one");
    write
}

#[test]
fn a_worker_that_stops_withdraws_its_requests_and_waits_for_no_owner() {
    let start = Instant::now();
    for draining in [false, true] {
        let (mut state, row) = asked(start);
        let input = if draining { Input::DrainRequested(true) } else { Input::StopRequested };
        let write = withdrawal(state.step(start, input));
        assert!(!state.is_finished());
        // A renewal of the owner in between does not matter.
        let renewed = Lease { counter: row.counter + 1, ..row };
        let withdrawn = write.apply(Some(&renewed)).unwrap();
        let owner = withdrawn.as_ref().and_then(Lease::actual_owner);
        assert_eq!(owner, Some(&"other".into()));
        let result = Ok(WriteOutcome::Done(withdrawn));
        let input = Input::Wrote { write, why: Why::Withdraw, sent: start, result };
        assert_eq!(names(&state.step(start, input)), "");
        assert_eq!((state.is_finished(), state.asked.is_empty()), (!draining, true));
    }
}

#[test]
fn a_lease_that_is_handed_over_to_a_worker_that_stops_is_taken_and_released() {
    let start = Instant::now();
    let (mut state, row) = asked(start);
    let write = withdrawal(state.step(start, Input::StopRequested));
    let handed = Lease { counter: 5, checkpoint_owner: None, ..row };
    let result = Ok(WriteOutcome::Refused(Some(handed.clone())));
    let input = Input::Wrote { write, why: Why::Withdraw, sent: start, result };
    let takes = taken(&state.step(start, input));
    let result = Ok(WriteOutcome::Done(takes[0].apply(Some(&handed)).unwrap()));
    let why = Why::Take { reason: TakeReason::Handoff, from: None };
    let input = Input::Wrote { write: takes[0].clone(), why, sent: start + SECOND, result };
    assert_eq!(names(&state.step(start + SECOND, input)), "releasing a lease 1");
}

#[test]
fn a_worker_that_stops_while_its_request_is_on_its_way_withdraws_it_when_it_is_answered() {
    let start = Instant::now();
    let mut state = state(start);
    let rows = || vec![held_by("0", "other", 4), held_by("1", "other", 4)];
    let actions = state.step(start, scanned(rows()));
    let Some(Action::Write(write, why)) = actions.into_iter().next() else { panic!("a write") };
    state.step(start, Input::StopRequested);
    let result = Ok(WriteOutcome::Done(write.apply(Some(&rows()[1])).unwrap()));
    withdrawal(state.step(start, Input::Wrote { write, why, sent: start, result }));
}

#[test]
fn an_overdue_take_that_is_refused_is_retried_at_once_by_the_row_of_the_refusal() {
    let start = Instant::now();
    let (mut state, row) = asked(start);
    let overdue = start + 30 * SECOND;
    let seen = Lease { counter: 40, ..row };
    let rows = vec![held_by("0", "other", 40), seen.clone()];
    let mut takes = taken(&state.step(overdue, scanned(rows)));
    for counter in 41..=48 {
        let [take] = &takes[..] else { panic!("one take, and not {takes:?}") };
        let row = Lease { counter, ..seen.clone() };
        assert!(take.apply(Some(&row)).is_err(), "the owner has renewed");
        let why = Why::Take { reason: TakeReason::Balance, from: Some("other".into()) };
        let result = Ok(WriteOutcome::Refused(Some(row.clone())));
        let input = Input::Wrote { write: take.clone(), why, sent: overdue, result };
        takes = taken(&state.step(overdue, input));
        let is_last = counter == 48;
        assert_eq!(takes.len(), usize::from(!is_last), "{counter}: then it looks first");
        assert!(takes.iter().all(|take| take.apply(Some(&row)).is_ok()), "by the newest row");
    }
    // The time of the request does not change.
    let rows = vec![held_by("0", "other", 50), Lease { counter: 50, ..seen }];
    assert_eq!(taken(&state.step(overdue + HANDOFF_SCAN, scanned(rows))).len(), 1);
}

#[test]
fn a_stream_is_gone_when_two_listings_say_so_some_seconds_apart() {
    let start = Instant::now();
    let mut state = state(start);
    let gone = || ServiceError::new(ServiceErrorKind::Missing, "no such stream");
    assert!(state.step(start, Input::ReaderMissesShard(StreamKey::ONLY)).is_empty());
    assert_eq!(names(&state.step(start, Input::TimeDue)), "scan; list");
    let said = state.step(start, listed(Err(gone())));
    assert_eq!(names(&said), "say listing the shards failed: no such stream");
    assert_eq!(state.next_audit(), Some(start + HOLE_PAUSE));
    let listing = Listing { shards: Vec::new(), at: Timestamp::from_millis(0) };
    state.step(start, listed(Ok(listing)));
    assert_ne!(names(&state.step(start, listed(Err(gone())))), "fail: no such stream");
    assert_eq!(names(&state.step(start, listed(Err(gone())))), "fail: no such stream");
}

#[test]
fn a_scan_that_was_under_way_while_a_lease_was_asked_for_does_not_take_it() {
    let start = Instant::now();
    let mut state = state(start);
    let rows = || vec![held_by("0", "other", 4), held_by("1", "other", 4)];
    let asks = state.step(start, scanned(rows()));
    let Some(Action::Write(write, why)) = asks.into_iter().next() else { panic!("a request") };
    let row = write.apply(Some(&rows()[1])).unwrap();
    assert_eq!(names(&state.step(start + SECOND, Input::TimeDue)), "scan");
    let result = Ok(WriteOutcome::Done(row));
    state.step(start + SECOND, Input::Wrote { write, why, sent: start, result });
    assert_eq!(names(&state.step(start + SECOND, scanned(rows()))), "");
}

#[test]
fn s14_a_shard_that_nobody_may_hold_is_named_with_the_reason() {
    let start = Instant::now();
    let settings = Settings { max_leases: 1, ..Settings::default() };
    let mut state =
        State::new("me".into(), "me#1".into(), settings.into(), vec![Source::default()], start);
    let rows = || vec![lease("0", None, 0), lease("1", None, 0)];
    let takes = taken(&state.step(start, scanned(rows())));
    assert_eq!(takes.len(), 1);
    assert!(state.health(start + 10 * SECOND).is_healthy(), "not yet");
    let health = state.health(start + 20 * SECOND);
    let reported: Vec<_> =
        health.shards.iter().map(|(key, cause)| format!("{key} {cause}")).collect();
    let cause =
        "1 unowned for 20 s: this worker is at max_leases (1); add workers or raise the limit";
    assert_eq!(reported, [cause]);
}

#[test]
fn a_child_that_waited_long_for_its_parents_is_not_unheld_when_the_last_one_ends() {
    let start = Instant::now();
    let mut state = state(start);
    state.mine = ["0".into()].into();
    state.step(start, Input::DrainRequested(true));
    let child = Lease { parents: ["0".into()].into(), ..lease("1", None, 0) };
    state.step(start, scanned(vec![lease("0", Some("me"), 7), child.clone()]));
    let ended = start + 3600 * SECOND;
    let parent = Lease { checkpoint: Checkpoint::ShardEnd, ..lease("0", None, 8) };
    state.step(ended, scanned(vec![parent.clone(), child.clone()]));
    assert!(state.health(ended).is_healthy(), "it waited for its parent");
    state.step(ended + SECOND, scanned(vec![parent, child]));
    let health = state.health(ended + 20 * SECOND);
    assert!(health.shards[&LeaseKey::from("1")].starts_with("unowned for 20 s"));
}

#[test]
fn a_row_that_cannot_be_read_is_named_and_holds_its_children_back() {
    let start = Instant::now();
    let mut state = state(start);
    let child = Lease { parents: ["0".into()].into(), ..lease("1", None, 0) };
    let unreadable = [("0".into(), "`checkpoint` is not a string".to_owned())];
    let table = Table { leases: vec![child], unreadable: unreadable.into() };
    let actions = state.step(start, Input::Scanned(Ok(table)));
    assert_eq!(names(&actions), "");
    let health = state.health(start + 60 * SECOND);
    let cause = "lease row is unreadable: `checkpoint` is not a string; repair or delete it";
    assert_eq!(health.shards.get(&LeaseKey::from("0")).unwrap(), cause);
    assert_eq!(health.shards.len(), 1, "the child waits, nothing else is wrong with it");
}

#[test]
fn a_table_that_cannot_be_read_is_reported_after_a_lease_duration() {
    let start = Instant::now();
    let mut state = state(start);
    state.step(start, scanned(vec![]));
    let error = ServiceError::new(ServiceErrorKind::Denied, "Scan on table `t`: no");
    state.step(start + SECOND, Input::Scanned(Err(error)));
    assert!(state.health(start + 9 * SECOND).is_healthy());
    let reported = state.health(start + 10 * SECOND).table;
    assert_eq!(reported.as_deref(), Some("not read for 10 s: Scan on table `t`: no"));
}

#[test]
fn d10_of_two_living_workers_with_one_id_the_one_that_was_there_first_stops() {
    let start = Instant::now();
    let mut state = state(start);
    let takes = taken(&state.step(start, scanned(vec![lease("0", None, 0)])));
    let row = takes[0].apply(Some(&lease("0", None, 0))).unwrap().unwrap();
    let why = Why::Take { reason: TakeReason::Unowned, from: None };
    let result = Ok(WriteOutcome::Done(Some(row.clone())));
    let write = takes[0].clone();
    state.step(start, Input::Wrote { write, why, sent: start, result });
    let ended = Input::TenureEnded { key: "0".into(), row: None, how: Ending::Usual };
    // The worker does not know the new owner yet, and tries to take the lease again.
    let again = state.step(start + SECOND, ended);
    let again = again.into_iter().find_map(|action| match action {
        Action::Write(write, why) => Some((write, why)),
        Action::Scan
        | Action::List { .. }
        | Action::Look(_)
        | Action::Start { .. }
        | Action::Drain(_)
        | Action::DrainAll
        | Action::Fail(_)
        | Action::Emit(_) => None,
    });
    let (write, why) = again.unwrap();
    let id = crate::lease::WriteId::new("me#2:take:1");
    let theirs = Lease { counter: 2, write_id: Some(id), ..row };
    let result = Ok(WriteOutcome::Refused(Some(theirs.clone())));
    let refused = Input::Wrote { write, why, sent: start + SECOND, result };
    assert_eq!(names(&state.step(start + SECOND, refused)), "");
    let actions = state.step(start + 2 * SECOND, scanned(vec![theirs]));
    let reported = "fail: another worker runs with the worker ID `me` and holds 0: give every worker a \
                unique ID";
    assert_eq!(names(&actions), reported);
}

#[test]
fn c05_workers_audit_in_turn_and_who_holds_nothing_leaves_it_to_them() {
    let start = Instant::now();
    let listings = |me: &str| {
        let new = State::new(
            me.into(),
            format!("{me}#1"),
            Arc::default(),
            vec![Source::default()],
            start,
        );
        let mut state = new;
        let mut listings = 0;
        for second in 0..600 {
            let now = start + second * SECOND;
            let covers = Some(HashRange::ALL);
            let rows = ["a", "b", "c", "d"].into_iter().zip(0_u64..).map(|(owner, index)| Lease {
                hash_range: covers,
                ..lease(&index.to_string(), Some(owner), index + u64::from(second))
            });
            let mut actions = state.step(now, scanned(rows.collect()));
            state.mine = state
                .leases
                .values()
                .filter(|it| it.owner.as_ref() == Some(&state.me))
                .map(|it| it.key.clone())
                .collect();
            actions.extend(state.step(now, Input::TimeDue));
            if actions.iter().any(|action| matches!(action, Action::List { .. })) {
                listings += 1;
                let listing = Listing { shards: vec![], at: Timestamp::from_millis(0) };
                state.step(now, listed(Ok(listing)));
            }
        }
        listings
    };
    let by_owners: Vec<u32> = ["a", "b", "c", "d"].map(listings).into();
    assert!(by_owners.iter().all(|count| (2..=3).contains(count)), "{by_owners:?}");
    assert_eq!(listings("e"), 0);
}

#[test]
fn a_take_that_is_recognised_counts_from_the_oldest_that_was_sent() {
    let start = Instant::now();
    let mut state = state(start);
    let free = || vec![lease("0", None, 0)];
    let take = taken(&state.step(start, scanned(free()))).remove(0);
    let row = take.apply(Some(&lease("0", None, 0))).unwrap();
    let why = || Why::Take { reason: TakeReason::Unowned, from: None };
    let error = ServiceError::new(ServiceErrorKind::Unavailable, "no answer");
    let lost = Input::Wrote { write: take, why: why(), sent: start, result: Err(error) };
    state.step(start + SECOND, lost);
    // A scan that was in progress shows the lease as unowned, and it is taken again.
    let again = taken(&state.step(start + SECOND, scanned(free()))).remove(0);
    let result = Ok(WriteOutcome::Refused(row));
    let sent = start + 2 * SECOND;
    let actions = state.step(sent, Input::Wrote { write: again, why: why(), sent, result });
    let started = actions.iter().find_map(|action| match action {
        Action::Start { sent, .. } => Some(*sent),
        Action::Write(..)
        | Action::Scan
        | Action::List { .. }
        | Action::Look(_)
        | Action::Drain(_)
        | Action::DrainAll
        | Action::Fail(_)
        | Action::Emit(_) => None,
    });
    assert_eq!(started, Some(start));
}

#[test]
fn a_request_that_is_seen_while_the_lease_is_being_taken_is_not_waited_for() {
    let start = Instant::now();
    let mut state = state(start);
    let pending = Lease { checkpoint_owner: Some("dead".into()), ..held_by("0", "me", 4) };
    state.step(start, scanned(vec![pending.clone()]));
    let expired = start + 10 * SECOND;
    let takes = taken(&state.step(expired, Input::TimeDue));
    state.step(expired, scanned(vec![pending.clone()]));
    let result = Ok(WriteOutcome::Done(takes[0].apply(Some(&pending)).unwrap()));
    let why = Why::Take { reason: TakeReason::Expired, from: Some("dead".into()) };
    state.step(expired, Input::Wrote { write: takes[0].clone(), why, sent: expired, result });
    assert!(state.asked.is_empty(), "it would be looked for four times a second without end");
}

#[test]
fn a_finished_row_stays_until_nobody_can_miss_its_end() {
    let start = Instant::now();
    let mut state = state(start);
    let child = || Lease {
        checkpoint: Checkpoint::parse("55", 0).unwrap(),
        ..lease("1", Some("other"), 4)
    };
    let parent = || Lease {
        checkpoint: Checkpoint::ShardEnd,
        children: BTreeSet::from(["1".into()]),
        ..lease("0", None, 4)
    };
    let deletes = |actions: &[Action]| names(actions).contains("deleting a finished lease 0");
    assert!(!deletes(&state.step(start, scanned(vec![parent(), child()]))));
    let later = start + 60 * SECOND;
    assert!(!deletes(&state.step(later - SECOND, scanned(vec![parent(), child()]))));
    assert!(deletes(&state.step(later, scanned(vec![parent(), child()]))));
}

#[test]
fn a_row_that_a_write_does_not_find_is_not_recreated_before_the_table_has_been_read() {
    let start = Instant::now();
    let mut state = state(start);
    let row = || Lease { hash_range: Some(HashRange::ALL), ..lease("0", None, 4) };
    let take = taken(&state.step(start, scanned(vec![row(), lease("1", Some("b"), 1)]))).remove(0);
    let why = Why::Take { reason: TakeReason::Unowned, from: None };
    let result = Ok(WriteOutcome::Refused(None));
    state.step(start, Input::Wrote { write: take, why, sent: start, result });
    let shard = Shard {
        id: "0".into(),
        parents: BTreeSet::new(),
        hash_range: HashRange::ALL,
        is_open: true,
    };
    let listing = Listing { shards: vec![shard], at: Timestamp::from_millis(0) };
    assert_eq!(names(&state.step(start + SECOND, listed(Ok(listing)))), "");
}

#[test]
fn a_row_that_is_being_written_is_neither_taken_nor_asked_for() {
    let start = Instant::now();
    let mut state = state(start);
    state.writing.insert("1".into());
    let rows = vec![held_by("0", "other", 4), held_by("1", "other", 4)];
    let actions = names(&state.step(start, scanned(rows)));
    assert!(!actions.contains("asking"), "{actions}");
}

#[test]
fn d01_of_a_large_table_only_the_rows_that_are_waited_for_are_looked_at() {
    let start = Instant::now();
    let mut state = state(start);
    let all: Vec<_> = (0..400).map(|key| held_by(&format!("{key:03}"), "other", 4)).collect();
    let asks = state.step(start, scanned(all.clone()));
    let asks: Vec<_> = asks
        .into_iter()
        .filter_map(|action| match action {
            Action::Write(write, why) => Some((write, why)),
            Action::Scan
            | Action::Look(_)
            | Action::List { .. }
            | Action::Start { .. }
            | Action::Drain(_)
            | Action::DrainAll
            | Action::Emit(_)
            | Action::Fail(_) => None,
        })
        .collect();
    assert_eq!(asks.len(), 200);
    let rows: BTreeMap<_, _> = all.into_iter().map(|row| (row.key.clone(), row)).collect();
    let (write, why) = asks.into_iter().next().unwrap();
    let asked = write.apply(rows.get(&write.key)).unwrap().unwrap();
    let result = Ok(WriteOutcome::Done(Some(asked.clone())));
    state.step(start, Input::Wrote { write, why, sent: start, result });
    assert_eq!(state.next_due(), Some(start + HANDOFF_SCAN), "the next scan is seconds away");
    let soon = start + HANDOFF_SCAN;
    assert_eq!(names(&state.step(soon, Input::TimeDue)), format!("look at {}", asked.key));
    let handed = Lease { checkpoint_owner: None, counter: asked.counter + 1, ..asked.clone() };
    let looked = Input::Looked { key: asked.key.clone(), result: Ok(Some(handed)) };
    assert_eq!(names(&state.step(soon, looked)), format!("taking a lease {}", asked.key));
    assert_eq!(names(&state.step(soon + HANDOFF_SCAN, Input::TimeDue)), "");
}

#[test]
fn what_is_missing_in_a_table_that_was_read_long_ago_is_not_made() {
    let start = Instant::now();
    let mut state = state(start);
    let half = u128::MAX / 2;
    let shard = |id: &str, start, end| Shard {
        id: id.into(),
        parents: BTreeSet::new(),
        hash_range: HashRange { start, end },
        is_open: true,
    };
    let shards = vec![shard("0", 0, half), shard("1", half + 1, u128::MAX)];
    let listing = Listing { shards, at: Timestamp::from_millis(0) };
    state.step(start, scanned(vec![lease("0", Some("other"), 4)]));
    let makes = |actions: &[Action]| names(actions).contains("creating a lease");
    let late = start + 11 * SECOND;
    assert!(!makes(&state.step(late, listed(Ok(listing.clone())))));
    state.step(late, scanned(vec![lease("0", Some("other"), 5)]));
    assert!(makes(&state.step(late, listed(Ok(listing)))));
}

#[test]
fn an_unreadable_row_serves_its_shard_and_nothing_above_it_is_made() {
    let start = Instant::now();
    let mut state = state(start);
    let half = u128::MAX / 2;
    let shard = |id: &str, parents: &[&str], start, end, is_open| Shard {
        id: id.into(),
        parents: parents.iter().map(|id| (*id).into()).collect(),
        hash_range: HashRange { start, end },
        is_open,
    };
    let low = |id: &str, parents: &[&str], is_open| shard(id, parents, 0, half, is_open);
    let shards = vec![
        low("0", &[], false),
        shard("1", &[], half + 1, u128::MAX, true),
        low("2", &["0"], true),
    ];
    let listing = Listing { shards, at: Timestamp::from_millis(0) };
    let first = Lease { anchor: Some(Timestamp::from_millis(0)), ..lease("1", Some("other"), 4) };
    let unreadable = [("2".into(), "`checkpoint` is not a string".to_owned())].into();
    state.step(start, Input::Scanned(Ok(Table { leases: vec![first], unreadable })));
    assert!(!names(&state.step(start, listed(Ok(listing)))).contains("creating a lease"));
}

#[test]
fn l14_a_row_that_was_deleted_by_hand_holds_its_children_back_and_comes_back() {
    let start = Instant::now();
    let mut state = state(start);
    let (half, at) = (u128::MAX / 2, Checkpoint::parse("55", 0).unwrap());
    let range = |start, end| Some(HashRange { start, end });
    let parent = Lease {
        hash_range: range(0, half),
        checkpoint: at.clone(),
        ..lease("0", Some("other"), 4)
    };
    let child = || Lease {
        hash_range: range(0, half),
        parents: ["0".into()].into(),
        ..lease("1", None, 0)
    };
    let rest = || Lease { hash_range: range(half + 1, u128::MAX), ..lease("2", Some("other"), 9) };
    state.step(start, scanned(vec![parent, child(), rest()]));
    let actions = names(&state.step(start + SECOND, scanned(vec![child(), rest()])));
    assert_eq!(actions, "", "the child must not start yet");
    let actions = state.step(start + 11 * SECOND, scanned(vec![child(), rest()]));
    let again = actions.iter().find_map(|action| match action {
        Action::Write(write, Why::Create) => Some(write.apply(None).unwrap().unwrap()),
        Action::Write(..)
        | Action::Scan
        | Action::Look(_)
        | Action::List { .. }
        | Action::Start { .. }
        | Action::Drain(_)
        | Action::DrainAll
        | Action::Emit(_)
        | Action::Fail(_) => None,
    });
    let again = again.expect("the row comes back");
    assert_eq!((again.key.as_str(), &again.checkpoint, again.owner), ("0", &at, None));
    // A child with progress shows that its parent was finished and deleted.
    let begun = || Lease { checkpoint: at.clone(), ..child() };
    state.writing.clear();
    let actions = names(&state.step(start + 12 * SECOND, scanned(vec![begun(), rest()])));
    assert_eq!(actions, "taking a lease 1");
}

#[test]
fn a_row_that_will_be_restored_keeps_its_ancestors_from_being_recreated() {
    let start = Instant::now();
    let source = Source { position: InitialPosition::TrimHorizon, ..Source::default() };
    let mut state = State::new("me".into(), "me#1".into(), Arc::default(), vec![source], start);
    let half = u128::MAX / 2;
    let ranges = [("1", 0, half), ("2", half + 1, u128::MAX)];
    let rows = || {
        ranges.map(|(key, start, end)| Lease {
            hash_range: Some(HashRange { start, end }),
            parents: BTreeSet::from(["0".into()]),
            ..lease(key, Some("other"), 4)
        })
    };
    let child = |(id, start, end): (&str, u128, u128)| Shard {
        id: id.into(),
        parents: BTreeSet::from(["0".into()]),
        hash_range: HashRange { start, end },
        is_open: true,
    };
    let parent = Shard {
        id: "0".into(),
        parents: BTreeSet::new(),
        hash_range: HashRange::ALL,
        is_open: false,
    };
    let shards = std::iter::once(parent).chain(ranges.map(child)).collect();
    state.step(start, scanned(rows().to_vec()));
    state.step(start + SECOND, scanned(rows()[..1].to_vec()));
    let listing = Listing { shards, at: Timestamp::from_millis(0) };
    assert_eq!(names(&state.step(start + SECOND, listed(Ok(listing)))), "");
}

/// Returns three streams of one name, each re-created after the previous one; the worker reads the second.
fn streams_of_a_name() -> [StreamIdentity; 3] {
    [1, 2, 3].map(|created| StreamIdentity {
        arn: "arn".to_owned(),
        created: Timestamp::from_millis(created),
    })
}

fn state_of(own: &StreamIdentity, settings: Settings, start: Instant) -> State {
    let source = Source { identity: Some(own.clone()), ..Source::default() };
    State::new("me".into(), "me#1".into(), settings.into(), vec![source], start)
}

fn of_stream(key: &str, stream: &StreamIdentity) -> Lease {
    Lease::of_stream(Some(stream.clone()), key, Checkpoint::TrimHorizon)
}

#[test]
fn a_row_of_a_former_stream_that_is_put_back_is_removed_and_says_nothing() {
    let (start, [former, own, _]) = (Instant::now(), streams_of_a_name());
    let mut state = state_of(&own, Settings::default(), start);
    let rows = vec![of_stream("0", &own), of_stream("1", &former)];
    let actions = state.step(start, scanned(rows));
    assert_eq!(names(&actions), "taking a lease 0; removing a lease of a deleted stream 1");
    let Some(Action::Write(discard, why)) = actions.into_iter().last() else { panic!("a write") };
    assert_eq!(discard.change, LeaseChange::Discard { counter: 1 });
    // The owner's renewal wins the race; the next scan shows the row again.
    let moved = Lease { counter: 2, ..of_stream("1", &former) };
    let result = Ok(WriteOutcome::Refused(Some(moved.clone())));
    state.step(start, Input::Wrote { write: discard, why, sent: start, result });
    assert!(!state.leases.contains_key(&moved.key));
    let rows = vec![of_stream("0", &own), moved];
    let actions = state.step(start + SECOND, scanned(rows));
    assert_eq!(names(&actions), "removing a lease of a deleted stream 1");
}

#[test]
fn rows_of_a_newer_stream_make_the_worker_look_and_are_left_alone() {
    let (start, [_, own, newer]) = (Instant::now(), streams_of_a_name());
    let row = Lease { hash_range: Some(HashRange::ALL), ..of_stream("0", &own) };
    let mut state = state_of(&own, Settings::default(), start);
    let lists = |state: &mut State, now| names(&state.step(now, Input::TimeDue)).contains("list");
    state.step(start, scanned(vec![row.clone()]));
    let now = start + 20 * SECOND;
    assert!(!lists(&mut state, now), "nothing is missing");
    state.step(now, scanned(vec![row, of_stream("1", &newer)]));
    assert!(lists(&mut state, now));
    // Also if it replaced the own row, which is then not restored.
    for seconds in [1, 31] {
        let rows = vec![of_stream("0", &newer), of_stream("1", &newer)];
        assert_eq!(names(&state.step(now + seconds * SECOND, scanned(rows))), "");
    }
}

/// A row of a stream of another name: perhaps the table of another application.
#[test]
fn a_row_of_an_unrelated_stream_is_named_and_left_alone_unless_it_is_to_make_way() {
    let (start, [_, own, _]) = (Instant::now(), streams_of_a_name());
    let unrelated = StreamIdentity { arn: "other".to_owned(), created: own.created };
    let rows = vec![of_stream("0", &own), of_stream("1", &unrelated)];
    for (stream_recreated, removed) in
        [(StreamRecreated::Refuse, false), (StreamRecreated::Adopt, true)]
    {
        let settings = Settings { stream_recreated, ..Settings::default() };
        let mut state = state_of(&own, settings, start);
        let actions = names(&state.step(start, scanned(rows.clone())));
        assert_eq!(actions.contains("removing"), removed, "{actions}");
        let named: Vec<_> = state.unreadable.keys().map(LeaseKey::as_str).collect();
        assert_eq!(named.contains(&"1"), !removed, "{named:?}");
    }
}

/// The scan is older than the take, which happened while the scan was in progress.
#[test]
fn a_scan_that_was_under_way_does_not_remove_the_lease_that_was_taken_meanwhile() {
    let (start, [former, own, _]) = (Instant::now(), streams_of_a_name());
    let mut state = state_of(&own, Settings::default(), start);
    assert_eq!(names(&state.step(start, Input::TimeDue)), "scan");
    let row = of_stream("0", &own);
    let write = create_write(row.clone(), "me#1");
    let result = Ok(WriteOutcome::Done(Some(row.clone())));
    state.step(start, Input::Wrote { write, why: Why::Create, sent: start, result });
    state.mine.insert(row.key.clone());
    let actions = state.step(start, scanned(vec![of_stream("0", &former)]));
    assert_eq!((names(&actions), state.leases.get(&row.key)), (String::new(), Some(&row)));
}

/// A single reply may be wrong: from a replica, or from another endpoint.
#[test]
fn a_table_is_gone_when_two_scans_in_a_row_say_so() {
    let start = Instant::now();
    let mut state = state(start);
    let gone =
        || Input::Scanned(Err(ServiceError::new(ServiceErrorKind::Missing, "no such table")));
    let fails = |actions: Vec<Action>| actions.iter().any(|it| matches!(it, Action::Fail(_)));
    assert!(!fails(state.step(start, gone())));
    assert!(!fails(state.step(start + SECOND, scanned(vec![]))));
    assert!(!fails(state.step(start + 2 * SECOND, gone())));
    assert!(fails(state.step(start + 3 * SECOND, gone())));
}
