//! What has to be true before a worker is ready: the table exists, the stream is there, its shards
//! have leases.
//!
//! Every step can be repeated. Passing failures are tried again, others are the typed error that
//! `start` returns. Never takes a lease.

use std::time::Duration;

use super::lease_keeper::KeeperContext;
use super::state::create_write;
use crate::clock::{sleep, within};
use crate::error::{Error, ErrorKind, ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::lease::Lease;
use crate::lease::store::WriteOutcome;
use crate::position::InitialPosition;
use crate::retry::Retry;
use crate::shard::plan::{self, Source};
use crate::stream::{ListFrom, Listing};

/// How often a call that fails for a passing reason is tried before `start` gives up.
const ATTEMPTS: u32 = 5;
/// How long one call may take; creating a table takes several.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Time between looks at a stream that is being created.
const STREAM_POLL: Duration = Duration::from_secs(1);

/// Makes everything ready; returns how many leases there are.
pub(crate) async fn make_ready(
    context: &KeeperContext,
    rng: &mut fastrand::Rng,
) -> Result<usize, Error> {
    // First the stream: a wrong name must not leave a table behind.
    let from = ListFrom::Start(context.settings.initial_position);
    let first = wait_for_stream(context, from, rng).await?;
    // The store bounds its own wait for a new table.
    let mut retry = attempts();
    while let Err(error) = context.store.prepare().await {
        pause(context, &mut retry, rng, error).await?;
    }
    let leases = retried(context, rng, || context.store.list()).await?;
    let rows = leases.leases.len() + leases.unreadable.len();
    if rows > 0 {
        return Ok(rows);
    }
    let wanted = first_leases(context, first, rng).await?;
    let count = wanted.len();
    for lease in wanted {
        create(context, lease, rng).await?;
    }
    Ok(count)
}

async fn wait_for_stream(
    context: &KeeperContext,
    from: ListFrom,
    rng: &mut fastrand::Rng,
) -> Result<Listing, Error> {
    let mut said = false;
    loop {
        let listing = retried(context, rng, || context.stream.list(from)).await;
        match listing {
            Err(error) if error.kind == ServiceErrorKind::NotReady => {
                if !std::mem::replace(&mut said, true) {
                    context.events.emit(&Event::WaitingForStream { reason: error.to_string() });
                }
                sleep(&context.clock, STREAM_POLL).await;
            }
            other => return Ok(other?),
        }
    }
}

/// The listing may be caught in the middle of a reshard: ask again until it covers everything.
async fn first_leases(
    context: &KeeperContext,
    mut listing: Listing,
    rng: &mut fastrand::Rng,
) -> Result<Vec<Lease>, Error> {
    let position = context.settings.initial_position;
    let source = Source { position, ..Source::default() };
    if position == InitialPosition::Latest {
        listing = listing_as_of(context, listing).await;
    }
    for _ in 0..ATTEMPTS {
        if let Some(leases) = plan::first_leases(&listing, &source) {
            return Ok(leases);
        }
        sleep(&context.clock, STREAM_POLL).await;
        let at = listing.at;
        listing = wait_for_stream(context, ListFrom::Start(position), rng).await?;
        // "Latest" is when the worker first asked.
        listing.at = at;
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        "the shard listing does not cover the whole hash space; try again when the reshard is over",
    ))
}

/// The shards that were open when "latest" was, rather than those that are open now: one that closed
/// in between still has records to deliver, and its children come when it ends.
async fn listing_as_of(context: &KeeperContext, now: Listing) -> Listing {
    let then = ListFrom::Start(InitialPosition::AtTimestamp(now.at));
    let listing = within(&context.clock, CALL_LIMIT, context.stream.list(then)).await;
    match listing {
        Some(Ok(then)) if plan::covers_everything(then.shards.iter().map(|it| it.hash_range)) => {
            Listing { at: now.at, ..then }
        }
        // The stream may be younger than that.
        Some(_) | None => now,
    }
}

async fn create(
    context: &KeeperContext,
    lease: Lease,
    rng: &mut fastrand::Rng,
) -> Result<(), Error> {
    let event =
        Event::LeaseCreated { shard: lease.key.clone(), checkpoint: lease.checkpoint.clone() };
    let write = create_write(lease, &context.incarnation);
    let outcome = retried(context, rng, || context.store.write(&write)).await?;
    if matches!(outcome, WriteOutcome::Done(_)) {
        context.events.emit(&event);
    }
    Ok(())
}

/// Tries a call again while its failure may pass, up to [`ATTEMPTS`] times.
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
        let result = within(&context.clock, CALL_LIMIT, call()).await.unwrap_or_else(|| {
            Err(ServiceError::new(
                ServiceErrorKind::Unavailable,
                format!("no answer within {CALL_LIMIT:?}"),
            ))
        });
        match result {
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
    if !error.is_passing() || retry.attempts() + 1 >= ATTEMPTS {
        return Err(error);
    }
    context.events.emit(&Event::CoordinationFailed {
        operation: "starting",
        error: error.to_string(),
        passing: true,
    });
    sleep(&context.clock, retry.delay(rng)).await;
    Ok(())
}
