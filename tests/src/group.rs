//! Several consumers observed together: which one printed what, in the order read.
//!
//! Keeps consumers that have ended, so that their output still counts.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::task::Poll;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use crate::account::{Account, RecordId};
use crate::process::{PATIENCE, Process};

/// A printed record.
#[derive(Debug, Clone)]
pub struct Printed {
    /// The time when its last byte was read.
    pub at: Instant,
    /// The number of the process in its group.
    pub by: usize,
    /// The id of the record.
    pub id: RecordId,
}

/// Consumers, running and ended.
#[derive(Debug, Default)]
pub struct Group {
    members: Vec<Process>,
}

impl Group {
    /// Adds a consumer and returns its number.
    pub fn add(&mut self, process: Process) -> usize {
        self.members.push(process);
        self.members.len() - 1
    }

    /// Returns the consumer with that number.
    ///
    /// # Panics
    ///
    /// The number is unknown.
    pub fn member(&mut self, number: usize) -> &mut Process {
        &mut self.members[number]
    }

    /// Returns all records printed so far, in the order read.
    #[must_use]
    pub fn printed(&self) -> Vec<Printed> {
        let mut all = Vec::new();
        for (by, process) in self.members.iter().enumerate() {
            let transcript = process.transcript();
            let printed = transcript.documents.iter().filter_map(|document| {
                Some(Printed { at: document.at, by, id: document.id.clone()? })
            });
            all.extend(printed);
        }
        // A stable sort: records that one process printed at the same instant stay in order.
        all.sort_by_key(|printed| printed.at);
        all
    }

    /// Returns the ids of all records printed so far, in the order read.
    #[must_use]
    pub fn seen(&self) -> Vec<RecordId> {
        self.printed().into_iter().map(|printed| printed.id).collect()
    }

    /// Waits until `find` returns a value.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    ///
    /// # Errors
    ///
    /// All consumers end before, or a minute passes; the error contains the last lines of each.
    pub async fn wait_for<T>(
        &mut self,
        what: &str,
        mut find: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let waiting = async {
            loop {
                if let Some(found) = find(self) {
                    return Some(found);
                }
                if !self.any_printed().await {
                    return find(self);
                }
            }
        };
        match timeout(PATIENCE, waiting).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(self.complaint(&format!("all ended before this: {what}"))),
            Err(_) => Err(self.complaint(&format!("this takes too long: {what}"))),
        }
    }

    /// Waits until every record of `sent` has been printed, and compares them.
    ///
    /// # Errors
    ///
    /// The errors of [`wait_for`](Self::wait_for).
    pub async fn account_for(&mut self, sent: &[RecordId]) -> Result<Account> {
        let account = |group: &Self| Account::of(sent, &group.seen());
        let complete = |group: &Self| account(group).lost.is_empty().then_some(());
        let waited = self.wait_for("every record of the stream is printed", complete).await;
        waited.with_context(|| format!("lost: {:?}", account(self).lost))?;
        Ok(account(self))
    }

    /// Waits, from now on, for `count` consecutive records of each of `unicorns` of which each
    /// unicorn's are printed by one process only; returns the processes, in the order of
    /// `unicorns`.
    ///
    /// # Errors
    ///
    /// The errors of [`wait_for`](Self::wait_for).
    pub async fn at_rest(&mut self, unicorns: &[&str], count: usize) -> Result<Vec<usize>> {
        let since = Instant::now();
        self.wait_for("each unicorn is printed by one process only", |group| {
            let mut printed = group.printed();
            printed.retain(|printed| printed.at > since);
            unicorns.iter().map(|unicorn| owner(&printed, unicorn, count)).collect()
        })
        .await
    }

    /// Sends `signal` to all running consumers, and returns their exit codes. Waits first for the
    /// opening line of each, because a process that has just started does not handle signals yet.
    ///
    /// # Errors
    ///
    /// The errors of [`Process::stop`].
    pub async fn stop(&mut self, signal: Signal) -> Result<Vec<i32>> {
        let mut codes = Vec::new();
        for process in &mut self.members {
            if !process.transcript().is_complete() {
                process.wait_for_stderr("consumer: reading").await?;
                codes.push(process.stop(signal).await?);
            }
        }
        Ok(codes)
    }

    /// Waits until one of them prints; returns false if all outputs are closed.
    async fn any_printed(&mut self) -> bool {
        let running = self.members.iter_mut().filter(|p| !p.transcript().is_complete());
        let mut waits: Vec<_> = running.map(|process| Box::pin(process.printed())).collect();
        if waits.is_empty() {
            return false;
        }
        poll_fn(|context| {
            let mut ready = false;
            for wait in &mut waits {
                ready |= wait.as_mut().poll(context).is_ready();
            }
            if ready { Poll::Ready(true) } else { Poll::Pending }
        })
        .await
    }

    fn complaint(&self, what: &str) -> anyhow::Error {
        let mut text = what.to_owned();
        for process in &self.members {
            let transcript = process.transcript();
            let records = transcript.documents.len();
            let name = process.name();
            text += &format!("\n--- {name}: {records} records; stderr:\n{}", transcript.stderr);
        }
        anyhow!(text)
    }
}

/// Returns the process that alone has printed the last `count` records of `unicorn`, each of them
/// once.
fn owner(printed: &[Printed], unicorn: &str, count: usize) -> Option<usize> {
    let theirs: Vec<_> = printed.iter().filter(|printed| printed.id.unicorn == unicorn).collect();
    let last = theirs.get(theirs.len().checked_sub(count)?..)?;
    let owners: BTreeSet<_> = last.iter().map(|printed| printed.by).collect();
    let ids: BTreeSet<_> = last.iter().map(|printed| &printed.id).collect();
    (owners.len() == 1 && ids.len() == count).then(|| last[0].by)
}
