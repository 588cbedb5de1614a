//! The stored streams, for `--data`: an SQLite file that is written before a request is answered.
//!
//! Each request is one transaction. SQLite hands its log to the operating system before a commit
//! returns, so that a killed process loses nothing that it acknowledged; `synchronous=OFF` only
//! risks what a crash of the machine would lose. Everything is read once, at the start.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};

use crate::kinesis::log::Record;
use crate::kinesis::sequence::{Index, ShardNumber};
use crate::kinesis::stream::{Meta, StreamId};
use crate::wire::ApiError;

const FILE: &str = "kinesis.sqlite3";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS streams (id INTEGER PRIMARY KEY, meta TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS records (
        stream INTEGER NOT NULL, shard INTEGER NOT NULL, place INTEGER NOT NULL,
        arrival_ms INTEGER NOT NULL, partition_key TEXT NOT NULL, data BLOB NOT NULL,
        encrypted INTEGER NOT NULL
    );
    CREATE UNIQUE INDEX IF NOT EXISTS record_order ON records (stream, shard, place);
";

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    connection: Connection,
}

/// A stream as stored.
#[derive(Debug)]
pub(super) struct Stored {
    pub meta: Meta,
    pub records: Vec<(ShardNumber, Record)>,
}

impl Stored {
    /// Returns the latest time stored in it.
    pub(super) fn latest_ms(&self) -> i64 {
        let arrivals = self.records.iter().map(|(_, record)| record.arrival_ms);
        arrivals.fold(self.meta.stored_ms, i64::max)
    }
}

/// Why the stored streams cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// SQLite could not open or read the file.
    #[error("the stored streams cannot be read; is another process using the directory?")]
    Sqlite(#[from] rusqlite::Error),
    /// A stream's metadata has a format that this version does not write.
    #[error("a stored stream cannot be read; it was written by another version")]
    Meta(#[from] serde_json::Error),
    /// The directory cannot be created.
    #[error("the data directory cannot be created")]
    Directory(#[from] std::io::Error),
}

impl Journal {
    /// Opens or creates the file in `directory` and reads its content.
    pub(super) fn open(directory: &Path) -> Result<(Self, Vec<Stored>), JournalError> {
        std::fs::create_dir_all(directory)?;
        let connection = Connection::open(directory.join(FILE))?;
        // A predecessor that was just killed may hold its locks for a moment.
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.execute_batch(SCHEMA)?;
        let journal = Self { connection };
        let stored = journal.read()?;
        Ok((journal, stored))
    }

    fn read(&self) -> Result<Vec<Stored>, JournalError> {
        let mut streams = self.connection.prepare("SELECT meta FROM streams ORDER BY id")?;
        let mut rows = streams.query([])?;
        let mut stored = Vec::new();
        while let Some(row) = rows.next()? {
            let meta: Meta = serde_json::from_str(row.get_ref(0)?.as_str().unwrap_or_default())?;
            let records = self.records(meta.id)?;
            stored.push(Stored { meta, records });
        }
        Ok(stored)
    }

    fn records(&self, stream: StreamId) -> Result<Vec<(ShardNumber, Record)>, JournalError> {
        let mut statement = self.connection.prepare(
            "SELECT shard, place, arrival_ms, partition_key, data, encrypted FROM records
             WHERE stream = ?1 ORDER BY shard, place",
        )?;
        let rows = statement.query_map([number(stream.0)], |row| {
            let record = Record {
                index: Index(row.get(1)?),
                arrival_ms: row.get(2)?,
                partition_key: row.get(3)?,
                data: row.get::<_, Vec<u8>>(4)?.into(),
                encrypted: row.get(5)?,
            };
            Ok((ShardNumber(row.get(0)?), record))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Stores a stream's metadata.
    pub(super) fn save(&mut self, meta: &Meta) -> Result<(), ApiError> {
        save(&self.connection, meta).map_err(failed)
    }

    /// Stores records.
    pub(super) fn append(
        &mut self,
        stream: StreamId,
        records: &[(ShardNumber, Arc<Record>)],
    ) -> Result<(), ApiError> {
        let mut append = || {
            let transaction = self.connection.transaction()?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO records
                 (stream, shard, place, arrival_ms, partition_key, data, encrypted)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for (shard, record) in records {
                insert.execute(params![
                    number(stream.0),
                    shard.0,
                    number(record.index.0),
                    record.arrival_ms,
                    record.partition_key,
                    &record.data[..],
                    record.encrypted,
                ])?;
            }
            drop(insert);
            transaction.commit()
        };
        append().map_err(failed)
    }

    /// Removes the records of shards before the given places, and stores the metadata, which
    /// records the places ever issued.
    pub(super) fn trim(
        &mut self,
        meta: &Meta,
        begin: &[(ShardNumber, Index)],
    ) -> Result<(), ApiError> {
        let mut trim = || {
            let transaction = self.connection.transaction()?;
            for (shard, index) in begin {
                transaction.execute(
                    "DELETE FROM records WHERE stream = ?1 AND shard = ?2 AND place < ?3",
                    params![number(meta.id.0), shard.0, number(index.0)],
                )?;
            }
            save(&transaction, meta)?;
            transaction.commit()
        };
        trim().map_err(failed)
    }

    /// Removes a stream and its records.
    pub(super) fn delete(&mut self, stream: StreamId) -> Result<(), ApiError> {
        let mut delete = || {
            let transaction = self.connection.transaction()?;
            transaction.execute("DELETE FROM records WHERE stream = ?1", [number(stream.0)])?;
            transaction.execute("DELETE FROM streams WHERE id = ?1", [number(stream.0)])?;
            transaction.commit()
        };
        delete().map_err(failed)
    }
}

fn save(connection: &Connection, meta: &Meta) -> Result<(), rusqlite::Error> {
    let text = serde_json::to_string(meta).expect("metadata is plain data");
    let mut statement =
        connection.prepare_cached("INSERT OR REPLACE INTO streams (id, meta) VALUES (?1, ?2)")?;
    statement.execute(params![number(meta.id.0), text]).map(|_| ())
}

/// SQLite's integers are signed.
fn number(unsigned: u64) -> i64 {
    i64::try_from(unsigned).unwrap_or(i64::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of `map_err`")]
fn failed(error: rusqlite::Error) -> ApiError {
    ApiError::internal(format!("the data directory could not be written: {error}"))
}
