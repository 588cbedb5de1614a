//! The result table: each row with its target, and the fraction of the target that it uses.

use std::fmt;
use std::time::Duration;

/// The target of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// The 99th percentile is at most this.
    Most(f64),
    /// The value is close to that of a formula.
    Near(f64),
    /// None: the row is only printed.
    None,
}

/// One measure over all runs.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    what: String,
    target: Target,
    unit: &'static str,
    values: Vec<f64>,
}

/// The tolerance of a cost around its formula.
const NEAR: f64 = 0.1;

impl Row {
    pub(crate) fn seconds(what: &str, target: Target) -> Self {
        Self { what: what.to_owned(), target, unit: " s", values: Vec::new() }
    }

    pub(crate) fn count(what: &str, target: Target) -> Self {
        Self { unit: "", ..Self::seconds(what, target) }
    }

    /// Creates a row with a single value.
    pub(crate) fn one(what: String, value: f64, target: Target) -> Self {
        Self { what, target, unit: "", values: vec![value] }
    }

    pub(crate) fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    pub(crate) fn add_times(&mut self, times: impl IntoIterator<Item = Duration>) {
        self.values.extend(times.into_iter().map(|time| time.as_secs_f64()));
    }

    /// Returns a percentile of the values.
    fn quantile(&self, percent: usize) -> f64 {
        let mut values = self.values.clone();
        values.sort_unstable_by(f64::total_cmp);
        let rank = (percent * values.len()).div_ceil(100);
        values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// Returns whether the target is missed.
    pub(crate) fn is_missed(&self) -> bool {
        let p99 = self.quantile(99);
        match self.target {
            Target::Most(most) => p99 > most,
            Target::Near(formula) => p99 > formula * (1.0 + NEAR),
            Target::None => false,
        }
    }

    fn number(&self, value: f64) -> String {
        let is_whole = self.unit.is_empty() && value.fract() == 0.0;
        if is_whole { format!("{value:.0}") } else { format!("{value:.2}{}", self.unit) }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [50, 99, 100].map(|percent| self.quantile(percent));
        let (target, ratio) = match self.target {
            Target::Most(most) => (format!("≤ {}", self.number(most)), ratio(p99, most)),
            Target::Near(formula) => (format!("≈ {}", self.number(formula)), ratio(p99, formula)),
            Target::None => ("–".to_owned(), "–".to_owned()),
        };
        let missed = if self.is_missed() { " MISSED" } else { "" };
        let [p50, p99, max] = [p50, p99, max].map(|value| self.number(value));
        write!(
            f,
            "| {:<52} | {target:>10} | {p50:>9} | {p99:>9} | {max:>9} | {ratio:>5} |{missed}",
            self.what
        )
    }
}

fn ratio(value: f64, of: f64) -> String {
    if of == 0.0 { "–".to_owned() } else { format!("{:.2}", value / of) }
}

/// Prints the header of the table.
pub(crate) fn head() -> String {
    format!(
        "| {:<52} | {:>10} | {:>9} | {:>9} | {:>9} | {:>5} |\n|{}|{}|{}|{}|{}|{}|",
        "what",
        "target",
        "p50",
        "p99",
        "max",
        "ratio",
        "-".repeat(54),
        "-".repeat(11) + ":",
        "-".repeat(10) + ":",
        "-".repeat(10) + ":",
        "-".repeat(10) + ":",
        "-".repeat(6) + ":",
    )
}
