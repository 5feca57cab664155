"""Who a client certificate stands for.

A principal is its key, not its subject: BuildStream's documentation gives every client the subject ``/CN=client``.
"""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def key_identity(certificate_pem: bytes) -> str:
    """``key:`` and the SHA-256 of the certificate's public key (SubjectPublicKeyInfo, DER) in hex."""
    key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"key:{hashlib.sha256(spki).hexdigest()}"
