//! The start of a worker. Before it is ready, its streams are active, the lease table exists, and every
//! stream has leases that were created for it and that do not start in the future.
//!
//! Every step is idempotent. Transient failures are retried for as long as the settings allow; others
//! become the typed error that `start` returns. Never takes a lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::context::ControlContext;
use super::service_clock::ServiceClock;
use crate::clock::{sleep, timely, within};
use crate::error::{Error, ErrorKind, ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::lease::store::{Table, WriteOutcome};
use crate::lease::tenure::write_id;
use crate::lease::{Lease, LeaseChange, LeaseWrite, Other, StreamIdentity, StreamKey};
use crate::position::{Checkpoint, InitialPosition};
use crate::record::Timestamp;
use crate::retry::Retry;
use crate::settings::StreamRecreated;
use crate::shard::covers_everything;
use crate::shard::plan::{self, Source, Start};
use crate::stream::{Description, ListFrom, Listing, Notice, Stream};

/// How long one call may take; creating a table takes several.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Time between two checks of a stream that is being created.
const STREAM_POLL: Duration = Duration::from_secs(1);
/// How far a time from the service may be behind its clock, besides the duration of the call: the `Date`
/// header is truncated to whole seconds, and a margin is subtracted.
const EARLY: Duration = Duration::from_secs(5);
/// How often the rewrite of a row is attempted while its owner keeps incrementing the counter.
const REWRITES: u32 = 20;

/// A stream as the user passed it to the worker.
#[derive(Debug, Clone)]
pub(crate) struct GivenStream {
    /// The name or ARN by which the user knows it.
    pub(crate) name: Arc<str>,
    pub(crate) stream: Arc<dyn Stream>,
    pub(crate) position: InitialPosition,
}

/// A stream that is ready to be read.
#[derive(Debug, Clone)]
pub(crate) struct ReadyStream {
    pub(crate) name: Arc<str>,
    pub(crate) stream: Arc<dyn Stream>,
    pub(crate) source: Source,
    pub(crate) retention: Option<Duration>,
    pub(crate) service_clock: ServiceClock,
}

impl ReadyStream {
    /// Returns the time before which records may have aged out; `None` if it is unknown.
    pub(crate) fn horizon(&self) -> Option<Timestamp> {
        let retention = i64::try_from(self.retention?.as_millis()).unwrap_or(i64::MAX);
        let now = self.service_clock.now()?.as_millis();
        Some(Timestamp::from_millis(now.saturating_sub(retention)))
    }
}

/// Prepares the streams, the table and the first leases; returns the streams and the number of leases.
pub(crate) async fn make_ready(
    context: &ControlContext,
    given: &[GivenStream],
    rng: &mut fastrand::Rng,
) -> Result<(BTreeMap<StreamKey, ReadyStream>, usize), Error> {
    let began = context.clock.now();
    // Streams first: a wrong name must not leave a new table behind.
    let mut described = Vec::new();
    for given in given {
        described.push(describe(context, given, rng).await?);
        // The stream bounds its own wait for a new consumer.
        let mut retry = attempts();
        let notice = loop {
            match given.stream.prepare().await {
                Ok(notice) => break notice,
                Err(error) => pause(context, &mut retry, rng, error).await?,
            }
        };
        if let Some(Notice::ConsumerRegistered { consumer }) = notice {
            context.events.emit(&Event::ConsumerRegistered { consumer });
        }
    }
    // Taken before the call, so that the age of the rows is never underestimated.
    let looked = context.clock.now();
    let (table, is_new) = match retried(context, rng, || context.store.list()).await {
        Err(error) if error.kind == ServiceErrorKind::Missing => (Table::default(), true),
        table => (table?, false),
    };
    // A missing table is created later, when all streams have been checked.
    if !is_new {
        prepare(context, rng).await?;
    }
    // All streams are checked before anything is written.
    let mut settled = Vec::new();
    for (given, description) in given.iter().zip(described) {
        let mut ready = ready(context, given, &description, &table)?;
        let others = settle_others(&table, &mut ready.source, context.settings.stream_recreated)?;
        settled.push((ready, others));
    }
    let mut streams = BTreeMap::new();
    let mut leases = 0;
    for (ready, others) in settled {
        leases += match rows_to_go_on_with(&ready.source, &table, &others) {
            0 => create_first(context, &ready, (began, looked), rng).await?,
            rows => {
                repair_future_starts(context, &ready, &table, rng).await?;
                rows
            }
        };
        // Last: until the first new lease exists, these rows are the evidence that the stream was
        // re-created.
        for row in others {
            discard(context, &ready.source, row, rng).await?;
        }
        streams.insert(ready.source.key.clone(), ready);
    }
    Ok((streams, leases))
}

/// Prepares the table. The store bounds its own wait for a new table.
async fn prepare(context: &ControlContext, rng: &mut fastrand::Rng) -> Result<(), Error> {
    let mut retry = attempts();
    while let Err(error) = context.store.prepare().await {
        pause(context, &mut retry, rng, error).await?;
    }
    Ok(())
}

/// Describes the stream. Reading it does not require the permission to describe it.
async fn describe(
    context: &ControlContext,
    given: &GivenStream,
    rng: &mut fastrand::Rng,
) -> Result<Description, Error> {
    let describe = || given.stream.describe();
    match wait_until_ready(context, rng, describe).await {
        Err(error) if error.kind == ServiceErrorKind::Denied => {
            // The listing shows whether any access is allowed, and its error names the denied call.
            let list = || given.stream.list(ListFrom::Latest);
            let listing = wait_until_ready(context, rng, list).await?;
            tracing::info!("a re-created stream of the same name cannot be detected: {error}");
            Ok(Description { at: Some(listing.at), ..Description::default() })
        }
        description => Ok(description?),
    }
}

fn ready(
    context: &ControlContext,
    given: &GivenStream,
    description: &Description,
    table: &Table,
) -> Result<ReadyStream, Error> {
    let identity = description.identity.clone();
    let several = context.several_streams;
    let key = if several { key_of(&identity, &given.name, table)? } else { StreamKey::ONLY };
    let service_clock = ServiceClock::new(Arc::clone(&context.clock));
    if let Some(at) = description.at {
        service_clock.set(at);
    }
    Ok(ReadyStream {
        name: Arc::clone(&given.name),
        stream: Arc::clone(&given.stream),
        source: Source { key, identity, position: given.position, since: None },
        retention: description.retention,
        service_clock,
    })
}

/// Returns the stream part of the lease keys, for one of several streams.
fn key_of(
    identity: &Option<StreamIdentity>,
    name: &str,
    table: &Table,
) -> Result<StreamKey, Error> {
    let Some(identity) = identity else {
        return Err(Error::new(
            ErrorKind::Denied,
            format!(
                "a worker of several streams needs the account and the creation time of `{name}`: \
                 allow `kinesis:DescribeStreamSummary`"
            ),
        ));
    };
    Ok(plan::key_among_several(identity, &table.leases))
}

/// Returns the existing rows of a stream.
fn rows_of<'a>(source: &'a Source, leases: &'a [Lease]) -> impl Iterator<Item = &'a Lease> + Clone {
    let is_its =
        |row: &&Lease| row.key.stream() == source.key && source.other_stream(row).is_none();
    leases.iter().filter(is_its)
}

/// Counts the rows from which the worker continues; with zero it creates the first leases.
fn rows_to_go_on_with(source: &Source, table: &Table, others: &[&Lease]) -> usize {
    let rows = rows_of(source, &table.leases);
    // Unreadable rows may belong to either stream.
    if !others.is_empty() && rows.clone().next().is_none() {
        return 0;
    }
    let unreadable = table.unreadable.keys().filter(|key| key.stream() == source.key);
    rows.count() + unreadable.count()
}

/// Checks whether the worker may start beside rows of other streams, such as a former one of the same
/// name. Returns the rows to remove; if the worker has to start over, sets the position in `source`.
fn settle_others<'a>(
    table: &'a Table,
    source: &mut Source,
    recreated: StreamRecreated,
) -> Result<Vec<&'a Lease>, Error> {
    let others = table.leases.iter().filter_map(|row| Some((source.other_stream(row)?, row)));
    let (kinds, rows): (Vec<_>, Vec<_>) = others.unzip();
    let Some(row) = rows.first() else { return Ok(rows) };
    // The description is older than such a row, so this worker would read a deleted stream.
    if kinds.contains(&Other::Newer) {
        return Err(Error::new(
            ErrorKind::Missing,
            "the stream was re-created while the worker was starting; restart the worker",
        ));
    }
    let own: Vec<_> = rows_of(source, &table.leases).collect();
    // With several streams, the key of a row names its stream.
    let is_marked = |row: &&Lease| row.stream.is_some() || source.key != StreamKey::ONLY;
    if kinds.iter().all(|kind| *kind == Other::Former) && own.iter().any(is_marked) {
        // The new stream has leases, so the start over has happened; an owner that did not know of it
        // has written rows of the former stream again.
        return Ok(rows);
    }
    // No program can know whether the old rows are stale or the new stream is a mistake.
    if recreated == StreamRecreated::Refuse {
        let was = row.made_for();
        let is = source.identity.as_ref().map_or_else(String::new, ToString::to_string);
        return Err(Error::new(
            ErrorKind::OtherStream,
            format!(
                "the leases belong to another stream: they were created for {was}, but the stream of \
                 that name is now {is}; use another application name"
            ),
        ));
    }
    // An unmarked row may belong to either stream, so it can be neither kept nor removed.
    if let Some(row) = own.iter().find(|row| !is_marked(row)) {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "the lease row `{}` does not name its stream, and other rows belong to a deleted \
                 stream: delete it, or use another application name",
                row.key
            ),
        ));
    }
    // Nothing of the new stream has been read.
    source.position = InitialPosition::TrimHorizon;
    source.since = source.identity.as_ref().map(|stream| stream.created);
    Ok(rows)
}

async fn discard(
    context: &ControlContext,
    source: &Source,
    row: &Lease,
    rng: &mut fastrand::Rng,
) -> Result<(), ServiceError> {
    // Checked for each refusal: by then the row may have been replaced by one of a newer stream.
    let is_other = |row: &Lease| source.other_stream(row).is_some_and(|it| it != Other::Newer);
    retried(context, rng, || context.discard(row.clone(), is_other)).await
}

/// Creates the table, if it is missing, and the first leases of a stream that had none when the table was
/// last read.
async fn create_first(
    context: &ControlContext,
    ready: &ReadyStream,
    (began, mut looked): (Instant, Instant),
    rng: &mut fastrand::Rng,
) -> Result<usize, Error> {
    let start = decide_start(context, ready, began, rng).await?;
    let list = || ready.stream.list(start.listed());
    let first = wait_until_ready(context, rng, list).await?;
    ready.service_clock.set(first.at);
    // Only now, so that a start that fails before leaves no new table behind.
    prepare(context, rng).await?;
    let wanted = first_leases(context, ready, (start, first), rng).await?;
    let count = wanted.len();
    for lease in wanted {
        let mut retry = attempts();
        loop {
            // Before each attempt: while the process was stopped or had no reply, other workers may have
            // created this row, finished its shard and deleted it. If there are rows, the first audit
            // finds what is missing.
            if context.clock.now() > looked + context.settings.lease_duration * 2 {
                looked = context.clock.now();
                if let Some(rows) = rows_made_by_others(context, ready, rng).await? {
                    return Ok(rows);
                }
            }
            let call = context.create(&lease);
            match timely(&context.clock, call_limit(context), "starting", call).await {
                Ok(()) => break,
                Err(error) => pause(context, &mut retry, rng, error).await?,
            }
        }
    }
    Ok(count)
}

/// Decides where the first leases start. Times refer to the service's clock at the first call.
async fn decide_start(
    context: &ControlContext,
    ready: &ReadyStream,
    began: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Start, Error> {
    let position = ready.source.position;
    let (InitialPosition::AtTimestamp(_) | InitialPosition::Ago(_)) = position else {
        // These positions contain no time, so the time of the service is not needed.
        return Ok(Start::of(position, Timestamp::from_millis(0)));
    };
    let list = || ready.stream.list(ListFrom::Latest);
    let now = wait_until_ready(context, rng, list).await?.at;
    let start = Start::of(position, now);
    if let (InitialPosition::AtTimestamp(requested), Start::At(used)) = (position, start)
        && is_to_come(requested, now, context.clock.now() - began)
    {
        let stream = ready.name.to_string();
        context.events.emit(&Event::InitialPositionReplaced { stream, requested, used });
    }
    Ok(start)
}

/// Returns whether a time is certainly in the future of the service's clock, which returned `now` at most
/// `asked` ago.
fn is_to_come(time: Timestamp, now: Timestamp, asked: Duration) -> bool {
    let most = i64::try_from((asked + EARLY).as_millis()).unwrap_or(i64::MAX);
    time > Timestamp::from_millis(now.as_millis().saturating_add(most))
}

/// Resets shards whose rows start in the future to their oldest record. Such a row was created by a
/// program whose clock was ahead; the intended start is unknown, and nothing has been read yet.
async fn repair_future_starts(
    context: &ControlContext,
    ready: &ReadyStream,
    table: &Table,
    rng: &mut fastrand::Rng,
) -> Result<(), Error> {
    let Some(known) = ready.service_clock.now() else { return Ok(()) };
    let start_to_come = |row: &Lease, now, asked| {
        let start = row.anchor.filter(|_| !row.checkpoint.has_progress());
        start.filter(|time| is_to_come(*time, now, asked))
    };
    let rows = rows_of(&ready.source, &table.leases);
    // No allowance for the age of `known`: a false suspicion costs only the call below.
    let suspects: Vec<_> =
        rows.filter(|row| start_to_come(row, known, Duration::ZERO).is_some()).collect();
    if suspects.is_empty() {
        return Ok(());
    }
    // The table was read after the service returned its time, and rows may have been created since.
    // None of them can correctly start later than the service's time now.
    let asked = context.clock.now();
    let described = retried(context, rng, || ready.stream.describe()).await;
    // A listing has a time, too, and needs no permission to describe the stream.
    let now = match described.ok().and_then(|description| description.at) {
        Some(now) => now,
        None => retried(context, rng, || ready.stream.list(ListFrom::Latest)).await?.at,
    };
    let took = context.clock.now() - asked;
    for row in suspects {
        start_again(context, row.clone(), |row| start_to_come(row, now, took), rng).await?;
    }
    Ok(())
}

/// Rewrites a row while its `start` is wrong. Its owner, which cannot read anything, loses the lease by
/// this write and takes it again.
async fn start_again(
    context: &ControlContext,
    mut row: Lease,
    start: impl Fn(&Lease) -> Option<Timestamp>,
    rng: &mut fastrand::Rng,
) -> Result<(), ServiceError> {
    for _ in 0..REWRITES {
        let Some(stored) = start(&row) else { return Ok(()) };
        let (counter, checkpoint) = (row.counter, Checkpoint::TrimHorizon);
        let change = LeaseChange::Reset { counter, checkpoint, anchor: None };
        let id = write_id(&context.incarnation, counter);
        let write = LeaseWrite { key: row.key.clone(), id, change };
        match retried(context, rng, || context.store.write(&write)).await? {
            WriteOutcome::Refused(Some(now)) => row = now,
            // The row has been deleted, and its wrong start with it.
            WriteOutcome::Refused(None) => return Ok(()),
            WriteOutcome::Done(_) => {
                context.events.emit(&Event::LeaseStartReplaced { shard: row.key, stored });
                return Ok(());
            }
        }
    }
    let context = format!("the lease row `{}` changes too quickly; restart the worker", row.key);
    Err(ServiceError::new(ServiceErrorKind::Unavailable, context))
}

/// Returns how many rows the stream has, if other workers created any of them.
async fn rows_made_by_others(
    context: &ControlContext,
    ready: &ReadyStream,
    rng: &mut fastrand::Rng,
) -> Result<Option<usize>, Error> {
    let table = retried(context, rng, || context.store.list()).await?;
    let rows = rows_of(&ready.source, &table.leases);
    // The mark contains the incarnation, so rows of earlier attempts of this start do not count.
    let made_here =
        |row: &Lease| row.write_id.as_ref() == Some(&write_id(&context.incarnation, row.counter));
    Ok((!rows.clone().all(made_here)).then(|| rows.count()))
}

async fn wait_until_ready<T, F>(
    context: &ControlContext,
    rng: &mut fastrand::Rng,
    call: impl Fn() -> F,
) -> Result<T, ServiceError>
where
    F: Future<Output = Result<T, ServiceError>>,
{
    let mut said = false;
    loop {
        match retried(context, rng, &call).await {
            Err(error)
                if error.kind == ServiceErrorKind::NotReady && may_wait(context, STREAM_POLL) =>
            {
                if !std::mem::replace(&mut said, true) {
                    context.events.emit(&Event::WaitingForStream { reason: error.to_string() });
                }
                sleep(&context.clock, STREAM_POLL).await;
            }
            other => return other,
        }
    }
}

/// Returns the first leases. A listing may fall into a resharding: lists again until the shards cover the
/// whole hash space.
async fn first_leases(
    context: &ControlContext,
    ready: &ReadyStream,
    (start, mut listing): (Start, Listing),
    rng: &mut fastrand::Rng,
) -> Result<Vec<Lease>, Error> {
    if start == Start::Latest {
        listing = listing_as_of(context, &ready.stream, listing).await;
    }
    loop {
        if let Some(leases) = plan::first_leases(&listing, &ready.source, start) {
            return Ok(leases);
        }
        if !may_wait(context, STREAM_POLL) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the shard listing does not cover the whole hash space; retry when the resharding is \
                 complete",
            ));
        }
        sleep(&context.clock, STREAM_POLL).await;
        let at = listing.at;
        let list = || ready.stream.list(start.listed());
        listing = wait_until_ready(context, rng, list).await?;
        // "Latest" is the time of the first listing.
        listing.at = at;
    }
}

/// Lists the shards that were open at the time of "latest", not those that are open now: a shard that
/// closed in between still has records to deliver, and its children follow when it ends.
async fn listing_as_of(
    context: &ControlContext,
    stream: &Arc<dyn Stream>,
    now: Listing,
) -> Listing {
    let then = stream.list(ListFrom::AtTimestamp(now.at));
    let listing = within(&context.clock, CALL_LIMIT, then).await;
    match listing {
        Some(Ok(then)) if covers_everything(then.shards.iter().map(|it| it.hash_range)) => {
            Listing { at: now.at, ..then }
        }
        // The stream may be younger than that.
        Some(_) | None => now,
    }
}

/// Retries a call while its error is transient and the start timeout allows.
async fn retried<T, F>(
    context: &ControlContext,
    rng: &mut fastrand::Rng,
    call: impl Fn() -> F,
) -> Result<T, ServiceError>
where
    F: Future<Output = Result<T, ServiceError>>,
{
    let mut retry = attempts();
    loop {
        match timely(&context.clock, call_limit(context), "starting", call()).await {
            // `wait_until_ready` waits for a stream that is not ready, and emits an event of its
            // own.
            Err(error) if error.kind != ServiceErrorKind::NotReady => {
                pause(context, &mut retry, rng, error).await?;
            }
            other => return other,
        }
    }
}

fn attempts() -> Retry {
    Retry::new(Duration::from_millis(200), Duration::from_secs(2))
}

async fn pause(
    context: &ControlContext,
    retry: &mut Retry,
    rng: &mut fastrand::Rng,
    error: ServiceError,
) -> Result<(), ServiceError> {
    let delay = retry.delay(rng);
    // A wait beyond the timeout would end with the same error, only later.
    if !error.is_transient() || !may_wait(context, delay) {
        return Err(error);
    }
    context.events.emit(&Event::CoordinationFailed {
        operation: "starting",
        error: error.to_string(),
        transient: true,
        call: error.call.clone(),
    });
    sleep(&context.clock, delay).await;
    Ok(())
}

/// Returns whether the start may take another `delay`.
fn may_wait(context: &ControlContext, delay: Duration) -> bool {
    context.clock.now() - context.began + delay < context.settings.start_timeout
}

/// Returns how long a call may take within the start timeout.
fn call_limit(context: &ControlContext) -> Duration {
    let elapsed = context.clock.now() - context.began;
    CALL_LIMIT.min(context.settings.start_timeout.saturating_sub(elapsed))
}
