//! The output of the command: periods and the summary on stdout, everything else as lines on
//! stderr.
//!
//! Counts records and formats the counts; the instant comes as an argument. A reader that closes
//! stdout ends the ride quietly; a closed stderr changes nothing.

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::Instant;

/// Time between two status lines of a busy producer.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// The same notice about a retried call appears once within this time, and no two notices within a
/// second: a producer that is faster than its stream would otherwise write one for every request.
const NOTICE_EVERY: Duration = Duration::from_secs(30);
const NOTICES_APART: Duration = Duration::from_secs(1);

/// Records stored and records that had to be sent again since the start of an interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tally {
    started: Instant,
    pub(crate) sent: u64,
    /// Kinesis records that contain several records each.
    pub(crate) aggregates: u64,
    /// Records that were refused, or sent without a reply; each is sent again.
    pub(crate) failures: u64,
}

impl Tally {
    pub(crate) fn starting(now: Instant) -> Self {
        Self { started: now, sent: 0, aggregates: 0, failures: 0 }
    }

    /// Returns the counts and the mean rate until `now`.
    fn line(&self, now: Instant) -> String {
        let seconds = now.saturating_duration_since(self.started).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people, not for arithmetic")]
        let rate = if seconds > 0.0 { self.sent as f64 / seconds } else { 0.0 };
        let Self { sent, aggregates, failures, .. } = self;
        let packed = match aggregates {
            0 => String::new(),
            some => format!(", {some} aggregates"),
        };
        format!(
            "{sent} records in {seconds:.1} s, {rate:.1} records/s, {failures} failures{packed}"
        )
    }
}

/// The two outputs: stdout and stderr.
pub(crate) struct Console<'a> {
    out: &'a mut dyn Write,
    notes: &'a mut dyn Write,
    /// Whether both are the same terminal, so that a note must end the row of periods first.
    shared: bool,
    in_row: bool,
    /// Counts since the last status line.
    window: Tally,
    last_notice: Option<(String, Instant)>,
}

impl std::fmt::Debug for Console<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl<'a> Console<'a> {
    pub(crate) fn new(
        out: &'a mut dyn Write,
        notes: &'a mut dyn Write,
        shared: bool,
        now: Instant,
    ) -> Self {
        let window = Tally::starting(now);
        Self { out, notes, shared, in_row: false, window, last_notice: None }
    }

    /// Writes the period for one request that stored records.
    ///
    /// # Errors
    ///
    /// Stdout cannot be written.
    pub(crate) fn period(&mut self) -> io::Result<()> {
        self.in_row = true;
        self.out.write_all(b".")?;
        self.out.flush()
    }

    /// Writes a line to stderr.
    pub(crate) fn note(&mut self, line: &str) {
        let row_end = if self.shared && std::mem::take(&mut self.in_row) { "\n" } else { "" };
        // A closed stderr is no reason to stop sending.
        writeln!(self.notes, "{row_end}producer: {line}").ok();
    }

    /// Writes a line that could repeat many times a second: at once, and then at most once per
    /// [`NOTICE_EVERY`].
    pub(crate) fn notice(&mut self, line: &str, now: Instant) {
        if let Some((last, at)) = &self.last_notice {
            let apart = if last == line { NOTICE_EVERY } else { NOTICES_APART };
            if now < *at + apart {
                return;
            }
        }
        self.last_notice = Some((line.to_owned(), now));
        self.note(line);
    }

    /// Writes a status line if the last one is long enough ago.
    pub(crate) fn status_if_due(&mut self, tally: &Tally, now: Instant) {
        if now < self.window.started + STATUS_EVERY {
            return;
        }
        let since = Tally {
            started: self.window.started,
            sent: tally.sent - self.window.sent,
            aggregates: tally.aggregates - self.window.aggregates,
            failures: tally.failures - self.window.failures,
        };
        self.note(&since.line(now));
        self.window = Tally { started: now, ..*tally };
    }

    /// Ends the row of periods and writes the summary.
    ///
    /// # Errors
    ///
    /// Stdout cannot be written.
    pub(crate) fn sum(&mut self, tally: &Tally, now: Instant) -> io::Result<()> {
        self.in_row = false;
        writeln!(self.out, "\nsent {} records", tally.sent)?;
        self.out.flush()?;
        self.note(&tally.line(now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(shared: bool, act: impl FnOnce(&mut Console<'_>, Instant)) -> (String, String) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let now = Instant::now();
        act(&mut Console::new(&mut out, &mut notes, shared, now), now);
        (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    #[test]
    fn the_end_closes_the_row_and_tells_the_rate() {
        let (out, notes) = written(false, |console, now| {
            console.period().unwrap();
            console.period().unwrap();
            let tally = Tally { sent: 2, failures: 1, ..Tally::starting(now) };
            assert!(!tally.line(now).contains("aggregates"));
            console.sum(&tally, now + Duration::from_secs(4)).unwrap();
        });
        assert_eq!(out, "..\nsent 2 records\n");
        assert_eq!(notes, "producer: 2 records in 4.0 s, 0.5 records/s, 1 failures\n");
    }

    #[test]
    fn a_note_leaves_the_row_of_periods_only_on_a_shared_terminal() {
        for (shared, expected) in
            [(true, "\nproducer: a\nproducer: b\n"), (false, "producer: a\nproducer: b\n")]
        {
            let (_, notes) = written(shared, |console, _| {
                console.period().unwrap();
                console.note("a");
                console.note("b");
            });
            assert_eq!(notes, expected);
        }
    }

    #[test]
    fn a_notice_appears_at_once_and_seldom_again() {
        let (_, notes) = written(false, |console, now| {
            for (second, line) in [(0, "a"), (1, "a"), (29, "a"), (30, "a"), (30, "b"), (31, "b")] {
                console.notice(line, now + Duration::from_secs(second));
            }
        });
        assert_eq!(notes, "producer: a\nproducer: a\nproducer: b\n");
    }

    #[test]
    fn a_status_line_tells_of_the_time_since_the_last_one() {
        let (_, notes) = written(false, |console, now| {
            let mut tally = Tally { sent: 100, failures: 2, ..Tally::starting(now) };
            console.status_if_due(&tally, now + Duration::from_secs(9));
            console.status_if_due(&tally, now + Duration::from_secs(10));
            tally.sent = 400;
            console.status_if_due(&tally, now + Duration::from_secs(20));
        });
        assert_eq!(
            notes,
            "producer: 100 records in 10.0 s, 10.0 records/s, 2 failures\n\
             producer: 300 records in 10.0 s, 30.0 records/s, 0 failures\n"
        );
    }
}
