"""A server's identity as OpenSSL takes it: pyOpenSSL's, for what is said in :mod:`millpond.sockets.tls`.

The rule: the same keys let the same people in, whichever port they come to. Here as there TLS only keeps out who
cannot be let in; the decision is :class:`millpond.config.principals.AuthorizedClients`'s.
"""

from collections.abc import Sequence
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL, crypto

from millpond.config.tls import ServerIdentity
from millpond.sockets.tls import note_refusal

# As Python's own contexts have it: forward secrecy or nothing, no SHA-1. Of TLS 1.2 only.
_CIPHERS = b"@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"


def context_of(identity: ServerIdentity, *, protocol: str) -> SSL.Context:
    """The context for handshakes under ``identity``, after which ``protocol`` (RFC 7301, ``h2`` or ``http/1.1``) is spoken.

    Raises:
        SSL.Error: OpenSSL cannot use what was parsed before; a bug, or an algorithm that was switched off here.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    # A resumed session would show no intermediate certificates, so that its peer could not be judged again. TLS 1.3
    # gives tickets out all the same (pyOpenSSL has no way to say none); they name sessions that nobody keeps.
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    spoken = protocol.encode("ascii")

    def choose(_: SSL.Connection, offered: Sequence[bytes]) -> bytes:
        if spoken in offered:
            return spoken
        raise SSL.Error([("", "", "no application protocol that is spoken here")])  # the alert of that name

    context.set_alpn_select_callback(choose)
    own, *others = x509.load_pem_x509_certificates(identity.certificate_chain_pem)
    context.use_certificate(own)
    for other in others:
        context.add_extra_chain_cert(other)
    key = serialization.load_pem_private_key(identity.private_key_pem, None)
    context.use_privatekey(cast(rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, key))
    if identity.client_roots_pem is not None:
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, note_refusal)
        store = context.get_cert_store()
        assert store is not None
        # Who is listed himself gets in, whoever issued his certificate.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for root in x509.load_pem_x509_certificates(identity.client_roots_pem):
            store.add_cert(crypto.X509.from_cryptography(root))
    return context
