//! What has to be true before a worker is ready: its streams are there, the table exists, and every
//! stream has leases that were made for it.
//!
//! Every step can be repeated. Transient failures are tried again for as long as the settings allow,
//! others are the typed error that `start` returns. Never takes a lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lease_keeper::KeeperContext;
use super::service_clock::ServiceClock;
use crate::clock::{sleep, timely, within};
use crate::error::{Error, ErrorKind, ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::lease::store::Table;
use crate::lease::tenure::write_id;
use crate::lease::{Lease, Other, StreamIdentity, StreamKey};
use crate::mutant;
use crate::position::InitialPosition;
use crate::record::Timestamp;
use crate::retry::Retry;
use crate::settings::StreamRecreated;
use crate::shard::plan::{self, Source};
use crate::stream::{Description, ListFrom, Listing, Notice, Stream};

/// How long one call may take; creating a table takes several.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Time between looks at a stream that is being created.
const STREAM_POLL: Duration = Duration::from_secs(1);

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
    context: &KeeperContext,
    given: &[GivenStream],
    rng: &mut fastrand::Rng,
) -> Result<(BTreeMap<StreamKey, ReadyStream>, usize), Error> {
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
            0 => create_first(context, &ready, looked, rng).await?,
            rows => rows,
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
async fn prepare(context: &KeeperContext, rng: &mut fastrand::Rng) -> Result<(), Error> {
    let mut retry = attempts();
    while let Err(error) = context.store.prepare().await {
        pause(context, &mut retry, rng, error).await?;
    }
    Ok(())
}

/// Asks what the stream is. Permission to ask is not needed to read it.
async fn describe(
    context: &KeeperContext,
    given: &GivenStream,
    rng: &mut fastrand::Rng,
) -> Result<Description, Error> {
    let describe = || given.stream.describe();
    match wait_until_ready(context, rng, describe).await {
        Err(error) if error.kind == ServiceErrorKind::Denied => {
            // The listing says whether anything at all is allowed, and names the call.
            let from = ListFrom::Start(given.position);
            retried(context, rng, || given.stream.list(from)).await?;
            tracing::info!("the stream cannot be told from one of the same name: {error}");
            Ok(Description::default())
        }
        description => Ok(description?),
    }
}

fn ready(
    context: &KeeperContext,
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

/// One of several streams keeps the rows that it has from when it was the only one.
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
    let mut only = table.leases.iter().filter(|row| row.key.stream() == StreamKey::ONLY);
    if only.any(|row| row.stream.as_ref() == Some(identity)) {
        return Ok(StreamKey::ONLY);
    }
    let parts: Vec<_> = identity.arn.splitn(6, ':').collect();
    let (account, name) = (parts.get(4).unwrap_or(&""), parts.get(5).unwrap_or(&name));
    let name = name.strip_prefix("stream/").unwrap_or(name);
    Ok(StreamKey::of_several(account, name, identity.created))
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
    if recreated == StreamRecreated::Refuse && !mutant::is("refusing-is-adopting") {
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
    if !mutant::is("a-new-stream-starts-at-the-tip") {
        source.position = InitialPosition::TrimHorizon;
        source.since = source.identity.as_ref().map(|stream| stream.created);
    }
    Ok(rows)
}

async fn discard(
    context: &KeeperContext,
    source: &Source,
    row: &Lease,
    rng: &mut fastrand::Rng,
) -> Result<(), ServiceError> {
    let is_other = |row: &Lease| source.other_stream(row).is_some_and(|it| it != Other::Newer);
    retried(context, rng, || context.discard(row.clone(), is_other)).await
}

/// Makes the first leases of a stream that had none when the table was last `looked` at, and the
/// table before them.
async fn create_first(
    context: &KeeperContext,
    ready: &ReadyStream,
    mut looked: Instant,
    rng: &mut fastrand::Rng,
) -> Result<usize, Error> {
    let from = ListFrom::Start(ready.source.position);
    let first = wait_until_ready(context, rng, || ready.stream.list(from)).await?;
    ready.service_clock.set(first.at);
    prepare(context, rng).await?;
    let wanted = first_leases(context, ready, first, rng).await?;
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

/// How many rows the stream has, if others made any of them.
async fn rows_made_by_others(
    context: &KeeperContext,
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
    context: &KeeperContext,
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
    context: &KeeperContext,
    ready: &ReadyStream,
    mut listing: Listing,
    rng: &mut fastrand::Rng,
) -> Result<Vec<Lease>, Error> {
    let position = ready.source.position;
    if position == InitialPosition::Latest {
        listing = listing_as_of(context, &ready.stream, listing).await;
    }
    loop {
        if let Some(leases) = plan::first_leases(&listing, &ready.source) {
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
        let from = ListFrom::Start(position);
        listing = wait_until_ready(context, rng, || ready.stream.list(from)).await?;
        // "Latest" is when the worker first asked.
        listing.at = at;
    }
}

/// The shards that were open when "latest" was, rather than those that are open now: one that closed
/// in between still has records to deliver, and its children come when it ends.
async fn listing_as_of(context: &KeeperContext, stream: &Arc<dyn Stream>, now: Listing) -> Listing {
    let then = ListFrom::Start(InitialPosition::AtTimestamp(now.at));
    let listing = within(&context.clock, CALL_LIMIT, stream.list(then)).await;
    match listing {
        Some(Ok(then)) if plan::covers_everything(then.shards.iter().map(|it| it.hash_range)) => {
            Listing { at: now.at, ..then }
        }
        // The stream may be younger than that.
        Some(_) | None => now,
    }
}

/// Tries a call again while its failure may pass and there is time.
async fn retried<T, F>(
    context: &KeeperContext,
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
    context: &KeeperContext,
    retry: &mut Retry,
    rng: &mut fastrand::Rng,
    error: ServiceError,
) -> Result<(), ServiceError> {
    let delay = retry.delay(rng);
    if !error.is_passing() || !may_wait(context, delay) {
        return Err(error);
    }
    context.events.emit(&Event::CoordinationFailed {
        operation: "starting",
        error: error.to_string(),
        passing: true,
        call: error.call.clone(),
    });
    sleep(&context.clock, delay).await;
    Ok(())
}

/// Whether the start may still take as long as this.
fn may_wait(context: &KeeperContext, delay: Duration) -> bool {
    context.clock.now() - context.began + delay < context.settings.start_timeout
}

/// How long a call may take, so that it ends in time.
fn call_limit(context: &KeeperContext) -> Duration {
    let elapsed = context.clock.now() - context.began;
    CALL_LIMIT.min(context.settings.start_timeout.saturating_sub(elapsed))
}
