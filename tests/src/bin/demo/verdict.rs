//! The table at the end: the records in the stream compared with those that the consumers printed.
//!
//! Stops the producers first, gives the consumers time to print the rest, then stops them. Uses no
//! statement of the commands, except that the producers' summaries are checked against the stream.

use std::time::Duration;

use anyhow::Result;
use e2e::account::{Account, RecordId};
use e2e::process::Process;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::screen::Screen;
use crate::stage::{Fate, LABELS, Measured, PATIENCE, STREAM, Stage, UNICORNS};

/// The largest number of lost records that are listed.
const NAMED: usize = 20;

/// The result of the demo.
#[derive(Debug)]
pub(crate) struct Verdict {
    unicorns: Vec<(String, Account)>,
    total: Account,
    /// The number of records that the producers report as sent; `None` if a report is missing.
    claimed: Option<u64>,
    measured: Measured,
    failover_setting: Duration,
}

/// Stops all commands and compares the records.
pub(crate) async fn settle(stage: &mut Stage) -> Result<Verdict> {
    stage.screen.act("The producers stop; the consumers print the rest and stop");
    let mut claimed = Some(0);
    for producer in &mut stage.producers {
        let sum = sum_of(producer).await;
        claimed = claimed.zip(sum).map(|(claimed, sum)| claimed + sum);
    }
    if stage.running().next().is_none() && !stage.consumers.is_empty() {
        stage.start_consumer(LABELS[0])?;
    }
    let sent = stage.workshop.aws.sent(STREAM).await?;
    let give_up = Instant::now() + PATIENCE;
    while !Account::of(&sent, &seen(stage)).lost.is_empty() && Instant::now() < give_up {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for consumer in stage.consumers.iter_mut().filter(|c| c.fate == Fate::Running) {
        let code = consumer.process.stop(Signal::INT).await?;
        consumer.fate = Fate::Stopped;
        anyhow::ensure!(code == 0, "{} ended with exit code {code}", consumer.label);
    }
    let seen = seen(stage);
    let of = |unicorn: &str| {
        let theirs = |id: &&RecordId| id.unicorn == unicorn;
        Account::of(sent.iter().filter(theirs), seen.iter().filter(theirs))
    };
    Ok(Verdict {
        unicorns: UNICORNS.map(|unicorn| (unicorn.to_owned(), of(unicorn))).to_vec(),
        total: Account::of(&sent, &seen),
        claimed,
        measured: std::mem::take(&mut stage.measured),
        failover_setting: stage.settings.failover,
    })
}

/// Stops a producer and returns the number in its summary.
async fn sum_of(producer: &mut Process) -> Option<u64> {
    producer.stop(Signal::INT).await.ok()?;
    let stdout = String::from_utf8_lossy(&producer.transcript().stdout).into_owned();
    stdout.lines().last()?.strip_prefix("sent ")?.strip_suffix(" records")?.parse().ok()
}

fn seen(stage: &Stage) -> Vec<RecordId> {
    let ids = |process: &Process| process.transcript().ids().cloned().collect::<Vec<_>>();
    stage.consumers.iter().flat_map(|consumer| ids(&consumer.process)).collect()
}

impl Verdict {
    /// Returns whether every record of the stream was printed, and no other record.
    pub(crate) fn is_good(&self) -> bool {
        self.total.lost.is_empty() && self.total.unknown.is_empty() && self.sums_agree()
    }

    /// Returns whether the stream contains at least as many records as the producers report. It may
    /// contain more: a stored record whose reply was lost is sent again.
    fn sums_agree(&self) -> bool {
        self.claimed.is_none_or(|claimed| self.total.sent as u64 >= claimed)
    }

    pub(crate) fn print(&self, screen: &Screen) {
        screen.act("Records in the stream, and records that the consumers printed");
        screen.say(&row("", "sent", "seen", "lost", "seen twice"));
        let rows = self.unicorns.iter().map(|(name, account)| (name.as_str(), account));
        for (name, account) in rows.chain([("together", &self.total)]) {
            screen.say(&row(
                name,
                &account.sent.to_string(),
                &account.seen.to_string(),
                &account.lost.len().to_string(),
                &account.repeats.to_string(),
            ));
        }
        let lease = format!("(lease {} s)", self.failover_setting.as_secs());
        screen.say("");
        screen.say(&timed("failover after kill -9", self.measured.failover, &lease));
        screen.say(&timed("handover after Ctrl-C", self.measured.handover, ""));
        screen.say(&timed("split until a child is read", self.measured.reshard, ""));
        screen.say("");
        self.conclude(screen);
    }

    fn conclude(&self, screen: &Screen) {
        for lost in self.total.lost.iter().take(NAMED) {
            screen.bad(&format!("lost: {lost}"));
        }
        if let Some(more @ 1..) = self.total.lost.len().checked_sub(NAMED) {
            screen.bad(&format!("and {more} more"));
        }
        for unknown in self.total.unknown.iter().take(NAMED) {
            screen.bad(&format!("printed, but not in the stream: {unknown}"));
        }
        if !self.sums_agree() {
            let claimed = self.claimed.unwrap_or_default();
            screen.bad(&format!("the producers report {claimed} records sent"));
        }
        if self.is_good() {
            screen.good("No record was lost.");
        } else {
            screen.bad(&format!("{} records were lost.", self.total.lost.len()));
        }
    }
}

fn row(name: &str, sent: &str, seen: &str, lost: &str, twice: &str) -> String {
    format!("{name:<16}{sent:>8}{seen:>8}{lost:>8}{twice:>13}")
}

fn timed(what: &str, took: Option<Duration>, note: &str) -> String {
    let took = took.map_or("not measured".into(), |took| format!("{:.1} s", took.as_secs_f64()));
    format!("{what:<30}{took:>12}  {note}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(status_time: &str) -> RecordId {
        RecordId { unicorn: "Shadowfax".into(), status_time: status_time.into() }
    }

    fn verdict(sent: &[&str], seen: &[&str], claimed: u64) -> Verdict {
        let ids = |times: &[&str]| times.iter().map(|time| id(time)).collect::<Vec<_>>();
        Verdict {
            unicorns: Vec::new(),
            total: Account::of(&ids(sent), &ids(seen)),
            claimed: Some(claimed),
            measured: Measured::default(),
            failover_setting: Duration::from_secs(3),
        }
    }

    #[test]
    fn a_repeat_is_forgiven_and_a_loss_is_not() {
        assert!(verdict(&["1", "2"], &["1", "2", "2"], 2).is_good());
        assert!(!verdict(&["1", "2"], &["1", "1"], 2).is_good());
    }

    #[test]
    fn a_record_out_of_nowhere_is_not_forgiven() {
        assert!(!verdict(&["1"], &["1", "9"], 1).is_good());
    }

    #[test]
    fn the_stream_must_hold_what_the_producers_were_told_is_stored() {
        assert!(verdict(&["1", "2"], &["1", "2"], 1).is_good(), "a reply was lost");
        assert!(!verdict(&["1"], &["1"], 2).is_good());
    }
}
