"""The load: writers, a binder, readers, a regular and an asker, each a thread with a client of its own, until the campaign ends.

The rule: every thread writes down what it was told before it goes on, and judges what it is told by what was written
down. What a thread does follows from its seed; what the servers make of it does not.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import grpc
from faults.campaign.artifacts import STREAMED_BYTES, Artifact, artifact
from faults.campaign.audit import audit, check_present, check_whatever_is_there
from faults.campaign.client import Ended, NoAnswer, PatientClient, Refused
from faults.campaign.ledger import Ledger

from millpond.core.digest import Digest

WRITERS = 4
READERS = 2
FAVOURITES = 3
_FULL_PAUSE_SECONDS = 0.2


class Load:
    """Runs against ``push_port`` and ``pull_port`` from :meth:`start` to :meth:`stop`."""

    def __init__(
        self, ledger: Ledger, seed: str, *, push_port: int, pull_port: int, may_fill_up: bool, pause_seconds: float
    ) -> None:
        self._ledger = ledger
        self._seed = seed
        self._ports = (push_port, pull_port)
        self._may_fill_up = may_fill_up
        self._pause_seconds = pause_seconds
        self._ending = threading.Event()
        works: list[tuple[str, Callable[[random.Random, Sequence[PatientClient]], None]]] = [
            *((f"writer {number}", self._writer(number)) for number in range(WRITERS)),
            *((f"reader {number}", self._read) for number in range(READERS)),
            ("binder", self._bind),
            ("asker", self._ask),
            ("regular", self._regular()),
        ]
        self._threads = [threading.Thread(target=self._run, args=work, name=work[0], daemon=True) for work in works]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all of it; a call that a server does not answer is not waited for."""
        self._ending.set()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                self._ledger.found(f"the {thread.name} still waits for an answer")

    def _run(self, name: str, work: Callable[[random.Random, Sequence[PatientClient]], None]) -> None:
        chance = random.Random(f"{self._seed}/{name}")
        clients = [PatientClient(port, self._ending.is_set) for port in self._ports]
        try:
            while not self._ending.is_set():
                try:
                    work(chance, clients)
                except Refused as why:
                    self._judge(name, why)
                except NoAnswer as why:
                    self._ledger.found(f"{name}: {why}")
                self._ending.wait(self._pause_seconds)
        except Ended:
            pass
        except Exception:
            self._ledger.found(f"{name}: {traceback.format_exc()}")
        finally:
            for client in clients:
                client.close()

    def _judge(self, name: str, why: Refused) -> None:
        if why.code is grpc.StatusCode.RESOURCE_EXHAUSTED and self._may_fill_up:
            self._ledger.count("refused for want of room")
            self._ledger.refused(str(why))
            self._ending.wait(_FULL_PAUSE_SECONDS)
        else:
            self._ledger.found(f"{name}: {why}")

    # -- what they do -----------------------------------------------------------------------------------------------

    def _writer(self, writer: int) -> Callable[[random.Random, Sequence[PatientClient]], None]:
        number = 0

        def write(chance: random.Random, clients: Sequence[PatientClient]) -> None:
            nonlocal number
            number += 1
            client = clients[0]
            key = f"{self._seed}:{number}.{writer}"
            made = artifact(key)
            began = self._ledger.touch(key, made.size_bytes)
            try:
                if not self._leave_unfinished(chance, client, made):
                    self._upload(client, made, client.find_missing(made.contents))
                    self._push(client, key, made, began)
            finally:
                self._ledger.touch(key, made.size_bytes)

        return write

    def _leave_unfinished(self, chance: random.Random, client: PatientClient, made: Artifact) -> bool:
        """Now and then a client goes away in the middle of an upload; whether it came back no more."""
        large = [digest for digest in made.contents if digest.size_bytes > STREAMED_BYTES]
        if not large or chance.random() > 0.15:
            return False
        client.stream(large[0], made.contents[large[0]], cut_at=chance.randrange(1, large[0].size_bytes))
        self._ledger.count("uploads left unfinished")
        return chance.random() < 0.5

    def _upload(self, client: PatientClient, made: Artifact, missing: Sequence[Digest]) -> None:
        absent = [digest for digest in made.contents if digest in missing]
        client.update([(digest, made.contents[digest]) for digest in absent if digest.size_bytes <= STREAMED_BYTES])
        for digest in absent:
            if digest.size_bytes > STREAMED_BYTES:
                client.stream(digest, made.contents[digest])

    def _push(self, client: PatientClient, key: str, made: Artifact, began: int) -> None:
        self._ledger.attempted(key)
        try:
            client.push(made)
        except Refused as why:
            if why.code is grpc.StatusCode.FAILED_PRECONDITION and not self._ledger.expected(began):
                self._ledger.count("pushes too late")
                return
            raise
        self._ledger.acknowledged(key, began)

    def _bind(self, chance: random.Random, clients: Sequence[PatientClient]) -> None:
        """A name once more, without uploads: what a build does that finds everything in the cache."""
        key = self._ledger.recent(chance)
        if key is None:
            return
        made, used_at = artifact(key), self._ledger.used_at(key)
        began = self._ledger.touch(key, made.size_bytes)
        try:
            clients[0].push(made)
            self._ledger.acknowledged(key, began)
        except Refused as why:
            if why.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            if used_at is not None and self._ledger.expected(used_at):
                self._ledger.found(
                    f"{key}: {why}, after {self._ledger.used_since(used_at)} bytes were used since it was"
                )
        finally:
            self._ledger.touch(key, made.size_bytes)

    def _read(self, chance: random.Random, clients: Sequence[PatientClient]) -> None:
        key = self._ledger.recent(chance) if chance.random() < 0.6 else self._ledger.any(chance)
        if key is not None:
            audit(self._ledger, chance.choice(clients), key)

    def _regular(self) -> Callable[[random.Random, Sequence[PatientClient]], None]:
        """A client that fetches the same few names again and again and reads nothing: the fetch alone keeps them."""
        favourites: list[str] = []

        def fetch(chance: random.Random, clients: Sequence[PatientClient]) -> None:
            if len(favourites) < FAVOURITES:
                key = self._ledger.recent(chance)
                if key is None or key in favourites:
                    return
                favourites.append(key)
            key = favourites.pop(0)
            if audit(self._ledger, chance.choice(clients), key, read=False):
                favourites.append(key)

        return fetch

    def _ask(self, chance: random.Random, clients: Sequence[PatientClient]) -> None:
        """What is said to be present must be readable; what is being uploaded must not be read half."""
        key = self._ledger.any(chance)
        if key is None:
            return
        made, client = artifact(key), chance.choice(clients)
        began = self._ledger.touch(key, made.size_bytes)
        try:
            if chance.random() < 0.5:
                check_whatever_is_there(self._ledger, client, made)
                return
            missing = set(client.find_missing(made.contents))
            present = [digest for digest in made.contents if digest not in missing]
            check_present(self._ledger, client, made, present, began, "it was said to be present")
        finally:
            self._ledger.touch(key, made.size_bytes)


def until(question: Callable[[], bool], seconds: float) -> bool:
    """Wait for something that is somebody else's doing."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
