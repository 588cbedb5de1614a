//! Lines on stdout: plain text, with colour only on a terminal that wants it.
//!
//! No line is moved or overwritten, so the output reads the same in a file. A reader that leaves
//! does not stop the story, whose verdict is the exit code.

use std::env;
use std::io::{self, IsTerminal, Write};

/// What every terminal has.
pub(crate) const WIDTH: usize = 80;

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "1;32";
const RED: &str = "1;31";

/// Where the lines go.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    colour: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { colour: io::stdout().is_terminal() && !unwanted }
    }

    /// What happens now.
    pub(crate) fn act(&self, text: &str) {
        self.line(BOLD, &format!("\n== {text}"));
    }

    /// A command as one would type it.
    pub(crate) fn command(&self, line: &str, who: &str) {
        self.line("", &format!("   $ {line}"));
        self.line(DIM, &format!("     ({who})"));
    }

    /// Something worth knowing.
    pub(crate) fn say(&self, text: &str) {
        self.line("", &format!("   {text}"));
    }

    /// A line of the running picture; longer ones are cut.
    pub(crate) fn status(&self, text: &str) {
        self.line(DIM, &text.chars().take(WIDTH).collect::<String>());
    }

    pub(crate) fn good(&self, text: &str) {
        self.line(GREEN, &format!("   {text}"));
    }

    pub(crate) fn bad(&self, text: &str) {
        self.line(RED, &format!("   {text}"));
    }

    fn line(&self, colour: &str, text: &str) {
        let mut out = io::stdout().lock();
        let written = if self.colour && !colour.is_empty() {
            writeln!(out, "\x1b[{colour}m{text}\x1b[0m")
        } else {
            writeln!(out, "{text}")
        };
        written.and_then(|()| out.flush()).ok();
    }
}
