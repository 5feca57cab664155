"""A repository with millions of small blobs, made in minutes: what ``python -m benchmarks size`` measures on.

    python -m benchmarks.big_repository DIRECTORY --blobs 5000000

Pushing so many would take an hour. So the segments are laid out by the product's own modules and sealed, and the names
are written by its own index of names; the index of blobs is left to the server, which makes it anew when it opens the
repository, as after a power loss. The rule: nothing is in it that a server would not have written.

Which blob is which can be computed, so nothing need be remembered: :func:`content` of a number is a blob's content,
:func:`uri` of a number an asset's name.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from millpond.core import limits
from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.names import Name, Namespace, asset_key
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames
from millpond.store.repository.layout import REPOSITORY_FORMAT, Layout, write_marker
from millpond.store.segments.files import segment_name
from millpond.store.segments.format import SegmentHeader, footer, record_bytes
from millpond.store.segments.open_segment import OpenSegment

BLOB_BYTES = 200
"""Small, so that five millions of them are 1.4 GB: what is measured is their number."""
BLOBS_PER_NAME = 500
REFERENCES = 2
_NAMES_AT_ONCE = 1_000
_FLUSH_RECORDS = 5_000
_SHARE_FOR_SEGMENTS = 0.5
_FOOTER_ENTRY_BYTES = 52


def content(number: int) -> bytes:
    """Blob ``number``: no two alike, and nothing to compute for it."""
    return b"%020d" % number * (BLOB_BYTES // 20)


def uri(number: int) -> str:
    """The name of asset ``number``."""
    return f"urn:fdc:bench.example:2026:size:{number:08d}"


@dataclass(frozen=True, slots=True)
class BigRepository:
    """``blobs`` blobs and the ``names`` that refer to some of them, in ``path``."""

    path: Path
    blobs: int

    @property
    def names(self) -> int:
        return max(1, self.blobs // BLOBS_PER_NAME)

    def named(self, number: int) -> tuple[Digest, tuple[Digest, ...]]:
        """What asset ``number`` is bound to, and what it refers to: blobs that were pushed far apart."""
        chance = random.Random(number)
        digest, *references = (
            Digest.of(content(chance.randrange(self.blobs))) for _ in range(1 + min(REFERENCES, self.blobs - 1))
        )
        return digest, tuple(dict.fromkeys(references))

    @property
    def quota_bytes(self) -> int:
        """Twice what the blobs take, and enough for segments of full size."""
        full_size = limits.SEGMENT_MAX_BYTES * limits.SEGMENTS_PER_QUOTA
        return max(full_size, int(self.blobs * (record_bytes(BLOB_BYTES) + 200) / _SHARE_FOR_SEGMENTS))

    def make(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Write it. The directory must be missing or empty."""
        begun = time.monotonic()
        layout = Layout(str(self.path))
        for directory in (layout.root, *layout.directories):
            os.makedirs(directory, exist_ok=True)
        write_marker(layout, {"format": REPOSITORY_FORMAT, "made_by": "millpond", "quota_bytes": self.quota_bytes})
        names = LmdbNames(Path(layout.names))
        try:
            numbers = _numbers(names.take_numbers)
            for done in self._write_segments(layout, numbers):
                tell(f"{done:,} of {self.blobs:,} blobs, {time.monotonic() - begun:.0f} s")
            self._bind(names)
        finally:
            names.close()
        tell(f"{self.names:,} names, {time.monotonic() - begun:.0f} s")

    def _write_segments(self, layout: Layout, numbers: Iterator[int]) -> Iterator[int]:
        """Yields how many blobs are written, after each segment."""
        room = limits.segment_bytes(self.quota_bytes)
        written = 0
        while written < self.blobs:
            header = SegmentHeader.new(next(numbers), wall_clock())
            path = os.path.join(layout.segments, segment_name(header.number))
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, header.encode())
                segment = OpenSegment(descriptor, header, path)
                while written < self.blobs and segment.end + record_bytes(BLOB_BYTES) <= room:
                    data = content(written)
                    segment.add(Digest.of(data), data)
                    written += 1
                    if written % _FLUSH_RECORDS == 0:
                        segment.flush()
                segment.flush()
                os.pwrite(descriptor, footer(segment.records, segment.end, header.seed), segment.end)
            finally:
                os.close(descriptor)
            yield written

    def _bind(self, names: LmdbNames) -> None:
        now = wall_clock()
        batch: list[tuple[Name, Binding]] = []
        for number in range(self.names):
            digest, references = self.named(number)
            size = sum(one.size_bytes for one in {digest, *references})
            binding = Binding(digest=digest, pushed_at_ms=now, blobs=references, closure_bytes=size)
            batch.append((Name("", Namespace.ASSET_BLOB, asset_key(uri(number))), binding))
            if len(batch) == _NAMES_AT_ONCE:
                names.bind(batch)
                batch = []
        names.bind(batch)


def _numbers(take: Callable[[int], range]) -> Iterator[int]:
    while True:
        yield from take(limits.NUMBERS_AT_ONCE)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.big_repository", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("directory", type=Path, help="where; missing or empty")
    parser.add_argument("--blobs", type=int, default=5_000_000, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    if options.directory.exists() and any(options.directory.iterdir()):
        parser.error(f"{options.directory} is not empty: name another directory")
    BigRepository(options.directory, options.blobs).make(lambda text: print(text, file=sys.stderr))
    return 0


if __name__ == "__main__":
    sys.exit(main())
