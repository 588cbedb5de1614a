//! The evidence: journals, stream and lease table, combined into tenures that can be judged.
//!
//! A record is identified by its place in its shard, so that order becomes arithmetic. Pure except
//! for reading the journals. Never judges; data that cannot be assigned is a [`Finding`].

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_kinesis::types::{Record, Shard};
use kcl_lite::{Checkpoint, SequenceNumber};

use crate::Settings;
use crate::journal::{self, Entry, What};
use crate::stage::{Log, Row, Sample, Written};

/// A violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) at: Duration,
    pub(crate) shard: Option<String>,
    pub(crate) what: String,
}

/// A shard and its records in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredShard {
    pub(crate) id: String,
    pub(crate) parents: Vec<String>,
    pub(crate) is_open: bool,
    pub(crate) records: Vec<Stored>,
}

/// A record in its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) sequence: SequenceNumber,
    pub(crate) key: String,
    /// The number of the record among those of its key, in the order written.
    pub(crate) number: u64,
    /// When the writer received the confirmation that it was stored.
    pub(crate) written: Option<Duration>,
}

impl StoredShard {
    /// Converts the service's data.
    ///
    /// # Errors
    ///
    /// The data lack something that every shard and record has.
    pub(crate) fn of(shard: &Shard, records: &[Record], written: &Written) -> Result<Self> {
        let id = shard.shard_id().to_owned();
        let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
        let record = |record: &Record| {
            let sequence = record.sequence_number().to_owned();
            Ok(Stored {
                key: record.partition_key().unwrap_or_default().to_owned(),
                number: std::str::from_utf8(record.data().as_ref())?.parse()?,
                written: written.get(&(id.clone(), sequence.clone())).copied(),
                sequence: SequenceNumber::from_string(sequence)?,
            })
        };
        let range = shard.sequence_number_range().context("a shard has a sequence range")?;
        Ok(Self {
            parents: parents.into_iter().flatten().map(str::to_owned).collect(),
            is_open: range.ending_sequence_number().is_none(),
            records: records.iter().map(record).collect::<Result<_>>()?,
            id,
        })
    }

    /// Returns whether its lease shows that everything was processed. The lease of a closed shard
    /// may have been deleted, and a shard without records needs none.
    pub(crate) fn is_done(&self, row: Option<&Row>) -> bool {
        let Some(checkpoint) = row.and_then(|row| Checkpoint::parse(&row.checkpoint, 0).ok())
        else {
            return row.is_none() && (!self.is_open || self.records.is_empty());
        };
        if !self.is_open {
            return checkpoint.is_shard_end();
        }
        self.covered(&checkpoint) == self.records.len()
    }

    /// Returns how many of its records a checkpoint covers.
    pub(crate) fn covered(&self, checkpoint: &Checkpoint) -> usize {
        match checkpoint {
            Checkpoint::ShardEnd => self.records.len(),
            Checkpoint::At(position) => {
                self.records.partition_point(|record| record.sequence <= position.sequence_number)
            }
            Checkpoint::AtTimestamp | Checkpoint::TrimHorizon | Checkpoint::Latest => 0,
        }
    }
}

/// One worker's tenure of one shard.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tenure {
    /// The process.
    pub(crate) worker: String,
    pub(crate) shard: String,
    pub(crate) token: u64,
    /// Why the lease was taken.
    pub(crate) reason: String,
    /// How many records its first checkpoint covers.
    pub(crate) start: usize,
    pub(crate) begun: Duration,
    /// When each batch began.
    pub(crate) batches: Vec<Duration>,
    /// When each record was processed, by its place in the shard.
    pub(crate) deliveries: Vec<(Duration, usize)>,
    /// When it was known that this many records are checkpointed.
    pub(crate) checkpoints: Vec<(Duration, usize)>,
    /// When it was released after a drain.
    pub(crate) released: Option<Duration>,
}

/// All data of a run.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) settings: Settings,
    pub(crate) shards: BTreeMap<String, StoredShard>,
    /// Ordered by shard and token.
    pub(crate) tenures: Vec<Tenure>,
    /// In the order in which they were taken.
    pub(crate) samples: Vec<Sample>,
    /// Violations found while the evidence was gathered.
    pub(crate) failures: Vec<Finding>,
    /// All journals and the log of this process, by time, each line with its process.
    pub(crate) timeline: Vec<(String, Entry)>,
}

impl Evidence {
    /// Reads the journals in `directory` and combines them with the other data.
    ///
    /// # Errors
    ///
    /// A journal cannot be read.
    pub(crate) fn gather(
        directory: &Path,
        settings: Settings,
        stored: Vec<StoredShard>,
        samples: Vec<Sample>,
        log: &Log,
    ) -> Result<Self> {
        let mut evidence = Self {
            settings,
            shards: stored.into_iter().map(|shard| (shard.id.clone(), shard)).collect(),
            tenures: Vec::new(),
            samples,
            failures: Vec::new(),
            timeline: Vec::new(),
        };
        for entry in log.failures() {
            if let What::Reported { text } = entry.what {
                evidence.failures.push(Finding { at: entry.at, shard: entry.shard, what: text });
            }
        }
        for file in std::fs::read_dir(directory)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                let worker = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let entries = journal::read(&path)?;
                evidence.add_journal(&worker, &entries);
                evidence.timeline.extend(entries.into_iter().map(|entry| (worker.clone(), entry)));
            }
        }
        evidence.timeline.extend(log.entries().into_iter().map(|entry| ("chaos".into(), entry)));
        evidence.timeline.sort_by_key(|(_, entry)| entry.at);
        evidence.tenures.sort_by(|a, b| (&a.shard, a.token).cmp(&(&b.shard, b.token)));
        Ok(evidence)
    }

    /// Adds the tenures in a process's journal.
    pub(crate) fn add_journal(&mut self, worker: &str, entries: &[Entry]) {
        let mut reasons: BTreeMap<&str, &str> = BTreeMap::new();
        // The current tenure of each shard: a process has at most one at a time.
        let mut open: BTreeMap<&str, Tenure> = BTreeMap::new();
        for entry in entries {
            let Some(id) = entry.shard.as_deref() else { continue };
            let Some(shard) = self.shards.get(id) else {
                let what = format!("{worker} has the shard {id}, which the stream does not have");
                self.failures.push(Finding { at: entry.at, shard: entry.shard.clone(), what });
                continue;
            };
            let covered = |checkpoint: &str| {
                Checkpoint::parse(checkpoint, 0).map_or(0, |it| shard.covered(&it))
            };
            if let What::Taken { reason } = &entry.what {
                reasons.insert(id, reason);
            }
            if let What::Begun { token, checkpoint } = &entry.what {
                // A processor that is re-created in the same tenure continues it.
                if open.get(id).is_none_or(|tenure| tenure.token != *token) {
                    let tenure = Tenure {
                        worker: worker.to_owned(),
                        shard: id.to_owned(),
                        token: *token,
                        reason: reasons.get(id).copied().unwrap_or("?").to_owned(),
                        start: covered(checkpoint),
                        begun: entry.at,
                        batches: Vec::new(),
                        deliveries: Vec::new(),
                        checkpoints: Vec::new(),
                        released: None,
                    };
                    self.tenures.extend(open.insert(id, tenure));
                }
            }
            let Some(tenure) = open.get_mut(id) else { continue };
            match &entry.what {
                What::Batch { .. } => tenure.batches.push(entry.at),
                What::Record { sequence_number, .. } => match shard.place(sequence_number) {
                    Some(place) => tenure.deliveries.push((entry.at, place)),
                    None => {
                        let what = format!("{worker} got {sequence_number}, which {id} has not");
                        let shard = entry.shard.clone();
                        self.failures.push(Finding { at: entry.at, shard, what });
                    }
                },
                What::Stored { checkpoint } => {
                    tenure.checkpoints.push((entry.at, covered(checkpoint)));
                }
                What::Released { .. } => tenure.released = Some(entry.at),
                What::Taken { .. } | What::Begun { .. } | What::Reported { .. } => {}
            }
        }
        self.tenures.extend(open.into_values());
    }

    /// Returns the tenures of each shard, in the order of their tokens.
    pub(crate) fn successions(&self) -> impl Iterator<Item = &[Tenure]> {
        self.tenures.chunk_by(|a, b| a.shard == b.shard)
    }

    /// Returns when each record of a shard was first processed, by its place.
    pub(crate) fn firsts(&self, shard: &StoredShard) -> Vec<Option<Duration>> {
        let mut firsts: Vec<Option<Duration>> = vec![None; shard.records.len()];
        for tenure in self.tenures.iter().filter(|tenure| tenure.shard == shard.id) {
            for (at, place) in &tenure.deliveries {
                let first = &mut firsts[*place];
                *first = Some(first.map_or(*at, |first| first.min(*at)));
            }
        }
        firsts
    }
}

impl StoredShard {
    fn place(&self, sequence_number: &str) -> Option<usize> {
        let sequence: SequenceNumber = sequence_number.parse().ok()?;
        self.records.binary_search_by(|record| record.sequence.cmp(&sequence)).ok()
    }
}
