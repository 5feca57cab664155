"""A server's identity as Python's TLS takes it.

The rule: the same keys let the same people in, whichever port they come to. Here as there TLS only keeps out who
cannot be let in; the decision is :class:`millpond.config.principals.AuthorizedClients`'s.
"""

import os
import ssl

from millpond.config.tls import ServerIdentity


def context_of(identity: ServerIdentity, *, protocol: str) -> ssl.SSLContext:
    """The context for handshakes under ``identity``, after which ``protocol`` (RFC 7301, ``h2`` or ``http/1.1``) is spoken.

    Raises:
        ssl.SSLError: OpenSSL cannot use what was parsed before; a bug, or an algorithm that was switched off here.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session would show no intermediate certificates, so that its peer could not be judged again.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols([protocol])
    _load(context, identity.private_key_pem + identity.certificate_chain_pem)
    if identity.client_roots_pem is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # Who is listed himself gets in, whoever issued his certificate.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=identity.client_roots_pem.decode("ascii"))
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """OpenSSL reads keys from a file only; this one is in memory, so that no key is written anywhere."""
    descriptor = os.memfd_create("keys", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
