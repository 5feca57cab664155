"""What is over is freed at once: a cycle would keep it, and all that it leads to, until cycles are looked for."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from contract.loopback import LoopbackServer
from contract.rpc_client import Client, message_of

from millpond.core.digest import Digest
from millpond.core.outcome import Outcome
from millpond.services.assets import PendingPush
from millpond.wire.call import Call
from millpond.wire.connection import Connection
from millpond.wire.prompt import Prompt

_WATCHED = (Call, Connection, Outcome, PendingPush, Prompt)
_BLOB = b"what is pushed" * 100
_SECONDS = 20


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nobody looks for cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _alive() -> Counter[str]:
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in _WATCHED)


def _use(client: Client, number: int) -> None:
    digest = Digest.of(_BLOB)
    client.put(_BLOB)
    client.find_missing([digest])
    client.get([digest])
    client.upload(b"%d" % number * 1000)
    client.read(client.read_name(digest))
    client.call("PushBlob", uris=[f"urn:example:{number}"], blob_digest=message_of(digest))
    client.call("FetchBlob", uris=[f"urn:example:{number}"])


def test_calls_and_connections_are_freed_when_they_are_over(server: LoopbackServer, uncollected: None) -> None:
    with Client(server.target) as client:
        _use(client, 0)  # once: whatever is made for good
    gc.collect()
    deadline = time.monotonic() + _SECONDS
    while server.connections():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = _alive()
    for _ in range(3):
        with Client(server.target) as client:
            for number in range(1, 4):
                _use(client, number)
    while _alive() - before:
        assert time.monotonic() < deadline, _alive() - before
        time.sleep(0.05)
