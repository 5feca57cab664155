"""Key files: read, judged, and watched while the server runs.

The rule: what is wrong with a key file is said in one sentence, by us, before a port is opened. TLS would say
"handshake failed" to a client, once per connection, and nothing to whoever mixed the files up. What leaves this module
is written anew from what was parsed, so TLS never meets a file that it reads differently.
"""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from millpond.config.pem import Block, blocks_of
from millpond.config.settings import TlsFiles
from millpond.core import limits
from millpond.core.clock import Clock, wall_clock
from millpond.core.errors import RefusedToStart

_LOG = logging.getLogger(__name__)
_LARGEST_FILE_BYTES = 16 * limits.MIB  # ten thousand client certificates; anything larger is not a key file
_Stamp = tuple[tuple[int, ...] | None, ...]
_REWRITING_SECONDS = 2.0  # an empty file of clients is believed when it has been empty for so long
_CHECK_SECONDS = 0.2  # a new key is seen by the first handshake this long after it was written

_PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a listener shows of itself and whom it lets in.

    ``client_roots_pem`` None: anybody; else what TLS takes for authorities, ``client_certificates`` in PEM.
    ``warnings``: sentences about what works and is probably not meant.
    """

    private_key_pem: bytes
    certificate_chain_pem: bytes
    client_roots_pem: bytes | None = None
    client_certificates: tuple[x509.Certificate, ...] = ()
    warnings: tuple[str, ...] = ()


def load_identity(files: TlsFiles, *, clock: Clock = wall_clock) -> ServerIdentity:
    """Read and judge the key files of one listener.

    Raises:
        RefusedToStart: one of them cannot be used; the sentence names the file and the next step.

    """
    now = datetime.fromtimestamp(clock() / 1000, UTC)
    warnings: list[str] = []
    key_blocks = _blocks(files.server_key, "server key")
    chain_blocks = _blocks(files.server_cert, "server certificate")
    _check_not_swapped(files, key_blocks, chain_blocks)
    key = _private_key(files.server_key, key_blocks)
    chain = _chain(files.server_cert, chain_blocks)
    if not _belongs(key, chain[0]):
        chain = _leaf_first(files, key, chain)
        warnings.append(f"{files.server_cert}: the server's own certificate should stand first; it is sent first")
    warnings.append(
        _validity(chain[0], now, f"the server certificate {files.server_cert}", "clients refuse to connect")
    )
    clients: list[x509.Certificate] = []
    if files.client_certs is not None:
        clients, remarks = _clients(files.client_certs, now)
        warnings += remarks
    return ServerIdentity(
        private_key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        certificate_chain_pem=_pem_of(chain),
        client_roots_pem=_pem_of(clients) if clients else None,
        client_certificates=tuple(clients),
        warnings=tuple(filter(None, warnings)),
    )


class IdentityWatcher:
    """The identity of one listener, always the newest that is any good.

    Whoever renews a certificate replaces two files one after the other; in between they do not match. So bad files
    change nothing but the log, once per change, and the last good identity stays. One exception: a file of client
    certificates that is empty, and stays so, says that the last of them was taken out. Then nobody gets in.
    """

    def __init__(
        self,
        files: TlsFiles,
        *,
        clock: Clock = wall_clock,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._clock = clock
        self._monotonic_seconds = monotonic_seconds
        self._lock = threading.Lock()
        self._stamp = _stamp(files)
        self._seen = (self._stamp, monotonic_seconds())
        self._identity = load_identity(files, clock=clock)
        self._next_check_seconds = monotonic_seconds() + _CHECK_SECONDS

    def current(self) -> ServerIdentity:
        """The newest good identity: the same object as long as nothing changed. Cheap enough for every RPC.

        What it says was true at most 0.2 s ago, also for one who comes while the files are being read: they wait.
        """
        if self._monotonic_seconds() < self._next_check_seconds:
            return self._identity
        with self._lock:
            now_seconds = self._monotonic_seconds()
            if now_seconds >= self._next_check_seconds:
                self._reload_if_changed()
                self._next_check_seconds = now_seconds + _CHECK_SECONDS
            return self._identity

    def _reload_if_changed(self) -> None:
        # The stamp comes first: a change while the files are being read is then seen by the next check.
        stamp = _stamp(self._files)
        if stamp == self._stamp:
            return
        try:
            identity = load_identity(self._files, clock=self._clock)
        except _NobodyIsAuthorized:
            if self._is_new(stamp):
                return  # perhaps it is being written anew: look again
            _LOG.warning("the client certificates file %s is empty: nobody gets in any more", self._files.client_certs)
            self._stamp = stamp
            # TLS goes on with what it knew, for it cannot do without any; each call is then refused.
            self._identity = replace(self._identity, client_certificates=(), warnings=())
            return
        except RefusedToStart as error:
            self._stamp = stamp
            _LOG.warning("key files changed and cannot be used, so the previous ones stay in force: %s", error)
            return
        self._stamp = stamp
        for warning in identity.warnings:
            _LOG.warning("%s", warning)
        _LOG.info("key files read anew: %s", ", ".join(map(str, self._files.paths)))
        self._identity = identity

    def _is_new(self, stamp: _Stamp) -> bool:
        """Whether the files look like this for a moment only."""
        if self._seen[0] != stamp:
            self._seen = (stamp, self._monotonic_seconds())
        return self._monotonic_seconds() - self._seen[1] < _REWRITING_SECONDS


class _NobodyIsAuthorized(RefusedToStart):
    """The file of client certificates is empty."""


def _stamp(files: TlsFiles) -> _Stamp:
    return tuple(_file_stamp(path) for path in files.paths)


def _file_stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_dev, status.st_ino


# -- files --------------------------------------------------------------------------------------------------------


class _Empty(RefusedToStart):
    """A file without anything in it."""


def _blocks(path: Path, role: str) -> list[Block]:
    data = _read(path, role)
    if not data.strip():
        raise _Empty(f"the {role} file {path} is empty: name a PEM file that holds it")
    blocks = blocks_of(data)
    if not blocks:
        raise RefusedToStart(
            f"the {role} file {path} is not PEM (text with a line '-----BEGIN …-----'): "
            "convert it, for DER with 'openssl x509 -inform DER' or 'openssl pkey -inform DER'"
        )
    return blocks


def _read(path: Path, role: str) -> bytes:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_FILE_BYTES:
                raise RefusedToStart(f"the {role} file {path} is not an ordinary PEM file: name one that is")
            return file.read()
    except FileNotFoundError:
        raise RefusedToStart(f"there is no {role} file {path}: check the path") from None
    except IsADirectoryError:
        raise RefusedToStart(f"the {role} file {path} is a directory: name the file in it") from None
    except PermissionError:
        raise RefusedToStart(f"the {role} file {path} may not be read by this user: change its owner or mode") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "unknown error"
        raise RefusedToStart(f"the {role} file {path} cannot be read ({reason}): check the path") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo without a writer would hold up the start


def _check_not_swapped(files: TlsFiles, key_blocks: Sequence[Block], chain_blocks: Sequence[Block]) -> None:
    keys = (any(block.is_private_key for block in blocks) for blocks in (key_blocks, chain_blocks))
    certificates = (any(block.is_certificate for block in blocks) for blocks in (key_blocks, chain_blocks))
    if tuple(keys) == (False, True) and tuple(certificates) == (True, False):
        raise RefusedToStart(
            f"{files.server_key} holds a certificate and {files.server_cert} a private key: "
            "swap --server-key and --server-cert"
        )


# -- the server's own key and certificates --------------------------------------------------------------------------


def _private_key(path: Path, blocks: Sequence[Block]) -> _PrivateKey:
    keys = [block for block in blocks if block.is_private_key]
    if not keys:
        found = blocks[0].label.lower()
        raise RefusedToStart(f"the server key file {path} holds no private key but a {found}: name the key's file")
    if len(keys) > 1:
        raise RefusedToStart(f"the server key file {path} holds {len(keys)} private keys: leave the one to use in it")
    block = keys[0]
    if block.is_encrypted:
        raise RefusedToStart(
            f"the server key {path} is protected by a passphrase: "
            f"write a copy without one with 'openssl pkey -in {path} -out unprotected.key' and name that"
        )
    try:
        key = serialization.load_pem_private_key(block.pem or b"", password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise RefusedToStart(
            f"the server key {path} is damaged: compare 'openssl pkey -noout -check -in {path}' and copy it anew"
        ) from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise RefusedToStart(f"the server key {path} is of a kind that clients cannot use: make an RSA or EC key")
    return key


def _chain(path: Path, blocks: Sequence[Block]) -> list[x509.Certificate]:
    chain: list[x509.Certificate] = []
    for block in blocks:
        if not block.is_certificate:
            continue
        certificate = _certificate(block)
        if isinstance(certificate, str):
            raise RefusedToStart(
                f"block {block.position} of the server certificate file {path} {certificate}: copy the file anew"
            )
        chain.append(certificate)
    if not chain:
        raise RefusedToStart(
            f"the server certificate file {path} holds no certificate but a {blocks[0].label.lower()}: "
            "name the certificate's file"
        )
    return chain


def _leaf_first(files: TlsFiles, key: _PrivateKey, chain: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    for certificate in chain:
        if _belongs(key, certificate):
            return [certificate, *(other for other in chain if other is not certificate)]
    raise RefusedToStart(
        f"the server key {files.server_key} does not belong to the server certificate {files.server_cert}: "
        "name the two that were made together"
    )


def _belongs(key: _PrivateKey, certificate: x509.Certificate) -> bool:
    return bool(key.public_key() == certificate.public_key())


def _certificate(block: Block) -> x509.Certificate | str:
    """The certificate in ``block``, or what is wrong with it, to follow 'block 3 of FILE'."""
    if block.pem is None:
        return "is cut off (it has no END line of its own)"
    try:
        certificate = x509.load_pem_x509_certificate(block.pem)
        certificate.public_key()
        certificate.extensions  # noqa: B018 — parsed when first read; damage in them must show here
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension):
        return "is damaged (it is not an X.509 certificate)"
    return certificate


def _validity(certificate: x509.Certificate, now: datetime, subject: str, consequence: str) -> str:
    """What to say about a certificate that is not valid now; nothing when it is."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return f"{subject} EXPIRED on {end:%Y-%m-%d}: {consequence} until it is renewed"
    if now < begin:
        return f"{subject} IS NOT VALID BEFORE {begin:%Y-%m-%d %H:%M} UTC: {consequence} until then, or check the clock"
    return ""


# -- clients --------------------------------------------------------------------------------------------------------


def _clients(path: Path, now: datetime) -> tuple[list[x509.Certificate], list[str]]:
    clients: dict[x509.Certificate, None] = {}  # each once, in order
    warnings: list[str] = []
    try:
        blocks = _blocks(path, "client certificates")
    except _Empty as nothing:
        raise _NobodyIsAuthorized(str(nothing)) from None
    for block in blocks:
        where = f"block {block.position} of {path}"
        if block.is_private_key:
            warnings.append(f"{where} is a private key, which belongs to its client alone: remove it from this file")
            continue
        certificate = _certificate(block) if block.is_certificate else f"is no certificate but a {block.label.lower()}"
        if isinstance(certificate, str):
            warnings.append(f"{where} {certificate}, so it is skipped: its client cannot get in")
            continue
        clients[certificate] = None
        name = f"the client certificate in {where} ({certificate.subject.rfc4514_string()})"
        warnings.append(_validity(certificate, now, name, "its client cannot get in"))
    if not clients:
        raise RefusedToStart(
            f"the client certificates file {path} holds no certificate that can be used, so nobody could get in: "
            "append one with 'cat client.crt >> …'"
        )
    return list(clients), list(filter(None, warnings))


def _pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)
