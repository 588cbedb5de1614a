//! Resetting an application to another position while it runs.
//!
//! Every row is rewritten conditionally on its counter, which fences the owner: it stops, and the lease is
//! taken again at the new position. No other write moves a stored checkpoint back. Parents are rewritten
//! before their children, so that after an interruption between two rows no worker reads a child before
//! the records that its parent has to repeat. Workers may create rows of children during the reset and
//! read from them, so the table is read until it contains no row that was not rewritten. A reset can be
//! repeated at any time, and completes an interrupted one.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, ErrorKind, ServiceError, ServiceErrorKind};
use crate::lease::store::{LeaseStore, Table, WriteOutcome};
use crate::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite, StreamIdentity, StreamKey, WriteId};
use crate::position::{Checkpoint, InitialPosition};
use crate::record::{ShardId, Timestamp};
use crate::shard::Shard;
use crate::shard::plan::{self, Source, Start};
use crate::stream::{ListFrom, Listing, Stream};

/// The number of attempts at a row whose counter changes between read and write.
const ATTEMPTS: u32 = 20;

/// The number of times the table is read for new rows. Each further round needs another resharding, and
/// parents that end between two reads.
const ROUNDS: u32 = 20;

/// The result of a reset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reset {
    /// The shards that contain the new position and restart there.
    pub restarted: Vec<LeaseKey>,
    /// The descendants of those shards, which restart from their beginning.
    pub rewound: Vec<LeaseKey>,
    /// The leases that are set to shard end, because their shards ended before the new position.
    pub dropped: Vec<LeaseKey>,
}

/// Resets an application, so that it reads a stream again from `to`, or skips ahead to it. Running workers
/// follow within one renewal, stopped workers when they start.
///
/// `store` is the application's lease table and `stream` the stream; if the application reads several
/// streams, only the leases of this one change. Times are those of the service's clock, and a time in the
/// future is replaced by its present time, as for [`InitialPosition`].
///
/// Shards may be split and merged, and workers may start and stop, during the reset. When it returns, every
/// lease of the stream that was in the table at the last read, which began after the last write, has been
/// rewritten. Leases created later belong to children whose parents have not been read again yet, and start
/// from their beginning after their parents.
///
/// # Example: repeat an hour
/// ```
/// use kcl_lite::lease::memory::MemoryStore;
/// use kcl_lite::stream::memory::MemoryStream;
/// use kcl_lite::{InitialPosition, Timestamp, reset};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let (store, stream) = (MemoryStore::new(), MemoryStream::new(2));
/// let an_hour_ago = Timestamp::from_millis(1_700_000_000_000 - 3_600_000);
/// let done = reset::reset(&store, &stream, InitialPosition::AtTimestamp(an_hour_ago)).await?;
/// assert_eq!(done.restarted.len(), 2);
/// # Ok::<(), kcl_lite::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Cancel safety
/// Dropping the future leaves some rows rewritten and others not; run it again.
///
/// # Errors
/// The errors of the calls to the services; rows that were rewritten stay rewritten, and a repeated reset
/// continues. Kind `Data` when a row of the stream is unreadable, `Config` when a row belongs to another
/// stream, for instance before the stream was re-created, `Denied` when the table has the leases of
/// several streams and this one cannot be described, `Unavailable` when rows change too quickly.
pub async fn reset(
    store: &dyn LeaseStore,
    stream: &dyn Stream,
    to: InitialPosition,
) -> Result<Reset, Error> {
    let all = stream.list(ListFrom::All).await?;
    let start = Start::of(to, all.at);
    let first = stream.list(start.listed()).await?;
    let identity = stream.describe().await?.identity;
    let mut done = Reset::default();
    let mut rewritten = BTreeSet::new();
    for _ in 0..ROUNDS {
        let table = store.list().await?;
        let key = key_of(identity.as_ref(), &table)?;
        let source = Source { key, identity: identity.clone(), position: to, since: None };
        let rows = rows_of(&source, table)?;
        let restarts = plan::first_leases(&first, &source, start).ok_or_else(|| {
            let context = "the shard listing does not cover the whole hash space; retry when the \
                           resharding is complete";
            Error::new(ErrorKind::Unavailable, context)
        })?;
        let mut steps = steps(&all, restarts, &rows);
        // Each row only once: workers already read from those that were rewritten.
        steps.retain(|step| !rewritten.contains(step.key()));
        if steps.is_empty() {
            return Ok(done);
        }
        for step in steps {
            perform(store, &step).await?;
            rewritten.insert(step.key().clone());
            match step {
                Step::Restart(lease) => done.restarted.push(lease.key),
                Step::Rewind(key) => done.rewound.push(key),
                Step::Drop(key) => done.dropped.push(key),
            }
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "workers keep creating leases; retry later"))
}

/// Returns the stream part of the keys of the stream's rows.
fn key_of(identity: Option<&StreamIdentity>, table: &Table) -> Result<StreamKey, Error> {
    if table.leases.iter().all(|row| row.key.stream() == StreamKey::ONLY) {
        return Ok(StreamKey::ONLY);
    }
    let Some(identity) = identity else {
        let context = "the table has the leases of several streams, and this stream cannot be identified \
                       among them: allow `kinesis:DescribeStreamSummary`";
        return Err(Error::new(ErrorKind::Denied, context));
    };
    Ok(plan::key_among_several(identity, &table.leases))
}

/// Returns the rows of the stream, or an error if one cannot be rewritten.
fn rows_of(source: &Source, table: Table) -> Result<BTreeMap<ShardId, Lease>, Error> {
    let mut unreadable = table.unreadable.iter().filter(|(key, _)| key.stream() == source.key);
    if let Some((key, fault)) = unreadable.next() {
        let context =
            format!("lease row `{key}` is unreadable: {fault}; repair or delete it first");
        return Err(Error::new(ErrorKind::Data, context));
    }
    if let Some(row) = table.leases.iter().find(|row| source.other_stream(row).is_some()) {
        let context = format!(
            "lease row `{}` belongs to another stream, {}: first start a worker, which can start over \
             with the present stream (setting `stream_recreated`)",
            row.key,
            row.made_for()
        );
        return Err(Error::new(ErrorKind::Config, context));
    }
    let rows = table.leases.into_iter().filter(|row| row.key.stream() == source.key);
    Ok(rows.map(|row| (row.shard(), row)).collect())
}

/// The change of one row.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// The shard contains the new position: the row is rewritten to this lease, or created.
    Restart(Box<Lease>),
    /// The shard descends from one with the new position: it restarts from its own beginning.
    Rewind(LeaseKey),
    /// The shard ended before the new position.
    Drop(LeaseKey),
}

impl Step {
    fn key(&self) -> &LeaseKey {
        match self {
            Self::Restart(lease) => &lease.key,
            Self::Rewind(key) | Self::Drop(key) => key,
        }
    }
}

/// Plans the changes, parents first. Pure.
fn steps(all: &Listing, first: Vec<Lease>, rows: &BTreeMap<ShardId, Lease>) -> Vec<Step> {
    let shards: BTreeMap<&ShardId, &Shard> = all.shards.iter().map(|it| (&it.id, it)).collect();
    let starts: BTreeSet<ShardId> = first.iter().map(Lease::shard).collect();
    let mut restarts: Vec<_> = first.into_iter().map(|it| Step::Restart(Box::new(it))).collect();
    let (mut rewinds, mut drops) = (Vec::new(), Vec::new());
    for (shard, row) in rows.iter().filter(|(shard, _)| !starts.contains(*shard)) {
        if descends(shard, &starts, &shards, rows) {
            rewinds.push(Step::Rewind(row.key.clone()));
        } else {
            drops.push(Step::Drop(row.key.clone()));
        }
    }
    // Ids grow with every reshard, so a parent sorts before its children.
    // Drops come last: a parent that is set to shard end lets its children run, and these must be
    // at their new positions by then.
    restarts.extend(rewinds);
    restarts.extend(drops);
    restarts
}

/// Returns whether one of `starts` is an ancestor of `shard`.
fn descends(
    shard: &ShardId,
    starts: &BTreeSet<ShardId>,
    shards: &BTreeMap<&ShardId, &Shard>,
    rows: &BTreeMap<ShardId, Lease>,
) -> bool {
    let listed = shards.get(shard).map(|shard| &shard.parents);
    // A listing may be older than the row, or the service may have forgotten the shard.
    let parents = listed.or_else(|| rows.get(shard).map(|row| &row.parents));
    parents.is_some_and(|parents| {
        let leads_here = |it: &ShardId| starts.contains(it) || descends(it, starts, shards, rows);
        parents.iter().any(leads_here)
    })
}

/// Writes conditionally on the row's present counter, and retries when an owner renews in between.
async fn perform(store: &dyn LeaseStore, step: &Step) -> Result<(), ServiceError> {
    // Read again, because the table was read before all earlier steps.
    let mut row = store.get(step.key()).await?;
    for _ in 0..ATTEMPTS {
        let Some(change) = change(step, row.as_ref()) else { return Ok(()) };
        let counter = row.as_ref().map_or(0, |row| row.counter);
        let id = WriteId::new(format!("reset:{counter}"));
        let write = LeaseWrite { key: step.key().clone(), id, change };
        match store.write(&write).await? {
            WriteOutcome::Done(_) => return Ok(()),
            WriteOutcome::Refused(now) => row = now,
        }
    }
    let context = format!("lease row `{}` changes too quickly; retry later", step.key());
    Err(ServiceError::new(ServiceErrorKind::Unavailable, context))
}

/// Returns the write that `row` needs for `step`, or `None` if there is nothing to do.
fn change(step: &Step, row: Option<&Lease>) -> Option<LeaseChange> {
    let at = |row: &Lease, checkpoint, anchor: Option<Timestamp>| LeaseChange::Reset {
        counter: row.counter,
        checkpoint,
        anchor,
    };
    match (step, row) {
        (Step::Restart(lease), Some(row)) => Some(at(row, lease.checkpoint.clone(), lease.anchor)),
        (Step::Restart(lease), None) => Some(LeaseChange::Create(lease.clone())),
        (Step::Rewind(_), Some(row)) => Some(at(row, Checkpoint::TrimHorizon, None)),
        // Ended rather than deleted: an owner re-creates a row that is missing.
        (Step::Drop(_), Some(row)) if row.checkpoint.is_shard_end() => None,
        (Step::Drop(_), Some(row)) => Some(at(row, Checkpoint::ShardEnd, None)),
        (Step::Rewind(_) | Step::Drop(_), None) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::lease::memory::MemoryStore;
    use crate::shard::HashRange;
    use crate::stream::memory::MemoryStream;

    fn shard(id: &str, parents: &[&str], is_open: bool) -> Shard {
        let parents = parents.iter().map(|parent| ShardId::from(*parent)).collect();
        Shard { id: id.into(), parents, hash_range: HashRange::ALL, is_open }
    }

    fn listing(shards: &[Shard]) -> Listing {
        Listing { shards: shards.to_vec(), at: Timestamp::from_millis(9) }
    }

    fn rows(ids: &[&str]) -> BTreeMap<ShardId, Lease> {
        let row = |id: &&str| (ShardId::from(*id), Lease::new(*id, Checkpoint::ShardEnd));
        ids.iter().map(row).collect()
    }

    #[test]
    fn e11_a_rewind_restarts_what_holds_the_place_rewinds_what_follows_and_drops_what_was_before() {
        let family = [
            shard("0", &[], false),
            shard("1", &["0"], false),
            shard("2", &["1"], false),
            shard("3", &["2"], true),
        ];
        let start = Start::At(Timestamp::from_millis(5));
        let first = plan::first_leases(&listing(&family[1..2]), &Source::default(), start).unwrap();
        let steps = steps(&listing(&family), first, &rows(&["0", "2", "3"]));
        let reported: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Step::Restart(lease) => format!("{} {:?}", lease.key, lease.checkpoint),
                Step::Rewind(key) => format!("{key} rewound"),
                Step::Drop(key) => format!("{key} dropped"),
            })
            .collect();
        assert_eq!(reported, ["1 AtTimestamp", "2 rewound", "3 rewound", "0 dropped"]);
    }

    /// A table in which a worker finishes the parent and reads from its child before the parent's row is
    /// rewritten.
    #[derive(Debug)]
    struct Meanwhile(MemoryStore, AtomicU32);

    impl LeaseStore for Meanwhile {
        fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
            self.0.prepare()
        }

        fn list(&self) -> BoxFuture<'_, Result<Table, ServiceError>> {
            self.0.list()
        }

        fn get<'a>(
            &'a self,
            key: &'a LeaseKey,
        ) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>> {
            self.0.get(key)
        }

        fn write<'a>(
            &'a self,
            write: &'a LeaseWrite,
        ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>> {
            async move {
                let number = self.1.fetch_add(1, Ordering::Relaxed);
                // First a child of the parent, then a child of that child.
                if number < 2 {
                    let parent =
                        if number == 0 { write.key.shard() } else { number.to_string().into() };
                    let checkpoint = Checkpoint::parse("55", 0).expect("digits");
                    let child = Lease {
                        parents: [parent].into(),
                        ..Lease::new((number + 1).to_string(), checkpoint)
                    };
                    let change = LeaseChange::Create(Box::new(child.clone()));
                    let id = WriteId::new("worker");
                    self.0.write(&LeaseWrite { key: child.key, id, change }).await?;
                }
                self.0.write(write).await
            }
            .boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn e11_children_whose_rows_are_made_meanwhile_are_rewound_too() {
        let stream = MemoryStream::new(1);
        let shard = stream.list(ListFrom::All).await.unwrap().shards.swap_remove(0).id;
        let store = Meanwhile(MemoryStore::new(), AtomicU32::new(0));
        let done = reset(&store, &stream, InitialPosition::TrimHorizon).await.unwrap();
        assert_eq!(done.restarted, [LeaseKey::from(shard)]);
        assert_eq!(done.rewound, [LeaseKey::from("1"), LeaseKey::from("2")]);
        let rows = store.0.snapshot();
        assert!(rows.iter().all(|row| row.checkpoint == Checkpoint::TrimHorizon), "{rows:?}");
    }

    #[test]
    fn e11_the_owner_of_a_row_is_fenced_by_its_counter() {
        let row = Lease { counter: 7, ..Lease::new("0", Checkpoint::TrimHorizon) };
        let change = change(&Step::Rewind("0".into()), Some(&row)).unwrap();
        assert!(matches!(change, LeaseChange::Reset { counter: 7, .. }), "{change:?}");
    }
}
