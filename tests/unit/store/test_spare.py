"""What is said to fit beside everything else does, and nothing has to go for it."""

from pathlib import Path

import pytest
from unit.store.repositories import MIB, Repository, noise

from millpond.core.digest import Digest
from millpond.store.room.space import Space
from millpond.store.room.spare import Spare


@pytest.mark.parametrize("size", [2000, MIB // 2, 3 * MIB], ids=["small", "a segment each", "streamed"])
def test_what_fits_by_its_word_presses_nothing_out(tmp_path: Path, size: int) -> None:
    repository = Repository(tmp_path / "repo", quota_bytes=16 * MIB)
    store = repository.open()
    assert repository.opened
    layout, index = repository.opened.layout, repository.opened.index
    space = Space(index, layout, reserve_bytes=0)
    spare = Spare(space, layout)
    stored = 0
    at_once = max(1, MIB // 4 // size)
    while True:
        data = [noise(size, f"{stored} {number}") for number in range(at_once)]
        blobs = [(Digest.of(one), one) for one in data]
        if not spare.fits([digest for digest, _ in blobs]):
            break
        assert store.put_many(blobs) == [None] * at_once
        assert space.pressure().to_free_bytes == 0
        stored += at_once
    assert stored * size > 7 * MIB
    repository.close()


def test_a_blob_that_no_cache_of_this_quota_can_hold_is_known(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo", quota_bytes=16 * MIB)
    repository.open()
    assert repository.opened
    layout = repository.opened.layout
    spare = Spare(Space(repository.opened.index, layout, reserve_bytes=0), layout)
    huge, large = (Digest(Digest.of(b"").key, size * MIB) for size in (16, 8))
    assert not spare.could_fit([huge])
    assert spare.could_fit([large])
    assert spare.fits([large])
    repository.close()
