//! Services that Underpass speaks or serves: in the wire format of others, and its own.
//!
//! The modules follow the packages of the .proto files, which say what each field means.

/// The messages that Protocol Buffers bring along.
pub use prost_types as well_known;

/// Istio's services.
pub mod istio {
    /// `istio.v1`.
    pub mod v1 {
        /// How certificates are asked for: `istio.v1.auth.IstioCertificateService`.
        #[allow(missing_docs)]
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
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

    use super::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

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
}
