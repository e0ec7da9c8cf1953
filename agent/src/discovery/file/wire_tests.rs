//! The file's policies and those that istiod sends are the same policies.

use proptest::prelude::*;
use underpass_proto::Message as _;
use underpass_proto::istio::security as sent;
use underpass_proto::istio::security::string_match::MatchType;

use super::document::{Document, Match, Mesh, Policy};
use super::parse;
use super::scalar::{Cidr, Pattern, ServiceAccountName};
use super::tests::policy;
use crate::policy::{Action, PolicySet, Scope, StringMatch, Subject, wire};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_policy_means_the_same_in_the_file_and_over_xds(mut policy in policy()) {
        policy.name = "p".into();
        let read = wire::read(&format!("{}/p", policy.namespace), &encode(&policy).encode_to_vec());
        prop_assert_eq!(&read.defects, &[]);

        let namespace = policy.namespace.clone();
        let document = Document {
            mesh: Mesh::default(),
            workloads: Vec::new(),
            services: Vec::new(),
            policies: vec![policy],
            resources: Vec::new(),
            local_pods: Vec::new(),
        };
        let state = parse(&serde_saphyr::to_string(&document).unwrap()).unwrap().state;
        prop_assert_eq!(std::slice::from_ref(&read.policy), &state.policies[..]);

        let names = [read.policy.key()];
        let mtls = Default::default();
        let subject = Subject::named(&namespace, &names, &mtls);
        let compile = |policies| PolicySet::new(policies, state.mtls.clone()).compile(&subject);
        prop_assert_eq!(compile(vec![read.policy]), compile(state.policies));
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let read = wire::read("own/p", &bytes);
        // No random bytes say who they are.
        prop_assert!(read.policy.defect.is_some() && read.policy.scope == Scope::Global);
        prop_assert_eq!(&*read.policy.key(), "own/p");
    }
}

fn encode(policy: &Policy) -> sent::Authorization {
    let rule =
        |rule: &super::document::Rule| sent::Rules { matches: rule.matches.iter().map(fields).collect() };
    let groups =
        policy.groups.iter().map(|group| sent::Group { rules: group.rules.iter().map(rule).collect() });
    sent::Authorization {
        name: policy.name.clone(),
        namespace: policy.namespace.clone(),
        scope: match policy.scope {
            Scope::Global => 0,
            Scope::Namespace => 1,
            Scope::WorkloadSelector => 2,
        },
        action: match policy.action {
            Action::Allow => 0,
            Action::Deny => 1,
            Action::Audit => unreachable!("the file's strategy makes none"),
        },
        groups: groups.collect(),
        dry_run: policy.dry_run,
    }
}

fn fields(fields: &Match) -> sent::Match {
    let ports = |ports: &[u16]| ports.iter().copied().map(u32::from).collect();
    sent::Match {
        namespaces: fields.namespaces.iter().map(text).collect(),
        not_namespaces: fields.not_namespaces.iter().map(text).collect(),
        principals: fields.principals.iter().map(text).collect(),
        not_principals: fields.not_principals.iter().map(text).collect(),
        source_ips: fields.source_ips.iter().map(address).collect(),
        not_source_ips: fields.not_source_ips.iter().map(address).collect(),
        destination_ips: fields.destination_ips.iter().map(address).collect(),
        not_destination_ips: fields.not_destination_ips.iter().map(address).collect(),
        destination_ports: ports(&fields.destination_ports),
        not_destination_ports: ports(&fields.not_destination_ports),
        service_accounts: fields.service_accounts.iter().map(account).collect(),
        not_service_accounts: fields.not_service_accounts.iter().map(account).collect(),
    }
}

fn text(pattern: &Pattern) -> sent::StringMatch {
    sent::StringMatch {
        match_type: Some(match &pattern.0 {
            StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
            StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
            StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
            StringMatch::Presence => MatchType::Presence(()),
        }),
    }
}

fn address(range: &Cidr) -> sent::Address {
    let address = match range.0.addr() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    sent::Address { address, length: range.0.prefix_len().into() }
}

fn account(account: &ServiceAccountName) -> sent::ServiceAccountMatch {
    sent::ServiceAccountMatch {
        namespace: account.0.namespace.to_string(),
        service_account: account.0.service_account.to_string(),
    }
}
