//! The lease table: linearizable rows, and one machine's view of them over the network.
//!
//! A row changes by the library's own rule, [`LeaseWrite::apply`]; the ledger sees every change
//! with its true sender. A scan reads the rows one after another, as the service does: each row is
//! as of some moment of the scan.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kcl_lite::lease::store::{self, LeaseStore, WriteOutcome};
use kcl_lite::lease::{Lease, LeaseChange, LeaseKey, LeaseUpdate, LeaseWrite};
use kcl_lite::{ServiceError, ServiceErrorKind};
use tokio::time::{sleep, timeout};

use crate::checks::Change;
use crate::machine::Machine;
use crate::plan::Service;
use crate::reached::Situation;
use crate::world::Truth;

/// A write that arrives this long after it was sent was forgotten by its sender.
const LATE: Duration = Duration::from_secs(5);

/// The rows.
pub(crate) type Rows = BTreeMap<LeaseKey, Lease>;

/// The table as one machine reaches it.
#[derive(Debug, Clone)]
pub(crate) struct Table(pub(crate) Arc<Machine>);

impl Truth {
    /// Applies a write that arrives, which `machine` sent at `sent`.
    fn write(&mut self, machine: &Machine, sent: Duration, write: &LeaseWrite) -> WriteOutcome {
        match write.apply(self.rows.get(&write.key)) {
            Err(refused) => {
                self.refused(machine, &Shown(&write.key, &write.change));
                WriteOutcome::Refused(refused.current.map(|row| *row))
            }
            Ok(row) => {
                self.changed(machine, sent, (&write.key, &write.change), row.as_ref());
                WriteOutcome::Done(row)
            }
        }
    }

    /// Notes that a write arrived, and its condition did not hold.
    pub(crate) fn refused(&mut self, machine: &Machine, what: &dyn fmt::Display) {
        self.say(machine, format_args!("refused: {what}"));
        self.ledger.counts.note(Situation::Refused);
        if machine.is_dead() {
            self.ledger.counts.note(Situation::RefusedOfTheDead);
        }
    }

    /// Notes that a write of `machine` was applied: the row is now `after`.
    pub(crate) fn changed(
        &mut self,
        machine: &Machine,
        sent: Duration,
        (key, what): (&LeaseKey, &LeaseChange),
        after: Option<&Lease>,
    ) {
        let is_refused = self.shards.is_refused(&self.rows);
        let before = match after {
            Some(row) => self.rows.insert(key.clone(), row.clone()),
            None => self.rows.remove(key),
        };
        if machine.is_dead() {
            self.ledger.counts.note(Situation::AppliedOfTheDead);
        }
        let shown = Shown(key, what);
        let sent_before = self.now.saturating_sub(sent);
        if sent_before > Duration::from_millis(100) {
            self.say(machine, format_args!("{shown} (sent {sent_before:?} ago)"));
        } else {
            self.say(machine, format_args!("{shown}"));
        }
        if sent_before > LATE {
            self.ledger.counts.note(Situation::AppliedLate);
        }
        // The first row of a stream does not continue one of a former stream.
        let is_new = matches!(what, LeaseChange::Replace { .. });
        let before = before.filter(|row| !(is_new && self.shards.is_of_former(row)));
        let change = Change {
            at: self.now,
            sent,
            who: machine.number,
            id: &machine.id,
            what,
            key,
            is_refused,
            before: before.as_ref(),
            after,
        };
        self.ledger.changed(&change, &mut self.shards, &self.rows);
    }
}

impl LeaseStore for Table {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        async move {
            let call = self.0.call(Service::Table, "describing the table", |_| ());
            timeout(Duration::from_secs(10), call).await.unwrap_or_else(|_| {
                Err(ServiceError::new(ServiceErrorKind::Unavailable, "describing the table"))
            })
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<store::Table, ServiceError>> {
        async move {
            let number = self.0.number;
            let first = self.0.call(Service::Table, "scanning", move |truth| {
                truth.ledger.scanned(number, truth.now);
                let half = truth.rows.len() / 2;
                let rest = truth.rows.keys().nth(half).cloned();
                (truth.rows.values().take(half).cloned().collect::<Vec<_>>(), rest)
            });
            let (mut leases, rest) = first.await?;
            let pause = self.0.draw(|rng| if rng.u8(0..20) == 0 { rng.u64(0..300) } else { 0 });
            sleep(Duration::from_millis(pause)).await;
            self.0.awake().await;
            let truth = self.0.world.lock();
            if let Some(rest) = rest {
                leases.extend(truth.rows.range(rest..).map(|(_, row)| row.clone()));
            }
            Ok(leases.into())
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>> {
        let key = key.clone();
        let read = move |truth: &mut Truth| truth.rows.get(&key).cloned();
        self.0.call(Service::Table, "reading a row", read).boxed()
    }

    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>> {
        async move {
            // First, because a frozen process has not sent the write yet.
            self.0.awake().await;
            let (machine, write, sent) = (Arc::clone(&self.0), write.clone(), self.0.world.now());
            self.0.world.lock().ledger.wrote(machine.number, sent);
            // A take counts from its first attempt, whose time is not known here.
            let is_renewal = matches!(write.change, LeaseChange::Renew { .. });
            // It owns what it needs, because the request may arrive after its sender is gone.
            let work = move |truth: &mut Truth| truth.write(&machine, sent, &write);
            let outcome = self.0.call(Service::Table, "writing a row", work).await?;
            if let WriteOutcome::Done(Some(row)) = &outcome
                && is_renewal
            {
                let mut truth = self.0.world.lock();
                let shard = truth.shards.of_row(row);
                shard.into_iter().for_each(|it| truth.ledger.answered(self.0.number, it, sent));
            }
            Ok(outcome)
        }
        .boxed()
    }
}

/// A write in the form of the timeline.
pub(crate) struct Shown<'a>(pub(crate) &'a LeaseKey, pub(crate) &'a LeaseChange);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, change) = self;
        match change {
            LeaseChange::Create(lease) => write!(f, "create {key} at {}", lease.checkpoint),
            LeaseChange::Take { counter, from, .. } => {
                write!(f, "take {key} from {from:?} at counter {counter}")
            }
            LeaseChange::RequestHandoff { counter, from, .. } => {
                write!(f, "request {key} from {from} at counter {counter}")
            }
            LeaseChange::WithdrawHandoff { from, .. } => {
                write!(f, "withdraw the request to {from} for {key}")
            }
            LeaseChange::HandOver { counter, update, to } => {
                write!(f, "hand {key} over to {to} at counter {counter}{}", Reported(update))
            }
            LeaseChange::Renew { counter, update, .. } => {
                write!(f, "renew {key} at counter {counter}{}", Reported(update))
            }
            LeaseChange::Finish { counter, children } => {
                write!(f, "finish {key} at counter {counter}, children {children:?}")
            }
            LeaseChange::Release { counter, update } => {
                write!(f, "release {key} at counter {counter}{}", Reported(update))
            }
            LeaseChange::Delete { counter } => write!(f, "delete {key} at counter {counter}"),
            LeaseChange::Reset { counter, checkpoint, .. } => {
                write!(f, "reset {key} at counter {counter} to {checkpoint}")
            }
            LeaseChange::Discard { counter } => write!(f, "discard {key} at counter {counter}"),
            LeaseChange::Replace { counter, with } => {
                write!(f, "replace {key} at counter {counter}, from now on at {}", with.checkpoint)
            }
        }
    }
}

/// The update of a write, if it has one.
struct Reported<'a>(&'a LeaseUpdate);

impl fmt::Display for Reported<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.checkpoint.iter().try_for_each(|it| write!(f, ", {it}"))
    }
}
