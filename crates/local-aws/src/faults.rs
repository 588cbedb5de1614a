//! Fault injection.
//!
//! Owns the fault rules, their counters and their seeded generators, and the set of partitioned
//! clients; decides the fate of each request. Never applies a request and never writes a reply: the
//! gateway carries out the decision.
//!
//! The same rules in the same order produce the same faults for the same requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch;

/// One of the two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Amazon Kinesis Data Streams.
    Kinesis,
    /// Amazon DynamoDB.
    DynamoDb,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kinesis => "kinesis",
            Self::DynamoDb => "dynamodb",
        })
    }
}

/// The effect of a rule on a request that it hits.
///
/// "Applied" means that the service has carried out the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// An error reply; not applied.
    FailBefore {
        /// The error type, such as `InternalFailure`.
        code: String,
        /// The HTTP status: an SDK retries 5xx on its own.
        status: u16,
    },
    /// Applied, then an error reply.
    FailAfter {
        /// The error type, such as `InternalFailure`.
        code: String,
        /// The HTTP status: an SDK retries 5xx on its own.
        status: u16,
    },
    /// The service's own throttling error; not applied.
    Throttle,
    /// Carried out after this delay; later rules still apply. In JSON `{"delay_ms": 250}`.
    #[serde(rename = "delay_ms", serialize_with = "to_millis", deserialize_with = "from_millis")]
    Delay(Duration),
    /// Refused, and not applied, if the signature's date is more than five minutes from the
    /// services' clock, as AWS does for a caller whose clock is wrong; other requests are not
    /// changed. Together with [`Clock::advance`](crate::Clock::advance) it simulates a clock that is
    /// wrong or jumps.
    CheckDate,
    /// Never answered; not applied. The caller's own timeout ends it.
    Hang,
    /// Applied; never answered. The caller's own timeout ends it, and the caller cannot know the
    /// outcome.
    HangAfter,
    /// Applied; the connection breaks in the middle of the reply.
    DropHalfReply,
    /// The connection breaks before anything happens; not applied.
    Disconnect,
    /// Applied; the connection breaks before the reply.
    DisconnectAfter,
    /// Applied; an event stream sends nothing after this many events, and its connection stays
    /// open. Other replies are not changed. In JSON `{"fall_silent_after": 20}`.
    #[serde(rename = "fall_silent_after")]
    FallSilent(usize),
}

fn to_millis<S: Serializer>(delay: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
}

fn from_millis<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_millis)
}

/// A fault rule: the requests that it matches, and its effect.
///
/// A field that is not set matches everything: `Rule::new(effect)` hits every request of every
/// client.
///
/// # Example: two throttled writes
///
/// ```
/// use local_aws::{Effect, LocalAws, Rule, Service};
///
/// let local = LocalAws::in_memory();
/// let rule = Rule::new(Effect::Throttle).service(Service::Kinesis).operation("PutRecord").times(2);
/// let id = local.faults().add(rule);
/// assert_eq!(local.faults().fired(id), 0);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Only requests of this client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Only requests to this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Only this operation, such as `PutRecord`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only requests whose body contains this text: a shard id, a lease key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containing: Option<String>,
    /// Lets this many matching requests pass first.
    #[serde(default)]
    pub skip: u64,
    /// Hits at most this many; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// The probability of a hit, 0 to 1, drawn from the rule's own seeded generator.
    #[serde(default = "always")]
    pub probability: f64,
    /// The effect.
    pub effect: Effect,
}

fn always() -> f64 {
    1.0
}

impl Rule {
    /// Creates a rule that hits every request.
    #[must_use]
    pub fn new(effect: Effect) -> Self {
        Self {
            client: None,
            service: None,
            operation: None,
            containing: None,
            skip: 0,
            times: None,
            probability: always(),
            effect,
        }
    }

    /// Restricts the rule to requests of this client.
    #[must_use]
    pub fn client(mut self, client: impl Into<String>) -> Self {
        self.client = Some(client.into());
        self
    }

    /// Restricts the rule to requests to this service.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.service = Some(service);
        self
    }

    /// Restricts the rule to this operation, such as `PutRecord`.
    #[must_use]
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    /// Restricts the rule to requests whose body contains this text.
    #[must_use]
    pub fn containing(mut self, text: impl Into<String>) -> Self {
        self.containing = Some(text.into());
        self
    }

    /// Lets the first `n` matching requests pass.
    #[must_use]
    pub fn skip(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Hits at most `n` requests.
    #[must_use]
    pub fn times(mut self, n: u64) -> Self {
        self.times = Some(n);
        self
    }

    /// Hits each matching request with this probability, 0 to 1.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    /// Returns what is invalid in a rule that was received from outside, if anything.
    pub(crate) fn complaint(&self) -> Option<String> {
        if !(0.0..=1.0).contains(&self.probability) {
            return Some(format!("`probability` is {}, must be 0 to 1", self.probability));
        }
        match &self.effect {
            Effect::FailBefore { status, .. } | Effect::FailAfter { status, .. }
                if !(400..600).contains(status) =>
            {
                Some(format!("`status` is {status}, must be 400 to 599"))
            }
            Effect::FailBefore { code, .. } | Effect::FailAfter { code, .. }
                if code.is_empty() || !code.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                Some(format!("`code` is `{code}`, must be an error type such as `InternalFailure`"))
            }
            Effect::FailBefore { .. }
            | Effect::FailAfter { .. }
            | Effect::Throttle
            | Effect::Delay(_)
            | Effect::CheckDate
            | Effect::Hang
            | Effect::HangAfter
            | Effect::DropHalfReply
            | Effect::Disconnect
            | Effect::DisconnectAfter
            | Effect::FallSilent(_) => None,
        }
    }

    fn matches(&self, request: &Subject<'_>) -> bool {
        let is = |wanted: &Option<String>, got: &str| wanted.as_ref().is_none_or(|w| w == got);
        is(&self.client, request.client)
            && self.service.is_none_or(|service| service == request.service)
            && is(&self.operation, request.operation)
            && self.containing.as_ref().is_none_or(|text| contains(request.body, text.as_bytes()))
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

/// The id of a rule, for removing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub(crate) u64);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A rule in force and its counters.
#[derive(Clone, Debug, Serialize)]
pub struct RuleStatus {
    /// The id.
    pub id: RuleId,
    /// The rule.
    pub rule: Rule,
    /// How many requests it matched.
    pub matched: u64,
    /// How many of them it hit.
    pub fired: u64,
}

/// The properties of a request that rules match.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) client: &'a str,
    pub(crate) service: Service,
    pub(crate) operation: &'a str,
    pub(crate) body: &'a [u8],
}

/// The decision about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// How long to wait first.
    pub(crate) delay: Duration,
    /// The first effect that is not a delay.
    pub(crate) effect: Option<Effect>,
}

/// The fault rules and partitions of one [`LocalAws`](crate::LocalAws); clones share them.
#[derive(Clone, Debug)]
pub struct Faults {
    seed: u64,
    rules: Arc<Mutex<Rules>>,
    partitioned: watch::Sender<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Rules {
    added: u64,
    active: BTreeMap<RuleId, Active>,
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    matched: u64,
    fired: u64,
    rng: fastrand::Rng,
}

impl Active {
    fn hits(&mut self, request: &Subject<'_>) -> bool {
        if !self.rule.matches(request) {
            return false;
        }
        self.matched += 1;
        let due = self.matched > self.rule.skip
            && self.rule.times.is_none_or(|times| self.fired < times)
            && self.rng.f64() < self.rule.probability;
        self.fired += u64::from(due);
        due
    }
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, rules: Arc::default(), partitioned: watch::Sender::new(BTreeSet::new()) }
    }

    /// Adds a rule after those added earlier.
    pub fn add(&self, rule: Rule) -> RuleId {
        self.with_rules(|rules| {
            rules.added += 1;
            let id = RuleId(rules.added);
            // Each rule has its own generator, so that its draws do not depend on other rules.
            let rng =
                fastrand::Rng::with_seed(self.seed ^ id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            rules.active.insert(id, Active { rule, matched: 0, fired: 0, rng });
            id
        })
    }

    /// Removes a rule; returns false if there is none with this id.
    pub fn remove(&self, id: RuleId) -> bool {
        self.with_rules(|rules| rules.active.remove(&id).is_some())
    }

    /// Removes all rules and heals all partitions.
    pub fn clear(&self) {
        self.with_rules(|rules| rules.active.clear());
        self.partitioned.send_modify(BTreeSet::clear);
    }

    /// Returns how many requests the rule has hit; 0 if it was removed.
    #[must_use]
    pub fn fired(&self, id: RuleId) -> u64 {
        self.with_rules(|rules| rules.active.get(&id).map_or(0, |active| active.fired))
    }

    /// Returns all rules in force, in the order in which they are evaluated.
    #[must_use]
    pub fn rules(&self) -> Vec<RuleStatus> {
        self.with_rules(|rules| {
            rules
                .active
                .iter()
                .map(|(id, active)| RuleStatus {
                    id: *id,
                    rule: active.rule.clone(),
                    matched: active.matched,
                    fired: active.fired,
                })
                .collect()
        })
    }

    /// Partitions `client` from both services.
    ///
    /// Its requests get no answer and are not applied, including those that a rule delays at this
    /// moment; event streams fall silent. When the partition is healed, every call that still waits
    /// ends with a broken connection. For a lost reply, see [`Effect::HangAfter`].
    pub fn partition(&self, client: &str) {
        self.partitioned.send_modify(|clients| {
            clients.insert(client.to_owned());
        });
    }

    /// Ends the partition of `client`.
    pub fn heal(&self, client: &str) {
        self.partitioned.send_modify(|clients| {
            clients.remove(client);
        });
    }

    /// Returns the partitioned clients.
    #[must_use]
    pub fn partitioned(&self) -> BTreeSet<String> {
        self.partitioned.borrow().clone()
    }

    pub(crate) fn is_partitioned(&self, client: &str) -> bool {
        self.partitioned.borrow().contains(client)
    }

    /// Waits until `client` is not partitioned.
    pub(crate) async fn healed(&self, client: &str) {
        self.partitioned
            .subscribe()
            .wait_for(|clients| !clients.contains(client))
            .await
            .expect("the sender lives in self");
    }

    /// Decides the fate of `request`. It is counted, so call this once per request.
    pub(crate) fn judge(&self, request: &Subject<'_>) -> Verdict {
        self.with_rules(|rules| {
            let mut verdict = Verdict::default();
            for active in rules.active.values_mut() {
                if active.hits(request) {
                    if let Effect::Delay(by) = active.rule.effect {
                        verdict.delay += by;
                    } else {
                        verdict.effect = Some(active.rule.effect.clone());
                        // Later rules do not count a request that is already decided.
                        break;
                    }
                }
            }
            verdict
        })
    }

    fn with_rules<T>(&self, f: impl FnOnce(&mut Rules) -> T) -> T {
        f(&mut self.rules.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUT: Subject<'static> = Subject {
        client: "a",
        service: Service::Kinesis,
        operation: "PutRecord",
        body: br#"{"StreamName":"s"}"#,
    };

    fn hits(faults: &Faults, n: usize) -> String {
        (0..n).map(|_| if faults.judge(&PUT).effect.is_some() { 'x' } else { '.' }).collect()
    }

    #[test]
    fn a_rule_skips_then_fires_a_number_of_times() {
        let faults = Faults::new(0);
        let id = faults.add(Rule::new(Effect::Hang).skip(2).times(3));
        assert_eq!(hits(&faults, 8), "..xxx...");
        assert_eq!(faults.fired(id), 3);
    }

    #[test]
    fn every_field_of_a_rule_narrows_it() {
        let rule = || Rule::new(Effect::Hang);
        for (rule, expected) in [
            (rule(), true),
            (rule().client("a"), true),
            (rule().client("b"), false),
            (rule().service(Service::DynamoDb), false),
            (rule().operation("PutRecord"), true),
            (rule().operation("PutRecords"), false),
            (rule().containing(r#""StreamName":"s""#), true),
            (rule().containing("other"), false),
            (rule().probability(0.0), false),
        ] {
            let faults = Faults::new(0);
            faults.add(rule.clone());
            assert_eq!(faults.judge(&PUT).effect.is_some(), expected, "{rule:?}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_faults_and_another_seed_others() {
        let draw = |seed| {
            let faults = Faults::new(seed);
            faults.add(Rule::new(Effect::Hang).probability(0.5));
            hits(&faults, 64)
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn delays_add_up_and_the_first_other_effect_wins() {
        let faults = Faults::new(0);
        faults.add(Rule::new(Effect::Delay(Duration::from_secs(1))));
        faults.add(Rule::new(Effect::Delay(Duration::from_secs(2))));
        faults.add(Rule::new(Effect::Throttle));
        faults.add(Rule::new(Effect::Hang));
        let verdict = faults.judge(&PUT);
        assert_eq!(verdict.delay, Duration::from_secs(3));
        assert_eq!(verdict.effect, Some(Effect::Throttle));
    }

    #[test]
    fn a_removed_rule_does_nothing() {
        let faults = Faults::new(0);
        let id = faults.add(Rule::new(Effect::Hang));
        assert!(faults.remove(id));
        assert!(!faults.remove(id));
        assert_eq!(hits(&faults, 2), "..");
    }

    #[test]
    fn rules_read_from_json_mean_what_the_builder_means() {
        for (json, rule) in [
            (r#"{"effect":"throttle"}"#, Rule::new(Effect::Throttle)),
            (
                r#"{"client":"a","service":"dynamodb","operation":"UpdateItem","skip":1,"times":2,
                    "probability":0.5,"effect":{"delay_ms":250}}"#,
                Rule::new(Effect::Delay(Duration::from_millis(250)))
                    .client("a")
                    .service(Service::DynamoDb)
                    .operation("UpdateItem")
                    .skip(1)
                    .times(2)
                    .probability(0.5),
            ),
            (
                r#"{"effect":{"fail_after":{"code":"InternalFailure","status":500}}}"#,
                Rule::new(Effect::FailAfter { code: "InternalFailure".into(), status: 500 }),
            ),
        ] {
            assert_eq!(serde_json::from_str::<Rule>(json).unwrap(), rule);
            let written = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<Rule>(&written).unwrap(), rule);
        }
        assert!(serde_json::from_str::<Rule>(r#"{"efect":"hang"}"#).is_err());
    }

    #[test]
    fn a_rule_with_an_impossible_value_is_refused_by_name() {
        let bad = Rule::new(Effect::Hang).probability(1.5);
        assert!(bad.complaint().unwrap().contains("probability"));
        let bad = Rule::new(Effect::FailBefore { code: "X".into(), status: 200 });
        assert!(bad.complaint().unwrap().contains("status"));
        let bad = Rule::new(Effect::FailAfter { code: "a b".into(), status: 500 });
        assert!(bad.complaint().unwrap().contains("code"));
        assert_eq!(Rule::new(Effect::Hang).complaint(), None);
    }
}
