//! The schedule of subscriptions: when to subscribe, from where, and what the end of a subscription
//! means.
//!
//! Pure except for its seeded jitter: instants and outcomes are arguments. The position depends only
//! on what was returned to the caller. Never decides that a shard has ended.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::ServiceErrorKind;
use crate::position::Cursor;
use crate::record::{Record, SequenceNumber};
use crate::retry::Retry;

/// The minimum time between two calls. A subscription that is refused because another one is younger
/// than five seconds is retried at this pace, so that a new owner waits no longer than it must.
const FLOOR: Duration = Duration::from_secs(1);
/// Delays after other failures. The bound limits the time for which a shard stands still after the
/// service has recovered to five seconds.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(4);
/// Delays after a subscription that was accepted and ended immediately: two readers that replace each
/// other's subscription.
const LONGEST_FLAP_DELAY: Duration = Duration::from_secs(10);
/// A subscription that lived shorter than this ended immediately. The service protects it for five
/// seconds.
const MIN_LIFETIME: Duration = Duration::from_secs(8);
/// The service ends a subscription after five minutes. A new one replaces it before that, while the
/// old one still delivers; the last seconds are for calls that fail.
const RENEW_AFTER: Duration = Duration::from_secs(4 * 60 + 30);
/// Replacements are spread over this time, so that the shards of a fleet do not all subscribe
/// together.
const RENEW_SPREAD: Duration = Duration::from_secs(10);
/// The service sends an event about every five seconds, even if there are no records. A stream that
/// sends nothing for this long while it is awaited is dead, and no error will report that.
const SILENCE: Duration = Duration::from_secs(35);
/// The timeout of a call, up to the first frame of its reply.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// The service may have given up a subscription that was not read for this long because the processor
/// was busy: its end is expected.
const UNREAD: Duration = Duration::from_secs(5);
/// After this many subscriptions in a row without an event, a listing shows whether the shard has
/// ended.
const SILENT_SUBSCRIPTIONS: u32 = 3;

/// A subscription that the service has accepted.
#[derive(Debug)]
struct Session {
    /// When it was requested.
    sent: Instant,
    renew_at: Instant,
    /// When something was last read from it.
    read_at: Instant,
    has_spoken: bool,
    was_left_waiting: bool,
}

/// How a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// As expected: its time was over, or it was not read for long.
    Expected,
    /// A failure that should be reported.
    Failure,
}

/// The state of one shard's subscriptions.
#[derive(Debug)]
pub(super) struct SubscriptionSchedule {
    cursor: Cursor,
    session: Option<Session>,
    /// When the call in flight was made.
    calling: Option<Instant>,
    /// When the last call was made.
    called: Option<Instant>,
    due: Option<Instant>,
    /// Since when the socket has been awaited.
    parked: Option<Instant>,
    retry: Retry,
    flaps: Retry,
    silent: u32,
    rng: fastrand::Rng,
}

impl SubscriptionSchedule {
    pub(super) fn new(cursor: Cursor, rng: fastrand::Rng) -> Self {
        Self {
            cursor,
            session: None,
            calling: None,
            called: None,
            due: None,
            parked: None,
            retry: Retry::new(RETRY_FIRST, RETRY_MOST),
            flaps: Retry::new(RETRY_FIRST, LONGEST_FLAP_DELAY),
            silent: 0,
            rng,
        }
    }

    /// Returns the position of the next record.
    pub(super) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Records that the next event is awaited from `now` on.
    pub(super) fn parked(&mut self, now: Instant) {
        self.parked = Some(now);
        if let Some(session) = &mut self.session {
            session.was_left_waiting |= now.saturating_duration_since(session.read_at) >= UNREAD;
        }
    }

    /// Returns when to make the next call; `None` while one is in flight.
    pub(super) fn call_at(&self, now: Instant) -> Option<Instant> {
        if self.calling.is_some() {
            return None;
        }
        let wanted = self.session.as_ref().map_or(now, |session| session.renew_at);
        Some(self.due.map_or(wanted, |due| due.max(wanted)))
    }

    /// Returns before when no call may be made that may fail as the last one did.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Returns when the call in flight times out.
    pub(super) fn call_limit(&self) -> Option<Instant> {
        self.calling.map(|sent| sent + CALL_LIMIT)
    }

    /// Returns when the subscription has been silent for too long. Only the time during which it is
    /// awaited counts.
    pub(super) fn silence_limit(&self) -> Option<Instant> {
        self.session.as_ref().and(self.parked).map(|parked| parked + SILENCE)
    }

    /// Returns when the subscription was requested: its events are at least as new as that.
    pub(super) fn subscribed_at(&self) -> Option<Instant> {
        self.session.as_ref().map(|session| session.sent)
    }

    /// Records that a call is made.
    pub(super) fn calling(&mut self, now: Instant) {
        (self.calling, self.called) = (Some(now), Some(now));
        let floor = FLOOR.mul_f64(1.0 + self.rng.f64() / 5.0);
        self.due = Some(now + floor);
    }

    /// Records that the call was accepted; its subscription replaces the old one.
    pub(super) fn accepted(&mut self, now: Instant) {
        // The service's five minutes cannot have begun before the sending, so a renewal counted
        // from there is never too late.
        let sent = self.calling.take().unwrap_or(now);
        self.retry.succeeded();
        self.session = Some(Session {
            sent,
            renew_at: sent + RENEW_AFTER + RENEW_SPREAD.mul_f64(self.rng.f64()),
            read_at: now,
            has_spoken: false,
            was_left_waiting: false,
        });
        self.parked = Some(now);
    }

    /// Records that the call failed.
    pub(super) fn refused(&mut self, kind: ServiceErrorKind, now: Instant) {
        self.calling = None;
        // `NotReady` means that another subscription is too young to be replaced: `FLOOR` sets the
        // pace.
        if kind != ServiceErrorKind::NotReady {
            let delay = self.retry.delay(&mut self.rng);
            // Never earlier than `FLOOR` allows, which `calling` has set.
            self.due = self.due.max(Some(now + delay));
        }
    }

    /// Records that something other than the call itself failed: the next call waits.
    pub(super) fn failed(&mut self, now: Instant) {
        self.session = None;
        let delay = self.retry.delay(&mut self.rng);
        self.due = self.due.max(Some(now + delay));
    }

    /// Records an event of the subscription.
    pub(super) fn spoke(&mut self, now: Instant) {
        self.silent = 0;
        self.parked = Some(now);
        if let Some(session) = &mut self.session {
            (session.read_at, session.has_spoken) = (now, true);
            // Not at the first event: a subscription that is soon replaced delivers some events
            // too.
            if now.saturating_duration_since(session.sent) >= MIN_LIFETIME {
                self.flaps.succeeded();
            }
        }
    }

    /// Drops the records that an earlier subscription has delivered: a new one starts at the cursor
    /// at the time of its request.
    pub(super) fn drop_delivered(&self, records: &mut Vec<Record>) {
        let Cursor::After(last) = &self.cursor else { return };
        // The records are in order: if the first one is new, all are.
        if records.first().is_some_and(|first| first.sequence_number <= *last) {
            records.retain(|record| record.sequence_number > *last);
        }
    }

    /// Records that an event is returned to the caller: reading continues after its last record, or
    /// after the continuation that the service names, whichever is later.
    pub(super) fn hand_over(
        &mut self,
        last: Option<SequenceNumber>,
        continuation: Option<SequenceNumber>,
    ) {
        let before = match &self.cursor {
            Cursor::After(number) => Some(number.clone()),
            Cursor::Horizon | Cursor::Timestamp(_) | Cursor::At(_) => None,
        };
        // Never back: the first events of a new subscription repeat what was delivered meanwhile.
        if let Some(number) = last.max(continuation).max(before) {
            self.cursor = Cursor::After(number);
        }
    }

    /// Records that the subscription has ended, failed, or is dropped because it is silent.
    pub(super) fn ended(&mut self, is_clean: bool, now: Instant) -> End {
        let Some(session) = self.session.take() else { return End::Expected };
        if !session.has_spoken {
            self.silent += 1;
        }
        let lived = now.saturating_duration_since(session.sent);
        if session.was_left_waiting {
            return End::Expected;
        }
        if lived < MIN_LIFETIME {
            let delay = self.flaps.delay(&mut self.rng);
            self.due = self.due.max(Some(now + delay));
            return End::Failure;
        }
        if is_clean {
            return End::Expected;
        }
        // The cause may have ended all other subscriptions of a fleet too.
        let spread = FLOOR.mul_f64(self.rng.f64());
        self.due = self.due.max(Some(now + spread));
        End::Failure
    }

    /// Returns whether subscriptions remain without events, so that a listing has to tell what there
    /// is to read.
    pub(super) fn is_silent(&mut self) -> bool {
        let is_silent = self.silent >= SILENT_SUBSCRIPTIONS;
        if is_silent {
            self.silent = 0;
        }
        is_silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn schedule() -> SubscriptionSchedule {
        SubscriptionSchedule::new(Cursor::Horizon, fastrand::Rng::with_seed(7))
    }

    fn number(number: u64) -> SequenceNumber {
        number.to_string().parse().unwrap()
    }

    /// Returns a schedule whose subscription was accepted at `now`.
    fn subscribed(now: Instant) -> SubscriptionSchedule {
        let mut schedule = schedule();
        schedule.parked(now);
        schedule.calling(now);
        schedule.accepted(now);
        schedule
    }

    #[test]
    fn the_first_call_is_made_at_once() {
        let now = Instant::now();
        assert_eq!(schedule().call_at(now), Some(now));
    }

    #[test]
    fn no_two_calls_are_made_within_a_second_whatever_they_came_to() {
        use ServiceErrorKind::{Denied, Missing, NotReady, Throttled, Unavailable};
        let (mut schedule, mut now) = (schedule(), Instant::now());
        for kind in [NotReady, Throttled, Unavailable, Denied, Missing].repeat(10) {
            schedule.calling(now);
            let later = now + Duration::from_millis(50);
            schedule.refused(kind, later);
            let next = schedule.call_at(later).unwrap();
            assert!(next >= now + FLOOR, "{kind:?}");
            assert!(next <= later + RETRY_MOST, "{kind:?}: {:?}", next - later);
            schedule.calling(next);
            schedule.accepted(next);
            schedule.ended(true, next);
            assert!(schedule.call_at(next).unwrap() >= next + FLOOR, "accepted and ended");
            now = schedule.call_at(next).unwrap();
        }
    }

    #[test]
    fn a_place_that_is_taken_is_asked_for_every_second_however_often() {
        let (mut schedule, mut now) = (schedule(), Instant::now());
        for _ in 0..60 {
            schedule.calling(now);
            schedule.refused(ServiceErrorKind::NotReady, now);
            let next = schedule.call_at(now).unwrap();
            assert!(next - now <= FLOOR.mul_f64(1.2), "{:?}", next - now);
            now = next;
        }
    }

    #[test]
    fn two_that_take_the_place_from_one_another_do_it_less_and_less_often() {
        let (mut schedule, mut now) = (schedule(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..8 {
            schedule.calling(now);
            schedule.accepted(now);
            schedule.spoke(now);
            let dead = now + 6 * SECOND;
            assert_eq!(schedule.ended(false, dead), End::Failure);
            now = schedule.call_at(dead).unwrap();
            waits.push(now - dead);
        }
        assert!(waits[0] <= SECOND && waits[7] >= LONGEST_FLAP_DELAY / 2, "{waits:?}");
        schedule.calling(now);
        schedule.accepted(now);
        schedule.spoke(now + MINUTE);
        schedule.ended(false, now + MINUTE);
        assert!(
            schedule.call_at(now + MINUTE).unwrap() <= now + MINUTE + SECOND,
            "that was a long life"
        );
    }

    #[test]
    fn a_new_subscription_takes_the_place_of_the_old_one_before_the_service_ends_it() {
        for seed in 0..50 {
            let mut schedule =
                SubscriptionSchedule::new(Cursor::Horizon, fastrand::Rng::with_seed(seed));
            let start = Instant::now();
            schedule.calling(start);
            schedule.accepted(start);
            let due = schedule.call_at(start).unwrap() - start;
            assert!(due >= RENEW_AFTER && due <= 5 * MINUTE - CALL_LIMIT * 2, "{due:?}");
        }
    }

    #[test]
    fn the_end_after_five_minutes_is_natural_and_followed_at_once() {
        let start = Instant::now();
        let mut schedule = subscribed(start);
        schedule.spoke(start + 4 * MINUTE);
        let end = start + 5 * MINUTE;
        assert_eq!(schedule.ended(true, end), End::Expected);
        assert_eq!(schedule.call_at(end), Some(end));
    }

    #[test]
    fn only_the_time_on_the_socket_is_silence() {
        let start = Instant::now();
        let mut schedule = subscribed(start);
        assert_eq!(schedule.silence_limit(), Some(start + SILENCE));
        schedule.spoke(start + SECOND);
        // The processor was busy for ten minutes.
        let back = start + 10 * MINUTE;
        schedule.parked(back);
        assert_eq!(schedule.silence_limit(), Some(back + SILENCE));
    }

    #[test]
    fn the_death_of_a_subscription_that_nobody_read_is_natural_however_it_died() {
        let start = Instant::now();
        for (unread, end) in [(UNREAD, End::Expected), (SECOND, End::Failure)] {
            let mut schedule = subscribed(start);
            schedule.spoke(start + MINUTE);
            let back = start + MINUTE + unread;
            schedule.parked(back);
            assert_eq!(schedule.ended(false, back), end);
        }
    }

    #[test]
    fn reading_goes_on_behind_what_was_handed_over_and_never_before_it() {
        let mut schedule =
            SubscriptionSchedule::new(Cursor::At(number(5)), fastrand::Rng::with_seed(7));
        schedule.hand_over(None, None);
        assert_eq!(schedule.cursor, Cursor::At(number(5)));
        for (last, continuation, expected) in [
            (Some(5), Some(5), 5),
            (None, Some(9), 9),
            (Some(12), None, 12),
            (Some(20), Some(14), 20),
            (None, Some(3), 20),
        ] {
            schedule.hand_over(last.map(number), continuation.map(number));
            assert_eq!(schedule.cursor, Cursor::After(number(expected)));
        }
    }

    #[test]
    fn what_the_old_subscription_delivered_meanwhile_is_not_delivered_again() {
        let mut schedule = schedule();
        let all: Vec<_> = (1..5).map(|number| Record::numbered(number, 0)).collect();
        let left = |schedule: &SubscriptionSchedule| {
            let mut records = all.clone();
            schedule.drop_delivered(&mut records);
            records.len()
        };
        assert_eq!(left(&schedule), 4);
        schedule.hand_over(Some(number(2)), None);
        assert_eq!(left(&schedule), 2);
    }

    #[test]
    fn subscriptions_without_a_word_ask_for_a_listing() {
        let (mut schedule, now) = (schedule(), Instant::now());
        for expected in [false, false, true, false] {
            schedule.calling(now);
            schedule.accepted(now);
            schedule.ended(true, now);
            assert_eq!(schedule.is_silent(), expected);
        }
    }
}
