"""What a pusher is told when there is no room, and what is remembered of it."""

import pytest

from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.errors import NoSpace
from millpond.core.names import Namespace
from millpond.names.memory import MemoryNames
from millpond.services.assets import AssetPush
from millpond.services.cache import Cache
from millpond.services.writing import Writer
from millpond.store.interface import Bytes
from millpond.store.memory import MemoryStore

BLOB = Digest.of(b"x" * 3_000_000)


class FillingDisk:
    """An upload that finds the disk full after it began well."""

    committed_bytes = 0

    def write(self, data: Bytes) -> None:
        raise NoSpace("the cache's disk is full")

    def finish(self) -> None:
        raise NoSpace("the cache's disk is full")

    def suspend(self) -> None: ...

    def abandon(self) -> None: ...


@pytest.mark.parametrize("step", ["write", "finish"])
def test_the_name_of_a_blob_that_found_no_room_half_way_is_not_taken_for_a_foreign_one(
    step: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(10_000_000)
    writer = Writer(Cache(store, store, MemoryNames(), wall_clock), "", "")
    steps = {
        "write": lambda: writer.write_upload(FillingDisk(), BLOB, b"x"),
        "finish": lambda: writer.finish_upload(FillingDisk(), BLOB),
    }
    with pytest.raises(NoSpace):
        steps[step]()
    assert store.was_refused([BLOB])
    assert "no room" in caplog.text
    with pytest.raises(Exception, match="not in the cache"):
        writer.begin_push(Namespace.ASSET_BLOB, AssetPush(uris=["urn:x"], digest=BLOB))
