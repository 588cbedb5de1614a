//! Reads the files that describe edits of a source file, and makes the edits. Pure.
//!
//! `tests/sim/seeded/README.md` describes the format: a diff without line numbers.

use std::collections::{BTreeMap, BTreeSet};

/// The head of an edit that all bugs need.
const EVERY_BUG: &str = "every bug";
/// How the code of an edit asks whether its bug is on.
const HOOK: &str = "mutant::is(\"";

/// An edit of one place of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edit {
    /// The bugs that need it; empty if all do.
    pub(super) bugs: BTreeSet<String>,
    /// The line of its head, counted from 1.
    pub(super) line: usize,
    changes: Vec<Change>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Keep(String),
    Remove(String),
    Add(String),
}

/// Why an edit does not apply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its text occurs at this many places instead of one.
    Places(usize),
    /// Another edit removes one of the lines that it removes.
    Overlaps,
}

impl Edit {
    /// Parses the edits of one file.
    ///
    /// # Errors
    ///
    /// A line does not have the format; the message names it.
    pub(super) fn parse(text: &str) -> Result<Vec<Self>, String> {
        let mut edits: Vec<Self> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if let Some(head) = line.strip_prefix("@@ ") {
                let bugs = head.split(',').map(str::trim).filter(|name| *name != EVERY_BUG);
                let bugs = bugs.map(str::to_owned).collect();
                edits.push(Self { bugs, line: number, changes: Vec::new() });
                continue;
            }
            let change = match line.split_at_checked(1) {
                None => Change::Keep(String::new()),
                Some(("#", _)) => continue,
                Some((" ", rest)) => Change::Keep(rest.to_owned()),
                Some(("-", rest)) => Change::Remove(rest.to_owned()),
                Some(("+", rest)) => Change::Add(rest.to_owned()),
                Some(_) => {
                    let signs = "`@@ `, ` `, `-`, `+` or `#`";
                    return Err(format!("line {number} begins with none of {signs}: {line}"));
                }
            };
            match edits.last_mut() {
                Some(edit) => edit.changes.push(change),
                None if change == Change::Keep(String::new()) => {}
                None => return Err(format!("line {number} stands before the first `@@ `: {line}")),
            }
        }
        for edit in &mut edits {
            while edit.changes.last() == Some(&Change::Keep(String::new())) {
                edit.changes.pop();
            }
            edit.is_sensible()?;
        }
        Ok(edits)
    }

    fn is_sensible(&self) -> Result<(), String> {
        let changes_nothing = self.changes.iter().all(|it| matches!(it, Change::Keep(_)));
        let foreign: Vec<_> = self.hooks().difference(&self.bugs).cloned().collect();
        match () {
            () if changes_nothing => Err(format!("the edit in line {} changes nothing", self.line)),
            () if !foreign.is_empty() => {
                let names = foreign.join(", ");
                Err(format!(
                    "the edit in line {} asks for {names}, and does not name it",
                    self.line
                ))
            }
            () => Ok(()),
        }
    }

    /// Returns the bugs that the added code asks for.
    pub(super) fn hooks(&self) -> BTreeSet<String> {
        let added = self.changes.iter().filter_map(|change| match change {
            Change::Add(line) => Some(line),
            Change::Keep(_) | Change::Remove(_) => None,
        });
        let hooks = added.flat_map(|line| line.split(HOOK).skip(1));
        hooks.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
    }

    /// Returns the lines that have to occur at one place of the source.
    pub(super) fn wanted(&self) -> Vec<&str> {
        let lines = self.changes.iter().filter_map(|change| match change {
            Change::Keep(line) | Change::Remove(line) => Some(line.as_str()),
            Change::Add(_) => None,
        });
        lines.collect()
    }

    /// Returns the index of the only line of `source` at which the wanted text begins.
    fn place(&self, source: &[&str]) -> Result<usize, Fault> {
        let wanted = self.wanted();
        let last = source.len().checked_sub(wanted.len()).filter(|_| !wanted.is_empty());
        let starts = last.into_iter().flat_map(|last| 0..=last);
        let places: Vec<_> = starts.filter(|at| source[*at..].starts_with(&wanted)).collect();
        match places[..] {
            [place] => Ok(place),
            _ => Err(Fault::Places(places.len())),
        }
    }
}

/// Applies all `edits` to `source`. No edit sees the result of another one.
///
/// # Errors
///
/// Returns each edit that does not apply, with the reason.
pub(super) fn apply<'a>(source: &str, edits: &'a [Edit]) -> Result<String, Vec<(&'a Edit, Fault)>> {
    let lines: Vec<_> = source.lines().collect();
    let (mut removed, mut added) = (BTreeSet::new(), BTreeMap::<usize, Vec<&str>>::new());
    let mut faults = Vec::new();
    for edit in edits {
        let mut at = match edit.place(&lines) {
            Ok(place) => place,
            Err(fault) => {
                faults.push((edit, fault));
                continue;
            }
        };
        for change in &edit.changes {
            match change {
                Change::Add(line) => added.entry(at).or_default().push(line),
                Change::Keep(_) => at += 1,
                Change::Remove(_) => {
                    if !removed.insert(at) {
                        faults.push((edit, Fault::Overlaps));
                    }
                    at += 1;
                }
            }
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut edited = Vec::new();
    for at in 0..=lines.len() {
        edited.extend(added.remove(&at).unwrap_or_default());
        edited.extend(lines.get(at).filter(|_| !removed.contains(&at)));
    }
    Ok(edited.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "fn one() {\n    go();\n}\n\nfn two() {\n    go();\n}\n";

    fn edits(text: &str) -> Vec<Edit> {
        Edit::parse(text).unwrap()
    }

    fn faults(text: &str) -> Vec<Fault> {
        let edits = edits(text);
        apply(SOURCE, &edits).unwrap_err().into_iter().map(|(_, fault)| fault).collect()
    }

    #[test]
    fn edits_remove_and_add_lines_at_the_place_of_their_text() {
        let edits = edits(concat!(
            "# Why.\n",
            "@@ stays, goes\n",
            " fn two() {\n",
            "-    go();\n",
            "+    if !crate::mutant::is(\"stays\") {\n",
            "+        go();\n",
            "+    }\n",
            "\n",
            "@@ every bug\n",
            "+mod added;\n",
            " fn one() {\n",
        ));
        let names: Vec<_> = edits[0].bugs.iter().map(String::as_str).collect();
        assert_eq!((names, edits[0].line), (vec!["goes", "stays"], 2));
        assert!(edits[1].bugs.is_empty());
        assert_eq!(
            apply(SOURCE, &edits).unwrap(),
            "mod added;\nfn one() {\n    go();\n}\n\nfn two() {\n    \
             if !crate::mutant::is(\"stays\") {\n        go();\n    }\n}\n"
        );
    }

    #[test]
    fn a_blank_line_within_an_edit_is_one_of_the_source() {
        let edits = edits("@@ every bug\n }\n\n-fn two() {\n+fn three() {\n\n\n");
        assert!(apply(SOURCE, &edits).unwrap().contains("}\n\nfn three() {\n"));
    }

    #[test]
    fn a_text_that_is_missing_or_at_two_places_is_a_fault() {
        assert_eq!(faults("@@ a\n-fn three() {\n"), [Fault::Places(0)]);
        assert_eq!(faults("@@ a\n-    go();\n\n@@ b\n-}\n"), [Fault::Places(2), Fault::Places(2)]);
        // A part of a line is not a line.
        assert_eq!(faults("@@ a\n-go();\n"), [Fault::Places(0)]);
        assert_eq!(faults("@@ a\n+mod added;\n"), [Fault::Places(0)]);
    }

    #[test]
    fn a_line_is_removed_by_one_edit_only() {
        let twice = "@@ a\n-fn one() {\n+fn a() {\n\n@@ b\n-fn one() {\n+fn b() {\n";
        assert_eq!(faults(twice), [Fault::Overlaps]);
    }

    #[test]
    fn a_line_without_a_sign_an_edit_without_a_change_and_a_foreign_bug_are_errors() {
        let error = |text: &str| Edit::parse(text).unwrap_err();
        assert!(error("@@ a\nfn one() {\n").starts_with("line 2 begins with none of"));
        assert!(error("-fn one() {\n").starts_with("line 1 stands before the first"));
        assert_eq!(error("@@ a\n fn one() {\n"), "the edit in line 1 changes nothing");
        let foreign = error("@@ a\n+if crate::mutant::is(\"b\") {}\n fn one() {\n");
        assert_eq!(foreign, "the edit in line 1 asks for b, and does not name it");
    }
}
