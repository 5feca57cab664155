"""A server per file, and a client per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract.loopback import LoopbackServer
from contract.rpc_client import Client


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(name): the row of the README's table that the test proves")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackServer]:
    """A server that accepts pushes, shared by the tests of one file."""
    with LoopbackServer(tmp_path_factory.mktemp("server") / "repo") as running:
        yield running


@pytest.fixture
def client(server: LoopbackServer) -> Iterator[Client]:
    """A client of its own connection."""
    with Client(server.target) as connected:
        yield connected
