//! The liveness of a shard, judged by the activity of its task and its duration.
//!
//! The task publishes its activity; the control plane judges it about once a second, so that a task whose
//! thread is blocked, or that is no longer polled, is detected too. Pure: reads no clock, cancels
//! nothing.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::settings::Settings;

/// How long one step of a reader may take: longer than the timeouts of the calls to the service.
pub(crate) const READ_LIMIT: Duration = Duration::from_secs(90);
/// A shard task enforces its deadlines itself. It is judged stuck only if it did not, this much later;
/// after a short deadline, half of that deadline later.
const GRACE: Duration = Duration::from_secs(5);
/// How long after a reply the next one is overdue, unless the poll interval is longer. An idle
/// subscription sends an event every five seconds.
const REPLY_OVERDUE: Duration = Duration::from_secs(10);
/// How many readers in a row may hang before the shard is released.
pub(crate) const READER_RESTARTS: u32 = 3;

/// The current activity of a shard task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Waiting for a processor's callback.
    Processing { callback: &'static str },
    /// Waiting for records of the backlog.
    Reading,
    /// Waiting for records at the tip.
    WaitingAtTip,
    /// Waiting for records, which may not be read before other shards release memory.
    WaitingForMemory,
    /// Calls to the service fail.
    ReadFailing { error: String },
    /// The window of unacknowledged records is full.
    WaitingForAcknowledgements,
    /// Records in flight hold memory that other shards wait for.
    HoldingMemory,
    /// The shard is fully read, and some records are in flight.
    WaitingForTheEnd,
    /// The user has paused delivery.
    Paused,
    /// Draining the shard before its release.
    Draining,
    /// Waiting before the next attempt.
    Retrying { failures: u32, error: String },
    /// Storing a poison record as a dead letter.
    DeadLettering { error: Option<String> },
    /// Waiting for the lease table: for a renewal or a stored checkpoint.
    Storing,
    /// Waiting until the child leases, and then the shard end, are stored.
    Ending,
}

/// The last reply of the reader.
#[derive(Debug, Clone, Copy)]
struct Reply {
    at: Instant,
    /// How far it was behind the tip, in milliseconds; `None` if everything is read.
    behind: Option<u64>,
}

/// The progress of a running shard task, shared with the control plane.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// When the shard last made progress: a reply, a processed batch, or a heartbeat of its processor.
    pub(crate) at: Instant,
    reply: Option<Reply>,
    /// The service reported that the shard or stream does not exist, or rejected the request as invalid:
    /// the stream may be a re-created one.
    pub(crate) is_missing: bool,
    /// When the processor last sent a heartbeat.
    beat: Instant,
    activity: Activity,
    since: Instant,
    is_at_tip: bool,
    /// Since when records are in flight and the oldest of them holds the checkpoint back.
    open_since: Option<Instant>,
    /// The latest read error, and when the series of errors began.
    read_error: Option<(String, Instant)>,
    /// Since when the reader waits for the memory budget.
    no_memory_since: Option<Instant>,
}

impl Progress {
    /// Creates the progress of a shard task that starts.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            at: now,
            reply: None,
            is_missing: false,
            beat: now,
            activity: Activity::Reading,
            since: now,
            is_at_tip: false,
            open_since: None,
            read_error: None,
            no_memory_since: None,
        }
    }

    /// Returns the activity of the task, and since when it lasts.
    pub(crate) fn current(&self) -> (Activity, Instant) {
        // First: a reader that waits for memory makes no calls, so its last reply or error is old.
        if self.activity == Activity::Reading
            && let Some(since) = self.no_memory_since
        {
            return (Activity::WaitingForMemory, since);
        }
        match (&self.activity, &self.read_error) {
            (Activity::Reading, Some((error, since))) => {
                (Activity::ReadFailing { error: error.clone() }, *since)
            }
            (Activity::Reading, None) if self.is_at_tip => (Activity::WaitingAtTip, self.since),
            // A heartbeat proves only that the processor is alive, so it restarts no other limits.
            (activity, _) if activity.is_the_processors() => {
                (activity.clone(), self.heard_since(self.since))
            }
            (activity, _) => (activity.clone(), self.since),
        }
    }

    /// Records a heartbeat of the processor.
    pub(crate) fn beat(&mut self, now: Instant) {
        self.beat = now;
        self.at = now;
    }

    /// Returns the time of the last heartbeat, or `begun`, when the current activity began, if later.
    pub(crate) fn heard_since(&self, begun: Instant) -> Instant {
        self.beat.max(begun)
    }

    /// Records the activity of the task and since when it lasts.
    pub(crate) fn doing(&mut self, activity: Activity, since: Instant) {
        self.activity = activity;
        self.since = since;
    }

    /// Records since when the oldest record in flight holds the checkpoint back.
    pub(crate) fn holds_checkpoint(&mut self, since: Option<Instant>) {
        self.open_since = since;
    }

    /// Returns since when the oldest record in flight holds the checkpoint back without a heartbeat, while
    /// the task waits for more records. Any other activity has a limit of its own.
    pub(crate) fn open_since(&self) -> Option<Instant> {
        let since = self.open_since.filter(|_| self.activity == Activity::Reading)?;
        Some(self.heard_since(since))
    }

    /// Records a reply of the reader; `behind` is `None` at the end of the shard.
    pub(crate) fn replied(&mut self, now: Instant, is_at_tip: bool, behind: Option<u64>) {
        self.at = now;
        self.is_missing = false;
        self.is_at_tip = is_at_tip;
        self.read_error = None;
        self.reply = Some(Reply { at: now, behind });
        self.reader_lives(now);
    }

    /// Returns the age of the last reply.
    pub(crate) fn since_reply(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.reply?.at))
    }

    /// Returns the backlog in milliseconds: the value of the last reply, plus its age while the next reply
    /// is overdue.
    pub(crate) fn millis_behind(&self, now: Instant, poll_interval: Duration) -> Option<u64> {
        // Nothing more can arrive in a shard that has been read to its end.
        let Some(behind) = self.reply?.behind else { return Some(0) };
        let age = self.since_reply(now)?;
        let is_overdue =
            self.read_error.is_some() || age >= REPLY_OVERDUE.max(poll_interval.saturating_mul(2));
        let since = if is_overdue { u64::try_from(age.as_millis()).unwrap_or(u64::MAX) } else { 0 };
        Some(behind.saturating_add(since))
    }

    /// Records a failed read. A series of failures counts from its first one.
    pub(crate) fn read_failed(&mut self, now: Instant, error: String, is_missing: bool) {
        let since = self.read_error.as_ref().map_or(now, |(_, since)| *since);
        self.read_error = Some((error, since));
        self.is_missing = is_missing;
        // A reader that returns errors does not hang; the series of errors has its own duration.
        self.reader_lives(now);
    }

    /// Records whether the reader waits for the memory budget.
    pub(crate) fn waits_for_memory(&mut self, now: Instant, waits: bool) {
        self.no_memory_since = waits.then_some(now);
        // The reader is not to blame for the time it waited.
        self.reader_lives(now);
    }

    fn reader_lives(&mut self, now: Instant) {
        // Only while the task waits for the reader: prefetch may reply while a callback hangs.
        if self.activity == Activity::Reading {
            self.since = now;
        }
    }
}

/// The judgement on a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// The shard makes progress, or there is nothing to do.
    Well,
    /// The shard makes no progress; the worker keeps waiting.
    Slow { cause: String },
    /// The shard makes no progress and its task cannot end by itself: release it.
    Stuck { cause: String },
}

/// Judges an activity that has lasted since `since`.
pub(crate) fn judge(
    activity: &Activity,
    since: Instant,
    now: Instant,
    settings: &Settings,
) -> Liveness {
    let lasting = now.saturating_duration_since(since);
    let (slow, stuck) = limits(activity, settings);
    let cause = || format!("{activity} for {}", Rounded(lasting));
    if lasting >= stuck {
        Liveness::Stuck { cause: cause() }
    } else if lasting >= slow {
        Liveness::Slow { cause: cause() }
    } else {
        Liveness::Well
    }
}

/// Judges a shard that is being read while its oldest record in flight has not been acknowledged since
/// `since`.
///
/// The shard is slow, never stuck: later records are still processed. Once the in-flight or memory limit
/// is reached, [`judge`] decides.
pub(crate) fn judge_open_record(since: Instant, now: Instant, settings: &Settings) -> Liveness {
    let lasting = now.saturating_duration_since(since);
    if lasting < settings.callback_deadline {
        return Liveness::Well;
    }
    let cause = format!(
        "checkpoint held back: the oldest record in flight has been neither acknowledged nor dropped \
         for {}; acknowledge or drop its token, or send heartbeats",
        Rounded(lasting)
    );
    Liveness::Slow { cause }
}

/// Returns after how long an activity is slow, and after how long it is stuck.
fn limits(activity: &Activity, settings: &Settings) -> (Duration, Duration) {
    let (slow, deadline) = (settings.slow_after, settings.callback_deadline);
    match activity {
        // Saturates, because a deadline of `Duration::MAX` means none.
        Activity::Processing { .. } => (slow, deadline.saturating_add(GRACE.min(deadline / 2))),
        // Without a grace period, because the task has no deadline of its own for these.
        Activity::WaitingForAcknowledgements | Activity::HoldingMemory => (slow, deadline),
        // The task replaces a reader that hangs, and gives up after some: stuck only if it did
        // neither.
        Activity::Reading | Activity::WaitingAtTip => {
            (READ_LIMIT + GRACE, READ_LIMIT * READER_RESTARTS + GRACE * 2)
        }
        Activity::Paused => (Duration::MAX, Duration::MAX),
        // Each of these repeats an event, so it shows at once. A release would not help, or is for the
        // failure policy to decide.
        Activity::ReadFailing { .. }
        | Activity::Retrying { .. }
        | Activity::DeadLettering { error: Some(_) } => (Duration::ZERO, Duration::MAX),
        // The shard that holds the memory is judged, not the one that waits for it.
        Activity::WaitingForMemory
        | Activity::DeadLettering { error: None }
        | Activity::WaitingForTheEnd
        | Activity::Draining
        | Activity::Storing
        | Activity::Ending => (slow, Duration::MAX),
    }
}

impl Activity {
    /// Returns whether the activity lasts until the processor returns or acknowledges something.
    fn is_the_processors(&self) -> bool {
        match self {
            Self::Processing { .. }
            | Self::WaitingForAcknowledgements
            | Self::HoldingMemory
            | Self::WaitingForTheEnd
            | Self::Draining => true,
            Self::Reading
            | Self::WaitingAtTip
            | Self::WaitingForMemory
            | Self::ReadFailing { .. }
            | Self::Paused
            | Self::Retrying { .. }
            | Self::DeadLettering { .. }
            | Self::Storing
            | Self::Ending => false,
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processing { callback } => {
                write!(f, "the processor's `{callback}` has not returned or sent a heartbeat")
            }
            Self::Reading => f.write_str("no reply from the reader"),
            Self::WaitingAtTip => f.write_str("no reply from the reader at the tip"),
            Self::WaitingForMemory => f.write_str("reading blocked by the memory budget"),
            Self::ReadFailing { error } => write!(f, "reads have been failing ({error})"),
            Self::WaitingForAcknowledgements => {
                f.write_str("no record acknowledged while the in-flight limit is reached")
            }
            Self::HoldingMemory => {
                f.write_str("no record acknowledged while other shards wait for memory")
            }
            Self::WaitingForTheEnd => {
                f.write_str("shard fully read, but records in flight are not acknowledged")
            }
            Self::Paused => f.write_str("paused"),
            Self::Draining => f.write_str("draining"),
            Self::Retrying { failures, error } => {
                write!(f, "the processor has been failing ({failures} times, last: {error})")
            }
            Self::DeadLettering { error: None } => f.write_str("storing a dead letter"),
            Self::DeadLettering { error: Some(error) } => {
                write!(f, "storing a dead letter has been failing ({error})")
            }
            Self::Storing => f.write_str("a lease table write has not been confirmed"),
            Self::Ending => f.write_str(
                "shard fully read, but the child leases and the shard end have not been stored",
            ),
        }
    }
}

/// A duration for people: whole seconds, or minutes and seconds.
struct Rounded(Duration);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds / 60 {
            0 => write!(f, "{seconds} s"),
            minutes => write!(f, "{minutes} min {} s", seconds % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(activity: &Activity, seconds: u64) -> Liveness {
        let since = Instant::now();
        judge(activity, since, since + Duration::from_secs(seconds), &Settings::default())
    }

    fn slow(cause: &str) -> Liveness {
        Liveness::Slow { cause: cause.to_owned() }
    }

    fn stuck(cause: &str) -> Liveness {
        Liveness::Stuck { cause: cause.to_owned() }
    }

    #[test]
    fn a_callback_is_slow_after_its_soft_deadline_and_stuck_a_little_after_its_hard_one() {
        let activity = Activity::Processing { callback: "process" };
        assert_eq!(after(&activity, 29), Liveness::Well);
        let cause = "the processor's `process` has not returned or sent a heartbeat for 45 s";
        assert_eq!(after(&activity, 45), slow(cause));
        assert!(matches!(after(&activity, 601), Liveness::Slow { .. }), "the task ends it itself");
        let cause = "the processor's `process` has not returned or sent a heartbeat for 10 min 5 s";
        assert_eq!(after(&activity, 605), stuck(cause));
    }

    #[test]
    fn a_reader_is_stuck_when_its_restarts_did_not_happen() {
        for activity in [Activity::Reading, Activity::WaitingAtTip] {
            assert_eq!(after(&activity, 94), Liveness::Well);
            assert!(matches!(after(&activity, 95), Liveness::Slow { .. }));
            assert!(matches!(after(&activity, 280), Liveness::Stuck { .. }));
        }
    }

    #[test]
    fn records_that_are_never_acknowledged_are_stuck_after_the_hard_deadline() {
        for activity in [Activity::WaitingForAcknowledgements, Activity::HoldingMemory] {
            assert!(matches!(after(&activity, 599), Liveness::Slow { .. }));
            assert!(matches!(after(&activity, 600), Liveness::Stuck { .. }));
        }
    }

    #[test]
    fn what_is_refused_from_outside_is_named_at_once_and_never_released() {
        let error = "GetRecords: AccessDenied".to_owned();
        let failing = Activity::ReadFailing { error };
        assert_eq!(
            after(&failing, 0),
            slow("reads have been failing (GetRecords: AccessDenied) for 0 s")
        );
        let retrying = Activity::Retrying { failures: 3, error: "no disk".to_owned() };
        let day = 24 * 3600;
        for activity in [failing, retrying, Activity::Draining, Activity::WaitingForTheEnd] {
            assert!(matches!(after(&activity, day), Liveness::Slow { .. }), "{activity}");
        }
    }

    /// The other parent of a child may have a long backlog, which is not a fault of the table.
    #[test]
    fn an_end_that_waits_for_its_children_says_so_and_is_never_released() {
        let cause = "shard fully read, but the child leases and the shard end have not been stored";
        assert_eq!(after(&Activity::Ending, 45), slow(&format!("{cause} for 45 s")));
        assert!(matches!(after(&Activity::Ending, 24 * 3600), Liveness::Slow { .. }));
    }

    #[test]
    fn deadlines_that_are_switched_off_judge_nothing() {
        let settings = Settings {
            slow_after: Duration::MAX,
            callback_deadline: Duration::MAX,
            ..Settings::default()
        };
        let since = Instant::now();
        let year = since + Duration::from_secs(365 * 24 * 3600);
        let activity = Activity::Processing { callback: "process" };
        assert_eq!(judge(&activity, since, year, &settings), Liveness::Well);
    }

    #[test]
    fn a_reply_is_a_sign_of_life_for_the_one_who_waits_for_it_only() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        let later = start + Duration::from_secs(60);
        progress.replied(later, true, Some(0));
        assert_eq!(progress.current(), (Activity::WaitingAtTip, later));
        let hanging = Activity::Processing { callback: "process" };
        progress.doing(hanging.clone(), later);
        progress.replied(later + READ_LIMIT, true, Some(0));
        assert_eq!(progress.current(), (hanging, later));
    }

    #[test]
    fn lag_grows_while_replies_are_overdue_and_not_between_two_polls() {
        let start = Instant::now();
        let poll = Duration::from_secs(1);
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut progress = Progress::new(start);
        assert_eq!(progress.millis_behind(after(60), poll), None, "before the first reply");
        progress.replied(after(60), true, Some(0));
        assert_eq!(progress.millis_behind(after(69), poll), Some(0));
        assert_eq!(progress.millis_behind(after(70), poll), Some(10_000));
        assert_eq!(progress.since_reply(after(70)), Some(Duration::from_secs(10)));
        assert_eq!(progress.millis_behind(after(130), poll * 40), Some(0), "polled every 40 s");
        progress.read_failed(after(61), "no answer".to_owned(), false);
        assert_eq!(progress.millis_behind(after(63), poll), Some(3_000));
        progress.replied(after(64), false, Some(500));
        assert_eq!(progress.millis_behind(after(65), poll), Some(500));
    }

    #[test]
    fn a_shard_that_is_read_to_its_end_is_never_behind() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        progress.replied(start, false, Some(500));
        progress.replied(start, true, None);
        let day = start + Duration::from_secs(24 * 3600);
        assert_eq!(progress.millis_behind(day, Duration::from_secs(1)), Some(0));
    }

    #[test]
    fn waiting_for_memory_is_slow_and_never_stuck_and_no_fault_of_the_reader() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        progress.waits_for_memory(start + READ_LIMIT, true);
        assert_eq!(progress.current(), (Activity::WaitingForMemory, start + READ_LIMIT));
        assert_eq!(after(&Activity::WaitingForMemory, 29), Liveness::Well);
        let cause = "reading blocked by the memory budget for 30 s";
        assert_eq!(after(&Activity::WaitingForMemory, 30), slow(cause));
        let day = 24 * 3600;
        assert!(matches!(after(&Activity::WaitingForMemory, day), Liveness::Slow { .. }));
        let later = start + READ_LIMIT * 5;
        progress.waits_for_memory(later, false);
        assert_eq!(progress.current(), (Activity::Reading, later));
    }

    #[test]
    fn a_failure_of_reading_is_as_old_as_the_first_of_its_row() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        progress.read_failed(start, "one".to_owned(), false);
        progress.read_failed(start + READ_LIMIT, "two".to_owned(), false);
        assert_eq!(progress.current(), (Activity::ReadFailing { error: "two".into() }, start));
        progress.replied(start + READ_LIMIT, false, None);
        assert_eq!(progress.current(), (Activity::Reading, start + READ_LIMIT));
    }
}
