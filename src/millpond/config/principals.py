"""Who a client certificate stands for, and whether it may come in now.

The rule: a client gets in with a certificate that is in the file, or with one that was issued, directly or through
intermediate authorities that it showed, by a certificate in the file that may issue any (:func:`_may_issue`).

TLS alone does not keep it: it looks only once, when a connection begins, and what it takes for an authority depends on
whose TLS it is. So the decision is made anew for each RPC.

A principal is its key, not its subject: BuildStream's documentation gives every client the subject ``/CN=client``.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from millpond.config.tls import ServerIdentity
from millpond.core.clock import Clock, wall_clock
from millpond.core.errors import NotAuthenticated

_INTERMEDIATES = 8  # of those that a client shows; real chains have one or two
_SIGNATURES = 32  # checked for one decision (about 0.1 ms each), whatever a client shows
_DECISIONS = 4096  # remembered for one state of the file
_REFUSAL_MS = 1000  # a certificate that is not valid yet may be so soon
_LONGEST_MS = 2**62

_E = TypeVar("_E", bound=x509.ExtensionType)


def key_identity(certificates_pem: bytes) -> str:
    """``key:`` and the SHA-256 of the first certificate's public key (SubjectPublicKeyInfo, DER) in hex.

    No certificate, no identity: nothing gives the empty one.
    """
    return _identity(x509.load_pem_x509_certificate(certificates_pem)) if certificates_pem else ""


def _identity(certificate: x509.Certificate) -> str:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"key:{hashlib.sha256(spki).hexdigest()}"


class AuthorizedClients:
    """Recognises clients by the certificates that are authorized now.

    Costs a dictionary look-up while nothing changes. For one thread: the event loop's.
    """

    def __init__(self, current: Callable[[], ServerIdentity], *, clock: Clock = wall_clock) -> None:
        """``current``: the newest key files."""
        self._current = current
        self._clock = clock
        self._identity = current()
        self._list = _List(self._identity.client_certificates)
        self._decisions: dict[bytes, _Decision] = {}

    def identify(self, shown_pem: bytes) -> str:
        """The identity of a peer that showed ``shown_pem``: its own certificate, then those of its authorities.

        Raises:
            NotAuthenticated: it may not come in, or no longer.
        """
        identity = self._current()
        if identity is not self._identity:
            self._identity, self._list, self._decisions = identity, _List(identity.client_certificates), {}
        now_ms = self._clock()
        decision = self._decisions.get(shown_pem)
        if decision is None or now_ms > decision.until_ms:
            if len(self._decisions) >= _DECISIONS:
                self._decisions.clear()
            decision = self._decisions[shown_pem] = self._decide(shown_pem, now_ms)
        if decision.refusal:
            raise NotAuthenticated(decision.refusal)
        return decision.identity

    def _decide(self, shown_pem: bytes, now_ms: int) -> "_Decision":
        if not shown_pem:
            return _Decision("", _LONGEST_MS, "a client certificate is needed here: configure client-cert")
        try:
            leaf, *others = x509.load_pem_x509_certificates(shown_pem)
            identity = _identity(leaf)
            until = self._list.accepts_until(leaf, others, datetime.fromtimestamp(now_ms / 1000, UTC))
        except NotAuthenticated as refusal:
            return _Decision("", now_ms + _REFUSAL_MS, str(refusal))
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension):
            return _Decision("", now_ms + _REFUSAL_MS, "this client certificate cannot be read: make another one")
        return _Decision(identity, int(until.timestamp() * 1000))


@dataclass(frozen=True, slots=True)
class _Decision:
    identity: str
    until_ms: int
    refusal: str = ""


class _List:
    """The certificates of the file, and whom they let in."""

    def __init__(self, certificates: Sequence[x509.Certificate]) -> None:
        self._listed = frozenset(certificates)  # compared byte by byte
        self._authorities: dict[x509.Name, list[x509.Certificate]] = {}
        for certificate in filter(_may_issue, certificates):
            self._authorities.setdefault(certificate.subject, []).append(certificate)

    def accepts_until(self, leaf: x509.Certificate, others: Sequence[x509.Certificate], now: datetime) -> datetime:
        """Until when ``leaf`` gets in, if nothing changes; ``others`` are what else its owner showed.

        Raises:
            NotAuthenticated: it does not get in.
        """
        end = leaf.not_valid_after_utc
        if now > end:
            raise NotAuthenticated(f"this client certificate expired on {end:%Y-%m-%d}: renew it")
        if now < leaf.not_valid_before_utc:
            raise NotAuthenticated("this client certificate is not valid yet: compare the clocks")
        if leaf in self._listed:
            return end
        until = self._issued_until(leaf, others, now)
        if until is None:
            raise NotAuthenticated("this client certificate is not authorized here: ask those who run the cache")
        return until

    def _issued_until(
        self, leaf: x509.Certificate, others: Sequence[x509.Certificate], now: datetime
    ) -> datetime | None:
        """Until when a chain from ``leaf`` to an authority of the file holds; None when there is none.

        Breadth first, each certificate once: the shortest chain is found, in bounded time.
        """
        shown = [other for other in others[:_INTERMEDIATES] if _may_issue(other)]
        chains, signatures = [(leaf, 0, leaf.not_valid_after_utc)], 0
        for subject, below, until in chains:  # grows while it is walked
            listed = self._authorities.get(subject.issuer, [])
            for issuer in _candidates(subject, below, listed + shown, now):
                signatures += 1
                if signatures > _SIGNATURES:
                    return None
                if not _signed(subject, issuer):
                    continue
                end = min(until, issuer.not_valid_after_utc)
                if issuer in self._listed:
                    return end
                shown.remove(issuer)
                # A self-issued certificate does not count (RFC 5280 §4.2.1.9, pathLenConstraint).
                chains.append((issuer, below + (issuer.subject != issuer.issuer), end))
        return None


def _candidates(
    subject: x509.Certificate, below: int, authorities: Sequence[x509.Certificate], now: datetime
) -> Iterator[x509.Certificate]:
    """Those of ``authorities`` that can have issued ``subject``, which has ``below`` authorities below it already."""
    wanted = _extension(subject, x509.AuthorityKeyIdentifier)
    for issuer in authorities:
        if issuer.subject != subject.issuer or not issuer.not_valid_before_utc <= now <= issuer.not_valid_after_utc:
            continue
        constraints = _extension(issuer, x509.BasicConstraints)
        if constraints is not None and constraints.path_length is not None and below > constraints.path_length:
            continue
        own = _extension(issuer, x509.SubjectKeyIdentifier)
        if wanted is None or wanted.key_identifier is None or own is None or wanted.key_identifier == own.digest:
            yield issuer


def _may_issue(certificate: x509.Certificate) -> bool:
    """Whether it says that it is an authority: what makes one, and ``openssl req -x509`` by itself (RFC 5280 §4.2.1)."""
    constraints, usage = _extension(certificate, x509.BasicConstraints), _extension(certificate, x509.KeyUsage)
    return constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)


def _signed(subject: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
