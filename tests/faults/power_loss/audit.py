"""Opening a repository after a power loss, as the program does, and judging what it holds.

``python audit.py`` reads one question per line from standard input and answers with one line of JSON: a list of what is
wrong. Each is answered in processes of its own, forked before anything was opened, so that one that dies is an answer
too and nothing of one repository is left to the next.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unit.store.repositories import noise, read_chunks

from millpond import app, upkeep
from millpond.config.settings import Settings
from millpond.config.sizes import Quota
from millpond.core.digest import Digest
from millpond.core.errors import MillpondError, RefusedToStart
from millpond.core.names import Namespace
from millpond.services import assets
from millpond.services.cache import Cache
from millpond.store.index import Entry
from millpond.store.repository import filesystem
from millpond.store.repository.opening import open_repository
from millpond.store.segments.files import segment_number

_AT_ONCE = 64
_QUOTA_BYTES = 64 << 20
"""Segments of 1 MiB: what is stored afterwards takes a new one."""


@dataclass(frozen=True, slots=True)
class Version:
    """What a client pushed under a name. Digests as text; the first is the one that the name is bound to."""

    name: str
    directory: bool
    digests: list[str]
    gone: bool = False
    """Eviction took some of it before the power went: it need not be whole."""


@dataclass(frozen=True, slots=True)
class Question:
    """A repository, and what must be true of it."""

    repo: str
    versions: list[Version]
    """All that may have been pushed, acknowledged or not."""
    expected: dict[str, list[int]]
    """Names that were acknowledged: each is bound to one of these, an index into ``versions``, and whole."""
    numbers: list[int] = field(default_factory=list)
    """Segment numbers that were used."""
    upkeep: bool = False
    """Whether upkeep is the first to open it."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Question:
        values: dict[str, Any] = json.loads(text)
        values["versions"] = [Version(**version) for version in values["versions"]]
        return cls(**values)


def digest_of(text: str) -> Digest:
    value, _, size = text.partition("/")
    return Digest.parse(value, int(size))


class Audit:
    """One repository that is open."""

    def __init__(self, question: Question, cache: Cache) -> None:
        self._question = question
        self._cache: Any = cache
        self.wrong: list[str] = []

    def run(self) -> None:
        whole = self._read_everything()
        self._judge_names(whole)
        self._go_on()

    def _read_everything(self) -> set[str]:
        """Read every blob that the index lists; those that are right. What is listed must be (I1)."""
        index = self._cache.blobs._index
        with index.reading() as txn:
            listed = [Digest(key, Entry.decode(value).size_bytes) for key, value in txn.cursor(index.blobs)]
        whole = set()
        for start in range(0, len(listed), _AT_ONCE):
            some = listed[start : start + _AT_ONCE]
            for digest, data in zip(some, self._cache.blobs.read_many(some), strict=True):
                if data is None:
                    self.wrong.append(f"blob {digest} is listed and cannot be read")
                elif not digest.matches(data):
                    self.wrong.append(f"blob {digest} is served wrong")
                else:
                    whole.add(f"{digest}")
        return whole

    def _judge_names(self, whole: set[str]) -> None:
        versions = self._question.versions
        expected = dict(self._question.expected)
        for name, binding in list(self._cache.names.names()):
            found = [
                i
                for i, version in enumerate(versions)
                if name.key == assets.asset_key(version.name, ()) and f"{binding.digest}" == version.digests[0]
            ]
            if not found:
                self.wrong.append(f"name {name.key!r} is bound to {binding.digest}, which nobody pushed")
                continue
            version = versions[found[0]]
            allowed = expected.pop(version.name, None)
            if allowed is not None and found[0] not in allowed:
                self.wrong.append(f"name {name.key!r} is bound to something older than what was acknowledged")
            # Acknowledged or not: a name that is written needs all of its closure (I2).
            self._judge_closure(version, whole)
        self.wrong += [f"name {name!r} was acknowledged and is gone" for name in expected]

    def _judge_closure(self, version: Version, whole: set[str]) -> None:
        if version.gone:
            return
        lost = [digest for digest in version.digests if digest not in whole]
        if lost:
            self.wrong.append(f"name {version.name!r} is there and {len(lost)} of its blobs are not, {lost[0]} first")
        namespace = Namespace.ASSET_DIRECTORY if version.directory else Namespace.ASSET_BLOB
        try:
            assets.fetch(self._cache, "", namespace, [version.name], (), oldest_ms=None, wait=True)
        except MillpondError as failure:
            self.wrong.append(f"name {version.name!r} is not answered: {failure}")

    def _go_on(self) -> None:
        """The repository is used again, without anybody's help, and gives out no number twice (I9)."""
        content = [noise(5000, "afterwards"), noise(100_000, "afterwards"), noise(1_500_000, "afterwards")]
        digests = [Digest.of(data) for data in content]
        for why in self._cache.blobs.put_many(list(zip(digests[:2], content[:2], strict=True))):
            if why is not None:
                raise why
        upload = self._cache.blobs.begin_upload(digests[2], "afterwards", offset=0)
        upload.write(content[2])
        upload.finish()
        push = assets.AssetPush(["test:afterwards"], digests[0], blobs=digests[1:])
        assets.push(self._cache, "", Namespace.ASSET_BLOB, push, pushed_by="")
        assets.fetch(self._cache, "", Namespace.ASSET_BLOB, ["test:afterwards"], (), oldest_ms=None, wait=True)
        if any(read_chunks(self._cache.blobs, digest) != data for digest, data in zip(digests, content, strict=True)):
            self.wrong.append("what was stored afterwards is read wrong")


def _segments(repo: str) -> set[int]:
    try:
        names = os.listdir(os.path.join(repo, "segments"))
    except FileNotFoundError:
        return set()
    return {number for number in map(segment_number, names) if number is not None}


def keep_up(question: Question) -> list[str]:
    """Do every duty of upkeep; what went wrong."""
    with ExitStack() as opened:
        settings = Settings(repo=Path(question.repo), listeners=(), enable_push=True)
        # With room, or a cache that was full when the power went is rightly made to give way, and names lose blobs by that.
        repository = open_repository(settings.repo, quota_bytes=lambda _: _QUOTA_BYTES)
        opened.callback(repository.close)
        for duty in upkeep.duties(upkeep.parts(settings, repository, opened), opened):
            for _ in range(3):
                duty.run()
    return []


def judge(question: Question) -> list[str]:
    """What is wrong with a repository."""
    before = _segments(question.repo)
    with ExitStack() as opened:
        # With room to go on: nobody evicts here.
        settings = Settings(repo=Path(question.repo), listeners=(), enable_push=True, quota=Quota(_QUOTA_BYTES))
        audit = Audit(question, app._open(settings, opened))
        audit.run()
    again = (_segments(question.repo) - before) & set(question.numbers)
    return audit.wrong + [f"segment number {number:x} was used again" for number in again]


def in_a_process(work: Callable[[Question], list[str]], question: Question, boot: str) -> list[str]:
    """Run ``work`` in a process of its own, on a machine that was booted anew; what is wrong."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        filesystem.boot_id = lambda: boot
        try:
            wrong = work(question)
        except RefusedToStart as refusal:
            wrong = [f"it does not start by itself: {refusal}"]
        except Exception:
            wrong = [f"it failed: {traceback.format_exc(limit=-6)}"]
        with open(writer, "w", encoding="utf-8") as answer:
            answer.write(json.dumps(wrong))
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(said) if said and not status else [f"{work.__name__} ended its process with {status}"]


def main() -> None:
    for line in sys.stdin:
        question, boot = Question.from_json(line), f"{uuid.uuid4()}"
        wrong = in_a_process(keep_up, question, boot) if question.upkeep else []
        print(json.dumps(wrong + in_a_process(judge, question, boot)), flush=True)


if __name__ == "__main__":
    main()
