//! What every leaf that we sign says.

use std::time::SystemTime;

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber,
};

use crate::model::SpiffeId;

/// No subject, so that the SAN is critical and the SPIFFE id is the only name.
pub(crate) fn params(
    identity: &SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    Ok(of(vec![SanType::URI(identity.to_string().try_into()?)], not_before, not_after))
}

/// The same for other names.
pub(crate) fn of(names: Vec<SanType>, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.subject_alt_names = names;
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    leaf.serial_number = Some(random_serial());
    leaf.not_before = not_before.into();
    leaf.not_after = not_after.into();
    leaf
}

/// 158 random bits below a set one: positive, and of 20 bytes, the most that RFC 5280 4.1.2.2 allows.
pub(crate) fn random_serial() -> SerialNumber {
    let mut serial: [u8; 20] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    SerialNumber::from(serial.to_vec())
}
