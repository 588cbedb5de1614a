//! The lease table itself: found or created, awaited, and compared with the options.
//!
//! Owns the calls about the table. An existing table is never changed: its differences from the
//! options, as far as its description shows them, are logged once. Never reads or writes a lease.
//!
//! The worker that creates the table also applies all options. Point-in-time recovery cannot be part
//! of the creation and is enabled once the table exists. That is retried until it succeeds, even if
//! the reply to the creation was lost, and by each of several workers that start together.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::describe_table::DescribeTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, PointInTimeRecoverySpecification,
    ProvisionedThroughput, ScalarAttributeType, TableDescription, TableStatus, Tag,
};
use tokio::time::Instant;

use super::DynamoStore;
use super::row::{LEASE_KEY, text};
use crate::error::{ServiceError, ServiceErrorKind};
use crate::settings::{Billing, CreateTable, TableOptions};

/// A new table is ready within seconds; the KCL waits up to ten minutes.
const PREPARE_LIMIT: Duration = Duration::from_secs(600);
const PREPARE_POLL: Duration = Duration::from_millis(250);

/// The state of the table.
enum Stage {
    Ready,
    /// The table is being created, changed or deleted; this is the service's name of the status.
    Waiting(String),
}

impl DynamoStore {
    pub(super) async fn make_ready(&self) -> Result<(), ServiceError> {
        if !self.has_region {
            let context = "no AWS region is set: set `AWS_REGION`, or the region of the profile";
            return Err(ServiceError::new(ServiceErrorKind::Missing, context));
        }
        let deadline = Instant::now() + PREPARE_LIMIT;
        loop {
            let status = match self.converge().await? {
                Stage::Ready => return Ok(()),
                Stage::Waiting(status) => status,
            };
            if Instant::now() >= deadline {
                let context = format!("{} is still {status} after {PREPARE_LIMIT:?}", self.place);
                return Err(ServiceError::new(ServiceErrorKind::NotReady, context));
            }
            tokio::time::sleep(PREPARE_POLL).await;
        }
    }

    async fn converge(&self) -> Result<Stage, ServiceError> {
        let table = match self.describe().await {
            Ok(Some(table)) => table,
            // Also right after a creation, or when a table that was being deleted has disappeared.
            Ok(None) => {
                self.create_table().await?;
                return Ok(Stage::Waiting(TableStatus::Creating.as_str().to_owned()));
            }
            // A worker that may not create the table may not be allowed to describe it either.
            Err(error) if error.kind == ServiceErrorKind::Denied && self.is_given() => {
                tracing::debug!("skipping the check of the table: {error}");
                self.probe().await?;
                return Ok(Stage::Ready);
            }
            Err(error) => return Err(error),
        };
        self.check_key(&table)?;
        match table.table_status() {
            // A table that is being updated can be read and written.
            Some(TableStatus::Active | TableStatus::Updating) => {
                if self.made.load(Ordering::Relaxed) {
                    return self.protect().await;
                }
                self.log_differences(&table);
                Ok(Stage::Ready)
            }
            // Waiting changes neither status, and an archived table has lost its items.
            Some(
                status @ (TableStatus::InaccessibleEncryptionCredentials
                | TableStatus::Archiving
                | TableStatus::Archived),
            ) => {
                let context = format!(
                    "{} is {status}: its KMS key cannot be used; enable the key and allow its use, \
                     or restore the table",
                    self.place
                );
                Err(ServiceError::new(ServiceErrorKind::Key, context))
            }
            status => Ok(Stage::Waiting(status.map_or("unknown", TableStatus::as_str).to_owned())),
        }
    }

    fn is_given(&self) -> bool {
        self.options.create == CreateTable::Never
    }

    async fn describe(&self) -> Result<Option<TableDescription>, ServiceError> {
        match self.client.describe_table().table_name(&self.table).send().await {
            Ok(reply) => Ok(reply.table),
            Err(error) => {
                let code = error.as_service_error();
                if code.is_some_and(DescribeTableError::is_resource_not_found_exception) {
                    return Ok(None);
                }
                Err(self.failed("DescribeTable", error))
            }
        }
    }

    /// Reads an item that does not exist, which shows whether there is a table with such a key.
    async fn probe(&self) -> Result<(), ServiceError> {
        let request = self.client.get_item().table_name(&self.table);
        let reply = request.key(LEASE_KEY, text("?")).send().await;
        reply.map(|_| ()).map_err(|error| self.failed("GetItem", error))
    }

    /// Checks the key: an application may have the name of a table that holds something else.
    fn check_key(&self, table: &TableDescription) -> Result<(), ServiceError> {
        let keys: Vec<_> = table.key_schema().iter().map(|key| key.attribute_name()).collect();
        if keys == [LEASE_KEY] {
            return Ok(());
        }
        Err(self.invalid(format!(
            "is not a lease table: its key is `{}`, not `{LEASE_KEY}`; choose another name",
            keys.join("`, `")
        )))
    }

    async fn create_table(&self) -> Result<(), ServiceError> {
        if self.is_given() {
            let context = format!(
                "{} does not exist and may not be created: create it with the string key \
                 `{LEASE_KEY}`, allow its creation, or correct its name or region",
                self.place
            );
            return Err(ServiceError::new(ServiceErrorKind::Missing, context));
        }
        let key = KeySchemaElement::builder().attribute_name(LEASE_KEY).key_type(KeyType::Hash);
        let definition = AttributeDefinition::builder()
            .attribute_name(LEASE_KEY)
            .attribute_type(ScalarAttributeType::S);
        let options = &self.options;
        let request = self
            .client
            .create_table()
            .table_name(&self.table)
            .billing_mode(mode(options.billing))
            .set_provisioned_throughput(throughput(options.billing))
            .set_deletion_protection_enabled(options.deletion_protection.then_some(true))
            .set_tags(tags(options))
            .key_schema(key.build().expect("name and type are set"))
            .attribute_definitions(definition.build().expect("name and type are set"));
        // Set before the reply, which may be lost.
        self.made.store(true, Ordering::Relaxed);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                // Another worker was faster, or the table is still being deleted.
                let code = error.as_service_error();
                if code.is_some_and(CreateTableError::is_resource_in_use_exception) {
                    return Ok(());
                }
                Err(self.failed("CreateTable", error))
            }
        }
    }

    /// Enables on a new table what cannot be set at its creation.
    async fn protect(&self) -> Result<Stage, ServiceError> {
        if !self.options.point_in_time_recovery {
            return Ok(Stage::Ready);
        }
        let specification = PointInTimeRecoverySpecification::builder()
            .point_in_time_recovery_enabled(true)
            .build()
            .expect("the flag is set");
        let request = self.client.update_continuous_backups().table_name(&self.table);
        let reply = request.point_in_time_recovery_specification(specification).send().await;
        match reply.map_err(|error| self.failed("UpdateContinuousBackups", error)) {
            Ok(_) => Ok(Stage::Ready),
            // The table is so new that its backups do not exist yet, or it has been deleted again.
            Err(error)
                if matches!(error.kind, ServiceErrorKind::NotReady | ServiceErrorKind::Missing) =>
            {
                Ok(Stage::Waiting("without backups".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Logs how an existing table differs from the options, because it is never changed. With
    /// `CreateTable::Never` the options say nothing about the table.
    fn log_differences(&self, table: &TableDescription) {
        let differences = differences(&self.options, table);
        if !self.is_given() && !differences.is_empty() {
            let differences = differences.join("; ");
            tracing::info!("{} exists and is not changed: {differences}", self.place);
        }
    }
}

fn mode(billing: Billing) -> BillingMode {
    match billing {
        Billing::OnDemand => BillingMode::PayPerRequest,
        Billing::Provisioned { .. } => BillingMode::Provisioned,
    }
}

fn throughput(billing: Billing) -> Option<ProvisionedThroughput> {
    let Billing::Provisioned { read, write } = billing else { return None };
    let units = ProvisionedThroughput::builder()
        .read_capacity_units(read.into())
        .write_capacity_units(write.into());
    Some(units.build().expect("both units are set"))
}

fn tags(options: &TableOptions) -> Option<Vec<Tag>> {
    let tag = |(key, value): (&String, &String)| {
        Tag::builder().key(key).value(value).build().expect("key and value are set")
    };
    (!options.tags.is_empty()).then(|| options.tags.iter().map(tag).collect())
}

/// Returns how the description of a table differs from the options. More protection than requested is
/// not a difference.
fn differences(options: &TableOptions, table: &TableDescription) -> Vec<String> {
    let mut differences = Vec::new();
    // A table that was always provisioned has no summary.
    let summary = table.billing_mode_summary().and_then(|summary| summary.billing_mode());
    let found = summary.unwrap_or(&BillingMode::Provisioned);
    if *found != mode(options.billing) {
        differences.push(format!("its billing mode is {found}"));
    } else if let Billing::Provisioned { read, write } = options.billing {
        let units = table.provisioned_throughput();
        let reads = units.and_then(|units| units.read_capacity_units()).unwrap_or(0);
        let writes = units.and_then(|units| units.write_capacity_units()).unwrap_or(0);
        if (reads, writes) != (read.into(), write.into()) {
            differences.push(format!("it is provisioned for {reads} reads and {writes} writes"));
        }
    }
    if options.deletion_protection && table.deletion_protection_enabled() != Some(true) {
        differences.push("it is not protected from deletion".to_owned());
    }
    differences
}
