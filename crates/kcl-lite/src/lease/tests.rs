//! The rule of each lease write, one sentence at a time.

use super::*;

fn row(key: &str, counter: u64, owner: Option<&str>) -> Lease {
    Lease { owner: owner.map(Into::into), counter, ..Lease::new(key, Checkpoint::TrimHorizon) }
}

fn at(sequence_number: &str) -> Checkpoint {
    Checkpoint::parse(sequence_number, 0).unwrap()
}

fn write(change: LeaseChange) -> LeaseWrite {
    LeaseWrite { key: "shard-0".into(), id: WriteId::new("me-1"), change }
}

fn applied(change: LeaseChange, row: &Lease) -> Lease {
    write(change).apply(Some(row)).unwrap().unwrap()
}

fn take(counter: u64, from: Option<&str>, owner: &str) -> LeaseChange {
    LeaseChange::Take { counter, from: from.map(Into::into), owner: owner.into() }
}

fn ask(counter: u64, from: &str, to: &str) -> LeaseChange {
    LeaseChange::RequestHandoff { counter, from: from.into(), to: to.into() }
}

/// One of each write that changes a row, all at the same counter.
fn changes(counter: u64) -> [LeaseChange; 4] {
    [
        take(counter, None, "b"),
        LeaseChange::Renew { counter, owner: "a".into(), update: LeaseUpdate::default() },
        LeaseChange::Finish { counter, children: BTreeSet::new() },
        LeaseChange::Release { counter, update: LeaseUpdate::default() },
    ]
}

#[test]
fn every_change_counts_up_by_one_and_leaves_its_mark() {
    for change in changes(7) {
        let next = applied(change.clone(), &row("shard-0", 7, Some("a")));
        assert_eq!(next.counter, 8, "{change:?}");
        assert_eq!(next.write_id, Some(WriteId::new("me-1")), "{change:?}");
    }
}

#[test]
fn a_counter_that_is_not_the_rows_is_refused_with_the_row() {
    let current = row("shard-0", 7, Some("a"));
    let delete = |counter| LeaseChange::Delete { counter };
    for change in [6, 8].into_iter().flat_map(|counter| {
        changes(counter).into_iter().chain([delete(counter)]).collect::<Vec<_>>()
    }) {
        let refused = write(change.clone()).apply(Some(&current)).unwrap_err();
        assert_eq!(refused.current.as_deref(), Some(&current), "{change:?}");
    }
}

#[test]
fn a_row_that_is_gone_refuses_everything_but_its_creation() {
    for change in changes(7).into_iter().chain([LeaseChange::Delete { counter: 7 }]) {
        assert_eq!(write(change).apply(None).unwrap_err().current, None);
    }
    let lease = row("shard-0", 0, None);
    let created = write(LeaseChange::Create(Box::new(lease.clone()))).apply(None).unwrap();
    assert_eq!(created, Some(Lease { write_id: Some(WriteId::new("me-1")), ..lease }));
}

#[test]
fn a_row_that_exists_is_not_created_again() {
    let current = row("shard-0", 3, Some("a"));
    let create = LeaseChange::Create(Box::new(row("shard-0", 0, None)));
    assert_eq!(write(create).apply(Some(&current)).unwrap_err().current.as_deref(), Some(&current));
}

#[test]
fn a_take_is_a_switch_only_from_another_worker() {
    for (from, switches) in [(Some("a"), 1), (Some("b"), 0), (None, 0)] {
        let next = applied(take(7, from, "b"), &row("shard-0", 7, from));
        assert_eq!((next.owner, next.owner_switches), (Some("b".into()), switches), "{from:?}");
    }
}

#[test]
fn a_take_ends_a_handoff() {
    let current = Lease { checkpoint_owner: Some("a".into()), ..row("shard-0", 7, Some("b")) };
    let next = applied(take(7, Some("b"), "c"), &current);
    assert_eq!(next.actual_owner(), Some(&"c".into()));
}

#[test]
fn a_released_or_finished_lease_is_nobodys() {
    for change in changes(7).into_iter().skip(2) {
        assert_eq!(applied(change, &row("shard-0", 7, Some("a"))).actual_owner(), None);
    }
}

#[test]
fn during_a_handoff_a_lease_is_finished_but_not_released() {
    let current = Lease { checkpoint_owner: Some("a".into()), ..row("shard-0", 7, Some("b")) };
    let [_, _, finish, release] = changes(7);
    assert_eq!(applied(finish, &current).actual_owner(), None);
    let refused = write(release).apply(Some(&current)).unwrap_err();
    assert_eq!(refused.current.as_deref(), Some(&current));
}

#[test]
fn asking_for_a_handoff_names_both_and_leaves_counter_and_mark_to_the_owner() {
    let mark = Some(WriteId::new("a-1"));
    let current = Lease { write_id: mark.clone(), ..row("shard-0", 7, Some("a")) };
    let asked = applied(ask(7, "a", "b"), &current);
    assert_eq!((asked.actual_owner(), &asked.owner), (Some(&"a".into()), &Some("b".into())));
    assert_eq!((asked.counter, &asked.write_id), (7, &mark));
    for (change, why) in
        [(ask(8, "a", "b"), "another counter"), (ask(7, "c", "b"), "another owner")]
    {
        assert!(write(change).apply(Some(&current)).is_err(), "{why}");
    }
    assert!(write(ask(7, "b", "c")).apply(Some(&asked)).is_err(), "somebody has asked before");
}

#[test]
fn a_handover_stores_the_checkpoint_and_gives_the_lease_to_the_one_who_asked() {
    let asked = applied(ask(7, "a", "b"), &row("shard-0", 7, Some("a")));
    let change = LeaseChange::HandOver {
        counter: 7,
        update: LeaseUpdate::of(Some(at("9"))),
        to: "b".into(),
    };
    let next = applied(change, &asked);
    assert_eq!((next.owner, next.checkpoint_owner), (Some("b".into()), None));
    assert_eq!((next.counter, next.checkpoint), (8, at("9")));
}

#[test]
fn a_handover_goes_only_to_the_worker_that_asks() {
    let asked = applied(ask(7, "a", "b"), &row("shard-0", 7, Some("a")));
    let hand_over = |to: &str| {
        let change =
            LeaseChange::HandOver { counter: 7, update: LeaseUpdate::default(), to: to.into() };
        write(change).apply(Some(&asked))
    };
    assert!(hand_over("b").is_ok());
    assert!(hand_over("c").is_err(), "another has asked");
    let withdraw = LeaseChange::WithdrawHandoff { from: "a".into(), to: "b".into() };
    let withdrawn = applied(withdraw, &asked);
    assert_eq!((withdrawn.owner, withdrawn.checkpoint_owner), (Some("a".into()), None));
    assert_eq!((withdrawn.counter, withdrawn.write_id), (asked.counter, asked.write_id));
}

#[test]
fn a_withdrawal_holds_at_every_counter_but_only_for_its_own_request() {
    let asked = applied(ask(7, "a", "b"), &row("shard-0", 7, Some("a")));
    let renew =
        LeaseChange::Renew { counter: 7, owner: "a".into(), update: LeaseUpdate::default() };
    let renewed = applied(renew, &asked);
    let withdraw = |from: &str, to: &str| {
        let change = LeaseChange::WithdrawHandoff { from: from.into(), to: to.into() };
        write(change).apply(Some(&renewed))
    };
    assert!(withdraw("a", "b").is_ok(), "whatever the counter is");
    assert!(withdraw("a", "c").is_err(), "another has asked");
    assert!(withdraw("c", "b").is_err(), "another was asked");
}

#[test]
fn a_row_that_was_created_afresh_at_the_same_counter_is_not_renewed_by_its_former_owner() {
    let renew =
        LeaseChange::Renew { counter: 7, owner: "a".into(), update: LeaseUpdate::default() };
    assert!(write(renew.clone()).apply(Some(&row("shard-0", 7, None))).is_err());
    assert!(write(renew).apply(Some(&row("shard-0", 7, Some("b")))).is_err());
}

#[test]
fn a_renewal_without_progress_keeps_checkpoint_switches_and_pending() {
    let pending = Some(PendingCheckpoint { checkpoint: at("9"), state: None });
    let current =
        Lease { checkpoint: at("5"), owner_switches: 2, pending, ..row("shard-0", 7, Some("a")) };
    let next = applied(
        LeaseChange::Renew { counter: 7, owner: "a".into(), update: LeaseUpdate::default() },
        &current,
    );
    assert_eq!(next, Lease { counter: 8, write_id: Some(WriteId::new("me-1")), ..current });
}

#[test]
fn a_checkpoint_forgets_switches_and_what_was_pending() {
    let pending = Some(PendingCheckpoint { checkpoint: at("9"), state: Some(vec![1]) });
    let current = Lease { owner_switches: 2, pending, ..row("shard-0", 7, Some("a")) };
    let update = LeaseUpdate { pending: PendingChange::Clear, ..LeaseUpdate::of(Some(at("9"))) };
    let next = applied(LeaseChange::Renew { counter: 7, owner: "a".into(), update }, &current);
    assert_eq!((next.checkpoint, next.owner_switches, next.pending), (at("9"), 0, None));
    assert_eq!(next.owner, Some("a".into()));
}

#[test]
fn a_finished_shard_names_its_children() {
    let children: BTreeSet<ShardId> = ["shard-1".into(), "shard-2".into()].into();
    let finish = LeaseChange::Finish { counter: 7, children: children.clone() };
    let next = applied(finish, &row("shard-0", 7, Some("a")));
    assert_eq!((next.checkpoint, next.children), (Checkpoint::ShardEnd, children));
}

#[test]
fn a_reset_moves_back_fences_the_owner_and_forgets_what_was_pending() {
    let pending = Some(PendingCheckpoint { checkpoint: at("9"), state: None });
    let then = Some(Timestamp::from_millis(1_000));
    let current = Lease {
        checkpoint: Checkpoint::ShardEnd,
        children: ["shard-1".into()].into(),
        read_until: then,
        pending,
        ..row("shard-0", 7, Some("a"))
    };
    let reset =
        LeaseChange::Reset { counter: 7, checkpoint: Checkpoint::AtTimestamp, anchor: then };
    let next = applied(reset, &current);
    let expected = Lease {
        checkpoint: Checkpoint::AtTimestamp,
        anchor: then,
        write_id: Some(WriteId::new("me-1")),
        ..row("shard-0", 9, Some("a"))
    };
    assert_eq!(next, expected);
}

#[test]
fn a_lease_is_discarded_only_at_its_counter() {
    let current = row("shard-0", 7, Some("a"));
    let discard = |counter| write(LeaseChange::Discard { counter });
    assert!(discard(6).apply(Some(&current)).is_err());
    assert_eq!(discard(7).apply(Some(&current)), Ok(None));
}

#[test]
fn a_row_is_replaced_whole_and_only_at_its_counter() {
    let current = Lease {
        checkpoint: at("9"),
        children: ["shard-1".into()].into(),
        ..row("shard-0", 7, Some("a"))
    };
    let with = Lease { counter: 9, ..Lease::new("shard-0", Checkpoint::TrimHorizon) };
    let replace = |counter| write(LeaseChange::Replace { counter, with: Box::new(with.clone()) });
    for refused in [replace(6).apply(Some(&current)), replace(7).apply(None)] {
        assert!(refused.is_err());
    }
    let marked = Lease { write_id: Some(WriteId::new("me-1")), ..with.clone() };
    assert_eq!(replace(7).apply(Some(&current)), Ok(Some(marked)));
}

#[test]
fn only_a_finished_lease_is_deleted() {
    let current = row("shard-0", 7, None);
    let delete = write(LeaseChange::Delete { counter: 7 });
    assert_eq!(delete.apply(Some(&current)).unwrap_err().current.as_deref(), Some(&current));
    let finished = Lease { checkpoint: Checkpoint::ShardEnd, ..current };
    assert_eq!(delete.apply(Some(&finished)), Ok(None));
}

#[test]
fn reading_starts_where_the_row_says() {
    let cursor =
        |checkpoint, anchor| Lease { anchor, ..Lease::new("shard-0", checkpoint) }.cursor();
    let then = Timestamp::from_millis(1_000);
    assert_eq!(cursor(Checkpoint::TrimHorizon, None), Some(Cursor::Horizon));
    assert_eq!(cursor(Checkpoint::Latest, Some(then)), Some(Cursor::Timestamp(then)));
    assert_eq!(cursor(Checkpoint::AtTimestamp, Some(then)), Some(Cursor::Timestamp(then)));
    assert_eq!(cursor(Checkpoint::Latest, None), Some(Cursor::Horizon), "repeats, never loses");
    assert_eq!(cursor(at("5"), Some(then)), Some(Cursor::At("5".parse().unwrap())));
    assert_eq!(cursor(Checkpoint::ShardEnd, None), None);
}
