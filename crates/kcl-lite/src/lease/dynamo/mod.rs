//! The lease store on DynamoDB: the write rules as condition expressions, and row ⇄ [`Lease`].
//!
//! The table is the Java KCL's, attribute for attribute, so that an application can migrate in both
//! directions. Attributes of this library have the prefix `kl`, which Java readers ignore, and all
//! other attributes of a row are preserved: rows are created by `PutItem` and changed by
//! `UpdateItem`. Only this module names the DynamoDB SDK. It never retries (the SDK's retries are
//! off, because an invisible retry would apply a write twice), never decides who owns what, and never
//! puts an item into the table that is not a lease: older Java workers fail on one.

mod row;
mod table;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::error::ConditionalCheckFailedException;
use aws_sdk_dynamodb::types::{ReturnValue, ReturnValuesOnConditionCheckFailure};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::row::{CHECKPOINT, Item, LEASE_COUNTER, LEASE_KEY, Row, WRITE_ID, item_of, number, text};
use self::update::Update;
use super::store::{LeaseStore, Table, WriteOutcome};
use super::{Lease, LeaseChange, LeaseKey, LeaseWrite};
use crate::error::{ServiceError, ServiceErrorKind};
use crate::failed_call::failed_call;
use crate::position::Checkpoint;
use crate::settings::TableOptions;

/// A backstop for callers without a timeout of their own; a worker times out much sooner.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);

/// The maximum number of concurrent calls. DynamoDB only speaks HTTP/1, so each call takes a
/// connection, and without a bound a worker that renews hundreds of leases at once would keep as many
/// idle connections as leases. At 10 ms per call this is 3,200 calls per second: a thousand leases of
/// the default duration need 300 renewals per second.
const MOST_CALLS: usize = 32;

/// The lease store in a DynamoDB table.
pub struct DynamoStore {
    client: Client,
    table: String,
    /// The table and its region, as errors name them.
    place: String,
    has_region: bool,
    options: TableOptions,
    /// Whether this store has sent a `CreateTable`, so that the table is new and belongs to nobody
    /// else.
    made: AtomicBool,
    /// Bounds the connections to the service. The timeout of a caller includes the wait for its turn.
    calls: Semaphore,
    /// Keys of rows that the last scan could not read: each is logged once.
    unreadable: Mutex<BTreeSet<LeaseKey>>,
}

impl fmt::Debug for DynamoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoStore").field("place", &self.place).finish_non_exhaustive()
    }
}

impl DynamoStore {
    /// Creates a store in the table `table`, with the settings of `config` except for its retries.
    /// The table is created with `options` if it does not exist; an existing one is not changed.
    #[must_use]
    pub fn new(config: &SdkConfig, table: impl Into<String>, options: TableOptions) -> Self {
        let table = table.into();
        let limits = config
            .timeout_config()
            .map_or_else(TimeoutConfig::builder, |limits| limits.to_builder());
        let client = aws_sdk_dynamodb::config::Builder::from(config)
            .retry_config(RetryConfig::disabled())
            // Separate from the retry quota of the process, which the failures of other clients use
            // up.
            .retry_partition(RetryPartition::custom(table.clone()).build())
            .timeout_config(limits.operation_attempt_timeout(ATTEMPT_LIMIT).build())
            .build();
        let region = config.region().map(ToString::to_string);
        Self {
            client: Client::from_conf(client),
            place: format!("table `{table}` in {}", region.as_deref().unwrap_or("no region")),
            has_region: region.is_some(),
            table,
            options,
            made: AtomicBool::new(false),
            calls: Semaphore::new(MOST_CALLS),
            unreadable: Mutex::default(),
        }
    }

    /// Reads the table consistently, at twice the price. A stale scan would lack shard ends and show
    /// former owners, so that children would start late, takes would be refused, and a worker that
    /// resumed from a checkpoint in it would repeat records.
    async fn scan(&self) -> Result<Table, ServiceError> {
        let scan = self.client.scan().table_name(&self.table).consistent_read(true);
        let mut items = scan.into_paginator().items().send();
        let mut table = Table::default();
        while let Some(item) = items.next().await {
            let item = item.map_err(|error| self.failed("Scan", error))?;
            match Row(&item).lease() {
                // `None` is no lease: newer versions of the KCL store other items, too.
                Ok(lease) => table.leases.extend(lease),
                Err(fault) => {
                    table.unreadable.insert(Row(&item).key().into(), fault);
                }
            }
        }
        self.warn_once(&table.unreadable);
        table.leases.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(table)
    }

    fn warn_once(&self, unreadable: &BTreeMap<LeaseKey, String>) {
        let mut known = self.unreadable.lock();
        for (key, fault) in unreadable.iter().filter(|(key, _)| !known.contains(*key)) {
            tracing::warn!(%key, "row in {} cannot be read: {fault}", self.place);
        }
        // Replaced, so that a row that is repaired and damaged later is logged again.
        *known = unreadable.keys().cloned().collect();
    }

    async fn read(&self, key: &LeaseKey) -> Result<Option<Lease>, ServiceError> {
        let request = self.client.get_item().table_name(&self.table).consistent_read(true);
        let reply = request.key(LEASE_KEY, text(key.as_str())).send().await;
        self.lease(reply.map_err(|error| self.failed("GetItem", error))?.item())
    }

    fn lease(&self, item: Option<&Item>) -> Result<Option<Lease>, ServiceError> {
        let Some(item) = item else { return Ok(None) };
        let key = Row(item).key();
        Row(item).lease().map_err(|fault| self.invalid(format!("has a bad row `{key}`: {fault}")))
    }

    async fn create(&self, write: &LeaseWrite) -> Result<WriteOutcome, ServiceError> {
        // By the rule itself, which also stores the write ID.
        let lease = write.apply(None).ok().flatten().expect("creating a row gives the row");
        let put = self.client.put_item().expression_attribute_names("#key", LEASE_KEY);
        self.put(put.condition_expression("attribute_not_exists(#key)"), lease).await
    }

    /// Replaces the whole row at this counter: no attribute of the old one remains.
    async fn replace(
        &self,
        write: &LeaseWrite,
        counter: u64,
        with: &Lease,
    ) -> Result<WriteOutcome, ServiceError> {
        let lease = Lease { write_id: Some(write.id.clone()), ..with.clone() };
        let put = self.client.put_item().condition_expression("#counter = :seen");
        let put = put.expression_attribute_names("#counter", LEASE_COUNTER);
        self.put(put.expression_attribute_values(":seen", number(counter)), lease).await
    }

    async fn put(
        &self,
        request: PutItemFluentBuilder,
        lease: Lease,
    ) -> Result<WriteOutcome, ServiceError> {
        // A refusal has to return the row, here and below: its write ID shows whether an earlier
        // attempt of this write was applied.
        let request = request
            .table_name(&self.table)
            .set_item(Some(item_of(&lease)))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        // `PutItem` cannot return the new row, but it replaces the whole item, so the row is known.
        match request.send().await {
            Ok(_) => Ok(WriteOutcome::Done(Some(lease))),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(cause)) => self.refused(cause),
                Some(_) | None => Err(self.failed("PutItem", error)),
            },
        }
    }

    /// Sends an update that increments the counter and leaves the mark of the write.
    async fn marked(
        &self,
        write: &LeaseWrite,
        update: Update,
        condition: &str,
    ) -> Result<WriteOutcome, ServiceError> {
        let update = update.set(WRITE_ID, text(write.id.as_str()));
        self.update(write, update, condition).await
    }

    async fn update(
        &self,
        write: &LeaseWrite,
        update: Update,
        condition: &str,
    ) -> Result<WriteOutcome, ServiceError> {
        let key = &write.key;
        let request = self
            .client
            .update_item()
            .table_name(&self.table)
            .key(LEASE_KEY, text(key.as_str()))
            .update_expression(update.expression())
            // An item that does not exist has no counter, so an update never creates one.
            .condition_expression(condition)
            .set_expression_attribute_names(Some(update.names))
            .set_expression_attribute_values(Some(update.values))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match request.send().await {
            Ok(reply) => match self.lease(reply.attributes())? {
                Some(lease) => Ok(WriteOutcome::Done(Some(lease))),
                None => Err(self.invalid(format!("returned no row after an update of `{key}`"))),
            },
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(cause)) => {
                    self.refused(cause)
                }
                Some(_) | None => Err(self.failed("UpdateItem", error)),
            },
        }
    }

    /// Deletes a row at this counter; with `finished`, only if its shard has ended.
    async fn delete(
        &self,
        key: &LeaseKey,
        counter: u64,
        finished: bool,
    ) -> Result<WriteOutcome, ServiceError> {
        let mut request = self
            .client
            .delete_item()
            .table_name(&self.table)
            .key(LEASE_KEY, text(key.as_str()))
            .condition_expression("#counter = :seen")
            .expression_attribute_names("#counter", LEASE_COUNTER)
            .expression_attribute_values(":seen", number(counter))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        if finished {
            request = request
                .condition_expression("#counter = :seen AND #checkpoint = :end")
                .expression_attribute_names("#checkpoint", CHECKPOINT)
                .expression_attribute_values(":end", text(Checkpoint::ShardEnd.as_str()));
        }
        match request.send().await {
            Ok(_) => Ok(WriteOutcome::Done(None)),
            Err(error) => match error.as_service_error() {
                Some(DeleteItemError::ConditionalCheckFailedException(cause)) => {
                    self.refused(cause)
                }
                Some(_) | None => Err(self.failed("DeleteItem", error)),
            },
        }
    }

    /// Makes a call once fewer than [`MOST_CALLS`] are in flight.
    async fn in_turn<T>(&self, call: impl Future<Output = T>) -> T {
        let _turn = self.calls.acquire().await.expect("nothing closes it");
        call.await
    }

    fn refused(
        &self,
        cause: &ConditionalCheckFailedException,
    ) -> Result<WriteOutcome, ServiceError> {
        Ok(WriteOutcome::Refused(self.lease(cause.item())?))
    }

    fn invalid(&self, fault: impl fmt::Display) -> ServiceError {
        ServiceError::new(ServiceErrorKind::Invalid, format!("{} {fault}", self.place))
    }

    fn failed<E>(&self, operation: &str, error: SdkError<E, HttpResponse>) -> ServiceError
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let call = failed_call(format!("dynamodb:{operation}"), &self.place, &error);
        let context = format!("{operation} on {}: {}{}", self.place, call.words(), call.remedy());
        ServiceError::of_call(context, call).with_source(error)
    }
}

impl LeaseStore for DynamoStore {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ServiceError>> {
        self.make_ready().boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Table, ServiceError>> {
        self.in_turn(self.scan()).boxed()
    }

    fn get<'a>(&'a self, key: &'a LeaseKey) -> BoxFuture<'a, Result<Option<Lease>, ServiceError>> {
        self.in_turn(self.read(key)).boxed()
    }

    fn write<'a>(
        &'a self,
        write: &'a LeaseWrite,
    ) -> BoxFuture<'a, Result<WriteOutcome, ServiceError>> {
        let call = match &write.change {
            LeaseChange::Create(_) => self.create(write).boxed(),
            LeaseChange::Delete { counter } => self.delete(&write.key, *counter, true).boxed(),
            LeaseChange::Discard { counter } => self.delete(&write.key, *counter, false).boxed(),
            LeaseChange::Replace { counter, with } => self.replace(write, *counter, with).boxed(),
            LeaseChange::Reset { counter, checkpoint, anchor } => {
                let reset = Update::reset(*counter, checkpoint, *anchor);
                self.marked(write, reset, Update::CONDITION).boxed()
            }
            LeaseChange::Take { counter, from, owner } => {
                let taken = Update::take(*counter, from.as_ref(), owner);
                self.marked(write, taken, Update::CONDITION).boxed()
            }
            LeaseChange::RequestHandoff { counter, from, to } => {
                let asked = Update::ask(*counter, from, to);
                self.update(write, asked, Update::ASK_CONDITION).boxed()
            }
            LeaseChange::WithdrawHandoff { from, to } => {
                let withdrawn = Update::withdraw(from, to);
                self.update(write, withdrawn, Update::WITHDRAW_CONDITION).boxed()
            }
            LeaseChange::HandOver { counter, update, to } => {
                let handed = Update::hand_over(*counter, update, to);
                self.marked(write, handed, Update::HAND_OVER_CONDITION).boxed()
            }
            LeaseChange::Renew { counter, owner, update } => {
                let renewed = Update::renew(*counter, owner, update);
                self.marked(write, renewed, Update::RENEW_CONDITION).boxed()
            }
            LeaseChange::Finish { counter, children } => {
                let finished = Update::finish(*counter, children);
                self.marked(write, finished, Update::CONDITION).boxed()
            }
            LeaseChange::Release { counter, update } => {
                let released = Update::release(*counter, update);
                self.marked(write, released, Update::RELEASE_CONDITION).boxed()
            }
        };
        self.in_turn(call).boxed()
    }
}
