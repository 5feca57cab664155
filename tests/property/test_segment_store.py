"""The segment store against the reference in memory, through anything that may happen to either."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule
from unit.store.repositories import QUOTA_BYTES, Repository, noise, soon

from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound, DigestMismatch, InvalidRequest
from millpond.store.interface import KnownClosure
from millpond.store.memory import MemoryStore

SIZES = st.sampled_from([1, 7, 900, 20_000, 100_000, 262_000, 300_000, limits.MIB, limits.MIB + 3])
SEEDS = st.integers(0, 3)
SESSIONS = st.sampled_from(["one", "other"])


class StoreMachine(RuleBasedStateMachine):
    """Every answer of the real store is the reference's."""

    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="millpond-model-"))
        self.moves = 0
        self.repository = Repository(self.place / "0", quota_bytes=4 * QUOTA_BYTES)
        self.real: Any = self.repository.open()
        self.model: Any = MemoryStore(4 * QUOTA_BYTES)
        self.known: dict[Digest, bytes] = {EMPTY: b""}
        self.running: list[Any] = []
        self.names: dict[tuple[bytes, bytes], list[Digest]] = {}

    def teardown(self) -> None:
        for upload in self.running:
            upload[0].abandon()
        self.repository.close()
        shutil.rmtree(self.place)

    def blob(self, size_bytes: int, seed: int) -> tuple[Digest, bytes]:
        data = noise(size_bytes, f"{seed}")
        self.known[Digest.of(data)] = data
        return Digest.of(data), data

    @rule(made=st.lists(st.tuples(SIZES, SEEDS), min_size=1, max_size=6), lie=st.integers(0, 12))
    def put(self, made: list[tuple[int, int]], lie: int) -> None:
        batch = [self.blob(*one) for one in made]
        if lie < len(batch):
            batch[lie] = (batch[lie][0], batch[lie][1][:-1] + b"?")
        outcomes = [[type(why) for why in store.put_many(batch)] for store in (self.real, self.model)]
        assert outcomes[0] == outcomes[1]

    @rule(wrong_size=st.booleans())
    def find_and_read(self, wrong_size: bool) -> None:
        digests = list(self.known)
        if wrong_size:
            digests += [digest._replace(size_bytes=digest.size_bytes + 1) for digest in digests]
        missing = self.real.find_missing(digests)
        assert missing == self.model.find_missing(digests)
        assert [data if data is None else bytes(data) for data in self.real.read_many(digests)] == (
            self.model.read_many(digests)
        )

    @rule(size_bytes=SIZES, seed=SEEDS, index=st.integers(0, 1))
    def read_a_chunk(self, size_bytes: int, seed: int, index: int) -> None:
        digest, _ = self.blob(size_bytes, seed)
        if index * limits.CHUNK_BYTES >= size_bytes:
            index = 0
        answers: list[bytes | None] = []
        for store in (self.real, self.model):
            try:
                with store.open(digest) as opened:
                    answers.append(bytes(opened.chunk(index)))
            except BlobNotFound:
                answers.append(None)
        assert answers[0] == answers[1]

    @rule(target=uploads, size_bytes=SIZES, seed=SEEDS, session=SESSIONS, resume=st.booleans())
    def begin(self, size_bytes: int, seed: int, session: str, resume: bool) -> Any:
        digest, data = self.blob(size_bytes, seed)
        session = f"{session}/{digest}"
        if any(session == running[3] for running in self.running):
            return multiple()
        offset = self.real.upload_offset(session)
        assert offset == self.model.upload_offset(session)
        offset = offset if resume else 0
        upload = [store.begin_upload(digest, session, offset=offset) for store in (self.real, self.model)]
        entry = (upload[0], upload[1], data, session)
        self.running.append(entry)
        return entry

    @rule(size_bytes=SIZES, session=SESSIONS, offset=st.integers(1, 400_000))
    def begin_where_nothing_ended(self, size_bytes: int, session: str, offset: int) -> None:
        digest, _ = self.blob(size_bytes, 0)
        session = f"{session}/{digest}"
        if self.real.upload_offset(session) == offset:
            return
        for store in (self.real, self.model):
            try:
                store.begin_upload(digest, session, offset=offset)
                raise AssertionError("it went on")
            except InvalidRequest:
                pass

    @rule(upload=uploads, share=st.integers(1, 4), lie=st.integers(0, 9))
    def write(self, upload: Any, share: int, lie: int) -> None:
        if upload not in self.running:
            return
        real, model, data, _ = upload
        at = model.committed_bytes
        piece = data[at : at + -(-len(data) // share)]
        if lie == 0:
            piece = piece[:-1] + b"?" * min(1, len(piece))
        for stream in (real, model):
            stream.write(piece)
        assert real.committed_bytes == model.committed_bytes

    @rule(upload=consumes(uploads), end=st.sampled_from(["finish", "finish", "suspend", "abandon"]))
    def end(self, upload: Any, end: str) -> None:
        if upload not in self.running:
            return
        self.running.remove(upload)
        outcomes: list[type | None] = []
        for stream in upload[:2]:
            try:
                getattr(stream, end)()
                outcomes.append(None)
            except DigestMismatch:
                outcomes.append(DigestMismatch)
        assert outcomes[0] == outcomes[1]
        assert self.real.upload_offset(upload[3]) == self.model.upload_offset(upload[3])

    @rule(name=st.integers(0, 2))
    def push(self, name: int) -> None:
        digests = [digest for digest in self.known if digest not in self.model.find_missing(list(self.known))]
        row = bytes([name]) * 32, bytes(16)
        self.real.remember([KnownClosure(*row, self.real.settle(digests))])
        self.names[row] = digests
        assert soon(lambda: self.real.intact(*row))

    @rule()
    @precondition(lambda self: not self.running)
    def reopen(self) -> None:
        self.real = self.repository.open()
        assert all(self.real.intact(*row) for row in self.names)

    @rule()
    def power_loss(self) -> None:
        """The repository as it is on the disk goes on under another path; whatever ran is gone."""
        self.moves += 1
        copy = self.repository.copy(self.place / f"{self.moves}")
        for real, model, _, _ in self.running:
            real.abandon()
            model.suspend()  # what a killed process had written can be gone on with
        self.running.clear()
        self.repository.close()
        self.repository = copy
        self.real = copy.open()
        for digests in self.names.values():
            self.real.settle(digests)  # whole, but to be walked
        self.names.clear()

    @invariant()
    def no_claim_is_left(self) -> None:
        if not self.running:
            with self.repository.opened.index.reading() as txn:  # type: ignore[union-attr]
                rows = dict(txn.cursor(self.repository.opened.index.space))  # type: ignore[union-attr]
            ahead = self.real._writer._claimed_bytes
            claims = sum(int.from_bytes(value, "little") for key, value in rows.items() if key.startswith(b"claim:"))
            assert claims == ahead

    @invariant()
    def nothing_is_taken_that_is_not_counted(self) -> None:
        assert self.repository.uncounted_bytes() <= 0


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
