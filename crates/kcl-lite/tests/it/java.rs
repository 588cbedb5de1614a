//! A model of the Java library's access to the lease table: its parser, as strict as its strictest
//! version, and its writers, request by request as captured on the wire. Shares no code with the library
//! under test, so that the two are independent.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeAction, AttributeValue, AttributeValueUpdate, ExpectedAttributeValue, ReturnValue,
    ReturnValuesOnConditionCheckFailure,
};

pub(crate) type Item = HashMap<String, AttributeValue>;

/// Parses an item from text: `name type value`, separated by `;`.
pub(crate) fn item(row: &str) -> Item {
    row.split(';')
        .map(|attribute| {
            let mut words = attribute.split_whitespace();
            let name = words.next().unwrap().to_owned();
            let kind = words.next().unwrap();
            let rest: Vec<String> = words.map(str::to_owned).collect();
            let value = match kind {
                "S" => AttributeValue::S(rest.concat()),
                "N" => AttributeValue::N(rest.concat()),
                "B" => AttributeValue::B(Blob::new(rest.concat())),
                "SS" => AttributeValue::Ss(rest),
                other => panic!("{other} is no attribute type"),
            };
            (name, value)
        })
        .collect()
}

/// A lease as the Java library keeps it in memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JavaLease {
    pub(crate) key: String,
    pub(crate) owner: Option<String>,
    pub(crate) checkpoint_owner: Option<String>,
    pub(crate) counter: i64,
    pub(crate) switches: i64,
    pub(crate) checkpoint: (String, i64),
    pub(crate) pending: Option<(String, i64)>,
    pub(crate) pending_state: Option<Vec<u8>>,
    pub(crate) parents: BTreeSet<String>,
    pub(crate) children: BTreeSet<String>,
    pub(crate) range: Option<(u128, u128)>,
    /// The stream identifier and the bare shard ID.
    pub(crate) several: Option<(String, String)>,
}

/// Parses a row, or returns what the Java library would fail on, now or later.
pub(crate) fn parse(item: &Item) -> Result<JavaLease, String> {
    for (name, value) in item {
        check_type(name, value)?;
    }
    let must = |name: &str| format!("`{name}` is missing");
    let key = text(item, "leaseKey").ok_or_else(|| must("leaseKey"))?;
    let number_of = |name: &str| whole(item, name)?.ok_or_else(|| must(name));
    let checkpoint = text(item, "checkpoint").ok_or_else(|| must("checkpoint"))?;
    let pending =
        match (text(item, "pendingCheckpoint"), whole(item, "pendingCheckpointSubSequenceNumber")?)
        {
            (None, None) => None,
            (Some(pending), Some(sub)) => Some((sequence(pending)?, sub)),
            (_, _) => return Err("a part of the pending checkpoint is missing".to_owned()),
        };
    let pending_state = match item.get("pendingCheckpointState") {
        Some(_) if pending.is_none() => return Err("a state of nothing pending".to_owned()),
        Some(AttributeValue::B(state)) => Some(state.as_ref().to_vec()),
        // A bug of that library when it writes an item; read as no state here.
        _ => None,
    };
    Ok(JavaLease {
        owner: text(item, "leaseOwner"),
        checkpoint_owner: text(item, "checkpointOwner"),
        counter: number_of("leaseCounter")?,
        switches: number_of("ownerSwitchesSinceCheckpoint")?,
        checkpoint: (sequence(checkpoint)?, number_of("checkpointSubSequenceNumber")?),
        pending,
        pending_state,
        parents: bare_shards(item, "parentShardId")?,
        children: bare_shards(item, "childShardIds")?,
        range: range(item)?,
        several: several(item, &key)?,
        key,
    })
}

/// Checks the type of each attribute, and that none is empty. The library ignores unknown attributes, but
/// here every name has to be known.
fn check_type(name: &str, value: &AttributeValue) -> Result<(), String> {
    let fits = match name {
        "leaseKey" | "leaseOwner" | "checkpointOwner" | "checkpoint" | "pendingCheckpoint"
        | "startingHashKey" | "endingHashKey" | "streamName" | "shardId" | "klWriteId"
        | "klStreamArn" => value.is_s(),
        "leaseCounter"
        | "ownerSwitchesSinceCheckpoint"
        | "checkpointSubSequenceNumber"
        | "pendingCheckpointSubSequenceNumber"
        | "throughputKBps"
        | "klAnchor"
        | "klReadUntil"
        | "klStreamCreated" => value.is_n(),
        "parentShardId" | "childShardIds" => value.is_ss(),
        "pendingCheckpointState" => value.is_b() || value.is_n(),
        "entityType" => value.as_s().is_ok_and(|entity| entity == "LEASE"),
        _ => return Err(format!("`{name}` is unknown")),
    };
    let is_empty = match value {
        AttributeValue::S(text) => text.is_empty(),
        AttributeValue::Ss(texts) => texts.is_empty() || texts.iter().any(String::is_empty),
        _ => false,
    };
    if fits && !is_empty { Ok(()) } else { Err(format!("`{name}` is {value:?}")) }
}

fn text(item: &Item, name: &str) -> Option<String> {
    item.get(name).and_then(|value| value.as_s().ok()).cloned()
}

fn whole(item: &Item, name: &str) -> Result<Option<i64>, String> {
    let Some(value) = item.get(name) else { return Ok(None) };
    let digits = value.as_n().map_err(|_| format!("`{name}` is no number"))?;
    digits.parse().map(Some).map_err(|_| format!("`{name}` is {digits}"))
}

fn sequence(text: String) -> Result<String, String> {
    let word = ["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "SHARD_END"].contains(&text.as_str());
    if word || text.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(text)
    } else {
        Err(format!("`{text}` is no sequence number"))
    }
}

fn bare_shards(item: &Item, name: &str) -> Result<BTreeSet<String>, String> {
    let shards = item.get(name).and_then(|value| value.as_ss().ok()).cloned().unwrap_or_default();
    match shards.iter().find(|shard| shard.contains(':')) {
        Some(shard) => Err(format!("`{name}` has `{shard}`, which is no bare shard id")),
        None => Ok(shards.into_iter().collect()),
    }
}

fn range(item: &Item) -> Result<Option<(u128, u128)>, String> {
    let number = |name| text(item, name).map(|digits| digits.parse::<u128>());
    match (number("startingHashKey"), number("endingHashKey")) {
        (None, None) => Ok(None),
        (Some(Ok(start)), Some(Ok(end))) if start < end => Ok(Some((start, end))),
        (start, end) => Err(format!("{start:?} to {end:?} is no range")),
    }
}

fn several(item: &Item, key: &str) -> Result<Option<(String, String)>, String> {
    match (text(item, "streamName"), text(item, "shardId")) {
        (None, None) if !key.contains(':') => Ok(None),
        (Some(stream), Some(shard)) if key == format!("{stream}:{shard}") => {
            let parts: Vec<_> = stream.split(':').collect();
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            match parts[..] {
                [account, _, epoch] if account.len() == 12 && digits(account) && digits(epoch) => {
                    Ok(Some((stream, shard)))
                }
                _ => Err(format!("`{stream}` is no stream identifier")),
            }
        }
        found => Err(format!("the row `{key}` says {found:?}")),
    }
}

/// The library version of a Java worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V2,
    V3,
}

/// A Java worker, or the leader of a fleet of them: its memory and its writes.
#[derive(Debug, Clone)]
pub(crate) struct JavaWorker {
    pub(crate) client: Client,
    pub(crate) table: &'static str,
    pub(crate) name: &'static str,
    pub(crate) version: Version,
}

/// One `UpdateItem` in the library's style: attribute by attribute, with expected values.
struct Request {
    updates: HashMap<String, AttributeValueUpdate>,
    expected: HashMap<String, ExpectedAttributeValue>,
}

impl Request {
    fn new() -> Self {
        Self { updates: HashMap::new(), expected: HashMap::new() }
    }

    fn put(self, name: &str, value: AttributeValue) -> Self {
        self.act(name, AttributeAction::Put, Some(value))
    }

    fn add(self, name: &str, by: i64) -> Self {
        self.act(name, AttributeAction::Add, Some(number(by)))
    }

    fn delete(self, name: &str) -> Self {
        self.act(name, AttributeAction::Delete, None)
    }

    fn act(mut self, name: &str, action: AttributeAction, value: Option<AttributeValue>) -> Self {
        let update = AttributeValueUpdate::builder().action(action).set_value(value).build();
        self.updates.insert(name.to_owned(), update);
        self
    }

    /// The attribute has this value, or is absent.
    fn expect(mut self, name: &str, value: Option<AttributeValue>) -> Self {
        let expected = match value {
            Some(value) => ExpectedAttributeValue::builder().value(value),
            None => ExpectedAttributeValue::builder().exists(false),
        };
        self.expected.insert(name.to_owned(), expected.build());
        self
    }
}

fn number(number: i64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn set(request: Request, name: &str, value: Option<&str>) -> Request {
    match value {
        Some(value) => request.put(name, string(value)),
        None => request.delete(name),
    }
}

impl JavaWorker {
    pub(crate) async fn read(&self, key: &str) -> Option<JavaLease> {
        let get = self.client.get_item().table_name(self.table).key("leaseKey", string(key));
        let item = get.consistent_read(true).send().await.unwrap().item?;
        Some(parse(&item).unwrap_or_else(|fault| panic!("{key}: {fault}")))
    }

    /// Returns the row after the write, or `None` if an expectation did not hold.
    async fn send(&self, key: &str, request: Request) -> Option<JavaLease> {
        let update = self
            .client
            .update_item()
            .table_name(self.table)
            .key("leaseKey", string(key))
            .set_attribute_updates(Some(request.updates))
            .set_expected(Some(request.expected))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match update.send().await {
            Ok(reply) => Some(parse(&reply.attributes.unwrap()).unwrap()),
            Err(SdkError::ServiceError(reply))
                if matches!(reply.err(), UpdateItemError::ConditionalCheckFailedException(_)) =>
            {
                None
            }
            Err(error) => panic!("{key}: {error:?}"),
        }
    }

    /// Renews the lease in memory: returns `true` and updates the memory, or the lease is lost.
    pub(crate) async fn renew(&self, held: &mut JavaLease) -> bool {
        let is_handed_over = held.checkpoint_owner.is_some();
        let mut request = Request::new()
            .put("leaseCounter", number(held.counter + 1))
            .expect("leaseCounter", Some(number(held.counter)));
        if self.version == Version::V3 {
            request = request.put("throughputKBps", AttributeValue::N("1.0E-6".to_owned()));
            if !is_handed_over {
                request = request.expect("checkpointOwner", None);
            }
        }
        if let Some(row) = self.send(&held.key, request).await {
            held.counter = row.counter;
            return true;
        }
        let Some(row) = self.read(&held.key).await else { return false };
        if self.version == Version::V3 && !is_handed_over && row.checkpoint_owner.is_some() {
            let owner = row.checkpoint_owner.clone();
            if owner.as_deref() != Some(self.name) || row.checkpoint_owner == row.owner {
                return false;
            }
            (held.owner, held.checkpoint_owner) = (row.owner, owner);
            return Box::pin(self.renew(held)).await;
        }
        let mine = held.checkpoint_owner.as_ref().or(held.owner.as_ref());
        let is_mine = row.owner.as_ref() == mine && row.counter == held.counter + 1;
        if is_mine {
            held.counter = row.counter;
        }
        is_mine
    }

    /// The take of 2.x, which 3.x has, too: conditional on the counter alone.
    pub(crate) async fn take(&self, seen: &JavaLease) -> Option<JavaLease> {
        let mut request = Request::new()
            .put("leaseOwner", string(self.name))
            .put("leaseCounter", number(seen.counter + 1))
            .expect("leaseCounter", Some(number(seen.counter)));
        if self.version == Version::V3 {
            request = request.delete("checkpointOwner");
        }
        if seen.owner.as_deref().is_some_and(|owner| owner != self.name) {
            request = request.add("ownerSwitchesSinceCheckpoint", 1);
        }
        self.send(&seen.key, request).await
    }

    /// Writes a checkpoint, which clears the pending one.
    pub(crate) async fn checkpoint(&self, held: &mut JavaLease, to: (&str, i64)) -> bool {
        let mut request = Request::new()
            .put("leaseCounter", number(held.counter + 1))
            .put("checkpoint", string(to.0))
            .put("checkpointSubSequenceNumber", number(to.1))
            .put("ownerSwitchesSinceCheckpoint", number(0))
            .delete("pendingCheckpoint")
            .delete("pendingCheckpointSubSequenceNumber")
            .delete("pendingCheckpointState")
            .expect("leaseCounter", Some(number(held.counter)));
        if let Some((start, end)) = held.range {
            request = request.put("startingHashKey", string(&start.to_string()));
            request = request.put("endingHashKey", string(&end.to_string()));
        }
        if let Some((stream, shard)) = &held.several {
            request = request.put("streamName", string(stream)).put("shardId", string(shard));
        }
        match self.send(&held.key, request).await {
            Some(row) => {
                *held = row;
                true
            }
            None => false,
        }
    }

    /// The leader of 3.x assigns a lease to `to`; an old owner completes a handoff the same way. The counter
    /// is incremented, but not part of the condition.
    pub(crate) async fn assign(&self, seen: &JavaLease, to: &str) -> Option<JavaLease> {
        let mut request = Request::new()
            .put("leaseOwner", string(to))
            .delete("checkpointOwner")
            .add("leaseCounter", 1)
            .expect("leaseOwner", seen.owner.as_deref().map(string))
            .expect("checkpointOwner", seen.checkpoint_owner.as_deref().map(string));
        if seen.owner.as_deref().is_some_and(|owner| owner != to) {
            request = request.add("ownerSwitchesSinceCheckpoint", 1);
        }
        self.send(&seen.key, request).await
    }

    /// The leader of 3.x requests a handoff to `to` from the owner. The counter does not change.
    pub(crate) async fn start_handoff(&self, seen: &JavaLease, to: &str) -> Option<JavaLease> {
        let owner = seen.owner.as_deref()?;
        let request = Request::new()
            .put("leaseOwner", string(to))
            .put("checkpointOwner", string(owner))
            .expect("leaseOwner", Some(string(owner)))
            .expect("checkpointOwner", None);
        self.send(&seen.key, request).await
    }

    /// 2.x evicts the owner of a lease.
    pub(crate) async fn evict(&self, seen: &JavaLease) -> Option<JavaLease> {
        let request = set(Request::new(), "leaseOwner", None)
            .put("leaseCounter", number(seen.counter + 1))
            .expect("leaseOwner", seen.owner.as_deref().map(string));
        self.send(&seen.key, request).await
    }

    /// Writes what the library learns late: the children, or the hash range. Counter and owner do not change.
    pub(crate) async fn note_children(&self, key: &str, children: &[&str]) -> bool {
        let children = children.iter().map(|child| (*child).to_owned()).collect();
        let request = Request::new()
            .put("childShardIds", AttributeValue::Ss(children))
            .expect("leaseKey", Some(string(key)));
        self.send(key, request).await.is_some()
    }
}
