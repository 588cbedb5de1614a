//! The switch of the seeded bugs: a thread runs with one of them at most.
//!
//! Exists only in the copy of the workspace that `sim --mutants` builds.

use std::cell::Cell;

thread_local! {
    static CHOSEN: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Switches the bug `name` on for this thread, or all off.
pub fn choose(name: Option<&'static str>) {
    CHOSEN.set(name);
}

/// Whether the bug `name` is on.
pub(crate) fn is(name: &str) -> bool {
    CHOSEN.get() == Some(name)
}

/// Whether any bug is on. Then assertions are silent, because the simulation has to find the bug.
pub(crate) fn is_any() -> bool {
    CHOSEN.get().is_some()
}
