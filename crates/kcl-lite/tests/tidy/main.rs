//! The architecture as tests: what must be absent from a file, checked by reading it.
//!
//! Reads the sources of the whole workspace as text. Never compiles or runs anything; a rule that
//! the compiler or clippy can check is not here.

#![expect(clippy::unwrap_used, reason = "a file that cannot be read fails the test")]

mod imports;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// What decides, and does nothing: relative to `crates/kcl-lite/src`. A folder stands for its files.
const DECISIONS: [&str; 15] = [
    "budget/ledger.rs",
    "checkpoint.rs",
    "position.rs",
    "record.rs",
    "shard",
    "lease/mod.rs",
    "lease/balance",
    "lease/expiry.rs",
    "lease/taking.rs",
    "lease/tenure.rs",
    "lease/timing.rs",
    "worker/liveness.rs",
    "worker/shard_task/gap.rs",
    "worker/shard_task/bisect.rs",
    "worker/state",
];

/// A source file without its `#[cfg(test)]` module, comments and documentation.
struct Source {
    /// From the root of the workspace.
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("tests.rs")
    }

    /// The lines of code that contain one of `words`.
    fn lines_with(&self, words: &[&str]) -> Vec<String> {
        let lines = self.code.lines().filter(|line| words.iter().any(|word| line.contains(word)));
        lines.map(|line| format!("{}: {}", self.path, line.trim())).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every file below `directory`, without what cargo, git and tools have made.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if ["target", ".git", "node_modules"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let root = root();
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let sources: Vec<_> = files(&root)
        .into_iter()
        .filter(is_rust)
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let code = code(&text);
            let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            Source { path, text, code }
        })
        .collect();
    assert!(sources.len() > 50, "the sources were found");
    sources
}

/// The library's own sources, without tests; paths relative to its `src`.
fn library() -> Vec<Source> {
    below("crates/kcl-lite/src/")
}

/// The sources below `prefix`, without tests; paths relative to it.
fn below(prefix: &str) -> Vec<Source> {
    let own = sources().into_iter().filter(|source| !source.is_test());
    own.filter_map(|source| {
        let path = source.path.strip_prefix(prefix)?.to_owned();
        Some(Source { path, ..source })
    })
    .collect()
}

/// Everything but the test modules, line by line, without what follows `//`.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_module = |next: &&str| next.contains("mod ");
        if line == "#[cfg(test)]" && lines.peek().is_some_and(is_module) {
            // rustfmt puts the brace that ends a module at the beginning of a line.
            let has_body = lines.next().is_some_and(|module| module.ends_with('{'));
            if has_body {
                lines.by_ref().find(|line| *line == "}");
            }
            continue;
        }
        code += line.split("//").next().unwrap_or_default();
        code.push('\n');
    }
    code
}

fn is_decision(path: &str) -> bool {
    DECISIONS.iter().any(|part| path == *part || path.starts_with(&format!("{part}/")))
}

#[track_caller]
fn none(rule: &str, found: impl IntoIterator<Item = String>) {
    let found: Vec<_> = found.into_iter().collect();
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn decisions_are_pure() {
    let decisions: Vec<_> = library().into_iter().filter(|s| is_decision(&s.path)).collect();
    for part in DECISIONS {
        let exists = decisions.iter().any(|s| s.path == part || s.path.starts_with(part));
        assert!(exists, "`{part}` is a decision, but is not there");
    }
    let mut found = Vec::new();
    for source in &decisions {
        let impure = [
            "aws_",
            "tokio::",
            "fastrand::",
            ".await",
            "async ",
            "Instant::now",
            "SystemTime::now",
        ];
        let own = match source.path.as_str() {
            // The window is shared with tokens that live in other tasks: they wake its shard.
            "checkpoint.rs" => &[
                "tokio::sync::Notify",
                "pub(crate) async fn changed",
                "self.changed.notified().await",
            ][..],
            // Only its calendar, to write a time out.
            "record.rs" => &["aws_smithy_types::DateTime", "aws_smithy_types::date_time::Format"],
            _ => &["tokio::time::Instant"],
        };
        let lines = source.lines_with(&impure).into_iter();
        found.extend(lines.filter(|line| !own.iter().any(|allowed| line.contains(allowed))));
    }
    none("a decision has no async, no clock, no chance, no SDK", found);
}

#[test]
fn each_sdk_is_named_where_it_is_called() {
    for (sdk, places) in [
        ("aws_sdk_dynamodb", &["lease/dynamo/"][..]),
        ("aws_sdk_kinesis", &["stream/kinesis/", "dead_letter/kinesis.rs"]),
        ("aws_smithy_http_client", &["aws/"]),
    ] {
        let elsewhere =
            library().into_iter().filter(|s| !places.iter().any(|p| s.path.starts_with(p)));
        let found = elsewhere.flat_map(|source| source.lines_with(&[sdk]));
        none(&format!("`{sdk}` is named in {places:?} only"), found);
    }
}

#[test]
fn the_commands_share_flags_signals_and_how_they_find_aws() {
    let is_command = |source: &Source| {
        let of = |name: &str| source.path.starts_with(&format!("crates/{name}/src/"));
        !source.is_test() && (of("producer") || of("consumer"))
    };
    let shared = [
        "tokio::signal",
        "try_parse_from(",
        "aws_smithy_http_client",
        "aws_config::defaults",
        "aws_config::environment",
        "aws_config::profile",
    ];
    let commands = sources().into_iter().filter(is_command);
    let found = commands.flat_map(|source| source.lines_with(&shared));
    none("`aws-command` parses flags, hears signals and finds AWS for both commands", found);
}

#[test]
fn only_retry_names_backoff() {
    let sources = sources().into_iter().filter(|source| !source.is_test());
    let others = sources.filter(|source| !source.path.ends_with("/retry.rs"));
    let found = others.flat_map(|s| s.lines_with(&["use backoff", "backoff::"]));
    none("the unmaintained crate is named in `retry.rs` only", found);
}

#[test]
fn tasks_are_started_by_the_worker_only() {
    let others = library().into_iter().filter(|source| !source.path.starts_with("worker/"));
    let found = others.flat_map(|s| s.lines_with(&["spawn(", "spawn_on(", "spawn_blocking("]));
    none("`spawn` appears under `worker/` only", found);
}

#[test]
fn the_library_has_no_trace_of_seeded_bugs() {
    let own = sources().into_iter().filter(|it| it.path.starts_with("crates/kcl-lite/src/"));
    let named = own.filter(|source| source.text.contains("mutant")).map(|source| source.path);
    none("seeded bugs are edits in tests/sim/seeded", named);
    let manifest = fs::read_to_string(root().join("crates/kcl-lite/Cargo.toml")).unwrap();
    assert!(!manifest.contains("mutant"), "the library has no feature for seeded bugs");
}

#[test]
fn the_global_generator_draws_names_only() {
    let global =
        ["fastrand::u64(", "fastrand::u32(", "fastrand::usize(", "fastrand::f64(", "Rng::new()"];
    let others = library().into_iter().filter(|source| source.path != "worker/builder.rs");
    none("chance is seeded", others.flat_map(|source| source.lines_with(&global)));
}

#[test]
fn every_source_file_says_what_it_owns() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//!"));
    none("a file opens with `//!`", silent.map(|source| source.path));
}

#[test]
fn every_select_is_biased() {
    let mut found = Vec::new();
    // Split, so that this line is not one itself.
    let select = concat!("select", "! {");
    for source in sources() {
        for after in source.text.split(select).skip(1) {
            let first = after.lines().map(str::trim).find(|line| !line.is_empty());
            if first != Some("biased;") {
                found.push(format!("{}: {}", source.path, first.unwrap_or_default()));
            }
        }
    }
    none("a select is biased", found);
}

#[test]
fn names_say_what_a_file_is_for() {
    let vague = ["utils", "util", "helpers", "helper", "common", "manager", "misc"];
    let stem = |source: &Source| Path::new(&source.path).file_stem()?.to_str().map(str::to_owned);
    let found =
        sources().into_iter().filter(|s| stem(s).is_some_and(|s| vague.contains(&s.as_str())));
    none("no file has a name for everything", found.map(|source| source.path));
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let places = ["/wo", "/ho", "/ro"].into_iter().zip(["rk/", "me/", "ot/"]);
    let places: Vec<_> = places.map(|(start, end)| format!("{start}{end}")).collect();
    let mut found = Vec::new();
    for path in files(&root()) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        // A URL or a path of a container may contain such a part, but does not begin with it.
        let begins = |line: &str, place: &str| {
            line.match_indices(place).any(|(at, _)| {
                line[..at].chars().next_back().is_none_or(|c| " \"'`(=:,".contains(c))
            })
        };
        for line in text.lines().filter(|line| places.iter().any(|place| begins(line, place))) {
            found.push(format!("{}: {}", path.display(), line.trim()));
        }
    }
    none("no file holds the path of a home or work directory", found);
}

/// The first block of Rust in a text.
fn example(markdown: &str) -> &str {
    markdown.split("```rust,no_run\n").nth(1).unwrap().split("```").next().unwrap()
}

#[test]
fn the_example_of_both_readmes_is_the_one_that_is_compiled() {
    let of = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (outer, inner) = (of("README.md"), of("crates/kcl-lite/README.md"));
    assert_eq!(example(&outer), example(&inner));
    assert_eq!(example(&outer).lines().count(), 22);
    assert!(of("crates/kcl-lite/src/lib.rs").contains(r#"#![doc = include_str!("../README.md")]"#));
}

#[test]
fn every_local_link_of_a_document_leads_somewhere() {
    let mut found = Vec::new();
    let documents = files(&root()).into_iter().filter(|p| p.extension().is_some_and(|e| e == "md"));
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let local = !link.contains("://") && !link.starts_with('#');
            if local && !document.parent().unwrap().join(link).exists() {
                found.push(format!("{}: {link}", document.display()));
            }
        }
    }
    none("a link leads somewhere", found);
}

#[test]
fn the_map_is_short_enough_to_be_read() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(map.lines().count() <= 320);
}

#[test]
fn every_published_crate_carries_the_licences() {
    let manifests = files(&root()).into_iter().filter(|path| path.ends_with("Cargo.toml"));
    let mut published = 0;
    for manifest in manifests {
        let text = fs::read_to_string(&manifest).unwrap();
        let is_package = text.lines().any(|line| line == "[package]");
        if !is_package || text.lines().any(|line| line == "publish = false") {
            continue;
        }
        published += 1;
        for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
            let copy = manifest.with_file_name(name);
            let licence = fs::read_to_string(&copy).unwrap_or_default();
            let original = fs::read_to_string(root().join(name)).unwrap();
            assert!(licence == original, "{} differs from {name} of the workspace", copy.display());
        }
        // Cargo packs what `include` names, if there is one.
        let include = text.lines().find(|line| line.starts_with("include ="));
        let packs = |include: &str| include.contains("/LICENSE-*");
        assert!(include.is_none_or(packs), "{} packs no licence", manifest.display());
    }
    assert!(published >= 3, "the crates were found");
}
