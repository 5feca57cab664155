"""The load of a recording: ``python load.py DISK MARKS QUOTA PUSHES FULL PLAN``, run under strace with all that it starts.

Starts servers on ``DISK/repo``, uses them as clients do, and writes into ``MARKS`` what it is about to push and what
was acknowledged, one JSON object a line. A mark is written after the answer came and before anything that follows from
it, and strace shows both in that order.

``FULL`` is ``full`` where the cache may fill up, and ``roomy`` where a refusal is an error.
``PLAN`` is a list of words with commas: a number is the next life of the server, ``kill`` or ``stop`` is its end, and
``damage`` takes the index from a repository that nobody uses, so that the next life makes it anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import grpc
from contract.rpc_client import Client, message_of
from system.server_process import Millpond

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.digest import Digest

CALLERS = 3
PATIENCE_SECONDS = 120
"""A server waits 30 s for room, and strace makes everything slow."""


def noise(size_bytes: int, seed: str) -> bytes:
    """The same bytes for the same seed."""
    return hashlib.shake_128(f"{seed}/{size_bytes}".encode()).digest(size_bytes)


class Marks:
    """The file that the recording reads."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def say(self, **what: object) -> None:
        os.write(self._descriptor, json.dumps(what).encode() + b"\n")


class Caller:
    """One client. Its names are its own, so that it knows which version of each is the newest."""

    def __init__(self, server: Millpond, marks: Marks, number: int, life: int, *, may_fill_up: bool) -> None:
        self._target = f"127.0.0.1:{server.port}"
        self._marks = marks
        self._random = Random(f"{life}/{number}")
        self._number, self._life = number, life
        self._versions: dict[str, int] = {}
        self._may_fill_up = may_fill_up

    def run(self, pushes: int) -> None:
        self._do(self._name_what_was_left)
        for _ in range(pushes):
            self._do(*[self._push_something] * 3)
        self._do(self._leave_something)

    def _do(self, *steps: Callable[[Client], None]) -> None:
        with Client(self._target, seconds=PATIENCE_SECONDS) as client:  # a connection of its own: any worker
            for step in steps:
                try:
                    step(client)
                except grpc.RpcError as refusal:
                    # A full cache may say so, and the caller goes on with something else.
                    if not self._may_fill_up or refusal.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise

    def _put(self, client: Client, *contents: bytes) -> list[Digest]:
        digests = list(map(Digest.of, contents))
        assert set(client.update(zip(digests, contents, strict=True))) <= {0}
        return digests

    def _leave_something(self, client: Client) -> None:
        self._put(client, noise(9000, f"nobody names {self._life}/{self._number}"))
        client.upload(self._left(self._life))

    def _left(self, life: int) -> bytes:
        return noise(300_000, f"left by {life}/{self._number}")

    def _name_what_was_left(self, client: Client) -> None:
        """What the server's former life was given last, and never named, is named without being sent again."""
        left = self._left(self._life - 1)
        if client.find_missing([Digest.of(left)]):
            client.upload(left)
        self._push(client, f"test:{self._life}/{self._number}/left", 1, [Digest.of(left)], directory=False)

    def _push_something(self, client: Client) -> None:
        again = self._versions and self._random.random() < 0.2
        fresh = f"test:{self._life}/{self._number}/{len(self._versions)}"
        name = self._random.choice(list(self._versions)) if again else fresh
        version = self._versions[name] = self._versions.get(name, 0) + 1
        seed = f"{name}/{version}"
        content = [noise(self._random.randrange(1, 9000), f"{seed}/{part}") for part in range(4)]
        content += [noise(3000, f"shared {self._random.randrange(20)}")]
        if self._random.random() < 0.2:
            content.append(noise(self._random.randrange(60_000, 120_000), seed))
        digests = self._put(client, *content)
        self._put(client, noise(2000, f"nobody names {seed}"))
        if self._random.random() < 0.07:
            large = noise(1_100_000 + self._random.randrange(200_000), seed)
            client.upload(large)
            digests.append(Digest.of(large))
        self._push(client, name, version, digests, directory=name[-1] in "27")

    def _push(self, client: Client, name: str, version: int, digests: list[Digest], *, directory: bool) -> None:
        """Push a name, as a directory or as a blob; that is for ever, for these are names of two kinds."""
        what = "Directory" if directory else "Blob"
        references = [message_of(digest) for digest in digests[0 if directory else 1 :]]
        if directory:
            digests = [self._tree(client, digests), *digests]
        fields = {"root_directory_digest" if directory else "blob_digest": message_of(digests[0])}
        about = {"version": version, "digests": [f"{digest}" for digest in digests], "directory": directory}
        self._marks.say(about=name, **about)
        client.call(f"Push{what}", uris=[name], references_blobs=references, **fields)
        self._marks.say(acknowledged=name, version=version)
        if self._random.random() < 0.1:
            client.call(f"Fetch{what}", uris=[name])

    def _tree(self, client: Client, digests: list[Digest]) -> Digest:
        files = [re_pb2.FileNode(name=f"{i}", digest=message_of(digest)) for i, digest in enumerate(digests)]
        (root,) = self._put(client, re_pb2.Directory(files=files).SerializeToString(deterministic=True))
        return root


def life(disk: Path, marks: Marks, number: int, quota: str, pushes: int, *, may_fill_up: bool) -> Millpond:
    """A server that was used; it still runs."""
    options = ["--enable-push", "--workers", "2", "--quota", quota, "--listen", "127.0.0.1:0"]
    server = Millpond(["millpond", "serve", *options, disk / "repo"], disk.parent / f"log{number}")
    callers = [Caller(server, marks, caller, number, may_fill_up=may_fill_up) for caller in range(CALLERS)]
    troubles: list[BaseException] = []

    def run(caller: Caller) -> None:
        try:
            caller.run(pushes)
        except BaseException as trouble:
            troubles.append(trouble)

    threads = [threading.Thread(target=run, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if troubles:
        server.kill()
        raise AssertionError(f"{server}") from troubles[0]
    return server


def main(disk: Path, marks: Marks, quota: str, pushes: int, full: str, plan: list[str]) -> None:
    server: Millpond | None = None
    for step in plan:
        if step == "damage":
            with (disk / "repo" / "index" / "data.mdb").open("r+b") as index:
                index.truncate(4096)
        elif step.isdigit():
            server = life(disk, marks, int(step), quota, pushes, may_fill_up=full == "full")
        elif server is not None:
            {"kill": server.kill, "stop": server.stop}[step]()
            marks.say(over=step)


if __name__ == "__main__":
    place, marks, quota, pushes, full, plan = sys.argv[1:]
    main(Path(place), Marks(Path(marks)), quota, int(pushes), full, plan.split(","))
