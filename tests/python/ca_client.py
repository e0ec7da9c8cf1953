"""A client of Istio's certificate service that shares nothing with the Rust one.

Written from ca.proto alone: the messages are put together by hand, and gRPC, TLS and X.509 are other
libraries. Asks for one certificate, checks it by its own lights, and prints what it got as JSON.
"""

import argparse
import datetime
import json
import sys

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wire import block, fields, number, text

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


def main():
    args = arguments()
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        chain = ask(args, request(args, key))
    except grpc.RpcError as refused:
        print(json.dumps({"code": refused.code().name, "message": refused.details()}))
        sys.exit(3)
    leaf, above, roots = read(chain)
    check(args, key, leaf, above, roots)
    print(json.dumps({
        "identity": uris(leaf)[0],
        "serial": f"{leaf.serial_number:x}",
        "intermediates": len(above),
        "roots": len(roots),
        "seconds": int((leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()),
    }))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="host:port")
    parser.add_argument("--server-name", required=True, help="the name that the server's certificate is for")
    parser.add_argument("--root", required=True, help="PEM file of the roots that the server is judged by")
    parser.add_argument("--certificate", help="PEM file of the node's certificate")
    parser.add_argument("--key", help="PEM file of the node's key")
    parser.add_argument("--token", help="a token in place of the two")
    parser.add_argument("--identity", required=True, help="the SPIFFE ID to ask for")
    parser.add_argument("--csr-identity", help="the SPIFFE ID in the signing request, if another one")
    parser.add_argument("--lifetime", type=int, default=3600, help="seconds")
    return parser.parse_args()


def ask(args, message):
    def content(path):
        with open(path, "rb") as file:
            return file.read()

    own = (content(args.key), content(args.certificate)) if args.certificate else (None, None)
    papers = grpc.ssl_channel_credentials(content(args.root), *own)
    options = [("grpc.ssl_target_name_override", args.server_name), ("grpc.enable_retries", 0)]
    headers = [("clusterid", "Kubernetes")]
    if args.token:
        headers.append(("authorization", f"Bearer {args.token}"))
    with grpc.secure_channel(args.address, papers, options) as channel:
        call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
        return strings(call(message, timeout=20, metadata=headers), field=1)


def request(args, key):
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(args.csr_identity or args.identity)])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(uri, critical=True)
        .sign(key, hashes.SHA256())
    )
    value = text(3, args.identity)
    entry = text(1, "ImpersonatedIdentity") + block(2, value)
    metadata = block(1, entry)
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    return text(1, pem) + number(3, args.lifetime) + block(4, metadata)


def strings(message, field):
    """All values of a repeated string; other fields are an error, as the service defines none."""
    found = list(fields(message))
    assert all(number == field for number, _ in found), "an unknown field in the answer"
    return [value.decode() for _, value in found]


def read(chain):
    assert len(chain) >= 2, f"leaf and roots at least, not {len(chain)} elements"
    certificates = [x509.load_pem_x509_certificates(pem.encode()) for pem in chain]
    assert all(len(one) == 1 for one in certificates[:-1]), "one certificate in each element but the last"
    return certificates[0][0], [one[0] for one in certificates[1:-1]], certificates[-1]


def uris(certificate):
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def check(args, key, leaf, above, roots):
    assert leaf.public_key() == key.public_key(), "the certificate is for another key"
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical and len(list(names.value)) == 1 and uris(leaf) == [args.identity], names
    assert not leaf.subject.rdns, leaf.subject
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    now = datetime.datetime.now(datetime.timezone.utc)
    path = [leaf, *above]
    for below, issuer in zip(path, above):
        below.verify_directly_issued_by(issuer)
    top = path[-1]
    root = next(r for r in roots if r.subject == top.issuer and signed(top, r))
    with open(args.root, "rb") as file:
        assert root in x509.load_pem_x509_certificates(file.read()), "a root that the operator did not give"
    for certificate in [*path, root]:
        assert certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc, certificate
    for issuer in [*above, root]:
        assert issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert leaf.not_valid_after_utc <= issuer.not_valid_after_utc, "outlives its issuer"


def signed(certificate, issuer):
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:
        return False
    return True


if __name__ == "__main__":
    main()
