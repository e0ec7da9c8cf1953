//! A ClientHello of TLS 1.2, by hand: our TLS library is built without it, on purpose.

/// As OpenSSL 1.0 would have begun: no supported_versions, one ECDHE suite, ALPN h2.
pub fn tls12_hello() -> Vec<u8> {
    let mut extensions = vec![];
    for (kind, body) in [
        (0x000a_u16, &[0, 4, 0, 0x1d, 0, 0x17][..]), // supported_groups: x25519, P-256
        (0x000b, &[1, 0]),                           // ec_point_formats: uncompressed
        (0x000d, &[0, 4, 4, 3, 8, 4]),               // signature_algorithms
        (0x0010, &[0, 3, 2, b'h', b'2']),            // ALPN
    ] {
        extensions.extend(kind.to_be_bytes());
        extensions.extend((body.len() as u16).to_be_bytes());
        extensions.extend(body);
    }
    let mut body = vec![3, 3];
    body.extend([0x42; 32]);
    body.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2c, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut record = vec![0x16, 3, 1];
    record.extend((body.len() as u16 + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    record
}
