"""Certificates and a token made for one job, by which its processes know each other."""

import datetime
import secrets
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from elasticdl.wire import rpc

_VALID = datetime.timedelta(days=3650)  # a job's secrets are deleted with the job
_SKEW = datetime.timedelta(hours=1)  # between the clocks of the machines


@dataclass(frozen=True)
class Credentials:
    """What each side is given; the authority's own key is kept by nobody.

    Args:
        master: of the master.
        others: of workers and of whoever looks after the job.
    """

    master: rpc.Security
    others: rpc.Security


def made(job_name: str) -> Credentials:
    """New credentials of one job."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elasticdl")])
    authority = (
        _begun(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    token = secrets.token_urlsafe(32)

    def signed(who: str) -> rpc.Security:
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, who),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, job_name),
            ]
        )
        certificate = (
            _begun(subject, name, own.public_key())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(who)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .sign(key, hashes.SHA256())
        )
        return rpc.Security(
            authority.public_bytes(serialization.Encoding.PEM),
            certificate.public_bytes(serialization.Encoding.PEM),
            own.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            token,
        )

    return Credentials(signed(rpc.MASTER_NAME), signed("elasticdl-worker"))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _VALID)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
