//! Starting an application again from another place, while it runs.
//!
//! Every row is rewritten under its counter: a worker that holds the lease is fenced by that,
//! stops, and the lease is taken again from the new place. This is the only way in which a durable
//! checkpoint moves back. Parents are rewritten before their children, so that a worker that is
//! interrupted between two rows never reads a child before what its parent has to repeat. Workers may
//! have made rows of children meanwhile, and have read from them: the table is read until it shows none
//! that was not rewritten. May be repeated at any time; a repetition completes what an interrupted one
//! began.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, ErrorKind, ServiceError, ServiceErrorKind};
use crate::lease::store::{LeaseStore, Table, WriteOutcome};
use crate::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite, StreamIdentity, StreamKey, WriteId};
use crate::position::{Checkpoint, InitialPosition};
use crate::record::{ShardId, Timestamp};
use crate::shard::Shard;
use crate::shard::plan::{self, Source, Start};
use crate::stream::{ListFrom, Listing, Stream};

/// How often a row whose counter moves meanwhile is tried.
const ATTEMPTS: u32 = 20;

/// How often the table is read for rows that were made meanwhile. Each round takes a reshard, and parents
/// that end between two of its reads.
const ROUNDS: u32 = 20;

/// What a reset did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reset {
    /// Shards that start again: those that hold the new place.
    pub restarted: Vec<LeaseKey>,
    /// Shards that start from their beginning after those.
    pub rewound: Vec<LeaseKey>,
    /// Leases that are ended, because their shards ended before the new place.
    pub dropped: Vec<LeaseKey>,
}

/// Makes an application read a stream again from `to`, or skip ahead to it. Running workers obey
/// within one renewal; stopped ones when they start.
///
/// `store` is the application's lease table and `stream` the stream; of an application that reads
/// several, only the leases of this one are changed. Times count by the service's clock, and one that is
/// still to come is replaced by its present time, as for [`InitialPosition`].
///
/// Shards may be split and merged, and workers may start and stop, meanwhile. When this returns, every
/// lease of the stream that was in the table at the last read, which began after the last write, has been
/// rewritten; those that are made later are of children whose parents have not been read again yet, and
/// start from their beginning when they have.
///
/// # Example: an hour again
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
/// As the calls to the services; what was rewritten until then stays so, and a repetition goes on. Kind
/// `Data` when a row of the stream cannot be read, `Config` when a row was made for a former stream of
/// the name, `Denied` when the table is of several streams and this one cannot be described,
/// `Unavailable` when rows change too quickly.
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
            let context = "the shard listing does not cover the whole hash space; try again when the \
                           reshard is over";
            Error::new(ErrorKind::Unavailable, context)
        })?;
        let mut steps = steps(&all, restarts, &rows);
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
    Err(Error::new(ErrorKind::Unavailable, "new leases appear all the time; try again later"))
}

/// By which keys the rows of the stream stand in the table.
fn key_of(identity: Option<&StreamIdentity>, table: &Table) -> Result<StreamKey, Error> {
    if table.leases.iter().all(|row| row.key.stream() == StreamKey::ONLY) {
        return Ok(StreamKey::ONLY);
    }
    let Some(identity) = identity else {
        let context = "the table has the leases of several streams, and which of them this one is cannot \
                       be told: allow `kinesis:DescribeStreamSummary`";
        return Err(Error::new(ErrorKind::Denied, context));
    };
    Ok(plan::key_among_several(identity, &table.leases))
}

/// The rows of the stream; an error if one cannot be rewritten.
fn rows_of(source: &Source, table: Table) -> Result<BTreeMap<ShardId, Lease>, Error> {
    let mut unreadable = table.unreadable.iter().filter(|(key, _)| key.stream() == source.key);
    if let Some((key, fault)) = unreadable.next() {
        let context = format!("the row `{key}` cannot be read: {fault}; mend or remove it first");
        return Err(Error::new(ErrorKind::Data, context));
    }
    if let Some(row) = table.leases.iter().find(|row| source.other_stream(row).is_some()) {
        let context = format!(
            "the row `{}` was made for another stream, {}: start a worker first, which can be told to \
             start over with the stream that is there now",
            row.key,
            row.made_for()
        );
        return Err(Error::new(ErrorKind::Config, context));
    }
    let rows = table.leases.into_iter().filter(|row| row.key.stream() == source.key);
    Ok(rows.map(|row| (row.shard(), row)).collect())
}

/// What happens to one row.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Its shard holds the new place: it becomes this, or is made so.
    Restart(Box<Lease>),
    /// Its shard is younger than the new place: it starts from its own beginning.
    Rewind(LeaseKey),
    /// Its shard ended before the new place.
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

/// What is to be done, parents first. Pure.
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
    restarts.extend(rewinds);
    restarts.extend(drops);
    restarts
}

/// Whether one of `starts` is an ancestor of `shard`.
fn descends(
    shard: &ShardId,
    starts: &BTreeSet<ShardId>,
    shards: &BTreeMap<&ShardId, &Shard>,
    rows: &BTreeMap<ShardId, Lease>,
) -> bool {
    let listed = shards.get(shard).map(|shard| &shard.parents);
    let parents = listed.or_else(|| rows.get(shard).map(|row| &row.parents));
    parents.is_some_and(|parents| {
        let leads_here = |it: &ShardId| starts.contains(it) || descends(it, starts, shards, rows);
        parents.iter().any(leads_here)
    })
}

/// Writes under the counter that the row has now; an owner that renews meanwhile moves it.
async fn perform(store: &dyn LeaseStore, step: &Step) -> Result<(), ServiceError> {
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
    let context = format!("the row `{}` changes too quickly; try again", step.key());
    Err(ServiceError::new(ServiceErrorKind::Unavailable, context))
}

/// The write that brings `row` to where it should be; `None` if there is nothing to do.
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
        // Ended rather than removed: an owner would write a row again that is gone.
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
        let told: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Step::Restart(lease) => format!("{} {:?}", lease.key, lease.checkpoint),
                Step::Rewind(key) => format!("{key} rewound"),
                Step::Drop(key) => format!("{key} dropped"),
            })
            .collect();
        assert_eq!(told, ["1 AtTimestamp", "2 rewound", "3 rewound", "0 dropped"]);
    }

    /// A table in which a worker ends the parent, and reads from its child, before the parent's row is
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
                // A child of the parent, and then one of the child's.
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
