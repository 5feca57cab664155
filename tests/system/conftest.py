"""Fixtures of the system tests. What a test needs of the machine is required where it is used (see ``parts``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from system.build_site import BuildSite
from system.old_clients import HANGS
from system.parts import require
from system.small_disk import SmallDisk
from system.tls_keys import Keys


@pytest.fixture(autouse=True)
def _hangs_are_told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Old releases that hung by themselves are tried again, but not in silence: the run ends with their number."""
    before = HANGS.copy()
    yield
    request.node.user_properties.extend(("hung", release) for release in (HANGS - before).elements())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[BuildSite]:
    """A build site for one test."""
    site = BuildSite(tmp_path)
    yield site
    site.close()


@pytest.fixture
def make_disk(tmp_path: Path, site: BuildSite) -> Iterator[Callable[..., SmallDisk]]:
    """Makes small file systems, which end after the servers that hold them."""
    disks: list[SmallDisk] = []

    def make(**options: Any) -> SmallDisk:
        disks.append(SmallDisk(tmp_path / f"mount{len(disks)}", **options))
        return disks[-1]

    yield make
    for server in site._servers:  # they hold the disk
        if not server.ended:
            server.stop()
    for disk in disks:
        disk.close()


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuildSite]:
    """A build site for all tests of one file; what one of them pushes there, the others see."""
    site = BuildSite(tmp_path_factory.mktemp("shared"))
    yield site
    site.close()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """All keys and certificates; they take a while to make, so they are made once."""
    require("openssl")
    return Keys(tmp_path_factory.mktemp("keys"))
