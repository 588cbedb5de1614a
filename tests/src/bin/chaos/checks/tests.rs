//! Tests of each check: one history that it rejects and one that it accepts.
//!
//! A shard is a line of records (`a0 b0 a1` is key and number); a tenure is
//! `worker token start@begun: place@time ...`, with `|` before each batch. Times are seconds.

use super::*;
use crate::Settings;
use crate::evidence::Stored;
use crate::stage::{Row, Sample};

fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse().unwrap())
}

fn shard(id: &str, parents: &[&str], records: &str) -> StoredShard {
    let record = |(index, word): (usize, &str)| Stored {
        sequence: (index + 1).to_string().parse().unwrap(),
        key: word[..1].to_owned(),
        number: word[1..].parse().unwrap(),
        written: Some(Duration::ZERO),
    };
    StoredShard {
        id: id.to_owned(),
        parents: parents.iter().map(|&parent| parent.to_owned()).collect(),
        is_open: true,
        records: records.split_whitespace().enumerate().map(record).collect(),
    }
}

fn tenure(shard: &str, text: &str) -> Tenure {
    let (head, log) = text.split_once(": ").unwrap();
    let mut head = head.split_whitespace();
    let mut word = || head.next().unwrap();
    let (worker, token) = (word().to_owned(), word().parse().unwrap());
    let (start, begun) = word().split_once('@').unwrap();
    let mut tenure = Tenure {
        worker,
        shard: shard.to_owned(),
        token,
        reason: "Expired".to_owned(),
        start: start.parse().unwrap(),
        begun: seconds(begun),
        batches: Vec::new(),
        deliveries: Vec::new(),
        checkpoints: Vec::new(),
        released: None,
    };
    for word in log.split_whitespace() {
        let (what, at) = word.split_once('@').unwrap();
        let at = seconds(at);
        match what.split_at(1) {
            ("|", place) => {
                tenure.batches.push(at);
                tenure.deliveries.push((at, place.parse().unwrap()));
            }
            ("c", covered) => tenure.checkpoints.push((at, covered.parse().unwrap())),
            ("r", "") => tenure.released = Some(at),
            _ => tenure.deliveries.push((at, what.parse().unwrap())),
        }
    }
    tenure
}

fn evidence(shards: Vec<StoredShard>, tenures: Vec<Tenure>) -> Evidence {
    let settings = Settings {
        seed: 0,
        length: Duration::ZERO,
        lease: Duration::from_secs(2),
        keys: 2,
        interval: Duration::ZERO,
        fan_out: false,
        calm: false,
    };
    Evidence {
        settings,
        shards: shards.into_iter().map(|shard| (shard.id.clone(), shard)).collect(),
        tenures,
        samples: Vec::new(),
        failures: Vec::new(),
        timeline: Vec::new(),
    }
}

/// Returns the first words of the findings in one shard `s` with four records.
fn found(tenures: &[&str]) -> Vec<String> {
    let tenures = tenures.iter().map(|text| tenure("s", text)).collect();
    words(&evidence(vec![shard("s", &[], "a0 b0 a1 b1")], tenures))
}

fn words(evidence: &Evidence) -> Vec<String> {
    let word = |found: Finding| found.what.split([':', ' ']).next().unwrap().to_owned();
    findings(evidence).into_iter().map(word).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn one_owner_after_the_other_is_as_it_should_be() {
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 |2@2 3@2"]), NOTHING);
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 c1@2", "b 4 1@5: |1@6 2@6 3@6"]), NOTHING);
}

#[test]
fn a_record_that_nobody_processed_is_lost() {
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 2@1"]), ["LOST"]);
}

#[test]
fn a_record_that_waited_too_long_is_found() {
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 2@1 3@59"]), NOTHING);
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 2@1 3@61"]), ["a"]);
}

#[test]
fn an_owner_that_skips_is_found_even_if_another_fills_in() {
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 3@2", "b 2 0@3: |0@4 1@4 2@4 3@4"]), ["SKIPPED"]);
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 0@2 1@2 2@2 3@2"]), ["OUT"]);
}

#[test]
fn a_batch_under_an_old_token_is_a_second_owner_but_the_end_of_one_is_not() {
    let new = "b 4 0@5: |0@6 1@6 2@6 3@6";
    assert_eq!(found(&["a 1 0@0: |0@4 1@7", new]), NOTHING);
    assert_eq!(found(&["a 1 0@0: |0@4 |1@5.1", new]), ["TWO"]);
    assert_eq!(found(&["a 4 0@0: |0@4", new]), ["TWO"]);
}

#[test]
fn a_successor_starts_at_what_was_stored() {
    let old = "a 1 0@0: |0@1 1@1 c2@2";
    assert_eq!(found(&[old, "b 4 2@5: |2@6 3@6"]), NOTHING);
    assert_eq!(found(&[old, "b 4 1@5: |1@6 2@6 3@6"]), ["CHECKPOINT"]);
}

#[test]
fn a_record_that_comes_twice_is_found_where_nobody_was_hit() {
    let tenures = ["a 1 0@0: |0@1 1@1", "b 4 1@5: |1@6 2@6 3@6"];
    assert_eq!(found(&tenures), NOTHING);
    let tenures = tenures.iter().map(|text| tenure("s", text)).collect();
    let mut evidence = evidence(vec![shard("s", &[], "a0 b0 a1 b1")], tenures);
    evidence.settings.calm = true;
    assert_eq!(words(&evidence), ["REPEATED"]);
}

#[test]
fn a_release_leaves_nothing_to_repeat() {
    let new = "b 4 1@5: |1@6 2@6 3@6";
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 r@2", new]), ["REPEATED"]);
    assert_eq!(found(&["a 1 0@0: |0@1 r@2", new]), NOTHING);
}

#[test]
fn a_checkpoint_may_not_come_before_its_records() {
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 c2@1.5 |2@2 3@2"]), NOTHING);
    assert_eq!(found(&["a 1 0@0: |0@1 1@1 c3@1.5 |2@2 3@2"]), ["CHECKPOINT"]);
}

#[test]
fn order_holds_through_a_split() {
    let shards = || vec![shard("p", &[], "a0 b0 a1"), shard("q", &["p"], "a2 a3")];
    let parent = tenure("p", "a 1 0@0: |0@1 1@1 2@3");
    let child = |text| words(&evidence(shards(), vec![parent.clone(), tenure("q", text)]));
    assert_eq!(child("b 1 0@4: |0@4 1@4"), NOTHING);
    assert_eq!(child("b 1 0@2: |0@2 1@2"), ["OUT", "OUT"]);
}

#[test]
fn a_table_that_moves_back_is_found() {
    let rows = |counter, checkpoint: &str| {
        let row = Row { owner: None, counter, checkpoint: checkpoint.to_owned() };
        let at = Duration::from_secs(9);
        Sample { sent: at, at, rows: [("s".to_owned(), row)].into() }
    };
    let judged = |text: &str, samples: Vec<Sample>| {
        let tenures = vec![tenure("s", text)];
        let shards = vec![shard("s", &[], "a0 b0 a1 b1")];
        words(&Evidence { samples, ..evidence(shards, tenures) })
    };
    let silent = "a 1 0@0: |0@1 1@1 2@1 3@1";
    let good = vec![rows(1, "TRIM_HORIZON"), rows(2, "2"), rows(3, "4")];
    assert_eq!(judged(silent, good), NOTHING);
    assert_eq!(judged(silent, vec![rows(1, "3"), rows(2, "2")]), ["CHECKPOINT"]);
    assert_eq!(judged(silent, vec![rows(2, "3"), rows(1, "3")]), ["CHECKPOINT"]);
    assert_eq!(judged(silent, vec![rows(1, "what")]), ["the"]);
    let reported = "a 1 0@0: |0@1 1@1 2@1 3@1 c4@2";
    assert_eq!(judged(reported, vec![rows(1, "3")]), ["CHECKPOINT"]);
    assert_eq!(judged(reported, vec![rows(1, "4")]), NOTHING);
}
