"""What serving an OSTree repository needs is named when it is missing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from millpond import serving_ostree
from millpond.config.settings import Listener, OstreeSettings, Settings
from millpond.core.errors import RefusedToStart


def serve(repo: Path) -> None:
    ostree = OstreeSettings(repo, (Listener("127.0.0.1", 0),))
    settings = Settings(repo=repo, listeners=(), workers=0, ostree=ostree)
    asyncio.run(serving_ostree.serve(settings, worker=0, ready=lambda _: None, stop=asyncio.Event()))


def test_without_h11_the_extra_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith("millpond.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "h11", None)
    with pytest.raises(RefusedToStart, match=r"pip install 'millpond\[web\]'"):
        serve(tmp_path)


def test_what_is_no_repository_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RefusedToStart, match="is no OSTree repository"):
        serve(tmp_path)
    assert list(tmp_path.iterdir()) == []
