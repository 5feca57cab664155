"""Addresses are read strictly, and who has claimed one has it alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from millpond.config import addresses
from millpond.config.addresses import claim, is_loopback, parse_listen
from millpond.config.settings import Listener
from millpond.core.errors import RefusedToStart


@contextmanager
def claimed(listener: Listener) -> Iterator[addresses.Claim]:
    held = claim(listener)
    try:
        yield held
    finally:
        held.release()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:11001", ("127.0.0.1", 11001)),
        ("localhost:0", ("localhost", 0)),
        ("cache.example", ("cache.example", 11001)),
        ("[::1]:80", ("::1", 80)),
        ("[::1]", ("::1", 11001)),
        ("0.0.0.0:80", ("::", 80)),
        ("[::]:80", ("::", 80)),
        ("*:80", ("::", 80)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text", ["", "11001", ":11001", "::1", "a:b", "a:-1", "a:65536", "a:1:2", "http://a:1", "a b:1", "[::1", "u@h:1"]
)
def test_what_could_be_read_in_two_ways_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT, such as 127\.0\.0\.1:11001"):
        parse_listen(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine_is_not_outside(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["::", "10.0.0.1", "cache.example"])
def test_everything_else_is(host: str) -> None:
    assert not is_loopback(host)


def test_port_0_becomes_a_free_port() -> None:
    with claimed(Listener("127.0.0.1", 0)) as one, claimed(Listener("127.0.0.1", 0)) as other:
        assert 0 < one.shown.port != other.shown.port > 0
        assert one.listeners == (one.shown,)


def test_a_name_becomes_all_its_addresses_on_one_port() -> None:
    with claimed(Listener("localhost", 0)) as held:
        assert held.shown == Listener("localhost", held.shown.port)
        assert {listener.host for listener in held.listeners} <= {"127.0.0.1", "::1"}
        assert {listener.port for listener in held.listeners} == {held.shown.port}


def test_a_claimed_address_is_refused_to_the_next_even_while_nobody_listens() -> None:
    with claimed(Listener("127.0.0.1", 0)) as held:
        for host in ("127.0.0.1", "::"):
            with pytest.raises(RefusedToStart, match="already in use by another program: stop it or choose"):
                claim(Listener(host, held.shown.port))
    with claimed(held.shown):
        pass  # and free when it is released


def test_an_address_that_another_program_listens_on_is_refused() -> None:
    with closing(socket.create_server(("127.0.0.1", 0), reuse_port=True)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RefusedToStart, match=rf"^127\.0\.0\.1:{port} is already in use"):
            claim(Listener("127.0.0.1", port))


def test_those_whom_we_start_share_the_claimed_port() -> None:
    with (
        claimed(Listener("127.0.0.1", 0)) as held,
        closing(socket.create_server(("127.0.0.1", held.shown.port), reuse_port=True)) as worker,
        closing(socket.create_server(("127.0.0.1", held.shown.port), reuse_port=True)),
    ):
        # The claim never listens, so no connection can get lost in it.
        for _ in range(16):
            socket.create_connection(worker.getsockname(), timeout=5).close()


@pytest.mark.parametrize(
    ("host", "why"), [("192.0.2.1", "is not an address of this machine"), ("no..host", "nothing is known")]
)
def test_an_address_that_is_not_ours_is_refused_in_a_sentence(host: str, why: str) -> None:
    with pytest.raises(RefusedToStart, match=why):
        claim(Listener(host, 0))


def test_every_address_is_every_ipv4_address_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_has_ipv6", lambda: False)
    with claimed(Listener("::", 0)) as held:
        assert held.shown.host == "0.0.0.0"
        assert held.listeners == (held.shown,)
