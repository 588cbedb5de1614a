//! The policies of `deploy/` against the operations that the commands send: every operation sent is
//! allowed, every operation allowed is sent, and the template grants the same as the policies.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use e2e::workshop::Workshop;

use crate::{BRIEF, INT};

/// The prefix of optional statements: each is needed for one flag or setting only.
const OPTIONAL: &str = "Optional";

/// The statement for `--fan-out`.
const FAN_OUT: &str = "OptionalFanOut";

type Actions = BTreeSet<String>;

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns what a policy allows in the statements whose name `include` accepts.
fn allowed(policy: &str, include: impl Fn(&str) -> bool) -> Result<Actions> {
    let policy: serde_json::Value = serde_json::from_str(&deploy(policy))?;
    let mut actions = Actions::new();
    for statement in policy["Statement"].as_array().context("a policy has statements")? {
        assert_eq!(statement["Effect"], "Allow");
        assert_ne!(statement["Resource"], "*", "a statement names what it is for");
        if include(statement["Sid"].as_str().context("a statement has a name")?) {
            let listed = statement["Action"].as_array().context("actions are a list")?;
            actions.extend(listed.iter().filter_map(|a| a.as_str()).map(str::to_owned));
        }
    }
    Ok(actions)
}

/// Returns the actions listed in a resource of the template, which is indented by two spaces.
fn granted(resource: &str) -> Actions {
    let template = deploy("wildrydes.yaml");
    let lines = template.lines().skip_while(|line| *line != format!("  {resource}:")).skip(1);
    let body = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
    let actions = body.filter_map(|line| line.trim_start().strip_prefix("- "));
    actions
        .filter(|item| item.starts_with("kinesis:") || item.starts_with("dynamodb:"))
        .map(str::to_owned)
        .collect()
}

/// A producer sends single puts, batches of several unicorns, aggregates, and the creation of the
/// stream.
#[tokio::test]
async fn the_producers_policy_is_what_a_producer_sends() -> Result<()> {
    let workshop = Workshop::open().await?;
    for line in [
        "./producer -create-stream 1 -count 1 -interval 1ms",
        "./producer -unicorns 4 -count 4 -interval 1ms",
        "./producer -aggregate -unicorns 4 -count 4 -interval 1ms",
    ] {
        assert_eq!(workshop.run("producer", line)?.ended().await?.code(), Some(0), "{line}");
    }
    let sent = workshop.aws.local.requests().operations("producer");
    assert_eq!(allowed("iam/producer.json", |_| true)?, sent);
    Ok(())
}

/// The whole life of a consumer: a table that is created, a merge (which reads the other parent's
/// lease), and finished leases that are deleted when their child has made progress.
#[tokio::test]
async fn the_consumers_policy_is_what_a_consumer_sends() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {BRIEF}");
    let mut consumer = workshop.run("consumer", &line)?;
    workshop.aws.put("wildrydes", "Shadowfax", b"before").await?;
    consumer.wait_for_records(1).await?;
    workshop.aws.merge_lowest("wildrydes").await?;
    workshop.aws.put("wildrydes", "Shadowfax", b"after").await?;
    consumer.wait_for_records(2).await?;
    workshop.aws.local.requests().wait_for("consumer", "DeleteItem", 1).await;
    assert_eq!(consumer.stop(INT).await?, 0);
    let sent = workshop.aws.local.requests().operations("consumer");
    assert_eq!(allowed("iam/consumer.json", |name| name != FAN_OUT)?, sent);

    let line = format!("{line} --fan-out");
    let mut consumer = workshop.run("consumer", &line)?;
    workshop.aws.put("wildrydes", "Shadowfax", b"sent").await?;
    consumer.wait_for_records(1).await?;
    assert_eq!(consumer.stop(INT).await?, 0);
    let sent = workshop.aws.local.requests().operations("consumer");
    assert_eq!(allowed("iam/consumer.json", |_| true)?, sent);
    Ok(())
}

/// With an existing stream, and a table as the template creates it, the optional statements are not
/// needed.
#[tokio::test]
async fn what_is_optional_in_the_policies_is_not_needed_when_everything_exists() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    create_table_of_template(&workshop).await?;
    workshop.aws.put("wildrydes", "Shadowfax", b"news").await?;
    let line = format!("./consumer --app wildrydes-tail --from trim-horizon {BRIEF}");
    let mut consumer = workshop.run("consumer", &line)?;
    consumer.wait_for_records(1).await?;
    assert_eq!(consumer.stop(INT).await?, 0);
    let mut producer = workshop.run("producer", "./producer -count 1 -interval 1ms")?;
    assert_eq!(producer.ended().await?.code(), Some(0));
    for client in ["producer", "consumer"] {
        let sent = workshop.aws.local.requests().operations(client);
        let policy = format!("iam/{client}.json");
        let optional = allowed(&policy, |name| name.starts_with(OPTIONAL))?;
        assert!(!optional.is_empty() && sent.is_disjoint(&optional), "{client}: {sent:?}");
    }
    Ok(())
}

async fn create_table_of_template(workshop: &Workshop) -> Result<()> {
    let key = "leaseKey";
    assert!(
        deploy("wildrydes.yaml").contains(&format!("- AttributeName: {key}\n          KeyType"))
    );
    let attribute = AttributeDefinition::builder().attribute_name(key);
    let schema = KeySchemaElement::builder().attribute_name(key).key_type(KeyType::Hash);
    let table = workshop.aws.dynamo.create_table().table_name("wildrydes-tail");
    table
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(attribute.attribute_type(ScalarAttributeType::S).build()?)
        .key_schema(schema.build()?)
        .send()
        .await?;
    Ok(())
}

#[test]
fn the_template_grants_what_the_policies_allow() -> Result<()> {
    let needed = |policy| allowed(policy, |name| !name.starts_with(OPTIONAL));
    assert_eq!(granted("ProducerRole"), needed("iam/producer.json")?);
    assert_eq!(granted("ConsumerRole"), needed("iam/consumer.json")?);
    let optional = |wanted| allowed("iam/consumer.json", move |name| name == wanted);
    assert_eq!(granted("CreateLeaseTablePolicy"), optional("OptionalCreateTheLeaseTable")?);
    assert_eq!(granted("FanOutPolicy"), optional(FAN_OUT)?);
    Ok(())
}
