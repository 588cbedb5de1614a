//! The trace of a run, line by line: always hashed, kept on request.
//!
//! The hash covers the whole text, so that two runs with the same hash took the same course.

use std::fmt::{self, Write as _};
use std::time::Duration;

/// One line of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The time since the beginning of the run.
    pub at: Duration,
    /// The worker's incarnation, or another actor.
    pub who: String,
    /// The event.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3}  {:<8} {}", self.at.as_secs_f64(), self.who, self.text)
    }
}

/// The trace of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    count: u64,
    keep: bool,
    lines: Vec<Line>,
    scratch: String,
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, keep, ..Self::default() }
    }

    pub(crate) fn add(&mut self, at: Duration, who: &dyn fmt::Display, text: fmt::Arguments<'_>) {
        self.scratch.clear();
        write!(self.scratch, "{} {who} {text}", at.as_nanos()).expect("a string takes any text");
        for byte in self.scratch.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.count += 1;
        if self.keep {
            self.lines.push(Line { at, who: who.to_string(), text: text.to_string() });
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn take_lines(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.lines)
    }
}
