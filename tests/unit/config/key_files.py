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
    name: str = "localhost", *, issuer: Pair | None = None, begin: datetime = NOW - _DAY, end: datetime = NOW + _DAY
) -> Pair:
    """A key and a certificate for it, signed by ``issuer`` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .sign(key if issuer is None else issuer.key, hashes.SHA256())
    )
    return Pair(key, certificate)


def certificates_in(pem: bytes) -> list[x509.Certificate]:
    """What gRPC will find in a PEM text."""
    return x509.load_pem_x509_certificates(pem)


def openssl(directory: Path, command: str, more: Sequence[str] = ()) -> None:
    """Run ``openssl`` in ``directory``, as a user types it."""
    subprocess.run(["openssl", *command.split(), *more], cwd=directory, check=True, capture_output=True)
