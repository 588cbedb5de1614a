//! Whether a shard makes progress, judged by what its task is doing and since when.
//!
//! The task says what it does; the control plane judges it about once a second, so that a task whose
//! thread is blocked, or that nobody runs any more, is found out too. Pure: reads no clock, cancels
//! nothing.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::settings::Settings;

/// How long one step of a reader may take: longer than the service's calls and their own limits.
pub(crate) const READ_LIMIT: Duration = Duration::from_secs(90);
/// A shard task ends by itself what takes too long. Only one that cannot is judged stuck, so much
/// later; after a short deadline, half of it.
const GRACE: Duration = Duration::from_secs(5);
/// How long after a reply the next one is overdue, unless polls are further apart. An idle subscription
/// sends an event every five seconds.
const REPLY_OVERDUE: Duration = Duration::from_secs(10);
/// How often a reader is replaced before its shard is given back.
pub(crate) const READER_RESTARTS: u32 = 3;

/// What a shard task is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Waiting for a processor's callback.
    Processing { callback: &'static str },
    /// Waiting for records, and some are there.
    Reading,
    /// Waiting for records that have not arrived yet.
    WaitingAtTip,
    /// Waiting for records, which may not be read before others give memory back.
    WaitingForMemory,
    /// The service refuses to be read.
    ReadFailing { error: String },
    /// The window of unacknowledged records is full.
    WaitingForAcknowledgements,
    /// Records are not acknowledged, and other shards wait for their memory.
    HoldingMemory,
    /// All is read, and some records are not acknowledged.
    WaitingForTheEnd,
    /// Told to deliver nothing.
    Paused,
    /// Letting the shard go.
    Draining,
    /// Waiting before the next attempt.
    Retrying { failures: u32, error: String },
    /// Storing a record that cannot be processed.
    DeadLettering { error: Option<String> },
    /// Waiting for the lease table: a proof of the lease, a checkpoint.
    Storing,
    /// Waiting until the end of the shard is stored, and before it the leases of its children.
    Ending,
}

/// What the reader last found.
#[derive(Debug, Clone, Copy)]
struct Reply {
    at: Instant,
    /// How far it was behind the tip, in milliseconds; `None` if everything is read.
    behind: Option<u64>,
}

/// What others may look at while a shard task runs.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// When the shard last proved life: a reply, a batch done, or a heartbeat of its processor.
    pub(crate) at: Instant,
    reply: Option<Reply>,
    /// The service said that the shard or stream does not exist, or did not understand what was asked
    /// for: the stream may be another one.
    pub(crate) is_missing: bool,
    /// When the processor last said that it is alive.
    beat: Instant,
    activity: Activity,
    since: Instant,
    is_at_tip: bool,
    /// Since when records are in flight and the checkpoint cannot move past the first of them.
    open_since: Option<Instant>,
    /// Why reading fails, and since when.
    read_error: Option<(String, Instant)>,
    /// Since when the reader may not read for want of memory.
    no_memory_since: Option<Instant>,
}

impl Progress {
    /// Of a shard task that starts.
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

    /// What the task is doing, and since when.
    pub(crate) fn current(&self) -> (Activity, Instant) {
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
            (activity, _) if activity.is_the_processors() => {
                (activity.clone(), self.heard_since(self.since))
            }
            (activity, _) => (activity.clone(), self.since),
        }
    }

    /// The processor says that it is alive.
    pub(crate) fn beat(&mut self, now: Instant) {
        self.beat = now;
        self.at = now;
    }

    /// When the processor was last heard of, which began something at `begun`.
    pub(crate) fn heard_since(&self, begun: Instant) -> Instant {
        self.beat.max(begun)
    }

    /// The task does this since then.
    pub(crate) fn doing(&mut self, activity: Activity, since: Instant) {
        self.activity = activity;
        self.since = since;
    }

    /// The oldest record in flight keeps the checkpoint where it is since then.
    pub(crate) fn holds_checkpoint(&mut self, since: Option<Instant>) {
        self.open_since = since;
    }

    /// Since when nobody was heard of the oldest record in flight, while the task waits for more records.
    /// Whatever else it waits for is judged by itself.
    pub(crate) fn open_since(&self) -> Option<Instant> {
        let since = self.open_since.filter(|_| self.activity == Activity::Reading)?;
        Some(self.heard_since(since))
    }

    /// The reader has answered; `behind` is `None` at the end of the shard.
    pub(crate) fn replied(&mut self, now: Instant, is_at_tip: bool, behind: Option<u64>) {
        self.at = now;
        self.is_missing = false;
        self.is_at_tip = is_at_tip;
        self.read_error = None;
        self.reply = Some(Reply { at: now, behind });
        self.reader_lives(now);
    }

    /// How old the last reply is.
    pub(crate) fn since_reply(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.reply?.at))
    }

    /// How far reading is behind the tip, in milliseconds: what the last reply said, and the time since
    /// while the next one is overdue.
    pub(crate) fn millis_behind(&self, now: Instant, poll_interval: Duration) -> Option<u64> {
        let Some(behind) = self.reply?.behind else { return Some(0) };
        let age = self.since_reply(now)?;
        let is_overdue =
            self.read_error.is_some() || age >= REPLY_OVERDUE.max(poll_interval.saturating_mul(2));
        let since = if is_overdue { u64::try_from(age.as_millis()).unwrap_or(u64::MAX) } else { 0 };
        Some(behind.saturating_add(since))
    }

    /// The service has answered that it cannot be read, or has not answered.
    pub(crate) fn read_failed(&mut self, now: Instant, error: String, is_missing: bool) {
        let since = self.read_error.as_ref().map_or(now, |(_, since)| *since);
        self.read_error = Some((error, since));
        self.is_missing = is_missing;
        self.reader_lives(now);
    }

    /// The reader waits for memory, or has it.
    pub(crate) fn waits_for_memory(&mut self, now: Instant, waits: bool) {
        self.no_memory_since = waits.then_some(now);
        // The time of waiting is not the reader's.
        self.reader_lives(now);
    }

    fn reader_lives(&mut self, now: Instant) {
        // Only who waits for the reader: it may well answer while a callback hangs.
        if self.activity == Activity::Reading {
            self.since = now;
        }
    }
}

/// How a shard is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// It makes progress, or there is nothing to do.
    Well,
    /// It makes none, and is still waited for.
    Slow { cause: String },
    /// It makes none, and its task cannot help itself: give it back.
    Stuck { cause: String },
}

/// Judges what has been going on since `since`.
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

/// Judges a shard that is read, and whose oldest record in flight nobody has acknowledged since `since`.
///
/// It is not released for that: other records are processed, and when no more fit it is judged by
/// [`judge`].
pub(crate) fn judge_open_record(since: Instant, now: Instant, settings: &Settings) -> Liveness {
    let lasting = now.saturating_duration_since(since);
    if lasting < settings.callback_deadline {
        return Liveness::Well;
    }
    let cause = format!(
        "the checkpoint has not moved, because a delivered record has been neither acknowledged nor \
         given up for {}: its token must be acknowledged or dropped, or the processor must send \
         heartbeats",
        Rounded(lasting)
    );
    Liveness::Slow { cause }
}

/// From when on it is slow, and stuck.
fn limits(activity: &Activity, settings: &Settings) -> (Duration, Duration) {
    let (slow, deadline) = (settings.slow_after, settings.callback_deadline);
    match activity {
        Activity::Processing { .. } => (slow, deadline.saturating_add(GRACE.min(deadline / 2))),
        Activity::WaitingForAcknowledgements | Activity::HoldingMemory => (slow, deadline),
        Activity::Reading | Activity::WaitingAtTip => {
            (READ_LIMIT + GRACE, READ_LIMIT * READER_RESTARTS + GRACE * 2)
        }
        Activity::Paused => (Duration::MAX, Duration::MAX),
        // Each of these is an event again and again, and giving the shard back would not help, or
        // is what the failure policy decides.
        Activity::ReadFailing { .. }
        | Activity::Retrying { .. }
        | Activity::DeadLettering { error: Some(_) } => (Duration::ZERO, Duration::MAX),
        // Who holds the memory is judged by itself.
        Activity::WaitingForMemory
        | Activity::DeadLettering { error: None }
        | Activity::WaitingForTheEnd
        | Activity::Draining
        | Activity::Storing
        | Activity::Ending => (slow, Duration::MAX),
    }
}

impl Activity {
    /// Whether it lasts until the processor returns or acknowledges something.
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
            Self::Reading => f.write_str("the reader has not answered"),
            Self::WaitingAtTip => f.write_str("the reader has not answered at the tip"),
            Self::WaitingForMemory => f.write_str("the reader waits for memory"),
            Self::ReadFailing { error } => write!(f, "reading fails ({error})"),
            Self::WaitingForAcknowledgements => {
                f.write_str("no record was acknowledged and no more may be delivered")
            }
            Self::HoldingMemory => {
                f.write_str("no record was acknowledged and other shards wait for their memory")
            }
            Self::WaitingForTheEnd => {
                f.write_str("all is read and some records are not acknowledged")
            }
            Self::Paused => f.write_str("paused"),
            Self::Draining => f.write_str("letting the shard go"),
            Self::Retrying { failures, error } => {
                write!(f, "the processor fails ({failures} times, last: {error})")
            }
            Self::DeadLettering { error: None } => f.write_str("storing a dead letter"),
            Self::DeadLettering { error: Some(error) } => {
                write!(f, "storing a dead letter fails ({error})")
            }
            Self::Storing => f.write_str("the lease table has not confirmed a write"),
            Self::Ending => f.write_str(
                "all is read and the leases of the children, and then the end, could not be stored",
            ),
        }
    }
}

/// A duration as people read it: whole seconds.
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
    fn what_is_refused_from_outside_is_named_at_once_and_never_given_back() {
        let error = "GetRecords: AccessDenied".to_owned();
        let failing = Activity::ReadFailing { error };
        assert_eq!(after(&failing, 0), slow("reading fails (GetRecords: AccessDenied) for 0 s"));
        let retrying = Activity::Retrying { failures: 3, error: "no disk".to_owned() };
        let day = 24 * 3600;
        for activity in [failing, retrying, Activity::Draining, Activity::WaitingForTheEnd] {
            assert!(matches!(after(&activity, day), Liveness::Slow { .. }), "{activity}");
        }
    }

    /// The other parent of a child may be behind a long backlog: that is no fault of the table.
    #[test]
    fn an_end_that_waits_for_its_children_says_so_and_is_never_given_back() {
        let cause =
            "all is read and the leases of the children, and then the end, could not be stored";
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
        let cause = "the reader waits for memory for 30 s";
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
