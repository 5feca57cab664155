"""What is purged while a client sends it again: the upload is not hurt (I1, I8)."""

from __future__ import annotations

from pathlib import Path

from faults.test_eviction_protocol import Site, pauses, site
from faults.turns import Choice, Turns

from millpond.core.digest import Digest
from millpond.store.care.purge import Purge

__all__ = ["Path", "pauses", "site"]


def test_an_upload_that_is_about_to_be_listed_is_not_overwritten(site: Site) -> None:
    site.begin()
    parts = site.one.parts
    purge = Purge(parts.layout, parts.index, parts.index_writer, parts.space)

    def purges() -> None:
        purge.begin([Digest.of(site.new)])
        purge.finish([Digest.of(site.new)])

    turns = Turns([Choice("client"), Choice("purge")])
    turns.begin("client", lambda: site.send(0, site.new))
    turns.begin("purge", purges)
    turns.lend(site.stores[0]._index_writer._thread, "client")
    site.pauses.turns = turns
    turns.run()
    site.pauses.turns = None
    assert turns.story[1] == "purge goes on the beginning"
    site.read(0, site.new)
    site.read(1, site.new)
