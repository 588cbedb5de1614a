//! Lines on stdout: plain text, with colour only on a terminal that wants it.
//!
//! No line is moved or overwritten, so the output reads the same in a file. A reader that leaves
//! does not stop the story, whose verdict is the exit code.

use std::env;
use std::io::{self, IsTerminal, Write};

/// The columns that the running picture is laid out for.
pub(crate) const WIDTH: usize = 80;

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "1;32";
const RED: &str = "1;31";

/// Where the lines go.
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
        // A terminal that does not know its size says 0.
        let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        Self { colour: io::stdout().is_terminal() && !unwanted, columns }
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

    /// A line of the running picture, which a terminal gets in one row.
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
