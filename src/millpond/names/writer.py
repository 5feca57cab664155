"""The one thread through which all writes of an environment go.

The rule: what waits is committed together, with one fsync for all of it, and still everybody gets the answer that they
would have got alone: when a group fails, each of it is done again by itself. LMDB lets one writer in at a time;
threads that queued for its mutex would pay one fsync each.
"""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

import lmdb

from millpond.core.errors import NotReady

_Result = TypeVar("_Result")
_Job = tuple[Callable[["lmdb.Transaction[bytes]"], Any], "Future[Any]"]


class GroupWriter:
    """Runs pieces of work inside write transactions of ``environment``, in a thread of its own.

    A group is never larger than the number of threads that wait in :meth:`run`.
    """

    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment
        self._door = Lock()
        self._closed = False
        self._waiting: SimpleQueue[_Job | None] = SimpleQueue()
        # A daemon: what was acknowledged is durable, so an exit without close() loses nothing and must not hang.
        self._thread = Thread(target=self._serve, name="names-writer", daemon=True)
        self._thread.start()

    def run(self, work: Callable[["lmdb.Transaction[bytes]"], _Result]) -> _Result:
        """What ``work`` returns, once it is committed and durable.

        ``work`` may be called more than once, each time in a fresh transaction; only what the last one did counts.

        Raises:
            NotReady: the writer is closed.
            Exception: what ``work`` or its commit raised; nothing was written then.

        """
        answer: Future[_Result] = Future()
        with self._door:
            if self._closed:
                raise NotReady("the names are closed: the server is stopping")
            self._waiting.put((work, answer))
        return answer.result()

    def close(self) -> None:
        """Commit what waits, then end the thread. Repeating it is fine."""
        with self._door:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)  # nothing follows it: run() looks at _closed behind the same door
        self._thread.join()

    def _serve(self) -> None:
        job = self._waiting.get()
        while job is not None:
            group = [job]
            while not self._waiting.empty() and (job := self._waiting.get()) is not None:
                group.append(job)
            self._commit(group)
            if job is not None:
                job = self._waiting.get()

    def _commit(self, group: list[_Job]) -> None:
        try:
            with self._environment.begin(write=True) as transaction:
                results = [work(transaction) for work, _ in group]
        except Exception as error:
            if len(group) == 1:
                group[0][1].set_exception(error)
                return
            for job in group:
                self._commit([job])
            return
        for (_, answer), result in zip(group, results, strict=True):
            answer.set_result(result)
