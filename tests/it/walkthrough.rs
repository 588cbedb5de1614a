//! The workshop's page on streaming, with its commands as it prints them.

use anyhow::Result;
use e2e::account::Account;
use e2e::process::Transcript;
use e2e::workshop::Workshop;

use crate::{INT, settled, stop_producers};

/// The consumer's output as the page shows it.
const SAMPLE: &str = r#"{
    "Name": "Shadowfax",
    "StatusTime": "2017-06-05 09:17:08.189",
    "Latitude": 42.264444250051326,
    "Longitude": -71.97582884770408,
    "Distance": 175,
    "MagicPoints": 110,
    "HealthPoints": 150
}
{
    "Name": "Shadowfax",
    "StatusTime": "2017-06-05 09:17:09.191",
    "Latitude": 42.265486935100476,
    "Longitude": -71.97442977859625,
    "Distance": 163,
    "MagicPoints": 110,
    "HealthPoints": 151
}
"#;

const FIELDS: [&str; 7] =
    ["Name", "StatusTime", "Latitude", "Longitude", "Distance", "MagicPoints", "HealthPoints"];

fn periods(transcript: &Transcript) -> usize {
    transcript.stdout.iter().filter(|byte| **byte == b'.').count()
}

/// Returns whether the text has the form `2017-06-05 09:17:08.189`.
fn is_status_time(text: &str) -> bool {
    let shape = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c });
    shape.eq("0000-00-00 00:00:00.000".chars())
}

/// Panics unless `text` looks like the page's sample: the fields in order, one per line.
fn assert_looks_like_the_sample(text: &str) {
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[8]), (9, "{", "}"), "{text}");
    for (line, field) in lines[1..8].iter().zip(FIELDS) {
        let value = line.strip_prefix(&format!("    \"{field}\": ")).expect(text);
        let comma = if field == "HealthPoints" { "" } else { "," };
        let value = value.strip_suffix(comma).expect(text);
        let as_expected = match field {
            "Name" => value.starts_with('"') && value.ends_with('"'),
            "StatusTime" => is_status_time(value.trim_matches('"')),
            "Latitude" | "Longitude" => value.parse::<f64>().is_ok() && value.contains('.'),
            _ => value.parse::<i64>().is_ok(),
        };
        assert!(as_expected, "{line}");
    }
}

/// Returns a stored record in the form of the page. Records are flat, so that two replacements
/// suffice.
fn indented(stored: &[u8]) -> String {
    let stored = std::str::from_utf8(stored).unwrap().trim_end();
    let inner = stored.trim_start_matches('{').trim_end_matches('}');
    let lines = inner.replace(",\"", ",\n    \"").replace("\":", "\": ");
    format!("{{\n    {lines}\n}}\n")
}

/// The page from its first command to its last, with the producer's rate of one record a second.
#[tokio::test]
async fn every_command_of_the_page_works_as_printed() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    let mut producer = workshop.run("producer", "./producer -region us-east-1")?;
    producer.wait_for("a row of dots", |t| (periods(t) >= 2).then_some(())).await?;
    assert!(producer.transcript().stdout.iter().all(|byte| *byte == b'.'));

    let consumer = workshop.run("consumer", "./consumer -region us-east-1")?;
    consumer.wait_for_records(2).await?;

    // "Stop the producer by pressing Control + C": every sent record arrives, and the consumer
    // keeps running.
    assert_eq!(producer.stop(INT).await?, 0);
    let dots = periods(&producer.transcript());
    let out = format!("{}\nsent {dots} records\n", ".".repeat(dots));
    assert_eq!(String::from_utf8_lossy(&producer.transcript().stdout), out);
    let newest = workshop.aws.sent("wildrydes").await?.pop().unwrap();
    let silent = consumer.wait_for("the last record", |t| {
        (t.ids().last() == Some(&newest)).then_some(t.documents.len())
    });
    let before = silent.await?;

    // "Start the producer again", and another one in another console.
    let again = workshop.run("producer", "./producer -region us-east-1")?;
    let other = workshop.run("other", "./producer -region us-east-1 -name Bucephalus")?;
    consumer.wait_for_records(before + 1).await?;
    let both = |t: &Transcript| {
        let names = ["Shadowfax", "Bucephalus"];
        let new = || t.ids().skip(before);
        names.iter().all(|name| new().any(|id| id.unicorn == *name)).then_some(())
    };
    consumer.wait_for("data points for both unicorns", both).await?;
    stop_producers(&mut [again, other]).await?;

    // From the first printed record on, every record is there, in the form of the page.
    let sent = workshop.aws.sent("wildrydes").await?;
    let first = consumer.transcript().ids().next().cloned().unwrap();
    let start = sent.iter().position(|id| *id == first).unwrap();
    let all = consumer.wait_for("every record", |t| {
        let account = Account::of(&sent[start..], t.ids());
        account.lost.is_empty().then_some(account)
    });
    assert_eq!(all.await?.repeats, 0);
    let mut consumer = consumer;
    assert_eq!(consumer.stop(INT).await?, 0);
    let stored = workshop.aws.stored("wildrydes").await?;
    let expected: String = stored.values().flatten().skip(start).map(|d| indented(d)).collect();
    let transcript = consumer.transcript();
    assert_eq!(String::from_utf8_lossy(&transcript.stdout), expected);
    transcript.documents.iter().for_each(|d| assert_looks_like_the_sample(&d.text));
    Ok(())
}

#[tokio::test]
async fn the_pages_sample_comes_out_byte_for_byte() -> Result<()> {
    let workshop = Workshop::with_shards(1).await?;
    for object in SAMPLE.split_inclusive("}\n") {
        let record = object.replace("\n    ", "").replace("\n", "").replace("\": ", "\":");
        assert_eq!(indented(record.as_bytes()), object);
        workshop.aws.put("wildrydes", "Shadowfax", record.as_bytes()).await?;
    }
    let mut consumer = workshop.run("c", "./consumer -region us-west-2 -from trim-horizon")?;
    consumer.wait_for_records(2).await?;
    assert_eq!(consumer.stop(INT).await?, 0);
    assert_eq!(String::from_utf8_lossy(&consumer.transcript().stdout), SAMPLE);
    assert_looks_like_the_sample(SAMPLE.split_inclusive("}\n").next().unwrap());
    Ok(())
}

#[tokio::test]
async fn the_placeholder_of_the_page_is_a_usage_error_that_shows_a_region() -> Result<()> {
    let workshop = Workshop::open().await?;
    for command in ["./producer", "./consumer"] {
        let mut process =
            workshop.run("learner", &format!("{command} -region YOUR_REGION_HERE"))?;
        assert_eq!(process.ended().await?.code(), Some(2));
        let transcript = process.transcript();
        assert!(transcript.stderr.contains("us-west-2"), "{}", transcript.stderr);
        assert!(transcript.stdout.is_empty());
    }
    Ok(())
}

/// The same page with two shards and a group: the second unicorn of the page belongs to the second
/// shard.
#[tokio::test]
async fn the_page_works_with_an_application_too() -> Result<()> {
    let workshop = Workshop::with_shards(2).await?;
    let mut group = e2e::group::Group::default();
    let line = "./consumer -region us-east-1 --app wildrydes-tail --from trim-horizon";
    group.add(workshop.run("consumer", line)?);
    let producer = workshop.run("producer", "./producer -region us-east-1 -interval 100ms")?;
    let line = "./producer -region us-east-1 -name Bucephalus -interval 100ms";
    let other = workshop.run("other", line)?;
    group.wait_for("both unicorns", |g| (g.seen().len() >= 20).then_some(())).await?;
    stop_producers(&mut [producer, other]).await?;
    assert_eq!(settled(&workshop, &mut group).await?.repeats, 0);
    Ok(())
}
