//! Automatic retrieval: polls while that is enough, and subscribes while it is not.
//!
//! Owns one reader of either kind and replaces it between two replies: the next one starts at the
//! cursor of the last one, so that no record is lost or repeated. [`Choice`] decides, without side
//! effects and with hysteresis. Never subscribes because the processor is slow: that would not make
//! it faster.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::fan_out::FanOutReader;
use super::fan_out::registration::Registration;
use super::polling::PollingReader;
use super::shard_client::ShardClient;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::position::Cursor;
use crate::stream::{Fetching, Notice, Read, ShardReader};

/// Polling is not enough when the shard is this far behind the tip for this long.
const BEHIND_MILLIS: u64 = 10_000;
const BEHIND_FOR: Duration = Duration::from_secs(30);
/// Other consumers read the shard too when this many calls are throttled within this time.
const THROTTLES: usize = 5;
const THROTTLED_WITHIN: Duration = Duration::from_secs(60);
/// A shard that is less than this behind the tip has caught up.
const CAUGHT_UP_MILLIS: u64 = 1_000;
/// After being caught up for this long, the shard is polled again; longer each time that polling was
/// not enough.
const HOLD: Duration = Duration::from_secs(5 * 60);
const HOLD_MOST: Duration = Duration::from_secs(2 * 60 * 60);
/// After polling was enough for this long, the hold starts from its minimum again.
const CALM: Duration = Duration::from_secs(30 * 60);
/// Without one event for this long, polling replaces fan-out; immediately if fan-out is refused.
const FAILING_FOR: Duration = Duration::from_secs(60);
/// Fan-out that has failed is not retried before this time has passed.
const GIVEN_UP_FOR: Duration = Duration::from_secs(60 * 60);

/// The choice between polling and fan-out, based on the results so far.
#[derive(Debug)]
struct Choice {
    now: Fetching,
    /// Since when the shard has been behind while it is polled, or caught up while fan-out is used.
    since: Option<Instant>,
    /// For how much of that time the processor did not want more records.
    unwanted: Duration,
    returned: Option<Instant>,
    throttles: VecDeque<Instant>,
    failing_since: Option<Instant>,
    hold: Duration,
    /// When polling was last resumed.
    polled_again: Option<Instant>,
    /// When fan-out was given up.
    given_up: Option<Instant>,
}

impl Choice {
    fn new() -> Self {
        Self {
            now: Fetching::Polling,
            since: None,
            unwanted: Duration::ZERO,
            returned: None,
            throttles: VecDeque::new(),
            failing_since: None,
            hold: HOLD,
            polled_again: None,
            given_up: None,
        }
    }

    /// Records that the next reply is requested.
    fn wanted(&mut self, now: Instant) {
        if let Some(returned) = self.returned.take() {
            self.unwanted += now.saturating_duration_since(returned);
        }
    }

    /// Records a reply, with or without records. Returns the reason if the retrieval changes.
    fn replied(&mut self, millis_behind: u64, now: Instant) -> Option<String> {
        self.returned = Some(now);
        self.failing_since = None;
        let is_so = match self.now {
            Fetching::Polling => millis_behind >= BEHIND_MILLIS && self.may_subscribe(now),
            Fetching::FanOut => millis_behind < CAUGHT_UP_MILLIS,
        };
        if !is_so {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert_with(|| {
            self.unwanted = Duration::ZERO;
            now
        });
        let lasting = now.saturating_duration_since(since);
        let (reason, to) = match self.now {
            Fetching::Polling if lasting >= BEHIND_FOR => {
                if self.unwanted * 2 > lasting {
                    // The processor is the slow part. Check again after the same time.
                    self.since = None;
                    return None;
                }
                let reason = format!("{} s behind the tip", millis_behind / 1_000);
                (reason, Fetching::FanOut)
            }
            Fetching::FanOut if lasting >= self.hold => {
                (format!("caught up for {} min", self.hold.as_secs() / 60), Fetching::Polling)
            }
            Fetching::Polling | Fetching::FanOut => return None,
        };
        self.change(to, now);
        Some(reason)
    }

    /// Records that a call or a subscription has failed. Returns the reason if the retrieval changes.
    fn failed(&mut self, error: &ServiceError, now: Instant) -> Option<String> {
        self.returned = Some(now);
        match self.now {
            Fetching::Polling if error.kind == ServiceErrorKind::Throttled => {
                self.throttles.push_back(now);
                self.throttles.retain(|at| now.saturating_duration_since(*at) <= THROTTLED_WITHIN);
                if self.throttles.len() < THROTTLES || !self.may_subscribe(now) {
                    return None;
                }
                self.change(Fetching::FanOut, now);
                let within = THROTTLED_WITHIN.as_secs();
                Some(format!("throttled {THROTTLES} times in {within} s by other consumers"))
            }
            Fetching::Polling => None,
            Fetching::FanOut => {
                let since = *self.failing_since.get_or_insert(now);
                use ServiceErrorKind::{Credentials, Denied, Key};
                let is_refused = matches!(error.kind, Credentials | Denied | Key);
                if !is_refused && now.saturating_duration_since(since) < FAILING_FOR {
                    return None;
                }
                self.change(Fetching::Polling, now);
                self.given_up = Some(now);
                Some(format!("fan-out failed: {error}"))
            }
        }
    }

    fn may_subscribe(&self, now: Instant) -> bool {
        self.given_up.is_none_or(|at| now.saturating_duration_since(at) >= GIVEN_UP_FOR)
    }

    fn change(&mut self, to: Fetching, now: Instant) {
        self.now = to;
        (self.since, self.failing_since) = (None, None);
        self.throttles.clear();
        match to {
            Fetching::Polling => self.polled_again = Some(now),
            Fetching::FanOut => {
                let calm = |at: Instant| now.saturating_duration_since(at) >= CALM;
                self.hold = match self.polled_again {
                    Some(at) if !calm(at) => (self.hold * 2).min(HOLD_MOST),
                    Some(_) | None => HOLD,
                };
            }
        }
    }
}

/// The current reader.
#[derive(Debug)]
enum Reader {
    Polling(Box<PollingReader>),
    FanOut(Box<FanOutReader>),
}

/// A reader that chooses between polling and fan-out for one shard.
#[derive(Debug)]
pub(super) struct AutoReader {
    of: ShardClient,
    registration: Arc<Registration>,
    choice: Choice,
    reader: Reader,
    /// Since when the last reply has been valid, if the previous reader returned it.
    asked: Option<Instant>,
    notices: VecDeque<Notice>,
    rng: fastrand::Rng,
}

impl AutoReader {
    pub(super) fn new(
        of: ShardClient,
        registration: Arc<Registration>,
        cursor: Cursor,
        mut rng: fastrand::Rng,
    ) -> Self {
        let reader = Reader::Polling(Box::new(PollingReader::new(of.clone(), cursor, rng.fork())));
        Self {
            of,
            registration,
            choice: Choice::new(),
            reader,
            asked: None,
            notices: VecDeque::new(),
            rng,
        }
    }

    fn reader(&mut self) -> &mut dyn ShardReader {
        match &mut self.reader {
            Reader::Polling(reader) => reader.as_mut(),
            Reader::FanOut(reader) => reader.as_mut(),
        }
    }

    fn wanted(&mut self) {
        self.choice.wanted(self.of.stream.options.clock.now());
    }

    async fn step(&mut self) -> Result<Read, ServiceError> {
        self.wanted();
        self.asked = None;
        let result = self.reader().next().await;
        let now = self.of.stream.options.clock.now();
        let reason = match &result {
            Ok(Read::Records { millis_behind_latest, .. }) => {
                self.choice.replied(*millis_behind_latest, now)
            }
            Ok(Read::End { .. }) => None,
            Err(error) => self.choice.failed(error, now),
        };
        if let Some(reason) = reason {
            self.change(reason);
        }
        result
    }

    /// Replaces the reader. The next one starts at the cursor of the last one, after what it has just
    /// returned.
    fn change(&mut self, reason: String) {
        // Before the reader is replaced, because the reply that is being returned is the old one's.
        self.asked = self.asked();
        let cursor = match &self.reader {
            Reader::Polling(reader) => reader.cursor().clone(),
            Reader::FanOut(reader) => reader.cursor().clone(),
        };
        // The worker may not have taken it yet, and it would be lost with the reader.
        let pending = self.reader().notice();
        let (of, rng, to) = (self.of.clone(), self.rng.fork(), self.choice.now);
        self.reader = match to {
            Fetching::Polling => Reader::Polling(Box::new(PollingReader::new(of, cursor, rng))),
            Fetching::FanOut => {
                let registration = Arc::clone(&self.registration);
                Reader::FanOut(Box::new(FanOutReader::new(of, registration, cursor, rng)))
            }
        };
        self.notices.extend(pending);
        self.notices.push_back(Notice::RetrievalChanged { to, reason });
    }
}

impl ShardReader for AutoReader {
    fn ready(&mut self) -> BoxFuture<'_, ()> {
        self.wanted();
        Box::pin(async {
            self.reader().ready().await;
            // The wait that follows is for memory, which slow processors hold.
            self.choice.returned = Some(self.of.stream.options.clock.now());
        })
    }

    fn most_bytes(&self) -> u64 {
        match &self.reader {
            Reader::Polling(reader) => reader.most_bytes(),
            Reader::FanOut(reader) => reader.most_bytes(),
        }
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Read, ServiceError>> {
        Box::pin(self.step())
    }

    fn asked(&self) -> Option<Instant> {
        if self.asked.is_some() {
            return self.asked;
        }
        match &self.reader {
            Reader::Polling(reader) => reader.asked(),
            Reader::FanOut(reader) => reader.asked(),
        }
    }

    fn notice(&mut self) -> Option<Notice> {
        self.notices.pop_front().or_else(|| self.reader().notice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn error(kind: ServiceErrorKind) -> ServiceError {
        ServiceError::new(kind, "no")
    }

    /// Replies every second from `start` on, until a change or `most`; returns when it changed, and
    /// why.
    fn replies(
        choice: &mut Choice,
        start: Instant,
        most: Duration,
        behind: u64,
        pause: Duration,
    ) -> Option<(Duration, String)> {
        let mut now = start;
        while now - start <= most {
            if let Some(reason) = choice.replied(behind, now) {
                return Some((now - start, reason));
            }
            now += pause;
            choice.wanted(now);
            now += SECOND - pause;
        }
        None
    }

    #[test]
    fn polling_stays_while_it_keeps_up() {
        let mut choice = Choice::new();
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(replies(&mut choice, Instant::now(), day, 9_999, Duration::ZERO), None);
    }

    #[test]
    fn a_shard_that_stays_behind_is_subscribed_to_and_says_how_far() {
        let mut choice = Choice::new();
        let changed = replies(&mut choice, Instant::now(), BEHIND_FOR, 60_000, Duration::ZERO);
        assert_eq!(changed, Some((BEHIND_FOR, "60 s behind the tip".to_owned())));
        assert_eq!(choice.now, Fetching::FanOut);
    }

    #[test]
    fn a_shard_that_is_behind_because_its_processor_is_slow_is_not_subscribed_to() {
        let mut choice = Choice::new();
        let hour = Duration::from_secs(3600);
        assert_eq!(replies(&mut choice, Instant::now(), hour, 60_000, SECOND * 3 / 4), None);
    }

    #[test]
    fn one_reply_at_the_tip_is_a_new_beginning() {
        let (mut choice, start) = (Choice::new(), Instant::now());
        let almost = BEHIND_FOR - SECOND;
        assert_eq!(replies(&mut choice, start, almost, 60_000, Duration::ZERO), None);
        assert_eq!(choice.replied(0, start + BEHIND_FOR), None);
        assert_eq!(replies(&mut choice, start + BEHIND_FOR, almost, 60_000, Duration::ZERO), None);
    }

    #[test]
    fn others_that_read_the_shard_too_are_noticed_by_their_throttling() {
        let (mut choice, start) = (Choice::new(), Instant::now());
        let throttled = error(ServiceErrorKind::Throttled);
        for minute in 0..60 {
            let now = start + SECOND * 20 * minute;
            assert_eq!(choice.failed(&throttled, now), None, "now and then is normal");
        }
        let now = start + SECOND * 7_200;
        for second in 0..4 {
            let other = error(ServiceErrorKind::Unavailable);
            assert_eq!(choice.failed(&throttled, now + SECOND * second), None);
            assert_eq!(choice.failed(&other, now + SECOND * second), None);
        }
        let reason = choice.failed(&throttled, now + SECOND * 5).unwrap();
        assert_eq!(reason, "throttled 5 times in 60 s by other consumers");
    }

    #[test]
    fn polling_is_taken_up_again_later_and_later_while_it_does_not_last() {
        let (mut choice, mut now) = (Choice::new(), Instant::now());
        let mut holds = Vec::new();
        for _ in 0..6 {
            let (behind, _) = replies(&mut choice, now, HOLD, 60_000, Duration::ZERO).unwrap();
            now += behind;
            let (held, _) = replies(&mut choice, now, HOLD_MOST, 0, Duration::ZERO).unwrap();
            now += held;
            holds.push(held.as_secs() / 60);
        }
        assert_eq!(holds, [5, 10, 20, 40, 80, 120]);
        now += CALM;
        let (behind, _) = replies(&mut choice, now, HOLD, 60_000, Duration::ZERO).unwrap();
        now += behind;
        let (held, reason) = replies(&mut choice, now, HOLD_MOST, 0, Duration::ZERO).unwrap();
        assert_eq!((held, reason.as_str()), (HOLD, "caught up for 5 min"));
    }

    #[test]
    fn fan_out_that_fails_is_given_up_for_an_hour_and_polling_goes_on() {
        let (mut choice, start) = (Choice::new(), Instant::now());
        choice.change(Fetching::FanOut, start);
        let broken = error(ServiceErrorKind::Unavailable);
        assert_eq!(choice.failed(&broken, start), None);
        choice.replied(0, start + SECOND * 30);
        assert_eq!(choice.failed(&broken, start + SECOND * 60), None, "an event came in between");
        let given_up = start + SECOND * 120;
        assert_eq!(choice.failed(&broken, given_up), Some("fan-out failed: no".to_owned()));
        assert_eq!(choice.now, Fetching::Polling);
        let almost = GIVEN_UP_FOR - SECOND;
        assert_eq!(replies(&mut choice, given_up, almost, 60_000, Duration::ZERO), None);
        let again = replies(&mut choice, given_up + GIVEN_UP_FOR, HOLD, 60_000, Duration::ZERO);
        assert!(again.is_some(), "it is retried");
    }

    #[test]
    fn fan_out_that_is_refused_is_given_up_at_once() {
        let (mut choice, now) = (Choice::new(), Instant::now());
        choice.change(Fetching::FanOut, now);
        assert!(choice.failed(&error(ServiceErrorKind::Denied), now).is_some());
    }
}
