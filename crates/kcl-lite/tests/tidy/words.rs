//! The vocabulary: phrases for which the glossary in ARCHITECTURE.md has a term do not come back.
//!
//! Reads documents, sources, tests and scripts as text. A name of a test or of a seeded bug is text, too.

use std::fs;

use crate::{files, none, root};

/// What is not written here, and the term that is.
const PHRASES: [(&str, &str); 24] = [
    ("made again", "re-created"),
    ("whoever", "the worker that, the caller"),
    ("to mend", "to repair"),
    ("mended", "repaired"),
    ("put aside", "dead-lettered"),
    ("puts aside", "dead-letters"),
    ("for ever", "indefinitely"),
    ("in good order", "gracefully"),
    ("given back", "released, returned"),
    ("gives back", "releases, returns"),
    ("give back", "release, return"),
    ("gave back", "released, returned"),
    ("let go", "release"),
    ("lets go", "releases"),
    ("letting go", "releasing"),
    ("tried again", "retried"),
    ("is told", "is reported"),
    ("are told", "are reported"),
    ("tells of", "reports"),
    ("makes way", "is replaced"),
    ("of its like", "of its peers"),
    ("foreign record", "misrouted record"),
    ("a culprit", "a poison record"),
    ("no news of", "nothing about"),
];

#[test]
fn no_file_uses_a_phrase_for_which_there_is_a_term() {
    let own = root().join("crates/kcl-lite/tests/tidy/words.rs");
    let mut found = Vec::new();
    for path in files(&root()).into_iter().filter(|path| *path != own) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        // A phrase may be broken by the end of a line, and by the mark of a comment behind it.
        let words = text.lines().enumerate().flat_map(|(number, line)| {
            let line = line.trim_start().trim_start_matches(['/', '!', '#', '>']);
            line.split_whitespace().map(move |word| (number + 1, word.to_lowercase()))
        });
        let words: Vec<_> = words.collect();
        for (phrase, term) in PHRASES {
            let phrase_words: Vec<_> = phrase.split(' ').collect();
            for window in words.windows(phrase_words.len()) {
                let is_last = |at: usize| at + 1 == phrase_words.len();
                let is_match = window.iter().zip(&phrase_words).enumerate().all(|(at, pair)| {
                    let ((_, word), phrase_word) = pair;
                    let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
                    let rest = word.strip_prefix(phrase_word);
                    rest.is_some_and(|rest| {
                        let ends = rest.chars().next().is_none_or(|c| !c.is_alphanumeric());
                        if is_last(at) { ends || rest == "s" } else { rest.is_empty() }
                    })
                });
                if is_match {
                    let place = path.strip_prefix(root()).unwrap().display();
                    found.push(format!("{place}:{}: `{phrase}`: {term}", window[0].0));
                }
            }
        }
    }
    none("the glossary has a term for it", found);
}
