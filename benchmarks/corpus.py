"""What is stored and asked for: the same bytes for every server and every run.

Everything comes from one seed and is serialised before any server starts. Sizes follow a log-normal distribution
around 4 KB, as the files of a built tree do: many tiny ones, few large.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from benchmarks import messages
from benchmarks.messages import Digest

SEED = 20260101
MEAN_BLOB_BYTES = 4096
# The standard deviation of ln(size). 1.0 puts the median at 2.5 KB and one blob in a thousand above 50 KB.
SPREAD = 1.0

# gRPC receives 4 MiB by default, everywhere; a batch stays below it with room for digests and framing.
BATCH_DATA_BYTES = 3_500 * 1024
REQUEST_BYTES = 4 * 1024 * 1024 - 64 * 1024

# What buildbox-casd sends in one message of an upload.
WRITE_CHUNK_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything; units are in the names."""

    small_blobs: int = 20_000
    digests_per_question: int = 10_000
    questions: int = 10
    question_passes: int = 8
    batch_read_passes: int = 5
    streamed_blobs: int = 4_000
    stream_passes: int = 2
    empty_calls: int = 20_000
    openings: int = 3_000
    openings_by_tls: int = 500
    assets: int = 4_000
    assets_by_one_caller: int = 500
    fetch_passes: int = 3
    large_blobs: int = 4
    large_blob_bytes: int = 128_000_000
    client_files: int = 20_000
    # Into a store of SMALL_QUOTA_BYTES: while there is room, and three quotas more.
    roomy_bytes: int = 240_000_000
    overflow_bytes: int = 1_200_000_000


FULL = Scale()
# A tenth, to see that everything works. Too short for a verdict: CPU time is counted in ticks of 10 ms.
QUICK = Scale(
    small_blobs=2_000,
    digests_per_question=1_000,
    questions=4,
    question_passes=2,
    batch_read_passes=2,
    streamed_blobs=400,
    stream_passes=1,
    empty_calls=2_000,
    openings=300,
    openings_by_tls=50,
    assets=400,
    assets_by_one_caller=50,
    fetch_passes=1,
    large_blobs=2,
    large_blob_bytes=16_000_000,
    client_files=2_000,
    roomy_bytes=40_000_000,
    overflow_bytes=400_000_000,
)


def blob_sizes(rng: random.Random, count: int) -> list[int]:
    """``count`` sizes in bytes, at least 1, none so large that it would need a batch of its own."""
    mu = math.log(MEAN_BLOB_BYTES) - SPREAD**2 / 2
    return [min(max(1, round(rng.lognormvariate(mu, SPREAD))), BATCH_DATA_BYTES // 4) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Batch:
    """One BatchUpdateBlobs request, and the BatchReadBlobs request that asks for the same blobs."""

    update: bytes
    read: bytes
    blobs: int


class Corpus:
    """All blobs and requests of one benchmark run, made on first use and kept."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    @cached_property
    def _small(self) -> list[tuple[Digest, bytes]]:
        rng = random.Random(SEED)
        blobs = (rng.randbytes(size) for size in blob_sizes(rng, self.scale.small_blobs))
        return [(Digest.of(data), data) for data in blobs]

    @cached_property
    def small_digests(self) -> list[Digest]:
        return [digest for digest, _ in self._small]

    @cached_property
    def batches(self) -> list[Batch]:
        """The small blobs in the order in which a client packs them: full batches."""
        return list(_packed(self._small))

    def filling(self, label: str, size_bytes: int) -> list[Batch]:
        """About ``size_bytes`` of blobs that nobody else stores. Made anew for each server: too much to keep."""
        rng = random.Random(f"{SEED}-{label}")
        sizes = blob_sizes(rng, size_bytes // MEAN_BLOB_BYTES)
        return list(_packed((Digest.of(data), data) for data in map(rng.randbytes, sizes)))

    @cached_property
    def questions_present(self) -> list[bytes]:
        """Each asks about its own choice of stored blobs, in an order of its own."""
        rng = random.Random(SEED + 1)
        return [
            messages.find_missing_blobs(rng.sample(self.small_digests, self.scale.digests_per_question))
            for _ in range(self.scale.questions)
        ]

    @cached_property
    def questions_absent(self) -> list[bytes]:
        """Each asks about digests that nobody stored.

        They are asked again and again: a server that looks for files finds the answer in the kernel's cache of names then,
        which is kinder to it than a client that asks once.
        """
        rng = random.Random(SEED + 2)
        return [
            messages.find_missing_blobs(
                Digest(rng.randbytes(32).hex(), size) for size in blob_sizes(rng, self.scale.digests_per_question)
            )
            for _ in range(self.scale.questions)
        ]

    @cached_property
    def stream_reads(self) -> list[tuple[Digest, bytes]]:
        chosen = random.Random(SEED + 3).sample(self.small_digests, self.scale.streamed_blobs)
        return [(digest, messages.read(digest)) for digest in chosen]

    def _assets(self, label: str, count: int) -> Iterator[tuple[str, int]]:
        """Names, each with the number of the stored blob that it is bound to."""
        for number in range(count):
            yield f"urn:fdc:bench.example:2026:{label}:{number:08d}", number % len(self.small_digests)

    def asset_pushes(self, label: str, count: int) -> list[bytes]:
        """Each name is bound to a stored blob and refers to two more, as an artifact with its log and metadata does."""
        digests = self.small_digests
        return [
            messages.push_blob(uri, digests[at], (digests[at - 1], digests[at - 2]))
            for uri, at in self._assets(label, count)
        ]

    def asset_fetches(self, label: str, count: int) -> list[tuple[Digest, bytes]]:
        """For each name that was pushed, what it is bound to and the request that asks for it."""
        return [(self.small_digests[at], messages.fetch_blob(uri)) for uri, at in self._assets(label, count)]

    @cached_property
    def uploads(self) -> list[tuple[Digest, list[bytes]]]:
        """The large blobs as the messages of their uploads. Kept, so that no server begins with a cold one."""
        uploads = []
        for number in range(self.scale.large_blobs):
            data = random.Random(f"{SEED}-large-{number}").randbytes(self.scale.large_blob_bytes)
            digest = Digest.of(data)
            uploads.append((digest, messages.write(digest, data, chunk_bytes=WRITE_CHUNK_BYTES)))
        return uploads


def _packed(blobs: Iterable[tuple[Digest, bytes]]) -> Iterator[Batch]:
    items: list[bytes] = []
    digests: list[Digest] = []
    data_bytes = request_bytes = 0
    for digest, data in blobs:
        item = messages.batch_update_item(digest, data)
        if items and (data_bytes + len(data) > BATCH_DATA_BYTES or request_bytes + len(item) > REQUEST_BYTES):
            yield _batch(items, digests)
            items, digests = [], []
            data_bytes = request_bytes = 0
        items.append(item)
        digests.append(digest)
        data_bytes += len(data)
        request_bytes += len(item)
    yield _batch(items, digests)


def _batch(items: list[bytes], digests: list[Digest]) -> Batch:
    return Batch(update=b"".join(items), read=messages.batch_read_blobs(digests), blobs=len(digests))
