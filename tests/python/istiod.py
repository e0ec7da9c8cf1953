"""A certificate authority as istiod is one to its nodes, sharing nothing with the Rust code.

Written from ca.proto and from what istiod checks: the token, the cluster, whether the caller may ask for the
identity, the signing request. Everything lies in one folder. Read for each call: `callers.json` (who a token
is, and which identities run on its node) and `answers.json` (how long certificates last, what to answer with).
Written: `root-cert.pem`, and a line for each call in `calls.jsonl`.
"""

import argparse
import datetime
import json
import pathlib
import signal
import threading
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wire import block, fields, only, text

SERVICE = "istio.v1.auth.IstioCertificateService"
ARBITRARY = 10 * 365 * 24 * 3600


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--listen", required=True, help="host:port")
    parser.add_argument("--server-name", required=True, help="what the server's certificate is for")
    parser.add_argument("--cluster", required=True, help="the only cluster whose tokens can be judged")
    args = parser.parse_args()
    istiod = Istiod(args.folder, args.cluster)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    call = grpc.unary_unary_rpc_method_handler(istiod.create_certificate)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"CreateCertificate": call})])
    own = istiod.authority.server(args.server_name)
    assert server.add_secure_port(args.listen, grpc.ssl_server_credentials([own])), f"cannot bind {args.listen}"
    server.start()
    (args.folder / "ready").touch()
    signal.sigwait([signal.SIGTERM])


class Istiod:
    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        self.authority = Authority.kept(folder)
        self.foreign = Authority.made()
        self.log = threading.Lock()

    def create_certificate(self, message, context):
        headers = dict(context.invocation_metadata())
        token = headers.get("authorization", "").removeprefix("Bearer ")
        told = {"token": token, "cluster": headers.get("clusterid")}
        try:
            caller = self.caller(headers)
            identity, csr, seconds = read(message)
            told.update(identity=identity, node=caller["node"], seconds=seconds)
            if identity not in caller["identities"]:
                raise Refused(grpc.StatusCode.UNAUTHENTICATED, "request impersonation authentication failure")
            return self.answer(identity, csr, seconds, told)
        except Refused as refused:
            told["refused"] = refused.words
            context.abort(refused.code, refused.words)
        except Exception as error:
            # The request is none: the story looks for it.
            told["wrong"] = repr(error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, repr(error))
        finally:
            with self.log, open(self.folder / "calls.jsonl", "a") as file:
                file.write(json.dumps(told) + "\n")

    def caller(self, headers):
        kind, _, token = headers.get("authorization", "").partition(" ")
        callers = json.loads((self.folder / "callers.json").read_text())
        if kind != "Bearer" or token not in callers:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
        if headers.get("clusterid") != self.cluster:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"no such cluster: {headers.get('clusterid')}")
        return callers[token]

    def answer(self, identity, csr, seconds, told):
        wanted = json.loads((self.folder / "answers.json").read_text())
        kind = wanted.get("instead", {}).get(identity) or wanted.get("instead", {}).get("*") or "good"
        told["answer"] = kind
        if kind.startswith("say "):
            raise Refused(grpc.StatusCode.UNAVAILABLE, kind.removeprefix("say "))
        seconds = min(seconds, wanted["lifetime"])
        ours, key = self.authority, csr.public_key()
        chain = [ours.intermediate, ours.root]
        match kind:
            case "good":
                leaf = ours.leaf(key, [identity], seconds)
                told["serial"] = f"{leaf.serial_number:x}"
            case "foreign":
                leaf = self.foreign.leaf(key, [identity], seconds)
                chain[0] = self.foreign.intermediate
            case "wrong-san":
                leaf = ours.leaf(key, [identity + "x"], seconds)
            case "two-sans":
                leaf = ours.leaf(key, [identity, identity + "x"], seconds)
            case "wrong-key":
                leaf = ours.leaf(ec.generate_private_key(ec.SECP256R1()).public_key(), [identity], seconds)
            case "expired":
                leaf = ours.leaf(key, [identity], seconds, begin=-7200 - seconds)
            case "authority":
                leaf = ours.leaf(key, [identity], seconds, ca=True)
            case "garbage":
                return text(1, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") * 2
            case "no-message":
                return b"\xff\xff\xff\xff"
            case "nothing":
                return b""
            case "oversized":
                return text(1, "x" * (8 << 20)) * 2
        return b"".join(block(1, pem(certificate)) for certificate in [leaf, *chain])


class Refused(Exception):
    def __init__(self, code, words):
        super().__init__(words)
        self.code, self.words = code, words


def read(message):
    """Checks the request as far as it is the same for everybody."""
    known = dict(fields(message))
    assert set(known) == {1, 3, 4}, f"fields {sorted(known)}"
    metadata = {}
    for number, entry in fields(known[4]):
        assert number == 1, "no Struct"
        metadata[only(entry, 1).decode()] = only(only(entry, 2), 3).decode()
    assert list(metadata) == ["ImpersonatedIdentity"], f"metadata {list(metadata)}"
    csr = x509.load_pem_x509_csr(known[1])
    assert csr.is_signature_valid, "the signing request's signature"
    assert not csr.subject.rdns, csr.subject
    assert isinstance(csr.public_key().curve, ec.SECP256R1), "the key is not of P-256"
    [extension] = csr.extensions
    names = extension.value
    assert isinstance(names, x509.SubjectAlternativeName) and extension.critical, extension
    assert len(list(names)) == 1, names
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == [metadata["ImpersonatedIdentity"]], f"the request is for {uris}"
    return uris[0], csr, known[3]


class Authority:
    """A root, and an intermediate that signs."""

    @classmethod
    def made(cls):
        made = cls()
        made.root_key, made.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root, issuing = name("a root"), name("an intermediate")
        made.root = sign(root, made.root_key.public_key(), root, made.root_key, ARBITRARY, ca=True)
        made.intermediate = sign(issuing, made.key.public_key(), root, made.root_key, ARBITRARY, ca=True)
        return made

    @classmethod
    def kept(cls, folder):
        """The folder's own, also after a restart."""
        file = folder / "authority.pem"
        if not file.exists():
            made = cls.made()
            file.write_bytes(pem_of(made.root_key) + pem_of(made.key) + pem(made.root) + pem(made.intermediate))
        kept, content = cls(), file.read_bytes()
        end = b"-----END PRIVATE KEY-----\n"
        *keys, certificates = content.split(end)
        kept.root_key, kept.key = (serialization.load_pem_private_key(key + end, None) for key in keys)
        kept.root, kept.intermediate = x509.load_pem_x509_certificates(certificates)
        (folder / "root-cert.pem").write_bytes(pem(kept.root))
        return kept

    def leaf(self, key, uris, seconds, begin=0, ca=False):
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return sign(x509.Name([]), key, self.intermediate.subject, self.key, seconds, begin, names, ca)

    def server(self, dns):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(dns)]
        leaf = sign(name(dns), key.public_key(), self.root.subject, self.root_key, ARBITRARY, 0, names)
        return pem_of(key), pem(leaf)


def sign(subject, key, issuer, issuer_key, seconds, begin=0, names=(), ca=False):
    now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=begin)
    identifier = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(seconds=seconds))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage(ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )
    if names:
        both = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject.rdns)
    return builder.sign(issuer_key, hashes.SHA256())


def usage(ca):
    fields = ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    no = dict.fromkeys([*fields, "encipher_only", "decipher_only"], False)
    return x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **no)


def name(common):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def pem_of(key):
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


if __name__ == "__main__":
    # Waited for by sigwait; every thread is to inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    main()
