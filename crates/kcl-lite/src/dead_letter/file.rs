//! Dead letters in a file: one JSON object per line, synced to disk before it counts as stored.
//!
//! Appends only. A line that a crash has truncated is terminated before the next one is written.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde::Serialize;

use super::{DeadLetter, DeadLetterRecord};
use crate::error::BoxError;

/// A sink that appends JSON lines to a file, for all shards of one worker. Two processes must not share a
/// file.
///
/// The fields of a line: `stream`, `shard`, `sequence_number`, `sub_sequence_number`,
/// `partition_key`, `data` (base64), `arrived_ms`, `attempts`, `error`.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: Mutex<File>,
}

#[derive(Serialize)]
struct Line<'a> {
    stream: &'a str,
    shard: &'a str,
    sequence_number: &'a str,
    sub_sequence_number: u64,
    partition_key: &'a str,
    data: String,
    arrived_ms: i64,
    attempts: u32,
    error: &'a str,
}

impl JsonLines {
    /// Opens the file at `path` for appending, and creates it if it does not exist.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        // The directory entry of a new file must reach the disk too. Not every system can open a folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
            folder.sync_all()?;
        }
        Ok(Self { path, file: Mutex::new(file) })
    }

    fn append(&self, letter: &DeadLetterRecord) -> io::Result<()> {
        let line = Line {
            stream: &letter.stream,
            shard: letter.shard.as_str(),
            sequence_number: letter.position.sequence_number.as_str(),
            sub_sequence_number: letter.position.sub_sequence_number,
            partition_key: &letter.partition_key,
            data: base64_simd::STANDARD.encode_to_string(&letter.data),
            arrived_ms: letter.arrived.as_millis(),
            attempts: letter.attempts,
            error: &letter.error,
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        let mut file = self.file.lock();
        // Checked before every line, because an earlier write may have failed half-way.
        if !ends_with_a_line(&mut file)? {
            text.insert(0, b'\n');
        }
        file.write_all(&text)?;
        file.sync_data()
    }
}

/// Returns false after a partial write, when the disk was full or the process was killed.
fn ends_with_a_line(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

impl DeadLetter for JsonLines {
    fn store<'a>(&'a self, letter: &'a DeadLetterRecord) -> BoxFuture<'a, Result<(), BoxError>> {
        // Blocks its thread for one write to the disk. Dead letters are rare, and the control plane runs
        // on another thread by default.
        async move {
            self.append(letter)
                .map_err(|error| format!("writing to `{}`: {error}", self.path.display()).into())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Position;
    use crate::record::Timestamp;

    fn letter(data: &'static str) -> DeadLetterRecord {
        let position = Position { sequence_number: "17".parse().unwrap(), sub_sequence_number: 3 };
        DeadLetterRecord {
            stream: "wildrydes".to_owned(),
            shard: "shardId-0".into(),
            position,
            partition_key: "Shadowfax".to_owned(),
            data: data.into(),
            arrived: Timestamp::from_millis(1_700_000_000_000),
            attempts: 5,
            error: "no \"rider\"\nfound".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_dead_letter_is_one_line_of_json_behind_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead.jsonl");
        std::fs::write(&path, "{\"cut").unwrap();
        let sink = JsonLines::open(&path).unwrap();
        sink.store(&letter("a\nb")).await.unwrap();
        sink.store(&letter("c")).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            lines[1],
            r#"{"stream":"wildrydes","shard":"shardId-0","sequence_number":"17","sub_sequence_number":3,"partition_key":"Shadowfax","data":"YQpi","arrived_ms":1700000000000,"attempts":5,"error":"no \"rider\"\nfound"}"#
        );
        assert!(lines[2].contains(r#""data":"Yw==""#));
    }

    #[tokio::test]
    async fn a_failed_write_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead.jsonl");
        std::fs::write(&path, "").unwrap();
        let file = Mutex::new(File::open(&path).unwrap());
        let sink = JsonLines { path: path.clone(), file };
        let error = sink.store(&letter("a")).await.unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}
