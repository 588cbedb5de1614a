//! DynamoDB: `dynoxide` behind the service's wire protocol.
//!
//! Owns the database handle and the parts that dynoxide lacks: the dispatch by operation name
//! (`operations`), point-in-time recovery flags (`backups`), the throughput that `CreateTable`
//! requires (`billing`), a table's ARN in place of its name, and ARNs with the region that clients
//! use (`arn`). Calls are synchronous and run one at a time, so that every write is atomic. Never
//! injects faults.

mod arn;
mod backups;
mod billing;
mod operations;
mod refusal;

use std::path::Path;

use bytes::Bytes;
use dynoxide::{Database, DynoxideError};

pub(crate) use self::refusal::Refusal;
use crate::clock::Clock;
use backups::Backups;

/// The tables, and the settings of tables that dynoxide does not store.
pub(crate) struct Dynamo {
    db: Database,
    backups: Backups,
    clock: Clock,
}

impl Dynamo {
    pub(crate) fn in_memory(clock: Clock) -> Result<Self, DynoxideError> {
        Ok(Self { db: Database::memory()?, backups: Backups::in_memory(), clock })
    }

    /// Opens or creates the tables stored in `dir`.
    pub(crate) fn open(clock: Clock, dir: &Path) -> Result<Self, DynoxideError> {
        let failed = |error: std::io::Error| {
            DynoxideError::InternalServerError(format!("{}: {error}", dir.display()))
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let path = dir.join("tables.sqlite");
        let path = path.to_str().ok_or_else(|| {
            DynoxideError::InternalServerError(format!("`{}` is not UTF-8", dir.display()))
        })?;
        let db = Database::new(path)?;
        let backups = Backups::open(dir.join("backups.json")).map_err(failed)?;
        Ok(Self { db, backups, clock })
    }

    /// Executes one operation, such as `PutItem`.
    pub(crate) fn call(&self, operation: &str, body: &[u8]) -> Result<Bytes, Refusal> {
        let body = std::str::from_utf8(body)
            .ok()
            .filter(|body| body.trim_start().starts_with('{'))
            .ok_or_else(|| {
                Refusal::new(400, "SerializationException", "the body is not a JSON object")
            })?;
        let body = billing::checked(operation, arn::without_table_arns(operation, body))?;
        let now_ms = self.clock.now_ms();
        let reply = match operation {
            "UpdateContinuousBackups" => self.backups.update(&self.db, &body, now_ms)?,
            "DescribeContinuousBackups" => self.backups.describe(&self.db, &body, now_ms)?,
            _ => operations::dispatch(&self.db, operation, &body)?,
        };
        // After the call, because a deletion that was refused keeps the flag.
        if operation == "DeleteTable" {
            self.backups.forget(&body)?;
        }
        Ok(arn::with_region(operation, reply).into())
    }
}
