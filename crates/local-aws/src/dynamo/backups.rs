//! Point-in-time recovery: the flag of each table.
//!
//! Owns the two operations that dynoxide lacks, as flags only; stores them in a small file if the
//! tables are stored. Never creates a backup.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use dynoxide::{Database, DynoxideError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::operations::read;
use super::refusal::Refusal;

/// The service's default.
const DEFAULT_DAYS: u16 = 35;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Recovery {
    since_ms: i64,
    days: u16,
}

/// The tables that have point-in-time recovery.
pub(super) struct Backups {
    enabled: Mutex<BTreeMap<String, Recovery>>,
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Table {
    table_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Update {
    table_name: String,
    point_in_time_recovery_specification: Specification,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Specification {
    point_in_time_recovery_enabled: bool,
    recovery_period_in_days: Option<u16>,
}

impl Backups {
    pub(super) fn in_memory() -> Self {
        Self { enabled: Mutex::default(), file: None }
    }

    pub(super) fn open(file: PathBuf) -> io::Result<Self> {
        let enabled = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { enabled: Mutex::new(enabled), file: Some(file) })
    }

    pub(super) fn update(&self, db: &Database, body: &str, now_ms: i64) -> Result<String, Refusal> {
        let update: Update = read("UpdateContinuousBackups", body)?;
        let asked = update.point_in_time_recovery_specification;
        let days = asked.recovery_period_in_days.unwrap_or(DEFAULT_DAYS);
        if !(1..=DEFAULT_DAYS).contains(&days) {
            return Err(DynoxideError::ValidationException(format!(
                "RecoveryPeriodInDays is `{days}`, must be 1 to {DEFAULT_DAYS}"
            ))
            .into());
        }
        must_exist(db, &update.table_name)?;
        self.change(|enabled| {
            if asked.point_in_time_recovery_enabled {
                let since_ms = enabled.get(&update.table_name).map_or(now_ms, |was| was.since_ms);
                enabled.insert(update.table_name.clone(), Recovery { since_ms, days });
            } else {
                enabled.remove(&update.table_name);
            }
        })?;
        Ok(self.description(&update.table_name, now_ms))
    }

    pub(super) fn describe(
        &self,
        db: &Database,
        body: &str,
        now_ms: i64,
    ) -> Result<String, Refusal> {
        let table: Table = read("DescribeContinuousBackups", body)?;
        must_exist(db, &table.table_name)?;
        Ok(self.description(&table.table_name, now_ms))
    }

    /// Removes the flag, because a re-created table starts without recovery.
    pub(super) fn forget(&self, body: &str) -> Result<(), Refusal> {
        let table: Table = read("DeleteTable", body)?;
        self.change(|enabled| {
            enabled.remove(&table.table_name);
        })
    }

    fn description(&self, table: &str, now_ms: i64) -> String {
        let recovery = self.enabled.lock().get(table).copied();
        let recovery = recovery.map_or(json!({ "PointInTimeRecoveryStatus": "DISABLED" }), |on| {
            let oldest_ms = now_ms.saturating_sub(i64::from(on.days) * 24 * 3_600_000);
            json!({
                "PointInTimeRecoveryStatus": "ENABLED",
                "RecoveryPeriodInDays": on.days,
                "EarliestRestorableDateTime": seconds(on.since_ms.max(oldest_ms)),
                "LatestRestorableDateTime": seconds(now_ms),
            })
        });
        json!({ "ContinuousBackupsDescription": {
            "ContinuousBackupsStatus": "ENABLED",
            "PointInTimeRecoveryDescription": recovery,
        }})
        .to_string()
    }

    fn change(&self, f: impl FnOnce(&mut BTreeMap<String, Recovery>)) -> Result<(), Refusal> {
        let mut enabled = self.enabled.lock();
        f(&mut enabled);
        match &self.file {
            Some(file) => replace(file, &json!(*enabled)).map_err(|error| {
                let message = format!("`{}` cannot be written: {error}", file.display());
                Refusal::new(500, "InternalServerError", &message)
            }),
            None => Ok(()),
        }
    }
}

/// Writes a new file and renames it, so that a crash leaves the old or the new text.
fn replace(file: &Path, value: &Value) -> io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, value.to_string())?;
    std::fs::rename(beside, file)
}

fn seconds(ms: i64) -> i64 {
    ms.div_euclid(1000)
}

fn must_exist(db: &Database, table: &str) -> Result<(), Refusal> {
    let request = read("DescribeTable", &json!({ "TableName": table }).to_string())?;
    match db.describe_table(request) {
        Ok(_) => Ok(()),
        Err(DynoxideError::ResourceNotFoundException(_)) => {
            let message = format!("Table not found: {table}");
            Err(Refusal::new(400, "TableNotFoundException", &message))
        }
        Err(error) => Err(error.into()),
    }
}
