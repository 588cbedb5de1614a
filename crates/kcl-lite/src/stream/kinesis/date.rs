//! The service's time, from the `Date` header of a reply.
//!
//! Never reads this machine's wall clock, which may be wrong by any amount.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::primitives::DateTime;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_types::date_time::Format;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::error::BoxError;
use crate::record::Timestamp;

/// By how much the clocks of the service's own machines may differ. The machine that replies writes
/// the header; those that store records write the arrival times.
const CLOCK_MARGIN: Duration = Duration::from_secs(1);

/// The service's time if a reply has no `Date`: earlier than every record, so that a start reads too
/// much rather than too little. No known endpoint omits the header. This machine's clock cannot
/// replace it: if it is ahead, records are lost.
const UNKNOWN_TIME_MS: i64 = 0;

/// The time of the service in a reply, and our instant when the reply arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeenDate {
    millis: i64,
    received: Instant,
}

impl SeenDate {
    /// Returns a time of the service that is not later than our instant `asked`.
    ///
    /// The reply was written at or before `received`, and the header is truncated to whole seconds,
    /// so it is not later than the service's time at `received`. The time that passed on our clock
    /// since `asked` is subtracted, so the result is not later than the service's time at `asked`.
    /// One more second is subtracted because the clocks of the service's machines differ.
    pub(super) fn when(self, asked: Instant) -> Timestamp {
        let back = self.received.duration_since(asked) + CLOCK_MARGIN;
        // Rounded up: too early repeats a record, too late loses one.
        let back = i64::try_from(back.as_micros().div_ceil(1_000)).unwrap_or(i64::MAX);
        Timestamp::from_millis(self.millis.saturating_sub(back).max(UNKNOWN_TIME_MS))
    }
}

/// An interceptor that reads the `Date` header of the replies to one call.
#[derive(Debug, Clone)]
pub(super) struct ServiceDate {
    seen: Arc<Mutex<Option<SeenDate>>>,
    clock: Arc<dyn Clock>,
}

impl ServiceDate {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { seen: Arc::default(), clock }
    }

    pub(super) fn take(&self) -> Option<SeenDate> {
        self.seen.lock().take()
    }
}

impl Intercept for ServiceDate {
    fn name(&self) -> &'static str {
        "ServiceDate"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let header = context.response().headers().get("date");
        let date = header.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        let millis = date.and_then(|date| date.to_millis().ok()).unwrap_or(UNKNOWN_TIME_MS);
        let seen = SeenDate { millis, received: self.clock.now() };
        *self.seen.lock() = Some(seen);
        Ok(())
    }
}

/// Converts a time of a reply. Replies give seconds as a floating-point number, which may be slightly
/// less than the intended millisecond.
pub(super) fn timestamp(time: &DateTime) -> Timestamp {
    let millis = (time.as_nanos() + 500_000).div_euclid(1_000_000);
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_becomes_a_time_before_the_question() {
        let asked = Instant::now();
        let seen = SeenDate { millis: 100_000, received: asked + Duration::from_micros(2_500_001) };
        assert_eq!(seen.when(asked), Timestamp::from_millis(100_000 - 2_501 - 1_000));
    }

    #[test]
    fn a_time_is_the_millisecond_that_was_meant() {
        for millis in (0..1_000).map(|it| 1_700_000_085_000 + it).chain([0, 1, 999]) {
            let seconds = millis as f64 / 1_000.0;
            assert_eq!(timestamp(&DateTime::from_secs_f64(seconds)).as_millis(), millis);
        }
    }
}
