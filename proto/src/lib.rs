//! Services that Underpass speaks or serves: in the wire format of others, and its own.
//!
//! The modules follow the packages of the .proto files, which say what each field means.

/// What every message can: to be encoded and decoded.
pub use prost::{DecodeError, Message};
/// The messages that Protocol Buffers bring along.
pub use prost_types as well_known;

/// Istio's services.
pub mod istio {
    /// Policy as istiod sends it: `istio.security.Authorization`.
    #[allow(missing_docs)]
    pub mod security {
        tonic::include_proto!("istio.security");
    }
    /// `istio.v1`.
    pub mod v1 {
        /// How certificates are asked for: `istio.v1.auth.IstioCertificateService`.
        #[allow(missing_docs)]
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }
}

/// SPIRE's services.
pub mod spire {
    /// `spire.api`.
    pub mod api {
        /// What they have in common.
        #[allow(missing_docs)]
        pub mod types {
            tonic::include_proto!("spire.api.types");
        }
        /// What a SPIRE agent serves.
        pub mod agent {
            /// Certificates for delegates.
            pub mod delegatedidentity {
                /// `spire.api.agent.delegatedidentity.v1.DelegatedIdentity`.
                #[allow(missing_docs)]
                pub mod v1 {
                    tonic::include_proto!("spire.api.agent.delegatedidentity.v1");

                    impl std::fmt::Debug for X509svidWithKey {
                        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                            f.debug_struct("X509svidWithKey")
                                .field("x509_svid", &self.x509_svid)
                                .finish_non_exhaustive()
                        }
                    }
                }
            }
        }
    }
}

/// Our own services.
pub mod underpass {
    /// What agents and the controller say to each other beside Istio's services.
    #[allow(missing_docs)]
    pub mod v1 {
        tonic::include_proto!("underpass.v1");
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::{Struct, Value, value::Kind};

    use super::istio::security::string_match::MatchType;
    use super::istio::security::{
        Action, Address, Authorization, Group, Match, Rules, Scope, ServiceAccountMatch, StringMatch,
    };
    use super::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
    use super::spire::api::agent::delegatedidentity::v1::{
        SubscribeToX509BundlesResponse, SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
        X509svidWithKey,
    };
    use super::spire::api::types::{Selector, Spiffeid, X509svid};

    /// The bytes that ztunnel sends and istiod reads; a renumbered field would not be noticed otherwise.
    #[test]
    fn messages_are_istios_on_the_wire() {
        let identity = Value { kind: Some(Kind::StringValue("spiffe://td/ns/n/sa/a".into())) };
        let request = IstioCertificateRequest {
            csr: "PEM".into(),
            validity_duration: 86_400,
            metadata: Some(Struct { fields: [("ImpersonatedIdentity".into(), identity)].into() }),
        };
        let expected = [
            b"\x0a\x03PEM\x18\x80\xa3\x05\x22\x31\x0a\x2f\x0a\x14ImpersonatedIdentity".as_slice(),
            b"\x12\x17\x1a\x15spiffe://td/ns/n/sa/a",
        ]
        .concat();
        assert_eq!(request.encode_to_vec(), expected);

        let response = IstioCertificateResponse { cert_chain: vec!["leaf".into(), "roots".into()] };
        assert_eq!(response.encode_to_vec(), b"\x0a\x04leaf\x0a\x05roots");
    }

    /// As istiod sends it and ztunnel reads it, every field.
    #[test]
    fn policy_is_istios_on_the_wire() {
        let text = |match_type| StringMatch { match_type: Some(match_type) };
        let account =
            |name: &str| ServiceAccountMatch { namespace: "n".into(), service_account: name.into() };
        let range = |last| Address { address: vec![10, 0, 0, last], length: 32 };
        let fields = Match {
            namespaces: vec![text(MatchType::Exact("a".into()))],
            not_namespaces: vec![text(MatchType::Prefix("b".into()))],
            principals: vec![text(MatchType::Suffix("c".into()))],
            not_principals: vec![text(MatchType::Presence(()))],
            source_ips: vec![range(1)],
            not_source_ips: vec![range(2)],
            destination_ips: vec![range(3)],
            not_destination_ips: vec![range(4)],
            destination_ports: vec![5, 300],
            not_destination_ports: vec![6],
            service_accounts: vec![account("s")],
            not_service_accounts: vec![account("t")],
        };
        let policy = Authorization {
            name: "p".into(),
            namespace: "ns".into(),
            scope: Scope::WorkloadSelector.into(),
            action: Action::Deny.into(),
            groups: vec![Group { rules: vec![Rules { matches: vec![fields] }] }],
            dry_run: true,
        };
        let range = |field: u8, last: u8| vec![field << 3 | 2, 8, 0x0a, 4, 10, 0, 0, last, 0x10, 32];
        let fields = [
            b"\x0a\x03\x0a\x01a\x12\x03\x12\x01b\x1a\x03\x1a\x01c\x22\x02\x22\x00".to_vec(),
            range(5, 1),
            range(6, 2),
            range(7, 3),
            range(8, 4),
            b"\x4a\x03\x05\xac\x02\x52\x01\x06".to_vec(),
            b"\x5a\x06\x0a\x01n\x12\x01s\x62\x06\x0a\x01n\x12\x01t".to_vec(),
        ]
        .concat();
        let length = u8::try_from(fields.len()).unwrap();
        let head = b"\x0a\x01p\x12\x02ns\x18\x02\x20\x01".as_slice();
        let groups = [b'\x2a', length + 4, 0x0a, length + 2, 0x12, length];
        assert_eq!(policy.encode_to_vec(), [head, &groups, &fields, b"\x30\x01"].concat());
    }

    /// As a SPIRE agent writes and reads them.
    #[test]
    fn messages_are_spires_on_the_wire() {
        let request = SubscribeToX509sviDsRequest {
            selectors: vec![Selector { r#type: "k8s".into(), value: "ns:a".into() }],
            pid: 0,
        };
        assert_eq!(request.encode_to_vec(), b"\x0a\x0b\x0a\x03k8s\x12\x04ns:a");
        assert_eq!(SubscribeToX509sviDsRequest { pid: 7, ..Default::default() }.encode_to_vec(), b"\x10\x07");

        let svid = X509svid {
            cert_chain: vec![b"leaf".to_vec(), b"ca".to_vec()],
            id: Some(Spiffeid { trust_domain: "td".into(), path: "/a".into() }),
            expires_at: 1,
            hint: "h".into(),
        };
        let answer = SubscribeToX509sviDsResponse {
            x509_svids: vec![X509svidWithKey { x509_svid: Some(svid), x509_svid_key: b"key".to_vec() }],
            federates_with: vec!["spiffe://f".into()],
        };
        let svid = b"\x0a\x04leaf\x0a\x02ca\x12\x08\x0a\x02td\x12\x02/a\x18\x01\x22\x01h";
        let expected = [b"\x0a\x20\x0a\x19".as_slice(), svid, b"\x12\x03key\x12\x0aspiffe://f"].concat();
        assert_eq!(answer.encode_to_vec(), expected);
        assert!(!format!("{answer:?}").contains("107"), "{answer:?}");

        let bundles = SubscribeToX509BundlesResponse {
            ca_certificates: [("spiffe://td".into(), b"ca".to_vec())].into(),
        };
        assert_eq!(bundles.encode_to_vec(), b"\x0a\x11\x0a\x0bspiffe://td\x12\x02ca");
    }
}
