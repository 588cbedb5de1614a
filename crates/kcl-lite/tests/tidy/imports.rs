//! Which way modules point: every import of the library against the list in ARCHITECTURE.md, and no two
//! files of the library or of `local-aws` that use each other.
//!
//! Reads `use` declarations and paths that begin with `crate`. A `pub use` is part of an interface and no
//! dependency, so it does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::{Source, below, library, none, root};

/// What each file of a crate uses of the others; a file is named by its path without `.rs` and `/mod`.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// The name of a module's file, as the list in ARCHITECTURE.md writes it.
fn name(path: &str) -> String {
    let stem = path.trim_end_matches(".rs");
    stem.strip_suffix("/mod").unwrap_or(stem).to_owned()
}

/// Splits `a::{b, c::{d, e}}` into its paths.
fn paths(tree: &str) -> Vec<String> {
    let Some((before, inside)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or_default().trim().to_owned()];
    };
    let inside = inside.trim_end().strip_suffix('}').unwrap_or(inside);
    let (mut depth, mut part, mut parts) = (0, String::new(), Vec::new());
    for char in inside.chars() {
        depth += i32::from(char == '{') - i32::from(char == '}');
        if char == ',' && depth == 0 {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(char);
        }
    }
    parts.push(part);
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| paths(&format!("{}{}", before.trim(), part.trim()))).collect()
}

/// The file that `path` leads to from the file `from`, if it leads into the same crate.
fn target(path: &str, from: &str, is_folder: bool, files: &BTreeSet<String>) -> Option<String> {
    let mut segments = path.split("::").peekable();
    let mut place: Vec<&str> = from.split('/').collect();
    match *segments.peek()? {
        "crate" => {
            segments.next();
            place.clear();
        }
        "self" | "super" => {
            while let Some(step) = segments.next_if(|step| ["self", "super"].contains(step)) {
                if step == "super" {
                    place.pop();
                }
            }
        }
        child => {
            let child = format!("{from}/{child}");
            if !is_folder || !files.contains(&child) {
                return None;
            }
        }
    }
    // As deep as there are files; what is left is an item of the last one.
    let mut found = (files.contains(&place.join("/"))).then(|| place.join("/"));
    for segment in segments {
        place.push(segment);
        if !files.contains(&place.join("/")) {
            break;
        }
        found = Some(place.join("/"));
    }
    found
}

fn imports(sources: &[Source]) -> Imports {
    let files: BTreeSet<_> = sources.iter().map(|source| name(&source.path)).collect();
    let mut imports = Imports::new();
    for source in sources {
        let from = name(&source.path);
        let is_folder = source.path.ends_with("/mod.rs");
        let mut uses = BTreeSet::new();
        let mut rest = source.code.as_str();
        let mut others = String::new();
        // Declarations first, because they span lines; what is left is searched for paths.
        while let Some(at) = rest.find("use ") {
            let line = rest[..at].rsplit('\n').next().unwrap_or_default();
            let is_first = line.trim().is_empty() || line == ";";
            let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
            if is_first {
                for path in paths(&rest[at + "use ".len()..end]) {
                    uses.extend(target(&path, &from, is_folder, &files));
                }
                others += &rest[..at];
                rest = &rest[end..];
            } else {
                others += &rest[..at + "use ".len()];
                rest = &rest[at + "use ".len()..];
            }
        }
        others += rest;
        let ends = |char: char| !char.is_alphanumeric() && char != '_' && char != ':';
        for (at, _) in others.match_indices("crate::") {
            // The visibility `pub(in crate::…)` uses nothing.
            if !others[..at].ends_with("in ") && !others[..at].ends_with("pub use ") {
                let path = others[at..].split(ends).next().unwrap_or_default();
                uses.extend(target(path, &from, is_folder, &files));
            }
        }
        uses.remove(&from);
        imports.insert(from, uses);
    }
    imports
}

/// The library without what is compiled for tests only.
fn compiled() -> Vec<Source> {
    let for_tests = ["lease/model/", "lease/interleavings.rs"];
    let is_compiled = |source: &Source| !for_tests.iter().any(|it| source.path.starts_with(it));
    library().into_iter().filter(is_compiled).collect()
}

/// The rows of the list, from the top, each with the names of its modules.
fn rows() -> Vec<(String, Vec<String>)> {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let list = map.split("### Which way modules may point").nth(1).unwrap();
    let list = list.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let row = |line: &str| {
        let (row, modules) = line.split_once(' ').unwrap();
        let modules = modules.split('·').flat_map(|entry| match entry.split_once('{') {
            Some((before, inside)) => {
                let inside = inside.trim().trim_end_matches('}').split(',');
                inside.map(|part| format!("{}{part}", before.trim())).collect::<Vec<_>>()
            }
            None => vec![entry.trim().to_owned()],
        });
        (row.to_owned(), modules.collect())
    };
    list.lines().map(row).collect()
}

/// The row of a file: that of the longest entry that is the file, or a folder that it is in. An entry that
/// ends in `/mod` is that file alone.
fn row_of(file: &str, rows: &[(String, Vec<String>)]) -> Option<usize> {
    let entries = rows
        .iter()
        .enumerate()
        .flat_map(|(row, (_, entries))| entries.iter().map(move |entry| (row, entry.as_str())));
    let fitting = entries.filter(|(_, entry)| {
        let alone = entry.strip_suffix("/mod");
        alone.map_or(file == *entry || file.starts_with(&format!("{entry}/")), |it| it == file)
    });
    fitting.max_by_key(|(_, entry)| entry.len()).map(|(row, _)| row)
}

/// The imports that point down the list, and the files that it does not name.
fn against_the_list(imports: &Imports, rows: &[(String, Vec<String>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (file, uses) in imports {
        let Some(row) = row_of(file, rows) else {
            found.push(format!("`{file}` is not in the list"));
            continue;
        };
        for used in uses {
            let below = row_of(used, rows).filter(|below| *below > row);
            found.extend(below.map(|below| {
                format!("`{file}` ({}) uses `{used}` ({})", rows[row].0, rows[below].0)
            }));
        }
    }
    found
}

/// Files that can be reached from themselves.
fn circles(imports: &Imports) -> Vec<String> {
    let reachable = |from: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for used in imports.get(file).into_iter().flatten() {
                if seen.insert(used) {
                    open.push(used);
                }
            }
        }
        seen
    };
    imports.keys().filter(|file| reachable(file).contains(file)).cloned().collect()
}

#[test]
fn every_import_of_the_library_points_up_the_list_of_the_map() {
    let (imports, rows) = (imports(&compiled()), rows());
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 300, "the imports were found");
    for (_, modules) in &rows {
        for module in modules {
            let file = module.trim_end_matches("/mod");
            let exists = imports.keys().any(|it| it == file || it.starts_with(&format!("{file}/")));
            assert!(exists, "the list names `{module}`, which is not there");
        }
    }
    none("an import points up the list in ARCHITECTURE.md", against_the_list(&imports, &rows));
}

#[test]
fn no_two_files_of_the_library_or_of_local_aws_use_each_other() {
    let services = below("crates/local-aws/src/");
    for (of, sources) in [("kcl-lite", compiled()), ("local-aws", services)] {
        none(&format!("{of} has no circle of imports"), circles(&imports(&sources)));
    }
}

#[test]
fn an_import_that_points_down_a_missing_file_and_a_circle_are_found() {
    let source = |path: &str, code: &str| Source {
        path: path.to_owned(),
        text: String::new(),
        code: code.to_owned(),
    };
    let sources = [
        source("data.rs", "use crate::tasks::{self, run as go};\n"),
        source("tasks/mod.rs", "mod one;\nuse one::One;\npub(in crate::tasks) fn of() {}\n"),
        source("tasks/one.rs", "fn go() { super::two::act(); crate::data::read() }\n"),
        source("tasks/two.rs", "use super::one;\npub use crate::other::Other;\n"),
        source("other.rs", ""),
    ];
    let row = |name: &str, modules: &[&str]| {
        (name.to_owned(), modules.iter().map(|it| (*it).to_owned()).collect())
    };
    let rows = [row("data", &["data"]), row("tasks", &["tasks"])];
    let imports = imports(&sources);
    assert_eq!(
        against_the_list(&imports, &rows),
        ["`data` (data) uses `tasks` (tasks)", "`other` is not in the list"]
    );
    assert_eq!(circles(&imports), ["data", "tasks", "tasks/one"]);
}
