//! Checks of writes to the table: which may happen, by which worker, and when.

use std::fmt;
use std::time::Duration;

use kcl_lite::lease::timing::{DRAIN_LIMIT, HANDOFF_DEADLINE};
use kcl_lite::lease::{Lease, LeaseChange};
use kcl_lite::{Checkpoint, ErrorKind};

use super::{Change, End, Facts, Ledger, Promise, Tenure, TenureId};
use crate::reached::Situation;
use crate::stream::{Shards, service_time};
use crate::table::Rows;

/// By how much a clock that is one percent fast may be early.
const FAST: f64 = 0.985;
/// An owner does not give up earlier than this part of a lease duration after its last proof.
const NEEDED: f64 = 0.85;
/// How soon after that a healthy requester has the lease, by either clock.
const HANDOFF_GRACE: Duration = Duration::from_secs(3);

impl Ledger {
    /// Checks a write that has been applied.
    #[expect(clippy::too_many_lines, reason = "an arm for each write")]
    pub(crate) fn changed(&mut self, change: &Change<'_>, shards: &mut Shards, rows: &Rows) {
        let is_unaware = shards.recreated().is_some() && !self.knows(change.who, shards);
        let row = change.after.or(change.before);
        let Some(shard) = row.and_then(|row| shards.of_row(row)) else {
            return self.written_of_no_shard(change, is_unaware, shards);
        };
        let mut facts = self.leases.remove(&shard).unwrap_or_default();
        let result = match change.what {
            _ if change.is_refused && !is_unaware => {
                Err((Promise::Rows, "written, though the leases are of another stream".to_owned()))
            }
            // Its owner may not know yet, and re-creates it as if an operator had deleted it.
            LeaseChange::Discard { .. } | LeaseChange::Delete { .. } if shards.is_former(shard) => {
                Ok(())
            }
            _ if shards.is_former(shard) && !is_unaware => {
                Err((Promise::Rows, "a row of a stream that is gone is used".to_owned()))
            }
            LeaseChange::Create(made) if shards.is_former(shard) => {
                made_of_former(change, made, &mut facts);
                Ok(())
            }
            LeaseChange::Create(made) => self.made(change, made, &mut facts, shards, shard),
            LeaseChange::Replace { with, .. } if change.before.is_none() => {
                self.made(change, with, &mut facts, shards, shard)
            }
            LeaseChange::Take { .. } => self.taken(change, &mut facts, shards, shard),
            LeaseChange::RequestHandoff { .. } => {
                self.counts.note(Situation::AskedFor);
                asked(change, &mut facts)
            }
            LeaseChange::WithdrawHandoff { .. } => {
                self.counts.note(Situation::Withdrawn);
                withdrawn(change, &mut facts)
            }
            LeaseChange::Renew { .. } => by_owner(change, &mut facts, None),
            LeaseChange::HandOver { .. } => {
                self.counts.note(Situation::HandedOver);
                self.handed_at = change.at;
                self.moved_at = change.at;
                is_asked_for(change)
                    .and_then(|()| drained(change, &facts, shards, shard))
                    .and_then(|()| by_owner(change, &mut facts, Some(End::Released)))
            }
            LeaseChange::Release { .. } => {
                self.counts.note(Situation::Released);
                drained(change, &facts, shards, shard)
                    .and_then(|()| by_owner(change, &mut facts, Some(End::Released)))
            }
            LeaseChange::Finish { .. } => {
                self.counts.note(Situation::Finished);
                self.finished_at = change.at;
                self.moved_at = change.at;
                facts.finished.get_or_insert(change.at);
                finished(change, shards, shard, rows, &self.leases)
                    .and_then(|()| by_owner(change, &mut facts, Some(End::Finished)))
            }
            LeaseChange::Delete { .. } => {
                self.counts.note(Situation::Deleted);
                self.listed_at = change.at;
                self.deleted(change, shards, shard)
            }
            LeaseChange::Reset { .. }
            | LeaseChange::Discard { .. }
            | LeaseChange::Replace { .. } => {
                Err((Promise::Rows, "no reset was requested".to_owned()))
            }
        };
        let result = result
            .and_then(|()| starts_in_the_past(change))
            .and_then(|()| moves_on(change, &mut facts))
            .and_then(|()| covers_only_acknowledged(change, shards, shard));
        self.leases.insert(shard, facts);
        if let Err((promise, text)) = result {
            self.broken(promise, change.at, Some(change.key), text);
        }
    }

    /// Checks a write for a shard of the newest stream by a worker that takes it for one of the
    /// former stream.
    fn written_of_no_shard(&mut self, change: &Change<'_>, is_unaware: bool, shards: &Shards) {
        let is_again = shards.recreated().is_some();
        if !(is_unaware || is_again && matches!(change.what, LeaseChange::Discard { .. })) {
            let text = "a lease of a shard that does not exist, or of a stream that is gone";
            self.broken(Promise::Rows, change.at, Some(change.key), text.to_owned());
        }
    }

    /// Returns whether a worker started after the stream was re-created.
    pub(super) fn knows(&self, who: usize, shards: &Shards) -> bool {
        let born = self.born.get(&who).copied().unwrap_or_default();
        shards.recreated().is_some_and(|made| born > made)
    }

    /// Returns whether a worker may stop on its own with this error.
    pub(crate) fn may_give_up(
        &mut self,
        who: usize,
        error: ErrorKind,
        (shards, rows): (&Shards, &Rows),
    ) -> bool {
        let born = self.born.get(&who).copied().unwrap_or_default();
        if matches!(error, ErrorKind::Config | ErrorKind::OtherStream) && shards.is_refused(rows) {
            self.counts.note(Situation::LeftAlone);
            return true;
        }
        error == ErrorKind::Unavailable
            || error == ErrorKind::Missing && shards.was_missing_since(born)
    }

    /// Checks a row that did not exist before; a worker that re-creates it while its owner is
    /// active needs a reason.
    fn made(
        &mut self,
        change: &Change<'_>,
        made: &Lease,
        facts: &mut Facts,
        shards: &mut Shards,
        shard: usize,
    ) -> Found {
        if made.owner.is_some() {
            self.counts.note(Situation::RowPutBack);
        }
        self.listed_at = change.at;
        if self.rules.calm && made.owner.is_none() && facts.current.is_some() {
            // A worker that starts without the row cannot know that it existed.
            let knew = self.born.get(&change.who).is_some_and(|it| *it < self.forgotten_at);
            if knew {
                let text = "a row whose owner is healthy is re-created by another worker";
                let (at, key) = (change.at, Some(change.key as &dyn fmt::Display));
                self.broken(Promise::Rows, at, key, text.to_owned());
            }
            // It repeats the records since the first start, concurrently with the owner for a
            // while.
            (facts.best, facts.token) = (None, 0);
            let owner = facts.current.take().and_then(|it| facts.tenures.get_mut(&it));
            owner.into_iter().for_each(|it| it.end = Some((change.at, End::Forced)));
            self.rules.calm = false;
        }
        created(change, facts, shards, shard)
    }

    fn taken(
        &mut self,
        change: &Change<'_>,
        facts: &mut Facts,
        shards: &Shards,
        shard: usize,
    ) -> Found {
        let (before, after) = both(change)?;
        let quiet = change.at.saturating_sub(facts.changed);
        let tenure = facts.current.and_then(|it| facts.tenures.get(&it));
        let end = if tenure.is_none_or(|tenure| tenure.id == *change.id) {
            // Unowned, handed off and not taken yet, or its own from before.
            let is_again = facts.current.is_some_and(|(who, _)| who == change.who);
            // The worker knows nothing of a take whose reply was lost.
            let proof = tenure.map(|it| it.known).filter(|known| !known.is_zero());
            let age = proof.map_or(Duration::MAX, |known| change.sent.saturating_sub(known));
            if is_again && age < self.rules.lasts.mul_f64(NEEDED) {
                let text = format!("released and taken again {age:?} after its last proof");
                return Err((Promise::Repeats, text));
            }
            None
        } else if quiet >= self.rules.lasts.mul_f64(FAST) {
            self.counts.note(Situation::Expired);
            self.handed_at = change.at;
            Some(End::Expired)
        } else if facts.asked.as_ref().is_some_and(|(by, _, at)| {
            by == change.id && change.at.saturating_sub(*at) >= HANDOFF_DEADLINE.mul_f64(FAST)
        }) {
            self.counts.note(Situation::Forced);
            self.handed_at = change.at;
            Some(End::Forced)
        } else {
            return Err((
                Promise::Take,
                format!("taken from {:?}, which renewed {quiet:?} ago", before.actual_owner()),
            ));
        };
        if let Some(tenure) = facts.current.take().and_then(|it| facts.tenures.get_mut(&it)) {
            tenure.end.get_or_insert((change.at, end.unwrap_or(End::Expired)));
        }
        if after.owner.as_ref() != Some(change.id) || after.checkpoint_owner.is_some() {
            return Err((Promise::Fence, "a take that does not make its sender the owner".into()));
        }
        if after.checkpoint != before.checkpoint {
            return Err((Promise::Monotone, "a take that changes the checkpoint".into()));
        }
        if after.counter <= facts.token {
            return Err((
                Promise::Fence,
                format!("fencing token {} comes after {}", after.counter, facts.token),
            ));
        }
        facts.token = after.counter;
        facts.asked = None;
        facts.current = Some((change.who, after.counter));
        let start = shards.all[shard].first_after(&after.checkpoint, after.anchor);
        let tenure = Tenure {
            id: change.id.clone(),
            proof: change.sent,
            known: Duration::ZERO,
            end: None,
            start,
            next: None,
            asked_to_stop: None,
        };
        facts.tenures.insert((change.who, after.counter), tenure);
        self.moved_at = change.at;
        Ok(())
    }

    /// Checks, in a run whose only fault is a busy owner, that a worker that requests a lease gets it
    /// soon after the owner's time for the handoff.
    pub(crate) fn is_handed_over_in_time(&mut self, now: Duration, running: &[usize]) {
        if !self.rules.busy_owner {
            return;
        }
        let overdue =
            self.leases.values().filter_map(|it| it.asked.as_ref()).find(|(_, who, at)| {
                running.contains(who) && now.saturating_sub(*at) > HANDOFF_DEADLINE + HANDOFF_GRACE
            });
        if let Some((by, _, at)) = overdue {
            let text = format!("{by} asked at {at:?} and has no lease yet");
            self.broken(Promise::Take, now, None, text);
        }
    }

    fn deleted(&self, change: &Change<'_>, shards: &Shards, shard: usize) -> Found {
        let before = change.before.ok_or((Promise::Rows, "nothing to delete".to_owned()))?;
        if !before.checkpoint.is_shard_end() {
            return Err((Promise::Rows, "an unfinished lease is deleted".into()));
        }
        for child in &shards.all[shard].children {
            let id = &shards.all[*child].id;
            let moved = self.leases.get(child).and_then(|it| it.best.as_ref());
            if !moved.is_some_and(Checkpoint::has_progress) {
                return Err((Promise::Rows, format!("deleted before its child {id} has moved")));
            }
        }
        Ok(())
    }
}

/// The result of a check.
type Found = Result<(), (Promise, String)>;

fn both<'a>(change: &Change<'a>) -> Result<(&'a Lease, &'a Lease), (Promise, String)> {
    match (change.before, change.after) {
        (Some(before), Some(after)) => Ok((before, after)),
        _ => Err((Promise::Rows, "a row appeared or vanished by the wrong write".to_owned())),
    }
}

/// Checks a row of a former stream that a worker re-creates because it does not know of the new
/// stream, as its own or as it once saw it: a new life of the row begins.
fn made_of_former(change: &Change<'_>, made: &Lease, facts: &mut Facts) {
    (facts.best, facts.token, facts.finished, facts.changed) = (None, 0, None, change.at);
    let last = facts.tenures.keys().rev().find(|(who, _)| *who == change.who).copied();
    let owner = last.filter(|_| made.owner.is_some());
    let before = std::mem::replace(&mut facts.current, owner).filter(|it| Some(*it) != owner);
    if let Some(tenure) = before.and_then(|it| facts.tenures.get_mut(&it)) {
        tenure.end = Some((change.at, End::Forced));
    }
}

fn created(change: &Change<'_>, facts: &mut Facts, shards: &mut Shards, shard: usize) -> Found {
    let after = change.after.ok_or((Promise::Rows, "nothing was created".to_owned()))?;
    if change.before.is_some() {
        return Err((Promise::Rows, "a lease is created over another".into()));
    }
    if facts.finished.is_some() {
        return Err((Promise::Rows, "the lease of a finished shard is re-created".into()));
    }
    let is_by_time = matches!(after.checkpoint, Checkpoint::Latest | Checkpoint::AtTimestamp);
    if is_by_time && after.anchor.is_none() {
        return Err((Promise::Loss, "a start by time without a time".into()));
    }
    let is_later = shards.started.is_some_and(|started| shards.all[shard].opened > started);
    if is_later && after.checkpoint == Checkpoint::Latest {
        let opened = service_time(shards.all[shard].opened);
        if after.anchor.is_none_or(|anchor| anchor > opened) {
            return Err((Promise::Loss, "a shard that opened later starts at the tip".into()));
        }
    }
    facts.changed = change.at;
    if after.owner.is_some() {
        // An owner re-creates a row that an operator deleted.
        let current = facts.current.filter(|(who, _)| *who == change.who);
        let Some(tenure) = current.and_then(|it| facts.tenures.get_mut(&it)) else {
            return Err((Promise::Fence, "re-created as its own by another worker".into()));
        };
        tenure.proof = tenure.proof.max(change.sent);
    }
    Ok(())
}

fn asked(change: &Change<'_>, facts: &mut Facts) -> Found {
    let (before, after) = both(change)?;
    if before.counter != after.counter || before.checkpoint != after.checkpoint {
        return Err((Promise::Fence, "a request changes more than the next owner".into()));
    }
    if before.owner.is_none() {
        return Err((Promise::Take, "a lease without an owner is requested".into()));
    }
    facts.asked = Some((change.id.clone(), change.who, change.at));
    Ok(())
}

/// Checks that a lease is handed off only to the worker that requests it.
fn is_asked_for(change: &Change<'_>) -> Found {
    let (before, after) = both(change)?;
    if before.checkpoint_owner.is_none() || before.owner != after.owner {
        let text = format!("handed over to {:?}, which did not request it", after.owner);
        return Err((Promise::Take, text));
    }
    Ok(())
}

fn withdrawn(change: &Change<'_>, facts: &mut Facts) -> Found {
    let (before, after) = both(change)?;
    if before.actual_owner() != after.actual_owner() || after.checkpoint_owner.is_some() {
        return Err((Promise::Fence, "a withdrawal changes the owner".into()));
    }
    if facts.asked.as_ref().is_some_and(|(by, ..)| by != change.id) {
        return Err((Promise::Fence, "a request is withdrawn by another worker".into()));
    }
    facts.asked = None;
    Ok(())
}

/// Checks that only the owner of a lease renews it, hands it off, releases or finishes it.
fn by_owner(change: &Change<'_>, facts: &mut Facts, end: Option<End>) -> Found {
    let (before, _) = both(change)?;
    let Some(current) = facts.current.filter(|(who, _)| *who == change.who) else {
        return Err((
            Promise::Fence,
            format!("written by {}#{}, which does not hold it", change.id, change.who),
        ));
    };
    if before.actual_owner() != Some(change.id) {
        return Err((Promise::Fence, format!("the row belongs to {:?}", before.actual_owner())));
    }
    if let Some(tenure) = facts.tenures.get_mut(&current) {
        // A write that was delayed must not move the proof back.
        tenure.proof = tenure.proof.max(change.sent);
        if let Some(end) = end {
            tenure.end = Some((change.at, end));
        }
    }
    if end.is_some() {
        facts.current = None;
        facts.asked = None;
    }
    Ok(())
}

/// Checks that no shard starts at a time in the future: records that arrive before it would be
/// lost.
fn starts_in_the_past(change: &Change<'_>) -> Found {
    let anchor = change.after.and_then(|row| row.anchor);
    if anchor.is_some_and(|time| time > service_time(change.at)) {
        return Err((Promise::Rows, "the shard starts at a time in the future".into()));
    }
    Ok(())
}

/// Checks that the counter and the checkpoint only grow.
fn moves_on(change: &Change<'_>, facts: &mut Facts) -> Found {
    let Some(after) = change.after else { return Ok(()) };
    if let Some(before) = change.before {
        let is_question = matches!(
            change.what,
            LeaseChange::RequestHandoff { .. } | LeaseChange::WithdrawHandoff { .. }
        );
        if after.counter != before.counter + u64::from(!is_question) {
            return Err((
                Promise::Fence,
                format!("the counter goes from {} to {}", before.counter, after.counter),
            ));
        }
        let kept = |row: &Lease| (row.parents.clone(), row.anchor, row.stream.clone());
        if kept(after) != kept(before) {
            return Err((Promise::Rows, "a write lost what another one stored".into()));
        }
        if !is_question {
            facts.changed = change.at;
        }
    }
    if facts.best.as_ref().is_some_and(|best| after.checkpoint < *best) {
        return Err((
            Promise::Monotone,
            format!("from {:?} back to {}", facts.best, after.checkpoint),
        ));
    }
    facts.best = Some(after.checkpoint.clone());
    Ok(())
}

fn covers_only_acknowledged(change: &Change<'_>, shards: &mut Shards, shard: usize) -> Found {
    let Some(after) = change.after.filter(|row| row.checkpoint.has_progress()) else {
        return Ok(());
    };
    if shards.is_former(shard) {
        // For the same reason as in `finished`.
        return Ok(());
    }
    let truth = &mut shards.all[shard];
    if after.checkpoint.is_shard_end() && truth.closed.is_none() {
        return Err((Promise::Loss, "finished, but the shard is open".into()));
    }
    if !truth.has(&after.checkpoint) {
        let text = format!("{} is no record of this shard", after.checkpoint);
        return Err((Promise::Loss, text));
    }
    let (covered, done) = (truth.first_after(&after.checkpoint, None), truth.done());
    if covered > done {
        let entry = &truth.entries[done];
        return Err((
            Promise::Loss,
            format!(
                "the checkpoint covers record {} (number {done} of the shard, delivered: {}), \
                 which was not acknowledged",
                entry.record.sequence_number, entry.delivered
            ),
        ));
    }
    Ok(())
}

/// Checks that a drained shard is released only with everything that was acknowledged, and after
/// waiting for the rest.
fn drained(change: &Change<'_>, facts: &Facts, shards: &mut Shards, shard: usize) -> Found {
    let (_, after) = both(change)?;
    let tenure = facts.current.and_then(|id: TenureId| facts.tenures.get(&id));
    let Some(tenure) = tenure else { return Ok(()) };
    let Some((at, acknowledged)) = tenure.asked_to_stop else { return Ok(()) };
    let truth = &mut shards.all[shard];
    let stored = truth.first_after(&after.checkpoint, after.anchor);
    if stored < acknowledged {
        return Err((
            Promise::Repeats,
            format!("released at number {stored}, though {acknowledged} were acknowledged"),
        ));
    }
    let waited = change.sent.saturating_sub(at) >= DRAIN_LIMIT.mul_f64(FAST);
    let outstanding = tenure.next.is_some_and(|next| truth.is_outstanding(next));
    if outstanding && !waited && !truth.failing {
        return Err((Promise::Repeats, "released while acknowledgements could come".into()));
    }
    Ok(())
}

fn finished(
    change: &Change<'_>,
    shards: &mut Shards,
    shard: usize,
    rows: &Rows,
    leases: &std::collections::BTreeMap<usize, Facts>,
) -> Found {
    let LeaseChange::Finish { children, .. } = change.what else { return Ok(()) };
    if shards.is_former(shard) {
        // Finished by a worker that takes the newest stream for the former, and has read that: see
        // `is_unaware`.
        return Ok(());
    }
    let truth = &shards.all[shard];
    let named = |child: &usize| children.contains(&shards.all[*child].id);
    // A first start that saw a partly stale listing may have begun after a child: then that is not
    // created.
    let passed_over = |child: usize| {
        let mut later = vec![child];
        while let Some(shard) = later.pop() {
            let below = &shards.all[shard].children;
            if below.iter().any(|it| leases.contains_key(it)) {
                return true;
            }
            later.extend(below);
        }
        false
    };
    let mut missing =
        truth.children.iter().filter(|child| !shards.all[**child].gone && !passed_over(**child));
    if let Some(child) = missing.find(|child| !truth.gone && !named(child)) {
        let text = format!("finished without its child {}", shards.all[*child].id);
        return Err((Promise::Rows, text));
    }
    for child in children {
        let known = truth.children.iter().find(|it| shards.all[**it].id == *child);
        let finished = known.and_then(|it| leases.get(it)).is_some_and(|it| it.finished.is_some());
        if known.is_none() || !(rows.contains_key(child.as_str()) || finished) {
            return Err((Promise::Rows, format!("finished before its child {child} has a lease")));
        }
    }
    Ok(())
}
