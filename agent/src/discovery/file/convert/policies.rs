//! The `policies` section.

use std::collections::{HashMap, HashSet};

use super::Converter;
use crate::discovery::file::document as written;
use crate::discovery::file::scalar::{Cidr, Pattern, ServiceAccountName};
use crate::discovery::yaml::Path;
use crate::model::Workload;
use crate::policy::{Group, Kind, Match, Policy, Rule, Scope, ServiceAccount, StringMatch};

impl Converter {
    pub(super) fn policies(&mut self, policies: Vec<written::Policy>) -> Vec<Policy> {
        let mut seen = HashMap::new();
        let mut converted = Vec::with_capacity(policies.len());
        for (at, policy) in policies.into_iter().enumerate() {
            let path = Path::default().key("policies").index(at);
            let policy = self.policy(&path, policy);
            if let Some(first) = seen.insert(policy.key(), at) {
                let key = policy.key();
                self.errors.add(path.key("name"), format!("policies[{first}] is {key:?} already"));
            }
            converted.push(policy);
        }
        converted
    }

    fn policy(&mut self, path: &Path, policy: written::Policy) -> Policy {
        self.check_name(path.key("name"), &policy.name);
        self.check_name(path.key("namespace"), &policy.namespace);
        let mut groups = Vec::with_capacity(policy.groups.len());
        for (g, group) in policy.groups.into_iter().enumerate() {
            let path = path.key("groups").index(g);
            let mut rules = Vec::with_capacity(group.rules.len());
            for (r, rule) in group.rules.into_iter().enumerate() {
                let path = path.key("rules").index(r).key("matches");
                let matches = rule.matches.into_iter().enumerate();
                rules.push(Rule {
                    matches: matches.map(|(m, fields)| self.fields(&path.index(m), fields)).collect(),
                });
            }
            groups.push(Group { rules, never: None });
        }
        Policy {
            kind: Kind::Authorization,
            namespace: policy.namespace.into(),
            name: policy.name.into(),
            scope: policy.scope,
            action: policy.action,
            dry_run: policy.dry_run,
            groups,
            defect: None,
        }
    }

    fn fields(&mut self, path: &Path, fields: written::Match) -> Match {
        if fields == written::Match::default() {
            self.warnings.add(path.clone(), "a match without fields never holds");
        }
        for (name, ports) in [
            ("destinationPorts", &fields.destination_ports),
            ("notDestinationPorts", &fields.not_destination_ports),
        ] {
            for (at, port) in ports.iter().enumerate() {
                self.check_port(path.key(name).index(at), *port);
            }
        }
        Match {
            namespaces: strings(fields.namespaces),
            not_namespaces: strings(fields.not_namespaces),
            principals: strings(fields.principals),
            not_principals: strings(fields.not_principals),
            service_accounts: accounts(fields.service_accounts),
            not_service_accounts: accounts(fields.not_service_accounts),
            source_ips: nets(fields.source_ips),
            not_source_ips: nets(fields.not_source_ips),
            destination_ips: nets(fields.destination_ips),
            not_destination_ips: nets(fields.not_destination_ips),
            destination_ports: fields.destination_ports,
            not_destination_ports: fields.not_destination_ports,
            ..Match::default()
        }
    }

    /// Warns of policies that apply to nothing.
    pub(super) fn check_selectors(&mut self, policies: &[Policy], workloads: &[Workload]) {
        let named: HashSet<_> = workloads.iter().flat_map(|workload| &workload.policies).collect();
        for (at, policy) in policies.iter().enumerate() {
            if policy.scope == Scope::WorkloadSelector && !named.contains(&policy.key()) {
                self.warnings.add(
                    Path::default().key("policies").index(at).key("name"),
                    "applies to nothing: no workload names it in authorizationPolicies",
                );
            }
        }
    }
}

fn strings(values: Vec<Pattern>) -> Vec<StringMatch> {
    values.into_iter().map(|value| value.0).collect()
}

fn accounts(values: Vec<ServiceAccountName>) -> Vec<ServiceAccount> {
    values.into_iter().map(|value| value.0).collect()
}

fn nets(values: Vec<Cidr>) -> Vec<ipnet::IpNet> {
    values.into_iter().map(|value| value.0).collect()
}
