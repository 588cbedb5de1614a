//! End-to-end tests: the real commands, run by a shell, against local-aws over a socket.
//!
//! Each test has its own services, directory and processes. No test waits for time to pass: each
//! waits for output or a call, at most a minute. `tests/README.md` lists what each module covers.

#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

mod chaos;
mod demo;
mod environment;
mod failures;
mod iam;
mod memory;
mod proxy;
mod records;
mod resharding;
mod restarts;
mod sharing;
mod surroundings;
mod terminal;
mod walkthrough;

use anyhow::Result;
use e2e::account::{Account, first_disorder};
use e2e::group::Group;
use e2e::process::Process;
use e2e::workshop::Workshop;
use rustix::process::Signal;

const INT: Signal = Signal::INT;
const TERM: Signal = Signal::TERM;

/// The flags of a group member whose lease outlasts every pause of a busy machine, so that no
/// repeat is caused by expiry.
const STEADY: &str = "--poll-interval 200ms --failover 30s";

/// The flags of a group member that stores its checkpoint three times a second, and restarts under
/// the same worker ID, so that it need not wait for its own leases to expire.
const HASTY: &str = "--poll-interval 200ms --failover 1s --worker-id tail";

/// The flags of a group member whose leases expire soon.
const BRIEF: &str = "--poll-interval 200ms --failover 2s";

/// Stops the producers gracefully.
async fn stop_producers(producers: impl IntoIterator<Item = &mut Process>) -> Result<()> {
    for producer in producers {
        assert_eq!(producer.stop(INT).await?, 0, "{producer:?}");
    }
    Ok(())
}

/// Waits until the group has printed everything in the stream, stops it, and checks what holds in
/// every test: no record lost or invented, each unicorn in order, exit codes 0.
async fn settled(workshop: &Workshop, group: &mut Group) -> Result<Account> {
    let sent = workshop.aws.sent("wildrydes").await?;
    group.account_for(&sent).await?;
    for code in group.stop(INT).await? {
        assert_eq!(code, 0);
    }
    let seen = group.seen();
    assert_eq!(first_disorder(&seen), None);
    // Computed again, because a repeat may have come with the stop.
    let account = Account::of(&sent, &seen);
    assert_eq!((&account.lost, &account.unknown), (&vec![], &vec![]));
    Ok(account)
}
