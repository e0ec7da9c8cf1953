//! The rules of Istio's AuthorizationPolicies: what can never match, and what matches more than was meant.

use serde_json::Value;

use super::super::Object;
use super::contradiction::{PAIRS, excluded};
use super::world::{World, declared, is_undeclared, items, texts};
use super::{Findings, codes};

struct Rules<'w, 'a, 'f> {
    world: &'w World<'a>,
    policy: &'w Object,
    action: &'w str,
    found: &'f mut Findings,
}

pub(super) fn look(world: &World<'_>, policy: &Object, found: &mut Findings) {
    let action = policy.spec.get("action").and_then(Value::as_str).unwrap_or("ALLOW");
    let mut rules = Rules { world, policy, action, found };
    let all = items(&policy.spec, "spec", "rules");
    if all.is_empty() && is_nothing(policy.spec.get("rules")) {
        let (code, message) = match action {
            "ALLOW" => (&codes::ALLOWS_NOBODY, "it has no rules, so it allows nobody"),
            _ => (&codes::NEVER_MATCHES, "it has no rules, so it never matches"),
        };
        rules.found.add(code, policy, "spec.rules", message);
    }
    for (at, rule) in all {
        rules.rule(&at, rule);
    }
}

fn is_nothing(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(fields)) => fields.values().all(|value| is_nothing(Some(value))),
        Some(_) => false,
    }
}

fn is_set(value: &Value, key: &str) -> bool {
    !is_nothing(value.get(key))
}

/// Fields that only ztunnel with a waypoint can judge.
const OF_REQUESTS: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
const L4_SOURCE: [&str; 8] = [
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "ipBlocks",
    "notIpBlocks",
];
const L4_KEYS: [&str; 5] =
    ["source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port"];

impl Rules<'_, '_, '_> {
    fn add(&mut self, code: &codes::Code, at: &str, message: impl Into<String>) {
        self.found.add(code, self.policy, at, message);
    }

    fn rule(&mut self, at: &str, rule: &Value) {
        if is_nothing(Some(rule)) && self.action == "ALLOW" {
            self.add(&codes::ALLOWS_EVERYBODY, at, "it has no condition, so it allows everybody");
        }
        self.empty_lists(at, rule, &["from", "to", "when"]);
        let sources = inner(rule, at, "from", "source");
        let operations = inner(rule, at, "to", "operation");
        let conditions = items(rule, at, "when");
        for (at, source) in &sources {
            self.source(at, source);
        }
        for (at, operation) in &operations {
            self.operation(at, operation);
        }
        for (at, condition) in &conditions {
            self.condition(at, condition);
        }
        self.requests(at, &operations, &conditions);
        let bare = operations.is_empty() && conditions.is_empty();
        if self.action == "ALLOW" && bare {
            for (at, source) in &sources {
                self.widely(at, source);
            }
        }
    }

    fn empty_lists(&mut self, at: &str, value: &Value, keys: &[&str]) {
        for (key, list) in value.as_object().into_iter().flatten() {
            let known = keys.is_empty() || keys.contains(&key.as_str());
            if known && list.as_array().is_some_and(Vec::is_empty) {
                self.add(&codes::EMPTY_LIST, &format!("{at}.{key}"), "the list is empty");
            }
        }
    }

    fn contradiction(&mut self, at: &str, value: &Value, pairs: &[(&str, &str)]) {
        for (positive, negative) in pairs {
            let one_of: Vec<_> = texts(value, at, positive).into_iter().map(|(_, text)| text).collect();
            let none_of: Vec<_> = texts(value, at, negative).into_iter().map(|(_, text)| text).collect();
            if excluded(positive, &one_of, &none_of) {
                let message = format!("{negative} excludes every value of {positive}");
                self.add(&codes::CONTRADICTION, &format!("{at}.{positive}"), message);
            }
        }
    }

    fn source(&mut self, at: &str, source: &Value) {
        self.empty_lists(at, source, &[]);
        self.contradiction(at, source, &PAIRS);
        for (at, name) in texts(source, at, "namespaces") {
            self.namespace(&at, name);
        }
        for (at, name) in texts(source, at, "principals") {
            self.principal(&at, name);
        }
        for (at, name) in texts(source, at, "serviceAccounts") {
            self.account(&at, name);
        }
        self.elsewhere(at, source);
    }

    /// Namespaces, and principals of others.
    fn elsewhere(&mut self, at: &str, source: &Value) {
        let list = |key| texts(source, at, key).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        let (namespaces, principals) = (list("namespaces"), list("principals"));
        let plain = |text: &&str| !text.contains('*');
        if namespaces.is_empty() || principals.is_empty() || !namespaces.iter().all(plain) {
            return;
        }
        let of = |principal: &&str| {
            let (namespace, _) = parts(principal)?;
            Some(namespaces.contains(&namespace))
        };
        if principals.iter().all(|principal| of(principal) == Some(false)) {
            let message = "every principal is of another namespace than those of namespaces";
            self.add(&codes::CONTRADICTION, &format!("{at}.principals"), message);
        }
    }

    fn namespace(&mut self, at: &str, name: &str) {
        let there = match (name.strip_suffix('*'), name.strip_prefix('*')) {
            (Some(""), _) => true,
            (Some(start), _) => self.world.namespaces().any(|namespace| namespace.starts_with(start)),
            (_, Some(end)) => self.world.namespaces().any(|namespace| namespace.ends_with(end)),
            (None, None) => self.world.has_namespace(name),
        };
        if !there && !self.world.pods.is_empty() {
            self.add(&codes::UNKNOWN_NAMESPACE, at, format!("there is no namespace {name}"));
        }
    }

    fn principal(&mut self, at: &str, text: &str) {
        let domain = self.world.resources.settings.trust_domain.as_str();
        let ours = |principal: &&str| {
            [domain, "cluster.local"].iter().any(|own| principal.split('/').next() == Some(own))
        };
        let principal = text.strip_prefix("spiffe://").unwrap_or(text);
        if let Some((namespace, account)) = Some(principal).filter(ours).and_then(parts) {
            self.runs(at, namespace, account);
        }
    }

    fn account(&mut self, at: &str, text: &str) {
        let own = &*self.policy.meta.namespace;
        let (namespace, account) = text.split_once('/').unwrap_or((own, text));
        self.runs(at, namespace, account);
    }

    fn runs(&mut self, at: &str, namespace: &str, account: &str) {
        super::linkerd::runs(self.world, self.policy, at, namespace, account, self.found);
    }

    fn operation(&mut self, at: &str, operation: &Value) {
        self.empty_lists(at, operation, &[]);
        self.contradiction(at, operation, &PAIRS);
        for (at, port) in texts(operation, at, "ports") {
            self.port(&at, port);
        }
    }

    fn condition(&mut self, at: &str, condition: &Value) {
        self.empty_lists(at, condition, &[]);
        let key = condition.get("key").and_then(Value::as_str).unwrap_or_default();
        let as_field = match key {
            "source.ip" | "remote.ip" | "destination.ip" => "ipBlocks",
            "destination.port" => "ports",
            "source.principal" => "principals",
            _ => "values",
        };
        let list = |name| texts(condition, at, name).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        if excluded(as_field, &list("values"), &list("notValues")) {
            let message = "notValues excludes every one of values";
            self.add(&codes::CONTRADICTION, &format!("{at}.values"), message);
        }
        for (at, value) in texts(condition, at, "values") {
            match key {
                "destination.port" => self.port(&at, value),
                "source.namespace" => self.namespace(&at, value),
                "source.principal" => self.principal(&at, value),
                "source.serviceAccount" | "source.serviceaccount" => self.account(&at, value),
                _ => {}
            }
        }
    }

    fn port(&mut self, at: &str, text: &str) {
        let pods = self.world.pods_of(self.policy);
        if text.parse().is_ok_and(|port| is_undeclared(port, pods)) {
            let message = format!("no pod that it selects declares port {text}: {}", declared(pods));
            self.add(&codes::UNDECLARED_PORT, at, message);
        }
    }

    /// What is said of requests, where there are none or where only a waypoint sees them.
    fn requests(&mut self, at: &str, operations: &[(String, &Value)], conditions: &[(String, &Value)]) {
        let of_request = |operation: &Value| OF_REQUESTS.iter().any(|field| is_set(operation, field));
        let key =
            |condition: &Value| condition.get("key").and_then(Value::as_str).unwrap_or_default().to_string();
        let headers = conditions.iter().any(|(_, condition)| key(condition).starts_with("request.headers["));
        for (at, operation) in operations {
            if headers || of_request(operation) {
                self.not_http(at, operation);
            }
        }
        if headers && operations.is_empty() {
            self.not_http(at, &Value::Null);
        }
        if self.action != "DENY" {
            return;
        }
        let rule = self.policy.spec.get("rules").and_then(Value::as_array);
        let index = at.trim_start_matches("spec.rules[").trim_end_matches(']').parse::<usize>();
        let sources = rule.zip(index.ok()).and_then(|(rules, index)| rules.get(index));
        let sources = sources.map(|rule| inner(rule, at, "from", "source")).unwrap_or_default();
        let l4_source = |source: &Value| L4_SOURCE.iter().any(|field| is_set(source, field));
        let l4_operation =
            |operation: &Value| ["ports", "notPorts"].iter().any(|field| is_set(operation, field));
        let lost = sources
            .iter()
            .filter(|(_, source)| !is_nothing(Some(source)) && !l4_source(source))
            .chain(operations.iter().filter(|(_, o)| of_request(o) && !l4_operation(o)))
            .chain(conditions.iter().filter(|(_, c)| !L4_KEYS.contains(&&*key(c))));
        for at in lost.map(|(at, _)| at.clone()).collect::<Vec<_>>() {
            let message = "ztunnel judges nothing of it, and drops the rule with it";
            self.add(&codes::DENY_NOOP_AMBIENT, &at, message);
        }
    }

    /// Every port that is meant has a name which says that it is no HTTP.
    fn not_http(&mut self, at: &str, operation: &Value) {
        let given = texts(operation, at, "ports");
        let given: Vec<u16> = given.iter().filter_map(|(_, port)| port.parse().ok()).collect();
        let pods = self.world.pods_of(self.policy);
        let meant: Vec<_> = pods
            .iter()
            .flat_map(|pod| &pod.facts.ports)
            .filter(|port| given.is_empty() || given.contains(&port.port))
            .collect();
        if !meant.is_empty() && meant.iter().all(|port| is_no_http(&port.name)) {
            let message = format!("it is about requests, and the ports are no HTTP: {}", declared(pods));
            self.add(&codes::HTTP_ON_TCP, at, message);
        }
    }

    fn widely(&mut self, at: &str, source: &Value) {
        let set: Vec<_> = source
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| !is_nothing(Some(v)))
            .map(|(k, _)| &**k)
            .collect();
        let any = texts(source, at, "principals").iter().any(|(_, text)| *text == "*");
        if set == ["principals"] && any {
            let message = "every identity is admitted, those of other trusted trust domains too";
            self.add(&codes::ALLOWS_ANY_IDENTITY, &format!("{at}.principals"), message);
        }
        let negative = ["notPrincipals", "notNamespaces", "notServiceAccounts", "notTrustDomains"];
        if !set.is_empty() && set.iter().all(|field| negative.contains(field)) {
            let message =
                format!("it has {} alone, which a client without identity meets", set.join(" and "));
            self.add(&codes::NEGATIVE_ONLY, at, message);
        }
    }
}

/// `from[0].source` and the like.
fn inner<'v>(rule: &'v Value, at: &str, list: &str, name: &str) -> Vec<(String, &'v Value)> {
    let all = items(rule, at, list).into_iter();
    all.filter_map(|(at, item)| Some((format!("{at}.{name}"), item.get(name)?))).collect()
}

/// Namespace and account of a principal that names one identity.
fn parts(principal: &str) -> Option<(&str, &str)> {
    if principal.contains('*') {
        return None;
    }
    let (_, path) = principal.split_once('/')?;
    let (namespace, account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
    (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
}

/// Istio reads the protocol out of the name of a port.
fn is_no_http(name: &str) -> bool {
    let protocol = name.split('-').next().unwrap_or_default();
    matches!(
        protocol,
        "tcp"
            | "tls"
            | "https"
            | "udp"
            | "mongo"
            | "mysql"
            | "redis"
            | "postgres"
            | "postgresql"
            | "kafka"
            | "amqp"
    )
}
