//! The messages on stderr: the worker's events as plain lines, rate-limited.
//!
//! A healthy worker prints nothing between its first line and its last, except with `-v`. Never
//! writes to stdout and never waits for anything but stderr.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use aws_command::Place;
use kcl_lite::{
    Event, FailedCall, LeaseKey, Report, ServiceErrorKind, Severity, Timestamp, WorkerId,
};
use tokio::time::Instant;

use crate::failure;
use crate::options::Verbosity;

/// The same failure is reported once within this time.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// A transient failure is reported when it happens this often within [`REPEAT_AFTER`]: a single
/// throttled or lost call is normal.
const REPORTED_WHEN_TRANSIENT: u32 = 3;

/// Stderr, and what has been reported on it.
#[derive(Debug)]
pub(crate) struct Console<W> {
    stderr: W,
    verbosity: Verbosity,
    place: Place,
    started: bool,
    standing_by: bool,
    shards: BTreeSet<LeaseKey>,
    troubles: BTreeMap<String, Trouble>,
}

/// A failure that repeats.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    seen: u32,
}

impl<W: Write> Console<W> {
    pub(crate) fn new(stderr: W, verbosity: Verbosity, place: Place) -> Self {
        Self {
            stderr,
            verbosity,
            place,
            started: false,
            standing_by: false,
            shards: BTreeSet::new(),
            troubles: BTreeMap::new(),
        }
    }

    /// Writes a line to stderr.
    pub(crate) fn say(&mut self, line: &str) {
        // A closed stderr is no reason to stop reading the stream.
        writeln!(self.stderr, "consumer: {line}").ok();
    }

    /// Reports `event` if it matters to a user.
    pub(crate) fn event(&mut self, event: &Event, now: Instant) {
        if let Some(line) = self.line(event, now) {
            self.say(&line);
        }
    }

    /// Writes the last line: how much was printed, and in what time.
    pub(crate) fn sum(&mut self, records: u64, elapsed: Duration) {
        let shards = self.shards.len();
        self.say(&format!(
            "printed {records} record{} of {shards} shard{} in {:.1} s",
            plural(records),
            plural(shards as u64),
            elapsed.as_secs_f64()
        ));
    }

    /// Reports that stdout accepts nothing. The worker waits for it without a limit.
    pub(crate) fn stalled(&mut self, since: Duration) {
        self.say(&format!(
            "stdout has accepted nothing for {} s: records wait until its reader continues; \
             none is lost, and this instance keeps their shards",
            since.as_secs()
        ));
    }

    /// Reports the shards that were not drained before the deadline.
    pub(crate) fn undrained(&mut self, report: &Report) {
        for (shard, left) in report.shards.iter().filter(|(_, left)| !left.drained) {
            self.say(&format!(
                "{shard} was not fully drained; \
                 the next instance resumes after checkpoint {}",
                left.checkpoint
            ));
        }
    }

    fn line(&mut self, event: &Event, now: Instant) -> Option<String> {
        match event {
            Event::ShardStarted { shard, .. } => {
                self.shards.insert(shard.clone());
                self.standing_by = false;
                self.verbose(event)
            }
            Event::StandingBy { leases, owners } => {
                let first = !std::mem::replace(&mut self.standing_by, true);
                first.then(|| standing_by(*leases, owners))
            }
            Event::WaitingForStream { reason } => {
                self.first_in_a_while("waiting", now)?;
                let place = &self.place;
                Some(format!("waiting until {place} can be read: {reason}"))
            }
            Event::InitialPositionReplaced { requested, used, .. } => {
                Some(from_is_later(*requested, *used))
            }
            Event::ProcessorFailed { shard, error, .. } => {
                self.trouble(&format!("printing {shard} failed"), error, false, None, now)
            }
            Event::ReadFailed { shard, error, transient, call } => {
                let what = format!("reading {shard} failed");
                self.trouble(&what, error, *transient, call.as_deref(), now)
            }
            Event::CoordinationFailed { operation, error, transient, call } => {
                let what = match call {
                    // Before the start succeeds, both commands describe the same call in the same
                    // words.
                    Some(call) if !self.started => format!("{} failed", call.action),
                    _ => format!("{operation} failed"),
                };
                self.trouble(&what, error, *transient, call.as_deref(), now)
            }
            Event::Started { .. } => {
                self.started = true;
                self.verbose(event)
            }
            Event::GapDetected { shard, .. } => {
                let meaning = "they are not printed; hint: read the stream within its retention \
                               period, or extend the period";
                self.explained(event, &format!("gap {shard}"), meaning, now)
            }
            Event::ShardReleased { shard, .. } => {
                let meaning = "reading resumes after its checkpoint, here or on another instance";
                self.explained(event, &format!("released {shard}"), meaning, now)
            }
            Event::ReaderRestarted { shard, .. } => {
                self.explained(event, &format!("reader {shard}"), "no record is skipped", now)
            }
            Event::CorruptAggregate { shard, .. } => {
                let meaning = "hint: check the producer that writes them";
                self.explained(event, &format!("aggregate {shard}"), meaning, now)
            }
            Event::ProcessorSlow { .. }
            | Event::StreamDeleted { .. }
            | Event::DeadLettered { .. }
            | Event::DeadLetterFailed { .. }
            | Event::LeaseCreated { .. }
            | Event::LeaseTaken { .. }
            | Event::HandoffRequested { .. }
            | Event::LeaseRenewed { .. }
            | Event::LeaseLost { .. }
            | Event::LeaseReleased { .. }
            | Event::LeaseDeleted { .. }
            | Event::ShardEnded { .. }
            | Event::MisroutedRecords { .. }
            | Event::RetrievalChanged { .. }
            | Event::ConsumerRegistered { .. }
            | Event::Stopped
            | _ => self.by_severity(event, now),
        }
    }

    /// Returns the line for an event with its consequence, once per [`REPEAT_AFTER`] for each
    /// subject.
    fn explained(
        &mut self,
        event: &Event,
        subject: &str,
        meaning: &str,
        now: Instant,
    ) -> Option<String> {
        self.first_in_a_while(subject, now)?;
        Some(format!("{event}; {meaning}"))
    }

    /// Returns the line for an event without a text of its own here, which includes kinds of events
    /// added later.
    fn by_severity(&mut self, event: &Event, now: Instant) -> Option<String> {
        match event.severity() {
            Severity::Warning => {
                let line = event.to_string();
                self.first_in_a_while(&line, now)?;
                Some(line)
            }
            Severity::Info => self.verbose(event),
            Severity::Routine => None,
        }
    }

    fn verbose(&self, event: &Event) -> Option<String> {
        (self.verbosity == Verbosity::Verbose).then(|| event.to_string())
    }

    /// Returns the line for a failure if it is due. Before the start has succeeded even a transient
    /// failure is reported at once, because nothing else happens.
    fn trouble(
        &mut self,
        what: &str,
        why: &str,
        transient: bool,
        call: Option<&FailedCall>,
        now: Instant,
    ) -> Option<String> {
        let reported_when = if transient && self.started { REPORTED_WHEN_TRANSIENT } else { 1 };
        // Equal and not at least, so that a failure is reported once per interval.
        let is_due = self.seen(what, now) == reported_when;
        // The threshold is counted per shard, so that one lost call of each shard stays below it.
        let is_new = |common| self.first_in_a_while(common, now).is_some();
        (is_due && call.and_then(of_whole_process).is_none_or(is_new))
            .then(|| failure::trouble(what, why, transient, call, &self.place))
    }

    fn first_in_a_while(&mut self, what: &str, now: Instant) -> Option<()> {
        (self.seen(what, now) == 1).then_some(())
    }

    /// Counts an occurrence of `what` and returns how many there were in its current interval.
    fn seen(&mut self, what: &str, now: Instant) -> u32 {
        self.troubles.retain(|_, trouble| now < trouble.since + REPEAT_AFTER);
        let trouble =
            self.troubles.entry(what.to_owned()).or_insert(Trouble { since: now, seen: 0 });
        trouble.seen += 1;
        trouble.seen
    }
}

/// Returns the name of a failure that concerns the whole process and repeats for each shard. It is
/// reported once.
fn of_whole_process(call: &FailedCall) -> Option<&'static str> {
    use ServiceErrorKind as Kind;
    match call.kind {
        Kind::FileLimit => Some("open files"),
        Kind::WrongClock => Some("clock"),
        Kind::Tls => Some("certificate"),
        Kind::Credentials => Some("credentials"),
        // A call without a code got no reply.
        Kind::Unavailable if call.code.is_none() => Some("network"),
        Kind::Missing
        | Kind::Denied
        | Kind::Key
        | Kind::Throttled
        | Kind::Unavailable
        | Kind::NotReady
        | Kind::Expired
        | Kind::Invalid
        | _ => None,
    }
}

fn from_is_later(requested: Timestamp, used: Timestamp) -> String {
    format!(
        "--from is {requested}, which is later than the service's clock; reading starts at {used} \
         instead"
    )
}

fn standing_by(leases: usize, owners: &[WorkerId]) -> String {
    let owners = owners.iter().map(WorkerId::as_str).collect::<Vec<_>>().join(", ");
    let is = if leases == 1 { "is" } else { "are" };
    format!(
        "standing by: {leases} of {leases} shards {is} held by {owners}; \
         this instance takes over when one stops"
    )
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use kcl_lite::aws::replied;
    use kcl_lite::stream::Fetching;
    use kcl_lite::{Checkpoint, Position, ShardReport, TakeReason};

    use super::*;
    use crate::options::tests::place;

    fn said(verbosity: Verbosity, act: impl FnOnce(&mut Console<&mut Vec<u8>>)) -> String {
        let mut stderr = Vec::new();
        act(&mut Console::new(&mut stderr, verbosity, place()));
        String::from_utf8(stderr).unwrap()
    }

    fn at(seconds: u64, base: Instant) -> Instant {
        base + Duration::from_secs(seconds)
    }

    fn started(shard: &str) -> Event {
        Event::ShardStarted { shard: LeaseKey::from(shard), checkpoint: Checkpoint::Latest }
    }

    fn read_failed(transient: bool) -> Event {
        Event::ReadFailed {
            shard: LeaseKey::from("shard-0"),
            error: "GetRecords: ThroughputExceeded".into(),
            transient,
            call: None,
        }
    }

    fn standing_by(leases: usize, owners: &[&str]) -> Event {
        let owners = owners.iter().map(|owner| WorkerId::from(*owner)).collect();
        Event::StandingBy { leases, owners }
    }

    #[test]
    fn standing_by_is_said_once_until_a_shard_is_held_again() {
        let now = Instant::now();
        let lines = said(Verbosity::Quiet, |console| {
            console.event(&standing_by(1, &["a"]), now);
            console.event(&standing_by(1, &["b"]), now);
            console.event(&started("shard-0"), now);
            console.event(&standing_by(2, &["a", "b"]), now);
        });
        insta::assert_snapshot!(lines, @r"
        consumer: standing by: 1 of 1 shards is held by a; this instance takes over when one stops
        consumer: standing by: 2 of 2 shards are held by a, b; this instance takes over when one stops
        ");
    }

    #[test]
    fn shards_come_and_go_silently_unless_asked() {
        let now = Instant::now();
        let act = |console: &mut Console<&mut Vec<u8>>| {
            console.event(&started("shard-0"), now);
            let shard = LeaseKey::from("shard-0");
            console.event(&Event::LeaseLost { shard, to: Some(WorkerId::from("b")) }, now);
        };
        assert_eq!(said(Verbosity::Quiet, act), "");
        insta::assert_snapshot!(said(Verbosity::Verbose, act), @r"
        consumer: started shard shard-0 at LATEST
        consumer: lost lease shard-0 to b
        ");
    }

    #[test]
    fn lasting_trouble_is_said_at_once_and_again_after_a_while() {
        let base = Instant::now();
        let lines = said(Verbosity::Quiet, |console| {
            for second in [0, 1, 29, 30, 31] {
                console.event(&read_failed(false), at(second, base));
            }
        });
        assert_eq!(lines.lines().count(), 2, "{lines}");
        assert!(lines.starts_with("consumer: reading shard-0 failed, retrying on stream"));
    }

    #[test]
    fn trouble_that_may_pass_is_said_only_when_it_does_not() {
        let base = Instant::now();
        let count = |seconds: &[u64]| {
            let lines = said(Verbosity::Quiet, |console| {
                console.event(&Event::Started { leases: 1 }, base);
                for second in seconds {
                    console.event(&read_failed(true), at(*second, base));
                }
            });
            lines.lines().count()
        };
        assert_eq!(count(&[0, 20, 40, 60]), 0);
        assert_eq!(count(&[0, 1, 2, 3, 4]), 1);
    }

    #[test]
    fn what_is_wrong_with_the_process_is_said_once_and_not_for_each_shard() {
        let now = Instant::now();
        let failed = |code: &str, transient: bool, times: usize| {
            let stream = "stream `wildrydes`";
            let mut call = replied("kinesis:GetRecords", stream, Some(code), "", 400);
            call.code = None;
            let lines = said(Verbosity::Quiet, |console| {
                console.started = true;
                for shard in ["shard-0", "shard-1", "shard-2"].repeat(times) {
                    let call = Some(Box::new(call.clone()));
                    let (shard, error) = (LeaseKey::from(shard), String::new());
                    console.event(&Event::ReadFailed { shard, error, transient, call }, now);
                }
            });
            lines.lines().count()
        };
        assert_eq!(failed("ExpiredTokenException", false, 1), 1);
        assert_eq!(failed("AccessDeniedException", false, 1), 3, "a policy may name one stream");
        // A failure without a code: no reply came.
        assert_eq!(failed("InternalFailure", true, 1), 0, "one lost call of each shard");
        assert_eq!(failed("InternalFailure", true, 3), 1);
    }

    #[test]
    fn what_keeps_it_from_starting_is_said_at_once_and_seldom_repeated() {
        let base = Instant::now();
        let lines = said(Verbosity::Quiet, |console| {
            for second in [0, 2, 29, 30, 31] {
                console.event(&read_failed(true), at(second, base));
            }
        });
        assert_eq!(lines.lines().count(), 2, "{lines}");
    }

    #[test]
    fn a_processor_that_fails_and_a_stdout_that_takes_nothing_are_reported() {
        let failed = Event::ProcessorFailed {
            shard: LeaseKey::from("shard-0"),
            attempts: 1,
            error: "panicked".to_owned(),
            retry_in: Duration::from_secs(1),
        };
        let lines = said(Verbosity::Quiet, |console| {
            console.event(&failed, Instant::now());
            console.stalled(Duration::from_secs(30));
        });
        assert!(lines.contains("printing shard-0 failed"), "{lines}");
        assert!(lines.contains("stdout has accepted nothing for 30 s"), "{lines}");
    }

    fn warnings() -> Vec<Event> {
        let shard = LeaseKey::from("shard-0");
        let position = Position { sequence_number: "17".parse().unwrap(), sub_sequence_number: 0 };
        vec![
            Event::GapDetected {
                shard: shard.clone(),
                from: Checkpoint::TrimHorizon,
                to: Some(position.clone()),
            },
            Event::ShardReleased { shard: shard.clone(), reason: "the reader hangs".into() },
            Event::ProcessorSlow {
                shard: shard.clone(),
                callback: "process",
                running: Duration::from_secs(30),
            },
            Event::ReaderRestarted { shard: shard.clone(), cause: "no answer in 90s".into() },
            Event::CorruptAggregate { shard, position, error: "cut off".into(), records: 2 },
        ]
    }

    #[test]
    fn what_somebody_should_look_at_is_reported_without_being_asked_and_not_again_and_again() {
        let now = Instant::now();
        let lines = said(Verbosity::Quiet, |console| {
            for event in warnings().iter().chain(&warnings()) {
                assert_eq!(event.severity(), Severity::Warning);
                console.event(event, now);
            }
        });
        insta::assert_snapshot!(lines, @r"
        consumer: records of shard-0 aged out before they were read: those between TRIM_HORIZON and 17; they are not printed; hint: read the stream within its retention period, or extend the period
        consumer: released shard-0 (no progress): the reader hangs; reading resumes after its checkpoint, here or on another instance
        consumer: processor of shard-0 is slow: `process` has run for 30s
        consumer: replaced the reader of shard-0: no answer in 90s; no record is skipped
        consumer: 2 corrupt aggregates on shard-0 cannot be unpacked and were delivered unchanged; the newest is 17: cut off; hint: check the producer that writes them
        ");
    }

    #[test]
    fn with_v_every_change_is_reported_and_what_happens_every_few_seconds_is_not() {
        let shard = || LeaseKey::from("shard-0");
        let checkpoint = || Checkpoint::TrimHorizon;
        let changes = [
            Event::Started { leases: 1 },
            Event::LeaseCreated { shard: shard(), checkpoint: checkpoint() },
            Event::LeaseTaken {
                shard: shard(),
                from: None,
                reason: TakeReason::Unowned,
                checkpoint: checkpoint(),
            },
            Event::HandoffRequested { shard: shard(), from: WorkerId::from("b") },
            Event::LeaseRenewed { shard: shard(), checkpoint: checkpoint(), advanced: true },
            Event::LeaseReleased { shard: shard(), checkpoint: checkpoint() },
            Event::LeaseDeleted { shard: shard() },
            Event::MisroutedRecords { shard: shard(), records: 3, dropped: false },
            Event::RetrievalChanged {
                shard: shard(),
                to: Fetching::FanOut,
                reason: "it stays behind".into(),
            },
            Event::ConsumerRegistered { consumer: "arn:tail".into() },
            Event::Stopped,
        ];
        let act = |console: &mut Console<&mut Vec<u8>>| {
            changes.iter().for_each(|event| console.event(event, Instant::now()));
        };
        assert_eq!(said(Verbosity::Quiet, act), "");
        insta::assert_snapshot!(said(Verbosity::Verbose, act), @r"
        consumer: started; leases in the table: 1
        consumer: created lease shard-0 at TRIM_HORIZON
        consumer: took lease shard-0 at TRIM_HORIZON (previous owner: none): it had no owner
        consumer: asked b to hand off shard-0
        consumer: released lease shard-0 at TRIM_HORIZON
        consumer: deleted finished lease shard-0
        consumer: delivered 3 misrouted records from aggregates on shard-0
        consumer: switched shard-0 to enhanced fan-out: it stays behind
        consumer: registered consumer arn:tail
        consumer: stopped
        ");
    }

    #[test]
    fn the_end_tells_records_shards_and_seconds_and_what_was_left() {
        let report = |drained| Report {
            shards: BTreeMap::from([(
                LeaseKey::from("shard-0"),
                ShardReport { drained, checkpoint: Checkpoint::TrimHorizon },
            )]),
        };
        let lines = said(Verbosity::Quiet, |console| {
            console.event(&started("shard-0"), Instant::now());
            console.event(&started("shard-0"), Instant::now());
            console.undrained(&report(true));
            console.undrained(&report(false));
            console.sum(1234, Duration::from_millis(2550));
        });
        insta::assert_snapshot!(lines, @r"
        consumer: shard-0 was not fully drained; the next instance resumes after checkpoint TRIM_HORIZON
        consumer: printed 1234 records of 1 shard in 2.5 s
        ");
    }
}
