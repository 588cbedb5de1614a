//! What has to be true before a worker is ready: its streams are there, the table exists, and every
//! stream has leases that were made for it and start at a time that has come.
//!
//! Every step can be repeated. Transient failures are tried again for as long as the settings allow,
//! others are the typed error that `start` returns. Never takes a lease.

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
/// Time between looks at a stream that is being created.
const STREAM_POLL: Duration = Duration::from_secs(1);
/// How much earlier than the service's clock a time may be that it told, besides the time that the
/// answer took: the header is cut to whole seconds, and a margin is taken off.
const EARLY: Duration = Duration::from_secs(5);
/// How often a row is rewritten whose owner moves its counter meanwhile.
const REWRITES: u32 = 20;

/// A stream that a worker is given.
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
    /// What arrived before this may have aged out; `None` when that is not known.
    pub(crate) fn horizon(&self) -> Option<Timestamp> {
        let retention = i64::try_from(self.retention?.as_millis()).unwrap_or(i64::MAX);
        let now = self.service_clock.now()?.as_millis();
        Some(Timestamp::from_millis(now.saturating_sub(retention)))
    }
}

/// Makes everything ready; returns the streams, and how many leases there are.
pub(crate) async fn make_ready(
    context: &ControlContext,
    given: &[GivenStream],
    rng: &mut fastrand::Rng,
) -> Result<(BTreeMap<StreamKey, ReadyStream>, usize), Error> {
    let began = context.clock.now();
    // First the streams: a wrong name must not leave a table behind.
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
    let looked = context.clock.now();
    let (table, is_new) = match retried(context, rng, || context.store.list()).await {
        Err(error) if error.kind == ServiceErrorKind::Missing => (Table::default(), true),
        table => (table?, false),
    };
    if !is_new {
        prepare(context, rng).await?;
    }
    // All are looked at before anything is written.
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
        // Only now: until the first lease is there they tell that the stream was made again.
        for row in others {
            discard(context, &ready.source, row, rng).await?;
        }
        streams.insert(ready.source.key.clone(), ready);
    }
    Ok((streams, leases))
}

/// The store bounds its own wait for a new table.
async fn prepare(context: &ControlContext, rng: &mut fastrand::Rng) -> Result<(), Error> {
    let mut retry = attempts();
    while let Err(error) = context.store.prepare().await {
        pause(context, &mut retry, rng, error).await?;
    }
    Ok(())
}

/// Asks what the stream is. Permission to ask is not needed to read it.
async fn describe(
    context: &ControlContext,
    given: &GivenStream,
    rng: &mut fastrand::Rng,
) -> Result<Description, Error> {
    let describe = || given.stream.describe();
    match wait_until_ready(context, rng, describe).await {
        Err(error) if error.kind == ServiceErrorKind::Denied => {
            // The listing says whether anything at all is allowed, and names the call.
            let list = || given.stream.list(ListFrom::Latest);
            let listing = wait_until_ready(context, rng, list).await?;
            tracing::info!("the stream cannot be told from one of the same name: {error}");
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

/// By which keys the rows of one of several streams stand in the table.
fn key_of(
    identity: &Option<StreamIdentity>,
    name: &str,
    table: &Table,
) -> Result<StreamKey, Error> {
    let Some(identity) = identity else {
        return Err(Error::new(
            ErrorKind::Denied,
            format!(
                "a worker of several streams has to know the account and the age of `{name}`: allow \
                 `kinesis:DescribeStreamSummary`"
            ),
        ));
    };
    Ok(plan::key_among_several(identity, &table.leases))
}

/// The rows of a stream that are there.
fn rows_of<'a>(source: &'a Source, leases: &'a [Lease]) -> impl Iterator<Item = &'a Lease> + Clone {
    let is_its =
        |row: &&Lease| row.key.stream() == source.key && source.other_stream(row).is_none();
    leases.iter().filter(is_its)
}

/// How many rows there are with which the worker goes on; with none it begins.
fn rows_to_go_on_with(source: &Source, table: &Table, others: &[&Lease]) -> usize {
    let rows = rows_of(source, &table.leases);
    // Nobody knows of which stream those are that cannot be read.
    if !others.is_empty() && rows.clone().next().is_none() {
        return 0;
    }
    let unreadable = table.unreadable.keys().filter(|key| key.stream() == source.key);
    rows.count() + unreadable.count()
}

/// Whether the worker may start beside rows of other streams, such as a former one of the same name:
/// then those are to be removed, and where it is to start over, `source` says so.
fn settle_others<'a>(
    table: &'a Table,
    source: &mut Source,
    recreated: StreamRecreated,
) -> Result<Vec<&'a Lease>, Error> {
    let others = table.leases.iter().filter_map(|row| Some((source.other_stream(row)?, row)));
    let (kinds, rows): (Vec<_>, Vec<_>) = others.unzip();
    let Some(row) = rows.first() else { return Ok(rows) };
    if kinds.contains(&Other::Newer) {
        return Err(Error::new(
            ErrorKind::Missing,
            "the stream was deleted and made again while the worker was starting; start it again",
        ));
    }
    let own: Vec<_> = rows_of(source, &table.leases).collect();
    // By its key a row says of which of several streams it is.
    let is_marked = |row: &&Lease| row.stream.is_some() || source.key != StreamKey::ONLY;
    if kinds.iter().all(|kind| *kind == Other::Former) && own.iter().any(is_marked) {
        // The new stream has leases: it has been decided, but an owner that did not know has put rows
        // of the former one back.
        return Ok(rows);
    }
    if recreated == StreamRecreated::Refuse {
        let was = row.made_for();
        let is = source.identity.as_ref().map_or_else(String::new, ToString::to_string);
        return Err(Error::new(
            ErrorKind::OtherStream,
            format!(
                "the leases belong to another stream: they were made for {was}, the stream of that \
                 name is now {is}; use another application name"
            ),
        ));
    }
    if let Some(row) = own.iter().find(|row| !is_marked(row)) {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "the lease `{}` does not say which stream it was made for, and others are of a stream \
                 that is gone: remove it, or use another application name",
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
    let is_other = |row: &Lease| source.other_stream(row).is_some_and(|it| it != Other::Newer);
    retried(context, rng, || context.discard(row.clone(), is_other)).await
}

/// Makes the first leases of a stream that had none when the table was last looked at, and the table
/// before them.
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
    prepare(context, rng).await?;
    let wanted = first_leases(context, ready, (start, first), rng).await?;
    let count = wanted.len();
    for lease in wanted {
        let mut retry = attempts();
        loop {
            // At each attempt: the process was stopped meanwhile, or had no answer, and others may have
            // made this row, finished its shard and removed it. What is missing where there are rows
            // is found by the first audit.
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

/// Decides where the first leases start. Times count by the service's clock when it was first asked.
async fn decide_start(
    context: &ControlContext,
    ready: &ReadyStream,
    began: Instant,
    rng: &mut fastrand::Rng,
) -> Result<Start, Error> {
    let position = ready.source.position;
    let (InitialPosition::AtTimestamp(_) | InitialPosition::Ago(_)) = position else {
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

/// Whether a time is certainly later than the service's clock, which said `now` up to `asked` ago.
fn is_to_come(time: Timestamp, now: Timestamp, asked: Duration) -> bool {
    let most = i64::try_from((asked + EARLY).as_millis()).unwrap_or(i64::MAX);
    time > Timestamp::from_millis(now.as_millis().saturating_add(most))
}

/// Starts shards again from their oldest record whose rows say that they start at a time that is still
/// to come. Such a row was made by a program whose clock was ahead; when it was meant to start is not
/// known any more, and nothing has been read yet.
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
    let suspects: Vec<_> =
        rows.filter(|row| start_to_come(row, known, Duration::ZERO).is_some()).collect();
    if suspects.is_empty() {
        return Ok(());
    }
    // The table was read after the service had told its time, and rows may have been made meanwhile.
    // None of them can rightly start after what it says now.
    let asked = context.clock.now();
    let described = retried(context, rng, || ready.stream.describe()).await;
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

/// Rewrites a row as long as its `start` is wrong. Its owner, which cannot read anything, loses the lease
/// by that and takes it again.
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
            WriteOutcome::Refused(None) => return Ok(()),
            WriteOutcome::Done(_) => {
                context.events.emit(&Event::LeaseStartReplaced { shard: row.key, stored });
                return Ok(());
            }
        }
    }
    let context = format!("the row `{}` changes too quickly; start the worker again", row.key);
    Err(ServiceError::new(ServiceErrorKind::Unavailable, context))
}

/// How many rows the stream has, if others made any of them.
async fn rows_made_by_others(
    context: &ControlContext,
    ready: &ReadyStream,
    rng: &mut fastrand::Rng,
) -> Result<Option<usize>, Error> {
    let table = retried(context, rng, || context.store.list()).await?;
    let rows = rows_of(&ready.source, &table.leases);
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

/// The listing may be caught in the middle of a reshard: ask again until it covers everything.
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
                "the shard listing does not cover the whole hash space; try again when the reshard is \
                 over",
            ));
        }
        sleep(&context.clock, STREAM_POLL).await;
        let at = listing.at;
        let list = || ready.stream.list(start.listed());
        listing = wait_until_ready(context, rng, list).await?;
        // "Latest" is when the worker first asked.
        listing.at = at;
    }
}

/// The shards that were open when "latest" was, rather than those that are open now: one that closed
/// in between still has records to deliver, and its children come when it ends.
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

/// Tries a call again while its failure may pass and there is time.
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

/// Whether the start may still take as long as this.
fn may_wait(context: &ControlContext, delay: Duration) -> bool {
    context.clock.now() - context.began + delay < context.settings.start_timeout
}

/// How long a call may take, so that it ends in time.
fn call_limit(context: &ControlContext) -> Duration {
    let elapsed = context.clock.now() - context.began;
    CALL_LIMIT.min(context.settings.start_timeout.saturating_sub(elapsed))
}
