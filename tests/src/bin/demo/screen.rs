//! Lines on stdout: plain text, with colour only on a terminal that wants it.
//!
//! No line is moved or overwritten, so that the output reads the same in a file. A closed stdout
//! does not stop the demo, whose verdict is the exit code.

use std::env;
use std::io::{self, IsTerminal, Write};

/// The number of columns that the status lines are laid out for.
pub(crate) const WIDTH: usize = 80;

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "1;32";
const RED: &str = "1;31";

/// The output and its capabilities.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    colour: bool,
    /// The columns of the terminal; `None` if stdout is not a terminal.
    columns: Option<usize>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|value| value == "dumb");
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        // A terminal that does not know its size reports 0.
        let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        Self { colour: io::stdout().is_terminal() && !unwanted, columns }
    }

    /// Prints the heading of an act.
    pub(crate) fn act(&self, text: &str) {
        self.line(BOLD, &format!("\n== {text}"));
    }

    /// Prints a command line and its process.
    pub(crate) fn command(&self, line: &str, who: &str) {
        self.line("", &format!("   $ {line}"));
        self.line(DIM, &format!("     ({who})"));
    }

    /// Prints a remark.
    pub(crate) fn say(&self, text: &str) {
        self.line("", &format!("   {text}"));
    }

    /// Prints a status line, cut to one row of a terminal.
    pub(crate) fn status(&self, text: &str) {
        self.line(DIM, cut(text, self.columns));
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

fn cut(text: &str, columns: Option<usize>) -> &str {
    let end = columns.and_then(|columns| text.char_indices().nth(columns));
    end.map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_line_is_cut_to_the_width_of_a_terminal_and_stays_whole_elsewhere() {
        assert_eq!(cut("tail-1 [0] Shadowfax 5", Some(8)), "tail-1 [");
        assert_eq!(cut("größer", Some(4)), "größ");
        assert_eq!(cut("tail-1", Some(6)), "tail-1");
        let line = "Shadowfax ".repeat(30);
        assert_eq!(cut(&line, None), line);
    }
}
