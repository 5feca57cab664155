"""Whatever is wrong with a key file is one sentence that names it; whatever is right is passed on."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from system.parts import require
from unit.config.key_files import NOW, Pair, at_now, certificates_in, make_pair, openssl

from millpond.config.pem import blocks_of
from millpond.config.settings import TlsFiles
from millpond.config.tls import IdentityWatcher, ServerIdentity, load_identity
from millpond.core.errors import RefusedToStart

SERVER = make_pair()
CLIENT, OTHER = (make_pair("client", key_identifiers=True) for _ in range(2))

Make = Callable[..., TlsFiles]


@pytest.fixture
def files(tmp_path: Path) -> Make:
    def make(key: bytes = SERVER.key_pem, cert: bytes = SERVER.cert_pem, clients: bytes | None = None) -> TlsFiles:
        named = {"server.key": key, "server.crt": cert, "authorized.crt": clients}
        for name, content in named.items():
            if content is not None:
                (tmp_path / name).write_bytes(content)
        authorized = None if clients is None else tmp_path / "authorized.crt"
        return TlsFiles(tmp_path / "server.key", tmp_path / "server.crt", authorized)

    return make


def load(files: TlsFiles) -> ServerIdentity:
    return load_identity(files, clock=at_now)


def refusal(files: TlsFiles) -> str:
    with pytest.raises(RefusedToStart) as caught:
        load(files)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert caught.value.__cause__ is None
    return sentence


def test_a_key_and_its_certificate_are_passed_on_without_a_word(files: Make) -> None:
    identity = load(files())
    assert certificates_in(identity.certificate_chain_pem) == [SERVER.certificate]
    assert identity.private_key_pem == SERVER.key_pem
    assert identity.client_roots_pem is None
    assert identity.warnings == ()


def test_the_commands_of_the_old_documentation_give_keys_that_work(tmp_path: Path) -> None:
    require("openssl")
    classic = "req -new -newkey rsa:4096 -x509 -sha256 -days 3650 -nodes -batch"
    for name, cn in (("server", "localhost"), ("client", "client")):
        openssl(tmp_path, classic, ["-subj", f"/CN={cn}", "-out", f"{name}.crt", "-keyout", f"{name}.key"])
    with (tmp_path / "authorized.crt").open("ab") as authorized:
        authorized.write((tmp_path / "client.crt").read_bytes())
    identity = load_identity(TlsFiles(tmp_path / "server.key", tmp_path / "server.crt", tmp_path / "authorized.crt"))
    assert identity.warnings == ()
    assert certificates_in(identity.client_roots_pem or b"") == certificates_in((tmp_path / "client.crt").read_bytes())


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_every_form_of_an_unprotected_key_is_read(files: Make, form: serialization.PrivateFormat) -> None:
    key = SERVER.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert load(files(key=parameters + key)).private_key_pem == SERVER.key_pem


def test_key_and_certificate_may_be_one_file(files: Make) -> None:
    both = files(key=SERVER.key_pem + SERVER.cert_pem).server_key
    assert load(TlsFiles(both, both)).warnings == ()


def test_a_chain_is_sent_whole_and_its_leaf_first(files: Make) -> None:
    root = make_pair("root")
    middle = make_pair("middle", issuer=root)
    leaf = make_pair(issuer=middle)
    chain = [leaf.certificate, middle.certificate]
    right = load(files(key=leaf.key_pem, cert=leaf.cert_pem + middle.cert_pem))
    assert certificates_in(right.certificate_chain_pem) == chain
    assert right.warnings == ()
    wrong = load(files(key=leaf.key_pem, cert=middle.cert_pem + leaf.cert_pem))
    assert certificates_in(wrong.certificate_chain_pem) == chain
    assert "should stand first" in wrong.warnings[0]


@pytest.mark.parametrize(
    ("begin", "end", "word"),
    [(-9, -2, "EXPIRED on 2029-12-30"), (2, 9, "NOT VALID BEFORE 2030-01-03")],
    ids=["expired", "early"],
)
def test_a_certificate_out_of_its_time_is_a_loud_warning(files: Make, begin: int, end: int, word: str) -> None:
    pair = make_pair(begin=NOW + timedelta(days=begin), end=NOW + timedelta(days=end))
    for contents in ({"key": pair.key_pem, "cert": pair.cert_pem}, {"clients": CLIENT.cert_pem + pair.cert_pem}):
        tls = files(**contents)
        (warning,) = load(tls).warnings
        assert word in warning
        assert str(tls.paths[-1]) in warning


# -- refusals -------------------------------------------------------------------------------------------------------


def _missing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOILED: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", _missing, "check the path"),
    ("directory", _directory, "is a directory: name the file"),
    ("fifo", _fifo, "is not an ordinary PEM file"),
    ("empty", lambda path: path.write_bytes(b" \n"), "is empty"),
    ("garbage", lambda path: path.write_bytes(bytes(range(256)) * 40), "is not PEM"),
    ("cut off", lambda path: path.write_bytes(path.read_bytes()[:-40]), "anew|can be used"),
    ("no base64", lambda path: path.write_bytes(path.read_bytes().replace(b"M", b"*", 3)), "anew|can be used"),
    ("loop", lambda path: (path.unlink(), path.symlink_to(path)), "cannot be read"),
]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["key", "certificate", "clients"])
@pytest.mark.parametrize(("spoil", "next_step"), [row[1:] for row in SPOILED], ids=[row[0] for row in SPOILED])
def test_a_file_that_cannot_be_used_is_named_with_the_next_step(
    files: Make, which: int, spoil: Callable[[Path], object], next_step: str
) -> None:
    tls = files(clients=CLIENT.cert_pem)
    spoil(tls.paths[which])
    sentence = refusal(tls)
    assert str(tls.paths[which]) in sentence
    assert any(step in sentence for step in next_step.split("|")), sentence


def test_a_file_that_may_not_be_read_is_named(files: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = files()

    def forbid(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("millpond.config.tls._open_without_waiting", forbid)  # tests may run as root
    assert (
        refusal(tls) == f"the server key file {tls.server_key} may not be read by this user: change its owner or mode"
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["PKCS8", "Proc-Type: 4,ENCRYPTED"])
def test_a_passphrase_is_noticed_before_it_is_asked_for(tmp_path: Path, files: Make, legacy: bool) -> None:
    form = serialization.PrivateFormat.TraditionalOpenSSL if legacy else serialization.PrivateFormat.PKCS8
    key = SERVER.key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret"))
    assert (b"4,ENCRYPTED" in key) == legacy
    assert "protected by a passphrase: write a copy without one with 'openssl pkey" in refusal(files(key=key))


def test_swapped_files_are_told_apart_from_wrong_ones(files: Make) -> None:
    assert "swap --server-key and --server-cert" in refusal(files(key=SERVER.cert_pem, cert=SERVER.key_pem))
    assert "holds no private key but a certificate" in refusal(files(key=SERVER.cert_pem))
    assert "holds no certificate but a private key" in refusal(files(cert=SERVER.key_pem))


def test_a_key_that_does_not_belong_to_the_certificate_is_refused(files: Make) -> None:
    assert "does not belong to the server certificate" in refusal(files(key=OTHER.key_pem))


def test_two_keys_in_one_file_are_not_chosen_from(files: Make) -> None:
    assert "holds 2 private keys" in refusal(files(key=SERVER.key_pem + OTHER.key_pem))


def test_a_kind_of_key_that_clients_cannot_use_is_refused(files: Make) -> None:
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert "make an RSA or EC key" in refusal(files(key=key))


def test_a_bad_block_in_a_chain_is_named_by_its_position(files: Make) -> None:
    chain = SERVER.cert_pem + OTHER.cert_pem.replace(b"MII", b"AAA")
    assert refusal(files(cert=chain)).startswith("block 2 of the server certificate file ")


# -- clients --------------------------------------------------------------------------------------------------------

BAD_BLOCKS = {
    "damaged": (CLIENT.cert_pem.replace(b"MII", b"AAA"), "is damaged"),
    "cut off": (CLIENT.cert_pem[:200] + b"\n", "is cut off"),
    "a private key": (CLIENT.key_pem, "is a private key"),
    "something else": (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "is no certificate but a x509 crl"),
}


@pytest.mark.parametrize("kind", BAD_BLOCKS)
@pytest.mark.parametrize("position", [1, 2, 3])
def test_one_bad_block_is_skipped_by_name_and_the_others_get_in(files: Make, kind: str, position: int) -> None:
    bad, why = BAD_BLOCKS[kind]
    blocks = [SERVER.cert_pem, OTHER.cert_pem]
    blocks.insert(position - 1, bad)
    identity = load(files(clients=b"".join(blocks)))
    assert certificates_in(identity.client_roots_pem or b"") == [SERVER.certificate, OTHER.certificate]
    (warning,) = identity.warnings
    assert f"block {position} of " in warning
    assert why in warning


def test_two_clients_of_the_same_subject_both_get_in(files: Make) -> None:
    identity = load(files(clients=CLIENT.cert_pem + OTHER.cert_pem + CLIENT.cert_pem))
    assert certificates_in(identity.client_roots_pem or b"") == [CLIENT.certificate, OTHER.certificate]
    assert identity.warnings == ()


def test_a_missing_newline_between_two_certificates_harms_neither(files: Make) -> None:
    identity = load(files(clients=CLIENT.cert_pem.rstrip() + b"Comment: \xff" + OTHER.cert_pem))
    assert len(certificates_in(identity.client_roots_pem or b"")) == 2
    assert identity.warnings == ()


def test_a_client_certificate_without_its_authority_is_as_good_as_any(files: Make) -> None:
    # To ask for the authority's certificate as well would be to let in everybody whom it knows.
    issued = make_pair("client", issuer=make_pair("authority"))
    identity = load(files(clients=issued.cert_pem))
    assert (identity.client_certificates, identity.warnings) == ((issued.certificate,), ())


def test_a_file_of_client_certificates_without_one_is_refused(files: Make) -> None:
    assert "nobody could get in" in refusal(files(clients=CLIENT.key_pem))


def test_every_block_that_begins_is_seen() -> None:
    data = b"-----END A-----\n-----BEGIN B-----\n-----BEGIN C-----x-----END C----------BEGIN D-----x-----END C-----"
    assert [(block.label, block.position, block.pem is None) for block in blocks_of(data)] == [
        ("B", 1, True),
        ("C", 2, False),
        ("D", 3, True),
    ]


# -- while it runs --------------------------------------------------------------------------------------------------


class Watched:
    """A watcher whose time is moved by hand."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self.seconds = 100.0
        self.watcher = IdentityWatcher(files, clock=at_now, monotonic_seconds=lambda: self.seconds)

    def replace(self, pair: Pair) -> None:
        for path, content in ((self.files.server_key, pair.key_pem), (self.files.server_cert, pair.cert_pem)):
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").replace(path)

    def after(self, seconds: float) -> ServerIdentity:
        self.seconds += seconds
        return self.watcher.current()


def test_new_keys_are_seen_after_a_moment(files: Make) -> None:
    watched = Watched(files())
    first = watched.after(0)
    assert watched.after(10) is first
    watched.replace(OTHER)
    assert watched.after(0.1) is first  # at most five looks a second
    assert watched.after(0.2).private_key_pem == OTHER.key_pem


def test_an_appended_client_is_seen(files: Make) -> None:
    tls = files(clients=CLIENT.cert_pem)
    watched = Watched(tls)
    with (tls.client_certs or Path()).open("ab") as authorized:
        authorized.write(OTHER.cert_pem)
    assert len(certificates_in(watched.after(1).client_roots_pem or b"")) == 2


def test_a_client_that_was_taken_out_is_missed_even_if_size_and_time_of_the_file_stay(files: Make) -> None:
    tls = files(clients=CLIENT.cert_pem)
    watched, path = Watched(tls), tls.client_certs or Path()
    before = path.stat()
    other = OTHER
    while len(other.cert_pem) != len(CLIENT.cert_pem):  # the length of a signature varies
        other = make_pair("client", key_identifiers=True)
    time.sleep(0.02)  # the clock of file systems ticks every 4 to 10 ms
    path.write_bytes(other.cert_pem)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watched.after(1).client_certificates == (other.certificate,)


def test_when_the_last_client_is_taken_out_nobody_gets_in(files: Make, caplog: pytest.LogCaptureFixture) -> None:
    tls = files(clients=CLIENT.cert_pem)
    watched, path = Watched(tls), tls.client_certs or Path()
    path.write_bytes(b"")
    assert watched.after(1).client_certificates == (CLIENT.certificate,)  # perhaps it is being written anew
    assert watched.after(2.5).client_certificates == ()
    assert f"{path} is empty: nobody gets in any more" in caplog.text
    path.write_bytes(OTHER.cert_pem)
    assert watched.after(1).client_certificates == (OTHER.certificate,)


def test_a_list_of_clients_that_is_empty_for_a_moment_stays_in_force(files: Make) -> None:
    tls = files(clients=CLIENT.cert_pem)
    watched, path = Watched(tls), tls.client_certs or Path()
    path.write_bytes(b"")
    assert watched.after(1).client_certificates == (CLIENT.certificate,)
    path.write_bytes(CLIENT.cert_pem + OTHER.cert_pem)
    assert len(watched.after(1).client_certificates) == 2


def test_who_comes_while_the_files_are_read_waits_for_what_they_say(
    files: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = files(clients=CLIENT.cert_pem + OTHER.cert_pem)
    watched = Watched(tls)
    (tls.client_certs or Path()).write_bytes(OTHER.cert_pem)
    reading, go_on, really = threading.Event(), threading.Event(), load_identity

    def slowly(*args: Any, **kwargs: Any) -> ServerIdentity:
        reading.set()
        assert go_on.wait(20)
        return really(*args, **kwargs)

    monkeypatch.setattr("millpond.config.tls.load_identity", slowly)
    watched.seconds += 1
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(watched.watcher.current)
        assert reading.wait(20)
        second = threads.submit(watched.watcher.current)
        with pytest.raises(TimeoutError):
            second.result(0.1)
        go_on.set()
        for answer in (first, second):
            assert answer.result(20).client_certificates == (OTHER.certificate,)


def test_bad_new_keys_change_nothing_but_the_log_and_that_once(files: Make, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(files())
    first = watched.after(0)
    watched.files.server_key.write_bytes(OTHER.key_pem)  # the first half of a renewal
    with caplog.at_level(logging.WARNING):
        assert [watched.after(1) for _ in range(3)] == [first] * 3
        assert len(caplog.records) == 1
        assert "previous ones stay in force" in caplog.text
        watched.files.server_key.unlink()
        assert watched.after(1) is first
    watched.replace(OTHER)  # the second half
    assert watched.after(1).private_key_pem == OTHER.key_pem


def test_a_watcher_is_not_made_of_bad_keys(files: Make) -> None:
    with pytest.raises(RefusedToStart):
        IdentityWatcher(files(key=OTHER.key_pem), clock=at_now)
