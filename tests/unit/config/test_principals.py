"""Who gets in by which certificate, and for how long."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from unit.config.key_files import NO_AUTHORITY, NOW, Pair, authority, key_usage, make_pair

from millpond.config import principals
from millpond.config.principals import AuthorizedClients, key_identity
from millpond.config.tls import ServerIdentity
from millpond.core.errors import NotAuthenticated

_CA = authority()
_DAY = timedelta(days=1)


class Door:
    """Recognises clients by a file that the test writes, at a time that it moves."""

    def __init__(self, *listed: Pair) -> None:
        self.now = NOW
        self.write(*listed)
        self._clients = AuthorizedClients(lambda: self._identity, clock=self._clock)

    def write(self, *listed: Pair) -> None:
        self._identity = ServerIdentity(b"", b"", b"", tuple(pair.certificate for pair in listed))

    def opens_for(self, *shown: Pair) -> bool:
        """Does the owner of the first certificate get in, who is known by its key?"""
        try:
            assert self.identify(*shown) == identity_of(shown[0])
        except NotAuthenticated:
            return False
        return True

    def identify(self, *shown: Pair) -> str:
        return self._clients.identify(b"".join(pair.cert_pem for pair in shown))

    def _clock(self) -> int:
        return int(self.now.timestamp() * 1000)


def identity_of(pair: Pair) -> str:
    spki = pair.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"key:{hashlib.sha256(spki).hexdigest()}"


def pair(issuer: Pair | None = None, *extensions: x509.ExtensionType, name: str = "client", **more: datetime) -> Pair:
    return make_pair(name, issuer=issuer, extensions=extensions, **more)


@pytest.mark.parametrize("extensions", [(), (_CA,), (NO_AUTHORITY,), (NO_AUTHORITY, key_usage(cert_sign=False))])
def test_who_is_in_the_file_gets_in(extensions: Sequence[x509.ExtensionType]) -> None:
    listed, also = pair(None, *extensions), pair()
    door = Door(also, listed)
    assert door.opens_for(listed)
    assert door.opens_for(also)
    assert not door.opens_for(pair(None, *extensions))


@pytest.mark.parametrize(
    ("extensions", "may"),
    [
        ((), False),
        ((NO_AUTHORITY,), False),
        ((NO_AUTHORITY, key_usage(cert_sign=True)), False),
        ((_CA,), True),
        ((_CA, key_usage(cert_sign=True)), True),
        ((_CA, key_usage(cert_sign=False)), False),
        ((authority(path_length=0),), True),
    ],
)
def test_only_an_authority_lets_others_in(extensions: Sequence[x509.ExtensionType], may: bool) -> None:
    listed = pair(None, *extensions, name="issuer")
    door = Door(listed)
    for issued in (pair(listed), pair(listed, NO_AUTHORITY, name="issuer"), pair(listed, _CA)):
        assert door.opens_for(issued) is may
        assert door.opens_for(issued, listed) is may
    assert door.opens_for(listed)


def test_only_what_an_authority_signed_counts() -> None:
    listed, namesake = pair(None, _CA), pair(None, _CA)
    assert not Door(listed).opens_for(pair(namesake))
    assert not Door(listed).opens_for(pair(namesake), listed)
    assert not Door(listed).opens_for(pair(namesake), namesake)


def test_authorities_of_the_same_name_are_told_apart_by_their_keys() -> None:
    identifiers = [x509.SubjectKeyIdentifier(bytes([number])) for number in range(60)]
    many = [pair(None, _CA, identifier) for identifier in identifiers]
    for issuer, identifier in ((many[0], identifiers[0]), (many[-1], identifiers[-1])):
        named = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        assert Door(*many).opens_for(pair(issuer, named))


def test_the_work_for_one_certificate_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(principals, "_signed", lambda *both: tried.append(both))
    many = [pair(None, _CA) for _ in range(60)]
    assert not Door(*many).opens_for(pair(pair(None, _CA)), *many)
    assert len(tried) == 32


def test_what_issued_itself_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, really = [], principals._signed
    monkeypatch.setattr(principals, "_signed", lambda *both: tried.append(both) or really(*both))
    unknown = pair(None, _CA, name="root")
    middle = pair(unknown, _CA, name="middle")
    assert not Door(pair()).opens_for(pair(middle), middle, unknown)
    assert len(tried) == 2


def test_an_intermediate_authority_may_be_shown() -> None:
    root = pair(None, _CA, name="root")
    middle = pair(root, _CA, name="middle")
    low = pair(middle, _CA, name="low")
    leaf = pair(low)
    assert Door(root).opens_for(leaf, low, middle)
    assert Door(root).opens_for(leaf, middle, low, root)
    assert Door(middle).opens_for(leaf, low)
    assert Door(low).opens_for(leaf)
    assert not Door(root).opens_for(leaf, low)
    assert not Door(root).opens_for(leaf)
    assert Door(root).opens_for(leaf, low, middle)  # what was refused with less does not count


def test_an_intermediate_must_be_an_authority_itself() -> None:
    root = pair(None, _CA, name="root")
    for extensions in ((), (NO_AUTHORITY,), (_CA, key_usage(cert_sign=False))):
        middle = pair(root, *extensions, name="middle")
        assert not Door(root).opens_for(pair(middle), middle)
        assert Door(root).opens_for(middle)


def test_no_authority_can_be_made_below_a_client() -> None:
    client = pair(None, NO_AUTHORITY)
    middle = pair(client, _CA, name="middle")
    assert not Door(client).opens_for(pair(middle), middle)
    assert not Door(client).opens_for(pair(middle), middle, client)


@pytest.mark.parametrize(("length", "opens"), [(None, True), (2, True), (1, False), (0, False)])
def test_the_length_of_a_path_is_respected(length: int | None, opens: bool) -> None:
    root = pair(None, authority(path_length=length), name="root")
    middle = pair(root, authority(path_length=1), name="middle")
    low = pair(middle, authority(path_length=0), name="low")
    assert Door(root).opens_for(pair(low), low, middle) is opens
    below = pair(low, _CA, name="below")
    assert not Door(root, middle).opens_for(pair(below), below, low)


def test_a_self_issued_authority_does_not_lengthen_the_path() -> None:
    root = pair(None, authority(path_length=0), name="root")
    renewed = pair(root, authority(path_length=0), name="root")
    assert Door(root).opens_for(pair(renewed), renewed)


def test_times_are_respected_while_connected() -> None:
    listed, early = pair(end=NOW + _DAY), pair(begin=NOW + _DAY, end=NOW + 3 * _DAY)
    door = Door(listed, early)
    assert door.opens_for(listed)
    assert not door.opens_for(early)
    door.now += _DAY + timedelta(seconds=1)
    assert not door.opens_for(listed)
    assert door.opens_for(early)
    with pytest.raises(NotAuthenticated, match="expired on 2030-01-02: renew it"):
        door.identify(listed)


def test_an_authority_lets_nobody_in_outside_of_its_time() -> None:
    root = pair(None, _CA, name="root", end=NOW + _DAY)
    middle = pair(root, _CA, name="middle", begin=NOW - _DAY, end=NOW + timedelta(hours=1))
    direct, below = (pair(issuer, end=NOW + 9 * _DAY) for issuer in (root, middle))
    door = Door(root)
    assert door.opens_for(direct)
    assert door.opens_for(below, middle)
    door.now += timedelta(hours=2)
    assert door.opens_for(direct)
    assert not door.opens_for(below, middle)
    door.now += _DAY
    assert not door.opens_for(direct)
    assert not Door(pair(None, _CA, name="root", begin=NOW + _DAY, end=NOW + 2 * _DAY)).opens_for(direct)


def test_who_is_taken_out_of_the_file_is_out_and_comes_back_with_it() -> None:
    listed, root, other = pair(), pair(None, _CA, name="root"), pair()
    issued = pair(root)
    door = Door(listed, root, other)
    assert door.opens_for(listed)
    assert door.opens_for(issued)
    door.write(other)
    assert not door.opens_for(listed)
    assert not door.opens_for(issued)
    assert door.opens_for(other)
    door.write(listed)
    assert door.opens_for(listed)


def test_a_certificate_is_decided_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(principals, "_DECISIONS", 3)
    listed = pair()
    door = Door(listed)
    assert door.opens_for(listed)
    with monkeypatch.context() as patch:
        patch.setattr(principals, "_identity", lambda _: pytest.fail("decided again"))
        assert door.opens_for(listed)
    for _ in range(10):
        assert not door.opens_for(pair())
    assert len(door._clients._decisions) <= 3
    assert door.opens_for(listed)


def test_without_a_certificate_one_is_out() -> None:
    with pytest.raises(NotAuthenticated, match="a client certificate is needed"):
        Door(pair()).identify()
    assert key_identity(b"") == ""


@pytest.mark.parametrize("garbage", [b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused_in_a_sentence(garbage: bytes) -> None:
    clients = AuthorizedClients(lambda: ServerIdentity(b"", b"", b""))
    with pytest.raises(NotAuthenticated, match="cannot be read"):
        clients.identify(garbage)


def test_the_identity_is_that_of_the_key() -> None:
    one, two = pair(), pair()
    assert [key_identity(it.cert_pem + two.cert_pem) for it in (one, two)] == [identity_of(one), identity_of(two)]
