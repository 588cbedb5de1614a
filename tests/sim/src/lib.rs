//! The simulation: a whole fleet of workers on virtual time, with seeded faults, and checks of
//! every promise against the observations of the world.
//!
//! One seed is one run. A [`Plan`] is drawn from it: settings, and a list of timed operations (kills,
//! freezes, faults of a link, resharding, moods of processors). [`run`] executes it on a
//! single-threaded runtime with paused time; the same plan gives the same trace, byte for byte. The
//! first broken promise ends the run as a [`Violation`]. [`shrink`](shrink::shrink) removes operations
//! while the promise stays broken.
//!
//! Never asks the library about its own success: the table, the stream and the processors are the
//! simulation's own, and the checks look only at those.

mod checks;
mod clock;
mod driver;
mod fleet;
mod machine;
pub mod mutants;
mod network;
mod plan;
mod processor;
mod reached;
pub mod seeded;
mod services;
pub mod shrink;
mod stream;
mod table;
mod trace;
mod wire;
mod world;

pub use checks::{Promise, Violation};
pub use driver::{Outcome, run};
pub use plan::{Operation, Plan, Tier};
pub use reached::{Counts, Situation};
pub use trace::Line;
