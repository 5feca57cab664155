"""Key files of every kind, made without waiting: P-256 unless a test needs something else."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NOW_MS = int(NOW.timestamp()) * 1000
_DAY = timedelta(days=1)


def at_now() -> int:
    """The clock of these tests: every certificate is valid unless the test says otherwise."""
    return NOW_MS


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def cert_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def make_pair(
    name: str = "localhost",
    *,
    issuer: Pair | None = None,
    begin: datetime = NOW - _DAY,
    end: datetime = NOW + _DAY,
    extensions: Sequence[x509.ExtensionType] = (),
    key_identifiers: bool = False,
) -> Pair:
    """A key and a certificate for it, signed by ``issuer`` or by itself; ``openssl`` puts identifiers of both keys in."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if key_identifiers:
        signing = key if issuer is None else issuer.key
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        extensions = (*extensions, own, x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return Pair(key, builder.sign(key if issuer is None else issuer.key, hashes.SHA256()))


def authority(*, path_length: int | None = None) -> x509.BasicConstraints:
    """What ``openssl req -x509`` puts into a certificate by itself: it may issue others."""
    return x509.BasicConstraints(ca=True, path_length=path_length)


NO_AUTHORITY = x509.BasicConstraints(ca=False, path_length=None)


def key_usage(*, cert_sign: bool) -> x509.KeyUsage:
    """A key for signatures, of certificates too or not."""
    rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    only = dict.fromkeys((*rest, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=True, key_cert_sign=cert_sign, **only)


def certificates_in(pem: bytes) -> list[x509.Certificate]:
    """What gRPC will find in a PEM text."""
    return x509.load_pem_x509_certificates(pem)


def openssl(directory: Path, command: str, more: Sequence[str] = ()) -> None:
    """Run ``openssl`` in ``directory``, as a user types it."""
    subprocess.run(["openssl", *command.split(), *more], cwd=directory, check=True, capture_output=True)
