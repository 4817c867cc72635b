"""Asks the Istio CSR API over TLS with a bearer token, as a node agent of Istio would, and reads what comes back."""

import argparse
import json
import pathlib
import sys

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto" / "proto"
sys.path.insert(0, str(PROTO))
messages, services = grpc.protos_and_services("istio/ca.proto")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--bundle", type=pathlib.Path, required=True)
    parser.add_argument("--token", default="")
    parser.add_argument("--uri", default="spiffe://cluster.local/ns/shop/sa/cart", help="what the CSR claims")
    parser.add_argument("--break-signature", action="store_true")
    parser.add_argument("--impersonate", default="", help="ask for this identity, as a node proxy does")
    parser.add_argument("--write", type=pathlib.Path, help="folder for cert.pem and cert.key")
    args = parser.parse_args()
    roots = args.bundle.read_bytes()
    key = ec.generate_private_key(ec.SECP256R1())
    request = messages.IstioCertificateRequest(csr=csr(key, args), validity_duration=3600)
    if args.impersonate:
        request.metadata.update({"ImpersonatedIdentity": args.impersonate})
    metadata = [("authorization", f"Bearer {args.token}")] if args.token else []
    with grpc.secure_channel(args.address, grpc.ssl_channel_credentials(root_certificates=roots)) as channel:
        stub = services.IstioCertificateServiceStub(channel)
        try:
            answer = stub.CreateCertificate(request, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            details = [f"{name}={value!r}" for name, value in error.trailing_metadata() or ()]
            print(json.dumps({"code": error.code().name, "message": error.details(), "trailers": details}))
            sys.exit(1)
    if args.write:
        write(args.write, answer.cert_chain, key)
    print(json.dumps(describe(answer.cert_chain, roots, key)))


def write(folder, chain, key):
    """The chain without its root, and the key."""
    certificates = [one for text in chain for one in x509.load_pem_x509_certificates(text.encode())]
    pem = [one.public_bytes(serialization.Encoding.PEM) for one in certificates if one.subject != one.issuer]
    (folder / "cert.pem").write_bytes(b"".join(pem))
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "cert.key").write_bytes(private)


def csr(key, args):
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(args.uri)])
    request = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    if not args.break_signature:
        return request.public_bytes(serialization.Encoding.PEM).decode()
    # Another key's signature in place of this one's: well formed, but no proof of possession.
    other = ec.generate_private_key(ec.SECP256R1())
    stolen = builder.add_extension(names, critical=False).sign(other, hashes.SHA256())
    der = request.public_bytes(serialization.Encoding.DER)
    start = der.index(request.tbs_certrequest_bytes)
    broken = bytearray(der)
    signature = der.rindex(request.signature)
    assert start < signature, "the signature comes last"
    replacement = stolen.signature
    while len(replacement) != len(request.signature):
        stolen = builder.add_extension(names, critical=False).sign(other, hashes.SHA256())
        replacement = stolen.signature
    broken[signature : signature + len(replacement)] = replacement
    return x509.load_der_x509_csr(bytes(broken)).public_bytes(serialization.Encoding.PEM).decode()


def describe(chain, roots, key):
    certificates = [one for text in chain for one in x509.load_pem_x509_certificates(text.encode())]
    leaf = certificates[0]
    assert leaf.public_key() == key.public_key(), "a certificate for another key"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    sans = [f"{'URI' if isinstance(n, x509.UniformResourceIdentifier) else type(n).__name__}:{n.value}" for n in names]
    return {"sans": sans, "verified": verified(certificates, x509.load_pem_x509_certificates(roots)), "chain": len(chain)}


def verified(certificates, roots):
    """Whether each certificate is issued by the next one and the last one by a root of the bundle."""
    current = certificates[0]
    for _ in range(len(certificates) + 1):
        for root in roots:
            if issued(current, root):
                return True
        current = next((one for one in certificates[1:] if issued(current, one)), None)
        if current is None:
            return False
    return False


def issued(certificate, issuer):
    try:
        certificate.verify_directly_issued_by(issuer)
        return True
    except Exception:
        return False


main()
