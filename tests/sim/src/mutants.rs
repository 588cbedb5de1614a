//! The seeded bugs of the library, and which of them the simulation has found.
