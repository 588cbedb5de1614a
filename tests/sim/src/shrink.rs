//! The shrinking of a failing plan: removes operations while the same promise stays broken.

use crate::checks::Promise;
use crate::driver::run;
use crate::plan::Plan;

/// Returns the numbers of the operations that are needed to break `promise`, and the number of runs
/// it took.
#[must_use]
pub fn shrink(plan: &Plan, promise: Promise) -> (Vec<usize>, usize) {
    let mut kept: Vec<usize> = (0..plan.operations.len()).collect();
    let mut runs = 0;
    let mut fails = |numbers: &[usize]| {
        runs += 1;
        run(&plan.keeping(numbers), false).violation.is_some_and(|it| it.promise == promise)
    };
    let mut size = kept.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < kept.len() {
            let mut fewer = kept.clone();
            fewer.drain(at..(at + size).min(kept.len()));
            if fails(&fewer) {
                kept = fewer;
            } else {
                at += size;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    (kept, runs)
}
